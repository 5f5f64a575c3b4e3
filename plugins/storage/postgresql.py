"""The journal in PostgreSQL: one writer at a time, held by an advisory lock on the writer's own connection.

Commit and disk are apart, as on SQLite: the writer's session commits with ``synchronous_commit = off``, so that a
commit answers when it is visible and safe from a killed orchestrator; :meth:`PostgresqlStore.sync` then commits a
tiny transaction of its own with ``synchronous_commit = on``. PostgreSQL's log is one sequence, so everything that
was committed before is on disk (and on synchronous standbys) when that answers. Should PostgreSQL itself crash in
between, the end of what was streamed is lost, never what was synced.

The frame's statement reads the writer's row ``FOR SHARE``: an epoch cannot change between the check and the commit.
Needs a session of its own: a pooler in transaction mode would lose the lock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as dialect
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.pool import QueuePool, StaticPool

from ... import migrations
from .. import (
    BodyPiece,
    CommitUnit,
    ConfigError,
    CorruptJournalError,
    FencedError,
    JournalLockedError,
    JournalStore,
    StoreFactory,
    StoreRefusedError,
    StoreUnknownError,
    Tail,
    hookimpl,
)
from ._head import HeadFile, read_head
from ._relational import (
    FRAME_COLUMNS,
    INDEX_COLUMNS,
    PARTITION,
    SELECT_EPOCH,
    SELECT_TAIL,
    RelationalReader,
    bodies,
    body_values,
    frame_source,
    frame_values,
    frames,
    index_values,
    task_index,
    writer,
)

T = TypeVar("T")

_OPTIONS: dict[str, Any] = {"head_path": "", "lock_timeout_ms": 5000, "connect_timeout_s": 5}
#: how long one waits for a writer's session to end before another process is taken to hold the journal
_LEAVING_MS = 1000
_LOCK_NOT_AVAILABLE = "55P03"
#: SQLSTATEs, or their first two characters, after which nothing was written and another try may do
_REFUSED = ("53", "40", "25006", "42501", "55006", "55P03", "57014")

_upsert = dialect.insert(task_index)
_INSERT_FRAME = (
    sa.insert(frames)
    .from_select(FRAME_COLUMNS, frame_source(lock_writer=True))
    .execution_options(preserve_rowcount=True)
)
_INSERT_BODY = dialect.insert(bodies).on_conflict_do_nothing()
_UPSERT_INDEX = _upsert.on_conflict_do_update(
    index_elements=["task_no"], set_={n: _upsert.excluded[n] for n in INDEX_COLUMNS if n != "task_no"}
)
_UPDATE_TEXTS = sa.update(frames).values(texts=sa.bindparam("new")).where(frames.c.frame_no == sa.bindparam("number"))
#: per schema, since one database may hold several journals
_LOCK_KEY = f"hashtextextended('llama_orch:{PARTITION}:' || current_schema(), 0)"
_TRY_LOCK = sa.text(f"SELECT pg_try_advisory_lock({_LOCK_KEY})")
_WAIT_LOCK = sa.text(f"SELECT pg_advisory_lock({_LOCK_KEY})")
_WHO_AM_I = sa.text("SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()")
_END_BACKEND = sa.text(
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = :pid AND backend_start = :backend_start"
)
#: writes a few bytes of log, so that the commit has something to wait for
_FLUSH = sa.text("SELECT pg_logical_emit_message(true, 'llama_orch', '')")
_SIZE = sa.text(
    "SELECT coalesce(sum(pg_total_relation_size(to_regclass(name))), 0) FROM unnest(:names ::text[]) AS name"
)


class PostgresqlStore(RelationalReader):
    """A :class:`~llama_orch.plugins.JournalStore` in a PostgreSQL database.

    :param url: ``postgresql://user@host/database``.
    :param options: ``head_path`` (file for the head note; without it there is none), ``lock_timeout_ms`` (how long
        a commit, and a reopening, wait for a lock), ``connect_timeout_s``.
    :raises ConfigError: an option is not known, or psycopg is not installed.
    """

    commits_inline = False

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        for name in options:
            if name not in _OPTIONS:
                msg = f"the postgresql store has no option {name!r}"
                raise ConfigError(msg, field=name, got=options[name], remedy=f"It takes {', '.join(_OPTIONS)}.")
        chosen = {**_OPTIONS, **options}
        self._url = sa.make_url(url).set(drivername="postgresql+psycopg")
        self._lock_timeout_ms: int = chosen["lock_timeout_ms"]
        self._connect_timeout_s: int = chosen["connect_timeout_s"]
        self._head_path = Path(chosen["head_path"]) if chosen["head_path"] else None
        self._head: HeadFile | None = None
        self._epoch = 0
        self._backend: dict[str, Any] = {}
        self._engines: list[sa.Engine] = []
        self._writer: sa.Connection | None = None
        self._read_engine: sa.Engine | None = None
        #: held by whoever uses or replaces the syncer's connection and the head file
        self._sync_lock = threading.Lock()
        self._syncer: sa.Connection | None = None

    # --- life ---------------------------------------------------------------------------------------------------

    def open(self) -> Tail:
        try:
            connection = self._connect()
            if not self._attempt(lambda: self._take_lock(connection)):
                msg = f"another process holds the journal in {self._place()}"
                raise JournalLockedError(msg, remedy="Stand by, or use the server that runs.")
            self._attempt(lambda: self._check_schema(connection))
            return self._attempt(lambda: self._begin_epoch(connection))
        except BaseException:
            self.close()
            raise

    def reopen(self) -> Tail:
        self._drop_connections()
        connection = self._connect()

        def lock() -> None:
            held = connection.execute(SELECT_EPOCH).scalar()
            if held != self._epoch:
                raise _fenced(held, self._epoch)
            # our own old session may still hold the lock, and may even still be at its commit
            if self._backend:
                connection.execute(_END_BACKEND, self._backend)
            connection.execute(_WAIT_LOCK)

        self._attempt(lock)
        return self._attempt(lambda: self._begin_epoch(connection))

    def close(self) -> None:
        self._drop_connections()
        with self._sync_lock:
            if self._head is not None:
                self._head.close()
                self._head = None

    def migrate(self) -> None:
        """Bring the schema up to date, under the writer's lock. :raises JournalLockedError: a server runs."""
        try:
            connection = self._connect()
            if not self._attempt(lambda: connection.execute(_TRY_LOCK).scalar()):
                msg = f"a server uses the journal in {self._place()}"
                raise JournalLockedError(msg, remedy="Stop it, migrate, and start it again.")
            self._attempt(lambda: self._upgrade(connection))
        finally:
            self.close()

    def _take_lock(self, connection: sa.Connection) -> bool:
        """Whether the lock is ours now. The session of a writer that has just closed may still be on its way out."""
        if connection.execute(_TRY_LOCK).scalar():
            return True
        connection.exec_driver_sql(f"SET lock_timeout = {_LEAVING_MS}")
        try:
            connection.execute(_WAIT_LOCK)
        except OperationalError as error:
            if getattr(error.orig, "sqlstate", None) != _LOCK_NOT_AVAILABLE:
                raise
            return False
        finally:
            connection.exec_driver_sql(f"SET lock_timeout = {self._lock_timeout_ms}")
        return True

    def _begin_epoch(self, connection: sa.Connection) -> Tail:
        connection.exec_driver_sql("BEGIN")
        connection.exec_driver_sql("SET LOCAL synchronous_commit = on")
        held = connection.execute(SELECT_EPOCH.with_for_update()).scalar()
        if self._epoch and held != self._epoch:
            connection.exec_driver_sql("ROLLBACK")
            raise _fenced(held, self._epoch)
        epoch = (held or 0) + 1
        statement = sa.insert(writer) if held is None else sa.update(writer).where(writer.c.partition == PARTITION)
        connection.execute(statement.values(partition=PARTITION, epoch=epoch))
        last = connection.execute(SELECT_TAIL).one_or_none()
        connection.exec_driver_sql("COMMIT")
        self._backend = dict(connection.execute(_WHO_AM_I).one()._mapping)
        with self._sync_lock:
            if self._head is None and self._head_path is not None:
                self._head = HeadFile(self._head_path)
        self._writer, self._epoch = connection, epoch
        if last is None:
            return Tail(epoch=epoch, frame_no=0, next_seq=1, hash=bytes(32))
        return Tail(epoch=epoch, frame_no=last[0], next_seq=last[1] + last[2], hash=last[3])

    def _check_schema(self, connection: sa.Connection) -> None:
        found = migrations.current(connection)
        if found == migrations.HEAD:
            return
        if found is None and not sa.inspect(connection).has_table(frames.name):
            self._upgrade(connection)
            return
        if found not in migrations.revisions():
            msg = f"the journal in {self._place()} has the schema {found}, which this version does not know"
            raise CorruptJournalError(msg, remedy="Open it with the version that wrote it, or a newer one.")
        msg = f"the journal in {self._place()} has the schema {found}, this version needs {migrations.HEAD}"
        raise ConfigError(msg, field="journal.url", remedy="Run `llama-orch journal migrate`, then start again.")

    def _upgrade(self, connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN")
        migrations.upgrade(connection)
        connection.exec_driver_sql("COMMIT")

    def _connect(self) -> sa.Connection:
        """A session of its own for the writer; kept in the list of what :meth:`close` ends."""
        engine = self._engine(durable=False, poolclass=StaticPool)
        return self._attempt(engine.connect)

    def _engine(self, *, durable: bool, **pool: Any) -> sa.Engine:
        settings = {
            "synchronous_commit": "on" if durable else "off",
            "default_transaction_isolation": "read\\ committed",
            "lock_timeout": str(self._lock_timeout_ms),
        }
        given = self._url.normalized_query.get("options", ())
        try:
            engine = sa.create_engine(
                self._url.difference_update_query(["options"]),
                isolation_level="AUTOCOMMIT",
                connect_args={
                    "connect_timeout": self._connect_timeout_s,
                    "application_name": "llama-orch",
                    "options": " ".join([*given, *(f"-c {name}={value}" for name, value in settings.items())]),
                    # a network that went silent is an error after this long, in milliseconds
                    "tcp_user_timeout": 20_000,
                    "keepalives_idle": 5,
                },
                **pool,
            )
        except ModuleNotFoundError as error:
            msg = "the PostgreSQL driver is not installed"
            raise ConfigError(msg, field="journal.url", remedy="pip install 'llama-orch[postgresql]'") from error
        self._engines.append(engine)
        return engine

    def _drop_connections(self) -> None:
        self._writer = None
        self._read_engine = None
        with self._sync_lock:
            self._syncer = None
            for engine in self._engines:
                engine.dispose()
            self._engines.clear()

    def _place(self) -> str:
        return self._url.render_as_string(hide_password=True)

    # --- writing ------------------------------------------------------------------------------------------------

    def commit(self, unit: CommitUnit) -> None:
        connection = self._writer
        if connection is None:
            msg = "the journal is not open"
            raise StoreUnknownError(msg)
        values = frame_values(unit.frame, self._epoch)
        try:
            if not (unit.bodies or unit.index or unit.rewrites):
                # a single statement is its own transaction
                inserted = connection.execute(_INSERT_FRAME, values).rowcount
            else:
                inserted = self._commit_all(connection, unit, values)
        except DBAPIError as error:
            raise self._commit_failure(connection, error) from error
        if inserted != 1:
            msg = f"frame {unit.frame.frame_no} of epoch {self._epoch} was refused: another writer has taken over"
            raise FencedError(msg)

    def keep(self, pieces: Sequence[BodyPiece]) -> None:
        try:
            with self._reading() as connection:
                connection.execute(_INSERT_BODY, [body_values(piece) for piece in pieces])
                connection.commit()
        except DBAPIError as error:
            msg = f"PostgreSQL failed while it took a body: {error.orig}"
            raise StoreUnknownError(msg) from error

    def _commit_all(self, connection: sa.Connection, unit: CommitUnit, values: dict[str, Any]) -> int:
        connection.exec_driver_sql("BEGIN")
        if unit.bodies:
            connection.execute(_INSERT_BODY, [body_values(piece) for piece in unit.bodies])
        inserted = connection.execute(_INSERT_FRAME, values).rowcount
        if inserted != 1:
            connection.exec_driver_sql("ROLLBACK")
            return inserted
        for row in unit.index:
            connection.execute(_UPSERT_INDEX, index_values(row))
        for number, texts in unit.rewrites:
            connection.execute(_UPDATE_TEXTS, {"new": texts, "number": number})
        connection.exec_driver_sql("COMMIT")
        return inserted

    def _commit_failure(self, connection: sa.Connection, error: DBAPIError) -> Exception:
        state = _sqlstate(error)
        if error.connection_invalidated or not state.startswith((*_REFUSED, "23505")):
            return StoreUnknownError(f"PostgreSQL failed while it took a frame: {error.orig} ({state or 'no answer'})")
        try:
            connection.exec_driver_sql("ROLLBACK")
        except DBAPIError:
            return StoreUnknownError(f"PostgreSQL failed while it took a frame: {error.orig} ({state})")
        if state == "23505":
            return FencedError(f"another writer's rows are in the journal: {error.orig}")
        return StoreRefusedError(f"PostgreSQL did not take a frame: {error.orig} ({state})")

    def sync(self, target_hash: bytes, seq: int) -> None:
        with self._sync_lock:
            try:
                if self._syncer is None:
                    self._syncer = self._engine(durable=True, poolclass=StaticPool).connect()
                self._syncer.execute(_FLUSH)
                if self._head is not None:
                    self._head.write(seq, target_hash)
            except (DBAPIError, OSError) as error:
                self._syncer = None
                msg = f"PostgreSQL did not say that the journal is on disk: {error}"
                raise StoreUnknownError(msg) from error

    def maintain(self) -> None:
        with self._sync_lock:
            try:
                if self._head is not None:
                    self._head.sync()
            except OSError as error:
                msg = f"the head file cannot be written: {error.strerror}"
                raise StoreUnknownError(msg) from error

    def _attempt(self, action: Callable[[], T]) -> T:
        """Run an action of opening; a failure of the database leaves open what is there."""
        try:
            return action()
        except DBAPIError as error:
            msg = f"the journal in {self._place()} cannot be opened: {error.orig}"
            raise StoreUnknownError(msg) from error

    # --- reading ------------------------------------------------------------------------------------------------

    def head_note(self) -> tuple[int, bytes] | None:
        return read_head(self._head_path) if self._head_path is not None else None

    def size_bytes(self) -> int:
        names = [table.name for table in (frames, bodies, writer, task_index)]
        with self._reading() as connection:
            return int(connection.execute(_SIZE, {"names": names}).scalar_one())

    def _reader(self) -> sa.Engine:
        engine = self._read_engine
        if engine is None:
            engine = self._read_engine = self._engine(
                durable=False, poolclass=QueuePool, pool_size=4, max_overflow=12, pool_pre_ping=True
            )
        return engine

    def _read_failure(self, error: DBAPIError) -> Exception:
        return StoreRefusedError(f"the journal in {self._place()} cannot be read now: {error.orig}")


def _sqlstate(error: DBAPIError) -> str:
    return str(getattr(error.orig, "sqlstate", None) or "")


def _fenced(held: int | None, own: int) -> FencedError:
    return FencedError(f"the journal is in epoch {held}, this writer began {own}: another process has taken over")


def _factory(url: str, options: Mapping[str, Any]) -> JournalStore:
    return PostgresqlStore(url, options)


@hookimpl
def llama_orch_journal_store() -> tuple[tuple[str, ...], StoreFactory]:
    """PostgreSQL, by the URL scheme ``postgresql``."""
    return ("postgresql", "postgres"), _factory
