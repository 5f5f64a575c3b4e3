"""What the core asks of the outside: stores, clocks, placement policies. Plugins implement these Protocols."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from msgspec import Struct

from .events.task import DecisionRecord
from .frames import Frame
from .types import PoolView, TaskView


class Clock(Protocol):
    """Time as an input."""

    def now_ns(self) -> int:
        """Unix time, nanoseconds."""
        ...

    def monotonic_ns(self) -> int:
        """Time that never runs backwards, nanoseconds."""
        ...


# --- the journal's store -------------------------------------------------------------------------------------


class BodyPiece(Struct, frozen=True, gc=False):
    """A bounded piece of a content-addressed body (a prompt, a rendered prompt)."""

    owner: str
    #: "sha256:<hex>" of the whole body
    body_id: str
    piece: int
    pieces: int
    data: bytes


class IndexRow(Struct, frozen=True, gc=False, kw_only=True):
    """Derived: where an ended task stands in the journal. Can be rebuilt from the frames."""

    task_id: str
    task_no: int
    owner: str
    state: str
    model_ref: str
    session_id: str
    admitted_ns: int
    ended_ns: int
    admitted_frame: int
    started_frame: int
    ended_frame: int
    #: frame of the transcript, 0 while it is not there
    transcript_frame: int
    #: frames with entries of the task, as delta-coded u32 (see core.journal.index)
    entry_frames: bytes


class CommitUnit(Struct, gc=False, kw_only=True):
    """All that one transaction writes: body pieces, then the frame, then derived rows and compacted texts."""

    frame: Frame
    bodies: list[BodyPiece] = []
    index: list[IndexRow] = []
    #: ``(frame_no, new texts)``: chunks replaced by their leaves
    rewrites: list[tuple[int, bytes]] = []


class Tail(Struct, frozen=True, kw_only=True):
    """What a store found when it was opened."""

    #: this writer's epoch, higher than any before
    epoch: int
    #: last frame, 0 when the journal is empty
    frame_no: int
    next_seq: int
    hash: bytes


class IndexFilter(Struct, frozen=True, kw_only=True):
    """Which ended tasks a page shall hold; empty fields do not filter."""

    owner: str = ""
    state: str = ""
    model_ref: str = ""
    session_id: str = ""
    #: only tasks with a number below this one (newest first); 0 = from the newest
    before_no: int = 0
    limit: int = 100


@runtime_checkable
class JournalStore(Protocol):
    """A database that keeps frames. Methods block; the journal decides on which thread they run.

    ``open``, ``commit``, ``reopen`` and ``close`` are called from one thread at a time; ``sync`` from the
    syncer's thread; the reading methods from any thread, also while a commit runs.
    """

    #: commits take microseconds, so they may run on the event loop's thread
    commits_inline: bool

    def open(self) -> Tail:
        """Take the writer's lock, bring the schema up to date, begin a new epoch.

        :raises JournalLockedError: another process holds the lock.
        :raises CorruptJournalError: this is no journal, or one of a newer version.
        """
        ...

    def reopen(self) -> Tail:
        """After an unknown outcome: drop connections, look at what is really there, begin a new epoch."""
        ...

    def commit(self, unit: CommitUnit) -> None:
        """Write one unit in one transaction; visible to readers and safe from a killed process when it returns.

        :raises StoreRefusedError: nothing was written; the same unit may be tried again.
        :raises StoreUnknownError: it may or may not have been written.
        :raises FencedError: another writer's epoch or frame is there.
        """
        ...

    def keep(self, pieces: Sequence[BodyPiece]) -> None:
        """Write pieces of bodies ahead of the frame that will name them; on the thread that commits when commits are
        inline, else on any. Nothing refers to them yet, so no fence is needed, and repeating it changes nothing.

        :raises StoreRefusedError: nothing was written. :raises StoreUnknownError: they may or may not be there.
        """
        ...

    def sync(self, target_hash: bytes, seq: int) -> None:
        """Make all that was committed before the call survive power loss, and note the head ``(seq, hash)``.

        :raises StoreUnknownError: the disk reported an error.
        """
        ...

    def maintain(self) -> None:
        """Checkpoint or similar; called off the hot path, from the syncer's thread."""
        ...

    def head_note(self) -> tuple[int, bytes] | None:
        """The last synced head ``(seq, hash)`` that is kept apart from the frames, or ``None``."""
        ...

    def frames(self, first: int, last: int | None = None) -> Iterator[Frame]:
        """Frames ``first`` to ``last`` (inclusive; ``None`` = the end), in order."""
        ...

    def facts(self, first: int, last: int | None = None) -> Iterator[tuple[int, int, int, int, bytes]]:
        """``(frame_no, epoch, first_seq, count, facts)`` from a frame on, in order, without reading texts.

        A run of frames without facts may come as one element: the number of its last frame, epoch 0, the seq of its
        first event and the sum of its counts. A run has no gap; a gap between elements shows in their seqs.
        """
        ...

    def frames_at(self, numbers: Sequence[int]) -> list[Frame]:
        """The frames with these numbers, in order; missing ones are left out."""
        ...

    def body(self, owner: str, body_id: str) -> bytes | None:
        """A body, or ``None``. :raises CorruptJournalError: a piece is missing."""
        ...

    def index_row(self, task_id: str) -> IndexRow | None:
        """Where an ended task stands."""
        ...

    def index_page(self, wanted: IndexFilter) -> list[IndexRow]:
        """Ended tasks, newest first."""
        ...

    def size_bytes(self) -> int:
        """Bytes the journal takes on disk or in the database."""
        ...

    def close(self) -> None:
        """Release the lock and all connections."""
        ...


# --- policy ----------------------------------------------------------------------------------------------------


class PlacementSnapshot(Struct, frozen=True, kw_only=True):
    """All that a placement decision may read."""

    now_ns: int
    pools: tuple[PoolView, ...]


class PlacementPolicy(Protocol):
    """A pure placement policy; ``None`` means that the task has to wait (PLC-1)."""

    name: str
    version: str

    def decide(self, snapshot: PlacementSnapshot, task: TaskView) -> DecisionRecord | None: ...


StoreFactory = Callable[[str, Mapping[str, Any]], JournalStore]
"""Makes a store from a database URL and options."""
