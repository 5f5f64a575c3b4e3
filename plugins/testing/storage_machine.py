"""A store in all orders: commits, refusals, unknown outcomes, takeovers of its own journal, compaction, readers.

The model is a list of frames, bodies and rows of the index. Whatever happens, the store answers the model's
content, and what it answers verifies.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ...core.errors import FencedError, StoreRefusedError, StoreUnknownError
from ...core.frames import Frame, verify_frame
from ...core.ports import CommitUnit, IndexFilter, IndexRow, JournalStore, Tail
from .frames import Chain, body_pieces, index_row, without_texts


class Database(Protocol):
    """How a database is made and broken; see ``JournalStoreContract``."""

    def make_store(self, folder: Path) -> JournalStore: ...

    def blocked(self, folder: Path) -> AbstractContextManager[object]: ...

    def broken(self, folder: Path) -> AbstractContextManager[object]: ...


_owners = st.sampled_from(["local", "key-1"])
_shapes = st.fixed_dictionaries(
    {"facts": st.integers(0, 3), "chunks": st.integers(0, 3), "size": st.sampled_from([0, 7, 900, 5000])}
)


class StoreMachine(RuleBasedStateMachine):
    """Rules over one store and its model."""

    def __init__(self, database: Database, folder: Path) -> None:
        super().__init__()
        folder.mkdir(parents=True)
        self._database = database
        self._folder = folder
        self._store = database.make_store(folder)
        self._frames: list[Frame] = []
        self._bodies: dict[tuple[str, str], bytes] = {}
        self._rows: dict[int, IndexRow] = {}
        self._synced: tuple[int, bytes] | None = None

    @initialize()
    def open(self) -> None:
        tail = self._store.open()
        self._chain = Chain(tail)

    # --- what the journal does ----------------------------------------------------------------------------------

    @rule(shape=_shapes)
    def commit(self, shape: dict[str, int]) -> None:
        self._commit(self._chain.unit(**shape))

    @rule(owner=_owners, size=st.integers(0, 4000))
    def commit_with_a_body(self, owner: str, size: int) -> None:
        data = bytes([size % 251]) * size
        pieces = body_pieces(owner, data)
        self._commit(CommitUnit(frame=self._chain.frame(), bodies=pieces))
        self._bodies[owner, pieces[0].body_id] = data

    @rule(task_no=st.integers(1, 6), transcript_frame=st.integers(0, 3))
    def commit_with_a_row(self, task_no: int, transcript_frame: int) -> None:
        row = index_row(task_no, transcript_frame=transcript_frame)
        self._commit(CommitUnit(frame=self._chain.frame(), index=[row]))
        self._rows[task_no] = row

    @precondition(lambda self: self._frames)
    @rule(data=st.data())
    def compact(self, data: st.DataObject) -> None:
        chosen = data.draw(st.sets(st.integers(0, len(self._frames) - 1), max_size=4))
        rewrites = [(self._frames[n].frame_no, without_texts(self._frames[n])) for n in sorted(chosen)]
        self._commit(CommitUnit(frame=self._chain.frame(), rewrites=rewrites))
        for number, texts in rewrites:
            old = self._frames[number - 1]
            self._frames[number - 1] = Frame(
                old.frame_no, old.epoch, old.first_seq, old.count, old.prev_hash, old.hash, old.facts, texts
            )

    @rule()
    def sync(self) -> None:
        self._store.sync(self._chain.hash, self._chain.next_seq)
        self._synced = (self._chain.next_seq, self._chain.hash)

    @rule()
    def maintain(self) -> None:
        self._store.maintain()

    @rule()
    def reopen(self) -> None:
        self._took_over(self._store.reopen())

    @rule()
    def close_and_open(self) -> None:
        self._store.close()
        self._store = self._database.make_store(self._folder)
        self._took_over(self._store.open())

    # --- what goes wrong ----------------------------------------------------------------------------------------

    @rule(shape=_shapes)
    def refused(self, shape: dict[str, int]) -> None:
        unit = self._chain.unit(**shape)
        with self._database.blocked(self._folder):
            try:
                self._store.commit(unit)
            except StoreRefusedError:
                return
        raise AssertionError("a blocked database took a frame")

    @rule(shape=_shapes, owner=_owners, bodies=st.booleans())
    def unknown(self, shape: dict[str, int], owner: str, bodies: bool) -> None:
        pieces = body_pieces(owner, b"lost?" * 300) if bodies else []
        unit = CommitUnit(frame=self._chain.frame(**shape), bodies=pieces)
        with self._database.broken(self._folder):
            try:
                self._store.commit(unit)
            except StoreUnknownError:
                pass
            else:
                raise AssertionError("a broken database took a frame")
        tail = self._store.reopen()
        if tail.frame_no == unit.frame.frame_no:
            self._frames.append(unit.frame)
            self._chain.took(unit)
            if pieces:
                self._bodies[owner, pieces[0].body_id] = b"lost?" * 300
        self._took_over(tail)

    @rule(ahead=st.sampled_from([-1, 1, 2]))
    def out_of_turn(self, ahead: int) -> None:
        try:
            self._store.commit(CommitUnit(frame=self._chain.frame(ahead=ahead), bodies=body_pieces("x", b"never")))
        except FencedError:
            return
        raise AssertionError("a frame out of turn was taken")

    # --- what is read -------------------------------------------------------------------------------------------

    @rule(data=st.data())
    def read_a_range(self, data: st.DataObject) -> None:
        first = data.draw(st.integers(1, len(self._frames) + 2))
        last = data.draw(st.none() | st.integers(0, len(self._frames) + 2))
        wanted = [f for f in self._frames if f.frame_no >= first and (last is None or f.frame_no <= last)]
        assert list(self._store.frames(first, last)) == wanted
        answered = [row for row in self._store.facts(first, last) if row[4]]
        assert answered == [(f.frame_no, f.epoch, f.first_seq, f.count, f.facts) for f in wanted if f.facts]

    @rule(shapes=st.lists(_shapes, min_size=1, max_size=5))
    def read_while_committing(self, shapes: list[dict[str, int]]) -> None:
        before = list(self._frames)
        read: list[list[Frame]] = []
        reader = threading.Thread(target=lambda: read.extend(list(self._store.frames(1)) for _ in range(3)))
        reader.start()
        for shape in shapes:
            self._commit(self._chain.unit(**shape))
        reader.join()
        assert len(read) == 3
        for frames in read:
            assert frames == self._frames[: len(frames)]
            assert len(frames) >= len(before)

    @invariant()
    def holds_what_was_committed(self) -> None:
        frames = list(self._store.frames(1))
        assert frames == self._frames
        previous = bytes(32)
        for frame in frames:
            assert verify_frame(frame, previous) == ""
            previous = frame.hash
        for (owner, body_id), data in self._bodies.items():
            assert self._store.body(owner, body_id) == data
        rows = sorted(self._rows.values(), key=lambda row: -row.task_no)
        assert self._store.index_page(IndexFilter()) == rows
        assert self._store.head_note() == self._synced

    def teardown(self) -> None:
        self._store.close()

    def _commit(self, unit: CommitUnit) -> None:
        self._store.commit(unit)
        self._chain.took(unit)
        self._frames.append(unit.frame)

    def _took_over(self, tail: Tail) -> None:
        assert tail.epoch > self._chain.epoch
        assert (tail.frame_no, tail.next_seq, tail.hash) == self._chain.tail()
        self._chain.restart(tail)
