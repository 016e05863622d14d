"""The record store on SQLAlchemy Core. What differs between engines is in `pipeline_sql.engines`."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar
from uuid import uuid4

import sqlalchemy as sa
from attrs import asdict, evolve

from pipeline_core import (
    Addition,
    Asked,
    Change,
    Claim,
    ClaimLostError,
    ClaimRequest,
    Event,
    Hand,
    Intervention,
    Outcome,
    Problem,
    Pruned,
    Pruning,
    Record,
    RecordError,
    RecordStore,
    Removal,
    Span,
    Status,
    Verdict,
    Window,
)
from pipeline_core.contracts import Kept
from pipeline_core.record import by_hand, transition
from pipeline_core.window import MIN_US, iso
from pipeline_sql.engines.default import Engine
from pipeline_sql.folding import FOLDED, laid_apart
from pipeline_sql.migrations import migrate
from pipeline_sql.prepared import Connected, Prepared, Row
from pipeline_sql.pruning import PRUNE, prune_step, to_prune
from pipeline_sql.readiness import is_pending, is_ready, is_running, nothing_due, of_request
from pipeline_sql.schema import events, records

T = TypeVar("T")

_EVENTS_A_PAGE = 10_000
_KEPT_A_PAGE = 1_000
_STARTS_A_QUERY = 500  # well below what any engine takes
_MOST_DOUBLINGS = 20  # of a crash's backoff: 10 s have become four months by then, and no integer overflows

_live = (records.c.pipeline == sa.bindparam("pipeline")) & (records.c.live == 1)

_LIVE_AT = Prepared(sa.select(records).where(_live, records.c.start_us == sa.bindparam("start_us")).with_for_update())
_LIVE_AT_ANY = (
    sa.select(records).where(_live, records.c.start_us.in_(sa.bindparam("starts", expanding=True))).with_for_update()
)
_LIVE_BEFORE = (
    sa.select(records.c.start_us, records.c.end_us)
    .where(_live, records.c.start_us < sa.bindparam("first_us"))
    .order_by(records.c.start_us.desc())
    .limit(1)
)
_LIVE_BETWEEN = (
    sa.select(records.c.start_us, records.c.end_us)
    .where(_live, records.c.start_us >= sa.bindparam("first_us"), records.c.start_us < sa.bindparam("last_us"))
    .order_by(records.c.start_us)
)
_is_folded = records.c.outcome == FOLDED
_SPANS = (
    sa.select(*(records.c[name] for name in Span._fields), sa.case((_is_folded, records.c.evidence)).label("evidence"))
    .where(_live)
    .order_by(records.c.start_us)
)
_FOLDED_OVER = (
    sa.select(records)
    .where(_live, _is_folded, records.c.start_us < sa.bindparam("last_us"), records.c.end_us > sa.bindparam("first_us"))
    .order_by(records.c.start_us)
    .with_for_update()
)

_OLDEST_READY = Prepared(
    sa.select(records)
    .where(is_ready)
    .order_by(records.c.start_us)
    .limit(sa.bindparam("limit"))
    .with_for_update(skip_locked=True)
)
_OLDEST_READY_AND_NOTHING_DUE = Prepared(
    sa.select(records)
    .where(is_ready, *nothing_due(sa.bindparam("now_us")))
    .order_by(records.c.start_us)
    .limit(sa.bindparam("limit"))
    .with_for_update(skip_locked=True)
)
_of_owners = records.c.owner.in_(sa.bindparam("owners", expanding=True))
_lapsed = records.c.due_us <= sa.bindparam("now_us")
_RUNNING = sa.select(records).where(records.c.pipeline == sa.bindparam("pipeline"), is_running)
_LAPSED = Prepared(_RUNNING.where(_lapsed).with_for_update(skip_locked=True))
_LAPSED_OR_DEAD = _RUNNING.where(_lapsed | _of_owners).with_for_update(skip_locked=True)
_LEASES = Prepared(
    sa.select(records.c.due_us)
    .where(records.c.pipeline == sa.bindparam("pipeline"), is_running, records.c.due_us > sa.bindparam("now_us"))
    .order_by(records.c.due_us)
)
_DEAD = sa.select(records.c.id).where(of_request, is_running, _of_owners).limit(1)


def _first_due(has_status: sa.ColumnElement[bool]) -> sa.ScalarSelect[int]:
    waiting = sa.select(records.c.due_us).where(of_request, has_status, records.c.due_us > 0)
    return waiting.order_by(records.c.due_us).limit(1).scalar_subquery()


_READY = sa.select(records.c.due_us).where(is_ready).limit(1)
_DUE = sa.select(_READY.scalar_subquery(), _first_due(is_pending), _first_due(is_running))
_BACKOFFS_OVER = Prepared(
    sa.select(records.c.id)
    .where(records.c.pipeline == sa.bindparam("pipeline"), is_pending, records.c.due_us > 0, _lapsed)
    .with_for_update(skip_locked=True)
)
_UPDATE = Prepared(sa.update(records).where(records.c.id == sa.bindparam("row_id")))
_INSERT = Prepared(sa.insert(records))
_LOG = Prepared(sa.insert(events))


@contextmanager
def opened(engine: Engine) -> Iterator[SqlRecordStore]:
    """The store in the engine's database, its tables made or updated; closes every connection on the way out."""
    engine.prepare_store()
    try:
        yield SqlRecordStore(engine, migrate(engine))
    finally:
        engine.dispose()


