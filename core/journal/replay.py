"""From stored frames back to head: facts of all frames, then the entries of tasks that still live."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from ..entries import unpack
from ..errors import CorruptJournalError
from ..frames import Chunk, decode_facts, decode_texts
from ..projections.head import Head
from ..projections.projection import EntriesRecorded, Recorded
from ..registry import decode_payload, load_all

if TYPE_CHECKING:
    from ..ports import JournalStore


class Replayed(msgspec.Struct):
    """Head after a replay, and up to which frame it reaches."""

    head: Head
    frame_no: int
    #: seq at which the fold began: what a snapshot held is before it
    begun_at: int = 1


def records_of(frame_no: int, epoch: int, first_seq: int, facts: bytes) -> list[Recorded]:
    """The fact events of a frame."""
    return [
        Recorded(
            first_seq + f.offset,
            frame_no,
            epoch,
            f.stream,
            f.position,
            f.name,
            f.time_ns,
            f.actor,
            f.correlation,
            decode_payload(f.name, f.version, f.data),
        )
        for f in decode_facts(facts)
    ]


def entries_record(frame_no: int, epoch: int, chunk: Chunk) -> EntriesRecorded:
    """What a fold needs of a chunk of entries. :raises CorruptJournalError: its text was dropped or is broken."""
    if chunk.body is None:
        msg = f"frame {frame_no}: the entries of task number {chunk.task_no} were dropped, but the task is not transcribed"
        raise CorruptJournalError(msg)
    dts_us = unpack(chunk.body).dts_us
    return EntriesRecorded(
        frame_no=frame_no,
        epoch=epoch,
        task_no=chunk.task_no,
        attempt=chunk.attempt,
        first_ordinal=chunk.first_ordinal,
        entries=chunk.entries,
        tokens=chunk.tokens,
        first_us=dts_us[0],
        elapsed_us=sum(dts_us),
    )


def replay(
    store: JournalStore, head: Head | None = None, after_frame: int = 0, upto_frame: int | None = None
) -> Replayed:
    """Fold everything after ``after_frame`` into ``head`` (a new one, or one loaded from a snapshot).

    :param upto_frame: the last frame to fold; ``None`` = to the end.

    :raises CorruptJournalError: frames are missing or cannot be decoded; the message names the frame.
    """
    load_all()
    head = Head() if head is None else head
    begun_at = head.next_seq
    expected = after_frame + 1
    for frame_no, epoch, first_seq, count, facts in store.facts(after_frame + 1, upto_frame):
        if frame_no < expected or (facts and frame_no > expected):
            msg = f"frame {expected} is missing: the next one is {frame_no}"
            raise CorruptJournalError(msg, remedy="`llama-orch journal verify` locates the damage; restore a backup.")
        if first_seq != head.next_seq:
            msg = f"frame {frame_no} starts at seq {first_seq}, but {head.next_seq} is next"
            raise CorruptJournalError(msg, remedy="`llama-orch journal verify` locates the damage; restore a backup.")
        if facts:
            for record in records_of(frame_no, epoch, first_seq, facts):
                head.fold(record)
        head.next_seq = first_seq + count
        expected = frame_no + 1
    live = head.tasks.by_no
    if live:
        first = min(s.admitted_frame for s in live.values())
        for frame in store.frames(max(first, after_frame + 1), upto_frame):
            for chunk in decode_texts(frame.texts, frame.end_seq):
                if chunk.task_no in live and not chunk.is_transcript:
                    head.fold_entries(entries_record(frame.frame_no, frame.epoch, chunk))
    return Replayed(head, expected - 1, begun_at)
