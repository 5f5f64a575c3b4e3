"""The journal's contract on SQLite."""

from __future__ import annotations

import resource
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llama_orch.plugins import JournalStore
from llama_orch.plugins.storage.sqlite import SqliteStore
from llama_orch.plugins.testing.storage import JournalStoreContract


class TestSqliteStore(JournalStoreContract):
    """SQLite."""

    def make_store(self, folder: Path) -> JournalStore:
        return SqliteStore(f"sqlite:///{folder}/journal.db", {})

    def take_over(self, folder: Path) -> None:
        with _connected(folder) as other:
            other.execute("UPDATE writer SET epoch = epoch + 1")

    @contextmanager
    def blocked(self, folder: Path) -> Iterator[None]:
        with _connected(folder) as other:
            other.execute("BEGIN IMMEDIATE")
            yield

    @contextmanager
    def broken(self, folder: Path) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        # Writes past this offset fail, the first one in its middle: Python leaves SIGXFSZ ignored.
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def _connected(folder: Path) -> Iterator[sqlite3.Connection]:
    other = sqlite3.connect(folder / "journal.db", isolation_level=None)
    try:
        yield other
    finally:
        other.close()
