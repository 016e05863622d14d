"""Instants and windows: 64-bit microseconds UTC since 1970 inside, `pendulum.DateTime` at the edge."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from typing import Final, Self

import attrs
import pendulum

from pipeline_core.errors import TimeError

SECOND_US: Final = 1_000_000
DAY_US: Final = 86_400 * SECOND_US
EPOCH_DAY: Final = date(1970, 1, 1).toordinal()
# The years that datetime and pendulum can hold. Outside them an instant could be stored but never shown.
MIN_US: Final = (date.min.toordinal() - EPOCH_DAY) * DAY_US
MAX_US: Final = (date.max.toordinal() - EPOCH_DAY + 1) * DAY_US - 1

_EPOCH: Final = pendulum.DateTime(1970, 1, 1, tzinfo=pendulum.UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def to_us(instant: datetime) -> int:
    """Microseconds UTC since 1970-01-01T00:00:00Z of an aware datetime; `fold` chooses the pass of a repeated hour.

    Raises TimeError for anything that is not a datetime, for a naive one, and for one outside the years 1 to 9999 UTC.
    """
    if not isinstance(instant, datetime):
        raise TimeError(f"instant: found {instant!r}, expected a datetime with a time zone")
    offset = instant.utcoffset()
    if offset is None:
        raise TimeError(
            f"instant: found the naive datetime {instant.isoformat()}, expected one with a time zone; "
            "attach one, as in pendulum.datetime(2013, 3, 10, tz='America/New_York')"
        )
    # Subtracting two datetimes would build a pendulum Interval, or ignore the offsets when both share one tzinfo.
    seconds = (instant.toordinal() - EPOCH_DAY) * 86_400 + instant.hour * 3600 + instant.minute * 60 + instant.second
    return check_us(seconds * SECOND_US + instant.microsecond - offset // _MICROSECOND)


def from_us(us: int) -> pendulum.DateTime:
    """The UTC instant of `us` microseconds since the epoch. Raises TimeError outside the years 1 to 9999."""
    try:
        # datetime's own addition keeps the subclass and takes a tenth of the time of pendulum's.
        return datetime.__add__(_EPOCH, us * _MICROSECOND)
    except OverflowError:
        raise _outside(us) from None


def check_us(us: int) -> int:
    """`us` itself. Raises TimeError where no datetime could show it (outside the years 1 to 9999 UTC)."""
    if MIN_US <= us <= MAX_US:
        return us
    raise _outside(us)


def iso(us: int) -> str:
    """ISO 8601 in UTC, `2013-03-10T05:00:00Z`; microseconds only where there are any."""
    return f"{from_us(us).replace(tzinfo=None).isoformat()}Z"


def _outside(us: int) -> TimeError:
    return TimeError(
        f"instant: found {us} microseconds since 1970, which is outside the years 1 to 9999 UTC; "
        "check that the number counts microseconds, and that no window reaches past those years"
    )


def _shown(us: int) -> str:
    return iso(us) if MIN_US <= us <= MAX_US else f"{us} us"


@attrs.frozen(init=False, order=True, repr=False)
class Window:
    """A half-open span of instants `[start, end)`.

    `start_us` and `end_us` are microseconds UTC since the epoch, and all that counts for order, equality and hash:
    aware datetimes cannot serve, because two instants an hour apart in a repeated hour may compare equal.
    """

    start_us: int
    end_us: int

    def __init__(self, start: datetime, end: datetime) -> None:
        """From two aware datetimes. Raises TimeError for a naive one, and unless `start` is before `end`."""
        _fill(self, to_us(start), to_us(end))

    @classmethod
    def from_us(cls, start_us: int, end_us: int) -> Self:
        """From microseconds UTC since the epoch. Raises TimeError unless start < end, in the years 1 to 9999."""
        window = cls.__new__(cls)
        _fill(window, start_us, end_us)
        return window

    @property
    def start(self) -> pendulum.DateTime:
        """The first instant, UTC."""
        return from_us(self.start_us)

    @property
    def end(self) -> pendulum.DateTime:
        """The first instant after the window, UTC: a row exactly here belongs to the next window."""
        return from_us(self.end_us)

    def __str__(self) -> str:
        return f"{iso(self.start_us)}/{iso(self.end_us)}"

    def __repr__(self) -> str:
        return f"<Window {self}>"


def _fill(window: Window, start_us: int, end_us: int) -> None:
    if not MIN_US <= start_us < end_us <= MAX_US:
        if start_us >= end_us:
            raise TimeError(
                f"window: found start {_shown(start_us)} and end {_shown(end_us)}, expected the start before the end; "
                "swap the two, or widen the span"
            )
        check_us(start_us)
        check_us(end_us)
    # The slots' own setters pass by attrs' guard against assignment, in half the time of object.__setattr__.
    _set_start(window, start_us)
    _set_end(window, end_us)


_set_start = Window.__dict__["start_us"].__set__
_set_end = Window.__dict__["end_us"].__set__
