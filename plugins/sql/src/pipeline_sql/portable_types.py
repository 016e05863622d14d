"""The types that SQLAlchemy knows for every dialect, for an engine of which no more is known here.

What the driver gives and takes are Python's own values. A type that is no plain number, text, date or time is refused
by the column's name: of those each database has its own idea.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Final, Literal

import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa

from pipeline_sql.kinds import check_fraction, decimal, exact, unpacked
from pipeline_sql.kinds import kind as kind_of
from pipeline_sql.kinds import plain as plain_of
from pipeline_sql.tables import Column, TypedColumn
from pipeline_sql.timestamps import INSTANT, Moments, Timestamps, native

_NAIVE: Final = pa.timestamp("us")
_TIME: Final = pa.time64("us")
_WIDEST = 38  # digits of a decimal, which databases have in common
_FINEST = 6  # digits of a second's fraction
# The first that fits; a type that stands for more than its values, such as an enumeration, comes before its base.
_READ: Final[tuple[tuple[type[sa.types.TypeEngine[Any]], pa.DataType | None], ...]] = (
    (sa.Enum, pa.string()),
    (sa.Boolean, pa.bool_()),
    (sa.Integer, pa.int64()),
    (sa.Double, pa.float64()),
    (sa.Float, pa.float64()),
    (sa.Uuid, pa.string()),
    (sa.String, pa.string()),
    (sa.LargeBinary, pa.binary()),
    (sa.BINARY, pa.binary()),
    (sa.VARBINARY, pa.binary()),
    (sa.Date, pa.date32()),
    (sa.Time, _TIME),
)
_TAKES: Final[dict[str, set[str]]] = {
    "bool": {"bool"},
    "int": {"int"},
    "float": {"int", "float"},
    "decimal": {"int", "decimal"},
    "text": {"text"},
    "binary": {"binary"},
    "date": {"date"},
    "time": {"time"},
    "naive": {"naive"},
    "instant": {"instant"},
}
_DECLARED: Final[dict[str, sa.types.TypeEngine[Any]]] = {
    "bool": sa.Boolean(),
    "int": sa.BigInteger(),
    "float": sa.Double(),
    "text": sa.Text(),
    "binary": sa.LargeBinary(),
    "date": sa.Date(),
    "time": sa.Time(),
    "naive": sa.DateTime(),
    "instant": sa.DateTime(timezone=True),
}


class PortableTypes:
    """Types as SQLAlchemy's inspector finds them, and as it declares them in the dialect."""

    def __init__(self, dialect: sa.Dialect) -> None:
        self._dialect = dialect

    def timestamps(self, place: str, column: Column, timezone: str | None, unit: str | None) -> Timestamps:
        found = _type(column)
        moments = partial(_Values, digits=_fraction(found))
        return native(place, column.declared, _holds(found), timezone=timezone, unit=unit, moments=moments)

    def needs_sample(self, column: Column) -> bool:
        del column
        return False

    def arrow(self, column: Column, sample: object) -> pa.DataType | None:
        del sample
        found = _type(column)
        if isinstance(found, sa.DateTime):
            return INSTANT if found.timezone else _NAIVE
        if isinstance(found, sa.Time) and found.timezone:
            return None
        if isinstance(found, sa.Numeric) and not isinstance(found, sa.Float):
            return None if found.precision is None else decimal(found.precision, found.scale or 0)
        return next((arrow for kind, arrow in _READ if isinstance(found, kind)), None)

    def read(self, values: Sequence[Any], arrow: pa.DataType) -> pa.Array:
        return _READERS.get(kind_of(arrow), pa.array)(values, arrow)

    def timestamp_declaration(self, timezone: str | None, unit: str | None) -> str:
        if unit is not None:
            return self._compiled(sa.BigInteger())
        return self._compiled(sa.DateTime(timezone=timezone is None))

    def declaration(self, arrow: pa.DataType) -> str | None:
        arrow = plain_of(arrow)
        kind = kind_of(arrow)
        if kind == "decimal":
            fits = arrow.precision <= _WIDEST and arrow.scale >= 0
            return self._compiled(sa.Numeric(arrow.precision, arrow.scale)) if fits else None
        if arrow == pa.uint64():
            return self._compiled(sa.Numeric(20, 0))
        return self._compiled(_DECLARED[kind]) if kind in _DECLARED else None

    def accepts(self, column: Column, arrow: pa.DataType) -> bool:
        target = self.arrow(column, None)
        kind = kind_of(plain_of(arrow))
        return target is not None and (kind == "null" or kind in _TAKES[kind_of(target)])

    def write(self, array: pa.Array, column: Column) -> list[Any]:
        """Python's own values. Raises ValueError for one that the column may change without a word."""
        found, array = _type(column), unpacked(array)
        written = exact(array, self.arrow(column, None))
        if isinstance(found, sa.Float) and not isinstance(found, sa.Double):
            exact(written, pa.float32())  # nobody says how wide it is
        if isinstance(found, sa.String) and found.length is not None:
            _check_length(written, found)
        fraction = _fraction(found)
        if fraction is not None:
            check_fraction(written, fraction)
        return written.to_pylist()  # type: ignore[no-any-return]

    def _compiled(self, kind: sa.types.TypeEngine[Any]) -> str:
        return kind.compile(dialect=self._dialect)


