"""A client that reads a stream, loses its connection, and comes back with the last id that it saw."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from llama_orch.core.entries import EntryBatch
from llama_orch.core.errors import OrchError
from llama_orch.core.events.task import TaskEnded, TaskStarted
from llama_orch.core.journal.live import Segment
from llama_orch.core.services.caller import Caller
from llama_orch.core.services.streams import Ended, Heartbeat, LiveItems, Metered, Queued, Started

if TYPE_CHECKING:
    from .stage import Stage


class Reader:
    """Joins what it sees over all its connections.

    :param attached: it counts as a reader whose leaving may cancel the task.
    :param stalled: it takes what it is offered only when :meth:`take` says so.
    :param fast: it takes segments right from the commit when it can, as a socket does that has room.
    """

    def __init__(
        self,
        stage: Stage,
        task_id: str,
        *,
        after: str | None = None,
        attached: bool = False,
        stalled: bool = False,
        fast: bool = False,
        **options: Any,
    ) -> None:
        self._stage = stage
        self.task_id = task_id
        self.last_id = after
        self._attached = attached
        self._options = options
        self._task: asyncio.Task[None] | None = None
        self._may_take: asyncio.Event | None = None
        self._stalled = stalled
        self._fast = fast
        #: lists of segments that came right from the commit
        self.taken_fast = 0
        self.started: TaskStarted | None = None
        self.texts: list[str] = []
        self.batches: list[EntryBatch] = []
        self.ids: list[str] = []
        self.tokens: list[int] = []
        self.ended: TaskEnded | None = None
        self.beats = 0
        self.positions: list[int] = []
        #: data of metrics, and how much of the stream had been read when each came
        self.metrics: list[tuple[int, dict[str, Any]]] = []
        self.error: OrchError | None = None
        #: what was wrong with what it saw; a stage's check raises it
        self.defect: Exception | None = None

    @property
    def text(self) -> str:
        """All it has read."""
        return "".join(self.texts)

    @property
    def connected(self) -> bool:
        """Its connection stands."""
        return self._task is not None and not self._task.done()

    def connect(self) -> Reader:
        """Come (back)."""
        assert not self.connected
        self.error = None
        if self._attached:
            self._stage.services.readers.attach(self.task_id)
        self._may_take = asyncio.Event()
        self._task = self._stage.loop.create_task(self._read())
        self._stage.loop.settle()
        return self

    def take(self) -> None:
        """A stalled reader takes one list of items."""
        assert self._may_take is not None
        self._may_take.set()
        self._stage.loop.settle()

    def go(self) -> None:
        """Stall no more."""
        self._stalled = False
        self.take()

    def leave(self) -> None:
        """Break the connection and tell the server."""
        was = self.connected
        self.cut()
        if self._attached and was:
            with self._stage.loop.inside():
                self._stage.services.readers.detach(self.task_id, Caller(), gone=True)

    def cut(self) -> None:
        """The connection is gone."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            self._stage.loop.settle()

    async def _read(self) -> None:
        try:
            stream = await self._stage.services.streams.open(self.task_id, after=self.last_id, **self._options)
            if self._fast and isinstance(stream, LiveItems):
                stream.fast = self._take_fast
            async for items in stream:
                if self._stalled:
                    assert self._may_take is not None
                    await self._may_take.wait()
                    self._may_take.clear()
                for item in items:
                    self._see(item)
        except OrchError as error:
            self.error = error
        except Exception as error:
            self.defect = error
            raise
        else:
            if self._attached:
                self._stage.services.readers.detach(self.task_id, Caller(), gone=False)

    def _take_fast(self, segments: list[Segment]) -> bool:
        if self._stalled:
            return False
        for segment in segments:
            self._see(segment)
        self.taken_fast += 1
        return True

    def _see(self, item: object) -> None:
        try:
            self._look_at(item)
        except AssertionError as error:
            self.defect = error
            raise

    def _look_at(self, item: object) -> None:
        assert self.ended is None, "something came behind the end"
        if isinstance(item, Started):
            assert not self.ids, "the start is the first"
            self.started = item.payload
            self._saw(item.epoch, item.ordinal)
        elif isinstance(item, Segment):
            assert item.first_ordinal == self._next_ordinal(), "an entry is missing or came twice"
            assert item.first_token == sum(self.tokens) or self._resumed_late()
            self.batches.append(item.batch)
            for entry in item.batch.entries():
                self.texts.append(entry.text)
                self.tokens.append(entry.tokens)
                self._saw(item.epoch, self._next_ordinal())
        elif isinstance(item, Ended):
            assert item.ordinal == item.payload.entries + 1
            assert item.ordinal == self._next_ordinal() or (self.started is None and item.ordinal == 1)
            self.ended = item.payload
            self._saw(item.epoch, item.ordinal)
        elif isinstance(item, Heartbeat):
            self.beats += 1
        elif isinstance(item, Metered):
            self.metrics.append((len(self.ids), item.data))
        else:
            assert isinstance(item, Queued)
            self.positions.append(item.position)

    def _next_ordinal(self) -> int:
        return 0 if self.last_id is None else int(self.last_id.partition(".")[2]) + 1

    def _resumed_late(self) -> bool:
        return self.started is None

    def _saw(self, epoch: int, ordinal: int) -> None:
        self.last_id = f"{epoch}.{ordinal}"
        self.ids.append(self.last_id)
