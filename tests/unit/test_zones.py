"""Zones: exact segments of constant offset, and naive local values as instants."""

import itertools
import struct
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from pipeline_core import zones
from pipeline_core.errors import TimeError
from pipeline_core.window import MAX_US, MIN_US, to_us
from pipeline_core.zones import instant_of_naive, naive_bound, repeated_hours, segments, zone

HOUR = 3_600_000_000
MICROSECOND = timedelta(microseconds=1)


def utc(*parts):
    """Microseconds of a moment in UTC."""
    return to_us(datetime(*parts, tzinfo=UTC))


def test_zone_is_a_zoneinfo():
    """A known name gives the standard library's zone."""
    assert zone("America/Los_Angeles") is ZoneInfo("America/Los_Angeles")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("America/Los_Angels", "America/Los_Angeles"),
        ("america/new york", "America/New_York"),
        ("New_York", "America/New_York"),
        ("Europe/Kyjiv", "Europe/Kiev|Europe/Kyiv"),
        ("utc ", "UTC"),
    ],
)
def test_an_unknown_zone_offers_the_nearest(name, near):
    """A slip of the pen is answered with the name that was meant."""
    with pytest.raises(TimeError, match=near):
        zone(name)


@pytest.mark.parametrize(
    "name", ["", "America", "../etc/passwd", "/etc/localtime", "No/Where", "+05:00", None, 5, "\0"]
)
def test_what_is_no_zone_is_refused(name):
    """Folders, paths, offsets and other types are one clear error."""
    with pytest.raises(TimeError, match="timezone: found"):
        zone(name)


def test_segments_of_a_year_in_los_angeles():
    """Two changes make three segments, clipped to the span."""
    start, end = utc(2025, 1, 1), utc(2026, 1, 1)
    spring, autumn = utc(2025, 3, 9, 10), utc(2025, 11, 2, 9)
    assert segments(zone("America/Los_Angeles"), start, end) == [
        (start, spring, -8 * HOUR),
        (spring, autumn, -7 * HOUR),
        (autumn, end, -8 * HOUR),
    ]


def test_a_segment_that_begins_with_the_span_is_whole():
    """Bounds of the span on a change give neither an empty segment nor a missing one."""
    spring, autumn = utc(2025, 3, 9, 10), utc(2025, 11, 2, 9)
    los_angeles = zone("America/Los_Angeles")
    assert segments(los_angeles, spring, autumn) == [(spring, autumn, -7 * HOUR)]
    assert segments(los_angeles, spring - 1, spring) == [(spring - 1, spring, -8 * HOUR)]
    assert segments(los_angeles, spring, spring) == []


def test_offsets_with_seconds_are_exact():
    """Monrovia stood 44 minutes and 30 seconds behind until 1972."""
    change = utc(1972, 1, 7, 0, 44, 30)
    assert segments(zone("Africa/Monrovia"), change - 1, change + 1) == [
        (change - 1, change, -2670 * 1_000_000),
        (change, change + 1, 0),
    ]


@pytest.mark.parametrize("name", ["America/Los_Angeles", "Africa/Casablanca", "Europe/Dublin", "America/Nuuk"])
@pytest.mark.parametrize("year", [2040, 2096, 2098, 2099, 2100, 2101, 2400, 9998])
def test_the_rule_holds_after_the_listed_transitions(name, year):
    """Far years follow the footer's rule, as the standard library reads it."""
    known = zone(name)
    parts = segments(known, utc(year, 1, 1), utc(year, 12, 31))
    for start, end, offset in parts:
        for us in (start, end - 1):
            local = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)).astimezone(known)
            assert local.utcoffset() == timedelta(microseconds=offset)
    assert len(parts) == (1 if name == "Africa/Casablanca" and year > 2088 else 3 if year != 2040 else len(parts))


def test_the_whole_range_of_years_has_segments():
    """From the first representable microsecond to the last, without a hole."""
    parts = segments(zone("America/Los_Angeles"), MIN_US, MAX_US)
    assert parts[0][0] == MIN_US
    assert parts[-1][1] == MAX_US
    assert all(before[1] == after[0] and before[2] != after[2] for before, after in itertools.pairwise(parts))


def test_spans_out_of_order_or_out_of_range_are_refused():
    """A reversed span and one outside the years are errors."""
    for ask in (segments, repeated_hours):
        with pytest.raises(TimeError, match="start first"):
            ask(zone("UTC"), 1, 0)
        with pytest.raises(TimeError, match="1 to 9999"):
            ask(zone("UTC"), 0, MAX_US + 1)
    with pytest.raises(TimeError, match="1 to 9999"):
        naive_bound(MAX_US, zone("Asia/Tokyo"))
    with pytest.raises(TimeError, match="1 to 9999"):
        instant_of_naive(datetime.min, zone("Asia/Tokyo"))


