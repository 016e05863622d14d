"""Time zones as exact segments of constant offset, and the mapping between instants and naive local values.

A zone's data is read from the file that `zoneinfo` itself would read (the system's, else the `tzdata` package): every
transition listed there (TZif, RFC 9636), and after the last of them the rule in its footer (a POSIX TZ string). Nothing
is probed or guessed, so no transition can be missed, however close to another. All arithmetic is on integers:
microseconds UTC since 1970 for instants, the same count read off the local clock for local values.

One idea carries the naive mapping: the *highest reading so far*. Where the clock is set back it stands still until the
clock has caught up; where the clock jumps, it jumps. So each local value stands for exactly one instant, the first
at which the clock showed it or passed it: a repeated value for its first pass, a skipped one for the jump.
"""

from __future__ import annotations

import re
import struct
import zoneinfo
from bisect import bisect_left, bisect_right
from datetime import date, datetime, timedelta
from functools import cache
from importlib import resources
from itertools import accumulate
from pathlib import Path
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo

from pipeline_core.errors import TimeError
from pipeline_core.window import DAY_US, EPOCH_DAY, MAX_US, MIN_US, SECOND_US, check_us, from_us

_NAIVE_EPOCH: Final = datetime(1970, 1, 1)  # noqa: DTZ001 - local values have no zone
_MICROSECOND: Final = timedelta(microseconds=1)


def zone(name: str) -> ZoneInfo:
    """The zone of an IANA name such as `America/Los_Angeles`. Raises TimeError for any other, with the nearest."""
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError, TypeError, AttributeError):
        # What zoneinfo raises depends on the name, the platform and the Python: a folder, a path, an empty string …
        pass
    import difflib  # noqa: PLC0415 - for a mistake only

    names = zoneinfo.available_timezones()
    spellings = {known.rpartition("/")[2].casefold(): known for known in sorted(names)}
    spellings |= {known.casefold(): known for known in names}
    near = difflib.get_close_matches(str(name).casefold().replace(" ", "_"), spellings, n=3)
    hint = " or ".join(dict.fromkeys(repr(spellings[spelling]) for spelling in near))
    raise TimeError(
        f"timezone: found {name!r}, expected an IANA name such as 'America/Los_Angeles'; "
        + (f"perhaps {hint}" if near else "zoneinfo.available_timezones() lists them all")
    )


def segments(zone: ZoneInfo, start_us: int, end_us: int) -> list[tuple[int, int, int]]:
    """`[start_us, end_us)` as spans of constant offset: `(utc_start_us, utc_end_us, offset_us)`, local = UTC + offset.

    Neighbours differ in their offset: a change of name or of the daylight flag alone makes no segment. Offsets are
    exact to the second (Africa/Monrovia before 1972). Raises TimeError outside the years 1 to 9999 and for end < start.
    """
    if start_us == end_us:
        return []
    first, last = _ordered(start_us, end_us)
    known = clock(zone, last)
    low, high = known.segment(first), known.segment(last - 1)
    starts = [first, *known.starts[low + 1 : high + 1]]
    return list(zip(starts, [*starts[1:], last], known.offsets[low : high + 1], strict=True))


def repeated_hours(zone: ZoneInfo, start_us: int, end_us: int) -> list[tuple[int, int, int]]:
    """The folds touching `[start_us, end_us)`, as `(first_pass_start_us, second_pass_start_us, second_pass_end_us)`.

    The clock is set back at the second pass's start, and shows every local value between the outer two instants twice
    (an hour of them, as a rule; half of one on Lord Howe): a boundary strictly between those two cannot be told in a
    naive column.
    """
    first, last = _ordered(start_us, end_us)
    known = clock(zone, last)
    # No offset differs from another by more than two days, so no pass that reaches into the span begins farther off.
    low = bisect_left(known.starts, first - 2 * DAY_US)
    high = bisect_left(known.starts, last + 2 * DAY_US)
    found = []
    for index in range(max(low, 1), high):
        begins = known.starts[index]
        if known.offsets[index] < known.offsets[index - 1]:
            repeated_from = known.instant(begins + known.offsets[index])
            repeated_to = known.instant(known.peaks[index])
            if repeated_from < last and repeated_to > first:
                found.append((repeated_from, begins, repeated_to))
    return found


def instant_of_naive(naive: datetime, zone: ZoneInfo) -> int:
    """The one instant, in microseconds UTC, that a stored local value stands for: first pass, or the jump over it.

    Grows with the value: of two local values the greater never stands for the earlier instant. Raises TimeError for an
    aware datetime, and outside the years 1 to 9999.
    """
    if naive.tzinfo is not None:
        raise TimeError(f"local time: found {naive!r}, expected a naive datetime; use to_us for one with a time zone")
    local = (naive - _NAIVE_EPOCH) // _MICROSECOND
    return clock(zone, local).instant(local)