class SqlRecordStore(RecordStore):
    """Records in a SQL database. Threads share one object, and processes one database."""

    def __init__(self, engine: Engine, migrated: str) -> None:
        self._engine = engine
        self._migrated = migrated

    def upgrade(self) -> str:
        return self._migrated

    def problems(self) -> Sequence[Problem]:
        return self._engine.store_problems()

    def now_us(self) -> int:
        with self._engine.reading() as connection:
            return self._engine.now_us(connection)

    def spans(self, pipeline: str) -> Sequence[Span]:
        status_of = {str(status): status for status in Status}
        outcome_of = {None: None} | {str(outcome): outcome for outcome in Outcome}
        asked_of = {None: None} | {str(asked): asked for asked in Asked}
        parse = lru_cache(maxsize=None)(_fields)
        same: dict[str, str] = {}  # a million rows share a few identities: one object each, not one a row
        with self._engine.reading() as connection:
            rows = connection.execute(_SPANS, {"pipeline": pipeline})
            return [
                Span(
                    start,
                    end,
                    status_of[status],
                    fence,
                    attempts,
                    same.setdefault(identity, identity),
                    parse(text),
                    outcome_of[outcome],
                    verified_rows,
                    asked_of[asked],
                )
                for start, end, status, fence, attempts, identity, text, outcome, verified_rows, asked, _ in (
                    each for row in rows for each in (_spans_of(row) if row.outcome == FOLDED else (row,))
                )
            ]

    def records(
        self, pipeline: str, *status: Status, within: Window | None = None, limit: int | None = None
    ) -> Sequence[Record]:
        query = sa.select(records).where(records.c.pipeline == pipeline)
        query = query.where(records.c.status.in_(status)) if status else query.where(records.c.live == 1)
        if within is not None:
            query = query.where(_from(pipeline, within.start_us), records.c.start_us < within.end_us)
        query = query.order_by(records.c.start_us, records.c.id).limit(None if limit is None else limit + 1)
        with self._engine.reading() as connection:
            found = [_record(row) for row in laid_apart(_rows(connection, query))]
        if within is not None:
            found = [record for record in found if within.start_us <= record.window.start_us < within.end_us]
        return found[:limit]

    def events(self, pipeline: str, since_us: int = 0, window: Window | None = None) -> Iterable[Event]:
        order = (events.c.at_us, events.c.id)
        query = sa.select(events).where(events.c.pipeline == pipeline).order_by(*order).limit(_EVENTS_A_PAGE)
        if window is not None:
            query = query.where(events.c.start_us < window.end_us, events.c.end_us > window.start_us)
        last = (since_us, 0)
        while True:
            with self._engine.reading() as connection:
                rows = connection.execute(query.where(sa.tuple_(*order) > last)).all()
            for row in rows:
                yield _told(row._asdict())
            if len(rows) < _EVENTS_A_PAGE:
                return
            last = (rows[-1].at_us, rows[-1].id)

    def next_claim_us(self, request: ClaimRequest) -> int | None:
        with self._engine.reading() as connection:
            bounds = _bounds(request)
            if request.dead_owners and connection.execute(_DEAD, {**bounds, "owners": [*request.dead_owners]}).first():
                return self._engine.now_us(connection)
            due: list[int] = [due_us for due_us in connection.execute(_DUE, bounds).one() if due_us is not None]
            if not due or request.max_running is None:
                return min(due, default=None)
            leases = _leases(connection, request.pipeline, self._engine.now_us(connection))
            over = len(leases) - request.max_running
            return min(due) if over < 0 else max(min(due), leases[over])

    def apply(self, change: Change) -> Change:
        with self._engine.writing() as connection:
            self._engine.lock_plan(connection, change.pipeline)
            now_us = self._engine.now_us(connection)
            _lay_apart(connection, change)
            removed = _supersede(connection, change, now_us)
            added = _add(connection, change, now_us)
            if removed or added:
                _LOG.run(connection, [_planned(change, removed, added, now_us)])
        return evolve(change, remove=tuple(removed), add=tuple(added))

    def claim(self, request: ClaimRequest) -> Sequence[Claim]:
        plain = not request.dead_owners and request.max_running is None
        if plain and (claims := self._claim_at_once(request)):
            return claims
        with self._engine.writing() as connection:
            if request.max_running is not None:
                self._engine.lock_plan(connection, request.pipeline)  # two would count the same, and both claim
            now_us = self._engine.now_us(connection)
            _expire(connection, request, now_us)
            _end_backoffs(connection, request, now_us)
            limit = request.limit
            if request.max_running is not None:
                running = len(_leases(connection, request.pipeline, now_us))
                limit = min(limit, max(0, request.max_running - running))
            ready = _OLDEST_READY.rows(connection, {**_bounds(request), "limit": limit})
            return self._hold(connection, ready, request, now_us)

    def _claim_at_once(self, request: ClaimRequest) -> Sequence[Claim]:
        """The same where no lease has run out and no backoff is over, which is most of the time; else nothing."""
        rows = self._engine.claim_at_once(_wanted(request))
        if rows is not None:
            return [_claim(row) for row in rows]
        with self._engine.directly() as connection:
            now_us = self._engine.now_us(connection)
            values = {**_bounds(request), "limit": request.limit, "now_us": now_us}
            return self._hold(connection, _OLDEST_READY_AND_NOTHING_DUE.rows(connection, values), request, now_us)

    def _hold(self, connection: Connected, ready: Sequence[Row], request: ClaimRequest, now_us: int) -> Sequence[Claim]:
        """Lets the request have the ready rows, which are locked."""
        if not ready:
            return []
        first = self._engine.take_fences(connection, now_us, len(ready))
        moves = []
        for number, row in enumerate(ready, first):
            held = {"fence": number, "claim_id": uuid4().hex, "owner": request.owner}
            values = {"status": Status.RUNNING, "due_us": now_us + _us(request.lease_s), **held}
            told = {"reason": "claimed", "fence": number, "claim": held["claim_id"], "owner": request.owner}
            moves.append(_Move(row, values, told))
        return [_claim(row) for row in _move(connection, "claimed", moves, now_us)]

    def resume(self, claim: Claim, lease_s: float) -> Claim:
        with self._engine.directly() as connection:
            now_us = self._engine.now_us(connection)
            row = _held(connection, claim)
            if row["status"] in (Status.DONE, Status.QUARANTINED):
                return Claim(claim.id, _record(row), row["fence"])
            fence_now = self._engine.take_fences(connection, now_us, 1)
            # Another process may resume than the one that claimed, so only the lease can tell of its death.
            values = {"status": Status.RUNNING, "fence": fence_now, "owner": None, "due_us": now_us + _us(lease_s)}
            told = {"reason": "resumed", "fence": fence_now, "claim": claim.id}
            (row,) = _move(connection, "resumed", [_Move(row, values, told)], now_us)
            return Claim(claim.id, _record(row), fence_now)

    def renew(self, claim: Claim, lease_s: float) -> None:
        with self._engine.directly() as connection:
            now_us = self._engine.now_us(connection)
            row = _running_under(connection, claim)
            _UPDATE.run(connection, [{"row_id": row["id"], "due_us": now_us + _us(lease_s), "updated_us": now_us}])

    def settle(self, claim: Claim, verdict: Verdict) -> Record:
        if verdict.status is Status.RUNNING:
            raise RecordError(f"window {claim.window}: a verdict ends its claim, so its status cannot be running")
        with self._engine.directly() as connection:
            now_us = self._engine.now_us(connection)
            move = _settlement(_running_under(connection, claim), verdict, now_us)
            (row,) = _move(connection, "settled", [move], now_us)
            return _record(row)

    def intervene(self, intervention: Intervention) -> Sequence[Record]:
        spans = {span.start_us: span for span in intervention.spans}
        after = {start_us: by_hand(intervention.hand, span.status) for start_us, span in spans.items()}
        with self._engine.writing() as connection:
            now_us = self._engine.now_us(connection)
            rows = [
                row
                for page in _pages(sorted(spans))
                for row in _rows(connection, _LIVE_AT_ANY, {"pipeline": intervention.pipeline, "starts": page})
                if (row["end_us"], row["status"], row["fence"]) == spans[row["start_us"]][1:4]
            ]
            moves = [_intervention(row, intervention, after[row["start_us"]]) for row in rows]
            moved = _move(connection, str(intervention.hand), moves, now_us) if moves else []
            return sorted((_record(row) for row in moved), key=lambda record: record.window.start_us)

    def dump(self, pipeline: str) -> Kept:
        with self._engine.snapshot() as connection:
            yield from map(_record, laid_apart(_as_they_came(connection, records, pipeline)))
            yield from map(_told, _as_they_came(connection, events, pipeline))

    def restore(self, pipeline: str, kept: Iterable[Record | Event]) -> None:
        left, highest = iter(kept), 0
        with self._engine.writing() as connection:
            self._engine.lock_plan(connection, pipeline)
            for table in (records, events):
                if connection.execute(sa.select(table.c.id).where(table.c.pipeline == pipeline).limit(1)).first():
                    raise RecordError(
                        f"{self._engine.place}: pipeline {pipeline!r}: found {table.name} of it, expected none; "
                        "take in what was kept elsewhere before the pipeline first plans here"
                    )
            while page := list(islice(left, _KEPT_A_PAGE)):
                taken = [each for each in page if isinstance(each, Record)]
                told = [each for each in page if isinstance(each, Event)]
                if taken:
                    _INSERT.run(connection, [_row(record) for record in taken])
                    highest = max(highest, *(record.fence for record in taken))
                if told:
                    _LOG.run(connection, [_logged(event) for event in told])
            self._engine.take_fences(connection, highest, 1)

    def prune(self, pruning: Pruning) -> Pruned:
        if pruning.dry_run:
            with self._engine.reading() as connection:
                return to_prune(connection, pruning)
        with self._engine.writing() as connection:
            self._engine.lock_plan(connection, pruning.pipeline)
            pruned = prune_step(connection, pruning)
            if pruned:
                told = {"reason": f"before {iso(pruning.before_us)}", **asdict(pruned)}
                run = {"pipeline": pruning.pipeline, "start_us": None, "end_us": None}
                _LOG.run(connection, [_event(run, PRUNE, self._engine.now_us(connection), told)])
            return pruned


