"""A journal store in memory whose faults a test switches on. A :class:`Disk` outlives the stores that are opened on it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from llama_orch.core.errors import (
    CorruptJournalError,
    FencedError,
    JournalLockedError,
    StoreRefusedError,
    StoreUnknownError,
)
from llama_orch.core.frames import Frame
from llama_orch.core.ports import BodyPiece, CommitUnit, IndexFilter, IndexRow, Tail

ZERO = bytes(32)


class Disk:
    """What is on disk, and what happens to those who write on it."""

    def __init__(self) -> None:
        self.epoch = 0
        self.units: list[CommitUnit] = []
        #: units that power loss cannot take
        self.synced = 0
        self.frames: list[Frame] = []
        self.bodies: dict[tuple[str, str], dict[int, BodyPiece]] = {}
        self.index: dict[int, IndexRow] = {}
        self.note: tuple[int, bytes] | None = None
        #: outcomes of the next commits: "ok", "refused", "written", "lost" (both unknown), "fenced"; then "ok"
        self.commits: deque[str] = deque()
        #: what every further commit meets while it is set
        self.always = ""
        #: syncs that fail
        self.sync_errors = 0
        #: reopenings that fail
        self.reopen_errors = 0
        self.held_by: MemoryStore | None = None
        self.reopened = 0

    def apply(self, unit: CommitUnit) -> None:
        """Write a unit."""
        self.units.append(unit)
        self._apply(unit)

    def _apply(self, unit: CommitUnit) -> None:
        for piece in unit.bodies:
            self.bodies.setdefault((piece.owner, piece.body_id), {}).setdefault(piece.piece, piece)
        self.frames.append(unit.frame)
        for row in unit.index:
            other = next((r for r in self.index.values() if r.task_id == row.task_id), row)
            assert other.task_no == row.task_no, f"task {row.task_id} stands in the index twice"
            self.index[row.task_no] = row
        for number, texts in unit.rewrites:
            old = self.frames[number - 1]
            self.frames[number - 1] = Frame(
                old.frame_no, old.epoch, old.first_seq, old.count, old.prev_hash, old.hash, old.facts, texts
            )

    def power_loss(self) -> None:
        """Only what was synced is left."""
        kept = self.units[: self.synced]
        self.units, self.frames, self.bodies, self.index = [], [], {}, {}
        for unit in kept:
            self.apply(unit)
        self.held_by = None

    def tail(self) -> tuple[int, int, bytes]:
        """Last frame, next seq, hash."""
        if not self.frames:
            return 0, 1, ZERO
        last = self.frames[-1]
        return last.frame_no, last.end_seq, last.hash


class MemoryStore:
    """A :class:`~llama_orch.core.ports.JournalStore` on a disk."""

    def __init__(self, disk: Disk, *, inline: bool = True) -> None:
        self.disk = disk
        self.commits_inline = inline
        self.epoch = 0
        #: a commit runs now (stores are called from one thread at a time)
        self.busy = False

    def open(self) -> Tail:
        if self.disk.held_by is not None:
            msg = "the journal is locked"
            raise JournalLockedError(msg)
        self.disk.held_by = self
        return self._begin()

    def reopen(self) -> Tail:
        assert not self.busy, "reopened during a commit"
        if self.disk.held_by is not self:
            msg = "another writer has taken over"
            raise FencedError(msg)
        if self.disk.reopen_errors:
            self.disk.reopen_errors -= 1
            msg = "the database cannot be opened"
            raise StoreUnknownError(msg)
        self.disk.reopened += 1
        self.disk.synced = len(self.disk.units)
        return self._begin()

    def _begin(self) -> Tail:
        self.disk.epoch += 1
        self.epoch = self.disk.epoch
        frame_no, next_seq, digest = self.disk.tail()
        return Tail(epoch=self.epoch, frame_no=frame_no, next_seq=next_seq, hash=digest)

    def commit(self, unit: CommitUnit) -> None:
        disk = self.disk
        outcome = disk.commits.popleft() if disk.commits else (disk.always or "ok")
        if disk.held_by is not self or outcome == "fenced":
            msg = "another writer has taken over"
            raise FencedError(msg)
        if outcome == "refused":
            msg = "the disk is full"
            raise StoreRefusedError(msg)
        frame_no, next_seq, digest = disk.tail()
        frame = unit.frame
        expected = (frame_no + 1, next_seq, digest, self.epoch)
        if (frame.frame_no, frame.first_seq, frame.prev_hash, frame.epoch) != expected:
            msg = f"frame {frame.frame_no} does not follow {frame_no}"
            raise FencedError(msg)
        if outcome != "lost":
            disk.apply(unit)
        if outcome != "ok":
            msg = f"I/O error ({outcome})"
            raise StoreUnknownError(msg)

    def keep(self, pieces: Sequence[BodyPiece]) -> None:
        if self.disk.always == "refused":
            msg = "the disk is full"
            raise StoreRefusedError(msg)
        for piece in pieces:
            self.disk.bodies.setdefault((piece.owner, piece.body_id), {}).setdefault(piece.piece, piece)

    def sync(self, target_hash: bytes, seq: int) -> None:
        disk = self.disk
        if disk.sync_errors:
            disk.sync_errors -= 1
            msg = "the disk reported an error"
            raise StoreUnknownError(msg)
        disk.synced = len(disk.units)
        disk.note = (seq, target_hash)

    def maintain(self) -> None:
        pass

    def head_note(self) -> tuple[int, bytes] | None:
        return self.disk.note

    def frames(self, first: int, last: int | None = None) -> Iterator[Frame]:
        yield from self.disk.frames[first - 1 : last]

    def facts(self, first: int, last: int | None = None) -> Iterator[tuple[int, int, int, int, bytes]]:
        for frame in self.disk.frames[first - 1 : last]:
            yield frame.frame_no, frame.epoch, frame.first_seq, frame.count, frame.facts

    def frames_at(self, numbers: Sequence[int]) -> list[Frame]:
        return [self.disk.frames[n - 1] for n in sorted(set(numbers)) if 0 < n <= len(self.disk.frames)]

    def body(self, owner: str, body_id: str) -> bytes | None:
        found = self.disk.bodies.get((owner, body_id))
        if found is None:
            return None
        if len(found) != next(iter(found.values())).pieces:
            msg = f"body {body_id} is incomplete"
            raise CorruptJournalError(msg)
        return b"".join(found[n].data for n in sorted(found))

    def index_row(self, task_id: str) -> IndexRow | None:
        return next((row for row in self.disk.index.values() if row.task_id == task_id), None)

    def index_page(self, wanted: IndexFilter) -> list[IndexRow]:
        rows = []
        for number in sorted(self.disk.index, reverse=True):
            row = self.disk.index[number]
            if wanted.before_no and number >= wanted.before_no:
                continue
            asked = ("owner", "state", "model_ref", "session_id")
            if all(not getattr(wanted, name) or getattr(wanted, name) == getattr(row, name) for name in asked):
                rows.append(row)
        return rows[: wanted.limit]

    def size_bytes(self) -> int:
        return sum(len(f.facts) + len(f.texts) for f in self.disk.frames)

    def close(self) -> None:
        if self.disk.held_by is self:
            self.disk.held_by = None


class HandCommitter:
    """Commits when the test says so: :meth:`run` does what the thread would have done."""

    def __init__(self, store: MemoryStore, call_soon: object) -> None:
        self._store = store
        self._call = call_soon
        self.waiting: list[tuple[CommitUnit, object]] = []

    def submit(self, unit: CommitUnit, done: object) -> None:
        assert not self.waiting, "one unit at a time"
        self._store.busy = True
        self.waiting.append((unit, done))

    def run(self, *, tell: bool = True) -> None:
        """Commit the unit that waits and tell the journal (unless the process died in between)."""
        from llama_orch.core.journal.committer import attempt

        unit, done = self.waiting.pop()
        self._store.busy = False
        error = attempt(self._store, unit)
        if tell:
            self._call(done, error)  # type: ignore[operator]

    def close(self) -> None:
        if self.waiting:
            self.run()


class HandSyncer:
    """Syncs at once in the loop's next turn, or when the test says so."""

    def __init__(self, store: MemoryStore, call_soon: object, done: object) -> None:
        self._store = store
        self._call = call_soon
        self._done = done
        self.by_hand = False
        self._target: tuple[int, bytes] | None = None

    def committed(self, seq: int, digest: bytes, *, durable: bool) -> None:
        if durable:
            if self._target is None and not self.by_hand:
                self._call(self.run)  # type: ignore[operator]
            self._target = (seq, digest)

    @property
    def wanted(self) -> bool:
        """Somebody waits for the disk."""
        return self._target is not None

    def run(self) -> None:
        """Make what is committed durable and tell the journal."""
        if self._target is None:
            return
        (seq, digest), self._target = self._target, None
        error: Exception | None = None
        try:
            self._store.sync(digest, seq)
        except StoreUnknownError as failure:
            error = failure
        self._done(seq, error)  # type: ignore[operator]

    def close(self) -> None:
        self.run()
