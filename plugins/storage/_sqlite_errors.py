"""What SQLite's errors mean to the journal: refused, outcome open, or damaged."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from .. import CorruptJournalError, StoreRefusedError, StoreUnknownError

_REFUSED = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_INTERRUPT,
}
_BROKEN = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_SCHEMA, sqlite3.SQLITE_FORMAT}


def _code(error: BaseException) -> int:
    """SQLite's primary error code, 0 when there is none."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    return int(getattr(cause, "sqlite_errorcode", 0)) & 0xFF


def is_refused(error: BaseException) -> bool:
    """Whether SQLite did nothing, for a reason that may pass."""
    return _code(error) in _REFUSED


def commit_failure(raw: sqlite3.Connection, error: sqlite3.Error) -> StoreRefusedError | StoreUnknownError:
    """The error of a commit; a transaction that is still open is rolled back."""
    refused = is_refused(error)
    try:
        if raw.in_transaction:
            raw.execute("ROLLBACK")
    except sqlite3.Error:
        refused = False
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    if refused:
        return StoreRefusedError(f"the journal's database did not take a frame: {error} ({name})")
    return StoreUnknownError(f"the journal's database failed while it took a frame: {error} ({name})")


def open_failure(error: BaseException, path: Path) -> Exception:
    """The error of opening or reading the database at ``path``."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if _code(error) in _BROKEN:
        return CorruptJournalError(f"{path} is damaged or no SQLite database: {cause}")
    if is_refused(error):
        return StoreRefusedError(f"{path} cannot be used now: {cause}")
    return StoreUnknownError(f"{path} cannot be opened or read: {cause}")
