"""The journal's contract on PostgreSQL."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from llama_orch.plugins import CorruptJournalError, JournalLockedError, JournalStore, StoreUnknownError
from llama_orch.plugins.storage.postgresql import PostgresqlStore
from llama_orch.plugins.testing.covers import covers
from llama_orch.plugins.testing.storage import JournalStoreContract

from .postgres_server import PostgresServer

pytestmark = pytest.mark.postgresql


class TestPostgresqlStore(JournalStoreContract):
    """PostgreSQL."""

    @pytest.fixture(autouse=True)
    def _server(self, postgres: PostgresServer) -> None:
        self._postgres = postgres

    def make_store(self, folder: Path) -> JournalStore:
        schema = _schema(folder)
        with psycopg.connect(self._postgres.url, autocommit=True) as connection:
            connection.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}".encode())
        url = f"{self._postgres.url}&options=-csearch_path%3D{schema}"
        return PostgresqlStore(url, {"head_path": str(folder / "head"), "lock_timeout_ms": 100})

    def take_over(self, folder: Path) -> None:
        with psycopg.connect(self._postgres.url, autocommit=True) as other:
            other.execute(f"UPDATE {_schema(folder)}.writer SET epoch = epoch + 1".encode())

    @contextmanager
    def blocked(self, folder: Path) -> Iterator[None]:
        with psycopg.connect(self._postgres.url) as other:
            other.execute(f"LOCK TABLE {_schema(folder)}.frames IN SHARE MODE".encode())
            yield

    @contextmanager
    def broken(self, folder: Path) -> Iterator[None]:
        with psycopg.connect(self._postgres.url, autocommit=True) as other:
            other.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'llama-orch'"
            )
        yield


def _schema(folder: Path) -> str:
    return f"j{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}"


@covers("JRN-6")
def test_migrate_brings_an_empty_schema_up_to_date_and_may_be_repeated(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    store = _store(postgres, tmp_path)
    store.migrate()
    store.migrate()
    assert store.open().frame_no == 0
    with pytest.raises(JournalLockedError):
        _store(postgres, tmp_path).migrate()
    store.close()


@covers("JRN-6")
def test_a_schema_of_a_newer_version_is_refused(postgres: PostgresServer, tmp_path: Path) -> None:
    store = _store(postgres, tmp_path)
    store.migrate()
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(f"UPDATE {_schema(tmp_path)}.alembic_version SET version_num = 'r9999'".encode())
    with pytest.raises(CorruptJournalError, match="r9999"):
        store.open()


def test_a_password_is_not_in_the_error_of_a_server_that_does_not_answer(tmp_path: Path) -> None:
    url = f"postgresql://someone:hunter2@/journal?host={tmp_path}"  # scan: allow
    store = PostgresqlStore(url, {"connect_timeout_s": 1})
    with pytest.raises(StoreUnknownError) as caught:
        store.open()
    assert "hunter2" not in str(caught.value)


def _store(postgres: PostgresServer, folder: Path) -> PostgresqlStore:
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA IF NOT EXISTS {_schema(folder)}".encode())
    return PostgresqlStore(f"{postgres.url}&options=-csearch_path%3D{_schema(folder)}", {})


@covers("JRN-3")
def test_a_writer_that_is_just_leaving_is_waited_for(postgres: PostgresServer, tmp_path: Path) -> None:
    first, second = _store(postgres, tmp_path), _store(postgres, tmp_path)
    first.open()
    with ThreadPoolExecutor(1) as threads, psycopg.connect(postgres.url, autocommit=True) as watching:
        opening = threads.submit(second.open)
        waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        while not opening.done() and watching.execute(waits).fetchone() == (0,):
            pass
        first.close()
        assert opening.result().epoch == 2
    second.close()
