"""An event loop whose time stands still: nothing happens that nobody asked for, and no second is waited for."""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


class StepLoop(asyncio.SelectorEventLoop):
    """Runs what is due and stops; time moves by :meth:`advance` alone, work for threads is done at once.

    While :attr:`hold_work` is set, work for threads waits in :attr:`work` until :meth:`do_work`, so that other things can
    happen during it.
    """

    def __init__(self) -> None:
        self._now_s = 1_000.0
        self.hold_work = False
        self.work: deque[tuple[asyncio.Future[Any], Callable[..., Any], tuple[Any, ...]]] = deque()
        super().__init__()
        #: what went wrong in callbacks and tasks that nobody awaited; a stage's check raises it
        self.errors: list[BaseException] = []
        self.set_exception_handler(self._keep_error)

    def _keep_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if error is not None:
            self.errors.append(error)

    def time(self) -> float:
        return self._now_s

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        future: asyncio.Future[T] = self.create_future()
        self.work.append((future, func, args))
        if not self.hold_work:
            self.do_work()
        return future

    def do_work(self, count: int | None = None) -> None:
        """Do the first ``count`` pieces of work that wait for a thread (all of them by default)."""
        for _ in range(len(self.work) if count is None else count):
            future, func, args = self.work.popleft()
            try:
                result = func(*args)
            except BaseException as error:
                if not future.cancelled():
                    future.set_exception(error)
            else:
                if not future.cancelled():
                    future.set_result(result)

    def turn(self) -> None:
        """One turn: everything that is ready now, but nothing that follows from it."""
        self.call_soon(self.stop)
        self.run_forever()

    def settle(self) -> None:
        """Turn until nothing is ready any more."""
        for _ in range(10_000):
            self.turn()
            if not self._ready and not self._due():  # type: ignore[attr-defined]
                return
        msg = "the loop does not come to rest"
        raise AssertionError(msg)

    def advance(self, seconds: float) -> None:
        """Let time pass; timers fire in their order, each at its own time."""
        end = self._now_s + seconds
        while True:
            self.settle()
            due = self._next_timer()
            if due is None or due > end:
                break
            self._now_s = max(self._now_s, due)
        self._now_s = end
        self.settle()

    def _next_timer(self) -> float | None:
        """When the next timer is due; cancelled ones are dropped from the front of the loop's heap on the way."""
        heap = self._scheduled  # type: ignore[attr-defined]
        while heap and heap[0].cancelled():
            self._timer_cancelled_count -= 1  # type: ignore[attr-defined]
            heapq.heappop(heap)._scheduled = False
        return heap[0].when() if heap else None

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine that needs no time to pass. :raises AssertionError: it waits for something."""
        task = self.create_task(work)
        self.settle()
        if not task.done():
            task.cancel()
            self.settle()
            msg = f"{task.get_coro()} waits for something that nobody did"
            raise AssertionError(msg)
        return task.result()

    def _due(self) -> bool:
        due = self._next_timer()
        return due is not None and due <= self._now_s

    @contextmanager
    def inside(self) -> Iterator[None]:
        """As if called by the loop, for what runs on its thread without awaiting."""
        before = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        try:
            yield
        finally:
            asyncio._set_running_loop(before)

    #: under another name: what is called in here believes that it is called on this loop
    running = inside

    def timers(self) -> list[asyncio.TimerHandle]:
        """Timers that were not cancelled."""
        return [timer for timer in self._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]

    def all_tasks(self) -> set[asyncio.Task[Any]]:
        """Tasks that are not done."""
        return asyncio.all_tasks(self)

    def wind_up(self) -> None:
        """Cancel everything and close."""
        self.hold_work = False
        self.do_work()
        for task in asyncio.all_tasks(self):
            task.cancel()
        self.settle()
        self.run_until_complete(self.shutdown_asyncgens())
        self.close()
