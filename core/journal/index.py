"""The index of ended tasks: where in the journal each one stands. Derived, so it can be built again from the frames.

The journal writes a task's row in the transaction of its transcript (``task.transcribed``); :func:`rebuild`
answers the same rows from the frames alone.
"""

from __future__ import annotations

import itertools
import sys
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from ..errors import CorruptJournalError
from ..events.task import TaskAdmitted, TaskEnded, TaskStarted, TaskTranscribed
from ..frames import decode_facts, decode_texts
from ..ports import IndexRow, JournalStore
from ..registry import decode_payload, load_all

_PLAIN = b"\x00"
_DEFLATED = b"\x01"
#: below this many bytes compression does not pay
_DEFLATE_FROM = 64


def pack_frame_numbers(numbers: Sequence[int]) -> bytes:
    """Ascending frame numbers as differences, 4 bytes each, compressed when they are many.

    A long stream has an entry in almost every frame, so its differences are mostly ones and deflate to nothing.
    :raises ValueError: the numbers do not ascend, or are further apart than 32 bits.
    """
    if not numbers:
        return b""
    try:
        differences = array("I", [numbers[0], *(b - a for a, b in itertools.pairwise(numbers))])
    except OverflowError as error:
        msg = "frame numbers must ascend, by less than 2^32 each"
        raise ValueError(msg) from error
    if 0 in differences[1:]:
        msg = "frame numbers must ascend"
        raise ValueError(msg)
    raw = _little_endian(differences).tobytes()
    return _PLAIN + raw if len(raw) < _DEFLATE_FROM else _DEFLATED + zlib.compress(raw, 6)


def unpack_frame_numbers(packed: bytes) -> list[int]:
    """The frame numbers behind :func:`pack_frame_numbers`. :raises CorruptJournalError: the bytes are broken."""
    if not packed:
        return []
    differences = array("I")
    try:
        if packed[:1] not in (_PLAIN, _DEFLATED):
            msg = f"unknown form {packed[0]}"
            raise ValueError(msg)
        differences.frombytes(packed[1:] if packed[:1] == _PLAIN else zlib.decompress(packed[1:]))
    except (ValueError, zlib.error) as error:
        msg = f"an index row's frame numbers cannot be decoded: {error}"
        raise CorruptJournalError(msg) from error
    numbers, at = [], 0
    for difference in _little_endian(differences):
        at += difference
        numbers.append(at)
    return numbers


def _little_endian(values: array[int]) -> array[int]:
    if sys.byteorder == "big":
        values.byteswap()
    return values


class _Open(msgspec.Struct):
    """A task on its way to its transcript."""

    task_no: int
    admitted: TaskAdmitted
    admitted_ns: int
    admitted_frame: int
    started_frame: int = 0
    ended: TaskEnded | None = None
    ended_ns: int = 0
    ended_frame: int = 0
    entry_frames: list[int] = []


def rebuild(store: JournalStore) -> Iterator[IndexRow]:
    """Rows of all transcribed tasks, in the order of their transcripts, from the frames alone.

    ``entry_frames`` names the frames that still say so; a frame of which only the root is left does not.
    :raises CorruptJournalError: a frame cannot be decoded.
    """
    load_all()
    by_id: dict[str, _Open] = {}
    by_no: dict[int, _Open] = {}
    for frame in store.frames(1):
        done: list[tuple[_Open, TaskEnded, int]] = []
        for fact in decode_facts(frame.facts):
            if fact.name not in ("task.admitted", "task.started", "task.ended", "task.transcribed"):
                continue
            payload = decode_payload(fact.name, fact.version, fact.data)
            if type(payload) is TaskAdmitted:
                task_no = frame.first_seq + fact.offset
                by_id[payload.task_id] = by_no[task_no] = _Open(task_no, payload, fact.time_ns, frame.frame_no)
                continue
            task = by_id.get(payload.task_id)
            if task is None:
                msg = f"frame {frame.frame_no}: {fact.name} for task {payload.task_id}, which is not open"
                raise CorruptJournalError(msg)
            if type(payload) is TaskStarted:
                task.started_frame = task.started_frame or frame.frame_no
            elif type(payload) is TaskEnded:
                task.ended, task.ended_ns, task.ended_frame = payload, fact.time_ns, frame.frame_no
            elif type(payload) is TaskTranscribed and task.ended is not None:
                done.append((task, task.ended, frame.frame_no if payload.bytes else 0))
        for chunk_task_no in _tasks_with_entries(frame.texts, frame.end_seq):
            task = by_no.get(chunk_task_no)
            if task is not None:
                task.entry_frames.append(frame.frame_no)
        for task, ended, transcript_frame in done:
            del by_id[task.admitted.task_id], by_no[task.task_no]
            yield _row(task, ended, transcript_frame)


def _tasks_with_entries(texts: bytes, end_seq: int) -> Iterable[int]:
    return dict.fromkeys(c.task_no for c in decode_texts(texts, end_seq) if not c.is_transcript)


def _row(task: _Open, ended: TaskEnded, transcript_frame: int) -> IndexRow:
    return IndexRow(
        task_id=task.admitted.task_id,
        task_no=task.task_no,
        owner=task.admitted.owner,
        state=ended.outcome,
        model_ref=task.admitted.model_ref,
        session_id=task.admitted.session_id,
        admitted_ns=task.admitted_ns,
        ended_ns=task.ended_ns,
        admitted_frame=task.admitted_frame,
        started_frame=task.started_frame,
        ended_frame=task.ended_frame,
        transcript_frame=transcript_frame,
        entry_frames=pack_frame_numbers(task.entry_frames),
    )
