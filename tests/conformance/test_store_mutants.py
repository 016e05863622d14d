"""Record stores that each break one promise, and the test of the suite that must notice."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
from attrs import evolve, frozen
from hypothesis import Phase, settings

from pipeline_core import (
    Addition,
    Change,
    Claim,
    ClaimRequest,
    Event,
    Intervention,
    Pruned,
    Pruning,
    Record,
    RecordStore,
    Removal,
    Span,
    Status,
    Verdict,
    Window,
)
from pipeline_core.contracts import Kept
from pipeline_core.errors import PipelineError
from pipeline_core.record import PRUNED, in_short
from pipeline_core.testing import BrokenPromiseError, MemoryRecordStore, RecordStoreSuite


def client_us() -> int:
    return time.time_ns() // 1000


class Store(MemoryRecordStore):
    """In memory, under a clock that is set."""

    def __init__(self) -> None:
        self.us = 1_700_000_000_000_000
        super().__init__(lambda: self.us)


class Suite(RecordStoreSuite):
    """The suite on one kind of store."""

    examples = 500

    def __init__(self, kind: Callable[[], RecordStore]) -> None:
        self.kind = kind

    def open_store(self) -> AbstractContextManager[RecordStore]:
        return nullcontext(self.kind())

    def open_again(self, store: RecordStore) -> AbstractContextManager[RecordStore]:
        return nullcontext(store)

    def _settings(self) -> settings:
        # What is found first will do: it need not be made small.
        return settings(super()._settings(), phases=[Phase.generate], derandomize=True)

    def set_clock(self, store: Store, us: int) -> None:
        store.us = us


# --- one owner --------------------------------------------------------------------------------------------------------


class ClaimsWithoutALock(Store):
    """Two workers read the same pending window before either has written."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = nullcontext()

    def _hold(self, *given: Any) -> Claim:
        time.sleep(0.001)
        return super()._hold(*given)


class ClaimsWhatRuns(Store):
    """A running window is as good as a pending one."""

    def _is_ready(self, record: Record, request: ClaimRequest, now_us: int) -> bool:
        return super()._is_ready(evolve(record, status=Status.PENDING), request, now_us)


class NoLimit(Store):
    """As many run as there are."""

    def claim(self, request: ClaimRequest) -> Sequence[Claim]:
        return super().claim(evolve(request, max_running=None))


class CountsBeforeItLocks(Store):
    """Two workers count what runs before either has claimed."""

    def claim(self, request: ClaimRequest) -> Sequence[Claim]:
        if request.max_running is None:
            return super().claim(request)
        room = request.max_running - len(self.records(request.pipeline, Status.RUNNING))
        time.sleep(0.01)
        return super().claim(evolve(request, limit=min(request.limit, room), max_running=None)) if room > 0 else []


class LooksForRoomWithoutRest(Store):
    """A worker that has to wait for room asks again and again."""

    def next_claim_us(self, request: ClaimRequest) -> int | None:
        return super().next_claim_us(evolve(request, max_running=None))


class OneIdForAll(Store):
    """Nobody can tell two claims apart."""

    def _hold(self, *given: Any) -> Claim:
        claim = super()._hold(*given)
        record = self._keep(evolve(claim.record, claim_id="the claim"))
        return Claim("the claim", record, claim.fence)


class NewestFirst(Store):
    """The oldest window may wait for ever."""

    def claim(self, request: ClaimRequest) -> Sequence[Claim]:
        return super().claim(request)[::-1]


class AnyClaimWillDo(Store):
    """The claim's id is not looked at."""

    def _held(self, claim: Claim) -> Record:
        return next(r for r in self._records(claim.record.pipeline) if r.window == claim.window)


# --- leases and stability run on the store's clock --------------------------------------------------------------------


class LeaseByTheClientsClock(Store):
    """The worker says until when."""

    def _hold(self, record: Record, request: ClaimRequest, now_us: int) -> Claim:
        claim = super()._hold(record, request, now_us)
        lease_until_us = client_us() + int(request.lease_s * 1e6)
        return evolve(claim, record=self._keep(evolve(claim.record, lease_until_us=lease_until_us)))


