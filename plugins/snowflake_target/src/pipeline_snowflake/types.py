"""What Snowflake's types mean to others: how a column is read, and how staged values become its own.

Staged values go into scratch in the plainest form that a Parquet file can carry (numbers, text, dates, bytes), and are
made into the column's type by the insert. Each is checked on the way: a cast of Snowflake would round a fraction, and
cut off what it has no digits for, without a word.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
from attrs import frozen
from pyarrow import types as pt

from pipeline_snowflake.table import Column
from pipeline_snowflake.timestamps import INSTANTS, NAIVE, US, as_integer

MISFIT: Final = (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError, OverflowError)
# What is made for 64 bits has as many; the few numbers of 19 digits that are beyond them are refused.
_INT64_DIGITS: Final = 19
_DIGITS_OF_TIME: Final = 9  # of a second's fraction, where a type says none
# Which nested values each takes, and how a text for it begins. Snowflake makes NULL of a blank one, and of anything but
# an array that is cast to one an array of it.
_SEMI: Final = {
    "VARIANT": ({"list", "struct", "map"}, ""),
    "ARRAY": ({"list"}, "["),
    "OBJECT": ({"struct", "map"}, "{"),
}
_UTC: Final = pa.timestamp("us", "UTC")
_LOCAL: Final = pa.timestamp("us")


# --- reading ---------------------------------------------------------------------------------------------------------


@frozen
class Reading:
    """How a column is read: the expression that selects it, and the Arrow type that its values get."""

    sql: str
    arrow: pa.DataType

    def read(self, values: pa.Array) -> pa.Array:
        """Values as the connector gives them, in the column's Arrow type. Nulls stay."""
        if pt.is_timestamp(self.arrow):
            return values.cast(pa.int64()).cast(self.arrow)
        if pt.is_time(self.arrow):
            return values.cast(pa.time64("ns")).cast(self.arrow, safe=False)
        return values.cast(self.arrow)


def reading(column: Column) -> Reading | None:
    """How a column is read; None where no type of others keeps what it means."""
    name = column.sql
    if column.kind == "NUMBER":
        precision, scale = column.sizes or (38, 0)
        small = scale == 0 and precision <= _INT64_DIGITS
        return Reading(name, pa.int64() if small else pa.decimal128(precision, scale))
    if column.kind in _SEMI:
        return Reading(f"TO_JSON({name})", pa.string())
    if column.kind in (NAIVE, *INSTANTS):
        return Reading(as_integer(name), _LOCAL if column.kind == NAIVE else _UTC)
    arrow = _PLAIN.get(column.kind)
    return None if arrow is None else Reading(name, arrow)


_PLAIN: Final = {
    "FLOAT": pa.float64(),
    "VARCHAR": pa.string(),
    "BOOLEAN": pa.bool_(),
    "DATE": pa.date32(),
    "TIME": pa.time64("us"),
    "BINARY": pa.binary(),
}


# --- declaring -------------------------------------------------------------------------------------------------------

_KINDS: Final[tuple[tuple[str, Callable[[pa.DataType], bool]], ...]] = (
    ("bool", pt.is_boolean),
    ("int", pt.is_integer),
    ("float", pt.is_floating),
    ("decimal", lambda arrow: pt.is_decimal(arrow) and arrow.precision <= 38 and 0 <= arrow.scale <= 37),
    ("text", lambda arrow: pt.is_string(arrow) or pt.is_large_string(arrow) or pt.is_string_view(arrow)),
    ("binary", lambda arrow: pt.is_binary(arrow) or pt.is_large_binary(arrow) or pt.is_fixed_size_binary(arrow)),
    ("date", pt.is_date),
    ("time", pt.is_time),
    ("instant", lambda arrow: pt.is_timestamp(arrow) and arrow.tz is not None),
    ("naive", lambda arrow: pt.is_timestamp(arrow) and arrow.tz is None),
    ("map", lambda arrow: pt.is_map(arrow) and kind(arrow.key_type) in {"text", "int"} and _in_json(arrow.item_type)),
    ("struct", lambda arrow: pt.is_struct(arrow) and all(_in_json(field.type) for field in arrow)),
    ("list", lambda arrow: _is_list(arrow) and _in_json(arrow.value_type)),
    ("null", pt.is_null),
)
_JSON: Final = {"bool", "int", "float", "text", "null", "map", "struct", "list"}
_DIGITS: Final = {8: 3, 16: 5, 32: 10}
_MADE: Final = {
    "bool": "BOOLEAN",
    "float": "FLOAT",
    "text": "VARCHAR",
    "binary": "BINARY",
    "date": "DATE",
    "time": "TIME",
    "instant": "TIMESTAMP_LTZ",
    "naive": "TIMESTAMP_NTZ",
    **dict.fromkeys(("map", "struct", "list"), "VARIANT"),
}


