"""From staged rows to documents: the JSON of each, and the `_id` that it has however often it is written."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from hashlib import blake2b
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
from attrs import field, frozen

from pipeline_core import Load, PermanentError, SideError, Window
from pipeline_core.contracts import target_names
from pipeline_core.errors import nearest
from pipeline_core.ledger import Given
from pipeline_elasticsearch.columns import INSTANT

Document = tuple[str, msgspec.Raw]
_LONGEST_ID = 512  # bytes, the server's own limit
_LONGEST_TERM = 8_191  # characters of four bytes at most, in the 32,766 bytes that the server allows
_KEPT_RAW = ("_id", "_source")  # what the `document` shape gave is written back as it was


def staged(load: Load) -> Generator[pa.RecordBatch, None, None]:
    """The staged rows, whichever library they come from; at least one batch, if only for the schema."""
    with closing(load.read()) as batches:
        for each in batches:
            reader = pa.RecordBatchReader.from_stream(each)
            batch = None
            for batch in reader:
                yield batch
            if batch is None:
                yield pa.RecordBatch.from_pylist([], schema=reader.schema)


@frozen
class Documents:
    """How staged columns become documents. `as_json`: fields that take JSON text as what it says.

    The `_id` is made of the scope, the timestamp and the fields in `key`; without one, of the whole row, and of how
    many equal ones came before it. So it is never that of a row in another window or scope.
    """

    place: str
    timestamp_field: str
    renames: Mapping[str, str]
    known: frozenset[str] | None
    as_json: frozenset[str]
    key: Sequence[str]
    scope: Given
    window: Window
    _seen: Counter[bytes] = field(factory=Counter, init=False)

    def made(self, batch: pa.RecordBatch) -> Iterator[Document]:
        """The documents of a batch. Raises PermanentError for a row that cannot become one, or should not."""
        names = self.names(batch.schema)
        self._check(batch, names)
        order = sorted(range(len(names)), key=names.__getitem__)
        columns = [self._values(names[at], batch.column(at)) for at in order]
        ordered = [names[at] for at in order]
        whole = self.known is None
        for row in zip(*columns, strict=True):
            document = dict(zip(ordered, row, strict=True))
            if whole:
                yield self._once(self._own(document)), msgspec.Raw(self._one_line(document))
            else:
                source = msgspec.json.encode(document)
                id_ = self._once(self._key(document)) if self.key else self._content(source)
                yield id_, msgspec.Raw(source)

    def names(self, schema: pa.Schema) -> list[str]:
        """The field of each staged column. Raises PermanentError where one has no place, SideError where a field that
        every document needs gets none.
        """
        names = target_names(schema.names, self.renames, self.place)
        needed = {self.timestamp_field, *self.scope, *(_KEPT_RAW if self.known is None else self.key)}
        missing = sorted(needed - set(names))
        if missing:
            raise SideError(
                f"{self.place}: no staged column becomes {missing} ({nearest(missing[0], names)}); "
                "rename one under [columns]"
            )
        strange = [] if self.known is None else sorted(set(names) - self.known)
        if strange:
            raise PermanentError(
                f"{self.place}: it maps no field for the staged {strange}; map them, rename them under [columns], or "
                "exclude them at the source"
            )
        return names

    def _check(self, batch: pa.RecordBatch, names: Sequence[str]) -> None:
        instants = batch.column(names.index(self.timestamp_field))
        where = f"{self.place}, field {self.timestamp_field!r}"
        if not pa.types.is_timestamp(instants.type) or instants.type.tz is None:
            raise PermanentError(f"{where}: found the staged {instants.type}, expected a timestamp with a zone")
        raw = _truncated(instants).cast(INSTANT).cast(pa.int64())
        outside = [us for us in (pc.min(raw).as_py(), pc.max(raw).as_py()) if us is not None and not self._holds(us)]
        if instants.null_count or outside:
            found = f"{outside[0]} us since 1970" if outside else "none at all"
            raise PermanentError(f"{where}: found {found} in a staged row, expected an instant of window {self.window}")
        for name, value in self.scope.items():
            strangers = [each for each in set(batch.column(names.index(name)).to_pylist()) if each != value]
            if strangers:
                raise PermanentError(
                    f"{self.place}, field {name!r}: found the staged value {strangers[0]!r}, expected {value!r}, to "
                    "which scope limits this pipeline; leave such rows out at the source, or correct the scope"
                )

    def _holds(self, us: int) -> bool:
        return self.window.start_us <= us < self.window.end_us

    def _values(self, name: str, array: pa.Array) -> list[Any]:
        """Python values that msgspec writes as the index reads them."""
        if pa.types.is_timestamp(array.type):
            return list(_truncated(array).to_pylist())
        values: list[Any] = array.to_pylist()
        # JSON has neither NaN nor infinity, and the encoder would write null.
        if any(pc.all(pc.is_finite(numbers)).as_py() is False for numbers in _floats(array)):
            raise PermanentError(f"{self.place}, field {name!r}: found NaN or infinity, which no document can hold")
        if name in self.as_json:
            return [None if value is None else self._parsed(name, value) for value in values]
        return values

    def _parsed(self, name: str, text: str) -> Any:
        try:
            return msgspec.json.decode(text)
        except (msgspec.DecodeError, TypeError):
            raise PermanentError(
                f"{self.place}, field {name!r}: found a staged value that is no JSON text, expected what its mapping "
                "takes as JSON; correct it, or exclude the column"
            ) from None

    def _key(self, document: Mapping[str, Any]) -> str:
        values = [document[name] for name in self.key]
        if None in values:
            raise PermanentError(f"{self.place}: a staged row has no {self.key[values.index(None)]!r}, which key names")
        # Two rows of one key in two windows, or in two scopes, are two documents: neither takes the other's place.
        whose = [dict(sorted(self.scope.items()))] if self.scope else []
        text = msgspec.json.encode([*whose, document[self.timestamp_field], *values]).decode()
        if len(text.encode()) > _LONGEST_ID:
            raise PermanentError(f"{self.place}: a key is longer than the {_LONGEST_ID} bytes that an _id may have")
        return text

    def _once(self, id_: str) -> str:
        digest = blake2b(id_.encode(), digest_size=16).digest()
        if digest in self._seen:
            told = "_id" if self.known is None else f"{self.timestamp_field} and the key {', '.join(self.key)}"
            raise PermanentError(
                f"{self.place}: found two staged rows that would both be document {id_!r}, expected {told} to tell the "
                f"rows of window {self.window} apart; name more fields under key, or correct the source"
            )
        self._seen[digest] += 1
        return id_

    def _own(self, document: Mapping[str, Any]) -> str:
        if document["_id"] is None:
            raise PermanentError(f"{self.place}: a staged row has no '_id'; leave it out at the source")
        return str(document["_id"])

    def _one_line(self, document: Mapping[str, Any]) -> bytes:
        """The staged `_source`, without line breaks: in a request that writes many documents, each is a line."""
        found = document["_source"]
        try:
            source: bytes = found.encode()
            return msgspec.json.format(source, indent=-1) if b"\n" in source else source
        except (AttributeError, msgspec.DecodeError):
            raise PermanentError(
                f"{self.place}, document {document['_id']!r}: found the staged _source of type "
                f"{type(found).__name__} that is no JSON text; correct the row, or leave it out at the source"
            ) from None

    def _content(self, source: bytes) -> str:
        digest = blake2b(source, digest_size=16).digest()
        self._seen[digest] += 1
        return f"{urlsafe_b64encode(digest).decode().rstrip('=')}-{self._seen[digest]}"


def _floats(array: pa.Array) -> Iterator[pa.Array]:
    """The fractional numbers of a column, those inside lists and objects too."""
    if pa.types.is_floating(array.type):
        yield array
    elif isinstance(array, pa.StructArray):
        for each in array.flatten():
            yield from _floats(each)
    elif isinstance(array, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray):
        yield from _floats(array.flatten())


def _truncated(array: pa.Array) -> pa.Array:
    """Instants cut to microseconds, never rounded."""
    if array.type.unit != "ns":
        return array
    return pc.floor_temporal(array, unit="microsecond").cast(pa.timestamp("us", array.type.tz))


def properties(schema: pa.Schema, names: Sequence[str], timestamp_field: str, place: str) -> dict[str, Any]:
    """The mapping of a new index for staged columns. The timestamp is kept to the nanosecond, so to the microsecond."""
    made = {name: _field(_mapped(kind, name, place)) for name, kind in zip(names, schema.types, strict=True)}
    return {**made, timestamp_field: _field("date_nanos")}


def _field(mapped: str) -> dict[str, Any]:
    # The index refuses a document with a longer text, unless it is told not to make that searchable.
    return {"type": mapped, "ignore_above": _LONGEST_TERM} if mapped == "keyword" else {"type": mapped}


def _mapped(kind: pa.DataType, name: str, place: str) -> str:
    types = pa.types
    if types.is_list(kind) or types.is_large_list(kind):
        return _mapped(kind.value_type, name, place)
    for holds, mapped in (
        (types.is_timestamp, "date"),
        (types.is_date, "date"),
        (types.is_boolean, "boolean"),
        (types.is_int8, "byte"),
        (types.is_int16, "short"),
        (lambda t: types.is_int32(t) or types.is_uint8(t) or types.is_uint16(t), "integer"),
        (types.is_uint64, "unsigned_long"),
        (types.is_integer, "long"),
        (lambda t: types.is_floating(t) or types.is_decimal(t), "double"),
        (lambda t: types.is_binary(t) or types.is_large_binary(t), "binary"),
        (lambda t: types.is_string(t) or types.is_large_string(t) or types.is_null(t) or types.is_time(t), "keyword"),
    ):
        if holds(kind):
            return mapped
    raise PermanentError(f"{place}: no field type holds the staged {kind} of {name!r}; exclude it, or map it yourself")