class ExpiryByTheClientsClock(Store):
    """The worker says what time it is."""

    def _is_expired(self, record: Record, request: ClaimRequest, now_us: int) -> bool:
        return super()._is_expired(record, request, client_us())


class LeasesNeverEnd(Store):
    """A dead worker's window is lost."""

    def _is_expired(self, record: Record, request: ClaimRequest, now_us: int) -> bool:
        return False


class LeasesEndTooSoon(Store):
    """A microsecond before."""

    def _is_expired(self, record: Record, request: ClaimRequest, now_us: int) -> bool:
        return super()._is_expired(record, request, now_us + 1)


class RenewDoesNothing(Store):
    """The lease ends at its first end."""

    def renew(self, claim: Claim, lease_s: float) -> None:
        self._running(claim)


class TakesUnstableWindows(Store):
    """The window's end may lie after the limit."""

    def claim(self, request: ClaimRequest) -> Sequence[Claim]:
        return super().claim(evolve(request, stable_until_us=request.stable_until_us + 1))


class StabilityOfItsOwn(Store):
    """The limit asked for is not looked at."""

    def claim(self, request: ClaimRequest) -> Sequence[Claim]:
        return super().claim(evolve(request, stable_until_us=10**17))


class DeadOwnersLive(Store):
    """Their windows wait for the lease to end."""

    def claim(self, request: ClaimRequest) -> Sequence[Claim]:
        return super().claim(evolve(request, dead_owners=frozenset()))


class EveryOwnerIsDead(Store):
    """As soon as one is."""

    def _is_expired(self, record: Record, request: ClaimRequest, now_us: int) -> bool:
        return super()._is_expired(record, request, now_us) or bool(request.dead_owners)


# --- fences -----------------------------------------------------------------------------------------------------------


class FenceIsTheClock(Store):
    """Two claims of one moment share it, and a clock set back lowers it."""

    def _next_fence(self, now_us: int) -> int:
        return now_us


class FenceIsACounter(Store):
    """A store made anew begins below what the target's ledger holds."""

    def _next_fence(self, now_us: int) -> int:
        return super()._next_fence(0)


class ResumeWithoutAFreshFence(Store):
    """Who held the claim before can still write."""

    def resume(self, claim: Claim, lease_s: float) -> Claim:
        resumed = super().resume(claim, lease_s)
        if resumed.record.status is not Status.RUNNING:
            return resumed
        return Claim(claim.id, self._keep(evolve(resumed.record, fence=claim.fence)), claim.fence)


class FenceIgnored(Store):
    """A claim resumed elsewhere may still be renewed and settled."""

    def _running(self, claim: Claim) -> Record:
        return super()._running(evolve(claim, fence=self._held(claim).fence))


class ResumeRunsItAgain(Store):
    """A settled window gets a new fence."""

    def resume(self, claim: Claim, lease_s: float) -> Claim:
        resumed = super().resume(claim, lease_s)
        return evolve(resumed, fence=self._next_fence(self.now_us()))


class ResumeRefusesPastTheLease(Store):
    """A slow orchestrator loses its window although nobody else wants it."""

    def resume(self, claim: Claim, lease_s: float) -> Claim:
        self._running(claim)
        return super().resume(claim, lease_s)


# --- planning ---------------------------------------------------------------------------------------------------------


class OverlapsOfTheSameStartOnly(Store):
    """Two live windows may cover one instant."""

    def _add(self, addition: Addition, change: Change, *given: Any) -> bool:
        starts = self._starts.setdefault(change.pipeline, [])
        live = self._live.setdefault(change.pipeline, {})
        if addition.start_us in live:
            return False
        hidden, self._starts[change.pipeline] = starts, []
        added = super()._add(addition, change, *given)
        self._starts[change.pipeline] = sorted([*hidden, addition.start_us])
        return added