# --- transitions ------------------------------------------------------------------------------------------------------


class _Move(NamedTuple):
    """A transition: the row as it is, the columns that change (the status among them), and what the event tells."""

    row: Row
    values: Mapping[str, Any]
    told: Mapping[str, Any]


def _move(connection: Connected, step: str, moves: Sequence[_Move], now_us: int) -> list[Row]:
    """Makes each transition and appends its event; returns the rows as they are now. All change the same columns."""
    updates, after, log = [], [], []
    for row, values, told in moves:
        status = transition(Status(row["status"]), values["status"])
        updates.append({"row_id": row["id"], "updated_us": now_us, **values})
        after.append({**row, "updated_us": now_us, **values})
        log.append(_event(row, step, now_us, {"status": status, "was": row["status"], **told}))
    _UPDATE.run(connection, updates)
    _LOG.run(connection, log)
    return after


def _event(row: Row, step: str, now_us: int, fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "at_us": now_us,
        "pipeline": row["pipeline"],
        "start_us": row["start_us"],
        "end_us": row["end_us"],
        "step": step,
        "fields": _json(fields, f"event {step}"),
    }


def _leases(connection: sa.Connection, pipeline: str, now_us: int) -> list[int]:
    """When the leases of the pipeline end that have not run out, in order of time."""
    rows = _LEASES.rows(connection, {"pipeline": pipeline, "now_us": now_us})
    return [row["due_us"] for row in rows]


