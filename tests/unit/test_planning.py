"""Planning: which records should exist, decided from the policy, the live records and now alone."""

from __future__ import annotations

import pendulum
import pytest

from pipeline_core import ConfigError, Span, Status, WallClockPolicy
from pipeline_core.engine.identity import text
from pipeline_core.engine.planning import Request, plan
from pipeline_core.record import Asked
from pipeline_core.window import to_us

NY = "America/New_York"
SIDES = "sides"


def at(text: str) -> int:
    """Microseconds of a local time in New York."""
    return to_us(pendulum.parse(text, tz=NY))


def request(**changes: object) -> Request:
    """Two-hour windows of 2013-03-10, whose clocks skip 02:00-03:00, seen at noon."""
    values = {
        "pipeline": "p",
        "policy": WallClockPolicy(granularity="2h", timezone=NY),
        "now_us": at("2013-03-10T12:30"),
        "identity": SIDES,
        "begin_us": at("2013-03-10"),
        "default_record": {"key": 1},
        "check_fields": ("key",),
    }
    return Request(**(values | changes))


def span(start: str, end: str, status: Status = Status.PENDING, **changes: object) -> Span:
    """A live record as the store reports it."""
    values = {"fence": 7, "attempts": 0, "identity": SIDES if status is Status.DONE else "", "fields": {"key": 1}}
    return Span(start_us=at(start), end_us=at(end), status=status, **(values | changes))


def added(change) -> list[tuple[str, str]]:
    """The added windows on New York's clock."""
    return [
        tuple(pendulum.from_timestamp(us / 1e6, tz=NY).format("HH:mm") for us in (a.start_us, a.end_us))
        for a in change.add
    ]


def test_first_plan_cuts_everything_up_to_the_last_whole_window() -> None:
    """The cut of [begin, now): whole windows only, the clock change cut as the policy says."""
    change = plan(request(), [])
    assert added(change) == [
        ("00:00", "03:00"),
        ("03:00", "04:00"),
        ("04:00", "06:00"),
        ("06:00", "08:00"),
        ("08:00", "10:00"),
        ("10:00", "12:00"),
    ]
    assert change.remove == []
    assert change.fields == {"key": 1}


def test_a_second_plan_changes_nothing() -> None:
    """What is wanted and there stays as it is."""
    first = plan(request(), [])
    spans = [Span(a.start_us, a.end_us, Status.PENDING, 0, 0, "", {"key": 1}) for a in first.add]
    assert not plan(request(), spans)


def test_begin_and_end_clip_their_windows() -> None:
    """begin and end inside a window cut it there."""
    change = plan(request(begin_us=at("2013-03-10T05:00"), end_us=at("2013-03-10T09:30")), [])
    assert added(change) == [("05:00", "06:00"), ("06:00", "08:00"), ("08:00", "09:30")]


def test_gaps_are_filled() -> None:
    """A hole between records is cut again."""
    spans = [
        span("2013-03-10T00:00", "2013-03-10T03:00", Status.DONE),
        span("2013-03-10T06:00", "2013-03-10T08:00", Status.DONE),
        span("2013-03-10T08:00", "2013-03-10T10:00", Status.RUNNING),
    ]
    assert added(plan(request(), spans)) == [("03:00", "04:00"), ("04:00", "06:00"), ("10:00", "12:00")]


def test_new_granularity_keeps_what_is_done_and_clips_the_seam() -> None:
    """Done and running windows stay; pending ones are re-cut; the seam window is clipped to fit."""
    spans = [
        span("2013-03-10T04:00", "2013-03-10T06:00", Status.DONE),
        span("2013-03-10T06:00", "2013-03-10T08:00", Status.RUNNING),
        span("2013-03-10T08:00", "2013-03-10T10:00", attempts=3),
        span("2013-03-10T10:00", "2013-03-10T12:00"),
    ]
    policy = WallClockPolicy(granularity="3h", timezone=NY)
    change = plan(request(policy=policy), spans)
    assert added(change) == [("00:00", "03:00"), ("03:00", "04:00"), ("08:00", "09:00"), ("09:00", "12:00")]
    assert [(r.start_us, "no longer on the cut" in r.reason) for r in change.remove] == [
        (at("2013-03-10T08:00"), True),
        (at("2013-03-10T10:00"), True),
    ]
    assert [a.attempts for a in change.add] == [0, 0, 3, 3]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (None, "no JSON object"),
        ({}, "missing or null: key"),
        ({"key": None}, "missing or null: key"),
    ],
)
def test_broken_records_are_rebuilt(fields: object, reason: str) -> None:
    """A pending record whose fields are unreadable, missing or null is replaced, and keeps its attempts."""
    spans = [span("2013-03-10T10:00", "2013-03-10T12:00", fields=fields, attempts=2)]
    change = plan(request(begin_us=at("2013-03-10T10:00")), spans)
    assert reason in change.remove[0].reason
    assert [(a.start_us, a.attempts) for a in change.add] == [(at("2013-03-10T10:00"), 2)]