class OverlapsOfNearStartsOnly(Store):
    """A long window that begins far before is not seen."""

    def _add(self, addition: Addition, change: Change, *given: Any) -> bool:
        starts = self._starts.setdefault(change.pipeline, [])
        far = [start for start in starts if start < addition.start_us - 500]
        self._starts[change.pipeline] = [start for start in starts if start not in far]
        added = super()._add(addition, change, *given)
        self._starts[change.pipeline] = far + self._starts[change.pipeline]
        return added


class RemovesWhatRuns(Store):
    """A worker's window vanishes under its hands."""

    def _is_removable(self, record: Record, removal: Removal) -> bool:
        record = evolve(record, status=Status.PENDING)
        return super()._is_removable(record, removal)

    def _move(self, record: Record, step: str, now_us: int, **values: Any) -> Record:
        return super()._move(
            evolve(record, status=Status.PENDING) if step == "superseded" else record, step, now_us, **values
        )


class RemovesWhatWasClaimedSince(Store):
    """The fence of a removal is not looked at."""

    def _is_removable(self, record: Record, removal: Removal) -> bool:
        return super()._is_removable(evolve(record, fence=removal.fence), removal)


class AppliesInPieces(Store):
    """The removals are there to stay when an addition is refused."""

    def apply(self, change: Change) -> Change:
        removed = super().apply(evolve(change, add=(), fields={}))
        return evolve(super().apply(evolve(change, remove=())), remove=removed.remove)


class LogsEveryPlan(Store):
    """Applied again, a change leaves a trace again."""

    def apply(self, change: Change) -> Change:
        applied = super().apply(change)
        if not applied:
            self._log.append(Event(self.now_us(), change.pipeline, None, "planned", {"reason": "nothing"}))
        return applied


class SaysThatAllTookEffect(Store):
    """What was passed over is reported as done."""

    def apply(self, change: Change) -> Change:
        super().apply(change)
        return change


# --- nothing waits for ever, nothing is hidden ------------------------------------------------------------------------


class NoBackoff(Store):
    """A throttled window is claimed again at once."""

    def _is_ready(self, record: Record, request: ClaimRequest, now_us: int) -> bool:
        return super()._is_ready(evolve(record, not_before_us=0), request, now_us)


class BackoffForEver(Store):
    """A window in backoff is never claimed again."""

    def _is_ready(self, record: Record, request: ClaimRequest, now_us: int) -> bool:
        return super()._is_ready(record, request, now_us) and record.not_before_us == 0


class EveryEndIsAnAttempt(Store):
    """A side that is down uses up its windows' attempts."""

    def settle(self, claim: Claim, verdict: Verdict) -> Record:
        return super().settle(claim, evolve(verdict, attempt=True))


class CrashesAreNotCounted(Store):
    """A window that kills its worker does so for ever."""

    def _crash(self, record: Record, request: ClaimRequest, now_us: int) -> None:
        super()._crash(evolve(record, crashes=0), request, now_us)


class CrashesNeverQuarantine(Store):
    """They are counted, and that is all."""

    def _crash(self, record: Record, request: ClaimRequest, now_us: int) -> None:
        super()._crash(record, evolve(request, max_crashes=10**6), now_us)


class NextClaimForgetsBackoffs(Store):
    """A worker ends while a window still waits."""

    def next_claim_us(self, request: ClaimRequest) -> int | None:
        due_us = super().next_claim_us(request)
        return due_us if due_us is None or due_us <= self.now_us() else None


class SettlesInSilence(Store):
    """The log lacks how it ended."""

    def settle(self, claim: Claim, verdict: Verdict) -> Record:
        record = super().settle(claim, verdict)
        self._log.pop()
        return record


class LogsNewestFirst(Store):
    """Read as it comes, the log tells the end before the beginning."""

    def events(self, *given: Any, **named: Any) -> Iterable[Event]:
        return [*super().events(*given, **named)][::-1]


