"""Time policies by example: the zones with unusual changes by name, laziness, stability, and every refusal."""

import math
import pickle
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import attrs
import cattrs
import pendulum
import pytest

from pipeline_core.errors import TimeError
from pipeline_core.timepolicy import ElapsedPolicy, TimePolicy, WallClockPolicy, Windows
from pipeline_core.window import MAX_US, MIN_US, Window, to_us

HOUR = 3_600_000_000
LOS_ANGELES = "America/Los_Angeles"


def local(zone, *parts, fold=0):
    """A local time of a zone."""
    return datetime(*parts, tzinfo=ZoneInfo(zone), fold=fold)


def cut(zone, granularity, day, days=1):
    """The windows that start on the local day, as (local start, elapsed hours)."""
    start = local(zone, *day)
    end = local(zone, *(datetime(*day) + timedelta(days=days)).timetuple()[:3])
    windows = WallClockPolicy(granularity=granularity, timezone=zone).windows(start, end)
    return [(f"{w.start.in_timezone(zone):%d %H:%M}", (w.end_us - w.start_us) / HOUR) for w in windows]


def test_two_hours_on_the_day_the_clock_jumps():
    """00 to 03 takes two hours, 03 to 04 one, and then the even hours go on."""
    assert cut(LOS_ANGELES, "2h", (2025, 3, 9))[:3] == [("09 00:00", 2), ("09 03:00", 1), ("09 04:00", 2)]


def test_two_hours_on_the_day_the_clock_is_set_back():
    """00 to 02 takes three hours, because 02:00 is shown once."""
    assert cut(LOS_ANGELES, "2h", (2025, 11, 2))[:3] == [("02 00:00", 3), ("02 02:00", 2), ("02 04:00", 2)]


def test_single_hours_number_23_and_25():
    """Both passes of the repeated hour are windows; the skipped one is none."""
    assert len(cut(LOS_ANGELES, "1h", (2025, 3, 9))) == 23
    assert len(cut(LOS_ANGELES, "1h", (2025, 11, 2))) == 25


@pytest.mark.parametrize(
    ("zone", "granularity", "day", "count", "unusual"),
    [
        ("Australia/Lord_Howe", "1h", (2025, 4, 6), 24, [("06 01:00", 1.5)]),
        ("Australia/Lord_Howe", "30min", (2025, 4, 6), 49, []),
        ("Australia/Lord_Howe", "1h", (2025, 10, 5), 24, [("05 02:30", 0.5)]),
        ("Australia/Lord_Howe", "1d", (2025, 4, 6), 1, [("06 00:00", 24.5)]),
        ("Antarctica/Troll", "1h", (2025, 3, 30), 22, []),
        ("Antarctica/Troll", "2h", (2025, 3, 30), 12, [("30 00:00", 1), ("30 03:00", 1)]),
        ("Antarctica/Troll", "2h", (2025, 10, 26), 13, []),
        ("Antarctica/Troll", "3h", (2025, 10, 26), 8, [("26 00:00", 5)]),
        ("America/Havana", "1d", (2025, 11, 2), 1, [("02 00:00", 25)]),
        ("America/Havana", "1h", (2025, 11, 2), 25, []),
        ("America/Havana", "12h", (2025, 11, 2), 3, [("02 00:00", 1)]),
        ("America/Havana", "1d", (2025, 3, 9), 1, [("09 01:00", 23)]),
        ("Asia/Beirut", "1d", (2025, 3, 30), 1, [("30 01:00", 23)]),
        ("Asia/Beirut", "1d", (2025, 10, 25), 1, [("25 00:00", 25)]),
        ("America/Sao_Paulo", "1d", (2018, 2, 17), 1, [("17 00:00", 25)]),
        ("America/Sao_Paulo", "1d", (2018, 11, 4), 1, [("04 01:00", 23)]),
        ("America/St_Johns", "1d", (2006, 10, 28), 1, []),
        ("America/St_Johns", "1d", (2006, 10, 29), 1, [("29 00:00", 25)]),
        ("America/St_Johns", "1d", (2006, 4, 2), 1, [("02 00:00", 23)]),
        ("Asia/Kathmandu", "1h", (1985, 12, 31), 24, []),
        ("Asia/Kathmandu", "1h", (1986, 1, 1), 24, [("01 00:15", 0.75)]),
        ("Asia/Kathmandu", "1d", (2025, 1, 1), 1, []),
    ],
)
def test_unusual_changes(zone, granularity, day, count, unusual):
    """Half-hour and two-hour changes, and midnights that are repeated, skipped or crossed backwards."""
    found = cut(zone, granularity, day)
    usual = {"30min": 0.5, "1h": 1, "2h": 2, "3h": 3, "12h": 12, "1d": 24}[granularity]
    assert len(found) == count
    assert [window for window in found if window[1] != usual] == unusual


