"""What a record store should hold, in plain Python, and a Hypothesis state machine that compares a store with it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from itertools import pairwise, permutations
from operator import itemgetter
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import define, evolve, field, frozen
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pipeline_core.contracts import ClaimRequest, Context, RecordStore
from pipeline_core.errors import ClaimLostError
from pipeline_core.record import (
    Addition,
    Asked,
    Change,
    Claim,
    Hand,
    Intervention,
    Outcome,
    Pruned,
    Pruning,
    Removal,
    Status,
    Verdict,
)
from pipeline_core.testing.findings import expect, expect_error, report
from pipeline_core.testing.together import WORKERS, Act, Lost, Processes, in_threads
from pipeline_core.window import SECOND_US, Window

if TYPE_CHECKING:
    from pipeline_core.testing.stores import RecordStoreSuite

LEASE_S = 600
MAX_CRASHES = 3
BACKOFF_S = 100
PIPELINE = "p"
FIELDS = {"key": 1}  # the same in every plan: a record is put back only where its fields differ

_places = st.integers(0, 99)
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


@frozen
class Intent:
    """What a worker means to do, together with others; `place` tells which of the claims so far it is about."""

    verb: str
    place: int
    limit: int
    owner: str
    dead: frozenset[str]
    verdict: Verdict
    add: list[Addition]


_intents = st.builds(
    Intent,
    st.sampled_from(["claim", "claim", "settle", "renew", "resume", "apply"]),
    _places,
    st.integers(1, 3),
    st.sampled_from(["host:1", "host:2"]),
    st.sampled_from([frozenset[str](), frozenset({"host:1"})]),
    _verdicts,
    _additions,
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
    superseded: list[tuple[int, int]] = field(factory=list)

    def copy(self) -> Model:
        rows = [evolve(row) for row in self.rows]
        return evolve(self, rows=rows, log=[*self.log], superseded=[*self.superseded])

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
                self.superseded.append(row.span)
                return True
        return False

    def claim(self, request: ClaimRequest) -> list[Row]:
        for row in self.rows:
            if row.status is Status.RUNNING and (row.due_us <= self.now_us or row.owner in request.dead_owners):
                self.crash(row)
        running = [row for row in self.rows if row.status is Status.RUNNING]
        room = len(self.rows) if request.max_running is None else max(0, request.max_running - len(running))
        ready = [row for row in self.rows if self.is_ready(row, request)][: min(request.limit, room)]
        for row in ready:
            self.hold(row, request)
        return ready

    def hold(self, row: Row, request: ClaimRequest) -> None:
        row.fence = self.next_fence()
        row.due_us = self.now_us + LEASE_S * SECOND_US
        row.owner = request.owner
        self.move(row, "claimed", Status.RUNNING)

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
        if not due or request.max_running is None:
            return min(due, default=None)
        at_us = min(due)
        leases = sorted(row.due_us for row in self.rows if row.status is Status.RUNNING and row.due_us > self.now_us)
        while len(leases) >= request.max_running:
            at_us = max(at_us, leases.pop(0))
        return at_us

    def resume(self, row: Row) -> None:
        row.fence = self.next_fence()
        row.due_us = self.now_us + LEASE_S * SECOND_US
        row.owner = None
        self.move(row, "resumed", Status.RUNNING)

    def renew(self, row: Row) -> None:
        row.due_us = self.now_us + LEASE_S * SECOND_US

    def settle(self, row: Row, verdict: Verdict) -> None:
        row.attempts += verdict.attempt
        row.due_us = self.now_us + int(verdict.wait_s) * SECOND_US if verdict.wait_s else 0
        row.outcome = verdict.outcome
        if verdict.verified_rows is not None:
            row.identity, row.verified_rows = verdict.identity, verdict.verified_rows
        if verdict.status is Status.PENDING:
            row.claim_id = None
        if verdict.status is Status.DONE:
            row.crashes, row.asked = 0, None
        self.move(row, "settled", verdict.status)

    def intervene(self, intervention: Intervention) -> list[Row]:
        touched = []
        for span in sorted(intervention.spans):
            row = next((row for row in self.rows if (*row.span, row.status, row.fence) == span[:4]), None)
            if row is None:
                continue
            row.claim_id, row.owner, row.due_us = None, None, 0
            if intervention.hand is Hand.RETRY:
                row.attempts = row.crashes = 0
            if intervention.hand is Hand.SKIP:
                row.outcome, row.asked = Outcome.SKIPPED, None
            after = Status.DONE if intervention.hand is Hand.SKIP else Status.PENDING
            self.move(row, str(intervention.hand), after)
            touched.append(row)
        return touched

    def prune(self, pruning: Pruning) -> None:
        before_us, kept = pruning.before_us, []
        for row in self.rows:
            if row.status is Status.DONE and row.outcome is not Outcome.SKIPPED and row.end_us <= before_us:
                row.claim_id = None
            else:
                kept.append(row)
        self.superseded = [span for span in self.superseded if span[1] > before_us]
        self.log = [
            told
            for told in self.log
            if told[1] is None
            or told[1][1] > before_us
            or any(row.start_us < told[1][1] and row.end_us > told[1][0] for row in kept)
        ]

    def held(self, claim: Claim) -> Row | None:
        """The row that still carries the claim."""
        span = _span(claim.window)
        return next((row for row in self.rows if row.span == span and row.claim_id == claim.id), None)

    def running(self, claim: Claim) -> Row | None:
        """The row that the claim holds under its fence."""
        row = self.held(claim)
        return row if row and row.status is Status.RUNNING and row.fence == claim.fence else None

    def follow(self, act: Act, result: Any) -> bool:
        """Does what the store says that it did, where it may have; False where it may not.

        Among others a claim may pass over the oldest window, which another worker holds locked at that moment: that it
        takes one that is free, and nobody else does, is all that can be asked.
        """
        match act.verb:
            case "apply":
                removed, added = self.apply(*act.given)
                return (sorted(result.remove), list(result.add)) == (sorted(removed), added)
            case "claim":
                return self._follow_claim(act.given[0], result)
            case "resume":
                return self._follow_resume(act.given[0], result)
        row = self.running(act.given[0])
        if row is None or result is Lost:
            return row is None and result is Lost
        if act.verb == "settle":
            self.settle(row, act.given[1])
            return (result.status, result.crashes) == (row.status, row.crashes)
        self.renew(row)
        return True

    def _follow_claim(self, request: ClaimRequest, claims: Sequence[Claim]) -> bool:
        self.claim(evolve(request, limit=0))
        for claim in claims:
            ready = [row for row in self.rows if row.span == _span(claim.window) and self.is_ready(row, request)]
            if not ready or claim.fence <= ready[0].fence:
                return False
            self.hold(ready[0], request)
            ready[0].fence, ready[0].claim_id = claim.fence, claim.id
            if claim.record.crashes != ready[0].crashes:
                return False
        return True

    def _follow_resume(self, claim: Claim, result: Any) -> bool:
        row = self.held(claim)
        if row is None or result is Lost:
            return row is None and result is Lost
        if row.status in (Status.PENDING, Status.RUNNING):
            if result.fence <= row.fence:
                return False
            self.resume(row)
            row.fence = result.fence
        # Crashes tell whether somebody has noticed the end of the lease before or after.
        found = (result.id, result.fence, result.record.status, result.record.crashes)
        return (row.claim_id, row.fence, row.status, row.crashes) == found


def _made(act: Act, result: Any) -> Sequence[Claim]:
    """The claims that an act brought."""
    if act.verb == "claim":
        return list(result)
    return [result] if act.verb == "resume" and result is not Lost else []


def _span(window: Window) -> tuple[int, int]:
    return window.start_us, window.end_us


class StoreMachine(RuleBasedStateMachine):
    """Each rule does the same to the store and to the model, and compares what both say.

    A store whose clock no test can set is given no time to pass, and its times are left out of the comparison.
    """

    suite: ClassVar[RecordStoreSuite]
    steps: ClassVar[int] = 0

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

    def a_claim(self, place: int) -> Claim | None:
        """Any claim made so far, held or lost, latest first; None where there is none yet."""
        return self.claims[-1 - place % len(self.claims)] if self.claims else None

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

    @rule(places=st.sets(st.integers(0, 23), max_size=12), add=_additions)
    def apply(self, places: set[int], add: list[Addition]) -> None:
        live = [Removal(*row.span, row.fence, "unwanted") for row in self.model.rows]
        stale = [removal._replace(fence=removal.fence + 1) for removal in live]
        remove = [removal for place, removal in enumerate(live + stale) if place in places]
        change = Change(PIPELINE, remove, add, FIELDS, "test")
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
        most=st.sampled_from([None, None, None, None, 1, 3]),
    )
    def claim(
        self,
        *,
        limit: int,
        stable_us: int,
        within: tuple[int, int] | None,
        owner: str | None,
        dead: frozenset[str],
        most: int | None,
    ) -> None:
        window = Window.from_us(*within) if within else None
        request = ClaimRequest(PIPELINE, stable_us, LEASE_S, limit, window, owner, dead, MAX_CRASHES, BACKOFF_S, most)
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

    @rule(place=_places)
    def resume(self, place: int) -> None:
        claim = self.a_claim(place)
        if claim is None:
            return None
        row = self.model.held(claim)
        if row is None:
            return self.lost("resume", claim, LEASE_S)
        resumed = self.store.resume(claim, LEASE_S)
        if row.status in (Status.PENDING, Status.RUNNING):
            self.model.resume(row)
            self.take(row, resumed)
            # The process that held the claim before may still be alive: both go on in this test.
            self.claims.append(resumed)
        found = (resumed.id, resumed.fence, resumed.record.status)
        return self.same("resume keeps the id", found, (row.claim_id, row.fence, row.status), Window.from_us(*row.span))

    @rule(place=_places)
    def renew(self, place: int) -> None:
        claim = self.a_claim(place)
        if claim is None:
            return None
        row = self.model.running(claim)
        if row is None:
            return self.lost("renew", claim, LEASE_S)
        self.model.renew(row)
        return self.store.renew(claim, LEASE_S)

    @rule(place=_places, verdict=_verdicts)
    def settle(self, place: int, verdict: Verdict) -> None:
        claim = self.a_claim(place)
        if claim is None:
            return None
        row = self.model.running(claim)
        if row is None:
            return self.lost("settle", claim, verdict)
        record = self.store.settle(claim, verdict)
        self.model.settle(row, verdict)
        found = (record.status, record.reason, record.outcome)
        return self.same(
            "settle returns the record", found, (verdict.status, verdict.reason, verdict.outcome), claim.window
        )

    @rule(hand=st.sampled_from(Hand), places=st.sets(st.integers(0, 11), min_size=1), late=st.booleans())
    def intervene(self, hand: Hand, places: set[int], late: bool) -> None:
        fit = [span for span in self.store.spans(PIPELINE) if span.status in hand.fits]
        spans = [span._replace(fence=span.fence + late) for place, span in enumerate(fit) if place in places]
        intervention = Intervention(PIPELINE, hand, spans, "enough", "somebody")
        moved = [record.window for record in self.store.intervene(intervention)]
        expected = [Window.from_us(*row.span) for row in self.model.intervene(intervention)]
        self.same("intervene moves the windows that are still as they were read", moved, expected)

    @rule(before_us=_instants, most=st.integers(1, 4))
    def prune(self, before_us: int, most: int) -> None:
        pruning = Pruning(PIPELINE, before_us, most)
        expected, done = self.store.prune(evolve(pruning, dry_run=True)), Pruned()
        while step := self.store.prune(pruning):
            done += step
        self.same("a dry run says what a prune then does", expected, done)
        self.model.prune(pruning)

    @precondition(lambda self: self.clocked)
    @rule(seconds=st.sampled_from([1, 100, 450, 600, 601, -50]))
    def advance(self, seconds: int) -> None:
        self.model.now_us += seconds * SECOND_US
        self.suite.set_clock(self.store, self.model.now_us)

    @invariant()
    def steps_are_counted(self) -> None:
        """Of all sequences together."""
        type(self).steps += 1

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
            if event.step != "pruned"
        ]
        gone = [(r.window.start_us, r.window.end_us) for r in self.store.records(PIPELINE, Status.SUPERSEDED)]
        self.same("what is superseded is kept until it is pruned", sorted(gone), sorted(self.model.superseded))
        self.same("each transition is one event", sorted(told, key=str), sorted(self.model.log, key=str))


class ThreadMachine(StoreMachine):
    """Beside the rules above, some verbs are done at the same moment, by threads.

    Their outcome differs from time to time, so no rule may draw anything that depends on it.
    """

    @rule(intents=st.lists(_intents, min_size=WORKERS, max_size=WORKERS))
    def together(self, intents: list[Intent]) -> None:
        """What came of it is what one after the other would have led to, in some order."""
        acts = [self.an_act(intent) for intent in intents]
        results = self.do_together(acts)
        gone = frozenset[str]().union(*(intent.dead for intent in intents))
        notice = ClaimRequest(PIPELINE, 0, LEASE_S, 1, None, None, gone, MAX_CRASHES, BACKOFF_S)
        self.store.claim(notice)  # a lease that ended, where each has left it to the others
        model = self.explained(acts, results)
        model.claim(notice)
        made = {claim.fence: claim for act, result in zip(acts, results, strict=True) for claim in _made(act, result)}
        new = sorted(made.keys() - {claim.fence for claim in self.claims})
        self.claims += [made[fence] for fence in new]
        model.last_fence = max([self.model.last_fence, *new])
        self.model = model

    def do_together(self, acts: list[Act]) -> list[Any]:
        return in_threads(self.store, acts)

    def explained(self, acts: list[Act], results: list[Any]) -> Model:
        """The model after an order of the acts that leads to these results."""
        found = list(zip(acts, results, strict=True))
        for order in permutations(found):
            model = self.model.copy()
            if all(model.follow(act, result) for act, result in order):
                return model
        promise = "what workers do at the same moment, they could have done one after the other"
        raise report(promise, self.store, None, "the same, in some order", found)

    def an_act(self, intent: Intent) -> Act:
        claim = self.a_claim(intent.place)
        if intent.verb == "apply":
            remove = [Removal(*row.span, row.fence, "unwanted") for row in self.model.rows[:: 2 + intent.place % 3]]
            return Act("apply", (Change(PIPELINE, remove, intent.add, FIELDS, "test"),))
        if intent.verb == "claim" or claim is None:
            limits = LEASE_S, intent.limit, None, intent.owner, intent.dead, MAX_CRASHES, BACKOFF_S
            return Act("claim", (ClaimRequest(PIPELINE, 110, *limits),))
        return Act(intent.verb, (claim, intent.verdict if intent.verb == "settle" else LEASE_S))


class ProcessMachine(ThreadMachine):
    """The same by processes, by the store's own clock: no test can set it for all of them."""

    crew: ClassVar[Processes]

    def __init__(self) -> None:
        super().__init__()
        self.clocked = False
        self.settings = self.suite.settings_of(self.store)
        self.own = self.settings.open(Context(PIPELINE))
        self.store = self.own.__enter__()
        self.model = Model(self.store.now_us())

    def teardown(self) -> None:
        self.own.__exit__(None, None, None)
        super().teardown()

    def do_together(self, acts: list[Act]) -> list[Any]:
        return self.crew.do(self.settings, acts)
