"""The SQLite store's writing statements: declared in SQLAlchemy Core, compiled once, run on the DBAPI connection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite as dialect

from .. import BodyPiece, Frame, IndexRow
from ._relational import (
    BODY_COLUMNS,
    FRAME_COLUMNS,
    INDEX_COLUMNS,
    PARTITION,
    bodies,
    frame_source,
    frames,
    task_index,
)


def compiled(statement: sa.ClauseElement, names: Sequence[str]) -> str:
    """SQL of a statement whose positional parameters are ``names``, in that order."""
    compiled = statement.compile(dialect=dialect.dialect(paramstyle="qmark"))
    positions: list[str] = getattr(compiled, "positiontup", None) or []
    if positions != list(names):
        msg = f"parameters are {positions}, expected {list(names)}"
        raise AssertionError(msg)
    return str(compiled)


_upsert = dialect.insert(task_index)
INSERT_FRAME = compiled(
    dialect.insert(frames).from_select(FRAME_COLUMNS, frame_source(lock_writer=False)),
    [*FRAME_COLUMNS, "own_partition", "own_epoch", "previous_no"],
)
INSERT_BODY = compiled(dialect.insert(bodies).on_conflict_do_nothing(), BODY_COLUMNS)
UPSERT_INDEX = compiled(
    _upsert.on_conflict_do_update(
        index_elements=["task_no"], set_={n: _upsert.excluded[n] for n in INDEX_COLUMNS if n != "task_no"}
    ),
    INDEX_COLUMNS,
)
SELECT_FRAME = compiled(sa.select(frames).where(frames.c.frame_no == sa.bindparam("number")), ["number"])
DELETE_FRAME = compiled(sa.delete(frames).where(frames.c.frame_no == sa.bindparam("number")), ["number"])
REPEAT_FRAME = compiled(sa.insert(frames), FRAME_COLUMNS)


def frame_row(frame: Frame, own_epoch: int) -> tuple[Any, ...]:
    """Parameters of :data:`INSERT_FRAME`."""
    return (
        frame.frame_no,
        frame.epoch,
        frame.first_seq,
        frame.count,
        frame.prev_hash,
        frame.hash,
        frame.facts,
        frame.texts,
        PARTITION,
        own_epoch,
        frame.frame_no - 1,
    )


def body_row(piece: BodyPiece) -> tuple[Any, ...]:
    """Parameters of :data:`INSERT_BODY`."""
    return (piece.owner, piece.body_id, piece.piece, piece.pieces, piece.data)


def index_row(row: IndexRow) -> tuple[Any, ...]:
    """Parameters of :data:`UPSERT_INDEX`."""
    return tuple(getattr(row, name) for name in INDEX_COLUMNS)
