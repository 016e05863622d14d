"""A claim on PostgreSQL: one statement, and so one journey to the server and one transaction.

The steps are those of the store, one part of the statement each: nothing may be due, the oldest ready records are
locked, fences are taken, the records change hands, each with its event.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import sqlalchemy as sa

from pipeline_core import Status
from pipeline_sql.prepared import Prepared
from pipeline_sql.readiness import is_ready, nothing_due
from pipeline_sql.schema import events, records

# Taking fences never waits for another transaction to commit: docs/decisions/0014-fences-of-postgresql.md.
TAKE_FENCES = "pipeline_core_take_fences"


@lru_cache(maxsize=1)
def claiming(clock: str) -> Prepared:
    """The statement; `clock` is the SQL of the store's clock. Gives the claimed records, the oldest first."""
    now = sa.select(sa.literal_column(clock, sa.BigInteger).label("us")).cte("now")
    ready = _ready(now)
    place = sa.select(ready.c.id, (sa.func.row_number().over() - 1).label("place")).cte("place")
    fences = _fences(now, place)
    claimed = (
        sa.update(records)
        .where(records.c.id == place.c.id)
        .values(
            status=Status.RUNNING,
            due_us=fences.c.now_us + sa.bindparam("lease_us", type_=sa.BigInteger),
            fence=fences.c.first + place.c.place,
            claim_id=sa.func.replace(sa.cast(sa.func.gen_random_uuid(), sa.Text), "-", ""),
            owner=sa.bindparam("owner"),
            updated_us=fences.c.now_us,
        )
        .returning(*records.c)
        .cte("claimed")
    )
    return Prepared(sa.select(claimed).order_by(claimed.c.start_us).add_cte(_logged(claimed)))


def _ready(now: sa.CTE) -> sa.CTE:
    """The oldest ready records, locked; none where a lease has run out or a backoff is over."""
    return (
        sa.select(records.c.id)
        .where(is_ready, *nothing_due(sa.select(now.c.us).scalar_subquery()))
        .order_by(records.c.start_us)
        .limit(sa.bindparam("limit"))
        .with_for_update(skip_locked=True)
        .cte("ready")
    )


def _fences(now: sa.CTE, place: sa.CTE) -> sa.CTE:
    count = sa.select(sa.func.count().label("number")).select_from(place).subquery("taken")
    first: sa.Function[Any] = getattr(sa.func, TAKE_FENCES)(now.c.us, count.c.number)
    taken = sa.select(now.c.us.label("now_us"), first.label("first"))
    return taken.select_from(now.join(count, sa.true())).where(count.c.number > 0).cte("fences")


def _logged(claimed: sa.CTE) -> sa.CTE:
    """The events, as the store writes them."""
    told: dict[str, Any] = {
        "status": sa.literal_column(f"'{Status.RUNNING}'"),
        "was": sa.literal_column(f"'{Status.PENDING}'"),
        "reason": sa.literal_column("'claimed'"),
        "fence": claimed.c.fence,
        "claim": claimed.c.claim_id,
        "owner": claimed.c.owner,
    }
    named: list[Any] = []
    for name, value in told.items():
        named += [sa.literal_column(f"'{name}'"), value]
    columns = {
        "at_us": claimed.c.updated_us,
        "pipeline": claimed.c.pipeline,
        "start_us": claimed.c.start_us,
        "end_us": claimed.c.end_us,
        "step": sa.literal_column("'claimed'"),
        "fields": sa.cast(sa.func.json_build_object(*named), sa.Text),
    }
    return sa.insert(events).from_select([*columns], sa.select(*columns.values())).cte("logged")
