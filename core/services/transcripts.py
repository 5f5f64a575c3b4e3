"""Transcripts: after a task's end, its entries are gathered in one place and the frames' copies dropped.

The end is never delayed by it. The copy in memory lives until the transcript is committed; a task that ended
without one (a crash came between) gets it at the next start.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict

from ..entries import EntryBatch, Transcript, join, pack_transcript
from ..errors import CorruptJournalError, JournalError, JournalUnavailableError
from ..events.task import TaskEnded, TaskTranscribed
from ..frames import decode_texts, drop_chunks
from ..journal.index import pack_frame_numbers
from ..journal.journal import Journal
from ..ports import IndexRow
from ..projections.projection import Recorded
from ..projections.tasks import TaskState
from .texts import TaskTexts

#: tasks whose frames are dropped in one go, at least
_COMPACT_TASKS = 64
#: a transcript of more entries is made on a thread
LARGE_ENTRIES = 2048
#: frames read at once to drop what they hold of ended tasks
_FRAMES_AT_ONCE = 512
#: seconds until a transcript is tried again while the journal cannot be written
_RETRY_S = 0.2
#: ended tasks whose frames wait at most
_COMPACT_BACKLOG = 16_384
#: seconds without a fact after which frames are rewritten
_REST_S = 0.5


class Transcripts:
    """Writes transcripts and compacts frames behind them."""

    def __init__(self, journal: Journal, texts: TaskTexts, *, compact: bool = True) -> None:
        self._journal = journal
        self._texts = texts
        self._compact = compact
        #: how many transcribed tasks make a compaction worth while
        self.compact_from = _COMPACT_TASKS
        #: seconds without a fact after which frames are rewritten
        self.rest_s = _REST_S
        self._queue: asyncio.Queue[str] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        #: entry frames of tasks whose transcript is committed
        self._droppable: OrderedDict[int, list[int]] = OrderedDict()
        self._rest: asyncio.TimerHandle | None = None
        self.written = 0
        journal.on_committed(self._note)
        journal.on_rebuilt(self._take_up)

    def start(self) -> None:
        """Begin, with the tasks that ended without a transcript."""
        self._take_up()
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Stop; what is left is done at the next start."""
        if self._rest is not None:
            self._rest.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _note(self, records: list[Recorded]) -> None:
        for record in records:
            if type(record.payload) is TaskEnded:
                self._now(record.payload.task_id)
            elif type(record.payload) is TaskTranscribed:
                self._journal.streams.pop(record.payload.task_id, None)
        waiting = len(self._droppable)
        if waiting >= self.compact_from:
            # Rewriting frames is work that nobody waits for: when nothing was committed for a while, or too much waits.
            if self._rest is not None:
                self._rest.cancel()
                self._rest = None
            if waiting >= _COMPACT_BACKLOG // 2 or not self.rest_s:
                self._compact_soon()
            else:
                self._rest = asyncio.get_running_loop().call_later(self.rest_s, self._compact_soon)

    def _compact_soon(self) -> None:
        self._rest = None
        if self._queue.empty():
            self._queue.put_nowait("")

    def _now(self, task_id: str) -> None:
        """Write the transcript from memory when all of it is there, else leave it to the background."""
        state = self._journal.head.tasks.closing.get(task_id)
        if state is None:
            return
        if self._journal.status == "ok" and state.entries <= LARGE_ENTRIES:
            stream = self._journal.streams.get(task_id)
            batches = [s.batch for s in stream.segments] if stream is not None and stream.base == 1 else []
            if sum(map(len, batches)) == state.entries:
                self._write(state, _packed(state, batches))
        if task_id in self._journal.head.tasks.closing:
            self._queue.put_nowait(task_id)

    def _take_up(self) -> None:
        """Head was rebuilt from disk: transcripts that were on their way may be void."""
        self._droppable.clear()
        for task_id in self._journal.head.tasks.closing:
            self._queue.put_nowait(task_id)

    async def _run(self) -> None:
        while True:
            task_id = await self._queue.get()
            try:
                await self._gather(task_id)
                if self._queue.empty():
                    await self.compact()
            except CorruptJournalError as error:
                # Left as it is: the frames keep what they have, verify names the damage.
                del error
            except (JournalUnavailableError, JournalError):
                # It cannot be read or written now.
                await asyncio.sleep(_RETRY_S)
                self._queue.put_nowait(task_id)

    async def _gather(self, task_id: str) -> None:
        """Write one task's transcript from what is in memory and on disk."""
        state = self._journal.head.tasks.closing.get(task_id)
        if state is None:
            return
        await self._journal.committed(self._journal.head.next_seq)
        batches = await self._texts.batches(state)
        if sum(map(len, batches)) != state.entries:
            return  # entries are missing: the frames keep what they have
        body = await asyncio.to_thread(_packed, state, batches)
        if self._journal.head.tasks.closing.get(task_id) is state:
            self._write(state, body)

    def _write(self, state: TaskState, body: bytes) -> None:
        """Append the transcript. :raises JournalUnavailableError: the journal cannot be written now."""
        assert state.ended is not None
        event = TaskTranscribed(
            task_id=state.task_id,
            entries=state.entries,
            digest=hashlib.sha256(body).hexdigest() if body else "",
            bytes=len(body),
        )
        row = IndexRow(
            task_id=state.task_id,
            task_no=state.task_no,
            owner=state.admitted.owner,
            state=state.ended.outcome,
            model_ref=state.admitted.model_ref,
            session_id=state.admitted.session_id,
            admitted_ns=state.admitted_ns,
            ended_ns=state.ended_ns,
            admitted_frame=state.admitted_frame,
            started_frame=state.started_frame,
            ended_frame=state.ended_frame,
            transcript_frame=self._journal.next_frame if body else 0,
            entry_frames=pack_frame_numbers(state.entry_frames),
        )
        self._journal.append_transcript(state, event, body, row)
        self.written += 1
        if self._compact and state.entry_frames:
            self._droppable[state.task_no] = state.entry_frames
            while len(self._droppable) > _COMPACT_BACKLOG:
                self._droppable.popitem(last=False)

    async def compact(self) -> int:
        """Drop the entries of transcribed tasks from frames that no live task needs; how many frames changed.

        A frame is rewritten once all tasks with entries in it are transcribed, so that each is written once.
        """
        if len(self._droppable) < self.compact_from:
            return 0
        committed = self._journal.committed_frame
        numbers = sorted({n for frames in self._droppable.values() for n in frames if n <= committed})
        live = {s.task_no for s in self._journal.head.tasks.by_no.values()}
        store = self._journal.store

        def rewritten() -> list[tuple[int, bytes]]:
            out = []
            for at in range(0, len(numbers), _FRAMES_AT_ONCE):
                for frame in store.frames_at(numbers[at : at + _FRAMES_AT_ONCE]):
                    if any(c.task_no in live for c in decode_texts(frame.texts, frame.end_seq) if not c.is_transcript):
                        continue
                    texts = drop_chunks(frame, lambda chunk: not chunk.is_transcript)
                    if texts is not None:
                        out.append((frame.frame_no, texts))
            return out

        self._droppable.clear()
        epoch = self._journal.epoch
        changed = await asyncio.to_thread(rewritten)
        # Were head rebuilt meanwhile, a transcript that these frames shall give way to may be void.
        if changed and epoch == self._journal.epoch:
            self._journal.stage_rewrites(changed)
        return len(changed)


def _packed(state: TaskState, batches: list[EntryBatch]) -> bytes:
    """The bytes of a transcript; none when the task said nothing."""
    return pack_transcript(Transcript(epochs=state.epochs, batch=join(batches))) if batches else b""