def _expire(connection: sa.Connection, request: ClaimRequest, now_us: int) -> None:
    """Takes back the leases that ran out, and those of dead owners: each is one crash of its window."""
    values: dict[str, Any] = {"pipeline": request.pipeline, "now_us": now_us}
    if request.dead_owners:
        rows = _rows(connection, _LAPSED_OR_DEAD, {**values, "owners": [*request.dead_owners]})
    else:
        rows = _LAPSED.rows(connection, values)
    moves = [_crash(row, request, now_us) for row in rows]
    if moves:
        _move(connection, "expired", moves, now_us)


def _end_backoffs(connection: sa.Connection, request: ClaimRequest, now_us: int) -> None:
    """Makes what has waited long enough ready. Who finds the row locked need not wait: its holder does the same."""
    over = _BACKOFFS_OVER.rows(connection, {"pipeline": request.pipeline, "now_us": now_us})
    if over:
        _UPDATE.run(connection, [{"row_id": row["id"], "due_us": 0} for row in over])


def _crash(row: Row, request: ClaimRequest, now_us: int) -> _Move:
    crashes = row["crashes"] + 1
    gone = f"its worker ({row['owner']}) died" if row["owner"] in request.dead_owners else "its lease ran out"
    reason = f"{gone}: crash {crashes} of {request.max_crashes}"
    due_us = 0
    if crashes >= request.max_crashes:
        status = Status.QUARANTINED
    else:
        status = Status.PENDING
        if crashes > 1:
            due_us = now_us + _us(request.crash_backoff_s * 2 ** min(crashes - 2, _MOST_DOUBLINGS))
    # The claim's id stays: until someone else claims, its worker may still resume.
    values = {"status": status, "reason": reason, "crashes": crashes, "due_us": due_us, "owner": None}
    return _Move(row, values, {"reason": reason, "crashes": crashes, "fence": row["fence"], "owner": row["owner"]})


