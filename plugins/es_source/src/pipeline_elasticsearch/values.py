"""A document's values, one by one, as the server itself reads them: numbers in text, one value where several may be."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from decimal import Decimal, InvalidOperation
from typing import Any

import msgspec
import pyarrow as pa

from pipeline_elasticsearch.columns import Column
from pipeline_elasticsearch.timestamps import micros

Read = Callable[[Any], Any]
#: What a reader raises for a value that its column cannot hold.
MISFIT = (ValueError, ArithmeticError, pa.ArrowInvalid)


def reader(column: Column) -> Read:
    """From a document's `_source` to the column's value, None where it has none. Raises ValueError for a misfit."""
    name = column.name
    find = _found if "." in name else _member

    def as_json(source: Any) -> str | None:
        found = find(source, name)
        if not found or found == [None]:
            return None
        return msgspec.json.encode(found[0] if len(found) == 1 else found).decode()

    convert = _converter(column.type)

    def several(source: Any) -> list[Any] | None:
        found = find(source, name)
        if not found or found == [None]:
            return None
        return [None if value is None else convert(value) for value in _flat(found)]

    def single(source: Any) -> Any:
        values = [value for value in _flat(find(source, name)) if value is not None]
        if len(values) > 1:
            raise ValueError
        return convert(values[0]) if values else None

    return as_json if column.as_json else several if column.many else single


def _member(source: Any, name: str) -> list[Any]:
    return [source[name]] if name in source else []


def _found(source: Any, name: str) -> list[Any]:
    """Every value under a dotted name, however it is nested: objects in objects, dots in names, lists of objects."""
    if isinstance(source, list):
        return [value for each in source for value in _found(each, name)]
    if not isinstance(source, dict):
        return []
    return [value for key in source for value in _below(source[key], key, name)]


def _below(value: Any, key: str, name: str) -> list[Any]:
    if key == name:
        return [value]
    return _found(value, name[len(key) + 1 :]) if name.startswith(f"{key}.") else []


def _flat(values: list[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list):
            yield from _flat(value)
        else:
            yield value


def _converter(kind: pa.DataType) -> Read:
    if pa.types.is_timestamp(kind):
        return micros
    if pa.types.is_boolean(kind):
        return _boolean
    if pa.types.is_integer(kind):
        return _integer
    return _double if pa.types.is_floating(kind) else _text


def _text(value: Any) -> str:
    if isinstance(value, dict):
        raise ValueError  # noqa: TRY004 - who asks knows the place and says it
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _boolean(value: Any) -> bool | None:
    if isinstance(value, bool):
        return value
    if value == "":
        return False
    if value in ("true", "false"):
        return bool(value == "true")
    raise ValueError


def _number(value: Any) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError  # noqa: TRY004
    try:
        return Decimal(value if isinstance(value, str) else repr(value))
    except InvalidOperation:
        raise ValueError from None


def _integer(value: Any) -> int:
    """A fraction is cut off, as the index does."""
    return value if type(value) is int else int(_number(value))


def _double(value: Any) -> float:
    found = float(_number(value))
    if not math.isfinite(found):
        raise ValueError
    return found
