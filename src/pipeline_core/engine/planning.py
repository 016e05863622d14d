"""Planning: policy, live records and now decide which windows should exist. Pure set arithmetic, linear in its input.

Generation, gap filling, rebuild, re-cut and reopening are all this one function.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from operator import itemgetter
from typing import Any

from attrs import evolve, field, frozen

from pipeline_core import coverage, zones
from pipeline_core.engine import identity
from pipeline_core.errors import ConfigError
from pipeline_core.record import Addition, Change, Outcome, Removal, Span, Status, missing_fields
from pipeline_core.timepolicy import TimePolicy
from pipeline_core.window import DAY_US, MAX_US, MIN_US, Window, from_us

_KEPT = {Status.DONE, Status.RUNNING}
_YEAR_US = 366 * DAY_US


@frozen
class Request:
    """What planning needs to know. Times are microseconds UTC; `identity` names both sides as they are now.

    `made_name` is the pipeline's name where the configuration gives none, so that another one may have the same.
    `target_zone` is set where the target's timestamp column carries no zone. Done windows that start before
    `sealed_us` stay done whatever the identity, since source rows of theirs may be gone by now.
    """

    pipeline: str
    policy: TimePolicy
    now_us: int
    identity: str
    begin_us: int | None = None
    end_us: int | None = None
    target_zone: str | None = None
    sealed_us: int = MIN_US
    default_record: Mapping[str, Any] = field(factory=dict)
    check_fields: Sequence[str] = ()
    made_name: str | None = None


def plan(request: Request, spans: Sequence[Span]) -> Change:
    """Which records to supersede and which to add, given the live ones in order of time.

    Wanted is the policy's cut of `[begin, end)` up to now, minus what is done or running, clipped where it meets that.
    A window that was ever verified, or that a person asked for, is neither cut again nor dropped, whatever became of it
    and wherever `begin` and `end` are now, so that its evidence goes on to fit and nothing asked for is lost.
    Raises ConfigError where `default_record` lacks a check field (nothing could be rebuilt from it), where `begin` lies
    in the future, where the target's column cannot tell two windows apart, and where the records seem to be another
    pipeline's.
    """
    lacking = missing_fields(request.default_record, request.check_fields)
    if lacking:
        raise ConfigError(
            f"default_record: check fields missing or null: {', '.join(lacking)}; add them to default_record, "
            "nothing was generated or rebuilt"
        )
    _check_whose(request, spans)
    begin_us, note = _begin(request, spans)
    _check_target_zone(request, begin_us)
    limit_us = _limit(request)
    kept, again = _sorted_out(request, spans, begin_us, limit_us)
    whole = [(span.start_us, span.end_us) for span in again]
    wanted = sorted([*_wanted(request.policy, [*kept, *again], begin_us, limit_us), *whole])
    missing, remove = _compare(request, spans, kept, wanted)
    add = _inherit(missing, remove, spans)
    notes = [*note, *_overlaps(kept), *_unverified(request, spans, kept)]
    return Change(request.pipeline, remove, add, dict(request.default_record), "planned", notes)


def limited(change: Change, within: Window | None) -> Change:
    """What of the change concerns records and windows that start `within`; all of it without.

    Where a new cut lies across an end of the range, what overlaps is left as it is, and noted: half of it would leave a
    gap.
    """
    if within is None:
        return change
    remove: list[Removal] = []
    add: list[Addition] = []
    left = 0
    for together in _overlapping(change):
        inside = [within.start_us <= each.start_us < within.end_us for each in together]
        if all(inside):
            remove += [each for each in together if isinstance(each, Removal)]
            add += [each for each in together if isinstance(each, Addition)]
        elif any(inside):
            left += sum(isinstance(each, Removal) for each in together)
    note = f"{left} records lie across an end of the range in the new cut, and wait for a plan that holds them whole"
    return evolve(change, remove=remove, add=add, notes=[*change.notes, note] if left else change.notes)


def _overlapping(change: Change) -> Iterator[list[Removal | Addition]]:
    """Its parts in order of time, those that overlap together."""
    run: list[Removal | Addition] = []
    reach_us = MIN_US
    parts: list[Removal | Addition] = [*change.remove, *change.add]
    for each in sorted(parts, key=itemgetter(0)):
        if run and each.start_us >= reach_us:
            yield run
            run = []
        run.append(each)
        reach_us = max(reach_us, each.end_us)
    if run:
        yield run


def fault_of(fields: Mapping[str, Any] | None, check_fields: Sequence[str]) -> str:
    """Why a record with these fields cannot be processed; empty where it can."""
    if fields is None:
        return "broken: its fields are no JSON object"
    lacking = missing_fields(fields, check_fields)
    return f"broken: check fields missing or null: {', '.join(lacking)}" if lacking else ""


def _check_whose(request: Request, spans: Sequence[Span]) -> None:
    """Refuses records of other tables on both sides, under a name that nobody has given."""
    if request.made_name is None:
        return
    for before in {span.identity for span in spans if span.status is Status.DONE}:
        if identity.elsewhere(before, request.identity):
            raise ConfigError(
                f"name: found none, and the records under {request.made_name!r} are of other tables on both sides "
                f"({identity.difference(before, request.identity)}): another pipeline seems to use this name; give "
                f'each a name of its own, or write name = "{request.made_name}" to take these records over'
            )


def _begin(request: Request, spans: Sequence[Span]) -> tuple[int, list[str]]:
    if request.begin_us is not None:
        if request.begin_us > request.now_us:
            raise ConfigError(
                f"begin: {from_us(request.begin_us).isoformat()} lies in the future, now is "
                f"{from_us(request.now_us).isoformat()}; expected a time in the past"
            )
        return request.begin_us, []
    if spans:
        return spans[0].start_us, []
    stable_us = request.policy.stable_until_us(request.now_us)
    newest = request.policy.window_at_us(stable_us)
    if newest.end_us > stable_us:
        newest = request.policy.window_at_us(newest.start_us - 1)
    return newest.start_us, [f"no begin is configured and no record exists: starting at the newest stable {newest}"]


def _check_target_zone(request: Request, begin_us: int) -> None:
    """Refuses a target column without zone where the policy cuts inside an hour that this zone's clocks repeat.

    Both passes of such an hour are stored as the same local times, which stand for the first pass: rows of the second
    would turn up in another window than the one that loaded them. Such an hour of the year to come counts too, so that
    what is planned in spring does not end in autumn.
    """
    if request.target_zone is None:
        return
    zone = zones.zone(request.target_zone)
    until_us = min(request.now_us + _YEAR_US, MAX_US if request.end_us is None else request.end_us)
    for first_us, _, last_us in zones.repeated_hours(zone, begin_us, max(begin_us, until_us)):
        if any(first_us < edge < last_us for edge in request.policy.windows_us(first_us, last_us).edges()):
            raise ConfigError(
                f"target.timestamp_timezone: clocks in {request.target_zone} repeat the time after "
                f"{from_us(first_us).isoformat()}, and the time policy cuts inside it, so a column without zone cannot "
                'hold both windows apart; use a column with zone, timestamp_timezone = "UTC", or a coarser granularity'
            )


def _limit(request: Request) -> int:
    """Up to where windows are whole: the configured end once it is past, else the start of the current window."""
    if request.end_us is not None and request.end_us <= request.now_us:
        return request.end_us
    return request.policy.window_at_us(request.now_us).start_us


def _sorted_out(request: Request, spans: Sequence[Span], begin_us: int, limit_us: int) -> tuple[list[Span], list[Span]]:
    """What stays as it is, and what was verified or asked for and is to be done again, each over its own span."""
    kept: list[Span] = []
    again: list[Span] = []
    for span in spans:
        if span.status in _KEPT and not _outdated(request, span, begin_us, limit_us):
            kept.append(span)
        elif span.verified_rows is not None or span.asked is not None:
            again.append(span)
    return kept, again


def _outdated(request: Request, span: Span, begin_us: int, limit_us: int) -> bool:
    """Done under another identity of a side: no longer coverage, to be counted again."""
    return (
        span.status is Status.DONE
        and span.identity != request.identity
        and span.outcome is not Outcome.SKIPPED
        and span.start_us >= request.sealed_us
        and begin_us <= span.start_us
        and span.end_us <= limit_us
    )


def _wanted(policy: TimePolicy, kept: Sequence[Span], begin_us: int, limit_us: int) -> list[tuple[int, int]]:
    if begin_us >= limit_us:
        return []
    covered = coverage.merge([(span.start_us, span.end_us) for span in kept])
    return [
        window
        for start_us, end_us in coverage.gaps(covered, begin_us, limit_us)
        for window in pairwise(_cut(policy, start_us, end_us))
    ]


def _cut(policy: TimePolicy, start_us: int, end_us: int) -> Iterator[int]:
    """The edges of the policy in a gap, with the gap's own ends as seams."""
    yield start_us
    for edge in policy.windows_us(start_us, end_us).edges():
        if start_us < edge < end_us:
            yield edge
    yield end_us


