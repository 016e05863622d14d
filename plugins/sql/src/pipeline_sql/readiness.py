"""Which records a claim may take, in SQLAlchemy's terms: the same on every engine."""

from __future__ import annotations

import sqlalchemy as sa

from pipeline_core import Status
from pipeline_sql.schema import records

of_request = (
    (records.c.pipeline == sa.bindparam("pipeline"))
    & (records.c.start_us >= sa.bindparam("first_us"))
    & (records.c.start_us < sa.bindparam("last_us"))
    & (records.c.end_us <= sa.bindparam("stable_us"))
)
# Written out, not passed: only so does PostgreSQL know, when it plans, that the partial index holds every such row.
is_pending = records.c.status == sa.literal_column(f"'{Status.PENDING}'")
is_running = records.c.status == sa.literal_column(f"'{Status.RUNNING}'")
is_ready = of_request & is_pending & (records.c.due_us == 0)


def nothing_due(now_us: sa.ColumnElement[int]) -> list[sa.ColumnElement[bool]]:
    """That no lease of the pipeline has run out, and no backoff is over. Each is one short range of the index."""
    of_pipeline = records.c.pipeline == sa.bindparam("pipeline")
    waits = of_pipeline & (records.c.due_us > 0) & (records.c.due_us <= now_us)
    return [~sa.select(records.c.id).where(has_status, waits).exists() for has_status in (is_pending, is_running)]
