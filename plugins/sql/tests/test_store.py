"""The SQL record store on each engine, through its public verbs."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from attrs import evolve

import pipeline_sql
from pipeline_core import (
    Addition,
    Change,
    Claim,
    ClaimLostError,
    ClaimRequest,
    ConfigError,
    Context,
    Outcome,
    PermanentError,
    Record,
    RecordError,
    Removal,
    Secret,
    Status,
    TimeError,
    TransientError,
    Verdict,
    Window,
)
from pipeline_core.errors import SideError
from pipeline_sql import schema
from pipeline_sql.engines import open_engine
from pipeline_sql.settings import SqlStoreSettings
from pipeline_sql.store import SqlRecordStore, opened

MINUTE_US = 60_000_000
LATER_US = 10**15
FAR = Window.from_us(10**14, 10**14 + 1)  # no record is there

Clocked = Callable[[str], Any]

on_sqlite = pytest.mark.parametrize("url", ["sqlite"], indirect=True)
on_postgresql = pytest.mark.parametrize("url", ["postgresql"], indirect=True)


@pytest.fixture
def engine(clocked: Clocked, url: str) -> Any:
    return clocked(url)


def edit(engine: Any, *statements: str) -> None:
    """Writes past the store, as a person with a database tool would."""
    with engine.sa.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


@pytest.fixture
def store(engine: Any) -> Iterator[SqlRecordStore]:
    with opened(engine) as store:
        yield store


def additions(count: int, first: int = 0) -> list[Addition]:
    """`count` windows of ten microseconds, one after the other."""
    return [Addition(number * 10, number * 10 + 10, 0) for number in range(first, first + count)]


def plan(count: int, **other: Any) -> Change:
    return Change("p", add=additions(count), **other)


PLAN = plan(1)


def request(**other: Any) -> ClaimRequest:
    return evolve(ClaimRequest("p", LATER_US, 60), **other)


def claim_one(store: SqlRecordStore, **other: Any) -> Claim:
    (claim,) = store.claim(request(**other))
    return claim


def removal(store: SqlRecordStore, start_us: int, reason: str = "no longer wanted") -> Removal:
    (span,) = [span for span in store.spans("p") if span.start_us == start_us]
    return Removal(span.start_us, span.end_us, span.fence, reason)


def starts(store: SqlRecordStore) -> list[int]:
    return [span.start_us for span in store.spans("p")]


def only(store: SqlRecordStore, *status: Status) -> Record:
    (record,) = store.records("p", *status)
    return record


DONE = Verdict(Status.DONE, "loaded 3 rows", Outcome.LOADED, {"rows": 3}, "a to b", 3)


# --- the plugin -------------------------------------------------------------------------------------------------------


def test_entry_module_imports_no_driver() -> None:
    """Listing the plugins must not cost the import of SQLAlchemy."""
    code = "import sys, pipeline_sql; print([m for m in ('sqlalchemy', 'alembic', 'pyarrow') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_provider_opens_a_store_in_a_folder_that_it_makes(tmp_path: Path) -> None:
    """The provider's settings open a store that remembers, and whose default folder need not exist."""
    (provider,) = pipeline_sql.pipeline_record_stores()
    settings = provider.settings(url=Secret(f"sqlite:///{tmp_path}/.pipeline-core/records.db"))
    with settings.open(Context("p")) as store:
        store.apply(plan(2))
    with settings.open(Context("p")) as store:
        assert len(store.spans("p")) == 2
    assert provider.name == "sql"


def test_settings_refuse_a_timeout_that_is_none() -> None:
    """A timeout of zero would turn each short wait into an error."""
    with pytest.raises(ValueError, match="timeout_s"):
        SqlStoreSettings(Secret("sqlite:///x.db"), timeout_s=0)


@pytest.mark.parametrize("url", ["sqlite", "mariadb"], indirect=True)
def test_a_lost_row_of_the_fence_is_named(store: SqlRecordStore, engine: Any) -> None:
    """Nothing is claimed by a guess; put back as the message says, it goes on above the fences that were given out."""
    store.apply(plan(3))
    first = claim_one(store)
    edit(engine, "DELETE FROM pipeline_core_fence")
    with pytest.raises(SideError, match=r"pipeline_core_fence: found no row, .* the highest fence of"):
        store.claim(request())
    with pytest.raises(SideError, match="found no row"):
        store.resume(first, 60)
    assert [span.status for span in store.spans("p")] == ["running", "pending", "pending"]
    edit(engine, "INSERT INTO pipeline_core_fence SELECT 1, MAX(fence) FROM pipeline_core_records")
    assert claim_one(store).fence > first.fence


# --- apply ------------------------------------------------------------------------------------------------------------


def test_apply_adds_pending_records_in_order_of_time(store: SqlRecordStore, engine: Any) -> None:
    """Every added record is pending, with the fields of the change and the attempts it inherits."""
    change = Change("p", add=(Addition(0, 10, 0), Addition(10, 25, 2)), fields={"key": "x"}, reason="generated")
    assert store.apply(change) == change
    first, second = store.records("p")
    assert (first.window, second.window) == (Window.from_us(0, 10), Window.from_us(10, 25))
    assert (first.attempts, second.attempts) == (0, 2)
    assert (second.status, second.fields, second.reason) == (Status.PENDING, {"key": "x"}, "generated")
    assert second.updated_us == engine.clock_us
    assert store.spans("other") == []


def test_apply_again_changes_nothing(store: SqlRecordStore) -> None:
    """A change applied twice takes effect once, and the second time says that nothing did."""
    store.apply(plan(3, fields={"key": "old"}))
    change = Change("p", (removal(store, 10),), (Addition(10, 15, 1), Addition(15, 20, 1)), {"key": "new"}, "re-cut")
    assert store.apply(change) == change
    before = store.spans("p"), list(store.events("p"))
    assert not store.apply(change)
    assert (store.spans("p"), list(store.events("p"))) == before


