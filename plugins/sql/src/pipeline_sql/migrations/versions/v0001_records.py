"""Records, events and the fence."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

# A migration is history: it repeats the types of its time, and imports nothing that may change. MariaDB commits each
# statement that changes the schema, so what a process left half done is gone on with.
MARIADB = ("mysql", "mariadb")
ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TEXT = sa.Text().with_variant(sa.Text(2**24 - 1, collation="utf8mb4_nopad_bin"), *MARIADB)

# Live windows of a pipeline do not overlap. Only ranges can stand in such a constraint without an extension, so the
# pipeline stands in it as a range of one number: docs/decisions/0007-no-overlap-in-postgresql.md.
NO_OVERLAP = """
ALTER TABLE pipeline_core_records ADD CONSTRAINT ex_pipeline_core_records_live EXCLUDE USING gist (
    int8range(hashtextextended(pipeline, 0) >> 1, hashtextextended(pipeline, 0) >> 1, '[]') WITH &&,
    int8range(start_us, end_us) WITH &&
) WHERE (live = 1)
"""


def name(length: int) -> sa.types.TypeEngine[str]:
    return sa.String(length).with_variant(sa.String(length, collation="utf8mb4_nopad_bin"), *MARIADB)


def upgrade() -> None:
    op.create_table(
        "pipeline_core_records",
        sa.Column("id", ID, primary_key=True),
        sa.Column("pipeline", name(255), nullable=False),
        sa.Column("start_us", sa.BigInteger, nullable=False),
        sa.Column("end_us", sa.BigInteger, nullable=False),
        sa.Column("live", sa.SmallInteger),
        sa.Column("status", name(16), nullable=False),
        sa.Column("outcome", name(32)),
        sa.Column("reason", TEXT, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("crashes", sa.Integer, nullable=False),
        sa.Column("due_us", sa.BigInteger, nullable=False),
        sa.Column("fence", sa.BigInteger, nullable=False),
        sa.Column("claim_id", name(64)),
        sa.Column("owner", name(255)),
        sa.Column("identity", TEXT, nullable=False),
        sa.Column("fields", TEXT, nullable=False),
        sa.Column("evidence", TEXT, nullable=False),
        sa.Column("updated_us", sa.BigInteger, nullable=False),
        sa.CheckConstraint("end_us > start_us", name="ck_pipeline_core_records_span"),
        sa.UniqueConstraint("pipeline", "live", "start_us", name="uq_pipeline_core_records_live"),
        if_not_exists=True,
    )
    op.create_index(
        "ix_pipeline_core_records_claim",
        "pipeline_core_records",
        ["pipeline", "status", "due_us", "start_us", "end_us"],
        postgresql_where=sa.text("status IN ('pending', 'running')"),
        if_not_exists=True,
    )
    if op.get_context().dialect.name == "postgresql":
        op.execute(NO_OVERLAP)
    op.create_table(
        "pipeline_core_events",
        sa.Column("id", ID, primary_key=True),
        sa.Column("at_us", sa.BigInteger, nullable=False),
        sa.Column("pipeline", name(255), nullable=False),
        sa.Column("start_us", sa.BigInteger),
        sa.Column("end_us", sa.BigInteger),
        sa.Column("step", name(32), nullable=False),
        sa.Column("fields", TEXT, nullable=False),
        if_not_exists=True,
    )
    order = ["pipeline", "at_us", "id"]
    op.create_index("ix_pipeline_core_events_time", "pipeline_core_events", order, if_not_exists=True)
    fence = op.create_table(
        "pipeline_core_fence",
        sa.Column("id", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("last", sa.BigInteger, nullable=False),
        if_not_exists=True,
    )
    if op.get_bind().execute(sa.select(fence)).first() is None:
        op.bulk_insert(fence, [{"id": 1, "last": 0}])
