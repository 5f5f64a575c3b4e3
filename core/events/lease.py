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
    #: start of the engine that the slot belongs to; 0 = not known
    generation: int = 0
    #: what the slot works on, most telling first: a session, or beginnings of the prompt (SES-2)
    keys: list[str] = []
    #: the slot worked on the first of these last, so that the engine may still hold its KV cache
    warm: bool = False


@event("lease.released", stream="pool", key="pool_id")
class LeaseReleased:
    """The slot was seen free, or its process gone."""

    lease_id: str
    pool_id: str
    task_id: str
    #: "slot-free" | "engine-gone" | "never-sent" | "restart"
    cause: str
