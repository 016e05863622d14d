"""PostgreSQL's types. The database keeps each value in its column's own type, so that only the way there is checked.

Both ways the values are Arrow's: extraction builds arrays from what psycopg reads, and an upload encodes arrays as the
binary COPY of exactly the columns' types. What has no exact counterpart is refused by the column's name: an interval
counts months and days that are no fixed time, a numeric without precision holds any number of digits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final, Literal
from uuid import UUID

import pgpq
import pyarrow as pa
import pyarrow.compute as pc
from attrs import frozen
from pgpq import encoders, schema
from pyarrow import types as pt

from pipeline_sql.kinds import as_json, check_fraction, decimal, exact, unpacked
from pipeline_sql.kinds import kind as kind_of
from pipeline_sql.kinds import plain as plain_of
from pipeline_sql.tables import Column
from pipeline_sql.timestamps import INSTANT, Moments, Timestamps, native

_NAIVE: Final = pa.timestamp("us")
_TIME: Final = pa.time64("us")
_INTEGERS = {"int2": pa.int16(), "int4": pa.int32(), "int8": pa.int64()}
_FLOATS = {"float4": pa.float32(), "float8": pa.float64()}
_PLAIN: Final[dict[str, pa.DataType]] = {
    "bool": pa.bool_(),
    **_INTEGERS,
    **_FLOATS,
    "text": pa.string(),
    "varchar": pa.string(),
    "bpchar": pa.string(),
    "json": pa.string(),
    "jsonb": pa.string(),
    "uuid": pa.string(),
    "bytea": pa.binary(),
    "date": pa.date32(),
    "time": _TIME,
    "timestamp": _NAIVE,
    "timestamptz": INSTANT,
}
# Of these an array can be written too: it carries the type of its elements, which COPY compares.
_ELEMENTS = ("bool", "int2", "int4", "int8", "float4", "float8", "text")
_WIDEST = 38  # digits of a decimal that the upload can encode
_FINEST = 6  # digits of a second's fraction
_HOLDS: Final[dict[str, Literal["numbers", "local times", "instants"]]] = {
    "int4": "numbers",
    "int8": "numbers",
    "timestamp": "local times",
    "timestamptz": "instants",
}

_DECLARATIONS: Final = {
    pa.bool_(): "boolean",
    pa.int8(): "smallint",
    pa.uint8(): "smallint",
    pa.int16(): "smallint",
    pa.uint16(): "integer",
    pa.int32(): "integer",
    pa.uint32(): "bigint",
    pa.int64(): "bigint",
    pa.uint64(): "bigint",
    pa.float16(): "real",
    pa.float32(): "real",
    pa.float64(): "double precision",
}
_BY_KIND: Final = {
    "text": "text",
    "binary": "bytea",
    "date": "date",
    "time": "time",
    "naive": "timestamp",
    "instant": "timestamptz",
}
_TAKES: Final[dict[str, set[str]]] = {
    "bool": {"bool"},
    "json": {"text", "nested"},
    "jsonb": {"text", "nested"},
    "numeric": {"int", "decimal"},
    **{name: {"int"} for name in _INTEGERS},
    **{name: {"int", "float"} for name in _FLOATS},
    **{name: {kind_of(_PLAIN[name])} for name in ("text", "varchar", "bpchar", "bytea", "date", "time")},
    "uuid": {"text"},
    "enum": {"text"},
    "timestamp": {"naive"},
    "timestamptz": {"instant"},
}


@frozen
class PostgresColumn(Column):
    """A column, with its type's short name: that of the elements for an array, `enum` for any enumeration."""

    type: str = ""
    array: bool = False
    modifier: int = -1

    @property
    def digits(self) -> tuple[int, int] | None:
        """Precision and scale of a numeric; None where it has none."""
        if self.modifier < 0:
            return None
        packed = self.modifier - 4
        return packed >> 16 & 0xFFFF, (packed & 0x7FF ^ 1024) - 1024

    @property
    def fraction(self) -> int:
        """How many digits of a second's fraction a time or timestamp keeps."""
        return _FINEST if self.modifier < 0 else self.modifier


