"""Arrow's types by what they mean, whatever their width."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types as pt

_KINDS: Final[tuple[tuple[str, Callable[[pa.DataType], bool]], ...]] = (
    ("bool", pt.is_boolean),
    ("int", pt.is_integer),
    ("float", pt.is_floating),
    ("decimal", pt.is_decimal),
    ("text", lambda t: pt.is_string(t) or pt.is_large_string(t) or pt.is_string_view(t)),
    (
        "binary",
        lambda t: pt.is_binary(t) or pt.is_large_binary(t) or pt.is_binary_view(t) or pt.is_fixed_size_binary(t),
    ),
    ("date", pt.is_date),
    ("time", pt.is_time),
    ("instant", lambda t: pt.is_timestamp(t) and t.tz is not None),
    ("naive", pt.is_timestamp),
    ("nested", pt.is_nested),
    ("null", pt.is_null),
)


def kind(arrow: pa.DataType) -> str:
    """Its name in the table above, or `unknown`."""
    return next((name for name, holds in _KINDS if holds(arrow)), "unknown")


def plain(arrow: pa.DataType) -> pa.DataType:
    """The type of the values themselves, behind a dictionary or an extension."""
    if pt.is_dictionary(arrow) or pt.is_run_end_encoded(arrow):
        return plain(arrow.value_type)
    return plain(arrow.storage_type) if isinstance(arrow, pa.BaseExtensionType) else arrow


def unpacked(array: pa.Array) -> pa.Array:
    """The values themselves, out of a dictionary or an extension."""
    if pt.is_dictionary(array.type):
        return unpacked(array.dictionary_decode())
    if pt.is_run_end_encoded(array.type):
        return unpacked(pc.run_end_decode(array))
    return unpacked(array.storage) if isinstance(array.type, pa.BaseExtensionType) else array


def exact(array: pa.Array, target: pa.DataType) -> pa.Array:
    """The values in another type. Raises ValueError, or one of Arrow's errors, where one would change."""
    if pt.is_integer(array.type) and pt.is_decimal(target):
        # Arrow casts integers by their type's widest value, not by the values that are there.
        return pa.array(array.to_pylist(), target)
    cast = array.cast(target)
    if pt.is_list(target):
        exact(unpacked(pc.list_flatten(array)), target.value_type)
    if pt.is_floating(array.type):
        same = pc.or_(pc.equal(cast.cast(array.type), array), pc.is_nan(array))
        if not pc.all(same, min_count=0).as_py():
            raise ValueError("a number that the column would round")
    return cast


def check_fraction(times: pa.Array, digits: int) -> None:
    """Raises ValueError for a time, in microseconds, with more digits in its second's fraction than a column keeps."""
    unit = 10 ** (6 - digits)
    found = times.cast(pa.int64())
    if not pc.all(pc.equal(pc.multiply(pc.divide(found, unit), unit), found), min_count=0).as_py():
        raise ValueError(f"a fraction of a second of more than {digits} digits, which the column would lose")


def decimal(precision: int, scale: int) -> pa.DataType | None:
    """The narrowest of Arrow's decimals that holds so many digits; None where none does."""
    for make, most in ((pa.decimal128, 38), (pa.decimal256, 76)):
        if 1 <= precision <= most:
            return make(precision, scale)
    return None


def as_json(array: pa.Array) -> pa.Array:
    """Nested values as JSON text."""
    values = array.to_pylist(maps_as_pydicts="strict")
    texts = [None if value is None else json.dumps(value, ensure_ascii=False, allow_nan=False) for value in values]
    return pa.array(texts, pa.string())


# --- stored values that Arrow does not take as they are ---------------------------------------------------------------


def read_bool(values: Sequence[Any], arrow: pa.DataType) -> pa.Array:
    """Booleans from 0 and 1. Raises ValueError for any other number."""
    if not set(values) <= {0, 1, None}:
        raise ValueError("neither 0 nor 1")
    return pa.array(values, pa.int64()).cast(arrow)


def read_text_form(values: Sequence[Any], arrow: pa.DataType) -> pa.Array:
    """Values of a type from texts, as Arrow parses them. Raises one of Arrow's errors for one that it cannot parse."""
    return pa.array(values, pa.string()).cast(arrow)


def read_time(values: Sequence[Any], arrow: pa.DataType) -> pa.Array:
    """Times of day from texts, of which Arrow parses none: only timestamps."""
    dated = pc.binary_join_element_wise("1970-01-01", pa.array(values, pa.string()), " ")
    return dated.cast(pa.timestamp("us")).cast(arrow)
