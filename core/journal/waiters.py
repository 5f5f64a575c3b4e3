"""Who waits for a watermark."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable

from ..errors import OrchError

Callback = Callable[[OrchError | None], None]


class Waiters:
    """Callbacks by the seq they wait for; each is called once, with ``None`` or with what went wrong."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Callback]] = []
        self._order = itertools.count()

    def __bool__(self) -> bool:
        return bool(self._heap)

    def add(self, seq: int, callback: Callback) -> None:
        """Call back once the watermark has reached ``seq``."""
        heapq.heappush(self._heap, (seq, next(self._order), callback))

    def future(self, seq: int, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None]:
        """A future that is done once the watermark has reached ``seq``."""
        future: asyncio.Future[None] = loop.create_future()

        def resolve(error: OrchError | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

        self.add(seq, resolve)
        return future

    def release(self, seq: int) -> None:
        """The watermark stands at ``seq``."""
        while self._heap and self._heap[0][0] <= seq:
            heapq.heappop(self._heap)[2](None)

    def fail(self, error: OrchError, *, above: int = -1) -> None:
        """Those who wait for more than ``above`` are told that it will not come; the others go on waiting."""
        failed = [waiter for waiter in sorted(self._heap) if waiter[0] > above]
        self._heap = [waiter for waiter in self._heap if waiter[0] <= above]
        heapq.heapify(self._heap)
        for _, _, callback in failed:
            callback(error)
