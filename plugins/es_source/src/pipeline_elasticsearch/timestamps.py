"""Instants: as bounds of a query, and as the texts and numbers that a document may hold. Microseconds UTC."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

from attrs import frozen

from pipeline_core import Window
from pipeline_core.window import iso

#: How instants are asked for, and how bounds are written: understood by every mapping, down to the nanosecond.
ISO = "strict_date_optional_time_nanos"
_MILLI_US = 1_000
_SECOND_US = 1_000_000
_NANOS_END_US = 9_223_372_036_854_776  # date_nanos ends at 2^63 ns, in 2262
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
#: Mapping formats whose values `micros` reads; any other is left to the server.
_READABLE = {
    "strict_date_optional_time",
    "strict_date_optional_time_nanos",
    "strict_date_time",
    "strict_date_time_no_millis",
    "epoch_millis",
}
_FORM = re.compile(
    r"(\d{4})(?:-(\d\d)(?:-(\d\d)(?:T(?:(\d\d)(?::(\d\d)(?::(\d\d)(?:[.,](\d{1,9}))?)?)?)?(Z|[+-]\d\d(?::?\d\d)?)?)?)?)?",
    re.ASCII,
)
_SIGNED_YEAR = re.compile(r"[+-]\d{4}", re.ASCII)


@frozen
class Resolution:
    """How fine the timestamps are: `date` keeps milliseconds, `date_nanos` nanoseconds; a pattern may find both.

    `aggregatable`: whether the index keeps them by document too, so that an aggregation can read them.
    """

    millis: bool
    nanos: bool
    aggregatable: bool = True

    def bounds(self, window: Window) -> dict[str, Any]:
        """`start <= t < end` as the body of a range query, exact at microseconds."""
        if self.nanos:
            return {"format": ISO, **_nano_bounds(window)}
        return {"format": "epoch_millis", "gte": ceil_millis(window.start_us), "lt": ceil_millis(window.end_us)}

    def exact(self, window: Window) -> bool:
        """Whether one range fits the documents of both types: a bound between two milliseconds does not."""
        return not (self.millis and self.nanos) or not (window.start_us % _MILLI_US or window.end_us % _MILLI_US)


def _nano_bounds(window: Window) -> dict[str, str]:
    """Outside what date_nanos can hold, where no document can lie, the server would refuse a bound."""
    if window.start_us >= _NANOS_END_US:
        return {"lt": iso(0)}
    start, end = iso(max(window.start_us, 0)), iso(max(window.end_us, 0))
    return {"gte": start, "lt": end} if window.end_us < _NANOS_END_US else {"gte": start}


def ceil_millis(us: int) -> int:
    """The first millisecond at or after: for whole milliseconds t, `start <= t` and `ceil(start) <= t` are the same."""
    return -(-us // _MILLI_US)


def readable(format_: str | None) -> bool:
    """Whether `micros` reads every value that a field of this mapping format takes; None is the default format.

    Of several formats the first one that fits a value decides, and four digits fit both a year and milliseconds.
    """
    formats = ["strict_date_optional_time"] if format_ is None else format_.split("||")
    return formats[0] != "epoch_millis" and set(formats) <= _READABLE


def micros(value: object) -> int:
    """A value of a date field, microseconds UTC; what is finer is cut off. Raises ValueError for any other text.

    As the server reads it: four digits are a year, more are milliseconds since 1970, and no zone means UTC. A year
    before 0, which is four digits with a sign, is such other text.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError  # noqa: TRY004 - who asks knows the place and says it
    text = repr(value) if isinstance(value, float) else str(value)
    if _SIGNED_YEAR.fullmatch(text):
        raise ValueError
    match = _FORM.fullmatch(text)
    if match is None:
        return _epoch_millis(text)
    year, month, day, hour, minute, second, fraction, zone = match.groups()
    whole = datetime(
        int(year), int(month or 1), int(day or 1), int(hour or 0), int(minute or 0), int(second or 0), tzinfo=UTC
    )
    micros_more = int((fraction or "").ljust(6, "0")[:6])
    return (whole - _EPOCH) // _MICROSECOND + micros_more - _offset_us(zone or "Z")


def _offset_us(zone: str) -> int:
    if zone == "Z":
        return 0
    digits = zone[1:].replace(":", "").ljust(4, "0")
    seconds = int(digits[:2]) * 3600 + int(digits[2:]) * 60
    return (-seconds if zone[0] == "-" else seconds) * _SECOND_US


def _epoch_millis(text: str) -> int:
    try:
        return int((Decimal(text) * _MILLI_US).to_integral_value("ROUND_FLOOR"))
    except (InvalidOperation, ValueError, OverflowError):
        raise ValueError from None
