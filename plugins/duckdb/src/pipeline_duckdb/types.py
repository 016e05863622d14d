"""What DuckDB's types mean to others: how a column is extracted, and which staged column fits which.

DuckDB's casts are generous: an INSERT rounds a fraction into an integer without a word. So a staged column of another
type than the target's is let in only between types that mean the same, and each value only where the way there and
back changes nothing.
"""

from __future__ import annotations

from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
from duckdb.sqltypes import DuckDBPyType
from pyarrow import types as pt

from pipeline_duckdb.database import quoted
from pipeline_duckdb.timestamps import INSTANTS

_KINDS: Final = {
    "boolean": "bool",
    **dict.fromkeys(("tinyint", "smallint", "integer", "bigint"), "int"),
    **dict.fromkeys(("utinyint", "usmallint", "uinteger", "ubigint"), "int"),
    **dict.fromkeys(("hugeint", "uhugeint"), "huge"),
    **dict.fromkeys(("float", "double"), "float"),
    "decimal": "decimal",
    "varchar": "text",
    "blob": "binary",
    "date": "date",
    **dict.fromkeys(("time", "time_ns"), "time"),
    **dict.fromkeys(("timestamp", "timestamp_s", "timestamp_ms", "timestamp_ns"), "naive"),
    **dict.fromkeys(INSTANTS, "instant"),
    "uuid": "uuid",
    "enum": "enum",
    **dict.fromkeys(("list", "array"), "list"),
    "struct": "struct",
    "map": "map",
    '"null"': "null",
    "null": "null",
}
_KEPT = {"bool", "int", "float", "decimal", "text", "binary", "date", "time", "naive", "instant"}
_CONVERTED: Final = {"uuid": "VARCHAR", "enum": "VARCHAR", "json": "VARCHAR", "huge": "DECIMAL(38,0)"}
# Which staged kinds a column of a kind takes.
_TAKES: Final = {
    "bool": {"bool"},
    "int": {"int", "huge", "decimal"},
    "huge": {"int", "huge", "decimal"},
    "float": {"int", "float"},
    "decimal": {"int", "huge", "decimal"},
    "text": {"text", "json", "uuid"},
    "json": {"text", "json", "list", "struct", "map"},
    "uuid": {"text", "uuid"},
    "enum": {"text"},
    "binary": {"binary"},
    "date": {"date"},
    "time": {"time"},
    "naive": {"naive"},
    "instant": {"instant"},
}
#: Kinds whose form changes on the way without a loss, so that the way back proves nothing.
_REWRITTEN = {"json", "uuid", "enum"}


def kind(of: DuckDBPyType) -> str:
    """What the values of a type mean, whatever their width; `unknown` for what is neither kept nor taken."""
    return "json" if str(of) == "JSON" else _KINDS.get(of.id, "unknown")


def extracted(of: DuckDBPyType) -> str | None:
    """The type, in SQL, as which a column is extracted; None where no type of others keeps what it means."""
    found = kind(of)
    if found in ("list", "struct", "map"):
        return _extracted_nested(of, found)
    return str(of) if found in _KEPT else _CONVERTED.get(found)


def _extracted_nested(of: DuckDBPyType, found: str) -> str | None:
    inner = [(name, extracted(child)) for name, child in _children(of)]
    if any(each is None for _, each in inner):
        return None
    if found == "list":
        return f"{inner[0][1]}[]"
    if found == "map":
        return f"MAP({', '.join(str(each) for _, each in inner)})"
    return f"STRUCT({', '.join(f'{quoted(name)} {each}' for name, each in inner)})"


def accepts(target: DuckDBPyType, staged: DuckDBPyType) -> bool:
    """Whether a column can hold values of a staged type at all."""
    if str(target) == str(staged):
        return kind(target) != "unknown"
    to, given = kind(target), kind(staged)
    if to == given and to in ("list", "struct", "map"):
        theirs, ours = _children(target), _children(staged)
        same = to != "struct" or [name for name, _ in theirs] == [name for name, _ in ours]
        return same and all(accepts(one, other) for (_, one), (_, other) in zip(theirs, ours, strict=True))
    return to != "unknown" and (given == "null" or given in _TAKES.get(to, set()))


def lost(column: str, target: DuckDBPyType, staged: DuckDBPyType) -> str | None:
    """The condition, in SQL, that a staged value does not survive in the target's type; None where all do."""
    if str(target) == str(staged) or kind(staged) == "null":
        return None
    there = f"TRY_CAST({column} AS {target})"
    if kind(target) in _REWRITTEN or kind(staged) in _REWRITTEN:
        return f"{column} IS NOT NULL AND {there} IS NULL"
    return f"TRY_CAST({there} AS {staged}) IS DISTINCT FROM {column}"


def stageable(arrow: pa.DataType) -> bool:
    """Whether DuckDB reads a Parquet column of this type as what it is: it knows no durations or wider decimals."""
    if pt.is_dictionary(arrow):
        return stageable(arrow.value_type)
    if isinstance(arrow, pa.BaseExtensionType):
        return stageable(arrow.storage_type)
    if pt.is_nested(arrow):
        return all(stageable(arrow.field(index).type) for index in range(arrow.num_fields))
    return not (pt.is_duration(arrow) or pt.is_interval(arrow) or pt.is_decimal256(arrow) or pt.is_union(arrow))


def is_infinite(values: pa.Array) -> bool:
    """Whether a date or timestamp among them, at any depth, is infinite: an integer that others read as a date."""
    of = values.type
    if pt.is_map(of):
        return is_infinite(values.keys) or is_infinite(values.items)
    if pt.is_struct(of):
        return any(map(is_infinite, values.flatten()))
    if pt.is_nested(of):
        return is_infinite(pc.list_flatten(values))
    if not (pt.is_date(of) or pt.is_timestamp(of)):
        return False
    ends, infinity = pc.min_max(values), 2 ** (of.bit_width - 1) - 1
    return bool(ends["max"].value == infinity or ends["min"].value == -infinity)


def _children(of: DuckDBPyType) -> list[tuple[str, DuckDBPyType]]:
    """The types inside a nested one: of its elements, or of its fields by name."""
    return [(name, child) for name, child in of.children if isinstance(child, DuckDBPyType)]
