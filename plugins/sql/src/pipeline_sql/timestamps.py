"""How a timestamp column stores instants: the ranges of stored values that a window is, and both ways to Arrow.

One idea carries every verb: a window is a few disjoint ranges `low <= stored < high` of the values as they lie in the
column, so that counting, extracting and deleting share one boundary, use an index, and never call a function on a row.

Texts compare character by character. A date and time of day sorts rightly on its own; three things disturb it, and
`TextTimestamps` cuts its ranges around them:

- The separator. All of a day's rows with a space sort before all of its rows with a `T`: a bound in a day cuts twice.
- The fraction. "10:00:00" sorts before "10:00:00.5" as a prefix, and trailing zeros change nothing, once the bound
  itself is written without them.
- The suffix. `+` sorts before `.` and the digits, like the end of the text; `Z` sorts after them, so "10:00:00Z"
  lies behind the bound "10:00:00.5". The few texts that can do so are ranges of their own.

So a column may mix every accepted form, and texts written otherwise still fall into exactly one window of a tiling,
where extraction meets and names them; what falls into no window at all is counted by `strays`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final, Literal, Protocol
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa

from pipeline_core import PermanentError, SideError, Window
from pipeline_core.window import MAX_US, MIN_US
from pipeline_core.zones import naive_bound
from pipeline_core.zones import zone as find_zone
from pipeline_sql.kinds import check_fraction
from pipeline_sql.tables import Range

_EPOCH: Final = datetime(1970, 1, 1)  # noqa: DTZ001 - texts are compared without their zone
INSTANT: Final = pa.timestamp("us", "UTC")


class Timestamps(Protocol):
    """A timestamp column's way of storing instants."""

    #: Every stored value that a window could hold lies in this range.
    limits: Range

    def ranges(self, window: Window) -> list[Range]:
        """The window as disjoint ranges of stored values, in order; none where no stored value stands for it."""
        ...

    def strays(self, column: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
        """The rows that fall into no window, or whose value is not well formed."""
        ...

    def check(self, value: object) -> bool:
        """Whether a stored value is well formed. Raises SideError where the settings do not fit the column."""
        ...

    def decode(self, values: Sequence[Any]) -> pa.Array:
        """Stored values as timestamp[us, UTC]. Raises PermanentError, or SideError where the settings do not fit."""
        ...

    def encode(self, instants: pa.Array) -> Any:
        """A timestamp array with a zone as values to store, in the form that `Types.write` gives.

        Raises PermanentError for what the column cannot hold.
        """
        ...


_BODY = r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?"
_UTC = r"(Z|\+00:00)"
_ANY_ZONE = r"([Zz]|[+-]\d\d:?\d\d)?"
_FINER = r"(\.\d{6})\d+"
_GLOB_BODY = "[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9][ T][0-9][0-9]:[0-9][0-9]:[0-9][0-9]"


class TextTimestamps:
    """`YYYY-MM-DD HH:MM:SS[.ffffff]`, with a space or a `T`.

    Without a zone each text carries `Z` or `+00:00`; with one it is bare local time, a repeated value standing for its
    first pass and a skipped one for the jump. Finer than a microsecond is truncated.
    """

    limits = ("0001-01-01", ":")

    def __init__(self, place: str, zone: ZoneInfo | None) -> None:
        self._place = place
        self._zone = zone
        self._legal = _BODY if zone else _BODY + _UTC
        # Neighbouring windows share a bound.
        self._below = lru_cache(maxsize=2)(self._texts_before)

    def ranges(self, window: Window) -> list[Range]:
        return _difference(self._below(window.end_us), self._below(window.start_us))

    def _texts_before(self, us: int) -> list[Range]:
        """The texts of instants before `us`, as disjoint ranges in the order of texts."""
        at = naive_bound(us, self._zone) if self._zone else _EPOCH + timedelta(microseconds=us)
        date, _, clock = at.isoformat(timespec="microseconds").partition("T")
        second, _, fraction = clock.partition(".")
        digits = fraction.rstrip("0")
        found: list[Range] = []
        for low, separator in ((self.limits[0], " "), (f"{date}T", "T")):
            text = f"{date}{separator}{second}"
            found.append((low, f"{text}.{digits}" if digits else text))
            if digits:
                earlier = [text, *(f"{text}.{digits[:count]}" for count in range(1, len(digits)))]
                # "!" is the least character that a longer text could hold here: the range is this one text.
                found += [(f"{each}Z", f"{each}Z!") for each in reversed(earlier)]
        return found

    def strays(self, column: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
        glob = column.op("GLOB", is_comparison=True)
        suffixes = ("",) if self._zone else ("Z", "+00:00")
        # A fraction is told by its first and last digit: GLOB has no repetition.
        forms = [_GLOB_BODY + s for s in suffixes] + [
            f"{_GLOB_BODY}.[0-9]{rest}{s}" for rest in ("", "*[0-9]") for s in suffixes
        ]
        return sa.or_(
            column.is_(None), sa.func.typeof(column) != "text", sa.not_(sa.or_(*(glob(form) for form in forms)))
        )

    def check(self, value: object) -> bool:
        if not isinstance(value, str):
            return False
        if re.fullmatch(self._legal, value, re.ASCII):
            return True
        if not re.fullmatch(_BODY + _ANY_ZONE, value, re.ASCII):
            return False
        if self._zone:
            raise SideError(
                f"{self._place}: found text of the form {shape(value)!r}, which carries a zone, but expected bare "
                f"local time of {self._zone.key}; remove timestamp_timezone if the column is in UTC, "
                "or store one form only"
            )
        raise SideError(
            f"{self._place}: found text of the form {shape(value)!r}, expected a 'Z' or '+00:00' at its end; set "
            "timestamp_timezone to the zone that the column's bare times are meant in, or store UTC with a 'Z'"
        )

    def decode(self, values: Sequence[Any]) -> pa.Array:
        texts = self._texts(values)
        if not self._zone:
            return texts.cast(INSTANT)
        naive = texts.cast(pa.timestamp("us"))
        return pc.assume_timezone(naive, self._zone.key, ambiguous="earliest", nonexistent="latest").cast(INSTANT)

    def _texts(self, values: Sequence[Any]) -> pa.StringArray:
        if set(map(type, values)) <= {str}:
            texts = pa.array(values, pa.string())
            if pc.all(pc.match_substring_regex(texts, f"^{self._legal}$"), min_count=0).as_py():
                longest = pc.max(pc.binary_length(texts)).as_py() or 0
                if longest > len("2013-03-10 02:00:00.000000Z"):
                    texts = pc.replace_substring_regex(texts, _FINER, r"\1")
                return texts
        bad = next(value for value in values if not self.check(value))
        raise PermanentError(
            f"{self._place}: found {described(bad)}, expected {'bare' if self._zone else 'UTC'} text such as "
            f"'2013-03-10 02:00:00{'' if self._zone else 'Z'}'; correct the row"
        )

    def encode(self, instants: pa.Array) -> list[Any]:
        exact = truncated(instants)
        if self._zone:
            exact = pc.local_timestamp(exact.cast(pa.timestamp("us", self._zone.key)))
        return exact.cast(pa.string()).to_pylist()  # type: ignore[no-any-return]


_UNITS: Final = {"s": 1_000_000, "ms": 1_000, "us": 1}


class EpochTimestamps:
    """Integers: seconds, milliseconds or microseconds UTC since 1970."""

    def __init__(self, place: str, unit: str) -> None:
        self._place = place
        self._unit = unit
        self._us = _UNITS[unit]
        self.limits = (self._bound(MIN_US), self._bound(MAX_US + 1))

    def _bound(self, us: int) -> int:
        return -(-us // self._us)

    def ranges(self, window: Window) -> list[Range]:
        low, high = self._bound(window.start_us), self._bound(window.end_us)
        return [(low, high)] if low < high else []

    def strays(self, column: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
        low, high = self.limits
        return sa.or_(column.is_(None), sa.func.typeof(column) != "integer", column < low, column >= high)

    def check(self, value: object) -> bool:
        low, high = self.limits
        return isinstance(value, int) and low <= value < high

    def decode(self, values: Sequence[Any]) -> pa.Array:
        if not set(map(type, values)) <= {int}:
            bad = next(value for value in values if type(value) is not int)
            raise PermanentError(
                f"{self._place}: found {described(bad)}, expected a whole number ({self._unit} since 1970); "
                "correct the row"
            )
        return pc.multiply_checked(pa.array(values, pa.int64()), self._us).cast(INSTANT)

    def encode(self, instants: pa.Array) -> list[Any]:
        found = truncated(instants).cast(pa.int64())
        whole = pc.divide(found, self._us)
        if not pc.all(pc.equal(pc.multiply(whole, self._us), found), min_count=0).as_py():
            raise PermanentError(
                f"{self._place}: found a timestamp between two whole {self._unit}, which the column cannot hold; "
                "store a finer unit, or truncate at the source"
            )
        return whole.to_pylist()  # type: ignore[no-any-return]


class WholeTimestamps(EpochTimestamps):
    """Integers since 1970, in a column that holds nothing else."""

    def strays(self, column: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
        low, high = self.limits
        return sa.or_(column.is_(None), column < low, column >= high)

    def encode(self, instants: pa.Array) -> Any:
        return pa.array(super().encode(instants), pa.int64())


class Moments:
    """A type of the database's own for dates with a time: instants, or with a zone local times meant in it, of which a
    repeated one stands for its first pass. `aware`: the driver takes an instant with its zone. `digits`: of a second's
    fraction, for a column that would round a finer instant; None where it rounds none.
    """

    aware = True

    def __init__(self, place: str, zone: ZoneInfo | None, digits: int | None = None) -> None:
        self._place = place
        self._zone = zone
        self._digits = digits
        self._tz = UTC if self.aware and zone is None else None
        self.limits: Range = (datetime.min.replace(tzinfo=self._tz), datetime.max.replace(tzinfo=self._tz))

    def ranges(self, window: Window) -> list[Range]:
        low, high = self._bound(window.start_us), self._bound(window.end_us)
        return [(low, high)] if low < high else []

    def _bound(self, us: int) -> datetime:
        if self._zone:
            return naive_bound(us, self._zone)
        return (_EPOCH + timedelta(microseconds=us)).replace(tzinfo=self._tz)

    def strays(self, column: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
        low, high = self.limits
        return sa.or_(column.is_(None), column < low, column >= high)

    def check(self, value: object) -> bool:
        return isinstance(value, datetime)

    def decode(self, values: Sequence[Any]) -> pa.Array:
        if not self._zone:
            return pa.array(values, INSTANT)
        return self._meant(pa.array(values, pa.timestamp("us")), self._zone)

    @staticmethod
    def _meant(naive: pa.Array, zone: ZoneInfo) -> pa.Array:
        return pc.assume_timezone(naive, zone.key, ambiguous="earliest", nonexistent="latest").cast(INSTANT)

    def encode(self, instants: pa.Array) -> Any:
        exact = truncated(instants)
        if self._digits is not None:
            self._check_fraction(exact, self._digits)
        return pc.local_timestamp(exact.cast(pa.timestamp("us", self._zone.key))) if self._zone else exact

    def _check_fraction(self, instants: pa.Array, digits: int) -> None:
        try:
            check_fraction(instants, digits)
        except ValueError as error:
            raise PermanentError(
                f"{self._place}: found {error}; declare the column finer, or truncate at the source"
            ) from None


def native(
    place: str,
    declared: str,
    holds: Literal["numbers", "local times", "instants"] | None,
    *,
    timezone: str | None,
    unit: str | None,
    moments: Callable[[str, ZoneInfo | None], Moments] = Moments,
) -> Timestamps:
    """How a column of a database with types of its own stores instants. Raises SideError where the settings misfit."""
    if holds == "numbers":
        if unit is None:
            raise SideError(
                f"{place}: it is declared {declared}, so it holds numbers since 1970; "
                'set timestamp_unit to what they count: "s", "ms" or "us"'
            )
        if timezone is not None:
            raise SideError(f"{place}: numbers since 1970 are UTC; leave out timestamp_timezone, or timestamp_unit")
        return WholeTimestamps(place, unit)
    if unit is not None or holds is None:
        raise SideError(
            f"{place}: it is declared {declared}, expected a timestamp, "
            "or an integer with timestamp_unit; name another timestamp_column, or correct timestamp_unit"
        )
    if holds == "instants" and timezone is not None:
        raise SideError(f"{place}: it is declared {declared}, which is UTC; leave out timestamp_timezone")
    if holds == "local times" and timezone is None:
        raise SideError(
            f"{place}: it is declared {declared}, which carries no zone; "
            "set timestamp_timezone to the zone that its times are meant in"
        )
    return moments(place, find_zone(timezone) if timezone else None)


def truncated(instants: pa.Array) -> pa.Array:
    """A timestamp array with a zone as timestamp[us, UTC]; finer is truncated towards the past."""
    if instants.type.unit == "ns":
        instants = pc.floor_temporal(instants.cast(pa.timestamp("ns", "UTC")), unit="microsecond")
    return instants.cast(INSTANT)


def described(value: object) -> str:
    """A stored value in a message: its type and form, never its content."""
    if isinstance(value, Decimal) and not value.is_finite():
        return str(value)
    names = {type(None): "NULL", int: "an INTEGER", float: "a REAL", bytes: "a BLOB"}
    return (
        f"text of the form {shape(value)!r}" if isinstance(value, str) else names.get(type(value), type(value).__name__)
    )


def shape(text: str) -> str:
    """The form of a text without its content: digits as 0, letters as x, but for the `T` and `Z` of a timestamp."""
    return re.sub(r"[^\W\d_TZ]", "x", re.sub(r"\d", "0", text[:40]))


def _difference(ranges: list[Range], minus: list[Range]) -> list[Range]:
    """What is left of disjoint, ordered ranges without those of `minus`, which are so too."""
    left: list[Range] = []
    for whole_low, high in ranges:
        low = whole_low
        for hole_low, hole_high in minus:
            if hole_high > low and hole_low < high:
                if low < hole_low:
                    left.append((low, hole_low))
                low = hole_high
        if low < high:
            left.append((low, high))
    return left
