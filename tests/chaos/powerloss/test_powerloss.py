"""Power loss at any moment: what was acknowledged as durable is there, the chain verifies, no id is used again.

A workload's writes and syncs are recorded once; every example cuts the power at a step and lets an arbitrary part of
what was not synced arrive.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_orch.core.journal.verify import verify
from llama_orch.plugins.storage.sqlite import SqliteStore
from llama_orch.plugins.testing.covers import covers
from llama_orch.plugins.testing.frames import Chain

from ...faults import build_preload
from .disk import Disk, Step, read_record

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
_recorded: list[Step] = []


@pytest.fixture(scope="module", autouse=True)
def _record(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Record the workload."""
    made = tmp_path_factory.mktemp("record")
    folder = made / "journal"
    folder.mkdir()
    env = os.environ | {
        "LD_PRELOAD": str(build_preload(HERE / "record.c", made)),
        "RECORD_FOLDER": str(folder),
        "RECORD_LOG": str(made / "log"),
    }
    subprocess.run([sys.executable, str(HERE / "workload.py"), str(folder)], env=env, check=True)
    _recorded[:] = read_record(made / "log")


class Promises:
    """What the server had told at a moment: from the notes of the workload."""

    def __init__(self) -> None:
        self.epoch = 0
        self.committed_seq = 1
        self.synced: tuple[int, bytes] | None = None

    def read(self, step: Step) -> None:
        """Take a note in."""
        for line in step.data.decode().splitlines():
            kind, value, *rest = line.split()
            if kind == "o":
                self.epoch = int(value)
            elif kind == "c":
                self.committed_seq = int(value)
            else:
                self.synced = (int(value), bytes.fromhex(rest[0]))


def _until(point: int) -> tuple[Disk, Promises]:
    disk, promises = Disk(), Promises()
    for step in _recorded[:point]:
        if step.path == "notes":
            promises.read(step) if step.kind == "W" else None
        else:
            disk.replay(step)
    return disk, promises


def test_the_record_has_what_it_needs() -> None:
    kinds = {(step.kind, step.path) for step in _recorded}
    assert {
        ("W", "journal.db-wal"),
        ("E", "journal.db-wal"),
        ("W", "journal.db"),
        ("E", "journal.db"),
        ("E", ""),
    } <= kinds
    # the log was begun again from its start more than once, so that old and new frames lie over each other
    assert sum(step.kind == "W" and step.path == "journal.db-wal" and step.at == 0 for step in _recorded) > 3


@covers("JRN-3", "JRN-4")
@settings(max_examples=150)
@given(where=st.floats(0, 1), seed=st.integers(0, 2**32))
def test_durable_facts_survive_and_ids_are_never_used_again(where: float, seed: int) -> None:
    disk, promises = _until(int(where * len(_recorded)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        disk.after_power_loss(folder, random.Random(seed))
        store = SqliteStore(f"sqlite:///{folder}/journal.db", {})
        note = store.head_note()
        tail = store.open()
        try:
            report = verify(store)
            assert report.findings == []
            assert report.next_seq == tail.next_seq
            if promises.synced is not None:
                seq, digest = promises.synced
                assert tail.next_seq >= seq
                assert any(frame.end_seq == seq and frame.hash == digest for frame in store.frames(1))
            if note is not None:
                assert note[0] <= tail.next_seq
            # An id is (epoch, place): what a reader holds beyond the tail belongs to an epoch that is over.
            assert tail.epoch > promises.epoch
            chain = Chain(tail)
            unit = chain.unit(chunks=1)
            store.commit(unit)
            chain.took(unit)
            store.sync(chain.hash, chain.next_seq)
            assert verify(store).ok
        finally:
            store.close()


@covers("JRN-4")
def test_without_the_sync_of_the_log_the_replay_does_lose_durable_facts() -> None:
    """The layer itself: if syncs did nothing, it would show."""
    lost = 0
    for seed in range(40):
        chance = random.Random(seed)
        point = chance.randrange(len(_recorded) // 2, len(_recorded))
        disk, promises = Disk(), Promises()
        for step in _recorded[:point]:
            if step.path == "notes":
                promises.read(step) if step.kind == "W" else None
            elif not (step.kind == "E" and step.path == "journal.db-wal"):
                disk.replay(step)
        with tempfile.TemporaryDirectory() as name:
            disk.after_power_loss(Path(name), chance)
            store = SqliteStore(f"sqlite:///{name}/journal.db", {})
            try:
                tail = store.open()
                assert promises.synced is not None
                lost += tail.next_seq < promises.synced[0]
            except Exception:  # a database that cannot even be opened is lost as well
                lost += 1
            finally:
                store.close()
    assert lost > 0
