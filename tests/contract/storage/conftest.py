"""Databases for the tests of stores."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .postgres_server import PostgresServer, running_server


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One PostgreSQL server for the whole run of a test process."""
    with running_server() as server:
        yield server
