"""Tasks whose model nobody serves, and nobody will before a person mends something: who waits for them is told (ADM-8)."""

from __future__ import annotations

from typing import Final

from ..errors import PoolUnavailableError
from ..journal.journal import Journal
from ..projections.head import Head
from ..settings import Settings
from .dispatch import Dispatcher
from .pool_trouble import trouble_of_group

#: tasks that are ended in one sweep
_AT_ONCE: Final = 256


class Unserved:
    """Ends interactive tasks of such models with the cause and what to do; batch tasks wait until it is mended."""

    def __init__(self, journal: Journal, dispatcher: Dispatcher, settings: Settings) -> None:
        self._journal = journal
        self._dispatcher = dispatcher
        self._patience_ns = settings.admission.mend_patience_ms * 1_000_000

    def sweep(self, now_ns: int) -> None:
        """End those who have waited long enough."""
        head = self._journal.head
        if not self._patience_ns or not any(pool.failing_since_ns for pool in head.pools.by_id.values()):
            return
        for group in sorted(head.queue.groups):
            self._sweep_group(head, group, now_ns)

    def _sweep_group(self, head: Head, group: str, now_ns: int) -> None:
        pools = head.pools.serving(group)
        trouble = trouble_of_group(pools, now_ns)
        if trouble is None or now_ns - max(pool.failing_since_ns for pool in pools) < self._patience_ns:
            return
        # The end of a task has no field for what to do, so that is part of its message.
        error = PoolUnavailableError(f"{trouble.message.rstrip('.')}. {trouble.what_to_do}".rstrip())
        lane = head.queue.groups[group].interactive
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