def test_apply_of_a_rebuild_in_place_is_idempotent(store: SqlRecordStore) -> None:
    """A pending record replaced by one of the same span is not replaced once more."""
    store.apply(plan(1, fields={"key": "old"}))
    change = Change("p", (removal(store, 0),), tuple(additions(1)), {"key": "new"}, "rebuilt")
    assert store.apply(change) == change
    assert not store.apply(change)
    assert only(store).fields == {"key": "new"}
    assert len(store.records("p", Status.SUPERSEDED)) == 1


def test_additions_that_overlap_a_live_record_are_passed_over(store: SqlRecordStore) -> None:
    """Touching is no overlap; reaching in from either side, lying inside and covering are."""
    store.apply(Change("p", add=[Addition(100, 200, 0), Addition(300, 400, 0)]))
    wanted = [(0, 50), (50, 101), (120, 130), (199, 210), (200, 300), (250, 450), (400, 500)]
    applied = store.apply(Change("p", add=[Addition(start, end, 0) for start, end in wanted]))
    assert [(start, end) for start, end, *_ in applied.add] == [(0, 50), (200, 300), (400, 500)]
    assert starts(store) == [0, 100, 200, 300, 400]


def test_additions_that_overlap_each_other_are_passed_over(store: SqlRecordStore) -> None:
    """Of two additions that overlap the earlier one is added."""
    applied = store.apply(Change("p", add=[Addition(0, 10, 0), Addition(5, 15, 0), Addition(10, 20, 0)]))
    assert applied.add == (Addition(0, 10, 0), Addition(10, 20, 0))


def test_a_long_record_that_begins_far_before_is_seen(store: SqlRecordStore) -> None:
    """The overlap check looks behind the first addition, at the one live record that may reach in."""
    store.apply(Change("p", add=[Addition(0, 1_000, 0)]))
    assert not store.apply(Change("p", add=[Addition(990, 1_010, 0)]))


def test_an_addition_that_is_no_window_is_refused(store: SqlRecordStore) -> None:
    """Start and end the wrong way round: nothing of the change takes effect."""
    with pytest.raises(TimeError, match="start before the end"):
        store.apply(Change("p", add=[Addition(0, 10, 0), Addition(30, 20, 0)]))
    assert store.spans("p") == []


def test_fields_that_are_no_json_are_refused(store: SqlRecordStore) -> None:
    """The error says what cannot be stored, and nothing is."""
    with pytest.raises(RecordError, match="fields: cannot be stored as JSON"):
        store.apply(plan(1, fields={"when": object()}))
    assert store.spans("p") == []


def test_removals_of_what_has_changed_are_passed_over(store: SqlRecordStore) -> None:
    """A record that is running, was claimed since, ends elsewhere or is gone stays as it is."""
    store.apply(plan(4))
    planned = [removal(store, start) for start in (0, 10, 20, 30)]
    claim_one(store)
    second = claim_one(store)
    store.settle(second, Verdict(Status.PENDING, "given back"))
    change = Change("p", [*planned[:2], evolve_removal(planned[2]), Removal(40, 50, 0, "gone"), planned[3]])
    assert store.apply(change).remove == (planned[3],)
    assert starts(store) == [0, 10, 20]


def test_a_running_record_is_never_superseded(store: SqlRecordStore) -> None:
    """Not even by a plan that knows its fence."""
    store.apply(plan(1))
    claim_one(store)
    assert not store.apply(Change("p", [removal(store, 0)]))
    assert only(store).status is Status.RUNNING


def evolve_removal(removal: Removal) -> Removal:
    return removal._replace(end_us=removal.end_us + 1)


def test_superseding_tells_one_event_a_record_and_one_a_plan(store: SqlRecordStore) -> None:
    """The log says which record went and why, and what the plan did as a whole."""
    store.apply(plan(3))
    store.apply(Change("p", [removal(store, 10, "new grid")], [Addition(10, 20, 0)], {"k": 1}, "rebuilt"))
    planned, superseded, replanned = store.events("p")
    assert planned.step == replanned.step == "planned"
    assert planned.window is None
    assert (superseded.step, superseded.window) == ("superseded", Window.from_us(10, 20))
    assert superseded.fields == {"status": "superseded", "was": "pending", "reason": "new grid"}
    assert {key: replanned.fields[key] for key in ("reason", "superseded", "added")} == {
        "reason": "rebuilt",
        "superseded": 1,
        "added": 1,
    }
    assert replanned.fields["from"] == "1970-01-01T00:00:00.000010Z"
    assert replanned.fields["to"] == "1970-01-01T00:00:00.000020Z"


def test_uniqueness_concerns_live_records_only(store: SqlRecordStore, engine: Any) -> None:
    """Many superseded records may share a start; the database itself refuses a second live one."""
    for number in range(3):
        store.apply(plan(1, fields={"version": number}))
        store.apply(Change("p", [removal(store, 0)]))
    store.apply(plan(1))
    assert len(store.records("p", Status.SUPERSEDED)) == 3
    with pytest.raises(sa.exc.DBAPIError, match=r"UNIQUE|uq_pipeline_core_records_live|ex_pipeline_core"):
        edit(engine, "UPDATE pipeline_core_records SET live = 1")


def test_the_database_refuses_a_span_that_is_none(store: SqlRecordStore, engine: Any) -> None:
    """A row written past the store cannot end before it starts."""
    store.apply(plan(1))
    with pytest.raises(sa.exc.DBAPIError, match=r"CHECK|ck_pipeline_core_records_span"):
        edit(engine, "UPDATE pipeline_core_records SET end_us = start_us")


