"""Disks and databases that fail: which error each fault is, and how the store comes back (JRN-8)."""

from __future__ import annotations

import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from llama_orch.core.journal.verify import verify
from llama_orch.plugins import StoreUnknownError
from llama_orch.plugins.storage.postgresql import PostgresqlStore
from llama_orch.plugins.storage.sqlite import SqliteStore
from llama_orch.plugins.testing.covers import covers
from llama_orch.plugins.testing.frames import Chain

from ...faults import FaultFs
from .cut_connection import CuttingProxy
from .postgres_server import PostgresServer
from .writer import Writer

StartWriter = Callable[[], Writer]


@pytest.fixture(scope="session")
def faults(tmp_path_factory: pytest.TempPathFactory) -> FaultFs:
    """The shim, built once."""
    return FaultFs(tmp_path_factory.mktemp("faultfs"))


@pytest.fixture
def start(faults: FaultFs, tmp_path: Path) -> Iterator[StartWriter]:
    """Writers on one SQLite journal whose disk can be made to fail."""
    writers: list[Writer] = []

    def start_writer() -> Writer:
        writers.append(Writer(f"sqlite:///{tmp_path}/journal.db", {"wal_bytes": 65_536}, faults.env))
        return writers[-1]

    yield start_writer
    faults.clear()
    for writer in writers:
        writer.end()


def _frames(folder: Path) -> int:
    store = SqliteStore(f"sqlite:///{folder}/journal.db", {})
    report = verify(store)
    store.close()
    assert report.findings == []
    return report.frames


# --- SQLite -------------------------------------------------------------------------------------------------------


