"""What the journals in SQL databases share: statements over the tables of the schema, and all the reading.

Reads are cut into pages, each its own short query, so that no reader holds a snapshot open: a snapshot would
keep SQLite from restarting its log and PostgreSQL from vacuuming. Frames are contiguous and never change but
for compaction, so pages fit together.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from .. import BodyPiece, CorruptJournalError, Frame, IndexFilter, IndexRow, schema

#: the one partition of a single writer
PARTITION = "main"
#: beyond every frame number
_END = 2**62
#: rows per query while walking frames with their texts
_PAGE_FRAMES = 128
#: frames (about as many as fit SQLite's cache), and frames with facts, per step while walking facts
_PAGE_RUN = 8192
_PAGE_FACTS = 512
#: numbers in one ``IN``
_PAGE_NUMBERS = 500

frames, bodies, writer, task_index = schema.frames, schema.bodies, schema.writer, schema.task_index

FRAME_COLUMNS = tuple(c.name for c in frames.columns)
BODY_COLUMNS = tuple(c.name for c in bodies.columns)
INDEX_COLUMNS = tuple(c.name for c in task_index.columns)

_index_columns = [task_index.c[name] for name in IndexRow.__struct_fields__]

LAST_FRAME_NO = sa.select(sa.func.coalesce(sa.func.max(frames.c.frame_no), sa.literal_column("0"))).scalar_subquery()

SELECT_TAIL = (
    sa.select(frames.c.frame_no, frames.c.first_seq, frames.c.count, frames.c.hash)
    .order_by(frames.c.frame_no.desc())
    .limit(1)
)
SELECT_EPOCH = sa.select(writer.c.epoch).where(writer.c.partition == PARTITION)

_SELECT_FRAMES = (
    sa.select(frames)
    .where(frames.c.frame_no >= sa.bindparam("first"), frames.c.frame_no <= sa.bindparam("last"))
    .order_by(frames.c.frame_no)
    .limit(sa.bindparam("rows", type_=sa.Integer))
)
_in_range = (frames.c.frame_no >= sa.bindparam("first"), frames.c.frame_no <= sa.bindparam("last"))
_SELECT_FACTS = (
    sa.select(frames.c.frame_no, frames.c.epoch, frames.c.first_seq, frames.c.count, frames.c.facts)
    .where(*_in_range, frames.c.facts != b"")
    .order_by(frames.c.frame_no)
    .limit(_PAGE_FACTS)
)
_SELECT_HEADERS = (
    sa.select(frames.c.frame_no, frames.c.epoch, frames.c.first_seq, frames.c.count, frames.c.facts)
    .where(*_in_range)
    .order_by(frames.c.frame_no)
)
_SUM_UP = sa.select(
    sa.func.count(),
    sa.func.min(frames.c.frame_no),
    sa.func.max(frames.c.frame_no),
    sa.func.min(frames.c.first_seq),
    sa.func.sum(frames.c.count),
).where(*_in_range)
_SELECT_NEXT = sa.select(sa.func.min(frames.c.frame_no)).where(frames.c.frame_no >= sa.bindparam("first"))
_SELECT_FRAMES_AT = (
    sa.select(frames).where(frames.c.frame_no.in_(sa.bindparam("numbers", expanding=True))).order_by(frames.c.frame_no)
)
_SELECT_BODY = (
    sa.select(bodies.c.piece, bodies.c.pieces, bodies.c.data)
    .where(bodies.c.owner == sa.bindparam("owner"), bodies.c.body_id == sa.bindparam("body_id"))
    .order_by(bodies.c.piece)
)
_SELECT_INDEX_ROW = sa.select(*_index_columns).where(task_index.c.task_id == sa.bindparam("task_id"))


def frame_source(*, lock_writer: bool) -> sa.Select[Any]:
    """The frame's values as a select with one row while this writer's epoch stands and the frame is next, else none.

    :param lock_writer: hold the writer's row, so that a new epoch cannot begin before the commit.
    """
    values = [sa.bindparam(name, type_=column.type) for name, column in frames.columns.items()]
    source = (
        sa.select(*values)
        .select_from(writer)
        .where(
            writer.c.partition == sa.bindparam("own_partition"),
            writer.c.epoch == sa.bindparam("own_epoch"),
            sa.bindparam("previous_no", type_=frames.c.frame_no.type) == LAST_FRAME_NO,
        )
    )
    return source.with_for_update(read=True, of=writer) if lock_writer else source


def frame_values(frame: Frame, own_epoch: int) -> dict[str, Any]:
    """Parameters of an insert from :func:`frame_source`."""
    values = {name: getattr(frame, name) for name in FRAME_COLUMNS}
    return {**values, "own_partition": PARTITION, "own_epoch": own_epoch, "previous_no": frame.frame_no - 1}


def body_values(piece: BodyPiece) -> dict[str, Any]:
    """Columns of a piece of a body."""
    return {name: getattr(piece, name) for name in BODY_COLUMNS}


def index_values(row: IndexRow) -> dict[str, Any]:
    """Columns of a row of the index."""
    return {name: getattr(row, name) for name in INDEX_COLUMNS}


class RelationalReader(abc.ABC):
    """The reading half of a store; any thread may call it, also while a commit runs, and before ``open``."""

    @abc.abstractmethod
    def _reader(self) -> sa.Engine:
        """Connections to read with."""

    @abc.abstractmethod
    def _read_failure(self, error: DBAPIError) -> Exception:
        """The error that a caller gets for a failed read."""

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        try:
            with self._reader().connect() as connection:
                yield connection
        except DBAPIError as error:
            raise self._read_failure(error) from error

    def frames(self, first: int, last: int | None = None) -> Iterator[Frame]:
        end = _END if last is None else last
        while first <= end:
            with self._reading() as connection:
                rows = connection.execute(_SELECT_FRAMES, {"first": first, "last": end, "rows": _PAGE_FRAMES}).all()
            for row in rows:
                yield _frame(row)
            if len(rows) < _PAGE_FRAMES:
                return
            first = rows[-1][0] + 1

    def facts(self, first: int, last: int | None = None) -> Iterator[tuple[int, int, int, int, bytes]]:
        end = _END if last is None else last
        while first <= end:
            upto = min(first + _PAGE_RUN - 1, end)
            with self._reading() as connection:
                summed = connection.execute(_SUM_UP, {"first": first, "last": upto}).one()
                if not summed[0]:
                    found = connection.execute(_SELECT_NEXT, {"first": first}).scalar()
                    if found is None:
                        return
                    first = found
                    continue
                # what is committed from here on is beyond the last frame that was counted
                upto = summed[2]
                rows = connection.execute(_SELECT_FACTS, {"first": first, "last": upto}).all()
                if len(rows) == _PAGE_FACTS:
                    upto = rows[-1][0]
                    summed = connection.execute(_SUM_UP, {"first": first, "last": upto}).one()
                gap = summed[0] != upto - summed[1] + 1
                if gap:  # which the caller has to see
                    rows = connection.execute(_SELECT_HEADERS, {"first": first, "last": upto}).all()
            page = [(row[0], row[1], row[2], row[3], row[4]) for row in rows]
            yield from page if gap else _with_runs(page, summed[1], upto, summed[3], int(summed[4]))
            first = upto + 1

    def frames_at(self, numbers: Sequence[int]) -> list[Frame]:
        found: list[Frame] = []
        ordered = sorted(set(numbers))
        for at in range(0, len(ordered), _PAGE_NUMBERS):
            with self._reading() as connection:
                page = connection.execute(_SELECT_FRAMES_AT, {"numbers": ordered[at : at + _PAGE_NUMBERS]})
                found += [_frame(row) for row in page]
        return found

    def body(self, owner: str, body_id: str) -> bytes | None:
        with self._reading() as connection:
            rows = connection.execute(_SELECT_BODY, {"owner": owner, "body_id": body_id}).all()
        if not rows:
            return None
        if [row[0] for row in rows] != list(range(rows[0][1])):
            msg = f"body {body_id} has {len(rows)} of its {rows[0][1]} pieces"
            raise CorruptJournalError(msg)
        return b"".join(row[2] for row in rows)

    def index_row(self, task_id: str) -> IndexRow | None:
        with self._reading() as connection:
            row = connection.execute(_SELECT_INDEX_ROW, {"task_id": task_id}).one_or_none()
        return None if row is None else _index_row(row)

    def index_page(self, wanted: IndexFilter) -> list[IndexRow]:
        query = sa.select(*_index_columns).order_by(task_index.c.task_no.desc()).limit(wanted.limit)
        for name in ("owner", "state", "model_ref", "session_id"):
            value = getattr(wanted, name)
            if value:
                query = query.where(task_index.c[name] == value)
        if wanted.before_no:
            query = query.where(task_index.c.task_no < wanted.before_no)
        with self._reading() as connection:
            return [_index_row(row) for row in connection.execute(query)]


_Facts = tuple[int, int, int, int, bytes]


def _with_runs(rows: Sequence[_Facts], first: int, last: int, seq: int, events: int) -> Iterator[_Facts]:
    """Frames with facts, and between them the runs of frames without; all of them are contiguous.

    :param seq: of the first event in frame ``first``.
    :param events: in the frames ``first`` to ``last``.
    """
    end_seq = seq + events
    for row in rows:
        if row[0] > first:
            yield row[0] - 1, 0, seq, row[2] - seq, b""
        yield row
        first, seq = row[0] + 1, row[2] + row[3]
    if last >= first:
        yield last, 0, seq, end_seq - seq, b""


def _frame(row: sa.Row[Any]) -> Frame:
    """A frame as stored. Bytes that somebody's edit turned into a text or number are bytes again, so that they can be
    compared with their hash."""
    columns = tuple(row)
    if all(type(stored) is bytes for stored in columns[4:]):
        return Frame(*columns)
    return Frame(*columns[:4], *[c if type(c) is bytes else str(c).encode() for c in columns[4:]])


def _index_row(row: sa.Row[Any]) -> IndexRow:
    return IndexRow(**dict(zip(IndexRow.__struct_fields__, row, strict=True)))
