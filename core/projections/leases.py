"""Leases: which slots of which pool are promised to whom (PLC-4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ..events.lease import LeaseGranted, LeaseReleased
from .projection import Projection, Recorded, on


class Lease(msgspec.Struct, frozen=True, gc=False):
    """One slot held by one attempt."""

    lease_id: str
    pool_id: str
    task_id: str
    attempt: int
    slot: int
    #: the slot worked on the same conversation last
    warm: bool = False


class Leases(Projection):
    """Leases by id, and the slots in use per pool."""

    name = "leases"
    version = 2

    def __init__(self) -> None:
        self.by_id: dict[str, Lease] = {}
        self.slots: dict[str, dict[int, str]] = {}

    def count(self, pool_id: str) -> int:
        """Leases held on a pool."""
        return len(self.slots.get(pool_id, ()))

    def free_slots(self, pool_id: str, slots: int) -> Sequence[int]:
        """The free slots of a pool that has so many."""
        used = self.slots.get(pool_id)
        if not used:
            return range(slots)
        return [n for n in range(slots) if n not in used] if len(used) < slots else ()

    @on(LeaseGranted)
    def _granted(self, record: Recorded) -> None:
        event: LeaseGranted = record.payload
        self.by_id[event.lease_id] = Lease(
            event.lease_id, event.pool_id, event.task_id, event.attempt, event.slot, event.warm
        )
        self.slots.setdefault(event.pool_id, {})[event.slot] = event.lease_id

    @on(LeaseReleased)
    def _released(self, record: Recorded) -> None:
        lease = self.by_id.pop(record.payload.lease_id)
        used = self.slots[lease.pool_id]
        del used[lease.slot]
        if not used:
            del self.slots[lease.pool_id]

    def dump(self) -> Any:
        """Leases in order of their ids."""
        return [msgspec.to_builtins(self.by_id[k]) for k in sorted(self.by_id)]

    def load(self, data: Any) -> None:
        """Replace the state by dumped data."""
        self.__init__()  # type: ignore[misc]
        for item in data:
            lease = msgspec.convert(item, Lease)
            self.by_id[lease.lease_id] = lease
            self.slots.setdefault(lease.pool_id, {})[lease.slot] = lease.lease_id
