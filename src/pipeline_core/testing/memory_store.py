"""A record store in memory: for tests of pipelines, and the smallest complete example of the contract."""

from __future__ import annotations

import json
import time
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from threading import RLock
from types import MappingProxyType
from typing import Any
from uuid import uuid4

from attrs import asdict, evolve

from pipeline_core.contracts import ClaimRequest, Kept, RecordStore
from pipeline_core.errors import ClaimLostError, RecordError
from pipeline_core.record import (
    Addition,
    Change,
    Claim,
    Event,
    Hand,
    Intervention,
    Outcome,
    Pruned,
    Pruning,
    Record,
    Removal,
    Span,
    Status,
    Verdict,
    by_hand,
    in_short,
    transition,
)
from pipeline_core.window import SECOND_US, Window, iso

_MOST_DOUBLINGS = 20  # of a crash's backoff; 10 s have become four months by then


def _wall_clock_us() -> int:
    return time.time_ns() // 1000


class MemoryRecordStore(RecordStore):
    """Records in this process, shared between its threads, gone with the object.

    `clock` gives the store's time in microseconds UTC, so that a test can set it.
    """

    def __init__(self, clock: Callable[[], int] = _wall_clock_us) -> None:
        self._clock = clock
        self._lock = RLock()
        self._live: dict[str, dict[int, Record]] = {}
        self._starts: dict[str, list[int]] = {}  # of the live records, in order of time
        self._superseded: list[Record] = []
        self._log: list[Event] = []
        self._last_fence = 0

    def now_us(self) -> int:
        return self._clock()

    # --- reading ------------------------------------------------------------------------------------------------------

    def spans(self, pipeline: str) -> Sequence[Span]:
        with self._lock:
            return [_span(record) for record in self._records(pipeline)]

    def records(
        self, pipeline: str, *status: Status, within: Window | None = None, limit: int | None = None
    ) -> Sequence[Record]:
        with self._lock:
            found = [*self._records(pipeline)]
            if status:
                gone = [record for record in self._superseded if record.pipeline == pipeline]
                found = [record for record in gone + found if record.status in status]
        found = [record for record in found if within is None or _starts_in(record, within)]
        return sorted(found, key=lambda record: record.window.start_us)[:limit]

    def events(self, pipeline: str, since_us: int = 0, window: Window | None = None) -> Iterable[Event]:
        with self._lock:
            log = [event for event in self._log if event.pipeline == pipeline and event.at_us >= since_us]
        if window is not None:
            log = [event for event in log if event.window is not None and _overlap(event.window, window)]
        return sorted(log, key=lambda event: event.at_us)

    def next_claim_us(self, request: ClaimRequest) -> int | None:
        with self._lock:
            open_ = [record for record in self._records(request.pipeline) if _is_asked_for(record, request)]
            now_us = self.now_us()
            due = [record.not_before_us for record in open_ if record.status is Status.PENDING]
            for record in open_:
                if record.status is Status.RUNNING:
                    due.append(now_us if record.owner in request.dead_owners else record.lease_until_us or 0)
            if not due or request.max_running is None:
                return min(due, default=None)
            leases = self._leases(request.pipeline, now_us)
            over = len(leases) - request.max_running
            return min(due) if over < 0 else max(min(due), leases[over])

    # --- planning -----------------------------------------------------------------------------------------------------

    def apply(self, change: Change) -> Change:
        fields = _json(change.fields, "fields")
        for addition in change.add:
            Window.from_us(addition.start_us, addition.end_us)  # raises where it is none
        with self._lock:
            now_us = self.now_us()
            removed = [removal for removal in change.remove if self._supersede(removal, change, now_us)]
            added = [
                addition
                for addition in sorted(change.add, key=itemgetter(0, 1))
                if self._add(addition, change, fields, now_us)
            ]
            if removed or added:
                told = {"reason": change.reason, "superseded": len(removed), "added": len(added)}
                self._log.append(Event(now_us, change.pipeline, None, "planned", told))
        return evolve(change, remove=tuple(removed), add=tuple(added))

    def _supersede(self, removal: Removal, change: Change, now_us: int) -> bool:
        record = self._live.get(change.pipeline, {}).get(removal.start_us)
        if record is None or not self._is_removable(record, removal):
            return False
        again = _addition(record)
        # Replaced already: the change would put the same in its place once more.
        if record.fence == 0 and again in change.add and record.fields == change.fields:
            return False
        gone = self._move(record, "superseded", now_us, status=Status.SUPERSEDED, reason=removal.reason)
        del self._live[change.pipeline][removal.start_us]
        self._starts[change.pipeline].remove(removal.start_us)
        self._superseded.append(gone)
        return True

    def _is_removable(self, record: Record, removal: Removal) -> bool:
        same = (record.window.end_us, record.fence) == (removal.end_us, removal.fence)
        return same and record.status is not Status.RUNNING

    def _add(self, addition: Addition, change: Change, fields: Mapping[str, Any], now_us: int) -> bool:
        start_us, end_us = addition.start_us, addition.end_us
        live = self._live.setdefault(change.pipeline, {})
        starts = self._starts.setdefault(change.pipeline, [])
        at = bisect_left(starts, start_us)
        reaches_in = at > 0 and live[starts[at - 1]].window.end_us > start_us
        if reaches_in or (at < len(starts) and starts[at] < end_us):
            return False
        window = Window.from_us(start_us, end_us)
        live[start_us] = Record(
            change.pipeline,
            window,
            fields,
            reason=change.reason,
            attempts=addition.attempts,
            identity=addition.identity,
            verified_rows=addition.verified_rows,
            asked=addition.asked,
            updated_us=now_us,
        )
        insort(starts, start_us)
        return True

    def intervene(self, intervention: Intervention) -> Sequence[Record]:
        hand, after = intervention.hand, {s.start_us: by_hand(intervention.hand, s.status) for s in intervention.spans}
        with self._lock:
            now_us = self.now_us()
            live = self._live.get(intervention.pipeline, {})
            found = [(live.get(span.start_us), span) for span in sorted(intervention.spans, key=itemgetter(0))]
            moved = []
            for record, span in found:
                if record is None or _span(record)[:4] != span[:4]:
                    continue
                values: dict[str, Any] = {"claim_id": None, "owner": None, "lease_until_us": None, "not_before_us": 0}
                if hand is Hand.RETRY:
                    values |= {"attempts": 0, "crashes": 0}
                if hand is Hand.SKIP:
                    values |= {"outcome": Outcome.SKIPPED, "asked": None}
                values |= {"status": after[span.start_us], "reason": intervention.told}
                moved.append(self._move(record, str(hand), now_us, {"by": intervention.by}, **values))
            return moved

    # --- claims -------------------------------------------------------------------------------------------------------

    def claim(self, request: ClaimRequest) -> Sequence[Claim]:
        with self._lock:
            now_us = self.now_us()
            for record in self._records(request.pipeline):
                if self._is_expired(record, request, now_us):
                    self._crash(record, request, now_us)
            ready = [record for record in self._records(request.pipeline) if self._is_ready(record, request, now_us)]
            limit = request.limit
            if request.max_running is not None:
                limit = min(limit, max(0, request.max_running - len(self._leases(request.pipeline, now_us))))
            return [self._hold(record, request, now_us) for record in ready[:limit]]

    def _leases(self, pipeline: str, now_us: int) -> list[int]:
        """When the leases end that have not run out, in order of time."""
        held = [record.lease_until_us for record in self._records(pipeline) if record.lease_until_us is not None]
        return sorted(until_us for until_us in held if until_us > now_us)

    def _is_expired(self, record: Record, request: ClaimRequest, now_us: int) -> bool:
        if record.status is not Status.RUNNING or record.lease_until_us is None:
            return False
        return record.lease_until_us <= now_us or record.owner in request.dead_owners

    def _is_ready(self, record: Record, request: ClaimRequest, now_us: int) -> bool:
        return record.status is Status.PENDING and record.not_before_us <= now_us and _is_asked_for(record, request)

    def _crash(self, record: Record, request: ClaimRequest, now_us: int) -> None:
        crashes = record.crashes + 1
        gone = f"its worker ({record.owner}) died" if record.owner in request.dead_owners else "its lease ran out"
        wait_us = 0
        if 1 < crashes < request.max_crashes:
            wait_us = _us(request.crash_backoff_s * 2 ** min(crashes - 2, _MOST_DOUBLINGS))
        self._move(
            record,
            "expired",
            now_us,
            status=Status.PENDING if crashes < request.max_crashes else Status.QUARANTINED,
            reason=f"{gone}: crash {crashes} of {request.max_crashes}",
            crashes=crashes,
            not_before_us=now_us + wait_us if wait_us else 0,
            owner=None,
            lease_until_us=None,
        )

    def _hold(self, record: Record, request: ClaimRequest, now_us: int) -> Claim:
        record = self._move(
            record,
            "claimed",
            now_us,
            status=Status.RUNNING,
            fence=self._next_fence(now_us),
            claim_id=uuid4().hex,
            owner=request.owner,
            not_before_us=0,
            lease_until_us=now_us + _us(request.lease_s),
        )
        return _claim(record)

    def _next_fence(self, now_us: int) -> int:
        self._last_fence = max(self._last_fence + 1, now_us)
        return self._last_fence

    def resume(self, claim: Claim, lease_s: float) -> Claim:
        with self._lock:
            record, now_us = self._held(claim), self.now_us()
            if record.status not in (Status.PENDING, Status.RUNNING):
                return _claim(record)
            return _claim(
                self._move(
                    record,
                    "resumed",
                    now_us,
                    status=Status.RUNNING,
                    fence=self._next_fence(now_us),
                    owner=None,
                    not_before_us=0,
                    lease_until_us=now_us + _us(lease_s),
                )
            )

    def renew(self, claim: Claim, lease_s: float) -> None:
        with self._lock:
            record, now_us = self._running(claim), self.now_us()
            self._keep(evolve(record, lease_until_us=now_us + _us(lease_s), updated_us=now_us))

    def settle(self, claim: Claim, verdict: Verdict) -> Record:
        evidence = _json(verdict.evidence, f"window {claim.window}: the evidence")
        if verdict.status is Status.RUNNING:
            raise RecordError(f"window {claim.window}: a verdict ends its claim, so its status cannot be running")
        with self._lock:
            record, now_us = self._running(claim), self.now_us()
            again = verdict.status is Status.PENDING
            verified = verdict.verified_rows is not None
            return self._move(
                record,
                "settled",
                now_us,
                status=verdict.status,
                outcome=verdict.outcome,
                reason=verdict.reason,
                attempts=record.attempts + verdict.attempt,
                crashes=0 if verdict.status is Status.DONE else record.crashes,
                not_before_us=now_us + _us(verdict.wait_s) if again and verdict.wait_s > 0 else 0,
                claim_id=None if again else record.claim_id,
                owner=None,
                lease_until_us=None,
                identity=verdict.identity if verified else record.identity,
                verified_rows=verdict.verified_rows if verified else record.verified_rows,
                asked=None if verdict.status is Status.DONE else record.asked,
                evidence=evidence,
            )

    def _held(self, claim: Claim) -> Record:
        """The live record that still carries the claim; ClaimLostError where there is none."""
        record = self._live.get(claim.record.pipeline, {}).get(claim.window.start_us)
        if record is None or record.window != claim.window:
            raise ClaimLostError(f"window {claim.window}: its record was superseded; plan again")
        if record.claim_id != claim.id:
            raise ClaimLostError(
                f"window {claim.window}: the claim was given back or another worker took it; it is {record.status} now"
            )
        return record

    def _running(self, claim: Claim) -> Record:
        """The record that the claim holds under its own fence; ClaimLostError where there is none."""
        record = self._held(claim)
        if record.status is not Status.RUNNING or record.fence != claim.fence:
            raise ClaimLostError(
                f"window {claim.window}: fence {claim.fence} holds it no more; "
                f"it is {record.status} now, under fence {record.fence}"
            )
        return record

    # --- moving the store ---------------------------------------------------------------------------------------------

    def dump(self, pipeline: str) -> Kept:
        with self._lock:
            found: list[Record | Event] = [*self._superseded, *self._records(pipeline), *self._log]
        return (each for each in found if each.pipeline == pipeline)

    def restore(self, pipeline: str, kept: Iterable[Record | Event]) -> None:
        taken = list(kept)  # whatever it raises, before anything has changed
        with self._lock:
            if next(self.dump(pipeline), None) is not None:
                raise RecordError(f"pipeline {pipeline!r}: this store keeps records or events of it already")
            self._live[pipeline] = {}
            for each in taken:
                if isinstance(each, Event):
                    self._log.append(each)
                    continue
                self._last_fence = max(self._last_fence, each.fence)
                if each.status is Status.SUPERSEDED:
                    self._superseded.append(each)
                else:
                    self._keep(each)
            self._starts[pipeline] = sorted(self._live[pipeline])

    def prune(self, pruning: Pruning) -> Pruned:
        with self._lock:
            live = [*self._records(pruning.pipeline)]
            kept = [record.window for record in live if not _covers(pruning, record)]
            done = [record for record in live if _covers(pruning, record) and record != in_short(record)]
            superseded = [record for record in self._superseded if _is_over(pruning, record)]
            events = [event for event in self._log if _is_forgotten(pruning, event, kept)]
            if pruning.dry_run:
                return Pruned(len(done), len(superseded), len(events))
            step = done[: pruning.most], superseded[: pruning.most], events[: pruning.most]
            for record in step[0]:
                self._keep(in_short(record))
            gone = {id(each) for part in step[1:] for each in part}
            self._superseded = [record for record in self._superseded if id(record) not in gone]
            self._log = [event for event in self._log if id(event) not in gone]
            pruned = Pruned(*(len(part) for part in step))
            if pruned:
                told = {"reason": f"before {iso(pruning.before_us)}", **asdict(pruned)}
                self._log.append(Event(self.now_us(), pruning.pipeline, None, "pruned", told))
            return pruned

    # --- the records --------------------------------------------------------------------------------------------------

    def _records(self, pipeline: str) -> Iterator[Record]:
        live = self._live.get(pipeline, {})
        return (live[start_us] for start_us in self._starts.get(pipeline, ()))

    def _keep(self, record: Record) -> Record:
        self._live[record.pipeline][record.window.start_us] = record
        return record

    def _move(
        self, record: Record, step: str, now_us: int, more: Mapping[str, Any] = MappingProxyType({}), **values: Any
    ) -> Record:
        """The one way to another status, checked and logged; the event tells `more` beside."""
        after = evolve(record, updated_us=now_us, **values)
        transition(record.status, after.status)
        told = {"status": str(after.status), "was": str(record.status), "reason": after.reason, "fence": after.fence}
        self._log.append(Event(now_us, record.pipeline, record.window, step, {**told, **more}))
        return self._keep(after)