def test_a_hundred_thousand_records_and_back(store: SqlRecordStore, engine: Any) -> None:
    """A change in bulk adds, and one in bulk supersedes, in order and complete."""
    many = tuple(additions(100_000 if engine.name == "sqlite" else 20_000))  # a server answers each row anew
    assert store.apply(Change("p", add=many)).add == many
    assert starts(store) == [addition.start_us for addition in many]
    gone = tuple(Removal(start, end, 0, "all") for start, end, *_ in many[1:])
    assert store.apply(Change("p", gone)).remove == gone
    assert starts(store) == [0]


# --- claim ------------------------------------------------------------------------------------------------------------


def test_claims_take_the_oldest_first_and_each_its_own_fence(store: SqlRecordStore, engine: Any) -> None:
    """A batch is in order of time; each claim has an id and a fence of its own, above the clock and every other."""
    store.apply(plan(5))
    claims = [*store.claim(request(limit=2, owner="host:1")), *store.claim(request(limit=2))]
    assert [claim.window.start_us for claim in claims] == [0, 10, 20, 30]
    assert len({claim.id for claim in claims}) == 4
    assert [claim.fence for claim in claims] == [engine.clock_us + number for number in range(4)]
    first = store.records("p", Status.RUNNING)[0]
    assert first == claims[0].record
    assert (first.claim_id, first.fence, first.owner) == (claims[0].id, claims[0].fence, "host:1")
    assert first.lease_until_us == engine.clock_us + 60_000_000
    assert [event.step for event in store.events("p")] == ["planned", *["claimed"] * 4]


def test_a_claim_finds_only_stable_windows_of_its_pipeline_and_span(store: SqlRecordStore) -> None:
    """A window may be claimed once its end is at the limit; `within` asks for windows that start in it."""
    store.apply(plan(5))
    store.apply(Change("q", add=additions(1)))
    assert store.claim(request(stable_until_us=9)) == []
    assert claim_one(store, stable_until_us=10).window.start_us == 0
    assert store.claim(request(stable_until_us=19)) == []
    within = Window.from_us(25, 41)
    assert [c.window.start_us for c in store.claim(request(limit=9, within=within))] == [30, 40]
    assert [c.record.pipeline for c in store.claim(request(pipeline="q", limit=9))] == ["q"]


def test_windows_before_1970_are_claimed_too(store: SqlRecordStore) -> None:
    """Instants before the epoch are negative numbers, and as good as any."""
    store.apply(Change("p", add=[Addition(-20, -10, 0), Addition(-10, 0, 0)]))
    assert [c.window.start_us for c in store.claim(request(limit=2, stable_until_us=-5))] == [-20]


def test_fences_never_fall_when_the_clock_does(store: SqlRecordStore, engine: Any) -> None:
    """One sequence for the whole store: a clock set back, or another pipeline, changes nothing."""
    store.apply(plan(2))
    store.apply(Change("q", add=additions(1)))
    first = claim_one(store)
    engine.clock_us -= 10**12
    second = claim_one(store, pipeline="q")
    engine.clock_us += 2 * 10**12
    third = claim_one(store)
    assert first.fence < second.fence < third.fence == engine.clock_us


def test_backoff_is_waited_for(store: SqlRecordStore, engine: Any) -> None:
    """A window in backoff is passed over, the next one goes on, and it is the oldest again once its time has come."""
    store.apply(plan(2))
    store.settle(claim_one(store), Verdict(Status.PENDING, "throttled", wait_s=30))
    assert store.records("p")[0].not_before_us == engine.clock_us + 30_000_000
    assert claim_one(store).window.start_us == 10
    assert store.claim(request()) == []
    assert store.next_claim_us(request(stable_until_us=10)) == engine.clock_us + 30_000_000
    engine.clock_us += 30_000_000
    assert claim_one(store).window.start_us == 0


def test_next_claim_tells_when_to_look_again(store: SqlRecordStore, engine: Any) -> None:
    """At once for a ready window, at the lease's end for a running one, never where nothing is left."""
    assert store.next_claim_us(request()) is None
    store.apply(plan(2))
    ready_us = store.next_claim_us(request())
    assert ready_us is not None
    assert ready_us <= engine.clock_us
    assert store.next_claim_us(request(stable_until_us=9)) is None
    claims = store.claim(request(limit=2, owner="host:1"))
    assert store.next_claim_us(request()) == engine.clock_us + 60_000_000
    assert store.next_claim_us(request(dead_owners=frozenset({"host:1"}))) == engine.clock_us
    assert store.next_claim_us(request(dead_owners=frozenset({"host:1"}), stable_until_us=9)) is None
    assert store.next_claim_us(request(within=Window.from_us(20, 30))) is None
    for claim in claims:
        store.settle(claim, DONE)
    assert store.next_claim_us(request()) is None


@pytest.mark.parametrize("verdict", [None, Verdict(Status.PENDING, "later", wait_s=5)])
def test_what_waited_long_enough_goes_before_younger_windows(
    store: SqlRecordStore, engine: Any, verdict: Verdict | None
) -> None:
    """An expired lease, or a backoff that is over, while another window is ready: the older one is claimed."""
    store.apply(plan(2))
    oldest = claim_one(store)
    if verdict is not None:
        store.settle(oldest, verdict)
    engine.clock_us += 60_000_000
    assert claim_one(store).window == oldest.window