def _settlement(row: Row, verdict: Verdict, now_us: int) -> _Move:
    again = verdict.status is Status.PENDING
    reason = _storable(verdict.reason)
    attempts = row["attempts"] + verdict.attempt
    verified = verdict.verified_rows is not None
    values = {
        "status": verdict.status,
        "outcome": verdict.outcome,
        "reason": reason,
        "attempts": attempts,
        "crashes": 0 if verdict.status is Status.DONE else row["crashes"],
        "due_us": now_us + _us(verdict.wait_s) if again and verdict.wait_s > 0 else 0,
        "claim_id": None if again else row["claim_id"],
        "owner": None,
        "identity": _storable(verdict.identity) if verified else row["identity"],
        "verified_rows": verdict.verified_rows if verified else row["verified_rows"],
        "asked": None if verdict.status is Status.DONE else row["asked"],
        "evidence": _json(verdict.evidence, f"window {_window(row)}: the evidence"),
    }
    told = {
        "reason": reason,
        "outcome": verdict.outcome,
        "attempts": attempts,
        "fence": row["fence"],
        "evidence": verdict.evidence,
    }
    return _Move(row, values, told)


def _intervention(row: Row, intervention: Intervention, after: Status) -> _Move:
    reason = _storable(intervention.told)
    values: dict[str, Any] = {"status": after, "reason": reason, "claim_id": None, "owner": None, "due_us": 0}
    if intervention.hand is Hand.RETRY:
        values |= {"attempts": 0, "crashes": 0}
    if intervention.hand is Hand.SKIP:
        values |= {"outcome": Outcome.SKIPPED, "asked": None}
    return _Move(row, values, {"reason": reason, "by": intervention.by, "fence": row["fence"], "owner": row["owner"]})


