"""The frame that is being filled: facts and entries that were appended but not yet handed to the store."""

from __future__ import annotations

import os
from collections.abc import Callable

import msgspec

from ..entries import EntryBatch, join, pack
from ..frames import FLAG_TRANSCRIPT, Chunk, Fact, make_chunk, salts, seal
from ..ports import BodyPiece, CommitUnit, IndexRow
from ..projections.projection import Recorded

#: directory counts are 16 bits wide; larger chunks are split
_MAX_CHUNK_ENTRIES = 60_000


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

    def take_seq(self) -> int:
        """The next seq of the frame."""
        seq = self.next_seq
        self.next_seq += 1
        return seq

    def seal(self, prev_hash: bytes, urandom: Callable[[int], bytes] = os.urandom) -> SealedUnit:
        """The unit to store; entries of one attempt are one chunk."""
        chunks: list[Chunk] = []
        pools = salts(len(self.parts) + len(self.transcripts), urandom) if self.parts or self.transcripts else []
        for part in self.parts:
            batch = part.batches[0] if len(part.batches) == 1 else join(part.batches)
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
                    body=pack(batch),
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

    def may_extend(self, part: EntriesPart, entries: int) -> bool:
        """Whether a part still has room for more entries."""
        return part.entries + entries <= _MAX_CHUNK_ENTRIES and part.tokens + entries <= _MAX_CHUNK_ENTRIES
