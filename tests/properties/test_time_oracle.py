"""The wall-clock cut and the naive mapping, held against a clock that is read minute by minute.

The oracle knows nothing of segments, offsets or bisection. It reads the local clock through the standard library,
minute after minute (half a minute where an offset has seconds), and applies the rule of the time policy word by word.
By default it visits all changes of the zones with unusual ones and a few of every eighth zone; with the environment
variable PIPELINE_LONG=1 every change of every zone from 1970 to 2037, found by reading each zone's clock every hour.
"""

import os
import zoneinfo
from bisect import bisect_left
from collections import defaultdict
from datetime import UTC, datetime, timedelta

import pytest

from pipeline_core.timepolicy import WallClockPolicy
from pipeline_core.zones import instant_of_naive, naive_bound, zone

LONG = os.environ.get("PIPELINE_LONG") == "1"
MINUTES = {"15min": 15, "30min": 30, "1h": 60, "2h": 120, "3h": 180, "6h": 360, "12h": 720}
NAMED = [
    "Africa/Casablanca",
    "Africa/Monrovia",
    "America/Havana",
    "America/Los_Angeles",
    "America/Sao_Paulo",
    "America/St_Johns",
    "Antarctica/Casey",
    "Antarctica/Troll",
    "Asia/Beirut",
    "Asia/Kathmandu",
    "Asia/Pyongyang",
    "Australia/Lord_Howe",
    "Europe/Dublin",
    "Pacific/Apia",
    "Pacific/Kwajalein",
]
ALL = sorted(zoneinfo.available_timezones())
FROM, TO = (int(datetime(year, 1, 1, tzinfo=UTC).timestamp()) for year in (1970, 2038))


def changes(known, every):
    """Spans of `every` seconds in which the clock was changed, as (start, end) in seconds UTC."""
    found = []
    before = datetime.fromtimestamp(FROM, known).utcoffset()
    for at in range(FROM + every, TO, every):
        offset = datetime.fromtimestamp(at, known).utcoffset()
        if offset != before:
            found.append((at - every, at))
            before = offset
    return found


def read(known, start, end):
    """What the clock shows, read by read: [(seconds UTC, naive local time)], and the time between two reads."""
    offsets = [datetime.fromtimestamp(at, known).utcoffset() for at in (start, end)]
    step = 30 if any(offset % timedelta(minutes=1) for offset in offsets) else 60
    readings = [(at, datetime.fromtimestamp(at, known)) for at in range(start, end, step)]
    return [(at, shown.replace(tzinfo=None, fold=0)) for at, shown in readings], step


def boundaries(readings, step):
    """The boundaries after the first reading, in seconds UTC, of every granularity."""
    tick = timedelta(seconds=step)
    found = defaultdict(list)
    _, before = readings[0]
    days, weeks, months = {before.date()}, {before.isocalendar()[:2]}, {(before.year, before.month)}
    for at, shown in readings[1:]:
        passed = [shown]
        skipped = before + tick
        while skipped < shown:
            passed.append(skipped)
            skipped += tick
        if len(passed) > 1 or shown.minute % 15 == 0:
            for granularity, minutes in MINUTES.items():
                # "every instant at which the local clock shows a multiple of the granularity counted from local
                # midnight, in both passes of a repeated hour; where the clock jumps over a multiple, the jump itself"
                if any(t.second == 0 and (t.hour * 60 + t.minute) % minutes == 0 for t in passed):
                    found[granularity].append(at)
        if shown.date() not in days:
            # "a boundary is the first instant of the local period (a repeated midnight counts once, a skipped day has
            # no window)"
            days.add(shown.date())
            found["1d"].append(at)
            if shown.isocalendar()[:2] not in weeks:
                weeks.add(shown.isocalendar()[:2])
                found["1w"].append(at)
            if (shown.year, shown.month) not in months:
                months.add((shown.year, shown.month))
                found["1mo"].append(at)
        before = shown
    return found


def instants(readings, step):
    """The local values in order, each with the first instant (seconds UTC) at which it was shown or jumped over."""
    tick = timedelta(seconds=step)
    first = {}
    _, before = readings[0]
    for at, shown in readings:
        skipped = before + tick
        while skipped < shown:
            first.setdefault(skipped, at)
            skipped += tick
        first.setdefault(shown, at)
        before = shown
    return sorted(first.items())


def check_cut(known, readings, step):
    """All granularities agree with the oracle on the span that was read."""
    start, end = readings[0][0] + step, readings[-1][0] + step
    expected = boundaries(readings, step)
    for granularity in [*MINUTES, "1d", "1w", "1mo"]:
        policy = WallClockPolicy(granularity=granularity, timezone=known.key)
        starts = [us / 1_000_000 for us in policy.windows_us(start * 1_000_000, end * 1_000_000).edges()[:-1]]
        assert starts == expected[granularity], (known.key, granularity, datetime.fromtimestamp(start, UTC))


def check_naive(known, readings, step):
    """The naive mapping agrees with the oracle; bounds select exactly what the oracle says belongs to a span."""
    mapped = instants(readings, step)
    # What is shown in the first and the last hours may have been shown before, or be shown again.
    calm = 26 * 3600
    inside = [(value, at) for value, at in mapped if readings[0][0] + calm // 2 <= at < readings[-1][0] - calm // 2]
    for value, at in inside[:: 1 if LONG else 7]:
        assert instant_of_naive(value, known) == at * 1_000_000, (known.key, value)
    order = [at for _, at in inside]
    for at, _ in readings[:: 1 if LONG else 7]:
        if order[0] < at < order[-1]:
            assert naive_bound(at * 1_000_000, known) == inside[bisect_left(order, at)][0], (known.key, at)


@pytest.mark.parametrize("name", ALL if LONG else sorted({*NAMED, *ALL[::8]}))
def test_the_clock_read_minute_by_minute_agrees(name):
    """Around the changes of the zone, every boundary and every naive value is where a reader of the clock puts it."""
    known = zone(name)
    found = changes(known, 3600 if LONG else 43_200)
    chosen = found if LONG or name in NAMED[1:] else found[:: max(len(found) // 3, 1)]
    for start, end in chosen:
        readings, step = read(known, start - 26 * 3600, end + 26 * 3600)
        check_cut(known, readings, step)
        check_naive(known, readings, step)


@pytest.mark.parametrize("name", ALL if LONG else ALL[::40])
def test_a_calm_month_agrees(name):
    """A whole month of readings, so that weeks and months have their boundaries in a quiet time as well."""
    known = zone(name)
    start = int(datetime(2021, 5, 20, tzinfo=UTC).timestamp())
    readings, step = read(known, start, start + 32 * 86_400)
    check_cut(known, readings, step)