class ForgetsTheEvidence(Store):
    """Of the counts nothing is kept."""

    def settle(self, claim: Claim, verdict: Verdict) -> Record:
        return super().settle(claim, evolve(verdict, evidence={}))


class ForgetsWhatWasVerified(Store):
    """A record that replaces another one begins without its evidence."""

    def apply(self, change: Change) -> Change:
        add = [Addition(a.start_us, a.end_us, a.attempts, a.identity, None, a.asked) for a in change.add]
        return super().apply(evolve(change, add=add))


class FailuresForgetWhatWasVerified(Store):
    """An attempt that verified nothing takes the evidence with it."""

    def settle(self, claim: Claim, verdict: Verdict) -> Record:
        return self._keep(evolve(super().settle(claim, verdict), verified_rows=verdict.verified_rows))


class AskedForEver(Store):
    """A window that was reloaded is asked for still."""

    def settle(self, claim: Claim, verdict: Verdict) -> Record:
        asked = self._held(claim).asked
        return self._keep(evolve(super().settle(claim, verdict), asked=asked))


# --- by hand ----------------------------------------------------------------------------------------------------------


class RetriesKeepTheirAttempts(Store):
    """The next failure quarantines again."""

    def intervene(self, intervention: Intervention) -> Sequence[Record]:
        before = {record.window: record for record in self._records(intervention.pipeline)}
        moved = super().intervene(intervention)
        return [self._keep(evolve(record, attempts=before[record.window].attempts)) for record in moved]


class ReleasesInNameOnly(Store):
    """Who held the window may resume it."""

    def intervene(self, intervention: Intervention) -> Sequence[Record]:
        before = {record.window: record for record in self._records(intervention.pipeline)}
        moved = super().intervene(intervention)
        return [self._keep(evolve(record, claim_id=before[record.window].claim_id)) for record in moved]


class SkipsForget(Store):
    """What was verified is gone."""

    def intervene(self, intervention: Intervention) -> Sequence[Record]:
        return [self._keep(evolve(record, verified_rows=None)) for record in super().intervene(intervention)]


class LaysHandsOnWhatMovedOn(Store):
    """A window that its worker has finished is released."""

    def intervene(self, intervention: Intervention) -> Sequence[Record]:
        live = {span.start_us: span for span in self.spans(intervention.pipeline)}
        spans = [live.get(span.start_us, span)._replace(status=span.status) for span in intervention.spans]
        for span in spans:
            if span.start_us in live:
                record = self._live[intervention.pipeline][span.start_us]
                self._keep(evolve(record, status=span.status, fence=span.fence))
        return super().intervene(evolve(intervention, spans=spans))


class LaysHandsInPieces(Store):
    """What comes before the window that does not fit has moved."""

    def intervene(self, intervention: Intervention) -> Sequence[Record]:
        each = [evolve(intervention, spans=[span]) for span in intervention.spans]
        return [record for one in each for record in super(LaysHandsInPieces, self).intervene(one)]


# --- the rest ---------------------------------------------------------------------------------------------------------


class PlansFromWhatItRead(OverlapsOfTheSameStartOnly):
    """Two planners look before either has written."""

    def apply(self, change: Change) -> Change:
        spans = self.spans(change.pipeline)
        time.sleep(0.02)
        free = [a for a in change.add if all(a.end_us <= s.start_us or a.start_us >= s.end_us for s in spans)]
        return super().apply(evolve(change, add=free))


class RebuildsAgain(Store):
    """What was put in its place is replaced once more."""

    def _supersede(self, removal: Removal, change: Change, now_us: int) -> bool:
        return super()._supersede(removal, evolve(change, add=()), now_us)


class ForgetsTheFields(Store):
    """The user's part is lost."""

    def apply(self, change: Change) -> Change:
        return evolve(super().apply(evolve(change, fields={})), fields=change.fields)


class TrimsNames(Store):
    """Two pipelines are one."""

    def apply(self, change: Change) -> Change:
        return super().apply(evolve(change, pipeline=change.pipeline.strip()))


