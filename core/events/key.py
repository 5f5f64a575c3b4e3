"""API keys: made, changed, rotated, over (AUTH-1). Only digests are journaled, never a key."""

from __future__ import annotations

from ..registry import event


@event("key.created", stream="key", key="key_id", durable=True)
class KeyCreated:
    """A key was made."""

    key_id: str
    name: str
    #: SHA-256 of the key, hexadecimal
    digest: str
    #: what it is for: "inference", "read", "admin"
    scopes: list[str]
    #: patterns of models that it may use; empty = all
    models: list[str] = []
    #: patterns of paths that it may call; empty = all that its scopes allow
    routes: list[str] = []
    #: it may only submit tasks of priority ``batch``
    batch_only: bool = False
    #: 0 = no limit
    requests_per_minute: int = 0
    #: 0 = no limit
    tokens_per_minute: int = 0
    #: Unix time from which it is not accepted; 0 = never
    expires_ns: int = 0


@event("key.changed", stream="key", key="key_id", durable=True)
class KeyChanged:
    """What a key may do was changed; every field as it is from here on."""

    key_id: str
    name: str
    scopes: list[str]
    models: list[str] = []
    routes: list[str] = []
    batch_only: bool = False
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    expires_ns: int = 0


@event("key.rotated", stream="key", key="key_id", durable=True)
class KeyRotated:
    """The key has another secret; it stays the same key, with its tasks, sessions and budgets."""

    key_id: str
    #: SHA-256 of the new secret, hexadecimal
    digest: str
    #: Unix time until which the secret before this one is accepted as well; 0 = not from here on
    previous_until_ns: int = 0


@event("key.expired", stream="key", key="key_id", durable=True)
class KeyExpired:
    """The time of a key, or of the secret before its last rotation, was over."""

    key_id: str
    #: "key" | "previous": only the secret before the rotation
    what: str = "key"


@event("key.revoked", stream="key", key="key_id", durable=True)
class KeyRevoked:
    """The key is not accepted any more; this is for ever."""

    key_id: str
