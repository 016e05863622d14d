"""How a timestamp column stores instants: what a window is in stored values, and both ways to instants.

A column is counted, read and deleted by its own values, never by a function of them, so that DuckDB can pass over the
row groups that hold none of the window. Stored values are handled as integers, their *ticks*: microseconds, or
nanoseconds where the type keeps those. DuckDB's casts between its timestamp types round; nothing here relies on one.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from attrs import frozen
from duckdb.sqltypes import DuckDBPyType

from pipeline_core import SideError, Window
from pipeline_core.window import MAX_US, MIN_US
from pipeline_core.zones import naive_bound, segments, zone

_EPOCH: Final = datetime(1970, 1, 1)  # noqa: DTZ001 - local values have no zone
_MICROSECOND: Final = timedelta(microseconds=1)
INSTANTS: Final = {"timestamp with time zone": 1, "timestamptz_ns": 1_000}
_NAIVE: Final = {"timestamp": 1, "timestamp_s": 1, "timestamp_ms": 1, "timestamp_ns": 1_000}
_COARSE_US: Final = {"timestamp_s": 1_000_000, "timestamp_ms": 1_000}
# What a column of nanoseconds can hold; beyond it DuckDB has no literal.
_LEAST_NS, _MOST_NS = -9_223_372_036_854_775_800, 9_223_372_036_854_775_806


@frozen
class Timestamps:
    """A timestamp column, quoted, of a type with `scale` ticks a microsecond; `zone` where its values carry none.

    `step_us` is how many microseconds lie between two values that it can hold.
    """

    column: str
    scale: int
    zone: ZoneInfo | None
    step_us: int

    @property
    def ticks(self) -> str:
        """The stored value as an integer, in SQL."""
        return ticks(self.column, self.scale)

    def cut(self, us: int) -> int:
        """The least ticks that stand for the instant or a later one."""
        if self.zone:
            us = (naive_bound(us, self.zone) - _EPOCH) // _MICROSECOND
        return self._held(us * self.scale)

    def _held(self, value: int) -> int:
        return value if self.scale == 1 else min(max(value, _LEAST_NS), _MOST_NS)

    def between(self, low: int, high: int) -> str:
        """The condition that a stored value lies in `low <= ticks < high`, in SQL."""
        return f"{self.column} >= {self._literal(low)} AND {self.column} < {self._literal(high)}"

    def inside(self, window: Window) -> str:
        """The condition that a row belongs to the window, in SQL."""
        return self.between(self.cut(window.start_us), self.cut(window.end_us))

    @property
    def excluded(self) -> str:
        """The condition that a row belongs to no window at all: no timestamp, or none of the years 1 to 9999."""
        low, high = (self._held(us * self.scale) for us in (MIN_US, MAX_US + 1))
        return f"({self.between(low, high)}) IS NOT TRUE"

    def instant_us(self, window: Window) -> str:
        """The instant of a stored value of the window, in microseconds UTC: finer is truncated. In SQL."""
        us = floored(self.ticks, self.scale)
        if self.zone is None:
            return us
        # A repeated local time stands for its first pass, a skipped one for the jump.
        cases = [
            (self.cut(end) // self.scale, f"greatest({start}, {us} - ({offset}))")
            for start, end, offset in segments(self.zone, window.start_us, window.end_us)
        ]
        return _case(us, cases)

    def stored(self, us: str, window: Window) -> str:
        """The value to store for an instant of the window, given in microseconds UTC. In SQL."""
        if self.zone is not None:
            cases = [
                (end, f"{us} + ({offset})") for _, end, offset in segments(self.zone, window.start_us, window.end_us)
            ]
            us = _case(us, cases)
        return self._made(f"({us}) * {self.scale}" if self.scale > 1 else us)

    def _literal(self, value: int) -> str:
        return self._made(str(value))

    def _made(self, value: str) -> str:
        if self.scale > 1:
            made = f"make_timestamp_ns({value})"
            return made if self.zone else f"CAST({made} AS TIMESTAMPTZ_NS)"  # the session is in UTC
        return f"make_timestamp({value})" if self.zone else f"make_timestamptz({value})"


def of_column(place: str, column: str, kind: DuckDBPyType, timezone: str | None) -> Timestamps:
    """How a column, given quoted, stores instants. Raises SideError where the settings do not fit its type."""
    if kind.id in INSTANTS:
        if timezone is not None:
            raise SideError(f"{place}: it is declared {kind}, which is UTC; leave out timestamp_timezone")
        return Timestamps(column, INSTANTS[kind.id], None, 1)
    if kind.id not in _NAIVE:
        raise SideError(
            f"{place}: it is declared {kind}, expected a TIMESTAMP or TIMESTAMPTZ; name another timestamp_column"
        )
    if timezone is None:
        raise SideError(
            f"{place}: it is declared {kind}, which carries no zone; "
            "set timestamp_timezone to the zone that its times are meant in"
        )
    return Timestamps(column, _NAIVE[kind.id], zone(timezone), _COARSE_US.get(kind.id, 1))


def ticks(column: str, scale: int) -> str:
    """A timestamp of SQL as an integer: microseconds, or nanoseconds for a scale of 1000."""
    return f"epoch_{'us' if scale == 1 else 'ns'}({column})"


def floored(value: str, scale: int) -> str:
    """An integer of SQL, divided towards the past; DuckDB divides towards zero."""
    return value if scale == 1 else f"(({value} - ({value} % {scale} + {scale}) % {scale}) // {scale})"


def _case(value: str, cases: list[tuple[int, str]]) -> str:
    """The first expression whose bound lies above the value; the last one for all others. In SQL."""
    *first, (_, last) = cases
    whens = " ".join(f"WHEN {value} < {bound} THEN {expression}" for bound, expression in first)
    return f"CASE {whens} ELSE {last} END" if whens else last