class NothingBefore1970(Store):
    """A negative number is no instant."""

    def claim(self, request: ClaimRequest) -> Sequence[Claim]:
        return super().claim(evolve(request, within=request.within or Window.from_us(0, 10**17)))


class NothingMoreToClaim(Store):
    """A worker ends while another's lease may still expire."""

    def next_claim_us(self, request: ClaimRequest) -> int | None:
        return None


class AnyVerdictWillDo(Store):
    """A worker may supersede."""

    def settle(self, claim: Claim, verdict: Verdict) -> Record:
        status = Status.PENDING if verdict.status is Status.SUPERSEDED else verdict.status
        return super().settle(claim, evolve(verdict, status=status))


class SettlesTwice(Store):
    """The second verdict is taken for the first."""

    def settle(self, claim: Claim, verdict: Verdict) -> Record:
        record = self._held(claim)
        return record if record.status is Status.DONE else super().settle(claim, verdict)


class WithinMeansOverlapping(Store):
    """A record that only reaches into the span is given too."""

    def records(
        self, pipeline: str, *status: Status, within: Window | None = None, limit: int | None = None
    ) -> Sequence[Record]:
        found = super().records(pipeline, *status, limit=limit)
        return [
            r
            for r in found
            if within is None or (r.window.start_us < within.end_us and within.start_us < r.window.end_us)
        ]


class SpansWithoutTheDone(Store):
    """Planning would do them again."""

    def spans(self, pipeline: str) -> Sequence[Span]:
        return [span for span in super().spans(pipeline) if span.status is not Status.DONE]


class EventsAfterTheInstant(Store):
    """The one at the instant is lost between two readings."""

    def events(self, pipeline: str, since_us: int = 0, window: Window | None = None) -> Iterable[Event]:
        return super().events(pipeline, since_us + 1, window)


class UpgradesInSilence(Store):
    """Nobody knows whether it did anything."""

    def upgrade(self) -> str:
        return ""


class UpgradesByStartingAfresh(Store):
    """What was done is forgotten."""

    def upgrade(self) -> str:
        self.__init__()  # type: ignore[misc]
        return "made anew"


class MovesTheLiveOnly(Store):
    """What was superseded stays behind, with its evidence."""

    def dump(self, pipeline: str) -> Kept:
        return (e for e in super().dump(pipeline) if isinstance(e, Event) or e.status is not Status.SUPERSEDED)


class MovesFencesButNotTheirSequence(Store):
    """The next fence is lower than those that were moved."""

    def restore(self, pipeline: str, kept: Iterable[Record | Event]) -> None:
        last = self._last_fence
        super().restore(pipeline, kept)
        self._last_fence = last


class MovesOverWhatIsThere(Store):
    """The records of today are replaced by those of yesterday."""

    def restore(self, pipeline: str, kept: Iterable[Record | Event]) -> None:
        self._live.pop(pipeline, None)
        self._log = []
        super().restore(pipeline, kept)


class MovesInPieces(Store):
    """What breaks off has been half taken in."""

    def restore(self, pipeline: str, kept: Iterable[Record | Event]) -> None:
        left = iter(kept)
        super().restore(pipeline, [next(left)])
        super().restore(pipeline, left)


class PrunesWhatWasVerified(Store):
    """A load may then shrink a window that nobody remembers."""

    def prune(self, pruning: Pruning) -> Pruned:
        pruned = super().prune(pruning)
        for record in [*self._records(pruning.pipeline)]:
            if record == in_short(record) and record.status is Status.DONE:
                self._keep(evolve(record, verified_rows=None))
        return pruned


class PrunesWhatIsNotDone(Store):
    """A window that waits for a person loses the reason."""

    def prune(self, pruning: Pruning) -> Pruned:
        pruned = super().prune(pruning)
        for record in [*self._records(pruning.pipeline)]:
            if record.window.end_us <= pruning.before_us and not pruning.dry_run:
                self._keep(in_short(record))
        return pruned