def _claim(record: Record) -> Claim:
    if record.claim_id is None:
        raise RecordError(f"window {record.window}: expected a claimed record, found one without a claim")
    return Claim(record.claim_id, record, record.fence)


def _addition(record: Record) -> Addition:
    """What would add the record just as it is."""
    window = record.window
    return Addition(
        window.start_us, window.end_us, record.attempts, record.identity, record.verified_rows, record.asked
    )


def _span(record: Record) -> Span:
    window = record.window
    return Span(
        window.start_us,
        window.end_us,
        record.status,
        record.fence,
        record.attempts,
        record.identity,
        record.fields,
        record.outcome,
        record.verified_rows,
        record.asked,
    )


def _is_asked_for(record: Record, request: ClaimRequest) -> bool:
    """Whether the request wants this window, once nothing else holds it back."""
    stable = record.window.end_us <= request.stable_until_us
    return stable and (request.within is None or _starts_in(record, request.within))


def _starts_in(record: Record, within: Window) -> bool:
    return within.start_us <= record.window.start_us < within.end_us


def _overlap(one: Window, other: Window) -> bool:
    return one.start_us < other.end_us and other.start_us < one.end_us


def _covers(pruning: Pruning, record: Record) -> bool:
    return pruning.covers(record.status, record.outcome, record.window.end_us)


def _is_over(pruning: Pruning, record: Record) -> bool:
    return record.pipeline == pruning.pipeline and record.window.end_us <= pruning.before_us


def _is_forgotten(pruning: Pruning, event: Event, kept: Sequence[Window]) -> bool:
    """Whether an event is old; those of `kept` windows tell how they came to be as they are."""
    if event.pipeline != pruning.pipeline or event.step == "pruned":
        return False
    if event.window is None:
        return event.at_us < pruning.before_us
    return event.window.end_us <= pruning.before_us and not any(_overlap(event.window, window) for window in kept)


def _json(value: Mapping[str, Any], what: str) -> Mapping[str, Any]:
    """A copy, so that no caller changes a stored record. What a database could not keep is refused."""
    try:
        copy: Mapping[str, Any] = json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise RecordError(f"{what}: cannot be stored as JSON: {error}") from None
    return copy


def _us(seconds: float) -> int:
    return round(seconds * SECOND_US)