@pytest.mark.parametrize(("zone", "before"), [("Pacific/Apia", (2011, 12, 29)), ("Pacific/Kwajalein", (1993, 8, 20))])
def test_a_skipped_day_has_no_window(zone, before):
    """West of the date line became east: the next window is that of the day after the skipped one."""
    day = f"{before[2]} 00:00"
    following = f"{before[2] + 2} 00:00"
    assert cut(zone, "1d", before, days=3) == [(day, 24), (following, 24)]
    assert len(cut(zone, "6h", before, days=3)) == 8


def test_seconds_in_the_offset_count():
    """Monrovia's hours began at 44:30 past those of UTC, and the jump of 1972 is a boundary of its own."""
    policy = WallClockPolicy(granularity="1h", timezone="Africa/Monrovia")
    edges = policy.windows(datetime(1972, 1, 6, 23, tzinfo=UTC), datetime(1972, 1, 7, 2, tzinfo=UTC)).edges()
    expected = [(6, 23, 44, 30), (7, 0, 44, 30), (7, 1), (7, 2)]
    assert edges == [to_us(datetime(1972, 1, *at, tzinfo=UTC)) for at in expected]


def test_weeks_begin_on_monday_and_months_on_the_first():
    """From a day upward periods are those of the calendar."""
    assert [start for start, _ in cut(LOS_ANGELES, "1w", (2025, 3, 1), 20)] == ["03 00:00", "10 00:00", "17 00:00"]
    year = WallClockPolicy(granularity="1mo", timezone=LOS_ANGELES).windows(
        local(LOS_ANGELES, 2024, 1, 1), local(LOS_ANGELES, 2025, 1, 1)
    )
    assert [window.start.in_timezone(LOS_ANGELES).month for window in year] == list(range(1, 13))
    counts = {"1q": 4, "3mo": 4, "2q": 2, "6mo": 2, "4mo": 3, "1y": 1, "12mo": 1, "4q": 1}
    for granularity, count in counts.items():
        policy = WallClockPolicy(granularity=granularity, timezone=LOS_ANGELES)
        windows = policy.windows(year[0].start, year[-1].end)
        assert len(windows) == count
        assert windows[0].start == year[0].start
        assert windows[-1].end == year[-1].end


def test_24_hours_are_the_local_day():
    """24h and 1440min begin at local midnight, counted once, like 1d."""
    for granularity in ("24h", "1440min", "1 day"):
        assert cut("America/Havana", granularity, (2025, 11, 2)) == [("02 00:00", 25)]


@pytest.mark.parametrize("text", ["2h", "2H", "2 h", " 2h ", "2hr", "2hours", "120min", "120 minutes", "7200s"])
def test_spellings_of_a_granularity(text):
    """Common spellings of the same span mean the same."""
    assert len(cut("UTC", text, (2025, 1, 1))) == 12


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("7h", "does not divide the day"),
        ("36h", "does not divide the day"),
        ("50min", "does not divide the day"),
        ("0h", "more than nothing"),
        ("15m", "write 15min or 15mo"),
        ("1M", "write 1min or 1mo"),
        ("2d", "expected 1d"),
        ("2w", "expected 1w"),
        ("2y", "expected 1y"),
        ("5mo", "does not divide the year"),
        ("3q", "does not divide the year"),
        ("h", "a whole number and a unit"),
        ("1.5h", "a whole number and a unit"),
        ("-1h", "a whole number and a unit"),
        ("1h30min", "a whole number and a unit"),
        ("", "a whole number and a unit"),
        ("٢h", "a whole number and a unit"),
        (2, "a whole number and a unit"),
        (None, "a whole number and a unit"),
        ("1fortnight", "'fortnight' is unknown"),
    ],
)
def test_a_granularity_that_cannot_be_cut_is_refused(text, says):
    """The message says what was found and what would do."""
    with pytest.raises(TimeError, match=says) as caught:
        WallClockPolicy(granularity=text, timezone=LOS_ANGELES)
    assert str(caught.value).startswith(f"WallClockPolicy.granularity: found {text!r}")


