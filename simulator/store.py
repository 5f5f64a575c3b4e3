"""A journal store in memory, without faults: what simulations write on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ..core.errors import CorruptJournalError
from ..core.frames import Frame
from ..core.journal.committer import CallSoon
from ..core.ports import BodyPiece, CommitUnit, IndexFilter, IndexRow, JournalStore, Tail


class RamStore:
    """A :class:`~llama_orch.core.ports.JournalStore` for one writer and one life."""

    commits_inline = True

    def __init__(self) -> None:
        self._frames: list[Frame] = []
        self._bodies: dict[tuple[str, str], dict[int, BodyPiece]] = {}
        self._index: dict[int, IndexRow] = {}
        self._note: tuple[int, bytes] | None = None
        self._epoch = 0

    def open(self) -> Tail:
        return self.reopen()

    def reopen(self) -> Tail:
        self._epoch += 1
        if not self._frames:
            return Tail(epoch=self._epoch, frame_no=0, next_seq=1, hash=bytes(32))
        last = self._frames[-1]
        return Tail(epoch=self._epoch, frame_no=last.frame_no, next_seq=last.end_seq, hash=last.hash)

    def commit(self, unit: CommitUnit) -> None:
        self.keep(unit.bodies)
        self._frames.append(unit.frame)
        for row in unit.index:
            self._index[row.task_no] = row
        for number, texts in unit.rewrites:
            old = self._frames[number - 1]
            self._frames[number - 1] = Frame(
                old.frame_no, old.epoch, old.first_seq, old.count, old.prev_hash, old.hash, old.facts, texts
            )

    def keep(self, pieces: Sequence[BodyPiece]) -> None:
        for piece in pieces:
            self._bodies.setdefault((piece.owner, piece.body_id), {})[piece.piece] = piece

    def sync(self, target_hash: bytes, seq: int) -> None:
        self._note = (seq, target_hash)

    def maintain(self) -> None:
        """Nothing needs it in memory."""

    def head_note(self) -> tuple[int, bytes] | None:
        return self._note

    def frames(self, first: int, last: int | None = None) -> Iterator[Frame]:
        yield from self._frames[first - 1 : last]

    def facts(self, first: int, last: int | None = None) -> Iterator[tuple[int, int, int, int, bytes]]:
        for frame in self._frames[first - 1 : last]:
            yield frame.frame_no, frame.epoch, frame.first_seq, frame.count, frame.facts

    def frames_at(self, numbers: Sequence[int]) -> list[Frame]:
        return [self._frames[n - 1] for n in sorted(set(numbers)) if 0 < n <= len(self._frames)]

    def body(self, owner: str, body_id: str) -> bytes | None:
        found = self._bodies.get((owner, body_id))
        if found is None:
            return None
        if len(found) != next(iter(found.values())).pieces:
            msg = f"body {body_id} is incomplete"
            raise CorruptJournalError(msg)
        return b"".join(found[n].data for n in sorted(found))

    def index_row(self, task_id: str) -> IndexRow | None:
        return next((row for row in self._index.values() if row.task_id == task_id), None)

    def index_page(self, wanted: IndexFilter) -> list[IndexRow]:
        rows = [
            self._index[n] for n in sorted(self._index, reverse=True) if not wanted.before_no or n < wanted.before_no
        ]
        asked = ("owner", "state", "model_ref", "session_id")
        kept = [r for r in rows if all(getattr(wanted, a) in ("", getattr(r, a)) for a in asked)]
        return kept[: wanted.limit]

    def size_bytes(self) -> int:
        return sum(len(f.facts) + len(f.texts) for f in self._frames)

    def close(self) -> None:
        """Memory needs no closing."""


class SyncSoon:
    """Syncs in the loop's next turn: no thread, no disk."""

    def __init__(self, store: JournalStore, call_soon: CallSoon, done: Callable[[int, Exception | None], None]) -> None:
        self._store = store
        self._call = call_soon
        self._done = done
        self._target: tuple[int, bytes] | None = None

    def committed(self, seq: int, digest: bytes, *, durable: bool) -> None:
        """Note a commit; a durable one is synced at once."""
        if durable:
            if self._target is None:
                self._call(self._run)
            self._target = (seq, digest)

    def _run(self) -> None:
        if self._target is not None:
            (seq, digest), self._target = self._target, None
            self._store.sync(digest, seq)
            self._done(seq, None)

    def close(self) -> None:
        """What is left is synced."""
        self._run()