def _compare(
    request: Request, spans: Sequence[Span], kept: Sequence[Span], wanted: Sequence[tuple[int, int]]
) -> tuple[list[tuple[int, int]], list[Removal]]:
    stays = {(span.start_us, span.end_us) for span in kept}
    missing = dict.fromkeys(wanted)
    remove = []
    for span in spans:
        window = (span.start_us, span.end_us)
        if window in stays:
            continue
        reason = _reason(request, span, window in missing)
        if reason:
            remove.append(Removal(span.start_us, span.end_us, span.fence, reason))
        else:
            missing.pop(window, None)
    return list(missing), remove


def _reason(request: Request, span: Span, on_cut: bool) -> str:
    """Why a record that is neither done nor running has to go; empty where it may stay."""
    if span.status is Status.DONE:
        return "verified under another identity of source or target: to be counted again"
    if span.end_us > request.now_us:
        return ""  # planned by a later clock, as a replay with an earlier `now` finds it
    if not on_cut:
        return "outdated: no longer on the cut of the time policy"
    return fault_of(span.fields, request.check_fields)


def _inherit(missing: Sequence[tuple[int, int]], remove: Sequence[Removal], spans: Sequence[Span]) -> list[Addition]:
    """The windows to add, each with the most attempts of those records it replaces that used any.

    One of the very span of a record it replaces takes over its evidence, and what a person asked for.
    """
    gone = {(r.start_us, r.end_us) for r in remove}
    same = {
        (s.start_us, s.end_us): (s.identity, s.verified_rows, s.asked) for s in spans if (s.start_us, s.end_us) in gone
    }
    used = {(span.start_us, span.end_us): span.attempts for span in spans if span.attempts}
    burdened = [(r.start_us, r.end_us, used[r.start_us, r.end_us]) for r in remove if (r.start_us, r.end_us) in used]
    add, first = [], 0
    for start_us, end_us in missing:
        while first < len(burdened) and burdened[first][1] <= start_us:
            first += 1
        attempts, at = 0, first
        while at < len(burdened) and burdened[at][0] < end_us:
            attempts = max(attempts, burdened[at][2])
            at += 1
        add.append(Addition(start_us, end_us, attempts, *same.get((start_us, end_us), ())))
    return add


def _unverified(request: Request, spans: Sequence[Span], kept: Sequence[Span]) -> list[str]:
    """How many done windows are none any more, by what it is that changed."""
    stay = {span.start_us for span in kept}
    outdated = Counter(s.identity for s in spans if s.status is Status.DONE and s.start_us not in stay)
    return [
        f"{count} done windows are unverified now, and counted again by the next run: "
        f"{identity.difference(before, request.identity) or 'they were verified under sides unknown'}"
        for before, count in outdated.items()
    ]


def _overlaps(kept: Sequence[Span]) -> list[str]:
    return [
        f"overlap: {Window.from_us(a.start_us, a.end_us)} ({a.status}) and "
        f"{Window.from_us(b.start_us, b.end_us)} ({b.status}) share time; both are kept"
        for a, b in pairwise(kept)
        if b.start_us < a.end_us
    ]
