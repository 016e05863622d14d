"""The store's tables. The migrations make them; a test holds the two together.

Every time is a big integer of microseconds UTC, so that no engine's timestamp type can round or shift it.
"""

from __future__ import annotations

import sqlalchemy as sa

HEAD = "0003"  # the migration that this code works with
VERSION_TABLE = "pipeline_core_version"

# SQLite counts up only an INTEGER key. MariaDB compares text without regard to case and to spaces at its end
# unless told otherwise, wants a length for indexed text, and its plain TEXT ends at 64 KiB.
_MARIADB = ("mysql", "mariadb")
_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_TEXT = sa.Text().with_variant(sa.Text(2**24 - 1, collation="utf8mb4_nopad_bin"), *_MARIADB)


def exact_text(length: int) -> sa.types.TypeEngine[str]:
    """Text of so many characters at most, of which no two different ones count as the same."""
    return sa.String(length).with_variant(sa.String(length, collation="utf8mb4_nopad_bin"), *_MARIADB)


metadata = sa.MetaData()

records = sa.Table(
    "pipeline_core_records",
    metadata,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("pipeline", exact_text(255), nullable=False),
    sa.Column("start_us", sa.BigInteger, nullable=False),
    sa.Column("end_us", sa.BigInteger, nullable=False),
    # 1, or NULL once superseded: a NULL breaks no unique constraint on any engine, so that one concerns live records.
    sa.Column("live", sa.SmallInteger),
    sa.Column("status", exact_text(16), nullable=False),
    sa.Column("outcome", exact_text(32)),
    sa.Column("reason", _TEXT, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("crashes", sa.Integer, nullable=False),
    # When time alone changes what may be done: a pending record's backoff ends, a running one's lease runs out.
    # 0 where there is nothing to wait for. One column, so that one index finds both.
    sa.Column("due_us", sa.BigInteger, nullable=False),
    sa.Column("fence", sa.BigInteger, nullable=False),
    sa.Column("claim_id", exact_text(64)),
    sa.Column("owner", exact_text(255)),
    sa.Column("identity", _TEXT, nullable=False),
    sa.Column("verified_rows", sa.BigInteger),
    sa.Column("asked", exact_text(32)),
    sa.Column("fields", _TEXT, nullable=False),
    sa.Column("evidence", _TEXT, nullable=False),
    sa.Column("updated_us", sa.BigInteger, nullable=False),
    sa.CheckConstraint("end_us > start_us", name="ck_pipeline_core_records_span"),
    sa.UniqueConstraint("pipeline", "live", "start_us", name="uq_pipeline_core_records_live"),
    # A claim walks it: the ready ones of a pipeline (due_us = 0) lie together, in order of time, with nothing between.
    # On PostgreSQL it holds only what can still be claimed, and so stays small however many records are done.
    sa.Index(
        "ix_pipeline_core_records_claim",
        "pipeline",
        "status",
        "due_us",
        "start_us",
        "end_us",
        postgresql_where=sa.text("status IN ('pending', 'running')"),
    ),
)

events = sa.Table(
    "pipeline_core_events",
    metadata,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("at_us", sa.BigInteger, nullable=False),
    sa.Column("pipeline", exact_text(255), nullable=False),
    sa.Column("start_us", sa.BigInteger),
    sa.Column("end_us", sa.BigInteger),
    sa.Column("step", exact_text(32), nullable=False),
    sa.Column("fields", _TEXT, nullable=False),
    sa.Index("ix_pipeline_core_events_time", "pipeline", "at_us", "id"),
)

# One row: the last fence given out, of all pipelines. PostgreSQL has a sequence and a function in its place.
fence = sa.Table(
    "pipeline_core_fence",
    metadata,
    sa.Column("id", sa.SmallInteger, primary_key=True, autoincrement=False),
    sa.Column("last", sa.BigInteger, nullable=False),
)