class PrunesEveryEvent(Store):
    """How a window came to be quarantined is forgotten."""

    def prune(self, pruning: Pruning) -> Pruned:
        pruned = super().prune(pruning)
        if not pruning.dry_run:
            self._log = [event for event in self._log if event.step == "pruned"]
        return pruned


class PrunesInOneGo(Store):
    """Workers wait until all of it is done."""

    def prune(self, pruning: Pruning) -> Pruned:
        return super().prune(evolve(pruning, most=10**6))


class PrunedForGood(Store):
    """No reload finds the window."""

    def _is_removable(self, record: Record, removal: Removal) -> bool:
        return record.reason != PRUNED and super()._is_removable(record, removal)


class ReadsPrunedFromTheStart(Store):
    """What was pruned is read as if it were one record."""

    def records(
        self, pipeline: str, *status: Status, within: Window | None = None, limit: int | None = None
    ) -> Sequence[Record]:
        found = super().records(pipeline, *status, within=within, limit=limit)
        return [r for r in found if within is None or r.reason != PRUNED or r.window.start_us == within.start_us]


class PrunesWhatItRead(Store):
    """A window that was reloaded meanwhile is done again, unseen."""

    def prune(self, pruning: Pruning) -> Pruned:
        done = [record for record in self.records(pruning.pipeline) if record.status is Status.DONE]
        time.sleep(0.005)
        for record in done:
            self._keep(record)
        return super().prune(pruning)


@frozen
class Mutant:
    """A broken store, and the test that notices."""

    promise: str
    kind: type[Store]
    noticed_by: str


