"""Streams: cursors over the journal (STR-1 to STR-3).

A reader holds nothing but the ordinal that comes next. What is committed it takes from the live stream in
memory, or, when it is too far behind, from frames or the transcript; so late readers, slow readers, resume
and many readers are one mechanism.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec

from ..errors import CorruptJournalError, InvalidParamsError, NotFoundError, ResumeLostError
from ..events.task import TaskEnded, TaskStarted
from ..journal.history import fact_at, segments_from
from ..journal.journal import Journal
from ..journal.live import LiveStream, Segment
from ..ports import IndexRow
from ..projections.tasks import TaskState
from .stream_metrics import Meter, StreamMetrics
from .texts import TaskTexts

_log = logging.getLogger("llama_orch.streams")
#: segments that a reader who is behind takes from a transcript at once
_SEGMENTS_AT_ONCE = 8
#: a timer that rings later than this part of its period tells of a busy server
_LATE = 0.25


class Started(msgspec.Struct, frozen=True, gc=False):
    """The first frame of a stream, ordinal 0."""

    epoch: int
    payload: TaskStarted
    ordinal: int = 0


class Ended(msgspec.Struct, frozen=True, gc=False):
    """The one last frame of a stream."""

    epoch: int
    ordinal: int
    payload: TaskEnded
    #: what ran the task; "" when it never started
    engine: str = ""


class Heartbeat(msgspec.Struct, frozen=True, gc=False):
    """Nothing happened for a while."""


class Queued(msgspec.Struct, frozen=True, gc=False):
    """The task still waits."""

    position: int
    predicted_start_ms: int


class Metered(msgspec.Struct, frozen=True, gc=False):
    """How things are just now, for a reader who asked; it has no place in the stream (STR-5)."""

    data: dict[str, Any]


StreamItem = Started | Segment | Ended | Heartbeat | Queued | Metered


class Cursor(msgspec.Struct, frozen=True):
    """Where a reader goes on: the next ordinal, and the epoch of the one before (0 = from the start)."""

    next_ordinal: int = 0
    epoch: int = 0


def parse_cursor(after: str | None) -> Cursor:
    """The cursor behind a frame's id. :raises InvalidParamsError: it is no id of ours."""
    if after is None or after == "":
        return Cursor()
    epoch, dot, ordinal = after.partition(".")
    if (
        not dot
        or not epoch.isascii()
        or not ordinal.isascii()
        or not epoch.isdigit()
        or not ordinal.isdigit()
        or len(after) > 40
    ):
        msg = f"{after!r} is no frame id"
        raise InvalidParamsError(
            msg,
            field="Last-Event-ID",
            got=after,
            remedy="Send an id as the stream gave it, <epoch>.<ordinal>, or none.",
        )
    return Cursor(int(ordinal) + 1, int(epoch))


def check_cursor(
    cursor: Cursor, started_epoch: int, epochs: list[tuple[int, int]], entries: int, ended: tuple[int, int] | None
) -> None:
    """Whether the frame before the cursor is held, under the epoch that the reader saw it (JRN-4).

    :param epochs: ``(epoch, first ordinal)`` stretches of the entries.
    :param ended: epoch and ordinal of the terminal frame.
    :raises ResumeLostError: it is not; a power loss took what the reader had seen.
    """
    if not cursor.next_ordinal:
        return
    seen = cursor.next_ordinal - 1
    held = entries if ended is None else ended[1]
    expected = 0
    if seen == 0:
        expected = started_epoch
    elif seen <= entries:
        expected = next((epoch for epoch, first in reversed(epochs) if first <= seen), 0)
    elif ended is not None and seen == ended[1]:
        expected = ended[0]
    if expected != cursor.epoch or seen > held:
        last = _last_common(cursor.epoch, seen, started_epoch, epochs, entries)
        msg = f"the journal does not hold frame {cursor.epoch}.{seen}; the last one before it is {last or 'none'}"
        raise ResumeLostError(msg, field="Last-Event-ID", got=f"{cursor.epoch}.{seen}", last_id_held=last)


