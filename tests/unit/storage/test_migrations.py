"""Migrations lead to the schema, and a database that is not of this version is named as what it is (JRN-6)."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from llama_orch import migrations
from llama_orch.core import schema
from llama_orch.plugins import CorruptJournalError
from llama_orch.plugins.storage.sqlite import SqliteStore
from llama_orch.plugins.testing.covers import covers


def _url(folder: Path) -> str:
    return f"sqlite:///{folder}/journal.db"


@covers("JRN-6")
def test_migrations_make_the_tables_that_the_schema_declares(tmp_path: Path) -> None:
    engine = sa.create_engine(_url(tmp_path))
    with engine.begin() as connection:
        assert migrations.current(connection) is None
        migrations.upgrade(connection)
        assert migrations.current(connection) == migrations.HEAD
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, schema.metadata) == []
    engine.dispose()


def test_the_newest_revision_is_the_one_that_stores_ask_for() -> None:
    config = Config()
    config.set_main_option("script_location", migrations.SCRIPT_LOCATION)
    assert ScriptDirectory.from_config(config).get_heads() == [migrations.HEAD]
    assert migrations.revisions()[0] == migrations.HEAD


@covers("JRN-6")
def test_a_journal_of_a_newer_version_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    store = SqliteStore(_url(tmp_path), {})
    store.open()
    store.close()
    with closing(sqlite3.connect(tmp_path / "journal.db", isolation_level=None)) as database:
        database.execute("UPDATE alembic_version SET version_num = 'r9999'")
    before = (tmp_path / "journal.db").read_bytes()
    with pytest.raises(CorruptJournalError, match="r9999"):
        store.open()
    assert (tmp_path / "journal.db").read_bytes() == before


def test_a_database_that_is_no_journal_is_refused(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "journal.db", isolation_level=None)) as database:
        database.execute("CREATE TABLE recipes (name TEXT)")
    with pytest.raises(CorruptJournalError, match="recipes"):
        SqliteStore(_url(tmp_path), {}).open()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "journal.db").write_bytes(b"not a database at all, but some text" * 100)
    with pytest.raises(CorruptJournalError, match="damaged or no SQLite database"):
        SqliteStore(_url(tmp_path), {}).open()