def naive_bound(us: int, zone: ZoneInfo) -> datetime:
    """The least local value (naive datetime) that stands for `us` or a later instant.

    With it `naive_bound(start) <= v < naive_bound(end)` selects exactly the stored values that stand for an instant of
    `[start, end)`, whatever the clock did in between.
    """
    return _naive(clock(zone, us).bound(us), zone)


class Clock(NamedTuple):
    """A zone's local clock: segment `i` begins at instant `starts[i]` and shows UTC + `offsets[i]` until the next.

    `peaks[i]` bounds the readings before segment `i`: all of them were below it. Times are in microseconds.
    """

    starts: tuple[int, ...]
    offsets: tuple[int, ...]
    peaks: tuple[int, ...]

    def segment(self, us: int) -> int:
        """The index of the segment that holds the instant."""
        return bisect_right(self.starts, us) - 1

    def bound(self, us: int) -> int:
        """The least local value that stands for `us` or a later instant; it never falls as `us` grows."""
        index = bisect_right(self.starts, us) - 1
        # At the very instant of a jump, the values that it skips stand for it as well.
        return self.peaks[index] if us == self.starts[index] else max(us + self.offsets[index], self.peaks[index])

    def reading(self, us: int) -> int:
        """The highest local value shown so far: the local time, but waiting while the clock repeats an hour."""
        index = bisect_right(self.starts, us) - 1
        return max(us + self.offsets[index], self.peaks[index])

    def instant(self, local_us: int) -> int:
        """The first instant at which the clock showed this local value or passed it. Raises TimeError out of range."""
        index = bisect_right(self.peaks, local_us) - 1
        if index < 0:
            raise TimeError(f"local time: found {local_us} us, expected one in the years 1 to 9999 UTC")
        return check_us(max(self.starts[index], local_us - self.offsets[index]))


# Rules go on for ever; nearly all work is this century, so the years up to 9999 are only spelled out on demand.
# Two years of margin, because a look ahead from the last instant may need the longest window's end.
_NEAR_YEAR, _LAST_YEAR = 2100, 9999
_NEAR_US: Final = (date(_NEAR_YEAR - 2, 1, 1).toordinal() - EPOCH_DAY) * DAY_US


def clock(zone: ZoneInfo, latest_us: int) -> Clock:
    """The zone's clock, right for every instant (or local value) up to `latest_us` and a year beyond. Cached."""
    check_us(latest_us)
    return _clock(zone.key, _NEAR_YEAR if latest_us < _NEAR_US else _LAST_YEAR)


