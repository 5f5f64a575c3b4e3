"""Keys: what each may do, and whose digest is whose (AUTH-1)."""

from __future__ import annotations

from typing import Any

import msgspec

from ..events.key import KeyChanged, KeyCreated, KeyExpired, KeyRevoked, KeyRotated
from .projection import Projection, Recorded, on


class KeyState(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One key; a change makes another object of it, so that what is derived from one can be kept beside it."""

    key_id: str
    name: str
    #: SHA-256, hexadecimal
    digest: str
    scopes: tuple[str, ...]
    models: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    batch_only: bool = False
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    #: who made it
    creator: str = ""
    created_ns: int = 0
    #: 0 = never
    expires_ns: int = 0
    #: of the secret before the last rotation; "" = there is none
    previous_digest: str = ""
    previous_until_ns: int = 0
    #: when it was over, by revocation or by time; 0 = it is not
    over_ns: int = 0
    revoked: bool = False

    def due(self, now_ns: int) -> bool:
        """Whether its time is over, though nothing says so yet."""
        return bool(self.expires_ns) and now_ns >= self.expires_ns

    def previous_due(self, now_ns: int) -> bool:
        """Whether the time of the secret before the last rotation is over."""
        return bool(self.previous_digest) and now_ns >= self.previous_until_ns


class Keys(Projection):
    """All keys that there ever were, by id: that there was one closes the server for good."""

    name = "keys"

    def __init__(self) -> None:
        #: in the order in which they were made
        self.by_id: dict[str, KeyState] = {}
        #: ids of keys that are not over, by the digests that they are known by
        self.by_digest: dict[str, str] = {}
        #: keys whose time, or whose previous secret's time, will be over
        self.timed: set[str] = set()

    def _put(self, state: KeyState) -> None:
        before = self.by_id.get(state.key_id)
        for digest in (before.digest, before.previous_digest) if before is not None else ():
            self.by_digest.pop(digest, None)
        self.by_id[state.key_id] = state
        self._note(state)

    def _note(self, state: KeyState) -> None:
        self.timed.discard(state.key_id)
        if state.over_ns:
            return
        self.by_digest[state.digest] = state.key_id
        if state.previous_digest:
            self.by_digest[state.previous_digest] = state.key_id
        if state.expires_ns or state.previous_digest:
            self.timed.add(state.key_id)

    @on(KeyCreated)
    def _created(self, record: Recorded) -> None:
        event: KeyCreated = record.payload
        self._put(
            KeyState(
                key_id=event.key_id,
                name=event.name,
                digest=event.digest,
                scopes=tuple(event.scopes),
                models=tuple(event.models),
                routes=tuple(event.routes),
                batch_only=event.batch_only,
                requests_per_minute=event.requests_per_minute,
                tokens_per_minute=event.tokens_per_minute,
                creator=record.actor,
                created_ns=record.time_ns,
                expires_ns=event.expires_ns,
            )
        )

    @on(KeyChanged)
    def _changed(self, record: Recorded) -> None:
        event: KeyChanged = record.payload
        self._put(
            msgspec.structs.replace(
                self.by_id[event.key_id],
                name=event.name,
                scopes=tuple(event.scopes),
                models=tuple(event.models),
                routes=tuple(event.routes),
                batch_only=event.batch_only,
                requests_per_minute=event.requests_per_minute,
                tokens_per_minute=event.tokens_per_minute,
                expires_ns=event.expires_ns,
            )
        )

    @on(KeyRotated)
    def _rotated(self, record: Recorded) -> None:
        event: KeyRotated = record.payload
        state = self.by_id[event.key_id]
        self._put(
            msgspec.structs.replace(
                state,
                digest=event.digest,
                previous_digest=state.digest if event.previous_until_ns else "",
                previous_until_ns=event.previous_until_ns,
            )
        )

    @on(KeyExpired)
    def _expired(self, record: Recorded) -> None:
        event: KeyExpired = record.payload
        state = msgspec.structs.replace(self.by_id[event.key_id], previous_digest="", previous_until_ns=0)
        self._put(state if event.what == "previous" else msgspec.structs.replace(state, over_ns=record.time_ns))

    @on(KeyRevoked)
    def _revoked(self, record: Recorded) -> None:
        state = self.by_id[record.payload.key_id]
        self._put(
            msgspec.structs.replace(
                state, previous_digest="", previous_until_ns=0, over_ns=record.time_ns, revoked=True
            )
        )

    def dump(self) -> Any:
        """Keys in the order in which they were made."""
        return [msgspec.to_builtins(state) for state in self.by_id.values()]

    def load(self, data: Any) -> None:
        """Replace the state by dumped data."""
        self.by_id = {state.key_id: state for state in (msgspec.convert(one, KeyState) for one in data)}
        self.by_digest, self.timed = {}, set()
        for state in self.by_id.values():
            self._note(state)