def test_an_expired_lease_is_a_crash_and_the_last_one_quarantines(store: SqlRecordStore, engine: Any) -> None:
    """The first crash is retried at once, the second after the backoff, the third not at all."""
    store.apply(plan(1))
    first = claim_one(store)
    engine.clock_us = first.record.lease_until_us - 1
    assert store.claim(request()) == []
    engine.clock_us += 1
    second = claim_one(store)
    assert (second.record.crashes, second.record.attempts) == (1, 0)
    engine.clock_us += MINUTE_US
    assert store.claim(request(crash_backoff_s=5)) == []
    assert only(store).not_before_us == engine.clock_us + 5_000_000
    engine.clock_us += 5_000_000
    claim_one(store)
    engine.clock_us += MINUTE_US
    assert store.claim(request(max_crashes=3)) == []
    record = only(store, Status.QUARANTINED)
    assert (record.crashes, record.attempts) == (3, 0)
    assert record.reason == "its lease ran out: crash 3 of 3"
    expired = [event.fields["status"] for event in store.events("p") if event.step == "expired"]
    assert expired == ["pending", "pending", "quarantined"]


def test_a_crash_backoff_never_overflows(store: SqlRecordStore, engine: Any) -> None:
    """However many crashes are allowed, the doubled wait stays a number that the database holds."""
    store.apply(plan(1))
    for _ in range(70):
        claim_one(store, max_crashes=1_000)
        engine.clock_us += MINUTE_US
        assert store.claim(request(max_crashes=1_000, within=FAR)) == []  # notices the expiry
        engine.clock_us = max(engine.clock_us, only(store).not_before_us)
    assert only(store).crashes == 70


def test_leases_of_dead_owners_are_taken_over_at_once(store: SqlRecordStore) -> None:
    """A dead owner's lease counts as expired; a living one's does not, and each crash is told."""
    store.apply(plan(2))
    claim_one(store, owner="host:1")
    claim_one(store, owner="host:2")
    taken = claim_one(store, dead_owners=frozenset({"host:1", "host:3"}))
    assert (taken.window.start_us, taken.record.crashes) == (0, 1)
    (expired,) = [event for event in store.events("p") if event.step == "expired"]
    assert expired.fields["reason"] == "its worker (host:1) died: crash 1 of 5"
    assert expired.fields["owner"] == "host:1"


# --- resume, renew, settle --------------------------------------------------------------------------------------------


def test_resume_brings_a_higher_fence_and_locks_the_old_one_out(store: SqlRecordStore, engine: Any) -> None:
    """The claim's id stays; who still holds the lower fence can neither renew nor settle."""
    store.apply(plan(1))
    old = claim_one(store, owner="host:1")
    engine.clock_us += 30_000_000
    new = store.resume(old, 60)
    assert new.id == old.id
    assert new.fence > old.fence
    assert new.record == only(store, Status.RUNNING)
    assert new.record.lease_until_us == engine.clock_us + 60_000_000
    assert new.record.owner is None
    for verb in (lambda: store.renew(old, 60), lambda: store.settle(old, DONE)):
        with pytest.raises(ClaimLostError, match=f"resumed elsewhere, under fence {new.fence}"):
            verb()
    assert store.resume(old, 60).fence > new.fence


def test_resume_past_the_lease_while_nobody_else_has_claimed(store: SqlRecordStore, engine: Any) -> None:
    """An expired claim may go on, even when its expiry was noticed; once another has claimed it is lost."""
    store.apply(plan(1))
    claim = claim_one(store)
    engine.clock_us += 2 * MINUTE_US
    claim = store.resume(claim, 60)
    engine.clock_us += 2 * MINUTE_US
    assert store.claim(request(within=FAR)) == []  # notices the expiry
    assert only(store).status is Status.PENDING
    with pytest.raises(ClaimLostError, match="it is pending now: its lease ran out"):
        store.renew(claim, 60)
    with pytest.raises(ClaimLostError, match="it is pending now"):
        store.settle(claim, DONE)
    claim = store.resume(claim, 60)
    assert (claim.record.status, claim.record.crashes) == (Status.RUNNING, 1)
    engine.clock_us += 2 * MINUTE_US
    assert store.claim(request()) == []  # the second crash backs off
    engine.clock_us += MINUTE_US
    other = claim_one(store)
    for verb in (store.resume, store.renew):
        with pytest.raises(ClaimLostError, match=f"another worker claimed it, under fence {other.fence}"):
            verb(claim, 60)
    store.settle(other, DONE)


@pytest.mark.parametrize("status", [Status.DONE, Status.QUARANTINED])
def test_resume_of_what_the_claim_has_settled_comes_back_unchanged(store: SqlRecordStore, status: Status) -> None:
    """A task repeated after its window was settled gets the recorded result, and no new fence."""
    store.apply(plan(1))
    claim = claim_one(store)
    settled = store.settle(claim, evolve(DONE, status=status))
    log = list(store.events("p"))
    again = store.resume(claim, 60)
    assert (again.id, again.fence, again.record) == (claim.id, claim.fence, settled)
    assert list(store.events("p")) == log


def test_resume_of_what_was_given_back_or_superseded_is_lost(store: SqlRecordStore) -> None:
    """The error names the window and says what became of it."""
    store.apply(plan(1))
    claim = claim_one(store)
    store.settle(claim, Verdict(Status.PENDING, "source down"))
    with pytest.raises(ClaimLostError, match=r"1970-01-01T00:00:00Z/.* given back, and is pending now: source down"):
        store.resume(claim, 60)
    claim = claim_one(store)
    store.settle(claim, DONE)
    store.apply(Change("p", [removal(store, 0)], [Addition(0, 20, 0)]))
    with pytest.raises(ClaimLostError, match="superseded"):
        store.resume(claim, 60)


def test_renew_extends_the_lease(store: SqlRecordStore, engine: Any) -> None:
    """A renewed lease is not taken over at its first end, and renewing adds no event."""
    store.apply(plan(1))
    claim = claim_one(store)
    log = list(store.events("p"))
    engine.clock_us += 50_000_000
    store.renew(claim, 60)
    engine.clock_us += 50_000_000
    assert store.claim(request()) == []
    assert list(store.events("p")) == log
    engine.clock_us += 10_000_000
    assert claim_one(store).id != claim.id


