"""How a timestamp column stores instants: what a window is in stored values, and both ways to instants.

Stored values travel as integers, microseconds since 1970 on the column's own clock, in both directions: so nothing
depends on how a connector or a file format writes a timestamp. The column itself is compared, never a function of it,
so that Snowflake passes over the micro-partitions that hold none of the window.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.compute as pc
from attrs import frozen

from pipeline_core import SideError, Window
from pipeline_core.window import MAX_US, MIN_US
from pipeline_core.zones import naive_bound, segments, zone
from pipeline_snowflake.names import quoted
from pipeline_snowflake.table import Column

INSTANTS: Final = ("TIMESTAMP_LTZ", "TIMESTAMP_TZ")
NAIVE: Final = "TIMESTAMP_NTZ"
US: Final = 6
_EPOCH: Final = datetime(1970, 1, 1)  # noqa: DTZ001 - local values have no zone
_MICROSECOND: Final = timedelta(microseconds=1)

#: A condition, and the values bound in it, in order.
Clause = tuple[str, tuple[object, ...]]


@frozen
class Timestamps:
    """A timestamp column; `zone` where its values carry none. `digits` is how many of a second's fraction it keeps."""

    column: str
    kind: str
    zone: ZoneInfo | None
    digits: int

    @property
    def sql(self) -> str:
        """The column, quoted."""
        return quoted(self.column)

    @property
    def bound(self) -> str:
        """A stored value, bound as an integer."""
        return f"TO_{self.kind}(?, {US})"

    def cut(self, us: int) -> int:
        """The least stored value, as an integer, that stands for the instant or a later one."""
        return us if self.zone is None else (naive_bound(us, self.zone) - _EPOCH) // _MICROSECOND

    def between(self, low: int, high: int) -> Clause:
        """The condition that a stored value lies in `low <= value < high`."""
        return f"{self.sql} >= {self.bound} AND {self.sql} < {self.bound}", (low, high)

    def inside(self, window: Window) -> Clause:
        """The condition that a row belongs to the window."""
        return self.between(self.cut(window.start_us), self.cut(window.end_us))

    @property
    def excluded(self) -> Clause:
        """The condition that a row belongs to no window at all: no timestamp, or none of the years 1 to 9999."""
        sql, bound = self.sql, self.bound
        return f"({sql} IS NULL OR {sql} < {bound} OR {sql} > {bound})", (MIN_US, MAX_US)

    def instants(self, stored: pa.Array, window: Window) -> pa.Array:
        """Instants in microseconds UTC, of stored values of the window as integers."""
        if self.zone is None:
            return stored
        # A repeated local time stands for its first pass, a skipped one for the jump.
        found = None
        for start, end, offset in reversed(segments(self.zone, window.start_us, window.end_us)):
            these = pc.max_element_wise(pc.subtract(stored, offset), start, skip_nulls=False)
            found = these if found is None else pc.if_else(pc.less(stored, self.cut(end)), these, found)
        return stored if found is None else found

    def stored(self, instants: pa.Array, window: Window) -> pa.Array:
        """Stored values as integers, for instants of the window in microseconds UTC."""
        if self.zone is None:
            return instants
        found = None
        for _, end, offset in reversed(segments(self.zone, window.start_us, window.end_us)):
            these = pc.add(instants, offset)
            found = these if found is None else pc.if_else(pc.less(instants, end), these, found)
        return instants if found is None else found


def of_column(place: str, column: Column, timezone: str | None) -> Timestamps:
    """How a column stores instants. Raises SideError where the settings do not fit its type."""
    if column.kind not in (NAIVE, *INSTANTS):
        raise SideError(
            f"{place}: it is declared {column.declared}, expected a TIMESTAMP_NTZ, _LTZ or _TZ; "
            "name another timestamp_column"
        )
    digits = column.sizes[0] if column.sizes else 9
    if column.kind != NAIVE:
        if timezone is not None:
            raise SideError(f"{place}: it is declared {column.declared}, an instant; leave out timestamp_timezone")
        return Timestamps(column.name, column.kind, None, digits)
    if timezone is None:
        raise SideError(
            f"{place}: it is declared {column.declared}, which carries no zone; "
            "set timestamp_timezone to the zone that its times are meant in"
        )
    return Timestamps(column.name, column.kind, zone(timezone), digits)


def as_integer(column: str) -> str:
    """A timestamp column, given quoted, in microseconds since 1970 on its own clock; finer is truncated. In SQL."""
    return f"DATE_PART(EPOCH_MICROSECOND, DATE_TRUNC(MICROSECOND, {column}))"
