"""API keys: made, shown once, looked up by digest, changed, rotated, over (AUTH-1).

A key is ``lo_`` and 32 random bytes. What is kept of it is its SHA-256: with so much randomness a slow hash would protect
nothing more, and would cost each request what a fast one does not. A key is found by its digest, and digests are compared
in constant time, so that the time of an answer says nothing about how close a guess was.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from ..errors import BadTokenError, ConflictError, ForbiddenError, InvalidParamsError, NotFoundError
from ..events.key import KeyChanged, KeyCreated, KeyExpired, KeyRevoked, KeyRotated
from ..journal.journal import Journal
from ..projections.keys import KeyState
from ..settings import BudgetCapSettings
from .budgets import BudgetService
from .caller import Caller

#: what every key begins with, so that scanners for secrets know one
PREFIX = "lo_"
SECRET_BYTES = 32
_NS_PER_MS = 1_000_000
#: longest time that a request can name: a hundred years
MOST_MS = 3_153_600_000_000

Scope = Literal["inference", "read", "admin"]
PLAIN = r"^[^\x00-\x1f\x7f]*$"
Name = Annotated[str, Meta(min_length=1, max_length=64, pattern=PLAIN)]
Pattern = Annotated[str, Meta(min_length=1, max_length=256, pattern=PLAIN)]
Patterns = Annotated[list[Pattern], Meta(max_length=64)]
Rate = Annotated[int, Meta(ge=0, le=1_000_000_000_000)]
TimeMs = Annotated[int, Meta(ge=0, le=MOST_MS)]


class KeySpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key to be made."""

    #: for people; no two keys that are accepted have the same
    name: Name
    #: ``inference``: submit tasks, read and cancel one's own; ``read``: queue, pools, metrics; ``admin``: everything
    scopes: Annotated[list[Scope], Meta(min_length=1, max_length=3)] = msgspec.field(
        default_factory=lambda: ["inference", "read"]
    )
    #: models that it may use, as patterns with ``*`` and ``?``; empty = all
    models: Patterns = []
    #: paths that it may call, as patterns, e.g. ``/v1/chat/*``; empty = all that its scopes allow
    routes: Patterns = []
    #: it may only submit tasks of priority ``batch``
    batch_only: bool = False
    #: tasks that it may submit per minute; 0 = no limit
    requests_per_minute: Rate = 0
    #: tokens of prompts and answers per minute; 0 = no limit
    tokens_per_minute: Rate = 0
    #: how long it is accepted; 0 = until it is revoked
    ttl_ms: TimeMs = 0
    #: what it may spend, at most one for each window
    budgets: Annotated[list[BudgetCapSettings], Meta(max_length=3)] = []


