"""The journal in SQLite: one file on a local disk, one writer, commits that are cheap enough for the event loop.

Commit and disk are apart: a commit writes to the write-ahead log without waiting for the disk (``synchronous=
NORMAL``), :meth:`SqliteStore.sync` waits for it in the syncer's thread. The frame is one statement, which holds
the fence: the epoch must still be this writer's and the frame must be the next one. Statements are declared in
SQLAlchemy Core and compiled once; the commit runs the compiled SQL on the DBAPI connection that SQLAlchemy made,
since Core's execution would cost as much again as SQLite's (``benchmarks/journal.py``).

SQLite drops a process's locks on the database file when *any* descriptor of that file is closed in the process;
so nothing here opens that file but SQLite itself. The log (``-wal``) carries no locks: the syncer has its own
descriptor of it.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import QueuePool, StaticPool

from ... import migrations
from .. import (
    BodyPiece,
    CommitUnit,
    ConfigError,
    CorruptJournalError,
    FencedError,
    JournalStore,
    StoreFactory,
    StoreRefusedError,
    StoreUnknownError,
    Tail,
    hookimpl,
)
from ._files import FileLock, identity, network_file_system, rescue, sync_directory
from ._head import HeadFile, read_head
from ._relational import PARTITION, SELECT_EPOCH, SELECT_TAIL, RelationalReader, writer
from ._sqlite_errors import commit_failure, is_refused, open_failure
from ._sqlite_statements import (
    DELETE_FRAME,
    INSERT_BODY,
    INSERT_FRAME,
    REPEAT_FRAME,
    SELECT_FRAME,
    UPSERT_INDEX,
    body_row,
    frame_row,
    index_row,
)

_OPTIONS = {
    "wal_bytes": 64 * 1024 * 1024,
    # measured: half the log's bytes of 4096, at the same time per commit
    "page_bytes": 1024,
    "busy_timeout_ms": 2,
}


class SqliteStore(RelationalReader):
    """A :class:`~llama_orch.plugins.JournalStore` in an SQLite file.

    :param url: ``sqlite:///relative`` or ``sqlite:////absolute``.
    :param options: ``wal_bytes`` (the log's size above which the writer restarts it), ``page_bytes`` (of a new
        file), ``busy_timeout_ms`` (how long a commit waits for another connection's lock).
    :raises ConfigError: the URL names no file, or an option is not known.
    """

    commits_inline = True

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        database = sa.make_url(url).database
        if not database or database == ":memory:" or database.startswith("file:"):
            msg = "journal.url names no file"
            raise ConfigError(msg, field="journal.url", got=url, remedy="Use sqlite:////absolute/path/journal.db.")
        for name in options:
            if name not in _OPTIONS:
                msg = f"the sqlite store has no option {name!r}"
                raise ConfigError(msg, field=name, got=options[name], remedy=f"It takes {', '.join(_OPTIONS)}.")
        chosen = {**_OPTIONS, **options}
        self._path = Path(database).absolute()
        self._wal_path = Path(f"{self._path}-wal")
        self._head_path = Path(f"{self._path}.head")
        self._wal_bytes: int = chosen["wal_bytes"]
        self._page_bytes: int = chosen["page_bytes"]
        self._busy_timeout_ms: int = chosen["busy_timeout_ms"]
        self._lock = FileLock(Path(f"{self._path}.lock"))
        self._epoch = 0
        self._engines: list[sa.Engine] = []
        self._raw: sqlite3.Connection | None = None
        self._read_engine: sa.Engine | None = None
        self._checkpointer: sqlite3.Connection | None = None
        #: held by whoever uses or replaces the descriptors below
        self._files = threading.Lock()
        self._wal_fd = -1
        self._identity: tuple[int, int] | None = None
        self._head: HeadFile | None = None
        self._restart_due = False
        self._sync_failed = False

    # --- life ---------------------------------------------------------------------------------------------------

    def open(self) -> Tail:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._require_local_disk()
            self._lock.take()
            if not self._path.exists():
                os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            return self._begin_epoch()
        except OSError as error:
            self.close()
            msg = f"{error.filename or self._path} cannot be opened for writing: {error.strerror}"
            raise StoreRefusedError(
                msg, remedy="Make journal.url or data_dir a place where files can be written."
            ) from error
        except BaseException:
            self.close()
            raise

    def _require_local_disk(self) -> None:
        mounts = Path("/proc/self/mountinfo")
        kind = network_file_system(mounts.read_text() if mounts.exists() else "", self._path.parent.resolve())
        if kind:
            msg = f"{self._path.parent} is on a network file system ({kind}), where SQLite's locks do not hold"
            raise ConfigError(msg, field="journal.url", remedy="Use a local disk, or PostgreSQL.")

    def reopen(self) -> Tail:
        with self._files:
            self._save_what_is_open()
            self._drop_connections()
        try:
            return self._begin_epoch()
        except CorruptJournalError as error:
            msg = f"the journal cannot be opened again: {error.message}"
            raise StoreUnknownError(msg) from error
        except OSError as error:
            self._sync_failed = True
            msg = f"the journal cannot be opened again: {error.strerror}"
            raise StoreUnknownError(msg) from error

    def _save_what_is_open(self) -> None:
        """Before the descriptors are closed: see that what only they still reach is on disk under its name.

        :raises StoreUnknownError: it is not; nothing was closed.
        """
        raw = self._raw
        if raw is None:
            return
        there = identity(self._path)
        if there not in (None, self._identity):
            # With this file the log that stands beside it would make a mixture of two databases.
            msg = f"another file has taken the place of {self._path}"
            raise StoreUnknownError(
                msg, remedy="Put the right file back; to go on with the other one, restart the server."
            )
        try:
            if there is None:
                rescue(raw, self._path)
            elif self._sync_failed or identity(self._wal_path) != _identity_of(self._wal_fd):
                # What the disk refused once, the kernel may take for written: write it again, into the database.
                busy, _, _ = raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                if busy:
                    msg = "a reader keeps the journal's log from being copied into its database"
                    raise StoreUnknownError(msg)
        except (OSError, sqlite3.Error) as error:
            msg = f"what the journal holds cannot be saved to {self._path}: {error}"
            raise StoreUnknownError(msg) from error
        self._sync_failed = False

    def close(self) -> None:
        with self._files:
            self._drop_connections()
            if self._head is not None:
                self._head.close()
                self._head = None
        self._lock.release()

    def _begin_epoch(self) -> Tail:
        """Open everything, bring the schema up to date and begin a new epoch, on disk when this returns."""
        try:
            connection = self._engine(self._connect_writer).connect()
            raw = _dbapi(connection)
            if migrations.current(connection) != migrations.HEAD:
                self._migrate(connection)
            raw.execute("BEGIN IMMEDIATE")
            held = connection.execute(SELECT_EPOCH).scalar()
            if self._epoch and held != self._epoch:
                raw.execute("ROLLBACK")
                msg = f"the journal is in epoch {held}, this writer began {self._epoch}: another process took over"
                raise FencedError(msg)
            epoch = (held or 0) + 1
            statement = sa.insert(writer) if held is None else sa.update(writer).where(writer.c.partition == PARTITION)
            connection.execute(statement.values(partition=PARTITION, epoch=epoch))
            last = connection.execute(SELECT_TAIL).one_or_none()
            raw.execute("COMMIT")
        except (sqlite3.Error, DBAPIError) as error:
            raise open_failure(error, self._path) from error
        with self._files:
            self._identity = identity(self._path)
            self._wal_fd = os.open(self._wal_path, os.O_RDWR | os.O_CLOEXEC)
            os.fdatasync(self._wal_fd)
            sync_directory(self._path.parent)
            if self._head is None:
                self._head = HeadFile(self._head_path)
        self._raw, self._epoch = raw, epoch
        if last is None:
            return Tail(epoch=epoch, frame_no=0, next_seq=1, hash=bytes(32))
        return Tail(epoch=epoch, frame_no=last[0], next_seq=last[1] + last[2], hash=last[3])

    def _migrate(self, connection: sa.Connection) -> None:
        known = migrations.current(connection)
        tables = set(sa.inspect(connection).get_table_names())
        if known is None and tables:
            msg = f"{self._path} is a database, but no journal: it has the tables {', '.join(sorted(tables))}"
            raise CorruptJournalError(msg, remedy="Name another file in journal.url.")
        from alembic.util import CommandError

        _dbapi(connection).execute("BEGIN IMMEDIATE")
        try:
            migrations.upgrade(connection)
        except CommandError as error:
            msg = f"{self._path} has the schema {known}, which this version does not know"
            raise CorruptJournalError(msg, remedy="Open it with the version that wrote it, or a newer one.") from error
        connection.commit()

    def _engine(self, connect: Any, **pool: Any) -> sa.Engine:
        pool = pool or {"poolclass": StaticPool}
        engine = sa.create_engine("sqlite://", creator=connect, isolation_level="AUTOCOMMIT", **pool)
        self._engines.append(engine)
        return engine

    def _connect_writer(self) -> sqlite3.Connection:
        raw = sqlite3.connect(f"{self._path.as_uri()}?mode=rw", uri=True, isolation_level=None, check_same_thread=False)
        raw.execute(f"PRAGMA busy_timeout = {self._busy_timeout_ms}")
        raw.execute(f"PRAGMA page_size = {self._page_bytes}")
        mode = raw.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raw.close()
            msg = f"SQLite cannot keep a write-ahead log beside {self._path} (mode {mode})"
            raise ConfigError(msg, field="journal.url", remedy="Put the journal on a local disk.")
        raw.execute("PRAGMA synchronous = NORMAL")
        raw.execute("PRAGMA wal_autocheckpoint = 0")
        return raw

    def _connect_reader(self) -> sqlite3.Connection:
        raw = sqlite3.connect(f"{self._path.as_uri()}?mode=ro", uri=True, isolation_level=None, check_same_thread=False)
        raw.execute("PRAGMA busy_timeout = 2000")
        return raw

    def _drop_connections(self) -> None:
        self._raw = None
        if self._checkpointer is not None:
            self._checkpointer.close()
            self._checkpointer = None
        for engine in self._engines:
            engine.dispose()
        self._engines.clear()
        self._read_engine = None
        if self._wal_fd >= 0:
            os.close(self._wal_fd)
            self._wal_fd = -1

    # --- writing ------------------------------------------------------------------------------------------------

    def commit(self, unit: CommitUnit) -> None:
        raw = self._raw
        if raw is None:
            msg = "the journal is not open"
            raise StoreUnknownError(msg)
        if self._restart_due:
            self._restart_log(raw)
        frame = unit.frame
        try:
            if not (unit.bodies or unit.index or unit.rewrites):
                # a single statement is its own transaction
                inserted = raw.execute(INSERT_FRAME, frame_row(frame, self._epoch)).rowcount
            else:
                inserted = self._commit_all(raw, unit)
        except sqlite3.Error as error:
            raise commit_failure(raw, error) from error
        if inserted != 1:
            msg = (
                f"frame {frame.frame_no} of epoch {self._epoch} was refused: another writer has taken the journal over"
            )
            raise FencedError(msg)

    def keep(self, pieces: Sequence[BodyPiece]) -> None:
        raw = self._raw
        if raw is None:
            msg = "the journal is not open"
            raise StoreUnknownError(msg)
        try:
            raw.execute("BEGIN IMMEDIATE")
            for piece in pieces:
                raw.execute(INSERT_BODY, body_row(piece))
            raw.execute("COMMIT")
        except sqlite3.Error as error:
            raise commit_failure(raw, error) from error

    def _commit_all(self, raw: sqlite3.Connection, unit: CommitUnit) -> int:
        raw.execute("BEGIN IMMEDIATE")
        for piece in unit.bodies:
            raw.execute(INSERT_BODY, body_row(piece))
        inserted = raw.execute(INSERT_FRAME, frame_row(unit.frame, self._epoch)).rowcount
        if inserted != 1:
            raw.execute("ROLLBACK")
            return inserted
        for row in unit.index:
            raw.execute(UPSERT_INDEX, index_row(row))
        for number, texts in unit.rewrites:
            # An UPDATE would leave the row's old page as empty as it makes it; this way SQLite joins such pages.
            row = raw.execute(SELECT_FRAME, (number,)).fetchone()
            raw.execute(DELETE_FRAME, (number,))
            raw.execute(REPEAT_FRAME, (*row[:-1], texts))
        raw.execute("COMMIT")
        return inserted

    def _restart_log(self, raw: sqlite3.Connection) -> None:
        """Begin the log again from its start; readers in the way mean another try later."""
        self._restart_due = False
        try:
            raw.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
        except sqlite3.Error as error:
            if not is_refused(error):
                raise commit_failure(raw, error) from error

    def sync(self, target_hash: bytes, seq: int) -> None:
        with self._files:
            self._check_files()
            try:
                os.fdatasync(self._wal_fd)
            except OSError as error:
                self._sync_failed = True
                msg = f"the disk did not take the journal's log: {error.strerror}"
                raise StoreUnknownError(msg) from error
            if self._head is not None:
                with contextlib.suppress(OSError):  # the note may lag behind; the journal is on disk without it
                    self._head.write(seq, target_hash)

    def maintain(self) -> None:
        with self._files:
            self._check_files()
            try:
                if self._head is not None:
                    self._head.sync()
                if self._checkpointer is None:
                    self._checkpointer = self._connect_writer()
                page_bytes: int = self._checkpointer.execute("PRAGMA page_size").fetchone()[0]
                if self._copy_log(self._checkpointer) * page_bytes > self._wal_bytes:
                    # Copy what came meanwhile too, so that the writer finds little left when it begins the log anew.
                    self._copy_log(self._checkpointer)
                    self._restart_due = True
            except (OSError, sqlite3.Error) as error:
                msg = f"the journal's log cannot be copied into its database: {error}"
                raise (StoreRefusedError(msg) if is_refused(error) else StoreUnknownError(msg)) from error

    @staticmethod
    def _copy_log(connection: sqlite3.Connection) -> int:
        """Copy what the log holds into the database, beside readers and the writer. Answers the log's pages."""
        pages: int = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1]
        return pages

    def _check_files(self) -> None:
        """:raises StoreUnknownError: the files that are open are no longer those under the journal's names."""
        if self._wal_fd < 0:
            msg = "the journal is not open"
            raise StoreUnknownError(msg)
        for path, opened in ((self._path, self._identity), (self._wal_path, _identity_of(self._wal_fd))):
            there = identity(path)
            if there != opened:
                msg = f"{path} is gone" if there is None else f"another file has taken the place of {path}"
                raise StoreUnknownError(msg)

    # --- reading ------------------------------------------------------------------------------------------------

    def head_note(self) -> tuple[int, bytes] | None:
        return read_head(self._head_path)

    def size_bytes(self) -> int:
        return sum(path.stat().st_size for path in (self._path, self._wal_path) if path.exists())

    def _reader(self) -> sa.Engine:
        engine = self._read_engine
        if engine is None:
            engine = self._read_engine = self._engine(
                self._connect_reader, poolclass=QueuePool, pool_size=4, max_overflow=28
            )
        return engine

    def _read_failure(self, error: DBAPIError) -> Exception:
        return open_failure(error, self._path)


def _identity_of(fd: int) -> tuple[int, int]:
    mine = os.fstat(fd)
    return mine.st_dev, mine.st_ino


def _dbapi(connection: sa.Connection) -> sqlite3.Connection:
    raw = connection.connection.driver_connection
    assert isinstance(raw, sqlite3.Connection)
    return raw


def _factory(url: str, options: Mapping[str, Any]) -> JournalStore:
    return SqliteStore(url, options)


@hookimpl
def llama_orch_journal_store() -> tuple[tuple[str, ...], StoreFactory]:
    """SQLite, by the URL scheme ``sqlite``."""
    return ("sqlite",), _factory
