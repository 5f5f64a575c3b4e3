"""What every journal store has to keep: inherit :class:`JournalStoreContract` in the tests of a storage plugin.

Needs pytest and hypothesis. ``docs/reference/journal-tests.md`` lists the tests, the requirements that they cover
and the databases on which they run here.
"""

from __future__ import annotations

import abc
import itertools
import threading
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from ...core.errors import (
    CorruptJournalError,
    FencedError,
    JournalError,
    JournalLockedError,
    StoreRefusedError,
    StoreUnknownError,
)
from ...core.frames import Frame, verify_frame
from ...core.ports import CommitUnit, IndexFilter, JournalStore
from .covers import covers
from .frames import Chain, body_pieces, index_row, without_texts
from .storage_machine import StoreMachine


class JournalStoreContract(abc.ABC):
    """Tests of a :class:`~llama_orch.plugins.JournalStore`; a subclass tells how its database is made and broken."""

    @abc.abstractmethod
    def make_store(self, folder: Path) -> JournalStore:
        """A store, not open yet, of the journal that belongs to this folder; the same folder is the same journal."""

    @abc.abstractmethod
    def take_over(self, folder: Path) -> None:
        """Begin a new epoch behind the back of a store that is open, as a second writer does that got the lock."""

    @abc.abstractmethod
    def blocked(self, folder: Path) -> AbstractContextManager[object]:
        """While entered, the database refuses commits for a reason that passes (a lock that another one holds)."""

    @abc.abstractmethod
    def broken(self, folder: Path) -> AbstractContextManager[object]:
        """While entered, commits fail so that their outcome is open (an I/O error, a connection that is lost)."""

    # --- opening ------------------------------------------------------------------------------------------------

    @covers("JRN-1", "JRN-2")
    def test_a_new_journal_is_empty(self, tmp_path: Path) -> None:
        store = self.make_store(tmp_path)
        tail = store.open()
        assert (tail.frame_no, tail.next_seq, tail.hash) == (0, 1, bytes(32))
        assert tail.epoch >= 1
        assert list(store.frames(1)) == []
        assert list(store.facts(1)) == []
        store.close()

    @covers("JRN-3", "JRN-4")
    def test_every_opening_begins_a_higher_epoch(self, tmp_path: Path) -> None:
        epochs = []
        for _ in range(3):
            store = self.make_store(tmp_path)
            epochs.append(store.open().epoch)
            epochs.append(store.reopen().epoch)
            store.close()
        assert epochs == sorted(set(epochs))

    @covers("JRN-3")
    def test_a_second_writer_is_refused_until_the_first_closes(self, tmp_path: Path) -> None:
        first, second = self.make_store(tmp_path), self.make_store(tmp_path)
        first.open()
        with pytest.raises(JournalLockedError):
            second.open()
        unit = Chain(first.reopen()).unit()
        first.commit(unit)
        first.close()
        assert second.open().hash == unit.frame.hash
        second.close()

    @covers("JRN-2")
    def test_what_was_committed_is_there_after_closing_and_opening(self, tmp_path: Path) -> None:
        store = self.make_store(tmp_path)
        chain = Chain(store.open())
        committed = _commit_many(store, chain, 5)
        store.close()
        again = self.make_store(tmp_path)
        tail = again.open()
        assert (tail.frame_no, tail.next_seq, tail.hash) == chain.tail()
        assert list(again.frames(1)) == [unit.frame for unit in committed]
        again.close()

    @covers("JRN-2")
    def test_a_store_that_is_not_open_can_be_read_beside_the_writer(self, tmp_path: Path) -> None:
        writer = self.make_store(tmp_path)
        committed = _commit_many(writer, Chain(writer.open()), 3)
        reader = self.make_store(tmp_path)
        assert list(reader.frames(1)) == [unit.frame for unit in committed]
        reader.close()
        writer.commit(Chain(writer.reopen()).unit())
        writer.close()

    # --- committing ---------------------------------------------------------------------------------------------

    @covers("JRN-2")
    @pytest.mark.parametrize("size", [0, 1, 1_000, 100_000])
    def test_a_frame_comes_back_as_it_was_committed(self, tmp_path: Path, size: int) -> None:
        store = self.make_store(tmp_path)
        chain = Chain(store.open())
        unit = chain.unit(facts=3, chunks=2, size=size)
        store.commit(unit)
        assert list(store.frames(1)) == [unit.frame]
        assert store.frames_at([1]) == [unit.frame]
        assert verify_frame(store.frames_at([1])[0], bytes(32)) == ""
        store.close()

    @covers("JRN-2")
    def test_ranges_of_frames_are_read_in_order(self, tmp_path: Path) -> None:
        store = self.make_store(tmp_path)
        frames = [unit.frame for unit in _commit_many(store, Chain(store.open()), 300)]
        assert list(store.frames(1)) == frames
        assert list(store.frames(100, 250)) == frames[99:250]
        assert list(store.frames(301)) == []
        assert store.frames_at([300, 7, 301, 8, 7]) == [frames[6], frames[7], frames[299]]
        assert list(store.facts(299)) == [_facts_of(frame) for frame in frames[298:]]
        assert list(store.facts(2, 3)) == [_facts_of(frame) for frame in frames[1:3]]
        store.close()

    @covers("JRN-2", "JRN-5")
    def test_facts_come_with_the_seqs_of_what_lies_between_them(self, tmp_path: Path) -> None:
        store = self.make_store(tmp_path)
        chain = Chain(store.open())
        frames: list[Frame] = []
        for n in range(40):
            frames.append(_commit_many(store, chain, 1, facts=int(n % 7 == 3), chunks=2)[0].frame)
        for first, last in ((1, None), (4, 4), (5, 20), (12, 31), (40, None)):
            number, seq = first, frames[first - 1].first_seq
            for frame_no, epoch, first_seq, count, facts in store.facts(first, last):
                assert first_seq == seq
                if facts:
                    assert frame_no == number
                    assert (frame_no, epoch, first_seq, count, facts) == _facts_of(frames[frame_no - 1])
                assert all(not frame.facts for frame in frames[number - 1 : frame_no - bool(facts)])
                number, seq = frame_no + 1, first_seq + count
            upto = frames[-1 if last is None else last - 1]
            assert (number - 1, seq) == (upto.frame_no, upto.end_seq)
        store.close()

    @covers("JRN-2", "JRN-3")
    @pytest.mark.parametrize("ahead", [-1, 1, 5])
    def test_a_frame_out_of_turn_is_fenced_and_leaves_nothing(self, tmp_path: Path, ahead: int) -> None:
        store = self.make_store(tmp_path)
        chain = Chain(store.open())
        _commit_many(store, chain, 3)
        before = list(store.frames(1))
        pieces = body_pieces("local", b"a prompt")
        wrong = CommitUnit(frame=chain.frame(ahead=ahead), bodies=pieces, index=[index_row(1)])
        with pytest.raises(FencedError):
            store.commit(wrong)
        assert list(store.frames(1)) == before
        assert store.body("local", pieces[0].body_id) is None
        assert store.index_row(index_row(1).task_id) is None
        store.commit(chain.unit())
        store.close()

    @covers("JRN-3")
    @pytest.mark.parametrize("bodies", [0, 1])
    def test_the_old_writer_is_fenced_once_another_has_taken_over(self, tmp_path: Path, bodies: int) -> None:
        store = self.make_store(tmp_path)
        chain = Chain(store.open())
        _commit_many(store, chain, 2)
        self.take_over(tmp_path)
        pieces = body_pieces("local", b"x") * bodies
        with pytest.raises(FencedError):
            store.commit(CommitUnit(frame=chain.frame(), bodies=pieces))
        with pytest.raises(FencedError):
            store.reopen()
        store.close()
        assert len(list(self.make_store(tmp_path).frames(1))) == 2

    @covers("JRN-1", "JRN-9")
    def test_bodies_are_kept_once_per_owner(self, tmp_path: Path) -> None:
        store = self.make_store(tmp_path)
        chain = Chain(store.open())
        data = bytes(range(256)) * 20
        for owner in ("key-1", "key-1", "key-2"):
            unit = CommitUnit(frame=chain.frame(), bodies=body_pieces(owner, data))
            store.commit(unit)
            chain.took(unit)
        body_id = body_pieces("key-1", data)[0].body_id
        assert store.body("key-1", body_id) == store.body("key-2", body_id) == data
        assert store.body("key-3", body_id) is None
        assert store.body("key-1", "sha256:00") is None
        store.close()

    @covers("JRN-1", "JRN-9")
    def test_pieces_of_a_large_body_are_kept_ahead_of_the_frame_that_names_it(self, tmp_path: Path) -> None:
        store = self.make_store(tmp_path)
        chain = Chain(store.open())
        data = bytes(range(256)) * 40
        pieces = body_pieces("local", data)
        for piece in [*pieces, pieces[0]]:
            store.keep([piece])
        assert store.body("local", pieces[0].body_id) == data
        unit = CommitUnit(frame=chain.frame())
        store.commit(unit)
        store.sync(unit.frame.hash, unit.frame.end_seq)
        store.close()
        again = self.make_store(tmp_path)
        assert again.open().frame_no == unit.frame.frame_no
        assert again.body("local", pieces[0].body_id) == data
        again.close()

    @covers("JRN-2")
    def test_a_body_with_a_missing_piece_is_called_corrupt(self, tmp_path: Path) -> None:
        store = self.make_store(tmp_path)
        pieces = body_pieces("local", bytes(5000))
        store.commit(CommitUnit(frame=Chain(store.open()).frame(), bodies=[p for p in pieces if p.piece != 2]))
        with pytest.raises(CorruptJournalError):
            store.body("local", pieces[0].body_id)
        store.close()

    @covers("JRN-7")
    def test_the_index_answers_pages_newest_first(self, tmp_path: Path) -> None:
        store = self.make_store(tmp_path)
        rows = [
            index_row(n, owner=f"key-{n % 2}", state="failed" if n % 3 == 0 else "completed", session_id=f"s{n % 4}")
            for n in range(1, 21)
        ]
        store.commit(CommitUnit(frame=Chain(store.open()).frame(), index=rows))
        newest = rows[::-1]
        assert store.index_page(IndexFilter()) == newest
        assert store.index_page(IndexFilter(limit=3)) == newest[:3]
        assert store.index_page(IndexFilter(before_no=18, limit=2)) == newest[3:5]
        for name in ("owner", "state", "session_id"):
            value = getattr(rows[5], name)
            assert store.index_page(IndexFilter(**{name: value})) == [r for r in newest if getattr(r, name) == value]
        assert store.index_page(IndexFilter(model_ref="other")) == []
        assert store.index_row(rows[7].task_id) == rows[7]
        store.close()

    @covers("JRN-7")
    def test_a_row_of_the_index_can_be_written_again(self, tmp_path: Path) -> None:
        store = self.make_store(tmp_path)
        chain = Chain(store.open())
        for row in (index_row(4), index_row(4, transcript_frame=9, entry_frames=b"\x00\x01\x00\x00\x00")):
            unit = CommitUnit(frame=chain.frame(), index=[row])
            store.commit(unit)
            chain.took(unit)
            assert store.index_row(row.task_id) == row
        assert len(store.index_page(IndexFilter())) == 1
        store.close()

    @covers("JRN-2", "JRN-7")
    def test_compacted_texts_still_verify(self, tmp_path: Path) -> None:
        store = self.make_store(tmp_path)
        chain = Chain(store.open())
        for _ in range(3):
            unit = chain.unit(chunks=2)
            store.commit(unit)
            chain.took(unit)
        old = list(store.frames(1))
        unit = CommitUnit(frame=chain.frame(), rewrites=[(1, without_texts(old[0])), (2, without_texts(old[1]))])
        store.commit(unit)
        new = list(store.frames(1))
        assert [len(b.texts) < len(a.texts) for a, b in zip(old, new, strict=False)] == [True, True, False]
        _verify(new)
        store.close()

    # --- failing ------------------------------------------------------------------------------------------------

    @covers("JRN-8")
    @pytest.mark.parametrize("bodies", [0, 1])
    def test_a_refused_unit_is_not_there_and_can_be_tried_again(self, tmp_path: Path, bodies: int) -> None:
        store = self.make_store(tmp_path)
        chain = Chain(store.open())
        _commit_many(store, chain, 1)
        unit = CommitUnit(frame=chain.frame(), bodies=body_pieces("local", b"x") * bodies)
        with self.blocked(tmp_path):
            for _ in range(2):
                with pytest.raises(StoreRefusedError):
                    store.commit(unit)
            assert len(list(store.frames(1))) == 1
        store.commit(unit)
        assert list(store.frames(2)) == [unit.frame]
        store.close()

    @covers("JRN-4", "JRN-8")
    @pytest.mark.parametrize("bodies", [0, 1])
    def test_after_an_unknown_outcome_reopening_answers_what_is_there(self, tmp_path: Path, bodies: int) -> None:
        store = self.make_store(tmp_path)
        chain = Chain(store.open())
        _commit_many(store, chain, 3)
        unit = CommitUnit(frame=chain.frame(chunks=3, size=3000), bodies=body_pieces("local", bytes(9000)) * bodies)
        with self.broken(tmp_path), pytest.raises(StoreUnknownError):
            store.commit(unit)
        epoch = chain.epoch
        tail = store.reopen()
        assert tail.epoch > epoch
        if tail.frame_no == unit.frame.frame_no:
            chain.took(unit)
        assert (tail.frame_no, tail.next_seq, tail.hash) == chain.tail()
        chain.restart(tail)
        _commit_many(store, chain, 2)
        _verify(list(store.frames(1)))
        store.close()

    @covers("JRN-8")
    def test_a_closed_store_takes_nothing(self, tmp_path: Path) -> None:
        store = self.make_store(tmp_path)
        chain = Chain(store.open())
        store.close()
        store.close()
        with pytest.raises(JournalError):
            store.commit(chain.unit())
        assert list(self.make_store(tmp_path).frames(1)) == []

    # --- syncing ------------------------------------------------------------------------------------------------

    @covers("JRN-2", "JRN-3")
    def test_the_head_note_names_what_was_synced(self, tmp_path: Path) -> None:
        store = self.make_store(tmp_path)
        chain = Chain(store.open())
        assert store.head_note() is None
        for _ in range(3):
            _commit_many(store, chain, 2)
            store.sync(chain.hash, chain.next_seq)
            store.maintain()
            assert store.head_note() == (chain.next_seq, chain.hash)
        _commit_many(store, chain, 2)
        store.close()
        again = self.make_store(tmp_path)
        note = again.head_note()
        assert note is not None
        assert (note[0], note[1]) == (next(again.frames(6)).end_seq, again.frames_at([6])[0].hash)

    @covers("JRN-3")
    def test_syncing_and_maintaining_go_on_beside_commits(self, tmp_path: Path) -> None:
        store = self.make_store(tmp_path)
        chain = Chain(store.open())
        _commit_many(store, chain, 1)
        failures: list[Exception] = []
        stop = threading.Event()

        def syncer() -> None:
            try:
                while not stop.is_set():
                    store.sync(chain.hash, chain.next_seq)
                    store.maintain()
            except Exception as error:  # the test's own thread tells it
                failures.append(error)

        thread = threading.Thread(target=syncer)
        thread.start()
        try:
            _commit_many(store, chain, 300, chunks=1, size=500)
        finally:
            stop.set()
            thread.join()
        assert failures == []
        _verify(list(store.frames(1)))
        store.close()

    # --- reading beside commits ---------------------------------------------------------------------------------

    @covers("JRN-4")
    def test_readers_in_other_threads_see_a_whole_prefix(self, tmp_path: Path) -> None:
        store = self.make_store(tmp_path)
        chain = Chain(store.open())
        _commit_many(store, chain, 1)
        failures: list[Exception] = []
        seen: list[int] = []
        stop = threading.Event()

        def reader() -> None:
            try:
                while not stop.is_set():
                    frames = list(store.frames(1))
                    _verify(frames)
                    seen.append(len(frames))
            except Exception as error:  # the test's own thread tells it
                failures.append(error)

        threads = [threading.Thread(target=reader) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            _commit_many(store, chain, 200, chunks=1)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert failures == []
        assert seen
        store.close()

    @covers("JRN-1")
    def test_the_size_grows_with_what_is_stored(self, tmp_path: Path) -> None:
        store = self.make_store(tmp_path)
        chain = Chain(store.open())
        before = store.size_bytes()
        _commit_many(store, chain, 20, chunks=1, size=10_000)
        assert store.size_bytes() >= before + 100_000
        store.close()

    # --- in all orders ------------------------------------------------------------------------------------------

    @covers("JRN-2", "JRN-3", "JRN-4", "JRN-7", "JRN-8")
    def test_any_order_of_commits_failures_reopenings_and_reads_keeps_the_journal_whole(self, tmp_path: Path) -> None:
        runs = itertools.count()
        run_state_machine_as_test(
            lambda: StoreMachine(self, tmp_path / f"run{next(runs)}"),  # type: ignore[arg-type]
            settings=settings(
                max_examples=20, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
            ),
        )


def _facts_of(frame: Frame) -> tuple[int, int, int, int, bytes]:
    return frame.frame_no, frame.epoch, frame.first_seq, frame.count, frame.facts


def _commit_many(store: JournalStore, chain: Chain, n: int, **shape: int) -> list[CommitUnit]:
    units = []
    for _ in range(n):
        unit = chain.unit(**shape)
        store.commit(unit)
        chain.took(unit)
        units.append(unit)
    return units


def _verify(frames: list[Frame]) -> None:
    previous = bytes(32)
    for number, frame in enumerate(frames, 1):
        assert frame.frame_no == number
        assert verify_frame(frame, previous) == ""
        previous = frame.hash
