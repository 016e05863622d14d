"""Arrow's types by what they mean, whatever their width."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

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