def test_settle_keeps_what_the_verdict_says(store: SqlRecordStore) -> None:
    """Done: outcome, reason, evidence and identity are on the record and in the log; the lease is gone."""
    store.apply(plan(1))
    claim = claim_one(store, owner="host:1")
    record = store.settle(claim, DONE)
    assert record == only(store, Status.DONE)
    assert (record.outcome, record.reason) == (Outcome.LOADED, "loaded 3 rows")
    assert (record.evidence, record.identity) == ({"rows": 3}, "a to b")
    assert (record.claim_id, record.lease_until_us, record.attempts) == (claim.id, None, 0)
    event = list(store.events("p"))[-1]
    assert (event.step, event.window) == ("settled", record.window)
    assert event.fields == {
        "status": "done",
        "was": "running",
        "reason": "loaded 3 rows",
        "outcome": "loaded",
        "attempts": 0,
        "fence": claim.fence,
        "evidence": {"rows": 3},
    }


def test_pending_again_counts_the_attempt_only_where_told_and_forgets_the_claim(store: SqlRecordStore) -> None:
    """A fault of a side uses no attempt; a fault of the window does."""
    store.apply(plan(1))
    record = store.settle(claim_one(store), Verdict(Status.PENDING, "source down"))
    assert (record.attempts, record.claim_id, record.owner, record.lease_until_us) == (0, None, None, None)
    assert record.not_before_us == 0
    assert store.settle(claim_one(store), Verdict(Status.PENDING, "bad rows", attempt=True)).attempts == 1
    assert store.settle(claim_one(store), Verdict(Status.QUARANTINED, "bad rows", attempt=True)).attempts == 2


def test_crashes_survive_pending_and_end_with_done(store: SqlRecordStore, engine: Any) -> None:
    """Only a window that came through has stopped killing its workers."""
    store.apply(plan(1))
    claim_one(store)
    engine.clock_us += MINUTE_US
    assert store.settle(claim_one(store), Verdict(Status.PENDING, "again")).crashes == 1
    assert store.settle(claim_one(store), DONE).crashes == 0


@pytest.mark.parametrize("status", [Status.RUNNING, Status.SUPERSEDED])
def test_a_verdict_that_ends_no_claim_is_refused(store: SqlRecordStore, status: Status) -> None:
    """Neither running nor superseded is a way for an attempt to end."""
    store.apply(plan(1))
    claim = claim_one(store)
    with pytest.raises(RecordError, match=status):
        store.settle(claim, Verdict(status, "no"))
    assert only(store).status is Status.RUNNING


def test_settling_twice_is_refused(store: SqlRecordStore) -> None:
    """The second verdict does not overwrite the first."""
    store.apply(plan(1))
    claim = claim_one(store)
    store.settle(claim, DONE)
    with pytest.raises(ClaimLostError, match="it is done now"):
        store.settle(claim, Verdict(Status.QUARANTINED, "late"))
    assert only(store).reason == "loaded 3 rows"


def test_any_text_can_be_a_reason(store: SqlRecordStore) -> None:
    """NUL and halves of surrogate pairs come out of broken file names and drivers; some engines cannot store them."""
    store.apply(plan(1))
    assert store.settle(claim_one(store), Verdict(Status.PENDING, "a\0b\udcffc ü")).reason == "a\\x00b\\udcffc ü"


# --- reading ----------------------------------------------------------------------------------------------------------


def test_records_by_status_span_and_limit(store: SqlRecordStore) -> None:
    """No status asks for the live ones; `within` for those that start in it."""
    store.apply(plan(5))
    store.apply(Change("p", [removal(store, 40)]))
    store.settle(claim_one(store), DONE)
    claim_one(store)
    assert [r.window.start_us for r in store.records("p")] == [0, 10, 20, 30]
    assert [r.window.start_us for r in store.records("p", Status.DONE, Status.SUPERSEDED)] == [0, 40]
    assert [r.window.start_us for r in store.records("p", within=Window.from_us(5, 30))] == [10, 20]
    assert [r.window.start_us for r in store.records("p", Status.PENDING, limit=1)] == [20]
    assert store.records("p", limit=0) == []


def test_events_since_and_by_window(store: SqlRecordStore, engine: Any) -> None:
    """The log is in order, begins where asked, and with a window holds what overlaps it."""
    store.apply(plan(3))
    since_us = engine.clock_us = engine.clock_us + 1
    for _ in range(3):
        store.settle(claim_one(store), DONE)
        engine.clock_us += 1
    assert [event.step for event in store.events("p", since_us)] == ["claimed", "settled"] * 3
    assert len(list(store.events("p", since_us + 1))) == 4
    told = list(store.events("p", window=Window.from_us(19, 20)))
    assert [(event.step, event.window) for event in told] == [
        ("claimed", Window.from_us(10, 20)),
        ("settled", Window.from_us(10, 20)),
    ]
    assert list(store.events("other")) == []


def test_a_long_log_is_read_whole(store: SqlRecordStore, engine: Any) -> None:
    """More events than are fetched at once, many of the same instant: each comes once, in order."""
    store.apply(plan(15_000))
    assert len(store.claim(request(limit=15_000))) == 15_000
    engine.clock_us += MINUTE_US
    store.claim(request(limit=15_000))
    told = [event for event in store.events("p") if event.step == "expired"]
    assert len(told) == 15_000
    assert len({event.window for event in told}) == 15_000
    assert len(list(store.events("p"))) == 45_001


def test_fields_that_are_no_json_object_any_more_read_as_none(store: SqlRecordStore, engine: Any) -> None:
    """Someone edited the table: planning sees it, and neither reading nor claiming fails."""
    store.apply(plan(3, fields={"key": 1}))
    edit(
        engine,
        "UPDATE pipeline_core_records SET fields = 'oops', evidence = '{' WHERE start_us = 0",
        "UPDATE pipeline_core_records SET fields = '[1]' WHERE start_us = 10",
    )
    assert [span.fields for span in store.spans("p")] == [None, None, {"key": 1}]
    record = claim_one(store).record
    assert (record.fields, record.evidence) == (None, {"unreadable": "{"})