def _last_common(epoch: int, seen: int, started_epoch: int, epochs: list[tuple[int, int]], entries: int) -> str:
    """The last frame that the journal holds of those that the reader may have seen; "" = none, not even the first.

    What came in a later epoch took the place of what was lost: the reader has not seen it, under whatever number.
    """
    held = min(entries, seen, next((first - 1 for later, first in epochs if later > epoch), entries))
    if held > 0:
        return f"{next(one for one, first in reversed(epochs) if first <= held)}.{held}"
    return f"{started_epoch}.0" if 0 < started_epoch <= epoch else ""


class Streams:
    """Opens streams of tasks."""

    def __init__(self, journal: Journal, texts: TaskTexts, metrics: StreamMetrics) -> None:
        self._journal = journal
        self._texts = texts
        self._metrics = metrics

    @property
    def metrics_dropped(self) -> int:
        """Metrics frames that were due and not sent."""
        return self._metrics.dropped

    async def open(
        self,
        task_id: str,
        *,
        owner: str | None = None,
        after: str | None = None,
        heartbeat_ms: int = 15_000,
        progress: bool = False,
        metrics_ms: int = 0,
    ) -> AsyncIterator[list[StreamItem]]:
        """A task's stream after the frame with id ``after``; each list is what became ready together.

        :param metrics_ms: least time between two :class:`Metered`, while the task lives; 0 = none.
        :raises NotFoundError: there is no such task (of this owner).
        :raises ResumeLostError: the journal does not hold what the reader saw.
        """
        cursor = parse_cursor(after)
        state = self._journal.task(task_id)
        if state is not None:
            # An acceptance that could still be lost is not streamed; meanwhile head may have been rebuilt.
            await self._journal.committed(state.task_no + 1)
            state = self._journal.task(task_id)
        if state is not None:
            if owner is not None and state.admitted.owner != owner:
                raise not_found(task_id)
            ended = state.ended
            check_cursor(
                cursor,
                state.started_epoch,
                state.epochs,
                state.entries,
                None if ended is None else (state.ended_epoch, ended.entries + 1),
            )
            stream = self._journal.stream_of(task_id)
            if stream is not None:
                items = LiveItems(
                    self._journal, self._texts, state, stream, cursor.next_ordinal, heartbeat_ms, progress=progress
                )
                if metrics_ms:
                    items.meter(self._metrics, metrics_ms)
                return items
        row = await asyncio.to_thread(self._journal.store.index_row, task_id)
        if row is None or (owner is not None and row.owner != owner):
            raise not_found(task_id)
        # The end is shown once it is durable; the transcript may be committed before that.
        await self._journal.synced(self._journal.committed_seq)
        return await self._ended(row, cursor)

    async def _ended(self, row: IndexRow, cursor: Cursor) -> AsyncIterator[list[StreamItem]]:
        store = self._journal.store
        started = await asyncio.to_thread(fact_at, store, row.started_frame, TaskStarted, row.task_id)
        ended = await asyncio.to_thread(fact_at, store, row.ended_frame, TaskEnded, row.task_id)
        if ended is None:
            msg = f"the end of task {row.task_id} is not in frame {row.ended_frame}"
            raise CorruptJournalError(msg)
        transcript = await self._texts.transcript(row)
        epochs = transcript.epochs if transcript is not None else []
        payload: TaskEnded = ended.payload
        check_cursor(
            cursor, started.epoch if started else 0, epochs, payload.entries, (ended.epoch, payload.entries + 1)
        )

        async def items() -> AsyncIterator[list[StreamItem]]:
            if started is not None and cursor.next_ordinal == 0:
                yield [Started(started.epoch, started.payload)]
            for segment in segments_from(transcript, cursor.next_ordinal) if transcript is not None else ():
                yield [segment]
            if cursor.next_ordinal <= payload.entries + 1:
                yield [Ended(ended.epoch, payload.entries + 1, payload, started.payload.engine if started else "")]

        return items()


