"""The text of tasks: from memory, from frames, or from the transcript."""

from __future__ import annotations

import asyncio
from weakref import WeakValueDictionary

from ..entries import EntryBatch, Transcript, join
from ..journal.history import segments_in, transcript_at
from ..journal.journal import Journal
from ..journal.live import Segment
from ..ports import IndexRow
from ..projections.tasks import TaskState

#: frames read in one go
_FRAMES_AT_ONCE = 64


class TaskTexts:
    """Reads entries back; blocking reads run on a thread."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._transcripts: WeakValueDictionary[int, Transcript] = WeakValueDictionary()

    async def segments(self, state: TaskState, ordinal: int) -> list[Segment]:
        """Some committed segments of a live or closing task, from the one that holds ``ordinal`` on.

        An empty list means that nothing from there on is committed yet.
        :raises CorruptJournalError: the texts are gone; a transcript may have taken their place.
        """
        upto = self._journal.committed_frame
        frames, first_token = frames_from(state, ordinal, upto)
        if not frames:
            return []
        store = self._journal.store
        found = await asyncio.to_thread(lambda: segments_in(store.frames_at(frames), state.task_no, first_token))
        return [s for s in found if s.end_ordinal > ordinal]

    async def transcript(self, row: IndexRow) -> Transcript | None:
        """The transcript of an ended task; all who hold it at the same time share one."""
        found = self._transcripts.get(row.task_no)
        if found is None:
            found = await asyncio.to_thread(transcript_at, self._journal.store, row.transcript_frame, row.task_no)
            if found is not None:
                found = self._transcripts.setdefault(row.task_no, found)
        return found

    async def batches(self, state: TaskState) -> list[EntryBatch]:
        """All committed entries of a live or closing task, in order."""
        out: list[EntryBatch] = []
        ordinal = 1
        while ordinal <= state.entries:
            stream = self._journal.streams.get(state.task_id)
            segments = stream.from_ordinal(ordinal) if stream is not None else None
            if segments is None:
                segments = await self.segments(state, ordinal)
            if not segments:
                break
            for segment in segments:
                skip = max(0, ordinal - segment.first_ordinal)
                out.append(segment.batch.slice(skip) if skip else segment.batch)
                ordinal = segment.end_ordinal
        return out

    async def spoken(self, state: TaskState) -> list[EntryBatch]:
        """What the journal holds of a live task's words."""
        await self._journal.committed(self._journal.head.next_seq)
        return await self.batches(state)

    async def ended(self, row: IndexRow) -> list[EntryBatch]:
        """The words of an ended task."""
        transcript = await self.transcript(row)
        return [transcript.batch] if transcript is not None else []


def frames_from(state: TaskState, ordinal: int, upto_frame: int) -> tuple[list[int], int]:
    """Frames that hold a task's entries from ``ordinal`` on, and the token index where they begin."""
    numbers, ordinals = state.entry_frames, state.frame_ordinals
    low, high = 0, len(numbers)
    while low < high:
        middle = (low + high) // 2
        if ordinals[middle] <= ordinal:
            low = middle + 1
        else:
            high = middle
    start = max(0, low - 1)
    frames = [n for n in numbers[start : start + _FRAMES_AT_ONCE] if n <= upto_frame]
    return frames, state.frame_tokens[start] if start < len(state.frame_tokens) else 0


def plain_text(batches: list[EntryBatch]) -> str:
    """The text of the first choice outside of any channel."""
    if not batches:
        return ""
    if all(b.choices is None and b.channels is None for b in batches):
        return "".join(text for b in batches for text in b.texts)
    return "".join(e.text for e in join(batches).entries() if e.choice == 0 and not e.channel)
