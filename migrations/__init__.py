"""Alembic migrations of the journal's database (JRN-6).

``script_location = llama_orch:migrations``; stores call :func:`upgrade` with a connection of their own, so no
configuration file is needed. Alembic is imported only when there is something to do.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

#: newest revision under ``versions/``; a test compares it with what Alembic finds
HEAD = "r0001"

SCRIPT_LOCATION = "llama_orch:migrations"


def current(connection: sa.Connection) -> str | None:
    """The revision of the database behind a connection; ``None`` when it was never migrated."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()


def _config() -> Any:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", SCRIPT_LOCATION)
    return config


def revisions() -> list[str]:
    """Every revision that this version knows, newest first."""
    from alembic.script import ScriptDirectory

    return [script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()]


def upgrade(connection: sa.Connection) -> None:
    """Bring the database to :data:`HEAD`; the caller commits.

    :raises alembic.util.CommandError: the database is of a revision that this version does not know.
    """
    from alembic import command

    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