# --- who holds a claim ------------------------------------------------------------------------------------------------


def _held(connection: Connected, claim: Claim) -> Row:
    """The row that still carries the claim's id, whatever its status; ClaimLostError otherwise."""
    rows = _LIVE_AT.rows(connection, {"pipeline": claim.record.pipeline, "start_us": claim.window.start_us})
    row = rows[0] if rows else None
    if row is None or row["end_us"] != claim.window.end_us:
        raise _lost(claim, "the record was superseded, or told in short by a prune")
    if row["claim_id"] is None:
        raise _lost(claim, f"it was given back, and is {row['status']} now: {row['reason']}")
    if row["claim_id"] != claim.id:
        raise _lost(claim, f"another worker claimed it, under fence {row['fence']}")
    return row


def _running_under(connection: Connected, claim: Claim) -> Row:
    """The running row of the claim, under this very fence; ClaimLostError otherwise."""
    row = _held(connection, claim)
    if row["fence"] != claim.fence:
        raise _lost(claim, f"the claim was resumed elsewhere, under fence {row['fence']}")
    if row["status"] != Status.RUNNING:
        raise _lost(claim, f"it is {row['status']} now: {row['reason']}")
    return row


def _lost(claim: Claim, why: str) -> ClaimLostError:
    return ClaimLostError(
        f"window {claim.window} of pipeline {claim.record.pipeline!r}: "
        f"the claim under fence {claim.fence} is lost: {why}"
    )


# --- applying a change ------------------------------------------------------------------------------------------------


def _lay_apart(connection: sa.Connection, change: Change) -> None:
    """Makes single records again of those that the change removes out of a row of many."""
    starts = sorted(removal.start_us for removal in change.remove)
    if not starts:
        return
    over = {"pipeline": change.pipeline, "first_us": starts[0], "last_us": starts[-1] + 1}
    for row in _rows(connection, _FOLDED_OVER, over):
        at = bisect_left(starts, row["start_us"])
        if at < len(starts) and starts[at] < row["end_us"]:
            connection.execute(sa.delete(records).where(records.c.id == row["id"]))
            _INSERT.run(connection, [*laid_apart([row])])


def _supersede(connection: sa.Connection, change: Change, now_us: int) -> list[Removal]:
    """Supersedes what the change removes, as far as it still is what was planned on."""
    text = _json(change.fields, "fields")
    wanted = set(change.add)
    moves, removed = [], []
    for page in _pages(change.remove):
        starts = [removal.start_us for removal in page]
        found = _rows(connection, _LIVE_AT_ANY, {"pipeline": change.pipeline, "starts": starts})
        live = {row["start_us"]: row for row in found}
        for removal in page:
            row = live.get(removal.start_us)
            if row is None or (row["end_us"], row["fence"]) != (removal.end_us, removal.fence):
                continue
            if row["status"] == Status.RUNNING or _is_wanted(row, wanted, text):
                continue
            del live[removal.start_us]
            removed.append(removal)
            reason = _storable(removal.reason)
            values = {"status": Status.SUPERSEDED, "live": None, "reason": reason, "due_us": 0}
            moves.append(_Move(row, values, {"reason": reason}))
    if moves:
        _move(connection, "superseded", moves, now_us)
    return removed


def _is_wanted(row: Row, wanted: set[Addition], text: str) -> bool:
    """Whether the row is just what the change would put in its place: then the change was applied before."""
    return (
        row["status"] == Status.PENDING
        and row["fence"] == 0
        and row["fields"] == text
        and Addition(*(row[name] for name in Addition._fields)) in wanted
    )