def test_a_bad_zone_or_delay_is_refused_when_the_policy_is_made():
    """Each message names the class and the field."""
    with pytest.raises(TimeError, match=r"WallClockPolicy\.timezone: found 'America/Los_Angels'.*America/Los_Angeles"):
        WallClockPolicy(granularity="2h", timezone="America/Los_Angels")
    with pytest.raises(TimeError, match=r"ElapsedPolicy\.x_time_back: found 'soon'"):
        ElapsedPolicy(granularity="2h", x_time_back="soon")


@pytest.mark.parametrize("policy", [WallClockPolicy(granularity="2h"), ElapsedPolicy(granularity="2h")])
def test_naive_and_reversed_times_are_refused(policy):
    """No policy guesses a zone, or swaps bounds."""
    naive, aware = datetime(2025, 1, 2), datetime(2025, 1, 1, tzinfo=UTC)
    calls = [(policy.window_at, [naive]), (policy.windows, [aware, naive]), (policy.stable_until, [naive])]
    for call, arguments in calls:
        with pytest.raises(TimeError, match="naive"):
            call(*arguments)
    with pytest.raises(TimeError, match="start first"):
        policy.windows(aware + timedelta(days=1), aware)


@pytest.mark.parametrize(
    "policy",
    [
        WallClockPolicy(granularity="1d", timezone=LOS_ANGELES),
        WallClockPolicy(granularity="2h"),
        WallClockPolicy(granularity="1w", timezone="Asia/Tokyo"),
        WallClockPolicy(granularity="1y", timezone="Asia/Tokyo"),
        WallClockPolicy(granularity="1mo", timezone=LOS_ANGELES),
        ElapsedPolicy(granularity="5h"),
    ],
)
def test_the_ends_of_time_are_errors(policy):
    """Where a bound would leave the years 1 to 9999 there is an error, never a wrong window."""
    for us in (MAX_US, MAX_US + 1, MIN_US - 1):
        with pytest.raises(TimeError):
            policy.window_at_us(us)
    with pytest.raises(TimeError):
        policy.windows_us(MAX_US - 1000 * 24 * HOUR, MAX_US).edges()
    for us in (MIN_US + 800 * 24 * HOUR, MAX_US - 800 * 24 * HOUR):
        window = policy.window_at_us(us)
        assert window.start_us <= us < window.end_us
        assert policy.windows_us(window.start_us, window.end_us).edges() == [window.start_us, window.end_us]


def test_elapsed_windows_are_equal_whatever_the_clock_does():
    """Five hours each, from the anchor, across a change of the clock."""
    policy = ElapsedPolicy(granularity="5h", anchor="2025-03-08T20:00:00-08:00", timezone=LOS_ANGELES)
    edges = policy.windows(local(LOS_ANGELES, 2025, 3, 8, 20), local(LOS_ANGELES, 2025, 3, 10)).edges()
    assert edges[0] == to_us(local(LOS_ANGELES, 2025, 3, 8, 20))
    assert {after - before for before, after in pairwise(edges)} == {5 * HOUR}
    assert policy.window_at_us(edges[0] - 1) == Window.from_us(edges[0] - 5 * HOUR, edges[0])


@pytest.mark.parametrize(
    ("anchor", "expected"),
    [
        ("2025-03-09T00:00:00Z", datetime(2025, 3, 9, tzinfo=UTC)),
        ("2025-03-09", datetime(2025, 3, 9, 8, tzinfo=UTC)),
        (datetime(2025, 3, 9, tzinfo=UTC), datetime(2025, 3, 9, tzinfo=UTC)),
        (pendulum.datetime(2025, 3, 9, tz=LOS_ANGELES), datetime(2025, 3, 9, 8, tzinfo=UTC)),
    ],
)
def test_spellings_of_an_anchor(anchor, expected):
    """Text with an offset, local text, and aware datetimes."""
    policy = ElapsedPolicy(granularity="1d", anchor=anchor, timezone=LOS_ANGELES)
    assert policy.window_at(expected).start == expected


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"granularity": "1mo"}, "length varies"),
        ({"granularity": "1y"}, "length varies"),
        ({"granularity": "0s"}, "more than nothing"),
        ({"granularity": "5h", "anchor": "yesterday"}, "anchor: found 'yesterday'"),
        ({"granularity": "5h", "anchor": datetime(2025, 1, 1)}, "naive"),
    ],
)
def test_elapsed_settings_that_cannot_be_used(settings, says):
    """Units of varying length and anchors that are no instant are refused."""
    with pytest.raises(TimeError, match=says):
        ElapsedPolicy(**settings)


