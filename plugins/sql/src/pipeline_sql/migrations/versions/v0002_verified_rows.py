"""What was verified of a span, and what a person asked for."""

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

MARIADB = ("mysql", "mariadb")
ASKED = sa.String(32).with_variant(sa.String(32, collation="utf8mb4_nopad_bin"), *MARIADB)

RECORDS = sa.table(
    "pipeline_core_records",
    sa.column("id", sa.BigInteger),
    sa.column("live", sa.SmallInteger),
    sa.column("status", sa.String),
    sa.column("evidence", sa.Text),
    sa.column("verified_rows", sa.BigInteger),
)
DONE = sa.select(RECORDS.c.id, RECORDS.c.evidence).where(RECORDS.c.live == 1, RECORDS.c.status == "done")
SET = sa.update(RECORDS).where(RECORDS.c.id == sa.bindparam("row_id")).values(verified_rows=sa.bindparam("rows"))


def upgrade() -> None:
    connection = op.get_bind()
    # MariaDB commits each of these statements, so what a process left half done is gone on with.
    there = {column["name"] for column in sa.inspect(connection).get_columns("pipeline_core_records")}
    for column in (sa.Column("verified_rows", sa.BigInteger), sa.Column("asked", ASKED)):
        if column.name not in there:
            op.add_column("pipeline_core_records", column)
    found = [{"row_id": row_id, "rows": verified(evidence)} for row_id, evidence in connection.execute(DONE)]
    known = [values for values in found if values["rows"] is not None]
    if known:
        connection.execute(SET, known)


def verified(evidence: str) -> int | None:
    """The source's rows at the audit, or at the count that found the window already processed."""
    try:
        told: Any = json.loads(evidence)
        rows = (told.get("after") or told["before"])["source"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return None  # nothing that anybody could read: as if never verified
    return rows if type(rows) is int else None