TABLE = [
    Mutant("one owner", ClaimsWithoutALock, "test_threads_share_one_store"),
    Mutant("one owner", ClaimsWithoutALock, "test_workers_with_objects_of_their_own_share_the_records"),
    Mutant("one owner", ClaimsWithoutALock, "test_threads_behave_as_the_model"),
    Mutant("one owner", ClaimsWhatRuns, "test_claims_take_the_oldest_first"),
    Mutant("one owner", OneIdForAll, "test_claims_take_the_oldest_first"),
    Mutant("one owner", AnyClaimWillDo, "test_resume_of_what_was_given_back_or_superseded_is_lost"),
    Mutant("no more than allowed", NoLimit, "test_no_more_windows_run_than_allowed"),
    Mutant("no more than allowed", CountsBeforeItLocks, "test_claims_at_once_keep_within_the_limit"),
    Mutant("no more than allowed", LooksForRoomWithoutRest, "test_next_claim_waits_for_room"),
    Mutant("oldest first", NewestFirst, "test_claims_take_the_oldest_first"),
    Mutant("the store's clock", LeaseByTheClientsClock, "test_a_lease_is_measured_by_the_stores_clock"),
    Mutant("the store's clock", ExpiryByTheClientsClock, "test_a_lease_is_measured_by_the_stores_clock"),
    Mutant("the store's clock", LeasesNeverEnd, "test_an_expired_lease_is_a_crash_and_the_last_one_quarantines"),
    Mutant("the store's clock", LeasesEndTooSoon, "test_an_expired_lease_is_a_crash_and_the_last_one_quarantines"),
    Mutant("the store's clock", RenewDoesNothing, "test_renew_extends_the_lease"),
    Mutant("stability", TakesUnstableWindows, "test_a_claim_takes_only_what_was_asked_for"),
    Mutant("stability", StabilityOfItsOwn, "test_a_claim_takes_only_what_was_asked_for"),
    Mutant("dead owners", DeadOwnersLive, "test_leases_of_dead_owners_are_taken_over_at_once"),
    Mutant("dead owners", EveryOwnerIsDead, "test_leases_of_dead_owners_are_taken_over_at_once"),
    Mutant("fences grow", FenceIsTheClock, "test_fences_grow_while_the_clock_falls"),
    Mutant("fences grow", FenceIsACounter, "test_claims_take_the_oldest_first"),
    Mutant("resume", ResumeWithoutAFreshFence, "test_resume_brings_a_higher_fence_and_locks_the_old_one_out"),
    Mutant("resume", FenceIgnored, "test_resume_brings_a_higher_fence_and_locks_the_old_one_out"),
    Mutant("resume", ResumeRunsItAgain, "test_resume_of_what_the_claim_has_settled_comes_back_unchanged"),
    Mutant("resume", ResumeRefusesPastTheLease, "test_resume_past_the_lease_while_nobody_else_has_claimed"),
    Mutant("no overlap", OverlapsOfTheSameStartOnly, "test_additions_that_overlap_a_live_record_are_passed_over"),
    Mutant("no overlap", OverlapsOfNearStartsOnly, "test_a_long_record_that_begins_far_before_is_seen"),
    Mutant("a rebuild keeps what runs", RemovesWhatRuns, "test_a_running_record_is_never_superseded"),
    Mutant(
        "a rebuild keeps what runs", RemovesWhatWasClaimedSince, "test_removals_of_what_has_changed_are_passed_over"
    ),
    Mutant("apply is atomic", AppliesInPieces, "test_a_change_that_is_refused_changes_nothing"),
    Mutant("apply is idempotent", LogsEveryPlan, "test_apply_twice_takes_effect_once"),
    Mutant("apply is idempotent", SaysThatAllTookEffect, "test_apply_twice_takes_effect_once"),
    Mutant("backoff", NoBackoff, "test_backoff_is_waited_for"),
    Mutant("backoff", BackoffForEver, "test_backoff_is_waited_for"),
    Mutant("backoff", NextClaimForgetsBackoffs, "test_backoff_is_waited_for"),
    Mutant("quarantine", EveryEndIsAnAttempt, "test_attempts_and_crashes"),
    Mutant("quarantine", CrashesAreNotCounted, "test_an_expired_lease_is_a_crash_and_the_last_one_quarantines"),
    Mutant("quarantine", CrashesNeverQuarantine, "test_an_expired_lease_is_a_crash_and_the_last_one_quarantines"),
    Mutant("no overlap", PlansFromWhatItRead, "test_planners_at_once_do_not_overlap"),
    Mutant("apply is idempotent", RebuildsAgain, "test_apply_of_a_rebuild_in_place_takes_effect_once"),
    Mutant("fields", ForgetsTheFields, "test_apply_adds_pending_records"),
    Mutant("fields", TrimsNames, "test_any_text_is_kept_apart_or_escaped"),
    Mutant("all of time", NothingBefore1970, "test_windows_before_1970_are_claimed_too"),
    Mutant("nobody ends too soon", NothingMoreToClaim, "test_next_claim_tells_when_to_look_again"),
    Mutant("verdicts", AnyVerdictWillDo, "test_a_verdict_that_ends_no_claim_is_refused"),
    Mutant("verdicts", SettlesTwice, "test_settling_twice_is_refused"),
    Mutant("reading", WithinMeansOverlapping, "test_records_by_status_span_and_limit"),
    Mutant("reading", SpansWithoutTheDone, "test_spans_are_the_live_records"),
    Mutant("reading", EventsAfterTheInstant, "test_events_since_and_by_window"),
    Mutant("upgrade", UpgradesInSilence, "test_upgrading_says_what_was_done_and_harms_nothing"),
    Mutant("upgrade", UpgradesByStartingAfresh, "test_upgrading_says_what_was_done_and_harms_nothing"),
    Mutant("evidence", ForgetsWhatWasVerified, "test_evidence_is_handed_on_and_outlives_what_verifies_nothing"),
    Mutant("evidence", FailuresForgetWhatWasVerified, "test_evidence_is_handed_on_and_outlives_what_verifies_nothing"),
    Mutant("evidence", AskedForEver, "test_evidence_is_handed_on_and_outlives_what_verifies_nothing"),
    Mutant("by hand", RetriesKeepTheirAttempts, "test_a_retry_begins_anew"),
    Mutant("by hand", ReleasesInNameOnly, "test_a_release_locks_the_holder_out"),
    Mutant("by hand", SkipsForget, "test_what_is_skipped_is_done"),
    Mutant("by hand", LaysHandsOnWhatMovedOn, "test_a_hand_passes_over_what_has_moved_on"),
    Mutant("by hand", LaysHandsInPieces, "test_a_hand_that_does_not_fit_does_nothing"),
    Mutant("moved whole", MovesTheLiveOnly, "test_a_moved_store_shows_the_same"),
    Mutant("moved whole", MovesInPieces, "test_a_store_is_moved_whole_or_not_at_all"),
    Mutant("moved whole", MovesOverWhatIsThere, "test_nothing_is_moved_over_what_is_there"),
    Mutant("a prune harms nothing", PrunesWhatWasVerified, "test_a_prune_keeps_what_planning_goes_by"),
    Mutant("a prune harms nothing", PrunesWhatIsNotDone, "test_a_prune_keeps_what_planning_goes_by"),
    Mutant("a prune harms nothing", PrunesEveryEvent, "test_a_prune_keeps_the_events_of_what_is_not_done"),
    Mutant("a prune harms nothing", PrunesInOneGo, "test_a_prune_goes_in_steps"),
    Mutant("a prune harms nothing", PrunedForGood, "test_a_pruned_window_is_replaced_like_any_other"),
    Mutant("a prune harms nothing", ReadsPrunedFromTheStart, "test_pruned_records_are_read_like_any_other"),
    Mutant("a prune harms nothing", PrunesWhatItRead, "test_a_prune_beside_workers_harms_nothing"),
    Mutant("fences grow", MovesFencesButNotTheirSequence, "test_fences_are_above_those_that_were_moved"),
    Mutant("evidence", SettlesInSilence, "test_events_tell_each_transition_with_its_reason"),
    Mutant("evidence", LogsNewestFirst, "test_events_tell_each_transition_with_its_reason"),
    Mutant("evidence", ForgetsTheEvidence, "test_settle_keeps_what_the_verdict_says"),
]