def _is_list(arrow: pa.DataType) -> bool:
    return bool(pt.is_list(arrow) or pt.is_large_list(arrow) or pt.is_fixed_size_list(arrow))


def _in_json(arrow: pa.DataType) -> bool:
    """Whether JSON has such values: it lacks bytes, decimals and times."""
    return kind(arrow) in _JSON


def kind(arrow: pa.DataType) -> str:
    """What staged values mean, whatever their width; `unknown` for what no column takes."""
    plain = _unpacked_type(arrow)
    return next((name for name, holds in _KINDS if holds(plain)), "unknown")


def declaration(arrow: pa.DataType) -> str | None:
    """The type of a column to be made for staged values; None where none keeps what they mean."""
    plain, found = _unpacked_type(arrow), kind(arrow)
    if found == "int":
        return f"NUMBER({_DIGITS.get(plain.bit_width, 20 if pt.is_unsigned_integer(plain) else 19)}, 0)"
    if found == "decimal":
        return f"NUMBER({plain.precision}, {plain.scale})"
    return _MADE.get(found)


# --- writing ---------------------------------------------------------------------------------------------------------


@frozen
class Writing:
    """How staged values reach a column: the type of scratch, the values for it, and the expression that inserts them.

    `insert` has a `{}` where the scratch column stands. `encode` raises one of MISFIT for a value that would not
    survive.
    """

    scratch: str
    arrow: pa.DataType
    insert: str
    encode: Callable[[pa.Array], pa.Array]

    def values(self, staged: pa.Array) -> pa.Array:
        """Values for scratch."""
        plain = unpacked(staged)
        return pa.nulls(len(plain), self.arrow) if pt.is_null(plain.type) else self.encode(plain)


def writing(column: Column, arrow: pa.DataType) -> Writing | None:
    """How staged values of a type reach a column; None where it cannot hold them."""
    made = _writing(column)
    if made is None:
        return None
    takes, found = made
    given = kind(arrow)
    return found if given == "null" or given in takes else None


def _writing(column: Column) -> tuple[set[str], Writing] | None:
    """Which kinds of staged values a column takes, and how."""
    if column.kind in (NAIVE, *INSTANTS):
        digits = column.sizes[0] if column.sizes else _DIGITS_OF_TIME
        insert = f"TO_{column.kind}({{}}, {US})"
        how = Writing("NUMBER(19, 0)", pa.int64(), insert, lambda values: fraction(microseconds(values), digits))
        return {"naive" if column.kind == NAIVE else "instant"}, how
    made = _WRITTEN.get(column.kind)
    return None if made is None else made(column)


def _semi(column: Column) -> tuple[set[str], Writing]:
    kinds, begins = _SEMI[column.kind]
    insert = "PARSE_JSON({})" if column.kind == "VARIANT" else f"PARSE_JSON({{}})::{column.kind}"
    return {"text", *kinds}, Writing("VARCHAR", pa.string(), insert, lambda values: _as_json(values, begins))


def _number(column: Column) -> tuple[set[str], Writing]:
    precision, scale = column.sizes or (38, 0)
    arrow = pa.decimal128(precision, scale)
    how = Writing(f"NUMBER({precision}, {scale})", arrow, "{}", lambda values: _as_decimal(values, arrow))
    return {"int", "decimal"}, how


def _varchar(column: Column) -> tuple[set[str], Writing]:
    return {"text"}, Writing("VARCHAR", pa.string(), "{}", lambda values: _as_text(values, column))


def _binary(column: Column) -> tuple[set[str], Writing]:
    # As text: what a Parquet file's bytes become depends on an option of its file format.
    how = Writing("VARCHAR", pa.string(), "TO_BINARY({}, 'HEX')", lambda values: _as_hex(values, column))
    return {"binary"}, how


def _time(column: Column) -> tuple[set[str], Writing]:
    digits = column.sizes[0] if column.sizes else _DIGITS_OF_TIME
    return {"time"}, Writing("VARCHAR", pa.string(), "TO_TIME({})", lambda values: _as_time(values, digits))