def test_spans_are_what_planning_needs(store: SqlRecordStore) -> None:
    """Live records only, in order, with status, fence, attempts and identity."""
    store.apply(plan(3))
    claim = claim_one(store)
    store.settle(claim, DONE)
    store.apply(Change("p", [removal(store, 10)]))
    done, pending = store.spans("p")
    assert done == (0, 10, Status.DONE, claim.fence, 0, "a to b", {}, Outcome.LOADED, 3, None)
    assert pending == (20, 30, Status.PENDING, 0, 0, "", {}, None, None, None)
    assert isinstance(done.status, Status)


def test_the_stores_clock_is_the_hosts_on_sqlite(tmp_path: Path) -> None:
    """SQLite has no server: its clock is in microseconds, and runs."""
    with opened(open_engine(Secret(f"sqlite:///{tmp_path}/r.db"), timeout_s=5)) as store:
        before_us = store.now_us()
        assert before_us > 1_700_000_000_000_000
        assert store.now_us() >= before_us


# --- the cost of a claim ----------------------------------------------------------------------------------------------


def steps_of_a_claim(engine: Any, store: SqlRecordStore) -> int:
    """How many hundreds of instructions of SQLite's virtual machine one claim takes."""
    hundreds = 0

    def count() -> int:
        nonlocal hundreds
        hundreds += 1
        return 0

    with engine.sa.connect() as connection:
        driver = connection.connection.driver_connection
    driver.set_progress_handler(count, 100)
    assert store.claim(request())
    driver.set_progress_handler(None, 0)
    return hundreds


@on_sqlite
def test_a_claim_costs_the_same_behind_any_number_of_records(store: SqlRecordStore, engine: Any) -> None:
    """Done records, records in backoff and pending ones: an index leads past all of them."""
    store.apply(plan(20))
    few = steps_of_a_claim(engine, store)
    store.apply(Change("p", add=additions(6_000, first=100)))
    wait = Verdict(Status.PENDING, "later", wait_s=10_000)
    for verdict in (DONE, wait):
        for claim in store.claim(request(limit=2_000, lease_s=10_000)):
            store.settle(claim, verdict)
    assert steps_of_a_claim(engine, store) <= few + 5


@on_sqlite
def test_each_statement_of_a_claim_walks_an_index(store: SqlRecordStore, engine: Any) -> None:
    """No statement reads the whole table, and none sorts: the index already has the order."""
    store.apply(plan(20))
    with engine.sa.connect() as connection:
        driver = connection.connection.driver_connection
    said: list[str] = []
    driver.set_trace_callback(said.append)
    claim = claim_one(store)
    store.renew(claim, 60)
    store.settle(store.resume(claim, 60), DONE)
    claim_one(store, dead_owners=frozenset({"gone"}))  # step by step
    store.next_claim_us(request(within=Window.from_us(50, 90)))
    driver.set_trace_callback(None)
    statements = [text for text in said if text.startswith(("SELECT", "UPDATE"))]
    assert len(statements) > 10
    with closing(sqlite3.connect(engine.url.database)) as raw:
        for text in statements:
            steps = [row[3] for row in raw.execute(f"EXPLAIN QUERY PLAN {text}")]
            assert not [step for step in steps if "TEMP B-TREE" in step], text
            assert not [step for step in steps if step.startswith("SCAN") and step != "SCAN CONSTANT ROW"], text
        walk = "ix_pipeline_core_records_claim (pipeline=? AND status=? AND due_us=? AND start_us>? AND start_us<?)"
        oldest = [text for text in statements if "ORDER BY pipeline_core_records.start_us" in text]
        assert len(oldest) == 2
        for text in oldest:
            assert walk in next(row[3] for row in raw.execute(f"EXPLAIN QUERY PLAN {text}"))


# --- the schema -------------------------------------------------------------------------------------------------------


def differ(_context: Any, _column: Any, _meta: Any, found: Any, asked: Any) -> bool | None:
    """Whether two types differ; None where Alembic knows. MariaDB makes the smallest text type of the length asked."""
    return False if isinstance(found, sa.String) and isinstance(asked, sa.Text) else None


def test_the_migrations_make_the_tables_of_the_schema(store: SqlRecordStore, engine: Any) -> None:
    """What the migrations build and what the code queries are the same, and the newest migration is the code's."""
    # PostgreSQL has a sequence in place of that table.
    absent = {schema.fence.name} if engine.name == "postgresql" else set()
    with engine.sa.connect() as connection:
        options = {
            "version_table": schema.VERSION_TABLE,
            "compare_type": differ,
            "include_object": lambda _found, name, *_: name not in absent,
        }
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, schema.metadata) == []
    config = Config()
    config.set_main_option("script_location", "pipeline_sql:migrations")
    assert ScriptDirectory.from_config(config).get_current_head() == schema.HEAD


def test_opening_says_what_it_did_to_the_tables(url: str) -> None:
    """Made the first time, and left alone from then on."""
    for done in ("made the tables, at version", "nothing to do: the tables are at version"):
        with opened(open_engine(Secret(url), timeout_s=5)) as store:
            assert store.upgrade() == f"{done} {schema.HEAD}"


def test_opening_says_that_it_updated_the_tables(engine: Any) -> None:
    """From which version to which."""
    at_version(engine, "0001")
    with opened(engine) as store:
        assert store.upgrade() == f"updated the tables from 0001 to {schema.HEAD}"