def _add(connection: sa.Connection, change: Change, now_us: int) -> list[Addition]:
    """Adds pending records where no live one is in the way."""
    if not change.add:
        return []
    added = _free(sorted(change.add, key=itemgetter(0, 1)), _in_the_way(connection, change))
    if added:
        same = {
            "pipeline": change.pipeline,
            "live": 1,
            "status": Status.PENDING,
            "reason": _storable(change.reason),
            "crashes": 0,
            "due_us": 0,
            "fence": 0,
            "fields": _json(change.fields, "fields"),
            "evidence": "{}",
            "updated_us": now_us,
        }
        _INSERT.run(connection, [{**same, **addition._asdict()} for addition in added])
    return added


def _in_the_way(connection: sa.Connection, change: Change) -> list[tuple[int, int]]:
    """The live spans that the additions may overlap, in order. Live spans are apart, so one at most reaches in."""
    first_us = min(addition.start_us for addition in change.add)
    last_us = max(addition.end_us for addition in change.add)
    before = connection.execute(_LIVE_BEFORE, {"pipeline": change.pipeline, "first_us": first_us})
    between = connection.execute(_LIVE_BETWEEN, {"pipeline": change.pipeline, "first_us": first_us, "last_us": last_us})
    return [(start_us, end_us) for found in (before, between) for start_us, end_us in found]


def _free(additions: Sequence[Addition], taken: Sequence[tuple[int, int]]) -> list[Addition]:
    """The additions that overlap no taken span and no earlier addition. Both come in order of time."""
    free: list[Addition] = []
    at, count, reach = 0, len(taken), MIN_US
    for addition in additions:
        Window.from_us(addition.start_us, addition.end_us)  # raises where it is none
        while at < count and taken[at][1] <= addition.start_us:
            at += 1
        if addition.start_us >= reach and (at == count or taken[at][0] >= addition.end_us):
            free.append(addition)
            reach = addition.end_us
    return free


def _planned(change: Change, removed: Sequence[Removal], added: Sequence[Addition], now_us: int) -> dict[str, Any]:
    spans = [(span.start_us, span.end_us) for part in (removed, added) for span in part]
    told = {
        "reason": change.reason,
        "superseded": len(removed),
        "added": len(added),
        "from": iso(min(start_us for start_us, _ in spans)),
        "to": iso(max(end_us for _, end_us in spans)),
    }
    run = {"pipeline": change.pipeline, "start_us": None, "end_us": None}
    return _event(run, "planned", now_us, told)


