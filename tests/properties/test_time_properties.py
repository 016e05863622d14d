"""What holds of every policy in every zone: tiling, agreement of all ways to ask, limits that never go back."""

import zoneinfo
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import attrs
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline_core.timepolicy import ElapsedPolicy, TimePolicy, WallClockPolicy
from pipeline_core.window import Window, from_us, to_us
from pipeline_core.zones import clock, instant_of_naive, naive_bound, repeated_hours, segments, zone

ZONES = sorted(zoneinfo.available_timezones())
SHORT = ["15min", "30min", "1h", "2h", "3h", "6h", "12h"]
calm = settings(deadline=None)  # the first look at a far year spells out its zone's rule up to year 9999
LONG = ["1d", "1w", "1mo", "1q", "1y"]
DAY_US = 86_400_000_000
SPAN_US = {"min": 60_000_000, "h": 3_600_000_000, "d": DAY_US, "w": 7 * DAY_US}
SPAN_US |= {"mo": 31 * DAY_US, "q": 92 * DAY_US, "y": 366 * DAY_US}
EARLIEST, LATEST = to_us(datetime(1850, 1, 1, tzinfo=UTC)), to_us(datetime(2150, 1, 1, tzinfo=UTC))


def shown(us: int, known: zoneinfo.ZoneInfo) -> datetime:
    """What the local clock shows at that instant, as a naive datetime; both passes of a fold look alike."""
    local = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)).astimezone(known)
    return local.replace(tzinfo=None, fold=0)


@st.composite
def moments(draw, name):
    """An instant in microseconds, most often near a change of the zone's clock, where mistakes live."""
    anywhere = draw(st.integers(EARLIEST, LATEST))
    if draw(st.integers(0, 3)) == 0:
        return anywhere
    changes = [at for at in clock(zone(name), LATEST).starts if EARLIEST < at < LATEST] or [anywhere]
    near = draw(st.sampled_from(changes))
    step = draw(st.sampled_from([0, 1, 1_000_000, 60_000_000, 900_000_000, 3_600_000_000, DAY_US]))
    return near + step * draw(st.integers(-3, 3))


@st.composite
def cuts(draw):
    """A policy of any zone, and a span of up to some forty windows."""
    name = draw(st.sampled_from(ZONES))
    granularity = draw(st.sampled_from(SHORT + LONG))
    start = draw(moments(name))
    number, unit = int("".join(filter(str.isdigit, granularity))), "".join(filter(str.isalpha, granularity))
    length = number * SPAN_US[unit]
    end = start + draw(st.one_of(st.integers(0, 2 * length), st.integers(0, 40 * length)))
    if unit in ("min", "h", "d", "w") and draw(st.integers(0, 4)) == 0:
        anchor = from_us(draw(st.integers(EARLIEST, LATEST)))
        return ElapsedPolicy(granularity=granularity, timezone=name, anchor=anchor), start, end
    return WallClockPolicy(granularity=granularity, timezone=name), start, end


@attrs.frozen
class Asked(TimePolicy):
    """A third party's policy: it says `window_at` and nothing else."""

    inner: TimePolicy

    def window_at(self, instant: datetime) -> Window:
        """What the inner policy says."""
        return self.inner.window_at(instant)


@given(cuts())
@calm
def test_windows_tile_time(cut):
    """No gap, no overlap, in order: each window ends where the next begins, and together they reach over the span."""
    policy, start, end = cut
    windows = list(policy.windows_us(start, end))
    assert all(before.end_us == after.start_us for before, after in pairwise(windows))
    assert all(start <= window.start_us < end for window in windows)
    assert windows == sorted(windows)
    if windows:
        assert windows[-1].end_us >= end
        assert windows[0].start_us == start or policy.window_at_us(start).end_us == windows[0].start_us
    elif start < end:
        holds = policy.window_at_us(start)
        assert holds.start_us < start < end <= holds.end_us