def at_version(engine: Any, version: str) -> None:
    """The store's tables as an earlier release made them."""
    config = Config()
    config.set_main_option("script_location", "pipeline_sql:migrations")
    engine.prepare_store()
    with engine.migrating() as connection:
        config.attributes.update(connection=connection, version_table=schema.VERSION_TABLE)
        command.upgrade(config, version)


def test_evidence_of_the_first_version_becomes_verified_rows(engine: Any) -> None:
    """Rows of every kind survive the upgrade; what was verified of the done ones is read from their evidence."""
    at_version(engine, "0001")
    evidence = [
        ("done", '{"before":{"source":9,"target":0},"after":{"source":8,"target":8}}'),
        ("done", '{"before":{"source":7,"target":7}}'),
        ("done", '{"before":null,"after":{"source":0,"target":0}}'),
        ("done", "{}"),
        ("done", "no JSON"),
        ("quarantined", '{"before":{"source":7,"target":7}}'),
    ]
    names = "pipeline, start_us, end_us, live, status, reason, attempts, crashes, due_us, fence, identity, fields"
    with engine.sa.begin() as connection:
        for number, (status, text) in enumerate(evidence):
            values = f"'p', {number * 10}, {number * 10 + 10}, 1, '{status}', 'r', 1, 2, 0, 5, 'a to b', '{{}}'"
            names_and_values = f"({names}, updated_us, evidence) VALUES ({values}, 3, :evidence)"
            insert = f"INSERT INTO pipeline_core_records {names_and_values}"
            connection.execute(sa.text(insert), {"evidence": text})
    with opened(engine) as store:
        records = store.records("p")
        assert [record.verified_rows for record in records] == [8, 7, 0, None, None, None]
        assert [str(record.status) for record in records] == [status for status, _ in evidence]
        assert {(r.identity, r.asked, r.attempts, r.crashes, r.fence) for r in records} == {("a to b", None, 1, 2, 5)}


def test_the_store_lives_beside_another_user_of_alembic(engine: Any) -> None:
    """Its version is in a table of its own, so that a database may hold another application's tables."""
    edit(
        engine,
        "CREATE TABLE alembic_version (version_num TEXT)",
        "INSERT INTO alembic_version VALUES ('theirs')",
    )
    with opened(engine) as store:
        store.apply(plan(1))
        with engine.sa.connect() as connection:
            assert connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalars().all() == ["theirs"]


def test_a_newer_schema_is_refused(clocked: Clocked, url: str) -> None:
    """An older program must not write into tables that it does not know."""
    engine = clocked(url)
    with opened(engine):
        edit(engine, "UPDATE pipeline_core_version SET version_num = '9999'")
    with pytest.raises(SideError, match=r"'9999'.*upgrade windowed-pipeline-sql"), opened(clocked(url)):
        pass


def test_only_the_stores_own_file_is_switched_to_wal(tmp_path: Path) -> None:
    """A source's or target's file stays as its owner set it."""
    modes = {}
    for name in ("store", "target"):
        engine = open_engine(Secret(f"sqlite:///{tmp_path}/{name}.db"), timeout_s=5)
        if name == "store":
            engine.prepare_store()
        with engine.writing() as connection:
            connection.exec_driver_sql("CREATE TABLE t (a)")
            pragmas = ("journal_mode", "synchronous")
            modes[name] = [connection.exec_driver_sql(f"PRAGMA {pragma}").scalar() for pragma in pragmas]
        engine.dispose()
    assert modes == {"store": ["wal", 1], "target": ["delete", 2]}


# --- errors -----------------------------------------------------------------------------------------------------------


def open_once(url: str, change: Change = PLAN, timeout_s: float = 5) -> None:
    with opened(open_engine(Secret(url), timeout_s=timeout_s)) as store:
        store.apply(change)


def test_a_lock_that_is_not_freed_is_transient(tmp_path: Path) -> None:
    """Another process holds the write lock for longer than the timeout: wait and try again."""
    url = f"sqlite:///{tmp_path}/r.db"
    open_once(url)
    with closing(sqlite3.connect(tmp_path / "r.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(TransientError, match=r"r\.db: database is locked, after waiting 0\.1 s") as raised:
            open_once(url, timeout_s=0.1)
        assert not raised.value.side_down
    open_once(url)


@on_sqlite
def test_a_full_disk_stops_the_side(clocked: Clocked, url: str) -> None:
    """A store that cannot grow refuses every window alike, until there is space; what was applied half is undone."""
    engine = clocked(url)
    with opened(engine) as store:
        store.apply(plan(1))
        with engine.sa.connect() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(TransientError, match="full; free some space") as raised:
            store.apply(Change("p", add=additions(5_000, first=10)))
        assert raised.value.side_down
        assert starts(store) == [0]


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    """The error names the file and says what to do; the file is left as it was."""
    (tmp_path / "r.db").write_text("these are my notes, " * 100)
    with pytest.raises(SideError, match=r"r\.db: file is not a database; .*check the path"):
        open_once(f"sqlite:///{tmp_path}/r.db")
    assert (tmp_path / "r.db").read_text().startswith("these are my notes")


def test_a_path_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    """The error names the path and what to check."""
    with pytest.raises(SideError, match="unable to open database file; check that its folder exists"):
        open_once(f"sqlite:///{tmp_path}")


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    """A file is in the way of the folder."""
    (tmp_path / "file").touch()
    with pytest.raises(SideError, match=r"its folder .* cannot be made: .*choose another path"):
        open_once(f"sqlite:///{tmp_path}/file/r.db")


def test_a_store_that_may_only_be_read_is_refused(tmp_path: Path) -> None:
    """Opened read-only, an up-to-date store still reads; the first write says what to do."""
    open_once(f"sqlite:///{tmp_path}/r.db")
    with pytest.raises(SideError, match="attempt to write a readonly database; give this user the right"):
        open_once(f"sqlite:///file:{tmp_path}/r.db?mode=ro&uri=true", Change("q", add=additions(1)))


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write any file")
def test_a_file_without_the_right_to_write_is_refused(tmp_path: Path) -> None:
    """The same for the rights of the file itself."""
    open_once(f"sqlite:///{tmp_path}/r.db")
    (tmp_path / "r.db").chmod(0o400)
    with pytest.raises(SideError, match="give this user the right"):
        open_once(f"sqlite:///{tmp_path}/r.db")


@pytest.mark.filterwarnings("ignore:Selection of the SingletonThreadPool")
@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "sqlite:///file:x?mode=memory&uri=true"])
def test_a_store_in_memory_is_refused(url: str) -> None:
    """Each thread would see a store of its own."""
    with pytest.raises(ConfigError, match="in-memory"):
        open_once(url)