def _float(column: Column) -> tuple[set[str], Writing]:
    del column
    # Of an integer that no float holds, Arrow raises.
    return {"int", "float"}, Writing("FLOAT", pa.float64(), "{}", lambda values: values.cast(pa.float64()))


def _boolean(column: Column) -> tuple[set[str], Writing]:
    del column
    return {"bool"}, Writing("BOOLEAN", pa.bool_(), "{}", lambda values: values)


def _date(column: Column) -> tuple[set[str], Writing]:
    del column
    return {"date"}, Writing("DATE", pa.date32(), "{}", lambda values: values.cast(pa.date32()))


_WRITTEN: Final = {
    "NUMBER": _number,
    "FLOAT": _float,
    "VARCHAR": _varchar,
    "BINARY": _binary,
    "BOOLEAN": _boolean,
    "DATE": _date,
    "TIME": _time,
    **dict.fromkeys(_SEMI, _semi),
}


def unpacked(array: pa.Array) -> pa.Array:
    """The values themselves, out of a dictionary or an extension."""
    if pt.is_dictionary(array.type):
        return unpacked(array.dictionary_decode())
    return unpacked(array.storage) if isinstance(array.type, pa.BaseExtensionType) else array


def _unpacked_type(arrow: pa.DataType) -> pa.DataType:
    if pt.is_dictionary(arrow):
        return _unpacked_type(arrow.value_type)
    return _unpacked_type(arrow.storage_type) if isinstance(arrow, pa.BaseExtensionType) else arrow


def microseconds(values: pa.Array) -> pa.Array:
    """Timestamps as microseconds since 1970 on their own clock; finer is truncated, towards the past."""
    ticks = values.cast(pa.int64())
    if values.type.unit == "ns":
        shifted = pc.if_else(pc.less(ticks, 0), pc.subtract(ticks, 999), ticks)  # Arrow divides towards zero
        return pc.divide(shifted, 1_000)
    return pc.multiply_checked(ticks, {"s": 1_000_000, "ms": 1_000, "us": 1}[values.type.unit])


def fraction(times: pa.Array, digits: int) -> pa.Array:
    """Times in microseconds; ValueError where one has more digits in its second's fraction than a column keeps."""
    unit = 10 ** max(0, US - digits)
    if unit > 1 and not pc.all(pc.equal(pc.multiply(pc.divide(times, unit), unit), times), min_count=0).as_py():
        raise ValueError(f"a fraction of a second of more than {digits} digits, which the column would lose")
    return times


def _as_decimal(values: pa.Array, target: pa.DataType) -> pa.Array:
    if pt.is_integer(values.type):
        # Arrow casts integers by their type's widest value, not by the values that are there.
        values = values.cast(pa.decimal128(20 if pt.is_unsigned_integer(values.type) else 19, 0))
    return values.cast(target)


def _as_time(values: pa.Array, digits: int) -> pa.Array:
    times = values.cast(pa.time64("us"))  # of nanoseconds that it would lose, Arrow raises
    fraction(times.cast(pa.int64()), digits)
    return times.cast(pa.string())


def _as_text(values: pa.Array, column: Column) -> pa.Array:
    _check_length(pc.utf8_length(values), column)
    return values.cast(pa.string())


def _as_hex(values: pa.Array, column: Column) -> pa.Array:
    found = values.cast(pa.binary())
    _check_length(pc.binary_length(found), column)
    return pa.array([None if value is None else value.hex() for value in found.to_pylist()], pa.string())


def _check_length(lengths: pa.Array, column: Column) -> None:
    longest = pc.max(lengths).as_py()
    if column.sizes and longest is not None and longest > column.sizes[0]:
        raise ValueError(f"one of length {longest}, longer than {column.sizes[0]}")


def _as_json(values: pa.Array, begins: str) -> pa.Array:
    """Nested values as JSON text; text is JSON already, and begins as said, or in any way."""
    if kind(values.type) == "text":
        texts = values.cast(pa.string())
        first = pc.utf8_slice_codeunits(pc.ascii_trim_whitespace(texts), 0, 1)
        if pc.any(pc.not_equal(first, begins) if begins else pc.equal(first, "")).as_py():
            raise ValueError(f"a text that does not begin with {begins}" if begins else "a blank text")
        return texts
    try:
        found = values.to_pylist(maps_as_pydicts="strict")
    except KeyError:  # which shows the key
        raise ValueError("a map that has one key twice") from None
    texts = [None if value is None else json.dumps(value, ensure_ascii=False, allow_nan=False) for value in found]
    return pa.array(texts, pa.string())