def test_settings_are_structured_from_a_mapping():
    """A section of a configuration file becomes the policy, dates that the file's format knows included."""
    mapping = {"granularity": "2h", "timezone": LOS_ANGELES, "x_time_back": "1d"}
    assert cattrs.structure(mapping, WallClockPolicy) == WallClockPolicy(**mapping)
    anchored = {"granularity": "5h", "anchor": datetime(2025, 3, 9, tzinfo=UTC)}
    assert cattrs.structure(anchored, ElapsedPolicy).window_at(datetime(2025, 3, 9, tzinfo=UTC)).start.day == 9


@attrs.frozen
class Weekdays(TimePolicy):
    """Days of UTC, but Saturday and Sunday in one window."""

    def window_at(self, instant: datetime) -> Window:
        """The day or the weekend that holds the instant."""
        day = pendulum.instance(instant).in_timezone("UTC").start_of("day")
        if day.isoweekday() >= 6:
            day = day.subtract(days=day.isoweekday() - 6)
            return Window(day, day.add(days=2))
        return Window(day, day.add(days=1))


def test_a_policy_need_only_say_window_at():
    """Everything else has a default: windows, their edges, the integer twins, stability."""
    policy = Weekdays(x_time_back="1d")
    windows = policy.windows(datetime(2025, 3, 2, tzinfo=UTC), datetime(2025, 3, 16, 5, tzinfo=UTC))
    assert [window.start.day for window in windows] == [3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 15]
    assert windows.edges()[-1] == to_us(datetime(2025, 3, 17, tzinfo=UTC))
    assert policy.window_at_us(to_us(datetime(2025, 3, 9, 5, tzinfo=UTC))) == windows[5]
    assert policy.stable_until(datetime(2025, 3, 2, tzinfo=UTC)) == datetime(2025, 3, 1, tzinfo=UTC)
    assert policy.windows_us(0, 0).edges() == []
    with pytest.raises(TimeError, match="start first"):
        policy.windows_us(1, 0)


@pytest.mark.parametrize(("begins", "lasts"), [(1, 3), (-3, 2), (0, 7)])
def test_a_policy_that_breaks_the_promise_is_told_so(begins, lasts):
    """Windows that miss their instant or overlap are an error that names the class."""

    @attrs.frozen
    class Broken(TimePolicy):
        """A policy whose windows do not tile."""

        def window_at(self, instant):
            at = to_us(instant) // 5 * 5
            return Window.from_us(at + begins, at + begins + lasts)

    with pytest.raises(TimeError, match=r"Broken.window_at: found .*no hole"):
        Broken().windows_us(100, 200).edges()
    with pytest.raises(TimeError, match=r"Broken.window_at"):
        Window.from_us(0, 1) in Broken().windows_us(100, 200)  # noqa: B015


def test_the_base_class_cannot_be_made():
    """A policy without window_at is no policy."""
    with pytest.raises(TypeError):
        TimePolicy()


def test_windows_are_a_lazy_sequence():
    """Length, index, slices of slices, steps, reversed and bisection, all without a list."""
    policy = WallClockPolicy(granularity="15min", timezone=LOS_ANGELES)
    windows = policy.windows(local(LOS_ANGELES, 2020, 1, 1), local(LOS_ANGELES, 2021, 1, 1))
    assert isinstance(windows, Sequence)
    assert len(windows) == 366 * 96
    assert windows[-1].end == local(LOS_ANGELES, 2021, 1, 1)
    assert isinstance(windows[10:20][2:5], Windows)
    assert list(windows[10:20][2:5]) == [windows[12], windows[13], windows[14]]
    assert list(windows[::-10_000]) == [windows[-1], windows[-10_001], windows[-20_001], windows[-30_001]]
    assert next(reversed(windows)) == windows[-1]
    assert windows.index(windows[20_000]) == 20_000
    assert windows[5] not in windows[6:]
    assert windows[10:20].index(windows[12]) == 2
    assert Window.from_us(windows[3].start_us, windows[4].end_us) not in windows
    assert "a window" not in windows
    assert windows[3:5].edges() == [windows[3].start_us, windows[4].start_us, windows[4].end_us]
    assert windows[5:5].edges() == []
    assert repr(windows[5:5]) == "<0 windows>"
    assert repr(windows[:2]) == f"<2 windows, {windows[0]} to {windows[1]}>"


def test_windows_refuse_what_they_lack():
    """An index out of range, a window from elsewhere, and edges of windows that are no neighbours."""
    windows = ElapsedPolicy(granularity="1h").windows_us(0, 10 * HOUR)
    for index in (10, -11):
        with pytest.raises(IndexError):
            windows[index]
    for start, stop in ((6, None), (0, 5)):
        with pytest.raises(ValueError, match="not among"):
            windows.index(windows[5], start, stop)
    with pytest.raises(TimeError, match="slice with a step"):
        windows[::2].edges()


