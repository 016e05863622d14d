"""The columns of an index: one for each mapped field, with its Arrow type and how a document holds its values."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

import pyarrow as pa
from attrs import evolve, frozen

from pipeline_core import SideError
from pipeline_elasticsearch.timestamps import readable

INSTANT: Final = pa.timestamp("us", "UTC")
_TEXT = ("keyword", "text", "constant_keyword", "wildcard", "match_only_text", "search_as_you_type", "annotated_text")
_KINDS: Final[Mapping[str, pa.DataType]] = {
    **dict.fromkeys((*_TEXT, "version", "ip", "binary"), pa.string()),
    "long": pa.int64(),
    "integer": pa.int32(),
    "short": pa.int16(),
    "byte": pa.int8(),
    "unsigned_long": pa.uint64(),
    **dict.fromkeys(("double", "float", "half_float", "scaled_float"), pa.float64()),
    "boolean": pa.bool_(),
    "date": INSTANT,
    "date_nanos": INSTANT,
}


@frozen
class Column:
    """A field, by its full name. `as_json`: its value as JSON text; `many`: a list; `asked`: the server reads it."""

    name: str
    type: pa.DataType
    as_json: bool = False
    many: bool = False
    asked: bool = False

    @property
    def arrow(self) -> pa.DataType:
        return pa.list_(self.type) if self.many else self.type


def columns(
    mappings: Mapping[str, Mapping[str, Any]],
    timestamp_field: str,
    *,
    lists: frozenset[str],
    exclude: frozenset[str],
    place: str,
) -> list[Column]:
    """The columns of these indices, in order of their names. Raises SideError where they contradict each other."""
    found: dict[str, Column] = {}
    seen_in: dict[str, str] = {}
    for index, mapping in sorted(mappings.items()):
        _check_source(mapping.get("_source", {}), f"{place}, index {index!r}")
        for column in _mapped(mapping.get("properties", {}), timestamp_field):
            if column.name in exclude:
                seen_in.setdefault(column.name, index)
                continue
            known = found.setdefault(column.name, column)
            merged = _merged(known, column)
            if merged is None:
                raise SideError(
                    f"{place}: field {column.name!r} is {_said(known)} in {seen_in[column.name]!r} and "
                    f"{_said(column)} in {index!r}; exclude it, or narrow index"
                )
            found[column.name] = merged
            seen_in.setdefault(column.name, index)
    _check_apart(found, place)
    check_known(exclude, seen_in, timestamp_field, place)
    if timestamp_field not in found:
        raise SideError(
            f"{place}: timestamp_field {timestamp_field!r} is in no _source: it is a multi-field or a runtime field; "
            "name the field that it is made of, or set shape = 'document'"
        )
    if timestamp_field in lists:
        raise SideError(
            f"{place}: lists names the timestamp {timestamp_field!r}, of which every row has one; correct lists"
        )
    unknown = sorted(name for name in lists - exclude if name not in found or found[name].as_json)
    if unknown:
        raise SideError(f"{place}: lists names {unknown}, which are no fields with values of their own; correct lists")
    return [evolve(found[name], many=name in lists) for name in sorted(found)]


def check_known(exclude: frozenset[str], known: Collection[str], timestamp_field: str, place: str) -> None:
    """Raises SideError for a column to leave out that does not exist, or that no row can do without."""
    unknown = sorted(exclude - set(known))
    if unknown:
        raise SideError(f"{place}: exclude names no column of it: {unknown}; it has {sorted(known)}")
    if timestamp_field in exclude:
        raise SideError(f"{place}: exclude names the timestamp {timestamp_field!r}, which every row needs")


def _check_source(source: Mapping[str, Any], place: str) -> None:
    if source.get("enabled") is False:
        raise SideError(f"{place}: its mapping keeps no _source, so no document can be read back; only counting works")
    if source.get("excludes") or source.get("includes"):
        raise SideError(f"{place}: its mapping leaves fields out of _source, which would be read as missing")


def _mapped(properties: Mapping[str, Any], timestamp_field: str, prefix: str = "") -> Iterator[Column]:
    for key, field in properties.items():
        name = prefix + key
        kind = field.get("type", "object")
        if kind == "alias":
            # Its target is a column already; as the timestamp it is asked for by its own name.
            if name == timestamp_field:
                yield Column(name, INSTANT, asked=True)
        elif kind == "object" and field.get("properties") and field.get("enabled", True):
            yield from _mapped(field["properties"], timestamp_field, f"{name}.")
        elif kind in ("date", "date_nanos"):
            yield Column(name, INSTANT, asked=not readable(field.get("format")))
        elif kind in _KINDS:
            yield Column(name, _KINDS[kind])
        else:
            yield Column(name, pa.string(), as_json=True)


def _merged(one: Column, other: Column) -> Column | None:
    """What holds the values of both; None where nothing does without changing them."""
    asked = one.asked or other.asked
    if one.as_json != other.as_json:
        return None
    if one.type == other.type:
        return evolve(one, asked=asked)
    if pa.types.is_signed_integer(one.type) and pa.types.is_signed_integer(other.type):
        return one if one.type.bit_width > other.type.bit_width else other
    return None


def _said(column: Column) -> str:
    return "JSON" if column.as_json else str(column.type)


def _check_apart(found: Mapping[str, Column], place: str) -> None:
    """A field that is a value here and an object there has no column that holds both."""
    for name in found:
        parts = name.split(".")
        for length in range(1, len(parts)):
            above = ".".join(parts[:length])
            if above in found:
                raise SideError(
                    f"{place}: field {above!r} is a value, and also an object that holds {name!r}; exclude one, or "
                    "narrow index"
                )