class PostgresTypes:
    """PostgreSQL's types, by the names of its own catalog."""

    def timestamps(self, place: str, column: Column, timezone: str | None, unit: str | None) -> Timestamps:
        of = _of(column)
        holds = None if of.array else _HOLDS.get(of.type)
        moments = partial(Moments, digits=None if of.fraction == _FINEST else of.fraction)
        return native(place, column.declared, holds, timezone=timezone, unit=unit, moments=moments)

    def needs_sample(self, column: Column) -> bool:
        del column
        return False

    def arrow(self, column: Column, sample: object) -> pa.DataType | None:
        del sample
        of = _of(column)
        found = pa.string() if of.type == "enum" else _PLAIN.get(of.type)
        if of.type == "numeric":
            found = _of_digits(of)
        return pa.list_(found) if of.array and found is not None else found

    @staticmethod
    def is_enums(column: Column) -> bool:
        """Whether a column holds arrays of an enumeration."""
        return _of(column).array and _of(column).type == "enum"

    def read(self, values: Sequence[Any], arrow: pa.DataType) -> pa.Array:
        if pt.is_list(arrow) and str in set(map(type, values)):
            raise TypeError("an array that the driver left as text")  # Arrow would make a list of its characters
        return pa.array(values, arrow)

    def timestamp_declaration(self, timezone: str | None, unit: str | None) -> str:
        if unit is not None:
            return "bigint"
        return "timestamptz" if timezone is None else "timestamp"

    def declaration(self, arrow: pa.DataType) -> str | None:
        arrow = plain_of(arrow)
        kind = kind_of(arrow)
        if kind == "decimal":
            return f"numeric({arrow.precision},{arrow.scale})" if arrow.precision <= _WIDEST else None
        if kind != "nested":
            return _DECLARATIONS.get(arrow) or _BY_KIND.get(kind)
        inner = _DECLARATIONS.get(_element(arrow)) or ("text" if pt.is_string(_element(arrow)) else None)
        return f"{inner}[]" if inner else "jsonb"

    def accepts(self, column: Column, arrow: pa.DataType) -> bool:
        of, arrow = _of(column), plain_of(arrow)
        kind = kind_of(arrow)
        if of.type == "numeric" and of.digits is not None and of.digits[0] > _WIDEST:
            return False
        if of.array:
            element = _element(arrow)
            return of.type in _ELEMENTS and element is not None and kind_of(element) in _TAKES[of.type]
        return of.type in _TAKES and (kind == "null" or kind in _TAKES[of.type])

    def write(self, array: pa.Array, column: Column) -> Any:
        """The values as Arrow array of just the type that the column's binary form is encoded from."""
        of, array = _of(column), unpacked(array)
        if kind_of(array.type) == "null":
            return array.cast(_encoded(of, array.type))
        if of.array:
            values = pc.list_flatten(array)
            _check(values, of)
            return exact(array, pa.list_(_PLAIN[of.type]))
        if of.type in ("json", "jsonb") and kind_of(array.type) == "nested":
            array = as_json(array)
        if of.type == "uuid":
            return pa.array([None if text is None else UUID(text).bytes for text in array.to_pylist()], pa.binary())
        _check(array, of)
        return exact(array, _encoded(of, array.type))

    def encoder(self, columns: Sequence[Column], arrays: Sequence[pa.Array]) -> pgpq.ArrowToPostgresBinaryEncoder:
        """What turns batches of such arrays into the binary COPY of those columns."""
        fields = pa.schema([pa.field(f"c{index}", array.type) for index, array in enumerate(arrays)])
        builders: Mapping[str, Any] = {
            field.name: encoders.StringEncoderBuilder.new_with_output(field, schema.Jsonb())
            if isinstance(column, PostgresColumn) and column.type == "jsonb"
            else pgpq.ArrowToPostgresBinaryEncoder.infer_encoder(field)
            for field, column in zip(fields, columns, strict=True)
        }
        return pgpq.ArrowToPostgresBinaryEncoder.new_with_encoders(fields, builders)


def _of(column: Column) -> PostgresColumn:
    if not isinstance(column, PostgresColumn):
        raise TypeError(f"{column!r} does not come from PostgreSQL's catalog")
    return column


def _of_digits(of: PostgresColumn) -> pa.DataType | None:
    return None if of.digits is None else decimal(*of.digits)


def _element(arrow: pa.DataType) -> pa.DataType | None:
    lists = (pt.is_list, pt.is_large_list, pt.is_fixed_size_list)
    return plain_of(arrow.value_type) if any(holds(arrow) for holds in lists) else None


def _encoded(of: PostgresColumn, given: pa.DataType) -> pa.DataType:
    if of.type == "uuid":
        return pa.binary()
    if of.type == "numeric":
        return _of_digits(of) or (given if pt.is_decimal128(given) else pa.decimal128(_WIDEST, 0))
    plain = pa.string() if of.type == "enum" else _PLAIN[of.type]
    return pa.list_(plain) if of.array else plain


def _check(array: pa.Array, of: PostgresColumn) -> None:
    """Raises ValueError for what the column would change, or the server refuse without naming the column."""
    kind = kind_of(array.type)
    if kind == "text" and pc.any(pc.match_substring(array, "\0")).as_py():
        raise ValueError("a NUL character, which PostgreSQL cannot store in text")
    if of.type == "bpchar" and not pc.all(pc.equal(pc.utf8_length(array), of.modifier - 4), min_count=0).as_py():
        raise ValueError("a text of another length, which character(n) would fill with spaces")
    if kind in ("time", "naive", "instant") and of.fraction < _FINEST:
        check_fraction(array.cast(_PLAIN[of.type]), of.fraction)