@pytest.mark.parametrize("value", [0, False, ""])
def test_zero_is_a_value(value: object) -> None:
    """A check field that is 0, false or empty is present."""
    spans = [span("2013-03-10T10:00", "2013-03-10T12:00", fields={"key": value})]
    assert not plan(request(begin_us=at("2013-03-10T10:00")), spans)


def test_nothing_is_rebuilt_from_a_default_record_that_lacks_a_check_field() -> None:
    """The answer names the fields instead."""
    with pytest.raises(ConfigError, match="default_record: check fields missing or null: a, b"):
        plan(request(default_record={"a": None}, check_fields=("a", "b")), [])


def test_records_under_a_name_that_nobody_gave_are_of_one_pipeline() -> None:
    """Other tables on both sides are another pipeline, unless the name is given; one side or columns are not."""

    def sides(source: dict[str, str], target: dict[str, str]) -> str:
        return text({"technology": "sql", **source}, {"technology": "sql", **target})

    def spans(identity: str) -> list[Span]:
        return [span("2013-03-10T10:00", "2013-03-10T12:00", Status.DONE, identity=identity, verified_rows=3)]

    mine = sides({"table": "orders", "columns": "a", "where": "x"}, {"table": "orders_copy"})
    other = sides({"table": "visits"}, {"table": "visits_copy"})
    with pytest.raises(ConfigError, match=r"name: found none.*'sql-to-sql'.*source.table: 'visits', now 'orders'"):
        plan(request(identity=mine, made_name="sql-to-sql"), spans(other))
    assert plan(request(identity=mine), spans(other)).remove
    for same in (
        sides({"table": "visits"}, {"table": "orders_copy"}),
        sides({"table": "orders"}, {"table": "elsewhere"}),
        sides({"table": "orders", "columns": "b", "where": "y"}, {"table": "orders_copy", "scope": "{}"}),
        "",
    ):
        assert plan(request(identity=mine, made_name="sql-to-sql"), spans(same)).remove


def test_work_done_under_another_identity_is_counted_again() -> None:
    """A done window verified against another table is no coverage."""
    spans = [
        span("2013-03-10T08:00", "2013-03-10T10:00", Status.DONE, identity="other"),
        span("2013-03-10T10:00", "2013-03-10T12:00", Status.DONE),
    ]
    change = plan(request(begin_us=at("2013-03-10T08:00")), spans)
    assert [r.reason for r in change.remove] == [
        "verified under another identity of source or target: to be counted again"
    ]
    assert added(change) == [("08:00", "10:00")]


def test_overlaps_are_reported() -> None:
    """Two done windows that share time are kept, and named."""
    spans = [
        span("2013-03-10T06:00", "2013-03-10T10:00", Status.DONE),
        span("2013-03-10T08:00", "2013-03-10T12:00", Status.DONE),
    ]
    change = plan(request(begin_us=at("2013-03-10T06:00")), spans)
    assert not change
    assert "share time" in change.notes[0]


def test_without_begin_and_records_it_starts_at_the_newest_stable_window() -> None:
    """And it says so."""
    policy = WallClockPolicy(granularity="2h", timezone=NY, x_time_back="3h")
    change = plan(request(policy=policy, begin_us=None), [])
    assert added(change) == [("06:00", "08:00"), ("08:00", "10:00"), ("10:00", "12:00")]
    assert "starting at the newest stable" in change.notes[0]


def test_without_begin_the_oldest_record_is_where_it_begins() -> None:
    """Later plans go on from the records there are."""
    change = plan(request(begin_us=None), [span("2013-03-10T06:00", "2013-03-10T08:00", Status.DONE)])
    assert added(change) == [("08:00", "10:00"), ("10:00", "12:00")]


