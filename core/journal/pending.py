"""The frame that is being filled: facts and entries that were appended but not yet handed to the store."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from ..entries import EntryBatch, join, pack, well_formed
from ..frames import FLAG_TRANSCRIPT, Chunk, Fact, make_chunk, salts, seal
from ..ports import BodyPiece, CommitUnit, IndexRow
from ..projections.projection import Recorded
from ..projections.tasks import TaskState
from ..registry import EventType, type_of

#: directory counts are 16 bits wide; larger chunks are split
MAX_CHUNK_ENTRIES = 60_000


class EntriesPart(msgspec.Struct, gc=False):
    """Entries of one attempt in the frame that is being filled."""

    task_id: str
    task_no: int
    attempt: int
    first_ordinal: int
    first_token: int
    entries: int
    tokens: int
    batches: list[EntryBatch]
    joined: EntryBatch | None = None


class SealedUnit(msgspec.Struct, gc=False):
    """A unit on its way to the store, and what follows once it is there."""

    unit: CommitUnit
    parts: list[EntriesPart]
    records: list[Recorded]
    end_seq: int
    durable: bool
    #: rough size in memory
    size: int


def stream_name(declared: EventType, payload: object) -> str:
    """The stream that an event belongs to."""
    return f"{declared.stream}:{getattr(payload, declared.key)}" if declared.key else declared.stream


class PendingFrame:
    """Collects what goes into the next frame, in the order of append."""

    def __init__(self, frame_no: int, epoch: int, first_seq: int) -> None:
        self.frame_no = frame_no
        self.epoch = epoch
        self.first_seq = first_seq
        self.next_seq = first_seq
        self.facts: list[Fact] = []
        self.records: list[Recorded] = []
        self.parts: list[EntriesPart] = []
        self.open_parts: dict[str, EntriesPart] = {}
        self.transcripts: list[tuple[int, int, int, bytes]] = []
        self.bodies: list[BodyPiece] = []
        self.index: list[IndexRow] = []
        self.rewrites: list[tuple[int, bytes]] = []
        self.durable = False
        self.urgent = False
        self.size = 0

    def __bool__(self) -> bool:
        return self.next_seq > self.first_seq

    def add_fact(
        self, payload: Any, raw: bytes, *, positions: Mapping[str, int], now_ns: int, actor: str, correlation: str
    ) -> Recorded:
        """Take an event in under the next seq; ``raw`` are its canonical bytes.

        :param positions: next position in each stream that has begun.
        """
        declared = type_of(payload)
        seq, name = self.next_seq, declared.name
        self.next_seq += 1
        stream = stream_name(declared, payload)
        position, offset = positions.get(stream, 0), seq - self.first_seq
        self.facts.append(
            Fact(offset, stream, position, name, declared.version, now_ns, actor, correlation, msgspec.Raw(raw))
        )
        record = Recorded(seq, self.frame_no, self.epoch, stream, position, name, now_ns, actor, correlation, payload)
        self.records.append(record)
        self.size += len(raw) + 200
        self.durable = self.durable or declared.durable
        self.urgent = True
        if declared.stream == "task":
            # What is said behind a fact of the task is a chunk of its own.
            self.open_parts.pop(payload.task_id, None)
        return record

    def add_entries(self, state: TaskState, attempt: int, batch: EntryBatch, tokens: int) -> None:
        """Take in what a task's attempt said, in the chunk that is open or in a new one under the next seq."""
        n = len(batch.texts)
        part = self.open_parts.get(state.task_id)
        if part is not None and part.entries + n <= MAX_CHUNK_ENTRIES and part.tokens + tokens <= MAX_CHUNK_ENTRIES:
            part.batches.append(batch)
            part.entries += n
            part.tokens += tokens
        else:
            part = EntriesPart(
                state.task_id,
                state.task_no,
                attempt & 0xFF,
                state.entries + 1,
                state.tokens_out,
                n,
                tokens,
                [batch],
            )
            self.parts.append(part)
            self.open_parts[state.task_id] = part
            self.next_seq += 1
        self.size += 100 * n

    def seal(self, prev_hash: bytes, urandom: Callable[[int], bytes] = os.urandom) -> SealedUnit:
        """The unit to store; entries of one attempt are one chunk."""
        chunks: list[Chunk] = []
        pools = salts(len(self.parts) + len(self.transcripts), urandom) if self.parts or self.transcripts else []
        for part in self.parts:
            batch = part.batches[0] if len(part.batches) == 1 else join(part.batches)
            try:
                body = pack(batch)
            except UnicodeEncodeError:
                batch = well_formed(batch)
                body = pack(batch)
            part.joined = batch
            chunks.append(
                make_chunk(
                    task_no=part.task_no,
                    first_ordinal=part.first_ordinal,
                    entries=part.entries,
                    tokens=part.tokens,
                    attempt=part.attempt,
                    flags=0,
                    salt=pools[len(chunks)],
                    body=body,
                )
            )
        for task_no, attempt, first_ordinal, body in self.transcripts:
            chunks.append(
                make_chunk(
                    task_no=task_no,
                    first_ordinal=first_ordinal,
                    entries=0,
                    tokens=0,
                    attempt=attempt,
                    flags=FLAG_TRANSCRIPT,
                    salt=pools[len(chunks)],
                    body=body,
                )
            )
        frame = seal(
            frame_no=self.frame_no,
            epoch=self.epoch,
            first_seq=self.first_seq,
            count=self.next_seq - self.first_seq,
            prev_hash=prev_hash,
            facts=self.facts,
            chunks=chunks,
        )
        unit = CommitUnit(frame=frame, bodies=self.bodies, index=self.index, rewrites=self.rewrites)
        return SealedUnit(unit, self.parts, self.records, self.next_seq, self.durable, self.size)
