"""What the swap planner reads and answers: memory of devices, pools, demand per group, and the actions (PLC-5).

All times are integer Unix nanoseconds or milliseconds, all memory is bytes; nothing here holds a float.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

PoolPhase = Literal["unloaded", "loading", "ready", "draining", "unloading", "failed"]


class DeviceMemory(Struct, frozen=True, kw_only=True):
    """One GPU, or the memory that pools on ``cpu`` share, as last observed."""

    #: GPU UUID, or "cpu"
    device: str
    host: str = "local"
    total_bytes: int
    #: free by the last sample, whoever uses the rest; ``None`` = it was never sampled
    free_bytes: int | None = None
    #: age of the sample
    age_ms: int = 0
    #: the sample is too old (or its driver gone), so that only the ledger is believed
    stale: bool = False
    #: never planned with, whoever uses the rest: predictions err, and others grow
    reserve_bytes: int = 0
    #: relative speed, any unit, higher is faster; 0 = unknown
    speed: int = 0


class PoolMemory(Struct, frozen=True, kw_only=True):
    """One pool: where it may run, what it needs there, how it stands."""

    pool_id: str
    #: serving group
    group: str
    host: str = "local"
    #: its device mask: where it may run, never outside of it; () = it needs no memory here (an external engine)
    devices: tuple[str, ...] = ()
    phase: PoolPhase = "unloaded"
    #: devices that it is on, or is being loaded on
    placed_on: tuple[str, ...] = ()
    #: predicted (or, once known, measured) bytes when it is on one device
    need_bytes: int = 0
    #: bytes on each of ``devices`` when it is spread over all of them; () = it must not be spread
    split_bytes: tuple[int, ...] = ()
    #: per device: the larger of predicted and measured bytes; held until the engine is seen gone, whatever the phase
    reserved_bytes: dict[str, int] = {}
    leases: int = 0
    slots: int = 0
    #: it never makes room
    pinned: bool = False
    #: it is loaded without being asked for, when there is room
    preload: bool = False
    #: it may go by itself when idle and this has passed; 0 = only when others need room
    keep_alive_until_ns: int = 0
    last_used_ns: int = 0
    #: until when it last took tasks, for pools that do not now; 0 = it never did
    served_until_ns: int = 0
    #: of a failed pool: when it may be tried again; 0 = not by itself
    retry_at_ns: int = 0
    #: estimated time to load it; 0 = it never was
    load_ms: int = 0
    #: estimated time until its running tasks have ended
    busy_ms: int = 0
    #: since when it is in this phase
    since_ns: int = 0
    #: of a draining pool: "swap" | "idle" (ours: may be undone) | "operator" | "reload" | …
    drain_cause: str = ""
    #: of a pool that left: the group that it made room for; "" = none
    made_room_for: str = ""


class GroupDemand(Struct, frozen=True, kw_only=True):
    """What waits in one group's queue."""

    group: str
    interactive: int = 0
    batch: int = 0
    #: admission of the longest-waiting task, Unix ns
    oldest_ns: int = 0
    #: estimated time that one pool of the group needs for all that waits
    work_ms: int = 0

    @property
    def waiting(self) -> int:
        """Tasks of both priorities."""
        return self.interactive + self.batch


class SwapLimits(Struct, frozen=True, kw_only=True):
    """The rules' numbers; defaults as measured in docs/explanation/placement.md."""

    #: no task is passed over for longer (loads and drains to get there are planned for)
    bound_ms: int = 300_000
    #: a loaded pool serves its queue for at least this many times its own load time before it has to give way
    turn_loads: int = 3
    #: shortest turn
    turn_ms: int = 10_000
    #: waiting (task-milliseconds) per millisecond of loading that justifies taking the place of an idle pool, and of
    #: one at work; first while one group waits, then while several do
    idle_price: int = 1
    busy_price: int = 2
    crowded_idle_price: int = 6
    crowded_busy_price: int = 12


class SwapSnapshot(Struct, frozen=True, kw_only=True):
    """All that a plan may read."""

    now_ns: int
    devices: tuple[DeviceMemory, ...]
    pools: tuple[PoolMemory, ...]
    groups: tuple[GroupDemand, ...] = ()
    limits: SwapLimits = SwapLimits()


class Load(Struct, frozen=True, kw_only=True, tag="load"):
    """Start the pool's engine on these devices; the memory is free now."""

    pool_id: str
    devices: tuple[str, ...]
    predicted_bytes: dict[str, int]
    reason: str
    #: pools that left for it
    makes_room_by: tuple[str, ...] = ()


class Drain(Struct, frozen=True, kw_only=True, tag="drain"):
    """Give the pool no new tasks; running ones may end. It is unloaded when none is left."""

    pool_id: str
    reason: str
    for_group: str


class Undrain(Struct, frozen=True, kw_only=True, tag="undrain"):
    """The room is not needed any more: the pool takes tasks again."""

    pool_id: str
    reason: str


class Unload(Struct, frozen=True, kw_only=True, tag="unload"):
    """Stop the pool's engine; it holds no lease."""

    pool_id: str
    #: "swap" = it makes room; "idle" = its keep-alive has passed
    cause: Literal["swap", "idle"]
    reason: str
    #: "" when nobody waits for the room
    for_group: str = ""


Action = Load | Drain | Undrain | Unload


class SwapPlan(Struct, frozen=True, kw_only=True):
    """What to do now, in order, and when to look again though nothing happened (0 = no need)."""

    actions: tuple[Action, ...] = ()
    next_look_ns: int = 0
    #: per group that waits for memory: why it is not being loaded now, in words with numbers
    waits: dict[str, str] = {}