class KeyPatch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to be changed of a key; what is not named stays."""

    name: Name | None = None
    scopes: Annotated[list[Scope], Meta(min_length=1, max_length=3)] | None = None
    models: Patterns | None = None
    routes: Patterns | None = None
    batch_only: bool | None = None
    requests_per_minute: Rate | None = None
    tokens_per_minute: Rate | None = None
    #: from now; 0 = until it is revoked
    ttl_ms: TimeMs | None = None


class KeyView(msgspec.Struct, frozen=True, kw_only=True):
    """A key as routes show it: everything but the key."""

    key_id: str
    name: str
    #: "active" | "expired" | "revoked"
    state: str
    #: what logs and the journal call it: ``token:`` and six digits of its hash
    identity: str
    scopes: list[str]
    models: list[str]
    routes: list[str]
    batch_only: bool
    requests_per_minute: int
    tokens_per_minute: int
    #: who made it
    created_by: str
    created_ms: int
    #: 0 = it does not expire
    expires_ms: int
    #: until when the secret before its last rotation is accepted as well; 0 = it is not
    previous_until_ms: int
    #: since when it is not accepted any more; 0 = it is
    over_ms: int


def digest_of(token: bytes) -> str:
    """What is kept of a key: its SHA-256, hexadecimal."""
    return hashlib.sha256(token).hexdigest()


def identity_of(digest: str) -> str:
    """What logs and the journal call the bearer of a key (AUTH-2)."""
    return f"token:{digest[:6]}"


def secret_from(random: Callable[[int], bytes]) -> str:
    """A new key."""
    return PREFIX + base64.urlsafe_b64encode(random(SECRET_BYTES)).rstrip(b"=").decode()


class KeyService:
    """Keys of the API.

    :param random: source of secrets and ids: so many bytes that nobody can guess.
    """

    def __init__(self, journal: Journal, random: Callable[[int], bytes], budgets: BudgetService) -> None:
        self._journal = journal
        self._budgets = budgets
        self._random = random
        #: what each key may do, beside the state that it was derived from
        self._callers: dict[str, tuple[KeyState, Caller]] = {}

    # --- asking ----------------------------------------------------------------------------------------------

    @property
    def any(self) -> bool:
        """Whether there is or was a key: from then on the server is not open to everyone any more."""
        return bool(self._journal.head.keys.by_id)

    def find(self, digest: str) -> Caller:
        """Whose key has this digest.

        :raises BadTokenError: nobody's, or it is over; which of these is not told to guessers.
        """
        head = self._journal.head.keys
        state = head.by_id.get(head.by_digest.get(digest, ""))
        if state is not None:
            now = self._journal.now_ns()
            current = hmac.compare_digest(state.digest, digest)
            previous = bool(state.previous_digest) and hmac.compare_digest(state.previous_digest, digest)
            if not state.due(now) and (current or (previous and not state.previous_due(now))):
                return self._caller(state)
        msg = "this key is not known, revoked or expired"
        raise BadTokenError(msg)

    def _caller(self, state: KeyState) -> Caller:
        known = self._callers.get(state.key_id)
        if known is not None and known[0] is state:
            return known[1]
        caller = Caller(
            owner=state.key_id,
            identity=identity_of(state.digest),
            scopes=state.scopes,
            models=state.models,
            routes=state.routes,
            batch_only=state.batch_only,
            requests_per_minute=state.requests_per_minute,
            tokens_per_minute=state.tokens_per_minute,
        )
        self._callers[state.key_id] = (state, caller)
        return caller

    def views(self) -> list[KeyView]:
        """All keys, the oldest first."""
        return [self._view(state) for state in self._journal.head.keys.by_id.values()]

    def get(self, key_id: str) -> KeyView:
        """One key. :raises NotFoundError: there is none."""
        return self._view(self._state(key_id))

    def _state(self, key_id: str) -> KeyState:
        state = self._journal.head.keys.by_id.get(key_id)
        if state is None:
            msg = f"there is no key {key_id[:64]!r}"
            raise NotFoundError(msg, field="key_id", got=key_id[:64], remedy="GET /v1/keys lists them.")
        return state

    def _view(self, state: KeyState) -> KeyView:
        now = self._journal.now_ns()
        expired = bool(state.over_ns) or state.due(now)
        return KeyView(
            key_id=state.key_id,
            name=state.name,
            state="revoked" if state.revoked else "expired" if expired else "active",
            identity=identity_of(state.digest),
            scopes=list(state.scopes),
            models=list(state.models),
            routes=list(state.routes),
            batch_only=state.batch_only,
            requests_per_minute=state.requests_per_minute,
            tokens_per_minute=state.tokens_per_minute,
            created_by=state.creator,
            created_ms=state.created_ns // _NS_PER_MS,
            expires_ms=state.expires_ns // _NS_PER_MS,
            previous_until_ms=0 if state.previous_due(now) else state.previous_until_ns // _NS_PER_MS,
            over_ms=(state.over_ns or (state.expires_ns if expired else 0)) // _NS_PER_MS,
        )

    # --- changing --------------------------------------------------------------------------------------------

    async def create(self, spec: KeySpec, caller: Caller, correlation: str) -> tuple[KeyView, str]:
        """Make a key and answer it with its secret, which is told this once, when the key is durable.

        :raises ForbiddenError: the caller is restricted itself.
        :raises ConflictError: a key that is accepted has this name.
        :raises InvalidParamsError: two of its budgets have the same window, a time zone is not known, or a route is no path.
        """
        _require_unrestricted(caller)
        _require_paths(spec.routes)
        self._require_free(spec.name)
        key_id = f"key-{self._random(6).hex()}"
        secret = secret_from(self._random)
        created = KeyCreated(
            key_id=key_id,
            name=spec.name,
            digest=digest_of(secret.encode()),
            scopes=list(dict.fromkeys(spec.scopes)),
            models=spec.models,
            routes=spec.routes,
            batch_only=spec.batch_only,
            requests_per_minute=spec.requests_per_minute,
            tokens_per_minute=spec.tokens_per_minute,
            expires_ns=self._expiry(spec.ttl_ms),
        )
        opened = self._budgets.opening("key", key_id, spec.budgets, self._journal.now_ns())
        await self._append([created, *opened], caller, correlation)
        return self.get(key_id), secret

    async def change(self, key_id: str, patch: KeyPatch, caller: Caller, correlation: str) -> KeyView:
        """Change what a key may do.

        :raises ForbiddenError: the caller is restricted itself.
        :raises NotFoundError: there is no such key. :raises ConflictError: it is over, or the name is taken.
        :raises InvalidParamsError: a route is no path.
        """
        _require_unrestricted(caller)
        _require_paths(patch.routes or ())
        state = self._live(key_id)
        if patch.name is not None and patch.name != state.name:
            self._require_free(patch.name)
        changed = KeyChanged(
            key_id=key_id,
            name=state.name if patch.name is None else patch.name,
            scopes=list(state.scopes) if patch.scopes is None else list(dict.fromkeys(patch.scopes)),
            models=list(state.models) if patch.models is None else patch.models,
            routes=list(state.routes) if patch.routes is None else patch.routes,
            batch_only=state.batch_only if patch.batch_only is None else patch.batch_only,
            requests_per_minute=(
                state.requests_per_minute if patch.requests_per_minute is None else patch.requests_per_minute
            ),
            tokens_per_minute=state.tokens_per_minute if patch.tokens_per_minute is None else patch.tokens_per_minute,
            expires_ns=state.expires_ns if patch.ttl_ms is None else self._expiry(patch.ttl_ms),
        )
        await self._append([changed], caller, correlation)
        return self.get(key_id)

    async def rotate(self, key_id: str, grace_ms: int, caller: Caller, correlation: str) -> tuple[KeyView, str]:
        """Give a key a new secret, told this once; the old one is accepted for ``grace_ms`` longer.

        :raises ForbiddenError: the caller is restricted itself.
        :raises NotFoundError: there is no such key. :raises ConflictError: it is over.
        """
        _require_unrestricted(caller)
        self._live(key_id)
        secret = secret_from(self._random)
        rotated = KeyRotated(key_id=key_id, digest=digest_of(secret.encode()), previous_until_ns=self._expiry(grace_ms))
        await self._append([rotated], caller, correlation)
        return self.get(key_id), secret

    async def revoke(self, key_id: str, caller: Caller, correlation: str) -> KeyView:
        """End a key for ever, and answer once that is durable; one that is over stays as it is.

        Its running tasks go on: `cancel` is for those.

        :raises ForbiddenError: the caller is restricted itself. :raises NotFoundError: there is no such key.
        """
        _require_unrestricted(caller)
        if not self._state(key_id).revoked:
            await self._append([KeyRevoked(key_id=key_id)], caller, correlation)
        else:
            await self._journal.synced(self._journal.head.next_seq)
        return self.get(key_id)

    def sweep(self, now_ns: int) -> None:
        """Note which keys' time is over; they are not accepted from that time on, whether this was noted or not."""
        head = self._journal.head.keys
        events: list[object] = []
        timed = [head.by_id[key_id] for key_id in head.timed]
        over = [state for state in timed if state.due(now_ns) or state.previous_due(now_ns)]
        for state in sorted(over, key=lambda one: one.key_id):
            if state.due(now_ns):
                events.append(KeyExpired(key_id=state.key_id))
            else:
                events.append(KeyExpired(key_id=state.key_id, what="previous"))
        if events:
            self._journal.append(events, actor="watchdog", correlation="")

    async def _append(self, events: list[object], caller: Caller, correlation: str) -> None:
        await self._journal.synced(self._journal.append(events, actor=caller.identity, correlation=correlation))

    def _expiry(self, ttl_ms: int) -> int:
        return self._journal.now_ns() + ttl_ms * _NS_PER_MS if ttl_ms else 0

    def _live(self, key_id: str) -> KeyState:
        state = self._state(key_id)
        if state.over_ns or state.due(self._journal.now_ns()):
            msg = f"the key {key_id} is {self._view(state).state}"
            raise ConflictError(msg, field="key_id", got=key_id, remedy="Make a new key: POST /v1/keys.")
        return state

    def _require_free(self, name: str) -> None:
        now = self._journal.now_ns()
        for state in self._journal.head.keys.by_id.values():
            if state.name == name and not state.over_ns and not state.due(now):
                msg = f"the key {state.key_id} is named {name!r} already"
                raise ConflictError(
                    msg, field="name", got=name, remedy="Take another name, or rotate or revoke that key."
                )


def _require_unrestricted(caller: Caller) -> None:
    if caller.restricted:
        msg = "a key that is restricted to some models, paths or priorities cannot make or change keys"
        raise ForbiddenError(msg, field="key", got=caller.identity, remedy="Use an admin key without restrictions.")


def _require_paths(routes: Sequence[str]) -> None:
    for number, route in enumerate(routes):
        if route[0] not in "/*?[":
            msg = f"routes: no path begins as {route!r} does, so that the key would be good for nothing"
            remedy = "Begin it with a slash, e.g. /v1/chat/*."
            raise InvalidParamsError(msg, field=f"routes.{number}", got=route, remedy=remedy)
