"""Reading back: single facts of a task, and its entries from frames or from its transcript."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from ..entries import Transcript, unpack, unpack_transcript
from ..errors import CorruptJournalError
from ..frames import Frame, decode_texts
from ..ports import JournalStore
from ..projections.projection import Recorded
from .live import Segment
from .replay import records_of

T = TypeVar("T")


def facts_of(frame: Frame) -> list[Recorded]:
    """The fact events of a stored frame."""
    return records_of(frame.frame_no, frame.epoch, frame.first_seq, frame.facts)


def fact_at(store: JournalStore, frame_no: int, kind: type[T], task_id: str) -> Recorded | None:
    """The first event of a kind about a task in a frame, or ``None``."""
    for frame in store.frames_at([frame_no]) if frame_no else ():
        for record in facts_of(frame):
            if isinstance(record.payload, kind) and getattr(record.payload, "task_id", "") == task_id:
                return record
    return None


def transcript_at(store: JournalStore, frame_no: int, task_no: int) -> Transcript | None:
    """A task's transcript in a frame, or ``None`` when it has none (no entries, or it was erased)."""
    for frame in store.frames_at([frame_no]) if frame_no else ():
        for chunk in decode_texts(frame.texts, frame.end_seq):
            if chunk.is_transcript and chunk.task_no == task_no and chunk.body is not None:
                return unpack_transcript(chunk.body)
    return None


def segments_in(frames: Sequence[Frame], task_no: int, first_token: int) -> list[Segment]:
    """A task's entries in these frames, each of which holds some, in order.

    :param first_token: index of the first token in the first of the frames.
    :raises CorruptJournalError: a chunk's text is gone (it was compacted meanwhile).
    """
    segments = []
    for frame in frames:
        chunks = decode_texts(frame.texts, frame.end_seq)
        mine = [chunk for chunk in chunks if chunk.task_no == task_no and not chunk.is_transcript]
        if not mine:  # only the frame's root is left
            msg = f"frame {frame.frame_no}: the entries of this task were compacted"
            raise CorruptJournalError(msg)
        for chunk in mine:
            if chunk.body is None:
                msg = f"frame {frame.frame_no}: the entries of this task were compacted"
                raise CorruptJournalError(msg)
            segments.append(Segment(chunk.first_ordinal, first_token, frame.epoch, unpack(chunk.body), {}))
            first_token += chunk.tokens
    return segments


def segments_from(transcript: Transcript, ordinal: int, limit: int = 512) -> Iterator[Segment]:
    """A transcript's entries from one ordinal on, in segments of at most ``limit``, each within one epoch."""
    batch = transcript.batch
    start = max(ordinal, 1)
    token = start - 1 if batch.tokens is None else sum(batch.tokens[: start - 1])
    bounds = [*[first for _, first in transcript.epochs][1:], len(batch) + 1]
    for (epoch, first), end in zip(transcript.epochs, bounds, strict=True):
        for at in range(max(first, start), end, limit):
            part = batch.slice(at - 1, min(at + limit, end) - 1)
            yield Segment(at, token, epoch, part, {})
            token += part.token_count