def test_errors_show_neither_values_nor_passwords(tmp_path: Path) -> None:
    """A statement's parameters are people's data, and a URL holds a password."""
    engine = open_engine(Secret(f"sqlite:///{tmp_path}/r.db"), timeout_s=5)
    with engine.writing() as connection:
        connection.execute(sa.text("CREATE TABLE t (a TEXT CHECK (a = ''))"))
    with pytest.raises(PermanentError) as raised, engine.writing() as connection:
        connection.execute(sa.text("INSERT INTO t VALUES (:a)"), {"a": "4111-1111"})
    engine.dispose()
    assert "CHECK" in str(raised.value)
    assert "4111-1111" not in str(raised.value)
    assert raised.value.__suppress_context__
    assert "4111-1111" not in str(raised.value.__context__)


@pytest.mark.parametrize(
    "url",
    [
        "no url, but hunter2",
        "sqlite://me:hunter2@host/x.db",
        "nosuch://me:hunter2@host/x",
        "oracle://me:hunter2@host/x",
        "postgresql://me:to@hunter2@127.0.0.1:1/x",
        "mysql://me:to@hunter2@127.0.0.1:1/x",
        "postgresql://me@127.0.0.1:hunter2/x",
        "mysql://me:hunter2@127.0.0.1/x?connect_timeout=ten",
    ],
)
def test_a_url_that_cannot_be_used_is_told_without_its_password(url: str) -> None:
    """No URL at all, one that SQLite does not take, an unknown database, a driver that is not installed, a password
    that is taken for a part of the host, an option of another kind.
    """
    with pytest.raises(ConfigError, match=r"^url: ") as raised:
        open_engine(Secret(url), timeout_s=5)
    assert "hunter2" not in f"{raised.value}{raised.value.__cause__}"


# --- many at once -----------------------------------------------------------------------------------------------------


def run_processes(count: int, code: str, *arguments: str) -> list[Any]:
    """Runs the code in that many processes at once; returns what each prints, as JSON."""
    started = [
        subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    printed = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0] * count
    return [json.loads(text) for text in printed]


PREAMBLE = """
import json, sys, time
from pathlib import Path
from pipeline_core import *
from pipeline_sql.engines import open_engine
from pipeline_sql.store import opened
folder = Path(sys.argv[2])
engine = open_engine(Secret(sys.argv[1]), timeout_s=60)
# All start together, once the last one has loaded its modules.
(folder / f"ready-{time.time_ns()}").touch()
while len(list(folder.glob("ready-*"))) < 8:
    time.sleep(0.001)
"""


def test_many_processes_open_a_new_file_and_never_claim_one_window_twice(url: str, tmp_path: Path) -> None:
    """Eight at once: one makes the tables, one plan of 400 windows takes effect, each window is claimed once."""
    code = """
with opened(engine) as store:
    applied = store.apply(Change("p", add=[Addition(at, at + 10, 0) for at in range(0, 4000, 10)]))
    got = []
    while claims := store.claim(ClaimRequest("p", 10**15, 600, limit=3)):
        got += [(claim.window.start_us, claim.fence) for claim in claims]
        for claim in claims:
            store.settle(claim, Verdict(Status.DONE, "done", Outcome.LOADED))
    print(json.dumps([len(applied.add), got]))
"""
    printed = run_processes(8, PREAMBLE + code, url, str(tmp_path))
    assert sorted(added for added, _ in printed) == [0] * 7 + [400]
    got = [tuple(claimed) for _, claims in printed for claimed in claims]
    assert sorted(start for start, _ in got) == [number * 10 for number in range(400)]
    assert len({fence for _, fence in got}) == 400


def test_threads_share_one_store(store: SqlRecordStore) -> None:
    """Eight threads on one object: each window is claimed once and settled by who claimed it."""
    store.apply(plan(200))

    def work(_: int) -> list[int]:
        got = []
        while claims := store.claim(request(lease_s=600)):
            (claim,) = claims
            store.renew(claim, 600)
            store.settle(store.resume(claim, 600), DONE)
            got.append(claim.window.start_us)
        return got

    with ThreadPoolExecutor(8) as pool:
        got = [start for part in pool.map(work, range(8)) for start in part]
    assert sorted(got) == [number * 10 for number in range(200)]
    fences = [record.fence for record in store.records("p", Status.DONE)]
    assert len(set(fences)) == 200


def test_planners_at_once_do_not_overlap(store: SqlRecordStore) -> None:
    """Two grids planned by threads at the same moment: what is live never overlaps."""
    grids = [[Addition(at, at + step, 0) for at in range(0, 3_000, step)] for step in (10, 15, 25, 40)]
    with ThreadPoolExecutor(4) as pool:
        applied = list(pool.map(lambda grid: store.apply(Change("p", add=grid)), grids))
    spans = store.spans("p")
    assert all(before.end_us <= after.start_us for before, after in pairwise(spans))
    assert sum(len(change.add) for change in applied) == len(spans) > 0
