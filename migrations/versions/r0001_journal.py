"""The journal's first tables: frames, bodies, the writer and the index of ended tasks."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "r0001"
down_revision = None
branch_labels = None
depends_on = None

_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "frames",
        sa.Column("frame_no", _BIG, primary_key=True, autoincrement=False),
        sa.Column("epoch", _BIG, nullable=False),
        sa.Column("first_seq", _BIG, nullable=False),
        sa.Column("count", sa.Integer, nullable=False),
        sa.Column("prev_hash", sa.LargeBinary, nullable=False),
        sa.Column("hash", sa.LargeBinary, nullable=False),
        sa.Column("facts", sa.LargeBinary, nullable=False),
        sa.Column("texts", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "bodies",
        sa.Column("owner", sa.Text, primary_key=True),
        sa.Column("body_id", sa.Text, primary_key=True),
        sa.Column("piece", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("pieces", sa.Integer, nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "writer",
        sa.Column("partition", sa.Text, primary_key=True),
        sa.Column("epoch", _BIG, nullable=False),
    )
    op.create_table(
        "task_index",
        sa.Column("task_no", _BIG, primary_key=True, autoincrement=False),
        sa.Column("task_id", sa.Text, nullable=False, unique=True),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("model_ref", sa.Text, nullable=False),
        sa.Column("session_id", sa.Text, nullable=False),
        sa.Column("admitted_ns", _BIG, nullable=False),
        sa.Column("ended_ns", _BIG, nullable=False),
        sa.Column("admitted_frame", _BIG, nullable=False),
        sa.Column("started_frame", _BIG, nullable=False),
        sa.Column("ended_frame", _BIG, nullable=False),
        sa.Column("transcript_frame", _BIG, nullable=False),
        sa.Column("entry_frames", sa.LargeBinary, nullable=False),
    )