@pytest.mark.parametrize("mutant", TABLE, ids=lambda mutant: f"{mutant.kind.__name__}-{mutant.noticed_by}")
def test_the_suite_notices(mutant: Mutant) -> None:
    """The named test passes on a sound store, and fails on the broken one."""
    getattr(Suite(Store), mutant.noticed_by)()
    with pytest.raises((BrokenPromiseError, PipelineError)):
        getattr(Suite(mutant.kind), mutant.noticed_by)()


@pytest.mark.parametrize(
    "kind",
    [
        ClaimsWhatRuns,
        NoLimit,
        LooksForRoomWithoutRest,
        OneIdForAll,
        LeasesNeverEnd,
        EveryOwnerIsDead,
        FenceIsTheClock,
        FenceIgnored,
        ResumeWithoutAFreshFence,
        OverlapsOfTheSameStartOnly,
        RemovesWhatWasClaimedSince,
        NoBackoff,
        ForgetsWhatWasVerified,
        FailuresForgetWhatWasVerified,
        LaysHandsOnWhatMovedOn,
        SettlesInSilence,
        PrunesWhatWasVerified,
        PrunesWhatIsNotDone,
        PrunesEveryEvent,
    ],
)
def test_the_state_machine_notices(kind: type[Store]) -> None:
    """Some of them by the state machine alone, which nobody told where to look: sooner or later it looks there."""

    def again_and_again() -> None:
        for _ in range(10):
            Suite(kind).test_the_store_behaves_as_the_model()

    with pytest.raises((BrokenPromiseError, PipelineError)):
        again_and_again()


def test_every_test_of_the_suite_has_a_mutant() -> None:
    """A test that no broken store fails would hold nothing."""
    tests = {name for name in dir(Suite) if name.startswith("test_")}
    # Those of processes are in plugins/sql/tests/test_store_conformance.py: what is in memory has none.
    machines = {"test_the_store_behaves_as_the_model", "test_processes_behave_as_the_model"}
    assert tests == {mutant.noticed_by for mutant in TABLE} | machines
