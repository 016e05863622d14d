"""From the bytes of an answer to Arrow.

The fast way reads the whole answer as one line of JSON, and makes no Python object of any document. It is strict: where
a value is not written as its column's type, the page is read once more the tolerant way, value by value, as the server
itself would read it. Both give the same values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj
from attrs import frozen

from pipeline_core import PermanentError
from pipeline_elasticsearch.answers import checked
from pipeline_elasticsearch.columns import INSTANT, Column
from pipeline_elasticsearch.faults import translated
from pipeline_elasticsearch.timestamps import ISO, micros
from pipeline_elasticsearch.values import MISFIT, Read, reader

_SHARDS = pa.struct([(name, pa.int64()) for name in ("total", "successful", "skipped", "failed")])
_CLUSTERS = pa.struct([(name, pa.int64()) for name in ("skipped", "partial", "failed", "running")])
_TOTAL = pa.struct([("value", pa.int64()), ("relation", pa.string())])
_SHOWN = 200  # characters of a value in a message
#: An escape of JSON; a character beyond the first 65,536 is two of them, and one of these alone is half of it.
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][\da-fA-F]{2}\\u[dD][c-fC-F][\da-fA-F]{2}|(?P<half>u[dD][89a-fA-F][\da-fA-F]{2})|.)", re.DOTALL
)
#: Numbers with a fraction or an exponent stay as they are written: a keyword holds 19.90, not 19.9.
_LITERAL = msgspec.json.Decoder(float_hook=str)


@frozen
class Page:
    """What one answer gave: its rows, where to go on, and how many documents there are in all, where that was asked."""

    rows: pa.RecordBatch
    pit_id: str
    after: Sequence[int] | None
    total: int | None


class Shape(Protocol):
    """What a row is, and how rows are read out of an answer."""

    @property
    def schema(self) -> pa.Schema:
        """The columns of every page."""
        ...

    @property
    def asks(self) -> Mapping[str, Any]:
        """What a search has to ask for, beside its query."""
        ...

    def read(self, body: bytes) -> Page:
        """The rows of an answer. Raises PermanentError for a value that its column cannot hold."""
        ...


class _Hit(msgspec.Struct):
    sort: list[int]
    id: str = msgspec.field(name="_id", default="")
    index: str = msgspec.field(name="_index", default="")
    source: msgspec.Raw = msgspec.field(name="_source", default=msgspec.Raw(b"{}"))
    fields: dict[str, list[Any]] = {}
    ignored: dict[str, list[Any]] = msgspec.field(name="ignored_field_values", default_factory=dict)
    unread: list[str] = msgspec.field(name="_ignored", default_factory=list)


class _Hits(msgspec.Struct):
    total: dict[str, Any] | None = None
    hits: list[_Hit] = []


class _Answer(msgspec.Struct):
    timed_out: bool
    pit_id: str
    shards: dict[str, Any] = msgspec.field(name="_shards")
    clusters: dict[str, Any] = msgspec.field(name="_clusters", default_factory=dict)
    hits: _Hits = msgspec.field(default_factory=_Hits)


def _hits(body: bytes, place: str) -> _Answer:
    try:
        answer = msgspec.json.decode(body, type=_Answer)
    except msgspec.DecodeError:
        with translated(place):
            answer = msgspec.json.decode(_paired(body), type=_Answer)
    checked({"timed_out": answer.timed_out, "_shards": answer.shards, "_clusters": answer.clusters}, place)
    return answer


def _paired(body: bytes) -> bytes:
    """The answer with U+FFFD in place of each half of a character: the server takes such texts, and no target does."""
    return _ESCAPE.sub(lambda found: rb"\ufffd" if found["half"] else found[0], body)


def _page(answer: _Answer, rows: pa.RecordBatch) -> Page:
    hits, total = answer.hits.hits, answer.hits.total
    return Page(rows, answer.pit_id, hits[-1].sort if hits else None, None if total is None else int(total["value"]))


def _given(hit: _Hit, name: str) -> list[Any]:
    """The values of a field that the server was asked for. Raises ValueError where it could not read one."""
    if name in hit.ignored:
        raise ValueError
    return hit.fields.get(name, [])


def _instant(hit: _Hit, name: str) -> int | None:
    values = _given(hit, name)
    if len(values) > 1:
        raise ValueError
    return micros(values[0]) if values else None


def _misfit(place: str, name: str, hit: _Hit, value: object, wanted: str) -> PermanentError:
    text = msgspec.json.encode(value).decode()
    shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
    return PermanentError(
        f"{place}, document {hit.id!r} of index {hit.index!r}, field {name!r}: found {shown}, expected {wanted}; "
        "correct the document, exclude the field, or name it under lists where it holds several values"
    )


@frozen(slots=False)
class FieldsShape:
    """A column for each field."""

    columns: Sequence[Column]
    place: str

    @cached_property
    def schema(self) -> pa.Schema:
        return pa.schema([(column.name, column.arrow) for column in self.columns])

    @property
    def asks(self) -> Mapping[str, Any]:
        fields = [{"field": column.name, "format": ISO} for column in self.columns if column.asked]
        return {"fields": fields} if fields else {}

    def read(self, body: bytes) -> Page:
        return (self.read_fast(body) if self._fast else None) or self.read_tolerant(body)

    # --- the fast way -------------------------------------------------------------------------------------------------

    @cached_property
    def _fast(self) -> bool:
        return not any(column.as_json or column.asked for column in self.columns)

    @cached_property
    def _dates(self) -> frozenset[str]:
        """Of instants: what the index ignored, as malformed, may look like one all the same."""
        return frozenset(column.name for column in self.columns if column.type == INSTANT)

    @cached_property
    def _options(self) -> pj.ParseOptions:
        tree: dict[str, Any] = {}
        for column in self.columns:
            *above, last = column.name.split(".")
            place = tree
            for part in above:
                place = place.setdefault(part, {})
            place[last] = column.arrow
        hit = pa.struct(
            [
                ("_id", pa.string()),
                ("_index", pa.string()),
                ("_score", pa.null()),
                ("_routing", pa.string()),
                ("_ignored", pa.list_(pa.string())),
                ("_source", _struct(tree)),
                ("sort", pa.list_(pa.int64())),
            ]
        )
        schema = pa.schema(
            [
                ("pit_id", pa.string()),
                ("took", pa.int64()),
                ("timed_out", pa.bool_()),
                ("num_reduce_phases", pa.int64()),
                ("_shards", _SHARDS),
                ("_clusters", _CLUSTERS),
                ("hits", pa.struct([("total", _TOTAL), ("max_score", pa.null()), ("hits", pa.list_(hit))])),
            ]
        )
        # A field inside an object may also be written with a dot in its name, which must not go unseen.
        nested = any("." in column.name for column in self.columns)
        unexpected = "error" if nested else "ignore"
        return pj.ParseOptions(explicit_schema=schema, newlines_in_values=True, unexpected_field_behavior=unexpected)

    def read_fast(self, body: bytes) -> Page | None:
        """The page; None where a document is not written as the mapping says."""
        one_block = pj.ReadOptions(use_threads=False, block_size=len(body) + 1)
        try:
            answer = pj.read_json(pa.py_buffer(body), read_options=one_block, parse_options=self._options)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return None
        hits = answer.column("hits").chunk(0)
        head = {name: answer.column(name)[0].as_py() for name in ("pit_id", "timed_out", "_shards", "_clusters")}
        checked(head, self.place)
        listed = pc.struct_field(hits, "hits")
        found = listed.flatten()
        total = pc.struct_field(hits, "total")[0].as_py()
        if not set(pc.struct_field(found, "_ignored").flatten().unique().to_pylist()).isdisjoint(self._dates):
            return None
        source = pc.struct_field(found, "_source")
        arrays = [pc.struct_field(source, column.name.split(".")) for column in self.columns]
        rows = pa.RecordBatch.from_arrays(arrays, schema=self.schema)
        after = pc.struct_field(found.slice(len(found) - 1), "sort")[0].as_py() if len(found) else None
        return Page(rows, head["pit_id"], after, None if total is None else total["value"])

    # --- the tolerant way ---------------------------------------------------------------------------------------------

    def read_tolerant(self, body: bytes) -> Page:
        """The page, value by value. Raises PermanentError for one that its column cannot hold."""
        answer = _hits(body, self.place)
        hits = answer.hits.hits
        literal = [_LITERAL.decode(hit.source) for hit in hits]
        as_json = any(column.as_json for column in self.columns)
        plain = [msgspec.json.decode(hit.source) for hit in hits] if as_json else []
        arrays = [self._array(column, hits, plain if column.as_json else literal) for column in self.columns]
        return _page(answer, pa.RecordBatch.from_arrays(arrays, schema=self.schema))

    def _array(self, column: Column, hits: Sequence[_Hit], sources: Sequence[Any]) -> pa.Array:
        read = reader(column)
        values = []
        for hit, source in zip(hits, sources, strict=True):
            try:
                if column.name in hit.unread and column.name in self._dates:
                    raise ValueError
                values.append(self._asked(column, hit) if column.asked else read(source))
            except MISFIT:
                found = hit.fields.get(column.name) or hit.ignored.get(column.name) or hit.source
                raise _misfit(self.place, column.name, hit, found, str(column.arrow)) from None
        try:
            return pa.array(values, column.arrow)
        except (pa.ArrowInvalid, OverflowError):
            at = next(at for at, value in enumerate(values) if not _fits(value, column.arrow))
            raise _misfit(self.place, column.name, hits[at], values[at], str(column.arrow)) from None

    def _asked(self, column: Column, hit: _Hit) -> Any:
        if not column.many:
            return _instant(hit, column.name)
        return [micros(value) for value in _given(hit, column.name)] or None


def _struct(tree: Mapping[str, Any]) -> pa.DataType:
    return pa.struct([(name, _struct(kind) if isinstance(kind, dict) else kind) for name, kind in tree.items()])


def _fits(value: object, kind: pa.DataType) -> bool:
    try:
        pa.array([value], kind)
    except (pa.ArrowInvalid, OverflowError):
        return False
    return True


@frozen
class DocumentShape:
    """A whole document as a row, its `_source` letter for letter as it was indexed."""

    timestamp_field: str
    exclude: frozenset[str]
    place: str

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([(name, kind) for name, kind in self.columns.items() if name not in self.exclude])

    @property
    def asks(self) -> Mapping[str, Any]:
        return {"fields": [{"field": self.timestamp_field, "format": ISO}]}

    def read(self, body: bytes) -> Page:
        answer = _hits(body, self.place)
        hits = answer.hits.hits
        readers: dict[str, Read] = {
            "_id": lambda hit: hit.id,
            "_index": lambda hit: hit.index,
            self.timestamp_field: self._timestamp,
            "_source": lambda hit: bytes(hit.source).decode(),
        }
        arrays = [pa.array([readers[each.name](hit) for hit in hits], each.type) for each in self.schema]
        return _page(answer, pa.RecordBatch.from_arrays(arrays, schema=self.schema))

    def _timestamp(self, hit: _Hit) -> int | None:
        try:
            return _instant(hit, self.timestamp_field)
        except ValueError:
            found = hit.fields.get(self.timestamp_field) or hit.ignored
            raise _misfit(self.place, self.timestamp_field, hit, found, "one instant") from None

    @property
    def columns(self) -> Mapping[str, pa.DataType]:
        """Every column that there is, with its type."""
        return {"_id": pa.string(), "_index": pa.string(), self.timestamp_field: INSTANT, "_source": pa.string()}


class IdentitiesShape:
    """What a document is called; nothing of what it holds."""

    schema = pa.schema([("_id", pa.string())])
    asks: Mapping[str, Any] = {"_source": False}

    def __init__(self, place: str) -> None:
        self._place = place

    def read(self, body: bytes) -> Page:
        """The page."""
        answer = _hits(body, self._place)
        hits = answer.hits.hits
        ids = pa.array([hit.id for hit in hits], pa.string())
        return _page(answer, pa.RecordBatch.from_arrays([ids], schema=self.schema))
