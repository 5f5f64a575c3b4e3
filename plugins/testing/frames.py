"""Valid frames for tests of stores: a chain that grows, with facts, entries and transcripts as the journal makes them."""

from __future__ import annotations

import hashlib

import msgspec

from ...core.entries import EntryBatch, pack
from ...core.frames import FLAG_TRANSCRIPT, Chunk, Fact, Frame, drop_chunks, make_chunk, seal
from ...core.ports import BodyPiece, CommitUnit, IndexRow, Tail


class Chain:
    """Makes the frames that follow a tail; :meth:`took` moves on once a store has one."""

    def __init__(self, tail: Tail) -> None:
        self.restart(tail)

    def restart(self, tail: Tail) -> None:
        """Go on behind this tail."""
        self.epoch, self.frame_no, self.next_seq, self.hash = tail.epoch, tail.frame_no, tail.next_seq, tail.hash

    def frame(
        self, *, facts: int = 1, chunks: int = 0, size: int = 12, ahead: int = 0, epoch: int | None = None
    ) -> Frame:
        """The next frame, with this many facts, and this many chunks of ``size`` characters of entries.

        :param ahead: frames to leave out before it, which a store must not accept.
        """
        first = self.next_seq + ahead
        number = self.frame_no + 1 + ahead
        return seal(
            frame_no=number,
            epoch=self.epoch if epoch is None else epoch,
            first_seq=first,
            count=max(1, facts + chunks),
            prev_hash=self.hash,
            facts=[_fact(n, first + n) for n in range(facts if facts + chunks else 1)],
            chunks=[_chunk(number, n, size) for n in range(chunks)],
        )

    def unit(self, **shape: int) -> CommitUnit:
        """A unit with the next frame alone."""
        return CommitUnit(frame=self.frame(**shape))

    def took(self, unit: CommitUnit) -> None:
        """The store has this unit."""
        frame = unit.frame
        self.frame_no, self.next_seq, self.hash = frame.frame_no, frame.end_seq, frame.hash

    def tail(self) -> tuple[int, int, bytes]:
        """Frame number, next seq and hash, as a store has to answer them."""
        return self.frame_no, self.next_seq, self.hash


def _fact(offset: int, seq: int) -> Fact:
    data = msgspec.json.encode({"epoch": seq, "version": "test"})
    return Fact(
        offset, "server", seq, "server.stopped", 1, 1_700_000_000_000_000_000 + seq, "test", "", msgspec.Raw(data)
    )


def _chunk(number: int, n: int, size: int) -> Chunk:
    noise = hashlib.shake_256(f"{number}:{n}".encode())  # which a database cannot compress away
    batch = EntryBatch(dts_us=[1], texts=[noise.hexdigest(size)[:size]], ids=[n])
    salt = noise.digest(8)
    return make_chunk(
        task_no=1, first_ordinal=number, entries=1, tokens=1, attempt=1, flags=0, salt=salt, body=pack(batch)
    )


def without_texts(frame: Frame) -> bytes:
    """The frame's texts with every chunk of entries replaced by its leaf, as compaction does."""
    dropped = drop_chunks(frame, lambda chunk: not chunk.flags & FLAG_TRANSCRIPT)
    return frame.texts if dropped is None else dropped


def body_pieces(owner: str, data: bytes, piece_bytes: int = 1000) -> list[BodyPiece]:
    """A content-addressed body, cut."""
    body_id = f"sha256:{hashlib.sha256(data).hexdigest()}"
    cuts = [data[at : at + piece_bytes] for at in range(0, len(data), piece_bytes)] or [b""]
    return [BodyPiece(owner, body_id, n, len(cuts), cut) for n, cut in enumerate(cuts)]


def index_row(task_no: int, **fields: str | int | bytes) -> IndexRow:
    """A row of the index with made-up fields."""
    values: dict[str, object] = {
        "task_id": f"00000000-0000-4000-8000-{task_no:012}",
        "task_no": task_no,
        "owner": "local",
        "state": "completed",
        "model_ref": "haiku",
        "session_id": "",
        "admitted_ns": 1_700_000_000_000_000_000 + task_no,
        "ended_ns": 1_700_000_001_000_000_000 + task_no,
        "admitted_frame": task_no,
        "started_frame": task_no + 1,
        "ended_frame": task_no + 2,
        "transcript_frame": 0,
        "entry_frames": b"",
    }
    return msgspec.convert({**values, **fields}, IndexRow)
