"""The conformance suite of record stores."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from itertools import pairwise
from threading import Event
from typing import Any

import pytest
from attrs import define, evolve, field
from hypothesis import HealthCheck, Phase, settings
from hypothesis.errors import Flaky
from hypothesis.stateful import run_state_machine_as_test

from pipeline_core.contracts import ClaimRequest, RecordStore, Settings
from pipeline_core.errors import ClaimLostError, RecordError, TimeError
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
    Record,
    Removal,
    Status,
    Verdict,
    in_short,
)
from pipeline_core.testing.findings import BrokenPromiseError, expect, expect_error, report
from pipeline_core.testing.store_model import ProcessMachine, StoreMachine, ThreadMachine
from pipeline_core.testing.together import Processes, healed
from pipeline_core.window import SECOND_US, Window

NOON_US = 1_700_000_000 * SECOND_US
LATER_US = 10**15
LONG_STEPS = 10_000
MINUTE_US = 60 * SECOND_US
FAR = Window.from_us(10**14, 10**14 + 1)  # no record is there
DONE = Verdict(Status.DONE, "loaded 3 rows", Outcome.LOADED, {"rows": 3}, "a to b", 3)


class RecordStoreSuite(ABC):
    """What every record store promises. Subclass it in a test module, and say how to open a store::

        class TestMyStore(RecordStoreSuite):
            def open_store(self):
                return MyStoreSettings(url=...).open(Context("p"))

    The other methods are optional; tests that need one which is not there are skipped, with the reason. `examples` is
    how many sequences of verbs the state machine tries, of 30 steps each; with PIPELINE_LONG set so many again until it
    has taken 10,000 steps. `server_clock`: the store's clock is a server's, so a worker's own may be wrong.
    """

    examples = 60
    server_clock = False

    @abstractmethod
    def open_store(self) -> AbstractContextManager[RecordStore]:
        """A store without any record. Several may be open at once; each is on its own."""

    def open_again(self, store: RecordStore) -> AbstractContextManager[RecordStore]:
        """A second object on the records of `store`, as another process would open it."""
        pytest.skip(f"{type(self).__name__} does not say how to open a store twice (open_again)")

    def settings_of(self, store: RecordStore) -> Settings[RecordStore]:
        """Settings that open the records of `store` in another process, where they arrive pickled."""
        pytest.skip(f"{type(self).__name__} does not say how another process opens a store (settings_of)")

    def set_clock(self, store: RecordStore, us: int) -> None:
        """Makes the clock of `store` show `us`, and stand still; not this process's clock."""
        pytest.skip(f"{type(self).__name__} does not say how to set its store's clock (set_clock)")

    @property
    def has_clock(self) -> bool:
        """Whether the store's clock can be set."""
        return type(self).set_clock is not RecordStoreSuite.set_clock

    # --- apply --------------------------------------------------------------------------------------------------------

    def test_apply_adds_pending_records(self) -> None:
        """In order of time, with the fields and the reason of the change and the attempts they inherit."""
        with self.open_store() as store:
            change = Change("p", add=(Addition(0, 10, 0), Addition(10, 25, 2)), fields={"key": "x"}, reason="generated")
            expect("apply returns what took effect", store, store.apply(change), change)
            found = [(r.window, r.status, r.attempts, r.fields, r.reason) for r in store.records("p")]
            windows = [(Window.from_us(0, 10), 0), (Window.from_us(10, 25), 2)]
            expected = [(window, Status.PENDING, n, {"key": "x"}, "generated") for window, n in windows]
            expect("records() gives what was added", store, found, expected)
            expect("pipelines do not see each other", store, list(store.spans("other")), [])

    def test_apply_twice_takes_effect_once(self) -> None:
        """The second time it says that nothing did, and leaves no trace in the log."""
        with self.open_store() as store:
            store.apply(plan(3, fields={"key": "old"}))
            change = Change(
                "p", (removal(store, 10),), (Addition(10, 15, 1), Addition(15, 20, 1)), {"key": "new"}, "cut"
            )
            expect("apply returns what took effect", store, store.apply(change), change)
            before = state(store)
            expect("apply is idempotent", store, bool(store.apply(change)), False)
            expect("apply is idempotent", store, state(store), before)

    def test_apply_of_a_rebuild_in_place_takes_effect_once(self) -> None:
        """A pending record replaced by one of the same span, with other fields, is not replaced once more."""
        with self.open_store() as store:
            store.apply(plan(1, fields={"key": "old"}))
            change = Change("p", (removal(store, 0),), (Addition(0, 10, 0),), {"key": "new"}, "rebuilt")
            expect("apply returns what took effect", store, store.apply(change), change)
            expect("apply is idempotent", store, bool(store.apply(change)), False)
            expect("the new fields are stored", store, [r.fields for r in store.records("p")], [{"key": "new"}])
            expect("the old one is kept, superseded", store, len(store.records("p", Status.SUPERSEDED)), 1)

    def test_evidence_is_handed_on_and_outlives_what_verifies_nothing(self) -> None:
        """A record takes over what was verified of its span and what was asked, until a verdict verifies it anew."""
        with self.open_store() as store:
            again = Addition(0, 10, 0, "a to b", 5, Asked.RELOAD)
            store.apply(Change("p", add=[again]))

            def handed() -> tuple[object, ...]:
                return tuple(getattr(only(store), name) for name in ("identity", "verified_rows", "asked"))

            expect("an addition hands on the evidence", store, handed(), ("a to b", 5, Asked.RELOAD))
            verdicts = [Verdict(Status.PENDING, "away"), Verdict(Status.QUARANTINED, "shrank")]
            for verdict in verdicts:
                store.settle(claim_one(store), verdict)
                promise = f"{verdict.status} verifies nothing"
                expect(promise, store, handed(), ("a to b", 5, Asked.RELOAD))
            change = Change("p", [removal(store, 0)], [again._replace(verified_rows=0)])
            expect("a record with other evidence is another", store, bool(store.apply(change)), True)
            expect("0 verified rows are evidence", store, handed(), ("a to b", 0, Asked.RELOAD))
            expect("apply is idempotent", store, bool(store.apply(change)), False)
            store.settle(claim_one(store), DONE)
            expect("done ends what was asked", store, handed(), ("a to b", 3, None))

    def test_additions_that_overlap_a_live_record_are_passed_over(self) -> None:
        """Touching is no overlap; reaching in from either side, lying inside and covering are."""
        with self.open_store() as store:
            store.apply(Change("p", add=[Addition(100, 200, 0), Addition(300, 400, 0)]))
            wanted = [(0, 50), (50, 101), (120, 130), (199, 210), (200, 300), (250, 450), (400, 500)]
            applied = store.apply(Change("p", add=[Addition(*span, 0) for span in wanted]))
            found = [(start_us, end_us) for start_us, end_us, *_ in applied.add]
            expect("live records never overlap", store, found, [(0, 50), (200, 300), (400, 500)])
            expect("live records never overlap", store, starts(store), [0, 100, 200, 300, 400])

    def test_a_long_record_that_begins_far_before_is_seen(self) -> None:
        """The record that reaches into an addition need not begin near it."""
        with self.open_store() as store:
            store.apply(Change("p", add=[Addition(0, 1_000, 0)]))
            applied = store.apply(Change("p", add=[Addition(990, 1_010, 0)]))
            expect("live records never overlap", store, bool(applied), False)

    def test_removals_of_what_has_changed_are_passed_over(self) -> None:
        """A record that is running, was claimed since, ends elsewhere or is gone stays as it is."""
        with self.open_store() as store:
            store.apply(plan(4))
            planned = [removal(store, start) for start in (0, 10, 20, 30)]
            claim_one(store)
            store.settle(claim_one(store), Verdict(Status.PENDING, "given back"))
            elsewhere = planned[2]._replace(end_us=31)
            change = Change("p", [*planned[:2], elsewhere, Removal(40, 50, 0, "gone"), planned[3]])
            expect("apply overtaken does what still holds", store, list(store.apply(change).remove), [planned[3]])
            expect("apply overtaken does what still holds", store, starts(store), [0, 10, 20])

    def test_a_running_record_is_never_superseded(self) -> None:
        """Not even by a plan that knows its fence."""
        with self.open_store() as store:
            store.apply(plan(1))
            claim = claim_one(store)
            applied = store.apply(Change("p", [removal(store, 0)]))
            expect("a running record is left alone", store, bool(applied), False, window=claim.window)
            expect("a running record is left alone", store, only(store).status, Status.RUNNING, window=claim.window)

    def test_a_change_that_is_refused_changes_nothing(self) -> None:
        """A span that is none and fields that are no JSON: an error, and nothing of the change takes effect."""
        with self.open_store() as store:
            store.apply(plan(1))
            before = state(store)
            gone = removal(store, 0)
            upside_down = Change("p", [gone], [Addition(20, 30, 0), Addition(50, 40, 0)])
            no_json = Change("p", [gone], [Addition(20, 30, 0)], {"when": object()})
            expect_error("a window ends after it starts", store, partial(store.apply, upside_down), TimeError)
            expect_error("fields are JSON", store, partial(store.apply, no_json), RecordError)
            expect("apply is atomic", store, state(store), before)

    # --- claim --------------------------------------------------------------------------------------------------------

    def test_claims_take_the_oldest_first(self) -> None:
        """A batch is in order of time; each claim has an id and a fence of its own, at or above the store's clock."""
        with self.open_store() as store:
            store.apply(plan(5))
            now_us = store.now_us()
            claims = [*store.claim(request(limit=2, owner="host:1")), *store.claim(request(limit=2))]
            expect("oldest first", store, [claim.window.start_us for claim in claims], [0, 10, 20, 30])
            expect("an id for each claim", store, len({claim.id for claim in claims}), 4)
            growing = [now_us - 1, *(claim.fence for claim in claims)]
            if not all(before < after for before, after in pairwise(growing)):
                raise report("fences grow, from the store's clock on", store, None, f"from {now_us} up", growing[1:])
            stored = store.records("p", Status.RUNNING)[0]
            expect("a claim carries its record as stored", store, claims[0].record, stored, window=stored.window)
            found = (stored.claim_id, stored.fence, stored.owner)
            expect("a claimed record says by whom", store, found, (claims[0].id, claims[0].fence, "host:1"))

    def test_a_claim_takes_only_what_was_asked_for(self) -> None:
        """Windows of its pipeline that end by the stable instant and start within the span."""
        with self.open_store() as store:
            store.apply(plan(5))
            store.apply(Change("q", add=[Addition(0, 10, 0)]))
            expect("a window that is not stable waits", store, list(store.claim(request(stable_until_us=9))), [])
            stable = store.claim(request(stable_until_us=10, limit=9))
            expect("a window is stable at its end", store, [c.window.start_us for c in stable], [0])
            within = store.claim(request(limit=9, within=Window.from_us(25, 41)))
            expect("`within` asks for windows that start in it", store, [c.window.start_us for c in within], [30, 40])
            other = store.claim(request(pipeline="q", limit=9))
            expect("a claim is of its pipeline", store, [c.record.pipeline for c in other], ["q"])

    def test_windows_before_1970_are_claimed_too(self) -> None:
        """Instants before the epoch are negative numbers, and as good as any."""
        with self.open_store() as store:
            store.apply(Change("p", add=[Addition(-20, -10, 0), Addition(-10, 0, 0)]))
            claims = store.claim(request(limit=2, stable_until_us=-5))
            expect("oldest first", store, [claim.window.start_us for claim in claims], [-20])

    def test_fences_grow_while_the_clock_falls(self) -> None:
        """One sequence for the whole store: a clock set back, or another pipeline, changes nothing."""
        with self.open_store() as store:
            self.set_clock(store, NOON_US)
            store.apply(plan(2))
            store.apply(Change("q", add=[Addition(0, 10, 0)]))
            first = claim_one(store).fence
            self.set_clock(store, NOON_US - 10**12)
            second = claim_one(store, pipeline="q").fence
            self.set_clock(store, NOON_US + 10**12)
            third = claim_one(store).fence
            expect(
                "a fence is max(last + 1, clock)",
                store,
                [first, second, third],
                [NOON_US, NOON_US + 1, NOON_US + 10**12],
            )

    def test_backoff_is_waited_for(self) -> None:
        """A window in backoff is passed over, the next one goes on, and it is the oldest again in its time."""
        with self.open_store() as store:
            self.set_clock(store, NOON_US)
            store.apply(plan(2))
            store.settle(claim_one(store), Verdict(Status.PENDING, "throttled", wait_s=30))
            window = store.records("p")[0].window
            expect("a window behind one in backoff goes on", store, claim_one(store).window.start_us, 10)
            self.set_clock(store, NOON_US + 30 * SECOND_US - 1)
            expect("a window in backoff waits", store, list(store.claim(request())), [], window=window)
            due_us = store.next_claim_us(request(stable_until_us=10))
            expect("next_claim_us counts backoffs", store, due_us, NOON_US + 30 * SECOND_US, window=window)
            self.set_clock(store, NOON_US + 30 * SECOND_US)
            expect("a backoff ends", store, claim_one(store).window, window)

    def test_next_claim_tells_when_to_look_again(self) -> None:
        """At once for a ready window, at the lease's end for a running one, never where nothing is left."""
        with self.open_store() as store:
            self.set_clock(store, NOON_US)
            expect("nothing is left", store, store.next_claim_us(request()), None)
            store.apply(plan(2))
            ready_us = store.next_claim_us(request())
            expect("a ready window is claimable at once", store, ready_us is not None and ready_us <= NOON_US, True)
            expect(
                "a window not yet stable is not counted", store, store.next_claim_us(request(stable_until_us=9)), None
            )
            claims = store.claim(request(limit=2, owner="host:1"))
            expect("a lease may expire", store, store.next_claim_us(request()), NOON_US + MINUTE_US)
            dead_us = store.next_claim_us(request(dead_owners=frozenset({"host:1"})))
            expect("the lease of a dead owner is over", store, dead_us is not None and dead_us <= NOON_US, True)
            within = store.next_claim_us(request(within=Window.from_us(20, 30)))
            expect("only windows asked for are counted", store, within, None)
            for claim in claims:
                store.settle(claim, DONE)
            expect("nothing is left", store, store.next_claim_us(request()), None)

    def test_no_more_windows_run_than_allowed(self) -> None:
        """Whoever claimed them and whichever are asked for; of this pipeline alone, and one that ends makes room."""
        with self.open_store() as store:
            store.apply(plan(6))
            store.apply(Change("q", add=[Addition(0, 10, 0)]))
            claim_one(store, within=Window.from_us(50, 60))
            claims = store.claim(request(limit=9, max_running=3))
            expect("no more run than allowed", store, [claim.window.start_us for claim in claims], [0, 10])
            expect("no more run than allowed", store, list(store.claim(request(max_running=3))), [])
            expect("no more run than allowed", store, list(store.claim(request(max_running=2))), [])
            claim_one(store, pipeline="q", max_running=1)
            store.settle(claims[0], DONE)
            expect("an end makes room", store, claim_one(store, max_running=3).window.start_us, 20)
            expect("who sets no limit has none", store, claim_one(store).window.start_us, 30)

    def test_next_claim_waits_for_room(self) -> None:
        """Where as many run as may, until the lease ends that has to end first; then a claim finds the room."""
        with self.open_store() as store:
            self.set_clock(store, NOON_US)
            store.apply(plan(4))
            first = claim_one(store, lease_s=100)
            for lease_s in (200, 300):
                claim_one(store, lease_s=lease_s)
            full = store.next_claim_us(request(max_running=3))
            expect("room for one when the first lease ends", store, full, NOON_US + 100 * SECOND_US)
            over = store.next_claim_us(request(max_running=1))
            expect("room for one when all leases end", store, over, NOON_US + 300 * SECOND_US)
            free_us = store.next_claim_us(request(max_running=4))
            expect("room now", store, free_us is not None and free_us <= NOON_US, True)
            self.set_clock(store, NOON_US + 100 * SECOND_US)
            expect("a lease that ended makes room", store, claim_one(store, max_running=3).window, first.window)

    def test_claims_at_once_keep_within_the_limit(self) -> None:
        """Six workers on the same records, each with an object of its own where the store can be opened twice."""
        with self.open_store() as store, ExitStack() as opened:
            store.apply(plan(60))
            can_open = type(self).open_again is not RecordStoreSuite.open_again
            workers = [opened.enter_context(self.open_again(store)) if can_open else store for _ in range(6)]
            limited = request(lease_s=6000, max_running=2)
            for _ in range(5):
                got = at_once(lambda worker: healed(lambda: worker.claim(limited)), workers)
                claims = [claim for part in got for claim in part]
                expect("no more run than allowed", store, len(claims), 2)
                for claim in claims:
                    store.settle(claim, DONE)

    def test_an_expired_lease_is_a_crash_and_the_last_one_quarantines(self) -> None:
        """By the store's clock: the first crash is retried at once, the second after the backoff, the third never."""
        with self.open_store() as store:
            self.set_clock(store, NOON_US)
            store.apply(plan(1))
            window = claim_one(store).window
            self.set_clock(store, NOON_US + MINUTE_US - 1)
            expect("a lease holds to its end", store, list(store.claim(request())), [], window=window)
            self.set_clock(store, NOON_US + MINUTE_US)
            second = claim_one(store).record
            expect("an expired lease is one crash", store, (second.crashes, second.attempts), (1, 0), window=window)
            self.set_clock(store, NOON_US + 2 * MINUTE_US)
            expect("a second crash backs off", store, list(store.claim(request(crash_backoff_s=5))), [], window=window)
            due_us = NOON_US + 2 * MINUTE_US + 5 * SECOND_US
            expect("a second crash backs off", store, only(store).not_before_us, due_us, window=window)
            self.set_clock(store, due_us)
            claim_one(store)
            self.set_clock(store, due_us + MINUTE_US)
            expect("the last crash quarantines", store, list(store.claim(request(max_crashes=3))), [], window=window)
            record = only(store)
            found = (record.status, record.crashes, record.attempts)
            expect("the last crash quarantines", store, found, (Status.QUARANTINED, 3, 0), window=window)

    def test_a_lease_is_measured_by_the_stores_clock(self) -> None:
        """However far the store's clock is from the worker's, a lease ends `lease_s` after the claim by the store's."""
        for noon_us in (10**9 * SECOND_US, 3 * 10**9 * SECOND_US):
            with self.open_store() as store:
                self.set_clock(store, noon_us)
                store.apply(plan(1))
                claim = claim_one(store)
                promise = "a lease runs on the store's clock"
                expect(promise, store, claim.record.lease_until_us, noon_us + MINUTE_US, window=claim.window)
                expect(promise, store, list(store.claim(request())), [], window=claim.window)
                self.set_clock(store, noon_us + MINUTE_US)
                expect(promise, store, len(store.claim(request())), 1, window=claim.window)

    def test_leases_of_dead_owners_are_taken_over_at_once(self) -> None:
        """A dead owner's lease counts as expired; a living one's does not."""
        with self.open_store() as store:
            store.apply(plan(2))
            claim_one(store, owner="host:1")
            claim_one(store, owner="host:2")
            taken = store.claim(request(limit=9, dead_owners=frozenset({"host:1", "host:3"})))
            found = [(claim.window.start_us, claim.record.crashes) for claim in taken]
            expect("the lease of a dead owner is over, and a crash", store, found, [(0, 1)])

    # --- resume, renew, settle ----------------------------------------------------------------------------------------

    def test_resume_brings_a_higher_fence_and_locks_the_old_one_out(self) -> None:
        """The claim's id stays; who still holds the lower fence can neither renew nor settle."""
        with self.open_store() as store:
            store.apply(plan(1))
            old = claim_one(store, owner="host:1")
            new = store.resume(old, 60)
            expect("resume keeps the claim's id", store, new.id, old.id, window=old.window)
            expect("resume brings a higher fence", store, new.fence > old.fence, True, window=old.window)
            expect("resume returns the record as stored", store, new.record, only(store), window=old.window)
            expect("who resumed may be another process", store, new.record.owner, None, window=old.window)
            self._refused(store, old)
            expect("a claim may be resumed again", store, store.resume(old, 60).fence > new.fence, True)

    def _refused(self, store: RecordStore, claim: Claim) -> None:
        before = state(store)
        promise, window = "a lost claim is refused", claim.window
        expect_error(f"renew: {promise}", store, lambda: store.renew(claim, 60), ClaimLostError, window=window)
        expect_error(f"settle: {promise}", store, lambda: store.settle(claim, DONE), ClaimLostError, window=window)
        expect(promise, store, state(store), before, window=window)

    def test_resume_past_the_lease_while_nobody_else_has_claimed(self) -> None:
        """An expired claim may go on, even when its expiry was noticed; once another has claimed it is lost."""
        with self.open_store() as store:
            self.set_clock(store, NOON_US)
            store.apply(plan(1))
            claim = claim_one(store)
            self.set_clock(store, NOON_US + 2 * MINUTE_US)
            claim = store.resume(claim, 60)
            self.set_clock(store, NOON_US + 4 * MINUTE_US)
            store.claim(request(within=FAR))  # notices the expiry
            expect("an expired lease is noticed", store, only(store).status, Status.PENDING, window=claim.window)
            self._refused(store, claim)
            claim = store.resume(claim, 60)
            found = (claim.record.status, claim.record.crashes)
            expect("resume goes on past the lease", store, found, (Status.RUNNING, 1), window=claim.window)
            self.set_clock(store, NOON_US + 9 * MINUTE_US)
            store.claim(request())  # the second crash backs off
            self.set_clock(store, NOON_US + 10 * MINUTE_US)
            other = claim_one(store)
            self._refused(store, claim)
            promise = "resume: a claim that another worker took is lost"
            expect_error(promise, store, lambda: store.resume(claim, 60), ClaimLostError, window=claim.window)
            store.settle(other, DONE)

    def test_resume_of_what_the_claim_has_settled_comes_back_unchanged(self) -> None:
        """A task repeated after its window was settled gets the recorded result, and no new fence."""
        for status in (Status.DONE, Status.QUARANTINED):
            with self.open_store() as store:
                store.apply(plan(1))
                claim = claim_one(store)
                settled = store.settle(claim, evolve(DONE, status=status))
                before = state(store)
                again = store.resume(claim, 60)
                found = (again.id, again.fence, again.record)
                promise = f"resume of a {status} window changes nothing"
                expect(promise, store, found, (claim.id, claim.fence, settled), window=claim.window)
                expect(promise, store, state(store), before, window=claim.window)

    def test_resume_of_what_was_given_back_or_superseded_is_lost(self) -> None:
        """Pending again forgets the claim; a superseded record is no one's."""
        with self.open_store() as store:
            store.apply(plan(1))
            given_back = claim_one(store)
            store.settle(given_back, Verdict(Status.PENDING, "source down"))
            promise = "resume: a claim that was given back is lost"
            expect_error(promise, store, lambda: store.resume(given_back, 60), ClaimLostError, window=given_back.window)
            claim = claim_one(store)
            store.settle(claim, DONE)
            store.apply(Change("p", [removal(store, 0)], [Addition(0, 20, 0)]))
            promise = "resume: the claim of a superseded record is lost"
            expect_error(promise, store, lambda: store.resume(claim, 60), ClaimLostError, window=claim.window)

    def test_renew_extends_the_lease(self) -> None:
        """A renewed lease is not taken over at its first end, and renewing adds no event."""
        with self.open_store() as store:
            self.set_clock(store, NOON_US)
            store.apply(plan(1))
            claim = claim_one(store)
            log = list(store.events("p"))
            self.set_clock(store, NOON_US + 50 * SECOND_US)
            store.renew(claim, 60)
            self.set_clock(store, NOON_US + 100 * SECOND_US)
            expect("a renewed lease holds", store, list(store.claim(request())), [], window=claim.window)
            expect("renewing is no transition", store, list(store.events("p")), log, window=claim.window)
            self.set_clock(store, NOON_US + 110 * SECOND_US)
            expect("a renewed lease ends too", store, claim_one(store).id == claim.id, False, window=claim.window)

    def test_settle_keeps_what_the_verdict_says(self) -> None:
        """Outcome, reason, evidence and identity are on the record; the lease is gone."""
        with self.open_store() as store:
            store.apply(plan(1))
            claim = claim_one(store, owner="host:1")
            record = store.settle(claim, DONE)
            expect("settle returns the record as stored", store, record, only(store), window=claim.window)
            found = (record.status, record.outcome, record.reason, record.evidence, record.identity)
            expected = (Status.DONE, Outcome.LOADED, "loaded 3 rows", {"rows": 3}, "a to b")
            expect("settle keeps what was verified", store, record.verified_rows, 3, window=claim.window)
            expect("settle keeps the verdict", store, found, expected, window=claim.window)
            left = (record.claim_id, record.lease_until_us, record.owner, record.attempts)
            expect("settle ends the lease", store, left, (claim.id, None, None, 0), window=claim.window)

    def test_attempts_and_crashes(self) -> None:
        """A fault of a side uses no attempt, a fault of the window one; only done ends the count of crashes."""
        with self.open_store() as store:
            store.apply(plan(1))
            record = store.settle(claim_one(store), Verdict(Status.PENDING, "source down"))
            found = (record.attempts, record.claim_id, record.owner, record.lease_until_us, record.not_before_us)
            expect("pending again forgets the claim", store, found, (0, None, None, None, 0), window=record.window)
            record = store.settle(claim_one(store, owner="host:1"), Verdict(Status.PENDING, "bad rows", attempt=True))
            expect("an attempt is counted where told", store, record.attempts, 1, window=record.window)
            claim_one(store, owner="host:1")
            again = claim_one(store, dead_owners=frozenset({"host:1"}))
            record = store.settle(again, Verdict(Status.PENDING, "again"))
            expect("crashes survive pending", store, record.crashes, 1, window=record.window)
            record = store.settle(claim_one(store), DONE)
            expect("crashes end with done", store, (record.crashes, record.attempts), (0, 1), window=record.window)

    def test_a_verdict_that_ends_no_claim_is_refused(self) -> None:
        """Neither running nor superseded is a way for an attempt to end; evidence that is no JSON cannot be kept."""
        bad = Verdict(Status.DONE, "x", Outcome.LOADED, {"rows": object()})
        for verdict in (Verdict(Status.RUNNING, "no"), Verdict(Status.SUPERSEDED, "no"), bad):
            with self.open_store() as store:
                store.apply(plan(1))
                claim = claim_one(store)
                before = state(store)
                promise = f"settle refuses {verdict}"
                expect_error(promise, store, partial(store.settle, claim, verdict), RecordError)
                expect(promise, store, state(store), before, window=claim.window)

    def test_settling_twice_is_refused(self) -> None:
        """The second verdict does not overwrite the first."""
        with self.open_store() as store:
            store.apply(plan(1))
            claim = claim_one(store)
            store.settle(claim, DONE)
            self._refused(store, claim)

    def test_any_text_is_kept_apart_or_escaped(self) -> None:
        """Names and reasons may hold quotes, NUL, half surrogates and any script; no name stands for another."""
        hostile = ["p", "P", "p ", 'p"', "p'; DROP TABLE records; --", "p%", "p_", "漢字", "e\u0301", "é"]
        with self.open_store() as store:
            for number, name in enumerate(hostile):
                store.apply(Change(name, add=[Addition(0, 10 + number, 0)]))
            found = [[span.end_us for span in store.spans(name)] for name in hostile]
            expect("pipelines do not see each other", store, found, [[10 + number] for number in range(len(hostile))])
            claim = claim_one(store)
            store.settle(claim, Verdict(Status.PENDING, "a\0b\udcffc ü"))
            kept = only(store).reason
            expect("any text can be a reason", store, (kept[0], kept[-3:]), ("a", "c ü"), window=claim.window)

    # --- by hand ------------------------------------------------------------------------------------------------------

    def test_a_retry_begins_anew(self) -> None:
        """Quarantined to pending: attempts, crashes, backoff and claim are forgotten; the event says who."""
        with self.open_store() as store:
            store.apply(plan(1))
            claim_one(store, owner="host:1")
            claim = claim_one(store, dead_owners=frozenset({"host:1"}))
            store.settle(claim, Verdict(Status.QUARANTINED, "bad rows", attempt=True))
            (moved,) = store.intervene(by(store, Hand.RETRY))
            expect("intervene returns the record as stored", store, moved, only(store), window=moved.window)
            found = (moved.status, moved.attempts, moved.crashes, moved.not_before_us, moved.claim_id)
            expect("a retry begins anew", store, found, (Status.PENDING, 0, 0, 0, None), window=moved.window)
            expect("a reason says who and why", store, moved.reason, "retried by ann@host: mended", window=moved.window)
            event = list(store.events("p"))[-1]
            told = (event.step, event.fields["by"], event.fields["reason"], event.fields["status"])
            expect("an event says who and why", store, told, ("retried", "ann@host", moved.reason, "pending"))
            self._refused(store, claim)

    def test_a_release_locks_the_holder_out(self) -> None:
        """Running to pending, at once: whoever held it can neither go on nor settle; its attempts stay."""
        with self.open_store() as store:
            store.apply(plan(1))
            store.settle(claim_one(store), Verdict(Status.PENDING, "bad rows", attempt=True))
            claim = claim_one(store, owner="host:1")
            (moved,) = store.intervene(by(store, Hand.RELEASE))
            found = (moved.status, moved.attempts, moved.owner, moved.lease_until_us, moved.claim_id)
            expect("a release ends the lease", store, found, (Status.PENDING, 1, None, None, None), window=moved.window)
            self._refused(store, claim)
            promise = "resume: a claim that was released is lost"
            expect_error(promise, store, lambda: store.resume(claim, 60), ClaimLostError, window=claim.window)
            expect("a released window is claimed again", store, claim_one(store).fence > claim.fence, True)

    def test_what_is_skipped_is_done(self) -> None:
        """Pending and quarantined windows; what was asked of them is forgotten, what was verified is not."""
        with self.open_store() as store:
            store.apply(Change("p", add=[Addition(0, 10, 0), Addition(10, 20, 0, "a to b", 5, Asked.RELOAD)]))
            claim = claim_one(store)
            store.settle(claim, Verdict(Status.QUARANTINED, "bad rows"))
            moved = store.intervene(by(store, Hand.SKIP))
            expect("intervene returns the records as stored", store, list(moved), list(store.records("p")))
            found = [(r.status, r.outcome, r.asked, r.verified_rows) for r in moved]
            done = (Status.DONE, Outcome.SKIPPED, None)
            expect("a skipped window is done", store, found, [(*done, None), (*done, 5)])
            expect("nothing is left to claim", store, list(store.claim(request())), [])
            expect_error("a skip ends the claim", store, lambda: store.resume(claim, 60), ClaimLostError)

    def test_a_hand_passes_over_what_has_moved_on(self) -> None:
        """Settled, claimed again, superseded or gone since it was read; other pipelines' windows are not touched."""
        with self.open_store() as store:
            store.apply(plan(3))
            store.apply(Change("q", add=[Addition(0, 10, 0)]))
            claims = store.claim(request(limit=2))
            release = by(store, Hand.RELEASE)
            store.settle(claims[0], DONE)
            store.resume(claims[1], 60)
            elsewhere = release.spans[1]._replace(start_us=500, end_us=510)
            before = state(store)
            moved = store.intervene(evolve(release, spans=[*release.spans, elsewhere]))
            expect("a hand passes over what has moved on", store, list(moved), [])
            expect("a hand passes over what has moved on", store, state(store), before)

    def test_a_hand_that_does_not_fit_does_nothing(self) -> None:
        """One window in the wrong state: an error, and none of the others moves."""
        with self.open_store() as store:
            store.apply(plan(2))
            claim_one(store)
            before = state(store)
            for hand in (Hand.RETRY, Hand.SKIP, Hand.RELEASE):
                wrong = evolve(by(store, hand), spans=store.spans("p"))
                expect_error(
                    f"{hand} refuses what it does not fit", store, partial(store.intervene, wrong), RecordError
                )
                expect("intervene is atomic", store, state(store), before)

    # --- reading ------------------------------------------------------------------------------------------------------

    def test_records_by_status_span_and_limit(self) -> None:
        """No status asks for the live ones; `within` for those that start in it; in order of time."""
        with self.open_store() as store:
            store.apply(plan(5))
            store.settle(claim_one(store), DONE)
            claim_one(store)
            store.apply(Change("p", [removal(store, 40)]))

            def found(*status: Status, **other: Any) -> list[int]:
                return [record.window.start_us for record in store.records("p", *status, **other)]

            expect("records() gives the live ones", store, found(), [0, 10, 20, 30])
            expect("records(DONE)", store, found(Status.DONE), [0])
            expect("records(RUNNING, PENDING)", store, found(Status.RUNNING, Status.PENDING), [10, 20, 30])
            expect("records(SUPERSEDED)", store, found(Status.SUPERSEDED), [40])
            expect("records(within=)", store, found(within=Window.from_us(5, 20)), [10])
            expect("records(limit=)", store, found(limit=2), [0, 10])
            expect("records(PENDING, within=, limit=)", store, found(Status.PENDING, within=FAR, limit=2), [])

    def test_spans_are_the_live_records(self) -> None:
        """What planning reads in bulk is what the records say."""
        with self.open_store() as store:
            store.apply(plan(3, fields={"key": ["ü", 1, None]}))
            store.settle(claim_one(store), DONE)
            claim_one(store)
            found = [tuple(span) for span in store.spans("p")]
            expected = [
                (
                    *(r.window.start_us, r.window.end_us, r.status, r.fence, r.attempts, r.identity, r.fields),
                    *(r.outcome, r.verified_rows, r.asked),
                )
                for r in store.records("p")
            ]
            expect("spans() says what records() says", store, found, expected)
            expect("fields are kept", store, found[2][6], {"key": ["ü", 1, None]})
            expect("the outcome and the verified rows are read too", store, found[0][7:], (Outcome.LOADED, 3, None))

    def test_events_tell_each_transition_with_its_reason(self) -> None:
        """Oldest first: planned, superseded, claimed, expired, resumed, settled."""
        with self.open_store() as store:
            store.apply(plan(2))
            store.apply(Change("p", [removal(store, 10)], [Addition(10, 30, 0)], {"k": 1}, "rebuilt"))
            claim_one(store, owner="host:1")
            claim = claim_one(store, dead_owners=frozenset({"host:1"}))
            store.settle(store.resume(claim, 60), DONE)
            log = list(store.events("p"))
            steps = ["planned", "superseded", "planned", "claimed", "expired", "claimed", "resumed", "settled"]
            expect("each transition is one event", store, [event.step for event in log], steps)
            status = ["superseded", "running", "pending", "running", "running", "done"]
            found = [event.fields["status"] for event in log if event.window is not None]
            expect("an event says where its transition led", store, found, status)
            reasons = [bool(event.fields.get("reason")) for event in log]
            expect("each event has a reason", store, reasons, [True] * len(log))
            expect("the verdict's reason is told", store, log[-1].fields["reason"], DONE.reason)
            whole = [(event.window, event.pipeline) for event in log if event.step == "planned"]
            expect("a plan is an event of the pipeline", store, whole, [(None, "p")] * 2)

    def test_events_since_and_by_window(self) -> None:
        """At or after an instant of the store's clock; of records that overlap a window."""
        with self.open_store() as store:
            self.set_clock(store, NOON_US)
            store.apply(plan(3))
            self.set_clock(store, NOON_US + 1)
            claims = store.claim(request(limit=3))
            since = [event.window for event in store.events("p", since_us=NOON_US + 1)]
            expect("events(since_us=)", store, since, [claim.window for claim in claims])
            over = [event.window for event in store.events("p", window=Window.from_us(9, 20))]
            expect("events(window=)", store, over, [claim.window for claim in claims[:2]])

    def test_upgrading_says_what_was_done_and_harms_nothing(self) -> None:
        """In words for a person; the records stay as they are."""
        with self.open_store() as store:
            store.apply(plan(2))
            before = state(store)
            expect("upgrade says what was done", store, bool(store.upgrade().strip()), True)
            expect("upgrade keeps the records", store, state(store), before)

    # --- many at once -------------------------------------------------------------------------------------------------

    def test_threads_share_one_store(self) -> None:
        """Eight threads on one object: each window is claimed once and settled by who claimed it."""
        with self.open_store() as store:
            store.apply(plan(100))
            self._claimed_once(store, [store] * 8, 100)

    def test_workers_with_objects_of_their_own_share_the_records(self) -> None:
        """Four objects on the same records, as four processes would have them: each window is claimed once."""
        with self.open_store() as store, ExitStack() as opened:
            store.apply(plan(60))
            others = [opened.enter_context(self.open_again(store)) for _ in range(4)]
            expect("another process sees the records", store, starts(others[0]), starts(store))
            self._claimed_once(store, others, 60)

    def _claimed_once(self, store: RecordStore, workers: Sequence[RecordStore], count: int) -> None:
        def work(worker: RecordStore) -> list[int]:
            got = []
            while claims := healed(lambda: worker.claim(request(lease_s=6000))):
                (claim,) = claims
                got.append(claim.window.start_us)
                healed(partial(worker.renew, claim, 6000))
                resumed = healed(partial(worker.resume, claim, 6000))
                healed(partial(worker.settle, resumed, DONE))
            return got

        got = [start for part in at_once(work, workers) for start in part]
        expect("two workers never hold one window", store, sorted(got), [10 * number for number in range(count)])
        fences = {record.fence for record in store.records("p", Status.DONE)}
        expect("a fence is given out once", store, len(fences), count)

    def test_planners_at_once_do_not_overlap(self) -> None:
        """Four grids planned by threads at the same moment: what is live never overlaps, and each says what it did."""
        grids = [[Addition(at, at + step, 0) for at in range(0, 1_500, step)] for step in (10, 15, 25, 40)]
        with self.open_store() as store:
            applied = at_once(lambda grid: healed(lambda: store.apply(Change("p", add=grid))), grids)
            spans = store.spans("p")
            overlaps = [(a[:2], b[:2]) for a, b in pairwise(spans) if a.end_us > b.start_us]
            expect("live records never overlap", store, overlaps, [])
            told = sum(len(change.add) for change in applied)
            expect("apply returns what took effect", store, told, len(spans))

    # --- moving the store ---------------------------------------------------------------------------------------------

    def test_a_moved_store_shows_the_same(self) -> None:
        """Records in every state with their evidence, superseded ones, and events; of that pipeline alone."""
        with self.open_store() as store, self.open_store() as other:
            self._fill(store)
            store.apply(Change("q", add=[Addition(0, 10, 0)]))
            kept = list(store.dump("p"))
            expect("a dump holds one pipeline", store, {each.pipeline for each in kept}, {"p"})
            other.restore("p", kept)
            expect("a moved store shows the same", other, state(other), state(store))
            expect("a moved store shows the same", other, list(other.spans("p")), list(store.spans("p")))
            expect("what was moved can be moved again", other, list(other.dump("p")), kept)
            expect("a moved window is claimed", other, claim_one(other).window.start_us, 0)

    def test_fences_are_above_those_that_were_moved(self) -> None:
        """Even above one that the store's own clock is far from; those of other pipelines, too."""
        with self.open_store() as store:
            store.restore("p", [Record("p", Window.from_us(0, 10), status=Status.DONE, fence=LATER_US * 100)])
            store.apply(Change("q", add=[Addition(0, 10, 0)]))
            if (fence := claim_one(store, pipeline="q").fence) <= LATER_US * 100:
                raise report("fences go on above those moved", store, None, f"above {LATER_US * 100}", fence)

    def test_nothing_is_moved_over_what_is_there(self) -> None:
        """A store that keeps something of the pipeline refuses; one that keeps other pipelines does not."""
        with self.open_store() as store:
            store.apply(plan(1))
            before = state(store)
            moved = [Record("p", Window.from_us(50, 60))]
            promise = "what is there stays"
            expect_error(promise, store, lambda: store.restore("p", moved), RecordError)
            expect(promise, store, state(store), before)
            store.restore("q", [Record("q", Window.from_us(50, 60))])
            expect("another pipeline is in nobody's way", store, len(store.spans("q")), 1)

    def test_a_store_is_moved_whole_or_not_at_all(self) -> None:
        """What breaks off after thousands of records leaves nothing, and a second try takes in all."""

        def broken() -> Iterator[Record]:
            yield from moved
            raise RecordError("torn")

        moved = [Record("p", Window.from_us(at, at + 1)) for at in range(2_500)]
        with self.open_store() as store:
            expect_error("what breaks off is told", store, lambda: store.restore("p", broken()), RecordError)
            expect("nothing is taken in by halves", store, state(store), ([], [], []))
            store.restore("p", moved)
            expect("a second try takes in all", store, list(store.dump("p")), moved)

    # --- pruning ------------------------------------------------------------------------------------------------------

    def test_a_prune_keeps_what_planning_goes_by(self) -> None:
        """Done windows give up their details, and no others do; what is not old, and of another pipeline, stays."""
        with self.open_store() as store:
            self._fill(store)
            skip = Intervention("p", Hand.SKIP, [store.spans("p")[2]], "never mind", "ann@host")
            store.intervene(skip)
            store.apply(Change("p", add=[Addition(60, 70, 0), Addition(70, 80, 0)]))
            for start_us in (60, 70):
                store.settle(claim_one(store, within=Window.from_us(start_us, start_us + 1)), DONE)
            store.apply(Change("q", add=[Addition(0, 10, 0)]))
            spans, records, others = list(store.spans("p")), list(store.records("p")), list(store.events("q"))
            pruning = Pruning("p", 70)
            told = store.prune(evolve(pruning, dry_run=True))
            expect("a dry run changes nothing", store, list(store.records("p")), records)
            expect("two old windows are done, and one is superseded", store, (told.done, told.superseded), (2, 1))
            expect("a prune does what its dry run says", store, prune(store, pruning), told)
            expect("planning finds what it found", store, list(store.spans("p")), spans)
            expected = [in_short(r) if r.window.start_us in (10, 60) else r for r in records]
            expect("only done windows give up their details", store, list(store.records("p")), expected)
            expect("superseded records go", store, list(store.records("p", Status.SUPERSEDED)), [])
            expect("another pipeline is left alone", store, list(store.events("q")), others)
            expect("once is enough", store, bool(store.prune(pruning)), False)

    def test_a_prune_keeps_the_events_of_what_is_not_done(self) -> None:
        """They tell how it came to be as it is; those of done windows go, and so does what was told of none before."""
        with self.open_store() as store:
            self.set_clock(store, 50)
            self._fill(store)
            self.set_clock(store, 60)
            store.apply(Change("p", add=[Addition(60, 70, 0)]))
            open_ = [e for e in store.events("p") if e.window is not None and e.window.start_us in (20, 30, 40)]
            later = [event for event in store.events("p") if event.at_us == 60]
            expected = [(event.step, event.window) for event in (*open_, *later)]
            pruned = prune(store, Pruning("p", 60))
            told = list(store.events("p"))
            kept = [(event.step, event.window) for event in told if event.step != "pruned"]
            expect("events of windows that are not done are kept", store, kept, expected)
            steps = [event.fields for event in told if event.step == "pruned"]
            found = [sum(fields[name] for fields in steps) for name in ("done", "superseded", "events")]
            expect("each step is told", store, found, [pruned.done, pruned.superseded, pruned.events])

    def test_a_prune_goes_in_steps(self) -> None:
        """Of so many records, or events, each; what a step did is done, and the rest waits for the next."""
        with self.open_store() as store:
            store.apply(plan(25))
            for claim in store.claim(request(limit=25)):
                store.settle(claim, DONE)
            pruning = Pruning("p", 250, most=10)
            before, spans, steps = store.prune(evolve(pruning, dry_run=True)), list(store.spans("p")), [Pruned()]
            expect("all done windows are old", store, before.done, 25)
            while step := store.prune(pruning):
                steps.append(step)
                if max(step.done, step.superseded, step.events) > pruning.most:
                    raise report("a step is of so many at most", store, None, pruning.most, step)
                expect("planning finds what it found", store, list(store.spans("p")), spans)
            expect("all steps do what was told before", store, sum(steps[1:], steps[0]), before)

    def test_a_pruned_window_is_replaced_like_any_other(self) -> None:
        """By itself: its neighbours stay as they are; and a worker that has settled it before can do nothing to it."""
        with self.open_store() as store:
            store.apply(plan(9))
            claims = store.claim(request(limit=9))
            for claim in claims:
                store.settle(claim, DONE)
            prune(store, Pruning("p", 100))
            expect_error("a claim ends with the details", store, lambda: store.resume(claims[4], 60), ClaimLostError)
            records = list(store.records("p"))
            again = Addition(40, 50, 0, "a to b", 3, Asked.RELOAD)
            change = Change("p", (removal(store, 40),), (again,), reason="reload")
            expect("apply returns what took effect", store, store.apply(change), change)
            others = [r for r in store.records("p") if r.window.start_us != 40]
            expect("the neighbours stay", store, others, [*records[:4], *records[5:]])
            expect("what overlaps them is passed over", store, bool(store.apply(Change("p", add=[again]))), False)
            claim = claim_one(store)
            expect("the window is claimed again", store, claim.window.start_us, 40)
            store.settle(claim, DONE)
            prune(store, Pruning("p", 100))
            expect("it is pruned again", store, {r.reason for r in store.records("p")}, {records[0].reason})

    def test_pruned_records_are_read_like_any_other(self) -> None:
        """By status, span and limit, in order of time; and they can be moved to another store."""
        with self.open_store() as store, self.open_store() as other:
            store.apply(plan(9))
            for claim in store.claim(request(limit=8)):
                store.settle(claim, DONE)
            prune(store, Pruning("p", 60))
            prune(store, Pruning("p", 80))
            records = list(store.records("p"))
            for first, last, limit in [
                (0, 90, None),
                (20, 50, None),
                (25, 50, 1),
                (20, 50, 1),
                (31, 35, 2),
                (75, 90, 3),
            ]:
                within = Window.from_us(first, last)
                expected = [r for r in records if first <= r.window.start_us < last][:limit]
                found = list(store.records("p", within=within, limit=limit))
                expect(f"records(within={first} to {last}, limit={limit})", store, found, expected)
            expect("records(DONE)", store, list(store.records("p", Status.DONE)), records[:8])
            expect("records(limit=)", store, list(store.records("p", limit=3)), records[:3])
            other.restore("p", store.dump("p"))
            expect("a pruned store moves", other, list(other.records("p")), records)

    def test_a_prune_beside_workers_harms_nothing(self) -> None:
        """While others claim, settle and reload: each window is done in the end, and none was done by two."""
        with self.open_store() as store:
            store.apply(plan(60))
            beside = _Beside(store)
            with ThreadPoolExecutor(5) as pool:
                pruner = pool.submit(beside.prune)
                workers = [pool.submit(beside.work) for _ in range(3)]
                reloads = pool.submit(beside.reload)
                everybody: list[Future[Any]] = [pruner, *workers, reloads]
                for each in everybody:
                    each.add_done_callback(beside.look)
            pruner.result()
            again = reloads.result()
            claims = sorted((claim for worker in workers for claim in worker.result()), key=lambda claim: claim.fence)
            taken = sorted(claim.window.start_us for claim in claims)
            expect("two workers never hold one window", store, taken, sorted([*range(0, 600, 10), *again]))
            prune(store, Pruning("p", 600))
            latest = {claim.window.start_us: (Status.DONE, claim.fence) for claim in claims}
            found = {span.start_us: (span.status, span.fence) for span in store.spans("p")}
            expect("what was done last is what is kept", store, found, latest)

    def _fill(self, store: RecordStore) -> None:
        """One window pending as planned, and one of each other state."""
        store.apply(plan(6, fields={"key": "x"}))
        store.apply(Change("p", [removal(store, 50)], reason="re-cut"))
        verdicts = [
            DONE,
            Verdict(Status.QUARANTINED, "bad rows", attempt=True),
            Verdict(Status.PENDING, "throttled", wait_s=6_000),
        ]
        for start_us, verdict in zip((10, 20, 30), verdicts, strict=True):
            store.settle(claim_one(store, within=Window.from_us(start_us, start_us + 1)), verdict)
        claim_one(store, within=Window.from_us(40, 41), owner="host:1", lease_s=6_000)

    def test_the_store_behaves_as_the_model(self) -> None:
        """Apply, claim, resume, renew, settle, expiry, dead owners and a clock that moves, in any order."""

        class Machine(StoreMachine):
            suite = self

        self._run(Machine, self._settings())

    def test_threads_behave_as_the_model(self) -> None:
        """The same with verbs at the same moment: what comes of them is what some order of them would have led to."""

        class Machine(ThreadMachine):
            suite = self

        self._run_at_once(Machine)

    def test_processes_behave_as_the_model(self) -> None:
        """The same among processes, each with its own connections and, by a server's clock, a wrong one of its own."""
        with self.open_store() as store:
            self.settings_of(store)  # skips before any process is started

        class Machine(ProcessMachine):
            suite = self

        with Processes(skewed=self.server_clock) as Machine.crew:
            self._run_at_once(Machine)

    def _run_at_once(self, machine: type[ThreadMachine]) -> None:
        # What happens at once cannot be repeated at will: a failure is neither made small nor asked for again.
        how = settings(self._settings(), max_examples=max(1, self.examples // 2), phases=[Phase.generate])
        try:
            self._run(machine, how)
        except Flaky as unrepeatable:
            raise _first_seen(unrepeatable) from None

    def _run(self, machine: type[StoreMachine], how: settings) -> None:
        run_state_machine_as_test(machine, settings=how)
        while os.environ.get("PIPELINE_LONG") and machine.steps < LONG_STEPS:
            run_state_machine_as_test(machine, settings=how)

    def _settings(self) -> settings:
        return settings(
            max_examples=self.examples,
            stateful_step_count=30,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )


# --- what the tests share ---------------------------------------------------------------------------------------------


def plan(count: int, **other: Any) -> Change:
    """`count` windows of ten microseconds, one after the other."""
    return Change("p", add=[Addition(at * 10, at * 10 + 10, 0) for at in range(count)], **other)


def request(**other: Any) -> ClaimRequest:
    return evolve(ClaimRequest("p", LATER_US, 60), **other)


def claim_one(store: RecordStore, **other: Any) -> Claim:
    claims = store.claim(request(**other))
    expect("a pending window is claimed", store, len(claims), 1)
    return claims[0]


def by(store: RecordStore, hand: Hand) -> Intervention:
    """That hand, laid by a person on every window that it fits."""
    spans = [span for span in store.spans("p") if span.status in hand.fits]
    return Intervention("p", hand, spans, "mended", "ann@host")


def prune(store: RecordStore, pruning: Pruning) -> Pruned:
    """All steps of it."""
    pruned = Pruned()
    while step := store.prune(pruning):
        pruned += step
    return pruned


@define
class _Beside:
    """Those who work on one store at once, until all is done for good, or one of them fails."""

    store: RecordStore
    reloaded: Event = field(factory=Event)
    failed: Event = field(factory=Event)

    def look(self, ended: Future[Any]) -> None:
        if ended.exception() is not None:
            self.failed.set()

    def goes_on(self) -> bool:
        if self.failed.is_set():
            return False
        return not self.reloaded.is_set() or any(span.status is not Status.DONE for span in self.store.spans("p"))

    def work(self) -> list[Claim]:
        got = []
        while self.goes_on():
            for claim in healed(lambda: self.store.claim(request(lease_s=6000))):
                got.append(claim)
                healed(partial(self.store.settle, claim, DONE))
        return got

    def reload(self) -> list[int]:
        """Makes some windows pending again as soon as they are pruned; which ones."""
        left, did = {*range(0, 600, 20)}, []
        while left and self.goes_on():
            for record in self.store.records("p", Status.DONE):
                start_us, end_us = record.window.start_us, record.window.end_us
                if start_us in left and record == in_short(record):
                    remove = Removal(start_us, end_us, record.fence, "reload")
                    add = Addition(start_us, end_us, 0, record.identity, record.verified_rows, Asked.RELOAD)
                    change = healed(partial(self.store.apply, Change("p", [remove], [add])))
                    did += [each.start_us for each in change.add]
                    left -= {*did}
        self.reloaded.set()
        return did

    def prune(self) -> None:
        while self.goes_on():
            healed(lambda: self.store.prune(Pruning("p", 600, most=7)))


def removal(store: RecordStore, start_us: int) -> Removal:
    (span,) = [span for span in store.spans("p") if span.start_us == start_us]
    return Removal(span.start_us, span.end_us, span.fence, "no longer wanted")


def starts(store: RecordStore) -> list[int]:
    return [span.start_us for span in store.spans("p")]


def only(store: RecordStore) -> Record:
    (record,) = store.records("p")
    return record


def state(store: RecordStore) -> tuple[object, ...]:
    """All that the store shows of the pipeline."""
    return list(store.records("p")), list(store.records("p", Status.SUPERSEDED)), list(store.events("p"))


def _first_seen(unrepeatable: BaseException) -> BaseException:
    """What was found, where Hypothesis reports that it did not find it a second time."""
    found: BaseException | None = unrepeatable
    while found is not None and not isinstance(found, BrokenPromiseError):
        found = found.exceptions[0] if isinstance(found, BaseExceptionGroup) else found.__context__
    return found or unrepeatable


def at_once(act: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    with ThreadPoolExecutor(len(items)) as pool:
        return list(pool.map(act, items))