def test_begin_in_the_future_is_refused() -> None:
    """With both times named."""
    with pytest.raises(ConfigError, match=r"begin: .* lies in the future"):
        plan(request(begin_us=at("2013-03-11")), [])


def test_a_replay_leaves_later_records_alone() -> None:
    """With an earlier now, records that a later clock has planned stay."""
    spans = [span("2013-03-10T10:00", "2013-03-10T12:00"), span("2013-03-10T12:00", "2013-03-10T14:00")]
    assert not plan(request(begin_us=at("2013-03-10T10:00"), now_us=at("2013-03-10T12:00")), spans)


def test_an_earlier_end_supersedes_what_lies_behind_it() -> None:
    """Live records that are not wanted go."""
    spans = [span("2013-03-10T08:00", "2013-03-10T10:00"), span("2013-03-10T10:00", "2013-03-10T12:00")]
    change = plan(request(begin_us=at("2013-03-10T08:00"), end_us=at("2013-03-10T10:00")), spans)
    assert [r.start_us for r in change.remove] == [at("2013-03-10T10:00")]
    assert not change.add


@pytest.mark.parametrize("known", [{"verified_rows": 3}, {"asked": Asked.RELOAD}], ids=["verified", "asked for"])
@pytest.mark.parametrize("status", [Status.PENDING, Status.QUARANTINED])
def test_what_was_verified_or_asked_for_is_not_dropped(status: Status, known: dict[str, object]) -> None:
    """Before begin, across begin and behind the end it stays whole, and what is planned beside it is clipped."""
    spans = [
        span("2013-03-10T00:00", "2013-03-10T03:00", status, **known),
        span("2013-03-10T04:00", "2013-03-10T06:00", status, **known),
        span("2013-03-10T10:00", "2013-03-10T12:00", status, **known),
    ]
    change = plan(request(begin_us=at("2013-03-10T05:00"), end_us=at("2013-03-10T10:00")), spans)
    assert change.remove == []
    assert added(change) == [("06:00", "08:00"), ("08:00", "10:00")]


def test_quarantined_windows_stay_quarantined() -> None:
    """Planning does not free what a person has to look at."""
    spans = [span("2013-03-10T10:00", "2013-03-10T12:00", Status.QUARANTINED, attempts=5)]
    assert not plan(request(begin_us=at("2013-03-10T10:00")), spans)


def test_a_target_that_cannot_tell_both_passes_apart_is_refused() -> None:
    """A bare local target column, and a cut inside the hour that its clocks repeat."""
    year = {"begin_us": at("2013-01-01"), "now_us": at("2014-01-01"), "target_zone": NY}
    with pytest.raises(ConfigError, match=r"target.timestamp_timezone: clocks in America/New_York repeat"):
        plan(request(policy=WallClockPolicy(granularity="1h", timezone=NY), **year), [])


@pytest.mark.parametrize(
    ("begin", "end", "now"),
    [
        ("2013-03-11", None, "2013-03-12"),
        ("2013-11-03", "2013-12-01", "2013-11-03T00:30"),
        ("2013-11-04", None, "2014-01-01"),
    ],
)
def test_the_repeated_hour_to_come_is_refused_beforehand(begin: str, end: str | None, now: str) -> None:
    """In spring, and not from the night in autumn on that no window could be planned across."""
    hourly = {"policy": WallClockPolicy(granularity="1h", timezone=NY), "target_zone": NY}
    asked = request(begin_us=at(begin), end_us=end and at(end), now_us=at(now), **hourly)
    with pytest.raises(ConfigError, match=r"target.timestamp_timezone: clocks in America/New_York repeat"):
        plan(asked, [])


@pytest.mark.parametrize("now", ["2013-03-12", "2014-03-12"])
def test_a_target_without_zone_is_fine_where_the_pipeline_ends_before_the_repeated_hour(now: str) -> None:
    """Whenever that is planned."""
    hourly = {"policy": WallClockPolicy(granularity="1h", timezone=NY), "target_zone": NY}
    days = {"begin_us": at("2013-03-11"), "end_us": at("2013-03-13"), "now_us": at(now)}
    assert plan(request(**days, **hourly), []).add


def test_a_target_without_zone_is_fine_where_no_window_ends_in_the_repeated_hour() -> None:
    """Two-hour windows hold both passes together."""
    year = {"begin_us": at("2013-01-01"), "now_us": at("2014-01-01"), "target_zone": NY}
    assert len(plan(request(**year), []).add) == 4380