@covers("JRN-8")
def test_busy_is_refused_and_the_same_frame_is_taken_later(start: StartWriter, tmp_path: Path) -> None:
    writer = start()
    writer.do("open")
    with closing(sqlite3.connect(tmp_path / "journal.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert writer.do("commit") == "StoreRefusedError"
        assert writer.do("again") == "StoreRefusedError"
    assert writer.do("again") == "commit 1"
    assert _frames(tmp_path) == 1


@covers("JRN-8")
@pytest.mark.parametrize("word", ["commit", "big"])
def test_a_full_disk_is_refused_and_the_same_frame_is_taken_later(
    start: StartWriter, faults: FaultFs, tmp_path: Path, word: str
) -> None:
    writer = start()
    writer.do("open")
    assert writer.do("commit") == "commit 1"
    with faults.active("ENOSPC", path="journal.db"):
        assert writer.do(word) == "StoreRefusedError"
        assert writer.do("again") == "StoreRefusedError"
    assert writer.do("again") == "commit 2"
    assert writer.do("sync") == "synced"
    assert _frames(tmp_path) == 2


@covers("JRN-4", "JRN-8")
@pytest.mark.parametrize("word", ["commit", "big"])
@pytest.mark.parametrize("mode", ["EIO_WRITE", "TORN_WRITE", "EROFS"])
def test_a_write_that_fails_leaves_the_outcome_open_until_the_journal_is_reopened(
    start: StartWriter, faults: FaultFs, tmp_path: Path, mode: str, word: str
) -> None:
    writer = start()
    writer.do("open")
    assert writer.do("commit") == "commit 1"
    with faults.active(mode, path="journal.db"):  # type: ignore[arg-type]
        assert writer.do(word) == "StoreUnknownError"
        assert writer.do("reopen") in ("StoreUnknownError", "StoreRefusedError")
    answer = writer.do("reopen").split()
    assert answer[0] == "open"
    assert int(answer[2]) in (1, 2)
    assert writer.do("commit") == f"commit {int(answer[2]) + 1}"
    assert _frames(tmp_path) == int(answer[2]) + 1


@covers("JRN-3", "JRN-8")
def test_a_sync_that_fails_is_not_believed_when_it_is_repeated(
    start: StartWriter, faults: FaultFs, tmp_path: Path
) -> None:
    writer = start()
    writer.do("open")
    writer.do("commit")
    assert writer.do("sync") == "synced"
    writer.do("commit")
    with faults.active("EIO_FSYNC", path="journal.db"):
        assert writer.do("sync") == "StoreUnknownError"
        assert writer.do("reopen") == "StoreUnknownError"
    # the kernel would now say that all is well; only what is written again counts
    wal = tmp_path / "journal.db-wal"
    assert wal.stat().st_size > 0
    assert writer.do("reopen").endswith(" 2")
    with closing(sqlite3.connect(f"file:{tmp_path}/journal.db?immutable=1", uri=True)) as database:
        assert database.execute("SELECT max(frame_no) FROM frames").fetchone() == (2,)
    assert writer.do("commit") == "commit 3"
    assert writer.do("sync") == "synced"


@covers("JRN-8")
def test_a_checkpoint_that_fails_says_so_and_loses_nothing(start: StartWriter, faults: FaultFs, tmp_path: Path) -> None:
    writer = start()
    writer.do("open")
    for _ in range(5):
        writer.do("big")
    with faults.active("EIO_WRITE", path="journal.db"):
        assert writer.do("maintain") == "StoreUnknownError"
    assert writer.do("reopen").endswith(" 5")
    assert writer.do("maintain") == "maintained"
    assert _frames(tmp_path) == 5


@covers("JRN-8")
def test_a_checkpoint_on_a_full_disk_waits_for_space(start: StartWriter, faults: FaultFs, tmp_path: Path) -> None:
    writer = start()
    writer.do("open")
    for _ in range(8):  # more than wal_bytes, so that the writer would begin the log anew
        writer.do("big")
    assert writer.do("maintain") == "maintained"
    for _ in range(4):
        writer.do("big")
    with faults.active("ENOSPC", path="journal.db$"):
        assert writer.do("maintain") == "StoreRefusedError"
        assert writer.do("big") == "commit 13"
        assert writer.do("sync") == "synced"
    assert writer.do("maintain") == "maintained"
    assert writer.do("commit") == "commit 14"
    assert _frames(tmp_path) == 14


@covers("JRN-8")
def test_a_read_only_disk_refuses_to_open(start: StartWriter, faults: FaultFs, tmp_path: Path) -> None:
    first = start()
    first.do("open")
    first.do("commit")
    first.end()
    writer = start()
    with faults.active("EROFS", path="journal.db"):
        assert writer.do("open") in ("StoreRefusedError", "StoreUnknownError")
    assert writer.do("open").endswith(" 1")


@covers("JRN-8")
@pytest.mark.parametrize("gone", ["journal.db", "journal.db-wal", "journal.db journal.db-wal journal.db-shm"])
def test_a_deleted_file_is_noticed_and_written_back_with_everything(
    start: StartWriter, tmp_path: Path, gone: str
) -> None:
    writer = start()
    writer.do("open")
    for _ in range(3):
        writer.do("big")
    assert writer.do("sync") == "synced"
    writer.do("commit")
    for name in gone.split():
        (tmp_path / name).unlink()
    assert writer.do("commit") == "commit 5"
    assert writer.do("sync") == "StoreUnknownError"
    assert writer.do("maintain") == "StoreUnknownError"
    assert writer.do("reopen").endswith(" 5")
    assert writer.do("commit") == "commit 6"
    assert writer.do("sync") == "synced"
    assert (tmp_path / "journal.db").stat().st_mode & 0o777 == 0o600
    assert _frames(tmp_path) == 6


@covers("JRN-8")
def test_a_file_that_was_moved_away_is_written_back_complete(start: StartWriter, tmp_path: Path) -> None:
    writer = start()
    writer.do("open")
    writer.do("commit")
    (tmp_path / "journal.db").rename(tmp_path / "elsewhere.db")
    assert writer.do("sync") == "StoreUnknownError"
    assert writer.do("reopen").endswith(" 1")
    assert _frames(tmp_path) == 1


@covers("JRN-8")
def test_an_older_copy_in_the_journals_place_is_not_taken(start: StartWriter, tmp_path: Path) -> None:
    writer = start()
    writer.do("open")
    writer.do("commit")
    writer.end()
    shutil.copy(tmp_path / "journal.db", tmp_path / "old.db")
    writer = start()
    writer.do("open")
    writer.do("commit")
    assert writer.do("sync") == "synced"
    (tmp_path / "journal.db").rename(tmp_path / "right.db")
    shutil.copy(tmp_path / "old.db", tmp_path / "journal.db")
    assert writer.do("sync") == "StoreUnknownError"
    for _ in range(2):
        assert writer.do("reopen") == "StoreUnknownError"
    (tmp_path / "right.db").rename(tmp_path / "journal.db")
    assert writer.do("reopen").endswith(" 2")
    assert writer.do("commit") == "commit 3"


@covers("JRN-8")
def test_a_damaged_database_is_neither_written_to_nor_begun_anew(start: StartWriter, tmp_path: Path) -> None:
    writer = start()
    writer.do("open")
    writer.do("big")
    assert writer.do("maintain") == "maintained"
    whole = (tmp_path / "journal.db").read_bytes()
    with (tmp_path / "journal.db").open("r+b") as database:
        database.write(b"noise" * 200)
    for _ in range(2):
        assert writer.do("reopen") == "StoreUnknownError"
    with (tmp_path / "journal.db").open("r+b") as database:
        database.write(whole)
    assert writer.do("reopen").endswith(" 1")
    assert writer.do("commit") == "commit 2"
    assert _frames(tmp_path) == 2


@covers("JRN-8")
def test_a_slow_disk_delays_syncs_alone(start: StartWriter, faults: FaultFs, tmp_path: Path) -> None:
    writer = start()
    writer.do("open")
    with faults.active("DELAY_FSYNC", path="journal.db", ms=200):
        for n in range(1, 51):
            assert writer.do("commit") == f"commit {n}"
        assert writer.do("sync") == "synced"
    assert _frames(tmp_path) == 50


# --- PostgreSQL ---------------------------------------------------------------------------------------------------


@pytest.fixture
def database(postgres: PostgresServer, tmp_path: Path) -> str:
    """URL of an empty database of its own."""
    import psycopg

    name = f"faults_{abs(hash(str(tmp_path)))}"
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    return postgres.url.replace("/postgres?", f"/{name}?")


@pytest.mark.postgresql
@covers("JRN-4", "JRN-8")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT])
def test_a_database_that_was_stopped_comes_back_with_all_that_was_synced(
    postgres: PostgresServer, database: str, tmp_path: Path, how: signal.Signals
) -> None:
    store = PostgresqlStore(database, {"head_path": str(tmp_path / "head"), "connect_timeout_s": 2})
    chain = Chain(store.open())
    for _ in range(3):
        unit = chain.unit(chunks=1)
        store.commit(unit)
        chain.took(unit)
    store.sync(chain.hash, chain.next_seq)
    synced = chain.tail()
    with postgres.stopped(how):
        with pytest.raises(StoreUnknownError):
            store.commit(chain.unit())
        with pytest.raises(StoreUnknownError):
            store.sync(chain.hash, chain.next_seq)
        with pytest.raises(StoreUnknownError):
            store.reopen()
    tail = store.reopen()
    assert (tail.frame_no, tail.next_seq, tail.hash) == synced
    assert tail.epoch > chain.epoch
    chain.restart(tail)
    store.commit(chain.unit())
    assert verify(store).frames == 4
    store.close()


@pytest.mark.postgresql
@covers("JRN-4", "JRN-8")
@pytest.mark.parametrize("delivered", [False, True])
def test_a_connection_cut_at_a_commit_leaves_the_outcome_open_until_reopened(
    database: str, tmp_path: Path, delivered: bool
) -> None:
    with CuttingProxy(database) as proxy:
        store = PostgresqlStore(proxy.url, {})
        chain = Chain(store.open())
        unit = chain.unit(chunks=1)
        proxy.cut(delivered=delivered)
        with pytest.raises(StoreUnknownError):
            store.commit(unit)
        tail = store.reopen()
        assert tail.frame_no == int(delivered)
        if delivered:
            assert tail.hash == unit.frame.hash
        store.close()
