"""SQLite's types. SQLite keeps what it is given, whatever a column declares: so every value is checked, both ways.

Written forms: decimals, dates and times are text, timestamps ISO 8601 text with a space and six digits, with a `Z`
where they carry a zone. Two declared types are ours, because SQLite would turn a decimal text in a NUMERIC column into
a binary fraction, and knows no difference between local time and an instant: `DECIMALTEXT(p,s)` (TEXT affinity) and
`TIMESTAMPTZ`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import date, time
from decimal import Decimal
from functools import partial
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types as pt

from pipeline_core import SideError
from pipeline_core.window import MAX_US, MIN_US
from pipeline_core.zones import zone
from pipeline_sql.kinds import as_json, decimal, read_bool, read_text_form, read_time, unpacked
from pipeline_sql.kinds import kind as kind_of
from pipeline_sql.kinds import plain as plain_of
from pipeline_sql.tables import Column
from pipeline_sql.timestamps import INSTANT, EpochTimestamps, TextTimestamps, Timestamps

_NAIVE: Final = pa.timestamp("us")
_TIME: Final = pa.time64("us")
_DECLARED = re.compile(r"\s*([^()]*?)\s*(?:\(\s*(\d+)\s*(?:,\s*(\d+)\s*)?\)\s*([^()]*?)\s*)?", re.DOTALL)
_PLAIN = {
    "BOOL": pa.bool_(),
    "BOOLEAN": pa.bool_(),
    "DATE": pa.date32(),
    "TIME": _TIME,
    "JSON": pa.string(),
    "UUID": pa.string(),
    "TIMESTAMPTZ": INSTANT,
    "TIMESTAMP WITH TIME ZONE": INSTANT,
    "DATETIME": _NAIVE,
    "TIMESTAMP": _NAIVE,
    "TIMESTAMP WITHOUT TIME ZONE": _NAIVE,
}
_NUMERIC = {"DECIMAL", "NUMERIC", "DEC", "NUMBER"}
# SQLite's own rules of affinity, in its order (https://sqlite.org/datatype3.html, 3.1), and the names of binary types.
_BY_PART = (
    ("INT", pa.int64()),
    ("CHAR", pa.string()),
    ("CLOB", pa.string()),
    ("TEXT", pa.string()),
    ("BLOB", pa.binary()),
    ("BINARY", pa.binary()),
    ("REAL", pa.float64()),
    ("FLOA", pa.float64()),
    ("DOUB", pa.float64()),
)
_BY_VALUE = {int: pa.int64(), float: pa.float64(), str: pa.string(), bytes: pa.binary()}
_STORED: Final[dict[str, set[type]]] = {
    "int": {int},
    "bool": {int},
    "float": {int, float},
    "decimal": {int, float, str},
    "binary": {bytes},
    "null": set(),
}  # every other kind is text

# Which staged kinds a column of a kind takes. Dates and times in a text column are ISO 8601, as SQLite recommends.
_TAKES: Final[dict[str, set[str]]] = {
    "bool": {"bool"},
    "int": {"bool", "int"},
    "float": {"int", "float"},
    "numeric": {"int", "float", "decimal"},
    "decimal": {"int", "decimal"},
    "text": {"text", "date", "time", "naive", "instant", "nested"},
    "binary": {"binary"},
    "date": {"date"},
    "time": {"time"},
    "naive": {"naive", "instant"},
    "instant": {"instant"},
}
# The declared types of NUMERIC affinity that take text, and what that affinity turns into a number.
_NUMERIC_TEXTS = {"JSON", "UUID"}
_NUMBER = r"\A[ \t\n\v\f\r]*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?[ \t\n\v\f\r]*\z"
# A binary fraction of 64 bits keeps this many decimal digits, so SQLite's NUMERIC affinity does.
_SURE_DIGITS = 15
_LARGEST = 2**63 - 1
# Beyond these Arrow writes a text that nobody reads as a date or time.
_ENDS: Final[dict[pa.DataType, tuple[Any, Any]]] = {
    pa.date32(): (date.min, date.max),
    _TIME: (time.min, time.max),
    _NAIVE: (MIN_US, MAX_US),
    INSTANT: (MIN_US, MAX_US),
}


class SqliteTypes:
    """SQLite's types, by the names that columns declare."""

    def timestamps(self, place: str, column: Column, timezone: str | None, unit: str | None) -> Timestamps:
        declared, _, _ = _parsed(column.declared)
        epoch = "INT" in declared
        if unit is None and epoch:
            raise SideError(
                f"{place}: it is declared {column.declared}, so it holds numbers since 1970; "
                'set timestamp_unit to what they count: "s", "ms" or "us"'
            )
        if unit is None and pt.is_floating(_by_name(declared) or pa.null()):
            raise SideError(
                f"{place}: it is declared {column.declared}, which cannot hold microseconds exactly; "
                "expected text, or an INTEGER with timestamp_unit"
            )
        if unit is None:
            return TextTimestamps(place, zone(timezone) if timezone else None)
        if timezone is not None:
            raise SideError(f"{place}: numbers since 1970 are UTC; leave out timestamp_timezone, or timestamp_unit")
        if not epoch:
            raise SideError(
                f"{place}: found timestamp_unit = {unit!r} for a column declared "
                f"{column.declared or 'without a type'}; leave it out for text, or declare the column INTEGER"
            )
        return EpochTimestamps(place, unit)

    def needs_sample(self, column: Column) -> bool:
        declared, _, _ = _parsed(column.declared)
        return not declared or _PLAIN.get(declared) == _NAIVE

    def arrow(self, column: Column, sample: object) -> pa.DataType | None:
        declared, precision, scale = _parsed(column.declared)
        if not declared:
            return pa.null() if sample is None else _BY_VALUE[type(sample)]
        if declared == "DECIMALTEXT" or (declared in _NUMERIC and precision is not None):
            return None if precision is None else decimal(precision, scale)
        found = _by_name(declared)
        if found == _NAIVE and isinstance(sample, str) and re.search(r":\d\d(\.\d+)?([Zz]|[+-]\d\d:?\d\d)$", sample):
            return INSTANT
        return found

    def read(self, values: Sequence[Any], arrow: pa.DataType) -> pa.Array:
        kind = kind_of(arrow)
        if not set(map(type, values)) <= _STORED.get(kind, {str}) | {type(None)}:
            raise TypeError("a value of another type")
        return _READERS.get(kind, _as_it_is)(values, arrow)

    def timestamp_declaration(self, timezone: str | None, unit: str | None) -> str:
        if unit is not None:
            return "INTEGER"
        return "TIMESTAMPTZ" if timezone is None else "TIMESTAMP"

    def declaration(self, arrow: pa.DataType) -> str | None:
        plain = plain_of(arrow)
        kind = kind_of(plain)
        if kind == "decimal":
            return f"DECIMALTEXT({plain.precision},{plain.scale})"
        return _DECLARATIONS.get(kind)

    def accepts(self, column: Column, arrow: pa.DataType) -> bool:
        kind = kind_of(plain_of(arrow))
        declared, precision, _ = _parsed(column.declared)
        if not declared or kind in {"null", "unknown"}:
            return kind != "unknown"
        if declared in _NUMERIC and precision is None:
            return kind in _TAKES["numeric"]
        target = self.arrow(column, None)
        return target is not None and kind in _TAKES[kind_of(target)]

    def write(self, array: pa.Array, column: Column) -> list[Any]:
        array = unpacked(array)
        kind = kind_of(array.type)
        target = self.arrow(column, None)
        declared, _, _ = _parsed(column.declared)
        if declared in _NUMERIC_TEXTS and kind == "text" and pc.any(pc.match_substring_regex(array, _NUMBER)).as_py():
            raise ValueError("a text that SQLite would turn into a number; a column declared TEXT keeps it")
        if declared in _NUMERIC:
            return _write_numeric(array, kind, target)
        if kind == "int" and pt.is_floating(target):
            array.cast(target)  # Arrow refuses what does not fit exactly
        if kind in {"int", "decimal"} and pt.is_decimal(target):
            array, kind = _as_decimal(array, target), "decimal"
        return _WRITERS.get(kind, _write_as_it_is)(array)


