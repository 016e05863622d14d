"""Time policies: the rule that cuts time into windows, and says until when time is stable.

A policy is its own settings class. Everything inside is integers, microseconds UTC since 1970. A cut is never a list
of windows but one `range` per span of constant UTC offset: counting ten years of windows, or taking the n-th, costs
microseconds, and making all their bounds hardly more than the integers themselves.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from datetime import date, datetime
from functools import lru_cache
from itertools import accumulate, chain, pairwise, starmap
from typing import Any, Final, NamedTuple, Protocol, overload

import attrs
import pendulum

from pipeline_core.errors import TimeError
from pipeline_core.window import DAY_US, EPOCH_DAY, SECOND_US, Window, check_us, from_us, iso, to_us
from pipeline_core.zones import Clock, clock, instant_of_naive, zone

_EXACT_US: Final = {"s": SECOND_US, "min": 60 * SECOND_US, "h": 3600 * SECOND_US}
_CALENDAR_DAYS: Final = {"d": 1, "w": 7}
_CALENDAR_MONTHS: Final = {"mo": 1, "q": 3, "y": 12}
_SPELLINGS: Final = {
    spelling: unit
    for unit, spellings in {
        "s": "s sec secs second seconds",
        "min": "min mins minute minutes",
        "h": "h hr hrs hour hours",
        "d": "d day days",
        "w": "w wk week weeks",
        "mo": "mo month months",
        "q": "q quarter quarters",
        "y": "y yr year years",
    }.items()
    for spelling in spellings.split()
}
_MONDAY_US: Final = (date(1970, 1, 5).toordinal() - EPOCH_DAY) * DAY_US
_YEAR_MONTHS: Final = 12


# A bounded cache, because the text may come from anywhere; a handful of texts is all a process ever sees.
@lru_cache(maxsize=256)
def _parse(text: object, place: str) -> tuple[int, str]:
    """A duration's number and unit: `"2h"` → `(2, "h")`, the unit one of s, min, h, d, w, mo, q, y."""
    expected = "expected a whole number and a unit, such as 90s, 15min, 2h, 1d, 1w, 1mo, 1q or 1y"
    match = re.fullmatch(r"\s*([0-9]+)\s*([A-Za-z]+)\s*", text) if isinstance(text, str) else None
    if match is None:
        raise TimeError(f"{place}: found {text!r}, {expected}")
    number, spelling = match.groups()
    if spelling.casefold() == "m":
        raise TimeError(f"{place}: found {text!r}, where m could be minutes or months; write {number}min or {number}mo")
    unit = _SPELLINGS.get(spelling.casefold())
    if unit is None:
        raise TimeError(f"{place}: found {text!r}, whose unit {spelling!r} is unknown; {expected}")
    return int(number), unit


def ago_us(now_us: int, duration: str, timezone: str) -> int:
    """The instant that lies `duration`, such as `30d`, before `now_us` (both microseconds UTC); days and longer are
    counted on the local calendar of `timezone`. Raises TimeError for a duration that is none.
    """
    number, unit = _parse(duration, "duration")
    if unit in _EXACT_US:
        return check_us(now_us - number * _EXACT_US[unit])
    local = clock(zone(timezone), now_us)
    reading = local.reading(now_us)
    if unit in _CALENDAR_DAYS:
        reading -= number * _CALENDAR_DAYS[unit] * DAY_US
    else:
        back = number * _CALENDAR_MONTHS[unit]
        month = _local_months(reading)
        into_month = reading - _month_start(month)
        reading = min(_month_start(month - back) + into_month, _month_start(month - back + 1))
    # Without the limit "0d" would answer with the end of a repeated hour that is still going on.
    return min(local.instant(reading), now_us)


def elapsed_s(text: object, place: str) -> int:
    """A duration of one length, in seconds: `"30min"` → 1800, a day as 24 hours. Raises TimeError, naming `place`."""
    number, unit = _parse(text, place)
    if unit in _CALENDAR_MONTHS:
        raise TimeError(
            f"{place}: found {text!r}, whose length differs; expected seconds, minutes, hours, days or weeks"
        )
    length_us = _EXACT_US[unit] if unit in _EXACT_US else _CALENDAR_DAYS[unit] * DAY_US
    return number * length_us // SECOND_US


