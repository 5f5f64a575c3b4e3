"""The journal's contract on PostgreSQL."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from llama_orch.plugins import JournalStore
from llama_orch.plugins.storage.postgresql import PostgresqlStore
from llama_orch.plugins.testing.storage import JournalStoreContract

from .postgres_server import PostgresServer

pytestmark = pytest.mark.postgresql


class TestPostgresqlStore(JournalStoreContract):
    """PostgreSQL"""

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