def _parsed(declared: str) -> tuple[str, int | None, int]:
    """A declared type as its name in capitals without what stands in brackets, its precision and its scale."""
    found = _DECLARED.fullmatch(declared)
    if found is None:
        return declared.upper(), None, 0
    name, precision, scale, rest = found.groups()
    words = " ".join(f"{name} {rest or ''}".upper().split())
    return words, None if precision is None else int(precision), int(scale or 0)


def _by_name(declared: str) -> pa.DataType | None:
    if declared in _PLAIN:
        return _PLAIN[declared]
    if declared in _NUMERIC:
        return pa.float64()
    return next((arrow for part, arrow in _BY_PART if part in declared), None)


# --- from SQLite ------------------------------------------------------------------------------------------------------


def _as_it_is(values: Sequence[Any], arrow: pa.DataType) -> pa.Array:
    return pa.array(values, arrow)


def _read_decimal(values: Sequence[Any], arrow: pa.DataType) -> pa.Array:
    # The shortest decimal that names a binary fraction is the one that was stored, up to 15 digits.
    return pa.array([None if v is None else Decimal(repr(v) if isinstance(v, float) else v) for v in values], arrow)


_READERS: Final[dict[str, Callable[[Sequence[Any], pa.DataType], pa.Array]]] = {
    "bool": read_bool,
    "decimal": _read_decimal,
    "date": read_text_form,
    "time": read_time,
    "naive": read_text_form,
    "instant": read_text_form,
}