class LiveItems:
    """A live task's stream from one ordinal on.

    It is iterated like any stream. A consumer that can take bytes without waiting may set :attr:`fast`: while the
    iteration waits, segments that were just committed go to it directly, which spares a task switch per token.
    """

    __slots__ = (
        "_alarm",
        "_busy",
        "_done",
        "_heartbeat_s",
        "_journal",
        "_loop",
        "_meter",
        "_metered",
        "_metrics_due_s",
        "_metrics_s",
        "_ordinal",
        "_position",
        "_progress",
        "_quiet_since",
        "_state",
        "_stream",
        "_texts",
        "_ticker",
        "_waiter",
        "fast",
    )

    def __init__(
        self,
        journal: Journal,
        texts: TaskTexts,
        state: TaskState,
        stream: LiveStream,
        ordinal: int,
        heartbeat_ms: int,
        *,
        progress: bool,
    ) -> None:
        self._journal = journal
        self._texts = texts
        self._state = state
        self._stream = stream
        self._ordinal = ordinal
        self._heartbeat_s = heartbeat_ms / 1000
        self._progress = progress
        self._position = -1
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._quiet_since = 0.0
        #: ``None``: this reader did not ask for metrics
        self._meter: Meter | None = None
        self._metrics_s = self._metrics_due_s = 0.0
        #: a metrics frame is the next thing to hand out, unless something else is there
        self._metered = False
        self._ticker: asyncio.TimerHandle | None = None
        #: takes segments at once and answers whether it did; set by the consumer
        self.fast: Callable[[list[Segment]], bool] | None = None
        self._done = False
        stream.listeners.add(self._wake)

    def __aiter__(self) -> LiveItems:
        return self

    async def __anext__(self) -> list[StreamItem]:
        while not self._done:
            items = await self._ready()
            if items:
                if self._metered:
                    self._pass_over()
                return items
            if self._over():
                break
            if self._stream.broken is not None:
                error = self._stream.broken
                await self.aclose()
                raise error
            if self._metered:
                self._metered = False
                metered = self._measured()
                if metered is not None:
                    return [metered]
            if self._progress and self._state.started is None:
                position = self._journal.head.queue.position(self._state.task_id)
                if position >= 0 and position != self._position:
                    self._position = position
                    return [Queued(position, self._state.admitted.predicted_start_ms)]
            if await self._wait():
                return [Heartbeat()]
        await self.aclose()
        raise StopAsyncIteration

    def _over(self) -> bool:
        """Whether the end was handed out, or the reader had seen it before."""
        return self._done

    def _broke(self) -> bool:
        """Whether the journal was lost under the stream."""
        return self._stream.broken is not None

    async def aclose(self) -> None:
        """Stop listening; idempotent."""
        self._done = True
        self._stream.listeners.discard(self._wake)
        for timer in (self._alarm, self._ticker):
            if timer is not None:
                timer.cancel()
        self._alarm = self._ticker = None

    def meter(self, metrics: StreamMetrics, period_ms: int) -> None:
        """Hand out metrics now and then: this reader asked for them."""
        now = self._loop.time()
        self._meter = metrics.meter(self._state, now)
        self._metrics_s = period_ms / 1000
        self._metrics_due_s = now + self._metrics_s
        self._ticker = self._loop.call_at(self._metrics_due_s, self._tick)

    def _tick(self) -> None:
        """Metrics are due: they are dropped if this reader has something to take, or the server is late or loaded."""
        meter, waiter, now = self._meter, self._waiter, self._loop.time()
        assert meter is not None
        late = now - self._metrics_due_s > self._metrics_s * _LATE
        self._metrics_due_s = now + self._metrics_s
        self._ticker = self._loop.call_at(self._metrics_due_s, self._tick)
        if waiter is None or waiter.done() or late or meter.overloaded():
            meter.drop()
            return
        self._metered = True
        waiter.set_result(None)

    def _pass_over(self) -> None:
        """Something was committed since the metrics were due: it comes first."""
        self._metered = False
        assert self._meter is not None
        self._meter.drop()

    def _measured(self) -> Metered | None:
        """The metrics that are due; ``None``: they cannot be read, which is no reason to break the stream."""
        assert self._meter is not None
        try:
            return Metered(self._meter.read(self._loop.time()))
        except Exception:
            _log.exception("metrics of a stream cannot be read; it gets none from here on")
            if self._ticker is not None:
                self._ticker.cancel()
                self._ticker = None
            return None

    async def _ready(self) -> list[StreamItem]:
        """What is committed and not yet taken."""
        state, stream = self._state, self._stream
        items: list[StreamItem] = []
        if stream.broken is not None:
            # Head was or will be rebuilt from disk: what this reader knows of the task may be void.
            return items
        if self._ordinal == 0 and state.started is not None and state.started_frame <= self._journal.committed_frame:
            items.append(Started(state.started_epoch, state.started))
            self._ordinal = 1
        if self._ordinal >= 1:
            segments = stream.from_ordinal(self._ordinal)
            if segments is None:
                segments = await self._behind()
                if self._broke():
                    return []
            for segment in segments:
                items.append(_from(segment, self._ordinal))
                self._ordinal = segment.end_ordinal
        ended = state.ended
        if stream.terminal and ended is not None and self._ordinal > (ended.entries if state.started else -1):
            if self._ordinal <= ended.entries + 1:
                engine = state.started.engine if state.started is not None else ""
                items.append(Ended(state.ended_epoch, ended.entries + 1, ended, engine))
            # Iterating once more ends the stream.
            self._done = True
        return items

    def _wake(self) -> None:
        """Something was committed, or the stream ended or broke."""
        waiter = self._waiter
        if waiter is None or waiter.done():
            return
        stream = self._stream
        if self.fast is not None and self._ordinal >= 1 and not stream.terminal and stream.broken is None:
            segments = stream.from_ordinal(self._ordinal)
            if segments and segments[0].first_ordinal == self._ordinal and self._take_at_once(segments):
                self._ordinal = segments[-1].end_ordinal
                self._quiet_since = 0.0
                return
        waiter.set_result(None)

    def _take_at_once(self, segments: list[Segment]) -> bool:
        assert self.fast is not None
        try:
            return self.fast(segments)
        except Exception:
            # The commit brought us here, and it is everybody's: the reader meets its error in its own iteration.
            return False

    async def _wait(self) -> bool:
        """Wait for news; ``True``: there were none for the time of a heartbeat."""
        waiter = self._waiter = self._loop.create_future()
        self._quiet_since = self._loop.time()
        if self._alarm is None:
            self._alarm = self._loop.call_later(self._heartbeat_s, self._ring)
        try:
            await waiter
        finally:
            self._waiter = None
        return self._quiet_since < 0

    def _ring(self) -> None:
        """Time for a heartbeat, unless something was sent meanwhile: one timer serves the whole stream."""
        self._alarm = None
        waiter = self._waiter
        if waiter is None or waiter.done():
            return
        now = self._loop.time()
        if not self._quiet_since:
            # Segments went out directly since the last look: start counting from here.
            self._quiet_since = now
        left = self._heartbeat_s - (now - self._quiet_since)
        if left > 0.001:
            self._alarm = self._loop.call_later(left, self._ring)
            return
        self._quiet_since = -1.0
        waiter.set_result(None)

    async def _behind(self) -> list[Segment]:
        state, ordinal = self._state, self._ordinal
        try:
            return await self._texts.segments(state, ordinal)
        except CorruptJournalError:
            # Compacted while we were reading: the transcript has it all.
            row = await asyncio.to_thread(self._journal.store.index_row, state.task_id)
            transcript = await self._texts.transcript(row) if row is not None else None
            if transcript is None:
                raise
            return list(itertools.islice(segments_from(transcript, ordinal), _SEGMENTS_AT_ONCE))


def _from(segment: Segment, ordinal: int) -> Segment:
    """The segment's part from an ordinal on; the whole, with its renderings, when it begins there."""
    skip = ordinal - segment.first_ordinal
    if skip <= 0:
        return segment
    skipped = segment.batch.slice(0, skip)
    return Segment(ordinal, segment.first_token + skipped.token_count, segment.epoch, segment.batch.slice(skip), {})


def not_found(task_id: str) -> NotFoundError:
    """The error for a task that does not exist, or not for this caller."""
    return NotFoundError(f"there is no task {task_id}", field="task_id", got=task_id)
