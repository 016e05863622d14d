"""What a record store should hold, in plain Python, and a Hypothesis state machine that compares a store with it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from itertools import pairwise
from operator import itemgetter
from typing import TYPE_CHECKING, ClassVar

from attrs import define, evolve, field
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pipeline_core.contracts import ClaimRequest, RecordStore
from pipeline_core.errors import ClaimLostError
from pipeline_core.record import Addition, Asked, Change, Claim, Outcome, Removal, Status, Verdict
from pipeline_core.testing.findings import expect, expect_error
from pipeline_core.window import SECOND_US, Window

if TYPE_CHECKING:
    from pipeline_core.testing.stores import RecordStoreSuite

LEASE_S = 600
MAX_CRASHES = 3
BACKOFF_S = 100
PIPELINE = "p"
FIELDS = {"key": 1}  # the same in every plan: a record is put back only where its fields differ

# A dozen instants, so that spans meet, overlap and repeat often.
_instants = st.integers(0, 11).map(lambda number: number * 10)
_spans = st.tuples(_instants, _instants).filter(lambda span: span[0] < span[1])
_additions = st.lists(
    st.builds(
        lambda span, *inherited: Addition(span[0], span[1], *inherited),
        _spans,
        st.integers(0, 1),
        st.sampled_from(["", "a to b"]),
        st.sampled_from([None, 0, 5]),
        st.sampled_from([None, None, *Asked]),
    ),
    max_size=6,
)
_verdicts = st.sampled_from(
    [
        Verdict(Status.DONE, "loaded", Outcome.LOADED, {"rows": 3}, "a to b", 3),
        Verdict(Status.DONE, "verified empty", Outcome.VERIFIED_EMPTY, {}, "a to c", 0),
        Verdict(Status.PENDING, "side down"),
        Verdict(Status.PENDING, "bad rows", attempt=True, wait_s=450),
        Verdict(Status.QUARANTINED, "bad rows", attempt=True),
    ]
)


@define
class Row:
    """A live record of the model. `due_us` ends its lease while it runs, its backoff while it is pending."""

    start_us: int
    end_us: int
    attempts: int
    identity: str = ""
    verified_rows: int | None = None
    asked: Asked | None = None
    status: Status = Status.PENDING
    crashes: int = 0
    fence: int = 0
    due_us: int = 0
    claim_id: str | None = None
    owner: str | None = None
    outcome: Outcome | None = None

    @property
    def span(self) -> tuple[int, int]:
        return self.start_us, self.end_us

    @property
    def addition(self) -> Addition:
        return Addition(*self.span, self.attempts, self.identity, self.verified_rows, self.asked)


@define
class Model:
    """What the store should hold: live rows in order of time, the last fence, and every transition so far."""

    now_us: int
    rows: list[Row] = field(factory=list)
    last_fence: int = 0
    log: list[tuple[str, tuple[int, int] | None, str | None]] = field(factory=list)

    def move(self, row: Row, step: str, status: Status) -> None:
        row.status = status
        self.log.append((step, row.span, str(status)))

    def next_fence(self) -> int:
        self.last_fence = max(self.last_fence + 1, self.now_us)
        return self.last_fence

    def apply(self, change: Change) -> tuple[list[Removal], list[Addition]]:
        removed = [removal for removal in change.remove if self.remove(removal, change)]
        added = []
        for addition in sorted(change.add, key=itemgetter(0, 1)):
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
                if row.fence == 0 and row.addition in change.add:
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
            row.due_us = self.now_us + BACKOFF_S * SECOND_US
        return self.move(row, "expired", Status.PENDING)

    def is_ready(self, row: Row, request: ClaimRequest) -> bool:
        return (
            row.status is Status.PENDING
            and row.due_us <= self.now_us
            and row.end_us <= request.stable_until_us
            and (request.within is None or request.within.start_us <= row.start_us < request.within.end_us)
        )

    def next_claim_us(self, request: ClaimRequest) -> int | None:
        open_rows = [row for row in self.rows if row.status in (Status.PENDING, Status.RUNNING)]
        due = [row.due_us for row in open_rows if self.is_ready(evolve(row, status=Status.PENDING, due_us=0), request)]
        return min(due, default=None)

    def held(self, claim: Claim) -> Row | None:
        """The row that still carries the claim."""
        span = claim.window.start_us, claim.window.end_us
        return next((row for row in self.rows if row.span == span and row.claim_id == claim.id), None)

    def running(self, claim: Claim) -> Row | None:
        """The row that the claim holds under its fence."""
        row = self.held(claim)
        return row if row and row.status is Status.RUNNING and row.fence == claim.fence else None


class StoreMachine(RuleBasedStateMachine):
    """Each rule does the same to the store and to the model, and compares what both say.

    A store whose clock no test can set is given no time to pass, and its times are left out of the comparison.
    """

    suite: ClassVar[RecordStoreSuite]

    def __init__(self) -> None:
        super().__init__()
        self.opening: AbstractContextManager[RecordStore] = self.suite.open_store()
        self.store = self.opening.__enter__()
        self.clocked = self.suite.has_clock
        if self.clocked:
            self.suite.set_clock(self.store, 1_700_000_000 * SECOND_US)
        self.model = Model(self.store.now_us())
        self.claims: list[Claim] = []

    def teardown(self) -> None:
        self.opening.__exit__(None, None, None)

    def same(self, promise: str, got: object, expected: object, window: Window | None = None) -> None:
        expect(promise, self.store, got, expected, window=window)

    def lost(self, verb: str, claim: Claim, data: Verdict | float) -> None:
        act = getattr(self.store, verb)
        promise = f"{verb}: a claim that is lost is refused"
        expect_error(promise, self.store, lambda: act(claim, data), ClaimLostError, window=claim.window)

    def a_claim(self, data: st.DataObject) -> Claim:
        """Any claim made so far, held or lost, latest first."""
        return self.claims[len(self.claims) - 1 - data.draw(st.integers(0, len(self.claims) - 1), label="claim")]

    def take(self, row: Row, claim: Claim) -> None:
        """The model follows the store's own fence where nobody can tell what time it shows."""
        if not self.clocked:
            if claim.fence < row.fence:
                self.same("a fence is at least the store's clock", claim.fence, f"{row.fence} or more", claim.window)
            row.fence = self.model.last_fence = claim.fence
        self.same("every claim and resume brings its fence", claim.fence, row.fence, claim.window)

    @initialize(count=st.integers(0, 8))
    def plan(self, count: int) -> None:
        """Most sequences find windows to claim from the start."""
        change = Change(PIPELINE, add=[Addition(10 * at, 10 * at + 10, 0) for at in range(count)], fields=FIELDS)
        self.store.apply(change)
        self.model.apply(change)

    @rule(data=st.data(), add=_additions)
    def apply(self, data: st.DataObject, add: list[Addition]) -> None:
        live = [Removal(*row.span, row.fence, "unwanted") for row in self.model.rows]
        stale = [removal._replace(fence=removal.fence + 1) for removal in live]
        some = st.lists(st.sampled_from(live + stale), unique=True) if live else st.just([])
        change = Change(PIPELINE, data.draw(some, label="remove"), add, FIELDS, "test")
        applied = self.store.apply(change)
        removed, added = self.model.apply(change)
        self.same("apply returns the removals that took effect", sorted(applied.remove), sorted(removed))
        self.same("apply returns the additions that took effect", list(applied.add), added)
        self.same("apply is idempotent", bool(self.store.apply(change)), False)

    @rule(
        limit=st.integers(1, 3),
        stable_us=st.one_of(st.just(110), _instants),
        within=st.one_of(st.none(), _spans),
        owner=st.sampled_from(["host:1", "host:2", None]),
        dead=st.sampled_from([frozenset[str](), frozenset[str](), frozenset({"host:1"})]),
    )
    def claim(
        self, limit: int, stable_us: int, within: tuple[int, int] | None, owner: str | None, dead: frozenset[str]
    ) -> None:
        window = Window.from_us(*within) if within else None
        request = ClaimRequest(PIPELINE, stable_us, LEASE_S, limit, window, owner, dead, MAX_CRASHES, BACKOFF_S)
        claims = self.store.claim(request)
        rows = self.model.claim(request)
        self.same(
            "claim takes the oldest windows that are pending, stable, out of backoff and asked for",
            [(claim.window, claim.record.status) for claim in claims],
            [(Window.from_us(*row.span), row.status) for row in rows],
        )
        for claim, row in zip(claims, rows, strict=True):
            self.take(row, claim)
            reused = claim.id in [earlier.id for earlier in self.claims]
            self.same("a claim has an id of its own", reused, False, claim.window)
            row.claim_id = claim.id
            self.claims.append(claim)
        if not claims and self.clocked:
            anyhow = evolve(request, dead_owners=frozenset())
            got, expected = self.store.next_claim_us(anyhow), self.model.next_claim_us(anyhow)
            self.same("next_claim_us says when a window may become claimable", got, expected)

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def resume(self, data: st.DataObject) -> None:
        claim = self.a_claim(data)
        row = self.model.held(claim)
        if row is None:
            return self.lost("resume", claim, LEASE_S)
        resumed = self.store.resume(claim, LEASE_S)
        if row.status in (Status.PENDING, Status.RUNNING):
            row.fence = self.model.next_fence()
            row.due_us = self.model.now_us + LEASE_S * SECOND_US
            row.owner = None
            self.model.move(row, "resumed", Status.RUNNING)
            self.take(row, resumed)
            # The process that held the claim before may still be alive: both go on in this test.
            self.claims.append(resumed)
        found = (resumed.id, resumed.fence, resumed.record.status)
        return self.same("resume keeps the id", found, (row.claim_id, row.fence, row.status), Window.from_us(*row.span))

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        claim = self.a_claim(data)
        row = self.model.running(claim)
        if row is None:
            return self.lost("renew", claim, LEASE_S)
        row.due_us = self.model.now_us + LEASE_S * SECOND_US
        return self.store.renew(claim, LEASE_S)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), verdict=_verdicts)
    def settle(self, data: st.DataObject, verdict: Verdict) -> None:
        claim = self.a_claim(data)
        row = self.model.running(claim)
        if row is None:
            return self.lost("settle", claim, verdict)
        record = self.store.settle(claim, verdict)
        row.attempts += verdict.attempt
        row.due_us = self.model.now_us + int(verdict.wait_s) * SECOND_US if verdict.wait_s else 0
        row.outcome = verdict.outcome
        if verdict.verified_rows is not None:
            row.identity, row.verified_rows = verdict.identity, verdict.verified_rows
        if verdict.status is Status.PENDING:
            row.claim_id = None
        if verdict.status is Status.DONE:
            row.crashes, row.asked = 0, None
        self.model.move(row, "settled", verdict.status)
        found = (record.status, record.reason, record.outcome)
        return self.same(
            "settle returns the record", found, (verdict.status, verdict.reason, verdict.outcome), claim.window
        )

    @precondition(lambda self: self.clocked)
    @rule(seconds=st.sampled_from([1, 100, 450, 600, 601, -50]))
    def advance(self, seconds: int) -> None:
        self.model.now_us += seconds * SECOND_US
        self.suite.set_clock(self.store, self.model.now_us)

    @invariant()
    def spans_are_the_models(self) -> None:
        """Every live record is where the model has it."""
        found = [(*span[:6], *span[7:]) for span in self.store.spans(PIPELINE)]
        rows = [
            (*row.span, row.status, row.fence, row.attempts, row.identity, row.outcome, row.verified_rows, row.asked)
            for row in self.model.rows
        ]
        self.same("spans are the live records, in order of time", found, rows)

    @invariant()
    def records_are_the_models(self) -> None:
        """So are the parts of a record that planning does not need."""
        for record, row in zip(self.store.records(PIPELINE), self.model.rows, strict=True):
            found = (record.claim_id, record.crashes)
            self.same("a record keeps claim and crashes", found, (row.claim_id, row.crashes), record.window)
            kept = (record.identity, record.verified_rows, record.asked)
            expected = (row.identity, row.verified_rows, row.asked)
            self.same("a record keeps its evidence, and what was asked", kept, expected, record.window)
            if self.clocked:
                self.times_are_the_models(row, record.lease_until_us, record.not_before_us)

    def times_are_the_models(self, row: Row, lease_until_us: int | None, not_before_us: int) -> None:
        window = Window.from_us(*row.span)
        lease = row.due_us if row.status is Status.RUNNING else None
        self.same("a lease is the store's clock and the lease asked for", lease_until_us, lease, window)
        # A backoff that is over may still be written on the record.
        waits = row.status is Status.PENDING and row.due_us > self.model.now_us
        if waits or not_before_us != 0:
            self.same("a backoff is the store's clock and the wait", not_before_us, row.due_us, window)

    @invariant()
    def live_records_never_overlap(self) -> None:
        """Whatever was planned, and however often."""
        for before, after in pairwise(self.store.spans(PIPELINE)):
            self.same("live records never overlap", before.end_us <= after.start_us, True)

    @invariant()
    def each_running_window_has_one_owner(self) -> None:
        """Of all claims ever made, exactly one is the running record's."""
        for record in self.store.records(PIPELINE, Status.RUNNING):
            holders = [claim for claim in self.claims if (claim.id, claim.fence) == (record.claim_id, record.fence)]
            self.same("a running window has one owner", len(holders), 1, record.window)

    @invariant()
    def fences_only_grow(self) -> None:
        """In the order in which they were given out."""
        for before, after in pairwise(self.claims):
            self.same("fences only grow", before.fence < after.fence, True, after.window)

    @invariant()
    def every_transition_is_logged(self) -> None:
        """One event a transition, no more and no less, with the status that it led to."""
        told = [
            (event.step, event.window and (event.window.start_us, event.window.end_us), event.fields.get("status"))
            for event in self.store.events(PIPELINE, since_us=-(10**15))
        ]
        self.same("each transition is one event", sorted(told, key=str), sorted(self.model.log, key=str))
