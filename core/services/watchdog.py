"""Watchdogs: tasks that are stuck or past their deadline end with an event (CAN-2, JRN-5)."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Sequence

from ..errors import DeadlineUnmetError, DecodeTimeoutError, JournalUnavailableError
from ..events.task import TaskAdmitted, TaskCancelled
from ..journal.journal import Journal
from ..ports import Clock
from ..projections.projection import Recorded
from .dispatch import Dispatcher
from .unserved import Unserved

#: seconds between two looks
PERIOD_S = 0.05
#: deadlines of ended tasks that may stay in memory, beside as many as tasks live
_SPARE_DEADLINES = 1024


class Watchdog:
    """Looks at running attempts and due deadlines every 50 ms (or ``period_s``).

    :param sweeps: what else looks then at what is due, each given the time in Unix nanoseconds.
    """

    def __init__(
        self,
        journal: Journal,
        dispatcher: Dispatcher,
        unserved: Unserved,
        clock: Clock,
        period_s: float = PERIOD_S,
        sweeps: Sequence[Callable[[int], object]] = (),
    ) -> None:
        self._period_s = period_s
        self._sweeps = sweeps
        self._journal = journal
        self._dispatcher = dispatcher
        self._unserved = unserved
        self._clock = clock
        self._deadlines: list[tuple[int, str]] = []
        #: signs of life of each attempt when they last changed, and when that was
        self._seen: dict[str, tuple[tuple[int, int, int], int]] = {}
        self._task: asyncio.Task[None] | None = None
        journal.on_committed(self._note)
        journal.on_rebuilt(self._take_up)

    def start(self) -> None:
        """Begin, with the deadlines of tasks that live already."""
        self._take_up()
        self._task = asyncio.get_running_loop().create_task(self._run())

    def _take_up(self) -> None:
        self._deadlines.clear()
        for state in self._journal.head.tasks.live.values():
            if state.admitted.deadline_ns:
                heapq.heappush(self._deadlines, (state.admitted.deadline_ns, state.task_id))

    async def close(self) -> None:
        """Stop looking."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _note(self, records: list[Recorded]) -> None:
        for record in records:
            if type(record.payload) is TaskAdmitted and record.payload.deadline_ns:
                heapq.heappush(self._deadlines, (record.payload.deadline_ns, record.payload.task_id))

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._period_s)
            if self._journal.status == "ok":
                try:
                    self.sweep()
                except JournalUnavailableError:
                    continue

    def sweep(self) -> None:
        """End what is due now."""
        now_ns = self._journal.now_ns()
        live = self._journal.head.tasks.live
        if len(self._deadlines) > _SPARE_DEADLINES + 2 * len(live):
            self._take_up()  # most are of tasks that ended
        while self._deadlines and self._deadlines[0][0] <= now_ns:
            _, task_id = heapq.heappop(self._deadlines)
            state = live.get(task_id)
            if state is not None:
                self._dispatcher.end_task(
                    state,
                    [TaskCancelled(task_id=task_id, reason="deadline")],
                    actor="watchdog",
                    correlation=state.correlation,
                    outcome="failed",
                    finish_reason="error",
                    error=DeadlineUnmetError("the deadline passed before the task ended"),
                )
                self._dispatcher.pump(state.admitted.group)
        self._sweep_attempts()
        self._unserved.sweep(now_ns)
        for sweep in self._sweeps:
            sweep(now_ns)

    def _sweep_attempts(self) -> None:
        now = self._clock.monotonic_ns()
        head = self._journal.head
        for attempt in list(self._dispatcher.attempts.values()):
            state = head.tasks.live.get(attempt.task_id)
            pool = head.pools.by_id.get(attempt.pool_id)
            if state is None or pool is None:
                continue
            # A sign of life is a new entry, or one that repeats what is journaled.
            signs = (attempt.number, state.entries, attempt.repeated)
            seen, since = self._seen.get(attempt.task_id, (None, now))
            if seen != signs:
                self._seen[attempt.task_id] = (signs, now)
                since = now
            if attempt.purse is not None:
                unpaid = attempt.purse.out_of_time(state, self._journal.now_ns())
                if unpaid is not None:
                    self._dispatcher.out_of_budget(state, unpaid)
                    continue
            wall_ms, idle_ms = pool.declared.wall_ms, pool.declared.idle_ms
            what = ""
            if wall_ms and now - attempt.started_ns > wall_ms * 1_000_000:
                what = f"the attempt ran for more than {wall_ms} ms (timeouts.wall_ms)"
            elif idle_ms and now - since > idle_ms * 1_000_000:
                what = f"the engine said nothing for {idle_ms} ms (timeouts.idle_ms)"
            if what:
                self._dispatcher.end_task(
                    state,
                    [],
                    actor="watchdog",
                    correlation=state.correlation,
                    outcome="failed",
                    finish_reason="error",
                    error=DecodeTimeoutError(what),
                )
                self._dispatcher.pump(state.admitted.group)
        for task_id in [t for t in self._seen if t not in self._dispatcher.attempts]:
            del self._seen[task_id]
