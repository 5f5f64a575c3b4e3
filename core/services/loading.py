"""Loading: models are brought to memory when tasks ask for them, and make room for each other (PLC-5).

The service reads head, asks the pure planner, and appends what it decided. Whoever runs the engines is told nothing
here: what each host shall run follows from head, and goes to the host once the decision is committed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Final

from ..devices import CPU
from ..errors import JournalUnavailableError
from ..events.pool import PoolDraining, PoolLoading, PoolUndrained, PoolUnloading
from ..journal.journal import Journal
from ..projections.head import Head
from ..projections.pools import UNLOADED, PoolState
from ..projections.projection import Recorded
from ..scheduling.swap_types import (
    Action,
    Drain,
    GroupDemand,
    Load,
    PoolMemory,
    PoolPhase,
    SwapLimits,
    SwapPlan,
    SwapSnapshot,
    Undrain,
    Unload,
)
from ..scheduling.swaps import plan_swaps
from ..settings import PoolSettings, Settings
from .device_memory import devices_of, mask_of, split_of, whole_of

#: causes of a pool that nobody has said anything about yet in this life of the server
_UNSEEN = frozenset({"starting", "connecting"})
#: causes of a pool that is on its way by itself
_LOADING = _UNSEEN | {"loading", "provisioning", "staging", "reloading"}

#: until a pool has ended its first tasks: tokens per task, thousandths of a token per second
_TOKENS: Final = 128
_MTOK_S: Final = 20_000

Planner = Callable[[SwapSnapshot], SwapPlan]


class LoadingService:
    """Decides which pools are loaded, where.

    Args:
        launched: engines whose processes are started for their pools; the others' pools are always wanted.
        planner: the pure decision.
    """

    def __init__(
        self,
        journal: Journal,
        settings: Settings,
        launched: Collection[str],
        pump: Callable[[str], None],
        planner: Planner = plan_swaps,
    ) -> None:
        self._journal = journal
        self._settings = settings
        self._launched = frozenset(launched)
        self._pump = pump
        self._planner = planner
        self._pools = {pool.id: pool for pool in settings.pools}
        self._timer: asyncio.TimerHandle | None = None
        self._soon = False
        self._running = False
        #: why each group that waits for memory waits, in words
        self.waits: dict[str, str] = {}
        journal.on_committed(self._note)
        journal.on_rebuilt(self.look_soon)
        journal.on_status(self.look_soon)

    def manages(self, pool: PoolState) -> bool:
        """Whether loading and unloading the pool is decided here."""
        return pool.declared.provisioning != "external" and pool.declared.engine in self._launched

    def loadable(self, pool: PoolState) -> bool:
        """Whether a task may wait for the pool, since it is loaded when one does."""
        return self.manages(pool) and not pool.failed and not (pool.draining and pool.drain_cause == "operator")

    def start(self) -> None:
        """Begin to decide."""
        self._running = True
        self.look_soon()

    def close(self) -> None:
        """Decide no more."""
        self._running = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def shut_down(self) -> None:
        """The engines end with the server: the next start begins with nothing loaded."""
        self.close()
        events = [
            PoolUnloading(pool_id=name, cause="shutdown")
            for name, pool in sorted(self._journal.head.pools.by_id.items())
            if pool.wanted and self.manages(pool)
        ]
        if events:
            self._journal.append(events, actor="loading", correlation="", internal=True)

    # --- when to look ------------------------------------------------------------------------------------------------

    def _note(self, records: list[Recorded]) -> None:
        if self._launched and any(record.name in _TELLING for record in records):
            self.look_soon()

    def look_soon(self) -> None:
        """Look once what runs now is through; many causes at once are one look."""
        if not self._soon and self._running:
            self._soon = True
            asyncio.get_running_loop().call_soon(self._look_now)

    def _look_now(self) -> None:
        self._soon = False
        if self._running and self._journal.status == "ok":
            self.look()

    def look(self) -> None:
        """Plan, and append what follows."""
        head, now_ns = self._journal.head, self._journal.now_ns()
        if not self._needed(head):
            return
        plan = self._planner(self.snapshot(head, now_ns))
        self.waits = plan.waits
        try:
            for action in plan.actions:
                self._journal.append([self._event(action)], actor="loading", correlation="", internal=True)
        except JournalUnavailableError:
            return  # looked at again once the journal is back
        for action in plan.actions:
            if isinstance(action, Undrain):
                self._pump(head.pools.by_id[action.pool_id].declared.model_ref)
        self._look_at(plan.next_look_ns, now_ns)

    def _look_at(self, due_ns: int, now_ns: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if due_ns:
            delay_s = max(0, due_ns - now_ns) / 1e9
            self._timer = asyncio.get_running_loop().call_later(delay_s + 0.001, self.look_soon)

    def _needed(self, head: Head) -> bool:
        """Whether a plan could say anything: the common case under load is that all are ready that are asked for."""
        for pool in head.pools.by_id.values():
            if not self.manages(pool):
                continue
            if pool.draining or pool.declared.keep_alive_ms or not (pool.ready or pool.cause == UNLOADED):
                return True
            if not pool.ready and (not pool.declared.on_demand or pool.declared.model_ref in head.queue.groups):
                return True
        return False

    # --- what the planner reads --------------------------------------------------------------------------------------

    def snapshot(self, head: Head, now_ns: int) -> SwapSnapshot:
        """All that a plan may read, out of head and configuration."""
        swap = self._settings.swap
        devices = devices_of(head, self._settings)
        pools = []
        for name, pool in sorted(head.pools.by_id.items()):
            settings = self._pools.get(name)
            if pool.drain_cause == "operator" and not pool.holds:
                continue  # it is out of service until whoever drained it says otherwise
            if settings is not None and self.manages(pool) and self._known(pool):
                pools.append(self._memory(head, pool, settings, now_ns))
        return SwapSnapshot(
            now_ns=now_ns,
            devices=devices,
            pools=tuple(pools),
            groups=tuple(self._demand(head, name) for name in sorted(head.queue.groups)),
            limits=SwapLimits(bound_ms=swap.bound_ms, turn_ms=swap.residence_ms),
        )

    @staticmethod
    def _known(pool: PoolState) -> bool:
        """Whether its host has said what it needs, or that this cannot be told before it is tried."""
        return pool.sized is not None or pool.holds or pool.cause not in _UNSEEN

    def _memory(self, head: Head, pool: PoolState, settings: PoolSettings, now_ns: int) -> PoolMemory:
        declared = pool.declared
        mask = mask_of(head, pool)
        return PoolMemory(
            pool_id=declared.pool_id,
            group=declared.model_ref,
            host=declared.host,
            devices=mask,
            phase=phase_of(pool),
            placed_on=tuple(pool.devices) if pool.holds else (),
            need_bytes=whole_of(pool, settings),
            split_bytes=split_of(head, pool, settings) if len(mask) > 1 and CPU not in mask else (),
            reserved_bytes=pool.reserved_bytes,
            leases=head.leases.count(declared.pool_id),
            slots=pool.slots,
            pinned=declared.pinned or (pool.draining and pool.drain_cause in ("operator", "reload")),
            preload=not declared.on_demand and pool.drain_cause != "operator" and not pool.permanent,
            keep_alive_until_ns=pool.used_ns + declared.keep_alive_ms * 1_000_000 if declared.keep_alive_ms else 0,
            last_used_ns=pool.used_ns,
            served_until_ns=pool.served_until_ns,
            retry_at_ns=pool.retry_ns,
            load_ms=pool.load_ms,
            busy_ms=_task_ms(pool) if head.leases.count(declared.pool_id) else 0,
            since_ns=pool.since_ns,
            drain_cause=pool.drain_cause,
            made_room_for=pool.made_room_for,
        )

    @staticmethod
    def _demand(head: Head, group: str) -> GroupDemand:
        queue = head.queue.groups[group]
        first = [lane.first() for lane in (queue.interactive, queue.batch)]
        oldest = min((head.tasks.live[one[1]].admitted_ns for one in first if one is not None), default=0)
        return GroupDemand(
            group=group,
            interactive=len(queue.interactive),
            batch=len(queue.batch),
            oldest_ns=oldest,
            work_ms=LoadingService._work_ms(head, group, len(queue)),
        )

    @staticmethod
    def _work_ms(head: Head, group: str, waiting: int) -> int:
        """What waits, at the rate that the group's quickest pool has shown."""
        times = [_task_ms(pool) // max(1, pool.slots) for pool in head.pools.serving(group)]
        return waiting * min(times, default=0)

    # --- what follows ------------------------------------------------------------------------------------------------

    def _event(self, action: Action) -> object:
        match action:
            case Load():
                return PoolLoading(
                    pool_id=action.pool_id,
                    devices=list(action.devices),
                    predicted_bytes=action.predicted_bytes,
                    reason=action.reason,
                    makes_room_by=list(action.makes_room_by),
                )
            case Drain():
                return PoolDraining(
                    pool_id=action.pool_id,
                    deadline_ms=self._settings.swap.drain_ms,
                    cause="swap",
                    reason=action.reason,
                    for_group=action.for_group,
                )
            case Undrain():
                return PoolUndrained(pool_id=action.pool_id)
            case Unload():
                return PoolUnloading(
                    pool_id=action.pool_id, cause=action.cause, reason=action.reason, for_group=action.for_group
                )


#: events after which memory, demand or a pool's state may be another
_TELLING = frozenset(
    {
        "task.admitted",
        "task.placed",
        "task.ended",
        "task.attempt_failed",
        "lease.released",
        "gpu.observed",
        "pool.declared",
        "pool.sized",
        "pool.ready",
        "pool.unready",
        "pool.measured",
        "pool.undrained",
        "pool.reloaded",
        "pool.reload_failed",
        "pool.retired",
    }
)


def _task_ms(pool: PoolState) -> int:
    """How long a task takes on a pool, as it has shown so far."""
    return (pool.output_mtok or _TOKENS * 1000) * 1_000 // (pool.decode_mtok_s or _MTOK_S)


def phase_of(pool: PoolState) -> PoolPhase:
    """How a pool that is loaded and unloaded here stands."""
    if pool.ready:
        return "draining" if pool.draining else "ready"
    if not pool.wanted:
        return "unloading" if pool.holds else "unloaded"
    return "loading" if pool.cause in _LOADING else "failed"