def _local_months(local_us: int) -> int:
    """Calendar months since year 0 of the local date, counted on its own calendar."""
    try:
        day = date.fromordinal(local_us // DAY_US + EPOCH_DAY)
    except (ValueError, OverflowError):
        raise TimeError(f"local time: {local_us} us since 1970 lies outside the years 1 to 9999") from None
    return day.year * _YEAR_MONTHS + day.month - 1


# As many months as three centuries hold: a cut asks for the same ones again and again.
@lru_cache(maxsize=4096)
def _month_start(months: int) -> int:
    try:
        return (date(months // _YEAR_MONTHS, months % _YEAR_MONTHS + 1, 1).toordinal() - EPOCH_DAY) * DAY_US
    except ValueError:
        raise TimeError(f"local time: year {months // _YEAR_MONTHS} lies outside the years 1 to 9999") from None


class _Grid(Protocol):
    """The local times at which periods begin, in microseconds of the local clock."""

    @property
    def once(self) -> bool: ...  # a period counts once, however often the clock shows its beginning
    def floor(self, local_us: int) -> int: ...  # the last one at or before
    def after(self, local_us: int) -> int: ...  # the first one later
    def instants(self, first: int, stop: int, offset_us: int) -> Sequence[int]: ...  # from one of them, as instants


class _Steps(NamedTuple):
    """Periods of one length, counted from `phase`."""

    step: int
    phase: int
    once: bool

    def floor(self, local_us: int) -> int:
        return local_us - (local_us - self.phase) % self.step

    def after(self, local_us: int) -> int:
        return local_us - (local_us - self.phase) % self.step + self.step

    def instants(self, first: int, stop: int, offset_us: int) -> Sequence[int]:
        return range(first - offset_us, stop - offset_us, self.step)


class _Months(NamedTuple):
    """Periods of that many calendar months, counted from January."""

    months: int
    once: bool = True

    def floor(self, local_us: int) -> int:
        month = _local_months(local_us)
        return _month_start(month - month % self.months)

    def after(self, local_us: int) -> int:
        month = _local_months(local_us)
        return _month_start(month - month % self.months + self.months)

    def instants(self, first: int, stop: int, offset_us: int) -> Sequence[int]:
        months = range(_local_months(first), _local_months(stop - 1) + 1, self.months)
        return [_month_start(month) - offset_us for month in months]


@lru_cache(maxsize=256)
def _grid(granularity: str) -> _Grid:
    """The local grid of a wall-clock granularity. Raises TimeError for one that nothing local can be counted from."""
    number, unit = _parse(granularity, "granularity")
    elapsed = 'take ElapsedPolicy (type = "elapsed") for equal spans from an anchor'
    if number == 0:
        raise TimeError(f"granularity: found {granularity!r}, expected more than nothing, such as 15min, 2h or 1d")
    if unit in _EXACT_US:
        step = number * _EXACT_US[unit]
        if DAY_US % step:
            raise TimeError(
                f"granularity: found {granularity!r}, which does not divide the day; expected one that does, such as "
                f"15min, 1h, 2h, 3h, 6h or 12h; or {elapsed}"
            )
        return _Steps(step, 0, step == DAY_US)
    if unit in ("mo", "q"):
        months = number * _CALENDAR_MONTHS[unit]
        if _YEAR_MONTHS % months:
            raise TimeError(
                f"granularity: found {granularity!r}, which does not divide the year; expected one that does: "
                "1mo, 2mo, 1q, 4mo, 6mo or 1y"
            )
        return _Months(months)
    if number > 1:
        raise TimeError(
            f"granularity: found {granularity!r}, expected 1{unit}: several would need an anchor to be counted from; "
            f"take 1{unit}, or {elapsed}"
        )
    if unit == "y":
        return _Months(_YEAR_MONTHS)
    return _Steps(_CALENDAR_DAYS[unit] * DAY_US, _MONDAY_US if unit == "w" else 0, True)


class _Cut(NamedTuple):
    """The boundaries that a grid has on a zone's clock.

    A segment of constant offset begins at instant `a`, where the clock shows `a + offset`. With `seen` the bound of the
    readings that need no boundary any more, the segment's boundaries are `a` itself if the clock now shows, or jumped
    over, a grid time from `seen` on; and every later grid time from `seen` on that the segment shows.
    """

    clock: Clock
    grid: _Grid

    def _seen(self, index: int) -> int:
        starts, offsets, peaks = self.clock
        if self.grid.once or index == 0:
            return peaks[index]
        # Below a day a repeated hour counts again: only a jump leaves readings between the old offset and the new.
        return starts[index] + min(offsets[index - 1], offsets[index])

    def last(self, us: int) -> int:
        """The last boundary at or before the instant."""
        for index in range(self.clock.segment(us), -1, -1):
            start, offset = self.clock.starts[index], self.clock.offsets[index]
            period = self.grid.floor(us + offset)
            if period >= self._seen(index):
                return max(start, period - offset)
            us = start - 1
        return check_us(us)

    def next(self, us: int) -> int:
        """The first boundary after the instant."""
        starts, offsets, _ = self.clock
        index = self.clock.segment(us)
        while True:
            offset = offsets[index]
            boundary = self.grid.after(max(us + offset, self._seen(index) - 1)) - offset
            index += 1
            if index == len(starts) or boundary < starts[index]:
                return check_us(boundary)
            us = starts[index]
            if self.grid.floor(us + offsets[index]) >= self._seen(index):
                return us

    def runs(self, start_us: int, end_us: int) -> list[Sequence[int]]:
        """The boundaries in `[start_us, end_us)` and the one after them; nothing where there is none."""
        starts, offsets, _ = self.clock
        found: list[Sequence[int]] = []
        for index in range(self.clock.segment(start_us), len(starts)):
            start, offset, seen = starts[index], offsets[index], self._seen(index)
            if start >= end_us:
                break
            if start < start_us:
                first = self.grid.after(max(seen, start_us + offset) - 1)
            else:
                first = self.grid.after(seen - 1)
                if first <= start + offset:
                    found.append((start,))
                    first = self.grid.after(start + offset)
            stop = (min(starts[index + 1], end_us) if index + 1 < len(starts) else end_us) + offset
            if first < stop:
                found.append(self.grid.instants(first, stop, offset))
        return [*found, (self.next(end_us - 1),)] if found else []


def _check_span(start_us: int, end_us: int) -> None:
    if check_us(start_us) > check_us(end_us):
        raise TimeError(
            f"windows: found start {iso(start_us)} after end {iso(end_us)}, expected the start first; swap the two"
        )


@lru_cache(maxsize=256)
def _elapsed_us(granularity: str) -> int:
    number, unit = _parse(granularity, "granularity")
    if unit in _CALENDAR_MONTHS:
        raise TimeError(
            f"granularity: found {granularity!r}, whose length varies; expected s, min, h, d or w; or take "
            'WallClockPolicy (type = "wall") for calendar periods'
        )
    if number == 0:
        raise TimeError(f"granularity: found {granularity!r}, expected more than nothing, such as 15min, 5h or 1d")
    return number * (_EXACT_US[unit] if unit in _EXACT_US else _CALENDAR_DAYS[unit] * DAY_US)


def _anchor_text(anchor: str | datetime) -> str:
    """Text is what the settings hold, so that a file, a mapping and a call configure the same way."""
    return from_us(to_us(anchor)).isoformat() if isinstance(anchor, datetime) else anchor


@lru_cache(maxsize=256)
def _anchor_us(anchor: str, timezone: str) -> int:
    try:
        instant = datetime.fromisoformat(anchor)
    except (TypeError, ValueError):
        raise TimeError(
            f"anchor: found {anchor!r}, expected an aware datetime or ISO 8601 text such as 1970-01-01T00:00:00Z"
        ) from None
    return to_us(instant) if instant.tzinfo else instant_of_naive(instant, zone(timezone))


class Windows(Sequence[Window]):
    """The windows of one cut, in order, each made only when it is asked for.

    A sequence like any other: length, index, slice (again a `Windows`), `in` and `index` cost microseconds however
    long it is. `edges()` gives all bounds at once as integers, which is the way to read very many.
    """

    __slots__ = ("_counts", "_make", "_picked", "_runs")

    def __init__(self, make: Callable[[], list[Sequence[int]]], picked: range | None = None) -> None:
        """From a function that gives the bounds in runs: n starts and the end of the last window, or nothing."""
        self._make = make
        self._runs: list[Sequence[int]] | None = None
        self._counts: list[int] = []
        self._picked = picked

    def _cut(self) -> tuple[list[Sequence[int]], range]:
        if self._runs is None:
            runs = self._make()
            self._counts = list(accumulate(map(len, runs), initial=0))
            # Last, so that another thread never finds the runs without their counts.
            self._runs = runs
        if self._picked is None:
            self._picked = range(max(self._counts[-1] - 1, 0))
        return self._runs, self._picked

    def _bound(self, number: int) -> int:
        runs, _ = self._cut()
        run = bisect_right(self._counts, number) - 1
        return runs[run][number - self._counts[run]]

    def _bounds(self) -> Iterator[int]:
        """The bounds of a stretch of neighbouring windows, one more than there are windows."""
        runs, picked = self._cut()
        if not picked:
            return iter(())
        counted = zip(runs, self._counts, strict=False)
        return chain.from_iterable(
            run[max(picked.start - before, 0) : max(picked.stop + 1 - before, 0)] for run, before in counted
        )

    def __len__(self) -> int:
        return len(self._cut()[1])

    @overload
    def __getitem__(self, item: int) -> Window: ...
    @overload
    def __getitem__(self, item: slice) -> Windows: ...
    def __getitem__(self, item: int | slice) -> Window | Windows:
        runs, picked = self._cut()
        if isinstance(item, slice):
            return Windows(lambda: runs, picked[item])
        number = picked[item]
        return Window.from_us(self._bound(number), self._bound(number + 1))

    def __iter__(self) -> Iterator[Window]:
        if self._cut()[1].step == 1:
            return starmap(Window.from_us, pairwise(self._bounds()))
        return map(self.__getitem__, range(len(self)))

    def index(self, value: Any, start: int = 0, stop: int | None = None) -> int:
        """The position of the window, found by bisection. Raises ValueError where it is not among them."""
        _, picked = self._cut()
        if isinstance(value, Window):
            number = bisect_left(range(self._counts[-1]), value.start_us, key=self._bound)
            if number in picked and self[at := picked.index(number)] == value and at in range(len(self))[start:stop]:
                return at
        raise ValueError(f"{value!r} is not among these windows")

    def __contains__(self, value: object) -> bool:
        # First of all, since a TimeError from making the cut is a ValueError too, but does not mean "no".
        self._cut()
        try:
            self.index(value)
        except ValueError:
            return False
        return True

    def edges(self) -> list[int]:
        """The n + 1 bounds of n neighbouring windows, in microseconds UTC; an empty list where there is no window.

        Raises TimeError on a slice with a step, whose windows are no neighbours.
        """
        if self._cut()[1].step != 1:
            raise TimeError("edges: found a slice with a step, expected neighbouring windows; read start_us and end_us")
        return list(self._bounds())

    def __repr__(self) -> str:
        return f"<{len(self)} windows, {self[0]} to {self[-1]}>" if len(self) else "<0 windows>"


def _accepted_by(check: Callable[[str], object]) -> Callable[[TimePolicy, attrs.Attribute[str], str], None]:
    """A validator for a field that `check` must accept; what it raises is told with the name of the policy."""

    def validate(policy: TimePolicy, attribute: attrs.Attribute[str], value: str) -> None:
        try:
            check(value)
        except TimeError as error:
            raise TimeError(f"{type(policy).__name__}.{error}") from None

    return validate


@attrs.frozen(kw_only=True)
class TimePolicy(ABC):
    """Cuts time into windows and says until when time is stable.

    A policy of your own is an attrs class that says `window_at`; everything else has a default built on it. Its windows
    must leave no hole: give the weekend to one of the windows rather than to none.
    """

    x_time_back: str = attrs.field(default="0s", validator=_accepted_by(lambda text: _parse(text, "x_time_back")))
    timezone: str = attrs.field(default="UTC", validator=_accepted_by(zone))

    @abstractmethod
    def window_at(self, instant: datetime) -> Window:
        """The one window that holds the instant (an aware datetime, start included, end not). Raises TimeError."""

    def window_at_us(self, us: int) -> Window:
        """`window_at` for an instant in microseconds UTC."""
        return self.window_at(from_us(us))

    def windows(self, start: datetime, end: datetime) -> Windows:
        """The whole windows that start in `[start, end)`, two aware datetimes; the last may reach past `end`.

        Raises TimeError for a naive datetime, and for an end before the start.
        """
        return self.windows_us(to_us(start), to_us(end))

    def windows_us(self, start_us: int, end_us: int) -> Windows:
        """`windows` for two instants in microseconds UTC."""
        _check_span(start_us, end_us)
        return Windows(lambda: [self._walk(start_us, end_us)])

    def _walk(self, start_us: int, end_us: int) -> list[int]:
        """The bounds that asking `window_at` from one end to the next gives, each answer held against the promise."""
        bounds: list[int] = []
        at = start_us
        while at < end_us:
            window = self.window_at_us(at)
            if not (window.start_us <= at < window.end_us and (window.start_us == at or not bounds)):
                raise TimeError(
                    f"{type(self).__name__}.window_at: found {window} for {iso(at)}, expected a window that holds that "
                    "instant and begins where the one before it ends; windows leave no hole and do not overlap"
                )
            if window.start_us == at:
                bounds.append(at)
            at = window.end_us
        return [*bounds, at] if bounds else []

    def stable_until(self, now: datetime) -> pendulum.DateTime:
        """The instant (UTC) up to which time is stable at `now`, an aware datetime: windows that end by then are.

        That is `now` less `x_time_back`. Seconds, minutes and hours are elapsed time; days, weeks, months, quarters and
        years are counted on the local calendar of `timezone`, keeping the local time of day. The answer never moves
        back as `now` grows: while the clock repeats an hour the limit waits, a local time that was skipped stands for
        the jump, and a day that a shorter month lacks for that month's end. Raises TimeError for a naive datetime.
        """
        return from_us(self.stable_until_us(to_us(now)))

    def stable_until_us(self, now_us: int) -> int:
        """`stable_until` for an instant in microseconds UTC."""
        return ago_us(now_us, self.x_time_back, self.timezone)


@attrs.frozen
class WallClockPolicy(TimePolicy):
    """Windows that follow the local wall clock: 2h windows begin at 00:00, 02:00 … local time, all year.

    `granularity` is 15min, 2h, 1d, 1w (from Monday), 1mo, 1q, 1y or the like, in the IANA zone `timezone`. Below a day
    it must divide the day, months must divide the year, and days, weeks and years come one at a time (several would
    need an anchor). Below a day every local multiple of the granularity counted from midnight is a boundary, in both
    passes of a repeated hour; where the clock jumps over one, the jump is the boundary. From a day upward a boundary is
    the first instant of the local period: a repeated midnight counts once, and a skipped day has no window.
    """

    granularity: str = attrs.field(validator=_accepted_by(_grid))

    def window_at(self, instant: datetime) -> Window:
        """The window that holds the instant, an aware datetime. Raises TimeError."""
        return self.window_at_us(to_us(instant))

    def window_at_us(self, us: int) -> Window:
        """The window that holds the instant, in microseconds UTC. Raises TimeError."""
        cut = self._cut(us)
        return Window.from_us(cut.last(us), cut.next(us))

    def windows_us(self, start_us: int, end_us: int) -> Windows:
        """The whole windows that start in `[start_us, end_us)`, microseconds UTC. Raises TimeError."""
        _check_span(start_us, end_us)
        runs = self._cut(end_us).runs(start_us, end_us)
        return Windows(lambda: runs)

    def _cut(self, latest_us: int) -> _Cut:
        return _Cut(clock(zone(self.timezone), latest_us), _grid(self.granularity))


@attrs.frozen
class ElapsedPolicy(TimePolicy):
    """Windows of equal elapsed time counted from an anchor, whatever the wall clock shows.

    `granularity` is in units of fixed length: s, min, h, d (24 hours) or w (168 hours). `anchor` is a boundary, before
    or after any data: an aware datetime or ISO 8601 text; text without an offset is local time in `timezone`.
    """

    granularity: str = attrs.field(validator=_accepted_by(_elapsed_us))
    anchor: str = attrs.field(default="1970-01-01T00:00:00Z", converter=_anchor_text)

    @anchor.validator
    def _instant(self, attribute: attrs.Attribute[str], value: str) -> None:
        _anchor_us(value, self.timezone)

    def window_at(self, instant: datetime) -> Window:
        """The window that holds the instant, an aware datetime. Raises TimeError."""
        return self.window_at_us(to_us(instant))

    def window_at_us(self, us: int) -> Window:
        """The window that holds the instant, in microseconds UTC. Raises TimeError."""
        step = _elapsed_us(self.granularity)
        start = us - (us - _anchor_us(self.anchor, self.timezone)) % step
        return Window.from_us(start, start + step)

    def windows_us(self, start_us: int, end_us: int) -> Windows:
        """The whole windows that start in `[start_us, end_us)`, microseconds UTC. Raises TimeError."""
        _check_span(start_us, end_us)
        step = _elapsed_us(self.granularity)
        first = start_us + (_anchor_us(self.anchor, self.timezone) - start_us) % step
        bounds = range(first, end_us + step, step) if first < end_us else range(0)
        if bounds:
            check_us(bounds[-1])
        return Windows(lambda: [bounds])
