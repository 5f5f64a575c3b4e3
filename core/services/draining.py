"""Draining: a pool takes no new tasks, running ones may end until the deadline, then its engine is unloaded (POOL-2).

What is due follows from head alone, so that a drain goes on after a restart. A task that still runs at the deadline is
given up for another attempt: it returns to its place in the queue, and is never lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import msgspec

from ..errors import ConflictError, JournalUnavailableError
from ..events.pool import PoolDraining, PoolUndrained, PoolUnloading
from ..events.task import TaskAttemptFailed
from ..journal.journal import Journal
from ..projections.leases import Lease, Leases
from ..projections.pools import PoolState
from ..projections.projection import Recorded
from .caller import Caller
from .dispatch import Dispatcher
from .pools import PoolService

#: code of attempts that were given up because their pool had to be empty; no fault of engine or task
DRAINED: Final = "drained"
#: an engine that does not free the slots of given-up attempts within this time after the deadline is ended all the same
_SLOT_GRACE_NS: Final = 5_000_000_000


class DrainPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What is due now, by pool ids."""

    #: tasks on them are given up for another attempt
    give_up: tuple[str, ...] = ()
    #: their engines are unloaded
    unload: tuple[str, ...] = ()
    #: when to look again though nothing happened, Unix ns; 0 = no need
    next_look_ns: int = 0


def plan_drains(
    pools: Iterable[PoolState], leases: Mapping[str, int], now_ns: int, *, managed: Callable[[PoolState], bool]
) -> DrainPlan:
    """What is due. Pure.

    Args:
        pools: all of them.
        leases: held on each, by pool id.
        now_ns: Unix time.
        managed: whether a pool's engine is loaded and unloaded here.
    """
    give_up: list[str] = []
    unload: list[str] = []
    looks: list[int] = []
    for pool in pools:
        if not pool.draining:
            continue
        name, until_ns = pool.declared.pool_id, pool.drain_until_ns
        held = leases.get(name, 0)
        overdue = bool(until_ns) and now_ns >= until_ns
        if held and until_ns and not overdue:
            looks.append(until_ns)
        if held and overdue:
            give_up.append(name)
            looks.append(max(now_ns + 1, until_ns + _SLOT_GRACE_NS))
        empty = not held or (bool(until_ns) and now_ns >= until_ns + _SLOT_GRACE_NS)
        if empty and pool.drain_cause == "operator" and pool.wanted and managed(pool):
            unload.append(name)
    looks = [at for at in looks if at > now_ns]
    return DrainPlan(give_up=tuple(give_up), unload=tuple(unload), next_look_ns=min(looks, default=0))