# --- to SQLite --------------------------------------------------------------------------------------------------------


def _write_as_it_is(array: pa.Array) -> list[Any]:
    return array.to_pylist()  # type: ignore[no-any-return]


def _write_int(array: pa.Array) -> list[Any]:
    return array.cast(pa.int64()).to_pylist()  # type: ignore[no-any-return]


def _write_float(array: pa.Array) -> list[Any]:
    array = array.cast(pa.float64())
    if pc.any(pc.is_nan(array)).as_py():
        raise ValueError("NaN, which SQLite would store as NULL")
    return array.to_pylist()  # type: ignore[no-any-return]


def _write_decimal(array: pa.Array) -> list[Any]:
    return [None if value is None else format(value, "f") for value in array.to_pylist()]


def _as_decimal(array: pa.Array, target: pa.DataType) -> pa.Array:
    # Arrow casts integers by their type's widest value, not by the values that are there.
    return array.cast(target) if pt.is_decimal(array.type) else _read_decimal(array.to_pylist(), target)


def _write_numeric(array: pa.Array, kind: str, target: pa.DataType) -> list[Any]:
    """For a column of NUMERIC affinity, which turns texts into integers, or into binary fractions."""
    if kind in {"int", "decimal"} and pt.is_decimal(target):
        _as_decimal(array, target)
    elif kind == "int":
        array.cast(target)
    if kind != "decimal":
        return _WRITERS.get(kind, _write_as_it_is)(array)
    return [None if value is None else _surviving(value) for value in array.to_pylist()]


def _surviving(value: Decimal) -> str:
    if value == value.to_integral_value() and abs(value) <= _LARGEST:
        return str(int(value))
    if len(value.normalize().as_tuple().digits) > _SURE_DIGITS:
        raise ValueError("a decimal of more than 15 digits, which a NUMERIC column of SQLite would round")
    return format(value, "f")


def _write_text_form(array: pa.Array, form: pa.DataType) -> list[Any]:
    times = array.cast(form)
    least, most = (pa.scalar(end, form) for end in _ENDS[form])
    if pc.any(pc.or_(pc.less(times, least), pc.greater(times, most))).as_py():
        raise ValueError("a date outside the years 1 to 9999, or a time outside the 24 hours of a day")
    return times.cast(pa.string()).to_pylist()  # type: ignore[no-any-return]


def _write_nested(array: pa.Array) -> list[Any]:
    return as_json(array).to_pylist()  # type: ignore[no-any-return]


_WRITERS: Final[dict[str, Callable[[pa.Array], list[Any]]]] = {
    "int": _write_int,
    "float": _write_float,
    "decimal": _write_decimal,
    "date": partial(_write_text_form, form=pa.date32()),
    "time": partial(_write_text_form, form=_TIME),
    "naive": partial(_write_text_form, form=_NAIVE),
    "instant": partial(_write_text_form, form=INSTANT),
    "nested": _write_nested,
}
_DECLARATIONS: Final = {
    "bool": "BOOLEAN",
    "int": "INTEGER",
    "float": "DOUBLE",
    "text": "TEXT",
    "binary": "BLOB",
    "date": "DATE",
    "time": "TIME",
    "naive": "TIMESTAMP",
    "instant": "TIMESTAMPTZ",
    "nested": "TEXT",
}