def test_a_zone_without_a_name_is_refused(tmp_path):
    """A ZoneInfo made from a file has no key by which its data could be found again."""
    with (zones.resources.files("tzdata") / "zoneinfo" / "UTC").open("rb") as file:
        nameless = ZoneInfo.from_file(file)
    with pytest.raises(TimeError, match="without a key"):
        segments(nameless, 0, 1)


def test_repeated_hours_of_a_year():
    """One fold: the first pass, the moment the clock is set back, and the end of the second pass."""
    assert repeated_hours(zone("America/Los_Angeles"), utc(2025, 1, 1), utc(2026, 1, 1)) == [
        (utc(2025, 11, 2, 8), utc(2025, 11, 2, 9), utc(2025, 11, 2, 10))
    ]
    assert repeated_hours(zone("Australia/Lord_Howe"), utc(2025, 1, 1), utc(2026, 1, 1)) == [
        (utc(2025, 4, 5, 14, 30), utc(2025, 4, 5, 15), utc(2025, 4, 5, 15, 30))
    ]
    assert repeated_hours(zone("Asia/Kathmandu"), utc(1990, 1, 1), utc(2026, 1, 1)) == []


@pytest.mark.parametrize(
    ("start", "end", "count"),
    [((8, 0), (8, 1), 1), ((9, 59), (10, 0), 1), ((7, 0), (8, 0), 0), ((10, 0), (11, 0), 0), ((9, 0), (9, 0), 1)],
)
def test_a_fold_counts_from_its_first_pass_to_the_end_of_its_second(start, end, count):
    """Touching either pass is enough; merely bordering on them is not."""
    found = repeated_hours(zone("America/Los_Angeles"), utc(2025, 11, 2, *start), utc(2025, 11, 2, *end))
    assert len(found) == count


def test_a_repeated_value_stands_for_its_first_pass():
    """01:30 on the night the clock is set back is the earlier of the two."""
    new_york = zone("America/New_York")
    assert instant_of_naive(datetime(2013, 11, 3, 1, 30), new_york) == utc(2013, 11, 3, 5, 30)
    assert instant_of_naive(datetime(2013, 11, 3, 2), new_york) == utc(2013, 11, 3, 7)


def test_a_skipped_value_stands_for_the_jump():
    """Every value that the clock jumped over is the instant of the jump."""
    new_york = zone("America/New_York")
    for minute in (0, 30, 59):
        assert instant_of_naive(datetime(2013, 3, 10, 2, minute), new_york) == utc(2013, 3, 10, 7)
    assert instant_of_naive(datetime(2013, 3, 10, 3), new_york) == utc(2013, 3, 10, 7)
    assert instant_of_naive(datetime(2013, 3, 10, 3, 0, 0, 1), new_york) == utc(2013, 3, 10, 7) + 1


def test_the_bound_at_a_jump_takes_the_skipped_values_in():
    """A window that begins at the jump owns the values that the clock never showed."""
    new_york = zone("America/New_York")
    assert naive_bound(utc(2013, 3, 10, 7), new_york) == datetime(2013, 3, 10, 2)
    assert naive_bound(utc(2013, 3, 10, 7) + 1, new_york) == datetime(2013, 3, 10, 3, 0, 0, 1)
    assert naive_bound(utc(2013, 3, 10, 7) - 1, new_york) == datetime(2013, 3, 10, 1, 59, 59, 999999)


def test_the_bound_waits_through_the_second_pass():
    """No stored value stands for an instant of the second pass, so all its bounds are its end."""
    new_york = zone("America/New_York")
    for us in (utc(2013, 11, 3, 6), utc(2013, 11, 3, 6, 30), utc(2013, 11, 3, 7)):
        assert naive_bound(us, new_york) == datetime(2013, 11, 3, 2)
    assert naive_bound(utc(2013, 11, 3, 7) + 1, new_york) == datetime(2013, 11, 3, 2, 0, 0, 1)


def test_an_aware_value_is_no_naive_one():
    """A column that carries a zone must not pass through the naive mapping."""
    with pytest.raises(TimeError, match="naive"):
        instant_of_naive(datetime(2013, 3, 10, tzinfo=UTC), zone("UTC"))


