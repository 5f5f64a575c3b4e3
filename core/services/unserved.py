"""Models that nobody serves, and nobody will before a person mends something: who asks for them is told (ADM-8)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from ..errors import OrchError, PoolUnavailableError
from ..journal.journal import Journal
from ..projections.head import Head
from ..projections.pools import PoolState
from ..settings import Settings
from .device_memory import misfit_of
from .dispatch import Dispatcher
from .pool_trouble import trouble_of_group

#: tasks that are ended in one sweep
_AT_ONCE: Final = 256
_ADVICE: Final = "Lower ctx or slots, use a smaller quantization, or allow more GPUs in `devices`."


class Unserved:
    """Finds such models, and ends interactive tasks of theirs with the cause and what to do; batch tasks wait.

    Args:
        manages: whether loading a pool is decided here.
    """

    def __init__(
        self, journal: Journal, dispatcher: Dispatcher, settings: Settings, manages: Callable[[PoolState], bool]
    ) -> None:
        self._journal = journal
        self._dispatcher = dispatcher
        self._settings = settings
        self._manages = manages
        self._pools = {pool.id: pool for pool in settings.pools}
        self._patience_ns = settings.admission.mend_patience_ms * 1_000_000

    def trouble(self, pools: Sequence[PoolState], now_ns: int) -> OrchError | None:
        """Why a task of these pools would wait for somebody to mend something; ``None`` = one of them may serve it."""
        if not pools or any(pool.ready for pool in pools):
            return None
        misfits = {}
        left = []
        for pool in pools:
            name = pool.declared.pool_id
            why = self._misfit(pool)
            if why:
                misfits[name] = why
            else:
                left.append(pool)
        if not misfits:
            return trouble_of_group(pools, now_ns)
        other = trouble_of_group(left, now_ns) if left else None
        if left and other is None:
            return None
        told = "; ".join(f"pool {name!r} fits no device: {why}" for name, why in misfits.items())
        first = pools[0].declared
        return PoolUnavailableError(
            f"{told}; {other.message}" if other is not None else told,
            pool_id=first.pool_id if len(pools) == 1 else None,
            engine=first.engine,
            remedy=_ADVICE,
            cause="fits-no-device",
        )

    def _misfit(self, pool: PoolState) -> str:
        own = self._pools.get(pool.declared.pool_id)
        if own is None or not self._manages(pool) or pool.holds:
            return ""
        return misfit_of(self._journal.head, self._settings, pool, own)

    def sweep(self, now_ns: int) -> None:
        """End those who have waited long enough."""
        head = self._journal.head
        if self._patience_ns:
            for group in sorted(head.queue.groups):
                self._sweep_group(head, group, now_ns)

    def _sweep_group(self, head: Head, group: str, now_ns: int) -> None:
        lane = head.queue.groups[group].interactive
        first = lane.first()
        if first is None or now_ns - head.tasks.live[first[1]].admitted_ns < self._patience_ns:
            return
        pools = head.pools.serving(group)
        trouble = self.trouble(pools, now_ns)
        if trouble is None or now_ns - max(pool.failing_since_ns for pool in pools) < self._patience_ns:
            return
        # The end of a task has no field for what to do, so that is part of its message.
        error = PoolUnavailableError(f"{trouble.message.rstrip('.')}. {trouble.what_to_do}".rstrip())
        for _ in range(_AT_ONCE):
            first = lane.first()
            if first is None:
                return
            state = head.tasks.live[first[1]]
            if now_ns - state.admitted_ns < self._patience_ns:
                return
            self._dispatcher.end_task(
                state,
                [],
                actor="watchdog",
                correlation=state.correlation,
                outcome="failed",
                finish_reason="error",
                error=error,
            )
