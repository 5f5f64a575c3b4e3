"""Tables of the journal, in SQLAlchemy Core; dialects belong to the storage plugins, history to migrations."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()

#: 64 bits everywhere; on SQLite spelt so that a single primary key is the row's own number, without a second index
_Big = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

#: one row per group commit
frames = sa.Table(
    "frames",
    metadata,
    sa.Column("frame_no", _Big, primary_key=True, autoincrement=False),
    sa.Column("epoch", _Big, nullable=False),
    sa.Column("first_seq", _Big, nullable=False),
    sa.Column("count", sa.Integer, nullable=False),
    sa.Column("prev_hash", sa.LargeBinary, nullable=False),
    sa.Column("hash", sa.LargeBinary, nullable=False),
    sa.Column("facts", sa.LargeBinary, nullable=False),
    sa.Column("texts", sa.LargeBinary, nullable=False),
)

#: content-addressed texts of requests, per owner, in bounded pieces
bodies = sa.Table(
    "bodies",
    metadata,
    sa.Column("owner", sa.Text, primary_key=True),
    sa.Column("body_id", sa.Text, primary_key=True),
    sa.Column("piece", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("pieces", sa.Integer, nullable=False),
    sa.Column("data", sa.LargeBinary, nullable=False),
)

#: the partition's writer: who may commit
writer = sa.Table(
    "writer",
    metadata,
    sa.Column("partition", sa.Text, primary_key=True),
    sa.Column("epoch", _Big, nullable=False),
)

#: derived: ended tasks and their frames
task_index = sa.Table(
    "task_index",
    metadata,
    sa.Column("task_no", _Big, primary_key=True, autoincrement=False),
    sa.Column("task_id", sa.Text, nullable=False, unique=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("model_ref", sa.Text, nullable=False),
    sa.Column("session_id", sa.Text, nullable=False),
    sa.Column("admitted_ns", _Big, nullable=False),
    sa.Column("ended_ns", _Big, nullable=False),
    sa.Column("admitted_frame", _Big, nullable=False),
    sa.Column("started_frame", _Big, nullable=False),
    sa.Column("ended_frame", _Big, nullable=False),
    sa.Column("transcript_frame", _Big, nullable=False),
    sa.Column("entry_frames", sa.LargeBinary, nullable=False),
)
