"""Planning, whatever state it finds: the live records end up tiling the time it was asked for."""

from __future__ import annotations

from datetime import datetime
from itertools import pairwise

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from pipeline_core import Change, Span, Status, WallClockPolicy, Window, coverage
from pipeline_core.engine.planning import Request, limited, plan
from pipeline_core.window import to_us
from pipeline_core.zones import zone

NY = "America/New_York"
BEGIN = to_us(datetime(2013, 3, 8, tzinfo=zone(NY)))
NOW = to_us(datetime(2013, 3, 12, 13, 30, tzinfo=zone(NY)))
MINUTE = 60_000_000

policies = st.builds(
    WallClockPolicy,
    granularity=st.sampled_from(["15min", "1h", "2h", "3h", "1d"]),
    timezone=st.sampled_from([NY, "UTC", "Australia/Lord_Howe"]),
)

hours = st.integers(-2, 110).map(lambda hour: BEGIN + hour * 60 * MINUTE)


@st.composite
def live_records(draw: st.DrawFn) -> list[Span]:
    """Live records that do not overlap, on no cut in particular, some broken, some of another identity."""
    cuts = sorted(draw(st.sets(st.integers(0, (NOW - BEGIN) // MINUTE), max_size=20)))
    spans = []
    for start, end in pairwise(cuts):
        status = draw(st.sampled_from([None, *(s for s in Status if s is not Status.SUPERSEDED)]))
        if status is not None:
            fields = draw(st.sampled_from([{"key": 1}, {}, None]))
            identity = draw(st.sampled_from(["sides", "others"])) if status is Status.DONE else ""
            attempts = draw(st.integers(0, 4))
            verified = draw(st.sampled_from([None, None, 0, 7]))
            first, last = BEGIN + start * MINUTE, BEGIN + end * MINUTE
            spans.append(Span(first, last, status, 1, attempts, identity, fields, verified_rows=verified))
    return spans


def after(spans: list[Span], change: Change) -> list[Span]:
    """The live records once a store has applied the change."""
    gone = {(r.start_us, r.end_us) for r in change.remove}
    added = [
        Span(a.start_us, a.end_us, Status.PENDING, 0, a.attempts, a.identity, change.fields, None, a.verified_rows)
        for a in change.add
    ]
    return sorted([s for s in spans if (s.start_us, s.end_us) not in gone] + added)


def applied(spans: list[Span], change: Change) -> list[Span]:
    """The same by a store that passes over what overlaps a live record."""
    gone = {(r.start_us, r.end_us) for r in change.remove}
    left = [s for s in spans if (s.start_us, s.end_us) not in gone]
    free = [a for a in change.add if not any(s.start_us < a.end_us and a.start_us < s.end_us for s in left)]
    return after(left, evolve(change, remove=(), add=free))


def covered(spans: list[Span]) -> list[tuple[int, int]]:
    """The time that they cover."""
    return coverage.merge([(span.start_us, span.end_us) for span in spans])


def request(policy: WallClockPolicy) -> Request:
    """What every example asks for."""
    return Request("p", policy, NOW, "sides", BEGIN, default_record={"key": 0}, check_fields=("key",))


@given(policies, live_records())
def test_live_records_tile_the_time_that_is_whole(policy: WallClockPolicy, spans: list[Span]) -> None:
    """No gap and no overlap from begin to the last whole window, whatever was there before."""
    live = after(spans, plan(request(policy), spans))
    limit = policy.window_at_us(NOW).start_us
    assert live[0].start_us == BEGIN
    assert live[-1].end_us >= limit
    assert all(a.end_us <= b.start_us for a, b in pairwise(live))
    assert all(a.end_us == b.start_us for a, b in pairwise(live) if a.end_us < limit)


@given(policies, live_records())
def test_planning_twice_is_planning_once(policy: WallClockPolicy, spans: list[Span]) -> None:
    """A plan applied leaves nothing to plan."""
    live = after(spans, plan(request(policy), spans))
    assert not plan(request(policy), live)


@given(policies, live_records())
def test_what_is_verified_or_running_stays(policy: WallClockPolicy, spans: list[Span]) -> None:
    """Done windows of the same sides and running ones are never touched."""
    gone = {(r.start_us, r.end_us) for r in plan(request(policy), spans).remove}
    kept = {
        (s.start_us, s.end_us)
        for s in spans
        if s.status is Status.RUNNING or (s.status is Status.DONE and s.identity == "sides")
    }
    assert not gone & kept


@given(policies, live_records(), st.tuples(hours, hours).filter(lambda ends: ends[0] < min(ends[1], NOW)))
def test_what_was_ever_verified_keeps_its_span_and_its_evidence(
    policy: WallClockPolicy, spans: list[Span], ends: tuple[int, int]
) -> None:
    """Whatever became of it since, whatever the cut, and wherever begin and end have moved."""
    asked = evolve(request(policy), begin_us=ends[0], end_us=ends[1])
    live = {(s.start_us, s.end_us): s.verified_rows for s in after(spans, plan(asked, spans))}
    for span in spans:
        if span.verified_rows is not None:
            assert live[span.start_us, span.end_us] == span.verified_rows


@given(policies, live_records())
def test_attempts_are_inherited(policy: WallClockPolicy, spans: list[Span]) -> None:
    """An added window has the most attempts of the removed records that it overlaps, and none by itself."""
    change = plan(request(policy), spans)
    removed = [s for s in spans if (s.start_us, s.end_us) in {(r.start_us, r.end_us) for r in change.remove}]
    for a in change.add:
        over = [s.attempts for s in removed if s.start_us < a.end_us and a.start_us < s.end_us]
        assert a.attempts == max(over, default=0)


@given(policies, live_records(), st.tuples(hours, hours).filter(lambda ends: ends[0] < ends[1]))
def test_a_plan_of_a_range_leaves_no_gap(policy: WallClockPolicy, spans: list[Span], ends: tuple[int, int]) -> None:
    """Whatever it cuts through: no time is lost, nothing that starts elsewhere is touched, and all takes effect."""
    whole = plan(request(policy), spans)
    change = limited(whole, Window.from_us(*ends))
    assert all(ends[0] <= each.start_us < ends[1] for each in (*change.remove, *change.add))
    live = applied(spans, change)
    assert len(live) == len(spans) - len(change.remove) + len(change.add)
    limit = policy.window_at_us(NOW).start_us  # what lies behind it is planned once its window is whole
    assert not [lost for lost in coverage.subtract(covered(spans), covered(live)) if lost[0] < limit]
    rest = applied(live, plan(request(policy), live))
    assert [span[:3] for span in rest] == [span[:3] for span in applied(spans, whole)]


@given(policies, live_records())
def test_a_plan_of_all_time_is_the_whole_plan(policy: WallClockPolicy, spans: list[Span]) -> None:
    """A range that cuts through nothing takes nothing away, and says nothing."""
    whole = plan(request(policy), spans)
    assert limited(whole, Window.from_us(BEGIN - MINUTE, NOW + MINUTE)) == whole