def test_whole_windows_that_start_in_the_span():
    """A window that began earlier is left out; one that reaches past the end is in; an empty span has none."""
    policy = WallClockPolicy(granularity="1d")
    noon = datetime(2025, 1, 1, 12, tzinfo=UTC)
    assert [window.start.day for window in policy.windows(noon, noon + timedelta(days=2))] == [2, 3]
    assert len(policy.windows(noon, noon)) == 0
    assert policy.windows(noon, noon + timedelta(hours=2)).edges() == []


@pytest.mark.parametrize(
    ("x_time_back", "now", "expected"),
    [
        ("0s", (2025, 3, 9, 12), (2025, 3, 9, 12)),
        ("0d", (2025, 11, 2, 1, 30), (2025, 11, 2, 1, 30)),
        ("90s", (2025, 3, 9, 12), (2025, 3, 9, 11, 58, 30)),
        ("24h", (2025, 3, 9, 12), (2025, 3, 8, 11)),
        ("1d", (2025, 3, 9, 12), (2025, 3, 8, 12)),
        ("1d", (2025, 3, 10, 2, 30), (2025, 3, 9, 3)),
        ("1d", (2025, 11, 3, 1, 30), (2025, 11, 2, 1, 30)),
        ("1w", (2025, 3, 15, 12), (2025, 3, 8, 12)),
        ("1mo", (2025, 3, 15, 12), (2025, 2, 15, 12)),
        ("1mo", (2025, 3, 30, 12), (2025, 3, 1, 0)),
        ("1q", (2025, 3, 9, 12), (2024, 12, 9, 12)),
        ("2y", (2025, 3, 9, 12), (2023, 3, 9, 12)),
    ],
)
def test_stable_until(x_time_back, now, expected):
    """Exact units are elapsed time; days and more keep the local time of day, and skipped times stand for the jump."""
    policy = WallClockPolicy(granularity="2h", timezone=LOS_ANGELES, x_time_back=x_time_back)
    stable = policy.stable_until(local(LOS_ANGELES, *now))
    assert type(stable) is pendulum.DateTime
    assert to_us(stable) == to_us(local(LOS_ANGELES, *expected))
    assert policy.stable_until_us(to_us(local(LOS_ANGELES, *now))) == to_us(stable)


def test_the_limit_waits_through_the_second_pass():
    """While the clock repeats an hour the limit stays where the first pass left it."""
    policy = WallClockPolicy(granularity="2h", timezone=LOS_ANGELES, x_time_back="1d")
    limit = to_us(local(LOS_ANGELES, 2025, 11, 1, 2))
    for minute in (0, 30, 59):
        assert policy.stable_until_us(to_us(local(LOS_ANGELES, 2025, 11, 2, 1, minute, fold=1))) == limit
    assert policy.stable_until_us(to_us(local(LOS_ANGELES, 2025, 11, 2, 1, 59))) == limit - 60_000_000


def test_a_delay_that_reaches_before_all_time_is_an_error():
    """A delay of thousands of years leaves the calendar."""
    for x_time_back in ("9000y", "9000000d", "99999999999999h"):
        with pytest.raises(TimeError, match="1 to 9999"):
            ElapsedPolicy(granularity="1h", x_time_back=x_time_back).stable_until(datetime(2025, 1, 1, tzinfo=UTC))


def test_policies_compare_hash_and_travel():
    """Equal settings are equal policies, in another process too."""
    policy = WallClockPolicy(granularity="2h", timezone=LOS_ANGELES)
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert hash(policy) == hash(WallClockPolicy(granularity="2h", timezone=LOS_ANGELES))
    with pytest.raises(AttributeError):
        policy.granularity = "1h"


def test_counting_does_not_walk():
    """Ten years count at about the price of one: the work is per change of the clock, not per window."""
    policy = WallClockPolicy(granularity="15min", timezone=LOS_ANGELES)
    start = local(LOS_ANGELES, 2015, 1, 1)
    asked = []

    class Counted(Windows):
        """Windows that note which bounds were read."""

        def _bound(self, number):
            asked.append(number)
            return super()._bound(number)

    runs = policy.windows(start, local(LOS_ANGELES, 2025, 1, 1))._cut()[0]
    windows = Counted(lambda: runs)
    assert len(windows) == 350_688
    assert windows[123_456] in windows
    assert len(asked) <= 4 + math.ceil(math.log2(len(windows))) + 2
