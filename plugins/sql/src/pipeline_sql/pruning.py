"""One step of a prune: old done records become rows of many windows, then superseded ones go, then events."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import sqlalchemy as sa

from pipeline_core import Outcome, Pruned, Pruning, Status
from pipeline_sql.folding import FOLDED, MOST, folded, is_folded, joins, laid_apart
from pipeline_sql.prepared import Prepared, Row
from pipeline_sql.schema import events, records

PRUNE = "pruned"  # the step that tells of a prune: its own events stay, or each step would leave work for another
_IDS_A_QUERY = 500  # well below what any engine takes

_INSERT = Prepared(sa.insert(records))
_live = (records.c.pipeline == sa.bindparam("pipeline")) & (records.c.live == 1)
_is_over = records.c.end_us <= sa.bindparam("before_us")
_DONE = (
    sa.select(records)
    .where(
        _live,
        _is_over,
        records.c.status == Status.DONE,
        # Those without an outcome are done too, and NULL is unequal to nothing.
        sa.func.coalesce(records.c.outcome, "").not_in([Outcome.SKIPPED, FOLDED]),
    )
    .order_by(records.c.start_us)
)
_LAST_BEFORE = (
    sa.select(records)
    .where(_live, records.c.start_us < sa.bindparam("first_us"))
    .order_by(records.c.start_us.desc())
    .limit(1)
    .with_for_update()
)
_SUPERSEDED = sa.select(records.c.id).where(
    records.c.pipeline == sa.bindparam("pipeline"), records.c.live.is_(None), _is_over
)
_LIVE = (
    sa.select(records.c.start_us, records.c.end_us, records.c.status, records.c.outcome)
    .where(_live, records.c.start_us < sa.bindparam("before_us"))
    .order_by(records.c.start_us)
)
_EVENTS = (
    sa.select(events.c.id, events.c.start_us, events.c.end_us)
    .where(
        events.c.pipeline == sa.bindparam("pipeline"),
        events.c.id > sa.bindparam("last_id"),
        events.c.step != PRUNE,
        (events.c.end_us <= sa.bindparam("before_us"))
        | (events.c.end_us.is_(None) & (events.c.at_us < sa.bindparam("before_us"))),
    )
    .order_by(events.c.id)
)


def to_prune(connection: sa.Connection, pruning: Pruning) -> Pruned:
    """What all steps together would do."""
    asked = _asked(pruning)
    done, superseded = (
        int(connection.execute(query.with_only_columns(sa.func.count()).order_by(None), asked).scalar_one())
        for query in (_DONE, _SUPERSEDED)
    )
    return Pruned(done, superseded, sum(1 for _ in _forgotten(connection, pruning)))


def prune_step(connection: sa.Connection, pruning: Pruning) -> Pruned:
    """The first of these that has anything to do: each transaction is short, so that no worker waits long for it."""
    if done := _fold(connection, pruning):
        return Pruned(done=done)
    query = _SUPERSEDED.limit(pruning.most).with_for_update()
    if superseded := _delete(connection, records, list(connection.execute(query, _asked(pruning)).scalars())):
        return Pruned(superseded=superseded)
    return Pruned(events=_delete(connection, events, list(islice(_forgotten(connection, pruning), pruning.most))))


def _fold(connection: sa.Connection, pruning: Pruning) -> int:
    asked = _asked(pruning)
    rows = _rows(connection, _DONE.limit(pruning.most).with_for_update(), asked)
    if not rows:
        return 0
    # A prune a day must not leave a row a day: what was told in short before is gone on with.
    before = _rows(connection, _LAST_BEFORE, {**asked, "first_us": rows[0]["start_us"]})
    before = [row for row in before if is_folded(row) and joins(row, rows[0])]
    short = [*laid_apart(before)]
    if len(short) >= MOST:
        before, short = [], []
    _delete(connection, records, [row["id"] for row in (*before, *rows)])
    _INSERT.run(connection, [*folded((*short, *rows))])
    return len(rows)


def _forgotten(connection: sa.Connection, pruning: Pruning) -> Iterator[int]:
    """The ids of the events that are old; those of records that stay as they are tell how they came to be so."""
    kept = _kept(connection, pruning)
    last_id = 0
    query = _EVENTS.limit(pruning.most)
    while page := connection.execute(query, {**_asked(pruning), "last_id": last_id}).all():
        for event_id, start_us, end_us in page:
            if start_us is None or not _overlaps(kept, start_us, end_us):
                yield event_id
        last_id = page[-1].id


def _kept(connection: sa.Connection, pruning: Pruning) -> list[tuple[int, int]]:
    """The live records that are not covered, in order of time."""
    spans = []
    for start_us, end_us, status, outcome in connection.execute(_LIVE, _asked(pruning)):
        known = Outcome(outcome) if outcome not in (None, FOLDED) else None
        if not pruning.covers(Status(status), known, end_us):
            spans.append((start_us, end_us))
    return spans


def _overlaps(spans: Sequence[tuple[int, int]], start_us: int, end_us: int) -> bool:
    """Whether any of these, which lie apart and in order, does."""
    at = bisect_right(spans, start_us, key=lambda span: span[1])
    return at < len(spans) and spans[at][0] < end_us


def _delete(connection: sa.Connection, table: sa.Table, ids: Sequence[int]) -> int:
    for at in range(0, len(ids), _IDS_A_QUERY):
        connection.execute(sa.delete(table).where(table.c.id.in_(ids[at : at + _IDS_A_QUERY])))
    return len(ids)


def _asked(pruning: Pruning) -> dict[str, Any]:
    return {"pipeline": pruning.pipeline, "before_us": pruning.before_us}


def _rows(connection: sa.Connection, query: sa.Select[Any], values: dict[str, Any]) -> list[Row]:
    return [row._asdict() for row in connection.execute(query, values)]
