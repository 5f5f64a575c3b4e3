"""What several of these tests need: a PostgreSQL server, and databases on it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import psycopg
import pytest

from ..contract.storage.postgres_server import PostgresServer, running_server

_numbers = itertools.count()


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    """A server of this module's own: its tests stop it."""
    with running_server() as server:
        yield server


@pytest.fixture
def database(postgres: PostgresServer) -> Callable[[], str]:
    """Makes an empty database; its URL."""

    def make() -> str:
        name = f"chaos_{next(_numbers)}"
        with psycopg.connect(postgres.url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return postgres.url.replace("/postgres?", f"/{name}?")

    return make