@cache
def _clock(key: str | None, last_year: int) -> Clock:
    if not key:
        raise TimeError("timezone: found a ZoneInfo without a key, expected one made from an IANA name; use zone(name)")
    times, seconds, rule = _read_tzif(_tzif(key))
    changes = list(zip(times, seconds[1:], strict=True))
    offset = seconds[0]
    if rule:
        changes += _rule_changes(rule, changes[-1][0] if changes else MIN_US // SECOND_US, last_year)
    starts, offsets = [MIN_US], [offset * SECOND_US]
    for at, offset in changes:
        at_us, offset_us = at * SECOND_US, offset * SECOND_US
        if at_us > MAX_US:
            break
        if at_us <= starts[-1]:
            # Before year 1, or two changes at one instant (daylight saving all year): the last one counts.
            offsets[-1] = offset_us
            if len(offsets) > 1 and offsets[-2] == offset_us:
                del starts[-1], offsets[-1]
        elif offset_us != offsets[-1]:
            starts.append(at_us)
            offsets.append(offset_us)
    ends = [MIN_US + offsets[0], *(at + before for at, before in zip(starts[1:], offsets, strict=False))]
    return Clock(tuple(starts), tuple(offsets), tuple(accumulate(ends, max)))


def _tzif(key: str) -> bytes:
    """The bytes that `ZoneInfo(key)` reads: the same folders in the same order, then the `tzdata` package."""
    for folder in zoneinfo.TZPATH:
        path = Path(folder, key)
        if path.is_file():
            return path.read_bytes()
    return resources.files("tzdata").joinpath("zoneinfo", *key.split("/")).read_bytes()


def _read_tzif(data: bytes) -> tuple[list[int], list[int], str]:
    """TZif (RFC 9636, section 3): transition times (s UTC), offsets (s) before the first and after each, footer."""
    try:
        version, counts = _tzif_header(data, 0)
        at, width, code = 44, 4, "l"
        if version:
            # The first block repeats what fits into 32 bits for old readers; the full data follow it.
            at += _tzif_length(counts, 4)
            _, counts = _tzif_header(data, at)
            at, width, code = at + 44, 8, "q"
        _, _, _, time_count, type_count, _ = counts
        times = list(struct.unpack_from(f">{time_count}{code}", data, at))
        kinds = data[at + time_count * width :][:time_count]
        types_at = at + time_count * (width + 1)
        offsets = [struct.unpack_from(">l", data, types_at + 6 * kind)[0] for kind in range(type_count)]
        footer = data[at + _tzif_length(counts, width) :] if version else b""
        # Type 0 holds before the first transition (section 3.2).
        return times, [offsets[0], *(offsets[kind] for kind in kinds)], footer.strip(b"\n").decode("ascii")
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise TimeError(f"timezone data: found a damaged TZif file ({error}); reinstall the system's tzdata") from error


def _tzif_header(data: bytes, at: int) -> tuple[int, tuple[int, ...]]:
    magic, version, *counts = struct.unpack_from(">4sc15x6l", data, at)
    if magic != b"TZif":
        raise TimeError("timezone data: found a file that is not TZif; reinstall the system's tzdata")
    return version != b"\0", tuple(counts)


def _tzif_length(counts: tuple[int, ...], width: int) -> int:
    utc_flags, standard_flags, leaps, times, types, characters = counts
    return times * (width + 1) + types * 6 + characters + leaps * (width + 4) + standard_flags + utc_flags


_NAME = r"(?:<[A-Za-z0-9+-]+>|[A-Za-z]+)"
_TIME = r"[+-]?\d{1,3}(?::\d\d){0,2}"
_DATE = r"(?:M\d+\.\d\.\d|J?\d+)"
_RULE: Final = (  # compiled at its first use, which most programs never come to
    rf"{_NAME}(?P<standard>{_TIME})"
    rf"(?:{_NAME}(?P<daylight>{_TIME})?,(?P<on>{_DATE})(?:/(?P<on_at>{_TIME}))?,(?P<off>{_DATE})(?:/(?P<off_at>{_TIME}))?)?"
)


def _rule_changes(rule: str, after: int, last_year: int) -> list[tuple[int, int]]:
    """The changes `(s UTC, offset in s)` that a POSIX TZ string makes after `after`, up to the end of `last_year`.

    The string is that of POSIX.1-2017, section 8.3, with the wider hours of RFC 9636, section 3.3.1.
    """
    parsed = re.fullmatch(_RULE, rule)
    if parsed is None:
        raise TimeError(f"timezone data: found the rule {rule!r}, expected a POSIX TZ string; reinstall the tzdata")
    if parsed["on"] is None:
        # One offset for ever is the offset that already holds after the last transition.
        return []
    # POSIX counts offsets westwards.
    standard = -_seconds(parsed["standard"])
    daylight = -_seconds(parsed["daylight"]) if parsed["daylight"] else standard + 3600
    on_at, off_at = (_seconds(parsed[name] or "2") for name in ("on_at", "off_at"))
    # A local date near New Year can lie in the neighbouring year of UTC.
    first_year = max(1, from_us(after * SECOND_US).year - 1)
    changes = []
    for year in range(first_year, last_year + 1):
        changes.append((_rule_day(parsed["on"], year) * 86_400 + on_at - standard, True, daylight))
        changes.append((_rule_day(parsed["off"], year) * 86_400 + off_at - daylight, False, standard))
    # At one instant daylight time wins: that is how a rule says "daylight saving all year". Its last change belongs to
    # the year after, where nothing is known of the change that undoes it.
    changes.sort()
    end = (date(last_year, 12, 31).toordinal() + 1 - EPOCH_DAY) * 86_400
    return [(at, offset) for at, _, offset in changes if after < at < end]


def _rule_day(text: str, year: int) -> int:
    """Days since 1970 of a POSIX date in a year: `Mm.w.d`, `Jn` (never counts 29 February) or `n` (from 0)."""
    if text.startswith("M"):
        month, week, weekday = map(int, text[1:].split("."))
        first = date(year, month, 1)
        day = (weekday - first.isoweekday()) % 7 + 7 * (week - 1)
        if week == 5:  # POSIX writes "the last one" as the fifth
            following = 32 - (first + timedelta(days=31)).day
            day -= 7 if day >= following else 0
        return first.toordinal() - EPOCH_DAY + day
    new_year = date(year, 1, 1).toordinal() - EPOCH_DAY
    if text.startswith("J"):
        day = int(text[1:])
        leap = date(year, 12, 31).timetuple().tm_yday == 366
        return new_year + day - 1 + (leap and day >= 60)  # day 60 is 1 March
    return new_year + int(text)


def _seconds(text: str) -> int:
    sign = -1 if text.startswith("-") else 1
    hours, minutes, seconds, *_ = [*map(int, text.lstrip("+-").split(":")), 0, 0]
    return sign * (hours * 3600 + minutes * 60 + seconds)


def _ordered(start_us: int, end_us: int) -> tuple[int, int]:
    if start_us > end_us:
        raise TimeError(f"span: found start {start_us} after end {end_us} (us), expected the start first; swap the two")
    return check_us(start_us), check_us(end_us)


def _naive(local_us: int, zone: ZoneInfo) -> datetime:
    try:
        return _NAIVE_EPOCH + timedelta(microseconds=local_us)
    except OverflowError:
        raise TimeError(
            f"local time: found {local_us} us on the clock of {zone.key}, expected one in the years 1 to 9999; "
            "choose an earlier or a later span"
        ) from None
