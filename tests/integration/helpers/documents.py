"""Flights as documents of an Elasticsearch index, and rows of any side in a form that can be compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Any

_KINDS = {"INTEGER": "integer", "REAL": "double", "TEXT": "keyword", "TIMESTAMP": "date"}
_CHUNK = 5_000


def mapping(columns: Mapping[str, str], timestamp: str) -> dict[str, Any]:
    """The fields of the index; the column `time_hour` goes by another name there."""
    return {_named(name, timestamp): {"type": _KINDS[kind]} for name, kind in columns.items()}


def documents(columns: Iterable[str], rows: Iterable[Sequence[Any]], timestamp: str) -> Iterator[dict[str, Any]]:
    """One document a row."""
    names = [_named(name, timestamp) for name in columns]
    for row in rows:
        document = dict(zip(names, row, strict=True))
        yield document | {timestamp: f"{document[timestamp].replace(' ', 'T')}Z"}


def put(client: Any, index: str, found: Iterable[Mapping[str, Any]]) -> None:
    """Adds documents, and makes them visible."""
    rest = iter(found)
    while chunk := list(islice(rest, _CHUNK)):
        operations = [line for document in chunk for line in ({"index": {}}, document)]
        assert not client.bulk(index=index, operations=operations)["errors"]
    client.indices.refresh(index=index)


def counted(columns: Iterable[str], rows: Iterable[Sequence[Any]]) -> Counter[str]:
    """Rows as often as they occur, the time as an instant; as text, which tells 5 from 5.0."""
    at = list(columns).index("time_hour")
    return Counter(str([_instant(v) if n == at else v for n, v in enumerate(row)]) for row in rows)


def _instant(value: Any) -> str:
    return str(datetime.fromisoformat(str(value)).replace(tzinfo=UTC))


def _named(column: str, timestamp: str) -> str:
    return timestamp if column == "time_hour" else column