def _pages(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    for at in range(0, len(rows), _STARTS_A_QUERY):
        yield rows[at : at + _STARTS_A_QUERY]


# --- values -----------------------------------------------------------------------------------------------------------


def _rows(connection: sa.Connection, query: sa.Select[Any], values: Mapping[str, Any] | None = None) -> list[Row]:
    return [row._asdict() for row in connection.execute(query, values)]


def _as_they_came(connection: sa.Connection, table: sa.Table, pipeline: str) -> Iterator[Row]:
    """Every row of the pipeline, in pages."""
    query = sa.select(table).where(table.c.pipeline == pipeline).order_by(table.c.id).limit(_KEPT_A_PAGE)
    page = _rows(connection, query)
    while page:
        yield from page
        page = _rows(connection, query.where(table.c.id > page[-1]["id"]))


def _from(pipeline: str, first_us: int) -> sa.ColumnElement[bool]:
    """That a record starts at `first_us` or later, or is in the row of many that reaches in from before."""
    over = sa.select(sa.func.max(records.c.start_us)).where(
        records.c.pipeline == pipeline, records.c.live == 1, records.c.start_us < first_us
    )
    return (records.c.start_us >= first_us) | (_is_folded & (records.c.start_us == over.scalar_subquery()))


def _spans_of(row: Any) -> Iterator[tuple[Any, ...]]:
    """What a row of many windows says of each, as it is read of a row of one."""
    for each in laid_apart([{**row._asdict(), "pipeline": "", "updated_us": 0}]):
        yield (*(each[name] for name in Span._fields), None)


def _bounds(request: ClaimRequest) -> dict[str, Any]:
    """The request as parameters. A window that ends by the stable instant starts before it: that bounds the index."""
    first_us, last_us = MIN_US, request.stable_until_us
    if request.within is not None:
        first_us, last_us = request.within.start_us, min(request.within.end_us, last_us)
    return {
        "pipeline": request.pipeline,
        "first_us": first_us,
        "last_us": last_us,
        "stable_us": request.stable_until_us,
    }


def _wanted(request: ClaimRequest) -> dict[str, Any]:
    lease_us = _us(request.lease_s)
    return {**_bounds(request), "limit": request.limit, "owner": request.owner, "lease_us": lease_us}


def _claim(row: Row) -> Claim:
    return Claim(row["claim_id"], _record(row), row["fence"])


def _record(row: Row) -> Record:
    status = Status(row["status"])
    return Record(
        pipeline=row["pipeline"],
        window=_window(row),
        fields=_fields(row["fields"]),
        status=status,
        outcome=None if row["outcome"] is None else Outcome(row["outcome"]),
        reason=row["reason"],
        attempts=row["attempts"],
        crashes=row["crashes"],
        not_before_us=row["due_us"] if status is Status.PENDING else 0,
        fence=row["fence"],
        claim_id=row["claim_id"],
        owner=row["owner"],
        lease_until_us=row["due_us"] if status is Status.RUNNING else None,
        identity=row["identity"],
        verified_rows=row["verified_rows"],
        asked=None if row["asked"] is None else Asked(row["asked"]),
        evidence=_evidence(row["evidence"]),
        updated_us=row["updated_us"],
    )


def _row(record: Record) -> Row:
    """The row that stands for a record, without its id."""
    window, running = record.window, record.status is Status.RUNNING
    return {
        "pipeline": record.pipeline,
        "start_us": window.start_us,
        "end_us": window.end_us,
        "live": None if record.status is Status.SUPERSEDED else 1,
        "status": record.status,
        "outcome": record.outcome,
        "reason": _storable(record.reason),
        "attempts": record.attempts,
        "crashes": record.crashes,
        "due_us": (record.lease_until_us or 0) if running else record.not_before_us,
        "fence": record.fence,
        "claim_id": record.claim_id,
        "owner": record.owner,
        "identity": _storable(record.identity),
        "verified_rows": record.verified_rows,
        "asked": record.asked,
        "fields": "null" if record.fields is None else _json(record.fields, "fields"),
        "evidence": _json(record.evidence, f"window {window}: the evidence"),
        "updated_us": record.updated_us,
    }


def _told(row: Row) -> Event:
    window = None if row["start_us"] is None else _window(row)
    return Event(row["at_us"], row["pipeline"], window, row["step"], json.loads(row["fields"]))


def _logged(event: Event) -> Row:
    window = event.window
    start_us, end_us = (None, None) if window is None else (window.start_us, window.end_us)
    return _event(
        {"pipeline": event.pipeline, "start_us": start_us, "end_us": end_us}, event.step, event.at_us, event.fields
    )


def _window(row: Row) -> Window:
    return Window.from_us(row["start_us"], row["end_us"])


def _fields(text: str) -> Mapping[str, Any] | None:
    """The stored fields, or None where the text is no JSON object any more: planning then rebuilds the record."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _evidence(text: str) -> Mapping[str, Any]:
    """The stored evidence. What cannot be read is shown as it is, so that it neither blocks a claim nor looks empty."""
    value = _fields(text)
    return {"unreadable": text} if value is None else value


def _json(value: Mapping[str, Any], what: str) -> str:
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RecordError(
            f"{what}: cannot be stored as JSON: {error}; expected text, numbers, lists, mappings"
        ) from None


def _storable(text: str) -> str:
    """Text that every engine stores: no NUL, which PostgreSQL refuses, and no half of a surrogate pair."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\x00")


def _us(seconds: float) -> int:
    return round(seconds * 1_000_000)
