"""Snapshots: written whole or not at all, and used only when they fit the journal (JRN-5)."""

from __future__ import annotations

import zlib
from pathlib import Path

import msgspec
import pytest

from llama_orch.core.errors import CorruptJournalError
from llama_orch.core.journal.opening import frame_hash, replay_to
from llama_orch.core.journal.snapshot import load_latest, read_snapshot, write_snapshot
from llama_orch.core.ports import Tail
from llama_orch.core.projections.head import Head

from ...support.stage import Stage, on_stage
from ...support.store import MemoryStore


def grow(stage: Stage, tasks: int) -> None:
    """Tasks come; some end, some run, some wait."""
    for n in range(tasks):
        task_id = stage.submit(f"{n}", key=f"k{n}" if n % 2 else None).task_id
        if n % 3:
            continue
        attempt = stage.engines["p"].last
        attempt.start()
        attempt.say("a", "b")
        stage.settle()
        if attempt.job.task_id == task_id and n % 2:
            attempt.end()
            stage.settle()


def write(stage: Stage, folder: Path) -> Path:
    """A snapshot of head as it is."""
    last = stage.disk.frames[-1]
    return write_snapshot(folder, stage.journal.head, last.frame_no, last.hash)


def tail_of(stage: Stage) -> Tail:
    """Where the disk ends."""
    frame_no, next_seq, digest = stage.disk.tail()
    return Tail(epoch=stage.disk.epoch, frame_no=frame_no, next_seq=next_seq, hash=digest)


def test_replay_from_a_snapshot_gives_the_state_that_replay_from_zero_gives(tmp_path: Path) -> None:
    with on_stage() as stage:
        grow(stage, 7)
        write(stage, tmp_path)
        grow(stage, 5)
        store = MemoryStore(stage.disk)
        with_it = replay_to(store, tail_of(stage), tmp_path)
        without = replay_to(store, tail_of(stage), None)
        assert with_it.head.digest() == without.head.digest() == stage.journal.head.digest()


def test_a_snapshot_is_private_and_only_the_two_newest_stay(tmp_path: Path) -> None:
    folder = tmp_path / "snapshots"
    with on_stage() as stage:
        paths = []
        for _ in range(4):
            grow(stage, 1)
            paths.append(write(stage, folder))
        (folder / "00000000000000000007.part").write_bytes(b"what a killed writer left")
        paths.append(write(stage, folder))
        assert sorted(folder.iterdir()) == sorted({*paths[-2:]} | {paths[-3]})[-2:]
        assert folder.stat().st_mode & 0o777 == 0o700
        assert all(path.stat().st_mode & 0o777 == 0o600 for path in folder.iterdir())


def test_a_snapshot_of_a_frame_that_power_loss_took_is_not_used(tmp_path: Path) -> None:
    with on_stage() as stage:
        grow(stage, 3)
        older = write(stage, tmp_path)
        grow(stage, 3)
        write(stage, tmp_path)
        held = read_snapshot(older).frame_no
        del stage.disk.frames[held:]
        stage.disk.units.clear()
        store = MemoryStore(stage.disk)
        found = load_latest(tmp_path, lambda number: frame_hash(store, number))
        assert found is not None
        assert found[1] == held
        stage.up = False
        stage.disk.index.clear()


@pytest.mark.parametrize("damage", ["cut", "noise", "state", "format", "digest", "versions", "empty"])
def test_a_snapshot_that_is_damaged_or_of_another_version_is_passed_over(tmp_path: Path, damage: str) -> None:
    with on_stage() as stage:
        grow(stage, 4)
        path = write(stage, tmp_path)
        raw = path.read_bytes()
        snapshot = read_snapshot(path)
        if damage == "cut":
            raw = raw[: len(raw) // 2]
        elif damage == "noise":
            raw = b"\xff" * 100
        elif damage == "empty":
            raw = b""
        else:
            if damage == "state":
                snapshot.state["next_seq"] += 1
            elif damage == "format":
                snapshot.format += 1
            elif damage == "digest":
                snapshot.digest = "0" * 64
            else:
                snapshot.state["versions"]["tasks"] += 1
            raw = zlib.compress(msgspec.msgpack.encode(snapshot))
        path.write_bytes(raw)
        store = MemoryStore(stage.disk)
        assert load_latest(tmp_path, lambda number: frame_hash(store, number)) is None
        assert replay_to(store, tail_of(stage), tmp_path).head.digest() == stage.journal.head.digest()


def test_no_folder_is_no_snapshot(tmp_path: Path) -> None:
    assert load_latest(tmp_path / "nothing", lambda number: b"") is None


def test_a_journal_that_does_not_end_where_its_tail_says_is_not_begun_on() -> None:
    with on_stage() as stage:
        grow(stage, 2)
        tail = tail_of(stage)
        wrong = Tail(epoch=tail.epoch, frame_no=tail.frame_no + 1, next_seq=tail.next_seq, hash=tail.hash)
        with pytest.raises(CorruptJournalError):
            replay_to(MemoryStore(stage.disk), wrong, None)


@pytest.mark.parametrize("number", [2, 4])
def test_a_missing_frame_is_named(number: int) -> None:
    with on_stage() as stage:
        grow(stage, 4)
        whole = list(stage.disk.frames)
        del stage.disk.frames[number - 1]
        with pytest.raises(CorruptJournalError, match=f"frame {number}"):
            replay_to(MemoryStore(stage.disk), tail_of(stage), None)
        stage.disk.frames = whole


def test_heads_of_the_same_state_have_the_same_digest_and_others_another() -> None:
    with on_stage() as stage:
        grow(stage, 3)
        head = Head()
        head.load(msgspec.json.decode(msgspec.json.encode(stage.journal.head.dump())))
        assert head.digest() == stage.journal.head.digest()
        head.time_ns += 1
        assert head.digest() != stage.journal.head.digest()