RULES = [
    ("EST5EDT,M3.2.0,M11.1.0", 2040, [(datetime(2040, 3, 11, 7), -4), (datetime(2040, 11, 4, 6), -5)]),
    ("<-03>3<-02>,M3.5.0/-2,M10.5.0/-1", 2040, [(datetime(2040, 3, 25, 1), -2), (datetime(2040, 10, 28, 1), -3)]),
    ("IST-1GMT0,M10.5.0,M3.5.0/1", 2040, [(datetime(2040, 3, 25, 1), 1), (datetime(2040, 10, 28, 1), 0)]),
    ("AAA3BBB,J60/0,J365/25", 2040, [(datetime(2040, 3, 1, 3), -2), (datetime(2041, 1, 1, 3), -3)]),
    ("AAA3BBB,59/0,200", 2040, [(datetime(2040, 2, 29, 3), -2), (datetime(2040, 7, 19, 4), -3)]),
    ("A0B-2:30,M2.5.3/0,M6.4.6/1:30:30", 2040, [(datetime(2040, 2, 29), 2.5), (datetime(2040, 6, 22, 23, 0, 30), 0)]),
]


@pytest.mark.parametrize(("rule", "year", "expected"), RULES)
def test_rules_of_a_footer(rule, year, expected):
    """POSIX TZ strings: last weekdays, Julian days with and without leap day, negative and long hours, half hours."""
    after = utc(year, 1, 1) // 1_000_000 + 4 * 86_400
    found = zones._rule_changes(rule, after, year + 1)
    assert found[:2] == [(utc(*at.timetuple()[:6]) // 1_000_000, hours * 3600) for at, hours in expected]


def tzif(times, kinds, offsets, footer, version=b"2"):
    """The bytes of a small TZif file."""

    def block(code):
        head = struct.pack(">4sc15x6l", b"TZif", version, 0, 0, 0, len(times), len(offsets), 4)
        body = struct.pack(f">{len(times)}{code}", *times) + bytes(kinds)
        return head + body + b"".join(struct.pack(">lbB", offset, 0, 0) for offset in offsets) + b"AAA\0"

    return block("l") + (block("q") + b"\n" + footer + b"\n" if version != b"\0" else b"")


@pytest.fixture
def made_zone(tmp_path, monkeypatch):
    """Puts a made-up zone where zoneinfo looks first."""
    monkeypatch.setattr(zones.zoneinfo, "TZPATH", (str(tmp_path),))

    def make(name, data):
        (tmp_path / name).write_bytes(data)
        return zones._clock(name, 2100)

    return make


def test_a_file_of_the_first_version_is_read(made_zone):
    """Version 1 has 32-bit times and no footer: the last offset holds for ever."""
    clock = made_zone("Old", tzif([100, 200], [1, 0], [3600, 7200], b"", version=b"\0"))
    assert clock.starts[1:] == (100_000_000, 200_000_000)
    assert [offset // HOUR for offset in clock.offsets] == [1, 2, 1]


def test_daylight_saving_all_year_makes_no_segment(made_zone):
    """RFC 9636 says all-year daylight time by a rule whose two changes meet; nothing changes at New Year."""
    clock = made_zone("Always", tzif([0], [0], [-4 * 3600], b"EST5EDT,0/0,J365/25"))
    assert len(clock.starts) == 1


def test_a_rule_alone_governs_all_time(made_zone):
    """A file without transitions follows its footer from the first year."""
    clock = made_zone("Rule", tzif([], [], [-5 * 3600], b"EST5EDT,M3.2.0,M11.1.0"))
    assert clock.starts[1] == utc(1, 3, 11, 7)


def test_segments_shorter_than_a_minute_are_kept(made_zone):
    """Two changes a second apart, which no probing would find, are both there; equal offsets make no segment."""
    clock = made_zone("Blink", tzif([100, 101, 300], [1, 0, 0], [0, 3600], b"AAA0"))
    assert clock.starts[1:] == (100_000_000, 101_000_000)


def test_readings_wait_over_several_folds(made_zone):
    """Set back twice before it has caught up, the clock still gives each value its first pass."""
    clock = made_zone("Twice", tzif([7200, 9000], [1, 2], [7200, 3600, 0], b"AAA0"))
    assert clock.instant(4 * HOUR - 1) == 2 * HOUR - 1
    assert clock.instant(4 * HOUR) == 4 * HOUR
    assert clock.bound(3 * HOUR) == 4 * HOUR


@pytest.mark.parametrize("data", [b"", b"TZif2", b"no TZif" * 10, tzif([], [], [0], b"what is this")])
def test_damaged_data_is_one_clear_error(made_zone, data):
    """A damaged file says that the zone data must be installed again."""
    with pytest.raises(TimeError, match=r"timezone data: .*reinstall"):
        made_zone("Damaged", data)
