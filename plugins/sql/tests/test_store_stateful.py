"""The SQL record store against a model in plain Python, in any order of verbs that Hypothesis finds."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from attrs import define, evolve, field
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from pipeline_core import (
    Addition,
    Change,
    Claim,
    ClaimLostError,
    ClaimRequest,
    Outcome,
    Removal,
    Status,
    Verdict,
    Window,
)
from pipeline_sql.store import opened

LEASE_S = 60
MAX_CRASHES = 3
SECOND_US = 1_000_000
OWNERS = ("host:1", "host:2", None)

# A dozen instants, so that spans meet, overlap and repeat often.
instants = st.integers(0, 11).map(lambda number: number * 10)
spans = st.tuples(instants, instants).filter(lambda span: span[0] < span[1])
verdicts = st.sampled_from(
    [
        Verdict(Status.DONE, "loaded", Outcome.LOADED, {"rows": 3}, "a to b"),
        Verdict(Status.PENDING, "side down"),
        Verdict(Status.PENDING, "bad rows", attempt=True, wait_s=45),
        Verdict(Status.QUARANTINED, "bad rows", attempt=True),
    ]
)


@define
class Row:
    """A record of the model."""

    start_us: int
    end_us: int
    attempts: int
    status: Status = Status.PENDING
    crashes: int = 0
    fence: int = 0
    due_us: int = 0
    claim_id: str | None = None
    owner: str | None = None
    identity: str = ""

    @property
    def span(self) -> tuple[int, int]:
        return self.start_us, self.end_us


@define
class Model:
    """What the store should hold: live rows in order of time, the last fence, and every transition so far."""

    now_us: int
    rows: list[Row] = field(factory=list)
    last_fence: int = 0
    log: list[tuple[str, tuple[int, int] | None, str | None]] = field(factory=list)

    def move(self, row: Row, step: str, status: Status) -> None:
        row.status = status
        self.log.append((step, row.span, status))

    def next_fence(self) -> int:
        self.last_fence = max(self.last_fence + 1, self.now_us)
        return self.last_fence

    def apply(self, change: Change) -> tuple[list[Removal], list[Addition]]:
        removed = [removal for removal in change.remove if self.remove(removal, change)]
        added = []
        for addition in sorted(change.add):
            if all(addition.end_us <= row.start_us or addition.start_us >= row.end_us for row in self.rows):
                added.append(addition)
                self.rows.append(Row(*addition))
        self.rows.sort(key=lambda row: row.start_us)
        if removed or added:
            self.log.append(("planned", None, None))
        return removed, added

    def remove(self, removal: Removal, change: Change) -> bool:
        for row in self.rows:
            if (*row.span, row.fence) == removal[:3] and row.status is not Status.RUNNING:
                if row.fence == 0 and Addition(*row.span, row.attempts) in change.add:
                    return False  # the change would put the same in its place
                self.rows.remove(row)
                self.move(row, "superseded", Status.SUPERSEDED)
                return True
        return False

    def claim(self, request: ClaimRequest) -> list[Row]:
        for row in self.rows:
            if row.status is Status.RUNNING and (row.due_us <= self.now_us or row.owner in request.dead_owners):
                self.crash(row)
        ready = [row for row in self.rows if self.is_ready(row, request)][: request.limit]
        for row in ready:
            row.fence = self.next_fence()
            row.due_us = self.now_us + LEASE_S * SECOND_US
            row.owner = request.owner
            self.move(row, "claimed", Status.RUNNING)
        return ready

    def crash(self, row: Row) -> None:
        row.crashes += 1
        row.owner = None
        row.due_us = 0
        if row.crashes == MAX_CRASHES:
            return self.move(row, "expired", Status.QUARANTINED)
        if row.crashes == 2:
            row.due_us = self.now_us + 10 * SECOND_US
        return self.move(row, "expired", Status.PENDING)

    def is_ready(self, row: Row, request: ClaimRequest) -> bool:
        return (
            row.status is Status.PENDING
            and row.due_us <= self.now_us
            and row.end_us <= request.stable_until_us
            and (request.within is None or request.within.start_us <= row.start_us < request.within.end_us)
        )

    def held(self, claim: Claim) -> Row | None:
        """The row that still carries the claim."""
        span = claim.window.start_us, claim.window.end_us
        return next((row for row in self.rows if row.span == span and row.claim_id == claim.id), None)

    def running(self, claim: Claim) -> Row | None:
        """The row that the claim holds under its fence."""
        row = self.held(claim)
        return row if row and row.status is Status.RUNNING and row.fence == claim.fence else None


class StoreMachine(RuleBasedStateMachine):
    """Each rule does the same to the store and to the model, and compares what both say."""

    engine: Any  # set by the test, for each example a new one
    new_engine: Callable[[], Any]

    def __init__(self) -> None:
        super().__init__()
        self.engine = self.new_engine()
        empty(self.engine)
        self.opening = opened(self.engine)
        self.store = self.opening.__enter__()
        self.model = Model(self.engine.clock_us)
        self.claims: list[Claim] = []

    def teardown(self) -> None:
        self.opening.__exit__(None, None, None)

    def a_claim(self, data: st.DataObject) -> int:
        """The place of any claim made so far, held or lost, latest first."""
        return len(self.claims) - 1 - data.draw(st.integers(0, len(self.claims) - 1), label="claim")

    @rule(data=st.data(), add=st.lists(st.builds(lambda s, n: Addition(*s, n), spans, st.integers(0, 1)), max_size=6))
    def apply(self, data: st.DataObject, add: list[Addition]) -> None:
        live = [Removal(*row.span, row.fence, "unwanted") for row in self.model.rows]
        stale = [removal._replace(fence=removal.fence + 1) for removal in live]
        remove = data.draw(
            st.lists(st.sampled_from(live + stale), unique=True) if live else st.just([]), label="remove"
        )
        change = Change("p", remove, add, {"key": 1}, "test")
        applied = self.store.apply(change)
        removed, added = self.model.apply(change)
        assert sorted(applied.remove) == sorted(removed)
        assert list(applied.add) == added
        # What was removed and put back just as it was could be removed again; all else is done, and stays done.
        assert not self.store.apply(change)

    @rule(
        limit=st.integers(1, 3),
        stable_us=st.one_of(st.just(110), instants),
        within=st.one_of(st.none(), spans),
        owner=st.sampled_from(OWNERS),
        dead=st.sampled_from([frozenset(), frozenset(), frozenset({"host:1"})]),
    )
    def claim(
        self, limit: int, stable_us: int, within: tuple[int, int] | None, owner: str | None, dead: frozenset[str]
    ) -> None:
        window = Window.from_us(*within) if within else None
        request = ClaimRequest("p", stable_us, LEASE_S, limit, window, owner, dead, MAX_CRASHES)
        claims = self.store.claim(request)
        rows = self.model.claim(request)
        assert [(c.window.start_us, c.fence, c.record.status) for c in claims] == [
            (row.start_us, row.fence, row.status) for row in rows
        ]
        for claim, row in zip(claims, rows, strict=True):
            assert claim.id not in [earlier.id for earlier in self.claims]
            row.claim_id = claim.id
            self.claims.append(claim)
        if not claims:
            self.next_claim_is_right(request)

    def next_claim_is_right(self, request: ClaimRequest) -> None:
        """Nothing could be claimed now: the store says at which instant that may change."""
        anyhow = evolve(request, dead_owners=frozenset())
        open_rows = [row for row in self.model.rows if row.status in (Status.PENDING, Status.RUNNING)]
        due = [
            row.due_us for row in open_rows if self.model.is_ready(evolve(row, status=Status.PENDING, due_us=0), anyhow)
        ]
        assert self.store.next_claim_us(anyhow) == min(due, default=None)

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def resume(self, data: st.DataObject) -> None:
        at = self.a_claim(data)
        row = self.model.held(self.claims[at])
        if row is None:
            with pytest.raises(ClaimLostError):
                self.store.resume(self.claims[at], LEASE_S)
            return
        resumed = self.store.resume(self.claims[at], LEASE_S)
        if row.status in (Status.PENDING, Status.RUNNING):
            row.fence = self.model.next_fence()
            row.due_us = self.model.now_us + LEASE_S * SECOND_US
            row.owner = None
            self.model.move(row, "resumed", Status.RUNNING)
            # The process that held the claim before may still be alive: both go on in this test.
            self.claims.append(resumed)
        assert (resumed.id, resumed.fence, resumed.record.status) == (row.claim_id, row.fence, row.status)

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        claim = self.claims[self.a_claim(data)]
        row = self.model.running(claim)
        if row is None:
            with pytest.raises(ClaimLostError):
                self.store.renew(claim, LEASE_S)
        else:
            self.store.renew(claim, LEASE_S)
            row.due_us = self.model.now_us + LEASE_S * SECOND_US

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), verdict=verdicts)
    def settle(self, data: st.DataObject, verdict: Verdict) -> None:
        claim = self.claims[self.a_claim(data)]
        row = self.model.running(claim)
        if row is None:
            with pytest.raises(ClaimLostError):
                self.store.settle(claim, verdict)
            return
        record = self.store.settle(claim, verdict)
        row.attempts += verdict.attempt
        row.due_us = self.model.now_us + int(verdict.wait_s) * SECOND_US if verdict.wait_s else 0
        row.identity = verdict.identity
        if verdict.status is Status.PENDING:
            row.claim_id = None
        if verdict.status is Status.DONE:
            row.crashes = 0
        self.model.move(row, "settled", verdict.status)
        assert (record.status, record.reason, record.outcome) == (verdict.status, verdict.reason, verdict.outcome)

    @rule(seconds=st.sampled_from([1, 10, 45, 60, 61, -5]))
    def advance(self, seconds: int) -> None:
        self.engine.clock_us += seconds * SECOND_US
        self.model.now_us = self.engine.clock_us

    @invariant()
    def spans_are_the_models(self) -> None:
        """Every live record is where the model has it."""
        assert [span[:6] for span in self.store.spans("p")] == [
            (*row.span, row.status, row.fence, row.attempts, row.identity) for row in self.model.rows
        ]

    @invariant()
    def records_are_the_models(self) -> None:
        """So are the parts of a record that planning does not need."""
        for record, row in zip(self.store.records("p"), self.model.rows, strict=True):
            assert (record.claim_id, record.crashes) == (row.claim_id, row.crashes)
            assert record.lease_until_us == (row.due_us if row.status is Status.RUNNING else None)
            # A backoff that is over may still be written on the record.
            waits = row.status is Status.PENDING and row.due_us > self.model.now_us
            assert record.not_before_us == row.due_us if waits else record.not_before_us in (0, row.due_us)

    @invariant()
    def live_records_never_overlap(self) -> None:
        """Whatever was planned, and however often."""
        assert all(before.end_us <= after.start_us for before, after in pairwise(self.store.spans("p")))

    @invariant()
    def each_running_window_has_one_owner(self) -> None:
        """Of all claims ever made, one at most is the running record's."""
        for record in self.store.records("p", Status.RUNNING):
            holders = [claim for claim in self.claims if (claim.id, claim.fence) == (record.claim_id, record.fence)]
            assert len(holders) == 1

    @invariant()
    def fences_only_grow(self) -> None:
        """In the order in which they were given out."""
        assert all(before.fence < after.fence for before, after in pairwise(self.claims))

    @invariant()
    def every_transition_is_logged(self) -> None:
        """One event a transition, no more and no less, with the status that it led to."""
        told = [
            (event.step, event.window and (event.window.start_us, event.window.end_us), event.fields.get("status"))
            for event in self.store.events("p", since_us=-(10**15))
        ]
        assert sorted(told, key=str) == sorted(self.model.log, key=str)


def empty(engine: Any) -> None:
    """Brings a store back to what the migrations leave."""
    with engine.writing() as connection:
        for table in ("records", "events"):
            connection.exec_driver_sql(f"DELETE FROM pipeline_core_{table}")
        connection.exec_driver_sql("UPDATE pipeline_core_fence SET last = 0")


def test_the_store_behaves_as_the_model(clocked: Callable[[str], Any], url: str) -> None:
    """Apply, claim, resume, renew, settle, expiry, dead owners and a clock that moves, in any order."""
    with opened(clocked(url)):
        pass

    class Machine(StoreMachine):
        new_engine = staticmethod(lambda: clocked(url))

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=60,
            stateful_step_count=30,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