def _type(column: Column) -> sa.types.TypeEngine[Any]:
    if not isinstance(column, TypedColumn):
        raise TypeError(f"{column!r} does not come from SQLAlchemy's inspector")
    return column.type


def _holds(found: sa.types.TypeEngine[Any]) -> Literal["numbers", "local times", "instants"] | None:
    if isinstance(found, sa.Integer):
        return "numbers"
    if isinstance(found, sa.DateTime):
        return "instants" if found.timezone else "local times"
    return None


def _fraction(found: sa.types.TypeEngine[Any]) -> int | None:
    """The digits of a second's fraction that a type declares; None where it declares none, or all of a microsecond's.

    Dialects that read them call them precision. A type that declares none is taken to keep microseconds.
    """
    digits = getattr(found, "precision", None) if isinstance(found, sa.DateTime | sa.Time) else None
    return digits if digits is not None and digits < _FINEST else None


def _check_length(texts: pa.Array, found: sa.String) -> None:
    lengths = pc.utf8_length(texts)
    if pc.any(pc.greater(lengths, found.length)).as_py():
        raise ValueError(f"a text of more than {found.length} characters")
    if isinstance(found, sa.CHAR | sa.NCHAR) and pc.any(pc.less(lengths, found.length)).as_py():
        raise ValueError("a text of another length, which char(n) would fill with spaces")


def _read_text(values: Sequence[Any], arrow: pa.DataType) -> pa.Array:
    return pa.array([None if value is None else str(value) for value in values], arrow)


def _read_binary(values: Sequence[Any], arrow: pa.DataType) -> pa.Array:
    return pa.array([None if value is None else bytes(value) for value in values], arrow)


def _read_naive(values: Sequence[Any], arrow: pa.DataType) -> pa.Array:
    _check_zones(values, aware=False)
    return pa.array(values, arrow)


def _read_instant(values: Sequence[Any], arrow: pa.DataType) -> pa.Array:
    _check_zones(values, aware=True)
    return pa.array(values, arrow)


def _check_zones(values: Sequence[Any], *, aware: bool) -> None:
    # Arrow would take the one for the other.
    if not all(value is None or _is_moment(value, aware=aware) for value in values):
        raise ValueError("a time with a zone in a column that declares none, or the other way round")


def _is_moment(value: object, *, aware: bool) -> bool:
    return isinstance(value, datetime) and (value.tzinfo is not None) == aware


_READERS: Final[dict[str, Callable[[Sequence[Any], pa.DataType], pa.Array]]] = {
    "text": _read_text,
    "binary": _read_binary,
    "naive": _read_naive,
    "instant": _read_instant,
}


class _Values(Moments):
    """Dates with a time as Python's own, with a zone just where the column has one."""

    def check(self, value: object) -> bool:
        return _is_moment(value, aware=self._zone is None)

    def decode(self, values: Sequence[Any]) -> pa.Array:
        _check_zones(values, aware=self._zone is None)
        return super().decode(values)

    def encode(self, instants: pa.Array) -> list[Any]:
        return super().encode(instants).to_pylist()  # type: ignore[no-any-return]