@given(cuts())
@calm
def test_window_at_agrees_with_windows(cut):
    """Each window is what its first, a middle and its last microsecond are given; asking twice changes nothing."""
    policy, start, end = cut
    for window in policy.windows_us(start, end):
        for us in (window.start_us, (window.start_us + window.end_us) // 2, window.end_us - 1):
            assert policy.window_at_us(us) == window
            assert policy.window_at(from_us(us)) == window


@given(cuts())
@calm
def test_the_window_of_any_instant_holds_it(cut):
    """Start included, end not; and the instants just outside have the neighbouring windows."""
    policy, us, _ = cut
    window = policy.window_at_us(us)
    assert window.start_us <= us < window.end_us
    assert policy.window_at_us(window.start_us - 1).end_us == window.start_us
    assert policy.window_at_us(window.end_us).start_us == window.end_us


@given(cuts(), st.data())
@calm
def test_lazy_windows_agree_with_their_list(cut, data):
    """Length, index, slice, reversed, membership and edges are those of the list that was never made."""
    policy, start, end = cut
    windows = policy.windows(from_us(start), from_us(end))
    whole = list(windows)
    assert len(windows) == len(whole)
    assert list(reversed(windows)) == whole[::-1]
    assert [windows[index] for index in range(-len(whole), len(whole))] == whole + whole
    assert windows.edges() == [window.start_us for window in whole] + [window.end_us for window in whole[-1:]]
    part = data.draw(st.slices(len(whole)))
    assert list(windows[part]) == whole[part]
    assert len(windows[part]) == len(whole[part])
    again = data.draw(st.slices(len(whole[part])))
    assert list(windows[part][again]) == whole[part][again]
    assert [windows.index(window) for window in whole] == list(range(len(whole)))
    assert [window in windows[part] for window in whole] == [window in whole[part] for window in whole]


@given(cuts(), st.integers(0, 100))
@calm
def test_a_span_may_be_cut_in_two(cut, percent):
    """Windows of two halves are those of the whole, wherever it is halved: planning in pieces loses nothing."""
    policy, start, end = cut
    middle = start + (end - start) * percent // 100
    halves = [*policy.windows_us(start, middle), *policy.windows_us(middle, end)]
    assert halves == list(policy.windows_us(start, end))


@given(cuts())
@settings(max_examples=50, deadline=None)
def test_the_defaults_agree_with_the_core(cut):
    """A policy that only says `window_at` has the same windows as the one it asks."""
    policy, start, end = cut
    assert list(Asked(inner=policy).windows_us(start, end)) == list(policy.windows_us(start, end))


@pytest.mark.parametrize("name", ZONES)
def test_every_zone_tiles_its_changes(name):
    """In every zone, over all of its changes: short windows tile, and days agree with `window_at` on both sides."""
    policy = WallClockPolicy(granularity="1h", timezone=name)
    days = WallClockPolicy(granularity="1d", timezone=name)
    changes = clock(zone(name), 0).starts[1:]
    for at in changes[:: max(len(changes) // 12, 1)]:
        edges = policy.windows_us(at - DAY_US, at + DAY_US).edges()
        assert all(before < after for before, after in pairwise(edges))
        assert edges == [policy.window_at_us(us).start_us for us in edges]
        for us in (at - 1, at):
            window = days.window_at_us(us)
            assert window.start_us <= us < window.end_us
            assert list(days.windows_us(window.start_us, window.end_us)) == [window]


@given(st.sampled_from(ZONES).flatmap(lambda name: st.tuples(st.just(name), moments(name))), st.integers(0, 4 * 366))
@calm
def test_segments_have_the_standard_librarys_offsets(where, days):
    """Segments tile their span, neighbours differ, and each offset is what zoneinfo says at both ends."""
    name, start = where
    known = zone(name)
    end = start + days * DAY_US
    parts = segments(known, start, end)
    assert [part[0] for part in parts] + [end] == [start] + [part[1] for part in parts]
    assert all(before[2] != after[2] for before, after in pairwise(parts))
    for part_start, part_end, offset in parts:
        for us in (part_start, part_end - 1):
            assert from_us(us).astimezone(known).utcoffset() == timedelta(microseconds=offset)


@st.composite
def pairs(draw):
    """A zone and two instants of it, in order and often close together."""
    name = draw(st.sampled_from(ZONES))
    first = draw(moments(name))
    spans = [st.integers(0, longest) for longest in (7_200_000_000, 3 * DAY_US, 800 * DAY_US)]
    return name, first, first + draw(st.one_of(spans))


SET_BACK = to_us(datetime(2025, 11, 2, 9, tzinfo=UTC))


@given(pairs(), st.sampled_from(["0s", "90s", "36h", "0d", "1d", "2d", "30d", "1w", "1mo", "2mo", "1q", "1y"]))
@example(("America/Los_Angeles", SET_BACK - 1, SET_BACK), "1d")
@calm
def test_the_stable_limit_never_moves_back(pair, x_time_back):
    """However the clock is set, a later now has no earlier limit; and the limit is never in the future."""
    name, first, second = pair
    policy = WallClockPolicy(granularity="2h", timezone=name, x_time_back=x_time_back)
    limits = [policy.stable_until_us(us) for us in (first, second)]
    assert limits[0] <= limits[1]
    assert limits[0] <= first
    assert policy.stable_until(from_us(first)) == from_us(limits[0])


@given(pairs(), st.integers(1, 400))
@calm
def test_calendar_days_keep_the_local_time_of_day(pair, days):
    """Where neither end is near a change of the clock, days back are the same local time on that earlier date."""
    name, now, _ = pair
    known = zone(name)
    then = shown(now, known) - timedelta(days=days)
    around = [(now - 2 * DAY_US, now + 1), (now - (days + 3) * DAY_US, now - (days - 3) * DAY_US)]
    if all(len(segments(known, start, end)) == 1 for start, end in around):
        policy = WallClockPolicy(granularity="2h", timezone=name, x_time_back=f"{days}d")
        assert policy.stable_until(from_us(now)) == then.replace(tzinfo=known)


@st.composite
def stored(draw):
    """A zone, a span, and a local value, all near one another."""
    name, start, end = draw(pairs())
    step = draw(st.sampled_from([1, 900_000_000, DAY_US]))
    about = draw(st.sampled_from([start, end])) + draw(st.integers(-8, 8)) * step
    local = shown(about, zone(name)) + draw(st.sampled_from([-1, 0, 0, 1])) * timedelta(microseconds=1)
    return name, start, end, local


@given(stored())
@calm
def test_naive_bounds_select_exactly_the_span(case):
    """A stored local value is selected if, and only if, the instant it stands for is in the window."""
    name, start, end, value = case
    known = zone(name)
    selected = naive_bound(start, known) <= value < naive_bound(end, known)
    assert selected == (start <= instant_of_naive(value, known) < end)


@given(stored(), st.integers(0, 2 * DAY_US))
@calm
def test_later_values_stand_for_no_earlier_instants(case, more):
    """The naive mapping is monotone, and so is its bound."""
    name, start, end, value = case
    known = zone(name)
    assert instant_of_naive(value, known) <= instant_of_naive(value + timedelta(microseconds=more), known)
    assert naive_bound(start, known) <= naive_bound(end, known)


@given(stored())
@calm
def test_a_value_comes_back_from_its_instant(case):
    """Outside folds the local value of an instant stands for that instant; inside one, for the first pass."""
    name, us, _, value = case
    known = zone(name)
    back = instant_of_naive(shown(us, known), known)
    folds = [fold for fold in repeated_hours(known, us, us + 1) if fold[1] <= us < fold[2]]
    if folds:
        assert folds[0][0] <= back < us
    else:
        assert back == us
    assert naive_bound(instant_of_naive(value, known), known) <= value
