"""Affinity: which slot of which engine last worked on a session, or on a prompt that began alike (SES-2).

An engine keeps the KV cache of what a slot worked on last. What is remembered here is a guess at that, good for a
choice among equals and never for a promise: keys of what stands in each slot, the newest last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from ..events.lease import LeaseGranted
from ..events.session import SessionEvicted
from .projection import Projection, Recorded, on

#: keys that are remembered
_BOUND: Final = 8192


class Warm(msgspec.Struct, frozen=True, gc=False):
    """A slot, and the start of the engine that it belongs to."""

    pool_id: str
    slot: int
    generation: int


class Affinity(Projection):
    """Slots by the keys of what they worked on last."""

    name = "affinity"

    def __init__(self) -> None:
        #: in the order of their last use
        self.by_key: dict[str, Warm] = {}
        #: what stands in a slot
        self._keys: dict[tuple[str, int], list[str]] = {}
        #: slots of a pool in the order of their last use
        self.used: dict[str, dict[int, None]] = {}

    def warm(self, keys: Sequence[str]) -> Warm | None:
        """Where the first of these keys that is remembered was worked on."""
        for key in keys:
            found = self.by_key.get(key)
            if found is not None:
                return found
        return None

    def coldest(self, pool_id: str, free: Sequence[int]) -> int:
        """Of these free slots the one whose content is missed least: unused, else the longest unused."""
        used = self.used.get(pool_id, {})
        for slot in free:
            if slot not in used:
                return slot
        return next(slot for slot in used if slot in free)

    @on(LeaseGranted)
    def _granted(self, record: Recorded) -> None:
        event: LeaseGranted = record.payload
        used = self.used.setdefault(event.pool_id, {})
        used.pop(event.slot, None)
        used[event.slot] = None
        place = (event.pool_id, event.slot)
        for key in self._keys.pop(place, ()):
            known = self.by_key.get(key)
            if known is not None and (known.pool_id, known.slot) == place:
                del self.by_key[key]
        if not event.keys:
            return
        self._keys[place] = event.keys
        warm = Warm(event.pool_id, event.slot, event.generation)
        for key in event.keys:
            self.by_key.pop(key, None)
            self.by_key[key] = warm
        while len(self.by_key) > _BOUND:
            del self.by_key[next(iter(self.by_key))]

    @on(SessionEvicted)
    def _evicted(self, record: Recorded) -> None:
        event: SessionEvicted = record.payload
        key = f"s:{event.session_id}"
        warm = self.by_key.pop(key, None)
        if warm is not None:
            keys = self._keys.get((warm.pool_id, warm.slot), [])
            self._keys[warm.pool_id, warm.slot] = [one for one in keys if one != key]

    def dump(self) -> Any:
        """Keys and slots in the order of their use, contents of slots by pool and slot."""
        return {
            "keys": [[key, warm.pool_id, warm.slot, warm.generation] for key, warm in self.by_key.items()],
            "slots": [[pool_id, slot, keys] for (pool_id, slot), keys in sorted(self._keys.items())],
            "used": {pool_id: list(slots) for pool_id, slots in sorted(self.used.items())},
        }

    def load(self, data: Any) -> None:
        """Replace the state by dumped data."""
        self.by_key = {key: Warm(pool_id, slot, generation) for key, pool_id, slot, generation in data["keys"]}
        self._keys = {(pool_id, slot): keys for pool_id, slot, keys in data["slots"]}
        self.used = {pool_id: dict.fromkeys(slots) for pool_id, slots in data["used"].items()}
