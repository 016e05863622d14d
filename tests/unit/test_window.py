"""Instants and windows: exact microseconds inside, pendulum at the edge."""

import pickle
from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pendulum
import pytest

from pipeline_core.errors import TimeError
from pipeline_core.window import MAX_US, MIN_US, Window, from_us, iso, to_us

NEW_YORK = ZoneInfo("America/New_York")


def test_to_us_is_exact_to_the_microsecond():
    """Large instants keep their last microsecond, which a float would lose."""
    assert to_us(datetime(1970, 1, 1, tzinfo=UTC)) == 0
    assert to_us(datetime(2262, 4, 11, 23, 47, 16, 854775, tzinfo=UTC)) == 9223372036854775
    assert to_us(datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)) == -1


def test_to_us_tells_the_passes_of_a_repeated_hour_apart():
    """`fold` chooses the pass, for stdlib and pendulum datetimes alike, though such datetimes compare equal."""
    first = datetime(2013, 11, 3, 1, 30, tzinfo=NEW_YORK)
    second = first.replace(fold=1)
    assert first == second
    assert to_us(second) - to_us(first) == 3_600_000_000
    pendulum_first = pendulum.datetime(2013, 11, 3, 1, 30, tz="America/New_York", fold=0)
    assert to_us(pendulum_first) == to_us(first)
    assert to_us(pendulum_first.add(hours=1)) == to_us(second)


def test_to_us_takes_any_offset():
    """Fixed offsets with minutes and seconds count in full."""
    assert to_us(datetime(2020, 1, 1, tzinfo=timezone(timedelta(hours=5, minutes=45, seconds=30)))) == to_us(
        datetime(2019, 12, 31, 18, 14, 30, tzinfo=UTC)
    )


@pytest.mark.parametrize("bad", [datetime(2013, 3, 10), "2013-03-10", None, datetime(2013, 3, 10).date()])
def test_to_us_refuses_what_is_no_instant(bad):
    """A naive datetime, a date or text is refused with the value that was found."""
    with pytest.raises(TimeError, match=r"found .*2013|found None"):
        to_us(bad)


def test_from_us_is_a_pendulum_datetime_in_utc():
    """The edge hands out pendulum, in pendulum's own UTC, with arithmetic intact."""
    instant = from_us(1_362_891_600_123_456)
    assert type(instant) is pendulum.DateTime
    assert instant == pendulum.datetime(2013, 3, 10, 5, 0, 0).add(microseconds=123456)
    assert instant.timezone_name == "UTC"
    assert instant.add(days=1).day == 11


@pytest.mark.parametrize("us", [MIN_US, MAX_US, 0, -1, 1])
def test_instants_round_trip(us):
    """Both ends of the representable years survive the way there and back."""
    assert to_us(from_us(us)) == us


@pytest.mark.parametrize("us", [MIN_US - 1, MAX_US + 1, 10**30])
def test_instants_outside_the_years_are_errors(us):
    """Outside the years 1 to 9999 there is an error that says so, not an OverflowError."""
    with pytest.raises(TimeError, match="1 to 9999"):
        from_us(us)
    with pytest.raises(TimeError, match="1 to 9999"):
        Window.from_us(min(us, 0), max(us, 1))


def test_an_aware_datetime_that_leaves_the_years_in_utc_is_an_error():
    """The last hour of year 9999 west of Greenwich is year 10000 in UTC."""
    with pytest.raises(TimeError, match="1 to 9999"):
        to_us(datetime.max.replace(tzinfo=timezone(timedelta(hours=-8))))


def test_window_from_datetimes_and_from_microseconds_agree():
    """Both ways of making a window give equal windows with equal hashes."""
    start, end = datetime(2013, 3, 10, tzinfo=NEW_YORK), datetime(2013, 3, 10, 3, tzinfo=NEW_YORK)
    window = Window(start, end)
    same = Window.from_us(1_362_891_600_000_000, 1_362_898_800_000_000)
    assert window == same
    assert hash(window) == hash(same)
    assert len({window, same}) == 1
    assert (window.start, window.end) == (start, end)


def test_window_prints_as_an_iso_interval():
    """Text is an ISO 8601 interval in UTC, with microseconds only where there are any."""
    two_hours = Window.from_us(1_362_891_600_000_000, 1_362_898_800_000_000)
    assert str(two_hours) == "2013-03-10T05:00:00Z/2013-03-10T07:00:00Z"
    assert str(Window.from_us(0, 1)) == "1970-01-01T00:00:00Z/1970-01-01T00:00:00.000001Z"
    assert repr(Window.from_us(0, 1_000_000)) == "<Window 1970-01-01T00:00:00Z/1970-01-01T00:00:01Z>"
    assert iso(MIN_US) == "0001-01-01T00:00:00Z"


def test_windows_sort_by_start_then_end():
    """Order is that of the integers."""
    windows = [Window.from_us(2, 3), Window.from_us(0, 5), Window.from_us(0, 2)]
    assert sorted(windows) == [Window.from_us(0, 2), Window.from_us(0, 5), Window.from_us(2, 3)]


def test_windows_in_a_repeated_hour_stay_apart():
    """The two passes of one local hour are two different windows."""
    one, two, three = (to_us(datetime(2013, 11, 3, 5, tzinfo=UTC)) + hour * 3_600_000_000 for hour in range(3))
    assert Window.from_us(one, two) != Window.from_us(two, three)


@pytest.mark.parametrize(("start", "end"), [(1, 1), (2, 1)])
def test_window_refuses_an_end_that_is_not_after_the_start(start, end):
    """An empty or reversed window is refused, with both bounds in the message."""
    with pytest.raises(TimeError, match=r"found start 1970-01-01T00:00:00\.00000\dZ and end 1970-01-01T00:00:00"):
        Window.from_us(start, end)
    with pytest.raises(TimeError):
        Window(from_us(start), from_us(end))


def test_window_refuses_a_naive_datetime():
    """A naive bound is refused."""
    with pytest.raises(TimeError, match="naive"):
        Window(datetime(2013, 3, 10), datetime(2013, 3, 11, tzinfo=UTC))


def test_window_is_frozen_slotted_and_pickles():
    """A window cannot change, carries no dict, and travels between processes."""
    window = Window.from_us(0, 1)
    with pytest.raises(AttributeError):
        window.start_us = 5
    assert not hasattr(window, "__dict__")
    assert pickle.loads(pickle.dumps(window)) == window