class DrainService:
    """Drains pools.

    Args:
        managed: whether a pool's engine is loaded and unloaded here.
    """

    def __init__(
        self, journal: Journal, dispatcher: Dispatcher, pools: PoolService, managed: Callable[[PoolState], bool]
    ) -> None:
        self._journal = journal
        self._dispatcher = dispatcher
        self._pools = pools
        self._managed = managed
        self._timer: asyncio.TimerHandle | None = None
        self._running = False
        self._soon = False
        journal.on_committed(self._note)
        journal.on_rebuilt(self.look_soon)
        journal.on_status(self.look_soon)

    def start(self) -> None:
        """Go on with the drains that head knows of."""
        self._running = True
        self.look_soon()

    def close(self) -> None:
        """Look no more."""
        self._running = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # --- what people ask for -----------------------------------------------------------------------------------------

    async def drain(
        self, pool_id: str, caller: Caller, *, deadline_ms: int | None = None, reason: str = "", correlation: str = ""
    ) -> PoolState:
        """Take the pool out of service until :meth:`undrain`; asked again, the new deadline counts.

        :param deadline_ms: for running tasks, from now; ``None`` = until they end.
        :raises NotFoundError: there is no such pool.
        :raises ConflictError: it is being reloaded.
        """
        pool = self._pools.state(pool_id)
        if pool.reloading_to or pool.reloaded_from:
            msg = f"pool {pool_id!r} is being reloaded"
            raise ConflictError(msg, field="pool_id", got=pool_id, remedy="Wait until its health says that it is not.")
        drained = PoolDraining(
            pool_id=pool_id,
            deadline_ms=max(1, deadline_ms) if deadline_ms is not None else 0,
            cause="operator",
            reason=reason,
        )
        seq = self._journal.append([drained], actor=caller.identity, correlation=correlation)
        self.look_soon()
        await self._journal.synced(seq)
        return pool

    async def undrain(self, pool_id: str, caller: Caller, *, correlation: str = "") -> PoolState:
        """Put the pool back into service; one that failed is tried at once. :raises NotFoundError: there is no such pool."""
        pool = self._pools.state(pool_id)
        if pool.failed or (pool.draining and pool.drain_cause == "operator"):
            seq = self._journal.append([PoolUndrained(pool_id=pool_id)], actor=caller.identity, correlation=correlation)
            self._dispatcher.pump(pool.declared.model_ref)
            await self._journal.synced(seq)
        return pool

    # --- what is due -------------------------------------------------------------------------------------------------

    def _note(self, records: list[Recorded]) -> None:
        if self._running and any(r.name in _TELLING for r in records):
            if any(pool.draining for pool in self._journal.head.pools.by_id.values()):
                self.look_soon()

    def look_soon(self) -> None:
        """Look once what runs now is through."""
        if self._running and not self._soon:
            self._soon = True
            asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        self._soon = False
        if not self._running or self._journal.status != "ok":
            return
        head, now_ns = self._journal.head, self._journal.now_ns()
        pools = [pool for _, pool in sorted(head.pools.by_id.items())]
        counts = {pool.declared.pool_id: head.leases.count(pool.declared.pool_id) for pool in pools}
        plan = plan_drains(pools, counts, now_ns, managed=self._managed)
        try:
            for name in plan.give_up:
                give_up(self._journal, self._dispatcher, [one.lease_id for one in leases_of(head.leases, name)])
            for name in plan.unload:
                event = PoolUnloading(pool_id=name, cause="drain", reason="it was drained")
                self._journal.append([event], actor="draining", correlation="", internal=True)
        except JournalUnavailableError:
            return  # looked at again once the journal is back
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if plan.next_look_ns:
            delay_s = (plan.next_look_ns - now_ns) / 1e9
            self._timer = asyncio.get_running_loop().call_later(delay_s + 0.001, self.look_soon)


#: events after which a drain may have come further
_TELLING: Final = frozenset({"pool.draining", "lease.released", "pool.ready", "pool.unready"})


def leases_of(leases: Leases, pool_id: str) -> list[Lease]:
    """The leases on a pool, by slot."""
    return [leases.by_id[lease_id] for _, lease_id in sorted(leases.slots.get(pool_id, {}).items())]


def give_up(journal: Journal, dispatcher: Dispatcher, lease_ids: Iterable[str]) -> None:
    """End the attempts that hold these leases; their tasks are queued again, at their old places.

    A task that asked for no recovery and already said something cannot run again: it ends as interrupted, retriably.

    :raises JournalUnavailableError: nothing more can be written now.
    """
    head = journal.head
    groups = set()
    for lease_id in lease_ids:
        lease = head.leases.by_id.get(lease_id)
        state = head.tasks.live.get(lease.task_id) if lease is not None else None
        if lease is None or state is None or state.attempt != lease.attempt or not state.pool_id:
            continue  # its attempt is over already, only its slot is not free yet
        groups.add(state.admitted.group)
        message = "the pool was drained, and its deadline passed"
        if state.entries and state.admitted.recovery == "none":
            dispatcher.end_task(
                state,
                [],
                actor="draining",
                correlation=state.correlation,
                outcome="failed",
                finish_reason="error",
                code="INTERRUPTED",
                message=f"{message}; the task asked for no recovery",
                retriable=True,
            )
            continue
        failed = TaskAttemptFailed(
            task_id=state.task_id, attempt=state.attempt, pool_id=lease.pool_id, code=DRAINED, message=message
        )
        journal.append([failed], actor="draining", correlation=state.correlation, internal=True)
        attempt = dispatcher.attempts.pop(state.task_id, None)
        if attempt is not None:
            attempt.stop()
            dispatcher.free_slot(attempt)
    for group in sorted(groups):
        dispatcher.pump(group)
