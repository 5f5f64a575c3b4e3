"""One writer at a time, in real processes: races, kills, and a stopped writer that wakes up (JRN-3)."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from llama_orch.core.journal.verify import verify
from llama_orch.plugins.manager import PluginManager
from llama_orch.plugins.testing.covers import covers

from .postgres_server import PostgresServer
from .writer import Writer


class Journal:
    """A journal that processes fight over."""

    def __init__(self, url: str, options: dict[str, object], lose_lock: Callable[[], None]) -> None:
        self.url, self.options, self.lose_lock = url, options, lose_lock
        self._writers: list[Writer] = []

    def writer(self) -> Writer:
        self._writers.append(Writer(self.url, self.options))
        return self._writers[-1]

    def frames(self) -> int:
        """How many frames are there; all of them verify."""
        scheme = self.url.split(":", maxsplit=1)[0]
        store = PluginManager(entry_points=False).journal_stores()[scheme](self.url, self.options)
        report = verify(store)
        store.close()
        assert report.findings == []
        return report.frames

    def end(self) -> None:
        for writer in self._writers:
            writer.end()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Journal]:
    """A journal on each database, and how its writer's lock is lost behind its back."""
    if request.param == "sqlite":
        made = Journal(f"sqlite:///{tmp_path}/journal.db", {}, (tmp_path / "journal.db.lock").unlink)
    else:
        server: PostgresServer = request.getfixturevalue("postgres")
        schema = f"w{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:16]}"
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute(f"CREATE SCHEMA {schema}".encode())

        def end_sessions() -> None:
            with psycopg.connect(server.url, autocommit=True) as connection:
                connection.execute(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'llama-orch'"
                )

        made = Journal(
            f"{server.url}&options=-csearch_path%3D{schema}", {"head_path": str(tmp_path / "head")}, end_sessions
        )
    yield made
    made.end()


@covers("JRN-3")
def test_of_writers_that_race_exactly_one_opens(journal: Journal) -> None:
    epochs = []
    for _ in range(3):
        writers = [journal.writer() for _ in range(3)]
        for writer in writers:
            writer.ask("open")
        answers = [writer.answer() for writer in writers]
        winners = [answer for answer in answers if answer.startswith("open")]
        assert len(winners) == 1
        assert [answer for answer in answers if answer not in winners] == ["JournalLockedError"] * 2
        epochs.append(int(winners[0].split()[1]))
        for writer in writers:
            writer.end()
    assert epochs == sorted(set(epochs))


@covers("JRN-3")
def test_after_a_kill_the_next_writer_has_everything_that_was_committed(journal: Journal) -> None:
    first, second = journal.writer(), journal.writer()
    first.do("open")
    for _ in range(4):
        assert first.do("commit").startswith("commit")
    assert second.do("open") == "JournalLockedError"
    first.process.kill()
    first.process.wait()
    # PostgreSQL notices the closed socket when it next looks at it
    answer = second.do("open")
    while answer == "JournalLockedError":
        answer = second.do("open")
    assert answer.startswith("open")
    assert second.do("commit") == "commit 5"
    assert journal.frames() == 5


@covers("JRN-3", "JRN-4")
def test_a_stopped_writer_keeps_the_journal(journal: Journal) -> None:
    first, second = journal.writer(), journal.writer()
    first.do("open")
    first.do("commit")
    first.process.send_signal(signal.SIGSTOP)
    assert second.do("open") == "JournalLockedError"
    first.process.send_signal(signal.SIGCONT)
    assert first.do("commit") == "commit 2"


@covers("JRN-3", "JRN-4")
def test_a_stopped_writer_that_lost_its_lock_writes_nothing_when_it_wakes_up(journal: Journal) -> None:
    first, second = journal.writer(), journal.writer()
    assert first.do("open").startswith("open")
    assert first.do("commit") == "commit 1"
    first.process.send_signal(signal.SIGSTOP)
    first.ask("commit")
    journal.lose_lock()
    assert second.do("open").startswith("open")
    assert second.do("commit") == "commit 2"
    first.process.send_signal(signal.SIGCONT)
    # a lost connection leaves the outcome open; looking again tells
    assert first.answer() in ("FencedError", "StoreUnknownError")
    assert first.do("reopen") == "FencedError"
    assert second.do("commit") == "commit 3"
    assert journal.frames() == 3
