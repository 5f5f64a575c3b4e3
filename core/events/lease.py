"""Leases: a slot of a pool, from placement until it is seen free (PLC-4)."""

from __future__ import annotations

from ..registry import event


@event("lease.granted", stream="pool", key="pool_id")
class LeaseGranted:
    """A slot of the pool is promised to an attempt of a task."""

    lease_id: str
    pool_id: str
    task_id: str
    attempt: int
    #: index of the slot within the pool
    slot: int


@event("lease.released", stream="pool", key="pool_id")
class LeaseReleased:
    """The slot was seen free, or its process gone."""

    lease_id: str
    pool_id: str
    task_id: str
    #: "slot-free" | "engine-gone" | "never-sent" | "restart"
    cause: str
