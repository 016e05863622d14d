"""The stage: rows as Parquet files, and the manifest that makes them count."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import BufferedIOBase
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline_core.contracts import Batches, Problem, Stage, Staged, StagedFile, StageRequest
from pipeline_core.errors import ClaimLostError, PermanentError, PipelineError, TransientError
from pipeline_core.window import Window, iso
from pipeline_objects.place import NewFile, Place

_MANIFEST = "manifest.json"
_FORMAT = 1
#: Compressed. Warehouses ask for 100 to 250 MB a file: enough for many to load side by side, few enough to list.
_FILE_BYTES = 128 * 2**20
#: A row group is held in memory once while it is written and once while it is read.
_GROUP_ROWS = 100_000
_GROUP_BYTES = 64 * 2**20
_READ_ROWS = 50_000

_log = logging.getLogger(__name__)


class ObjectStage(Stage):
    """Parquet files (zstd) and a manifest for each key. Nothing is kept open between two calls.

    `file_bytes` is the size from which on a file is closed and the next one begun.
    """

    def __init__(self, place: Place, file_bytes: int = _FILE_BYTES) -> None:
        self._place = place
        self._file_bytes = file_bytes

    def write(self, request: StageRequest, batches: Batches) -> Staged:
        """Writes every batch, then the manifest; on any failure it removes what it has written, if it still can.

        Parquet stores a few types as their neighbour: seconds as milliseconds, `date64` as `date32`. Raises
        PermanentError where a batch differs in schema from the first, or a type has no place in Parquet;
        TransientError on a full disk or where the bucket cannot be reached; SideError where this process may not
        write; ClaimLostError where another writer has completed this very key in a bucket meanwhile.
        """
        self.remove(request.key)
        self._place.make(request.key)
        try:
            schema, files = self._write_files(request.key, batches)
            staged = Staged(
                key=request.key,
                pipeline=request.pipeline,
                window=request.window,
                fence=request.fence,
                rows=sum(file.rows for file in files),
                files=tuple(files),
                schema=schema,
                identity=dict(request.identity),
            )
            self._place.put(f"{request.key}/{_MANIFEST}", _to_json(staged))
        except ClaimLostError:
            raise  # what lies under this key is another writer's now
        except BaseException:
            self._clear_away(request.key)
            raise
        return staged

    def find(self, prefix: str) -> Sequence[Staged]:
        """The complete ones whose key begins with `prefix`. A manifest that cannot be read is logged, and not found."""
        found = (self._manifest(key) for key in self.keys(prefix))
        return [staged for staged in found if staged is not None]

    def keys(self, prefix: str) -> Sequence[str]:
        """The keys that begin with `prefix` and hold any file at all, complete or not."""
        return self._place.keys(prefix)

    def read(self, staged: Staged) -> Batches:
        """The rows as `pyarrow.RecordBatch`, a row group in memory at a time, at least one batch.

        Each file is checked against its sha256 before the first of its rows is handed out. Where one is missing or
        differs, the manifest goes, so that nothing finds it again, and TransientError says so.
        """
        for file in staged.files:
            name = _name(file)
            with self._place.reading(f"{staged.key}/{name}") as handle:
                if handle is None:
                    raise self._rejected(staged, file, "the file is missing")
                self._verify(staged, file, handle)
                yield from _rows(handle)

    def remove(self, key: str) -> None:
        """Removes the key's files, the manifest first, and the folders that this leaves empty."""
        self._place.remove(key, first=_MANIFEST)

    def problems(self) -> Iterable[Problem]:
        """Whether files can be written there, and what else the place finds."""
        return self._place.problems()

    def _write_files(self, key: str, batches: Batches) -> tuple[str, list[StagedFile]]:
        files: list[StagedFile] = []
        part: _Part | None = None
        schema = ""
        try:
            for table in _row_groups(batches, f"stage {key}"):
                if part is None:
                    name = f"{key}/part-{len(files):05}.parquet"
                    part = _Part(self._place, name, table.schema)
                    schema = schema or _text(table.schema)
                part.write(table)
                if part.bytes >= self._file_bytes:
                    files.append(part.finish())
                    part = None
            if part is not None:
                files.append(part.finish())
                part = None
        finally:
            if part is not None:
                part.abandon()
        return schema, files

    def _clear_away(self, key: str) -> None:
        try:
            self.remove(key)
        except PipelineError as error:
            # The failure that led here is the one to raise; without a manifest these files count for nothing.
            _log.warning("stage %s: cannot remove a half-written window: %s", key, error)

    def _manifest(self, key: str) -> Staged | None:
        data = self._place.get(f"{key}/{_MANIFEST}")
        if data is None:
            return None
        try:
            return _from_json(data, key, self._place)
        except (ValueError, TypeError, KeyError, AttributeError, PermanentError) as error:
            _log.warning("stage %s: the manifest cannot be read, so the window is not complete: %r", key, error)
            return None

    def _verify(self, staged: Staged, file: StagedFile, handle: BufferedIOBase) -> None:
        size = handle.seek(0, os.SEEK_END)
        if size != file.bytes:
            raise self._rejected(staged, file, f"found {size} bytes, expected {file.bytes}")
        handle.seek(0)
        found = hashlib.file_digest(handle, "sha256").hexdigest()
        handle.seek(0)
        if found != file.sha256:
            raise self._rejected(staged, file, f"found sha256 {found}, expected {file.sha256}")

    def _rejected(self, staged: Staged, file: StagedFile, why: str) -> TransientError:
        self._place.discard(f"{staged.key}/{_MANIFEST}")
        return TransientError(f"stage {file.url}: {why}; the window will be extracted again")


class _Part:
    """One Parquet file while it is written. Counts and hashes the bytes as they pass."""

    def __init__(self, place: Place, name: str, schema: pa.Schema) -> None:
        self._url = place.url(name)
        self._rows = 0
        self._sink = _Sink(place.create(name))
        try:
            self._writer = pq.ParquetWriter(self._sink, schema, compression="zstd")
        except pa.ArrowException as error:
            self._sink.abandon()
            raise _refused(f"stage {self._url}", schema, error) from None

    @property
    def bytes(self) -> int:
        return self._sink.written

    def write(self, table: pa.Table) -> None:
        try:
            self._writer.write_table(table)
        except pa.ArrowException as error:
            raise _refused(f"stage {self._url}", table.schema, error) from None
        self._rows += table.num_rows

    def finish(self) -> StagedFile:
        self._writer.close()
        self._sink.finish()
        return StagedFile(self._url, self._rows, self.bytes, self._sink.digest.hexdigest())

    def abandon(self) -> None:
        """Lets go of the file. The writer's footer, which it insists on, goes nowhere."""
        self._sink.abandon()
        self._writer.close()


class _Sink:
    """What Arrow writes into: the methods it calls on a Python file."""

    def __init__(self, file: NewFile) -> None:
        self._file: NewFile | None = file
        self.digest = hashlib.sha256()
        self.written = 0
        self.closed = False

    def write(self, data: Any) -> None:
        if self._file is not None:
            self._file.write(data)
            self.digest.update(data)
        self.written += len(data)

    def tell(self) -> int:
        return self.written

    def flush(self) -> None:
        """Nothing to do before the end."""

    def finish(self) -> None:
        if self._file is not None:
            self._file.finish()

    def abandon(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            file.abandon()


def _row_groups(batches: Batches, place: str) -> Iterator[pa.Table]:
    """The batches joined to tables worth a row group; one of no rows where there are none at all."""
    schema: pa.Schema | None = None
    held: list[pa.RecordBatch] = []
    rows = size = 0
    empty = True
    for batch in batches:
        with pa.RecordBatchReader.from_stream(batch) as reader:
            schema = _same(schema, reader.schema, place)
            for part in reader:
                held.append(part)
                rows += part.num_rows
                size += part.nbytes
        if rows >= _GROUP_ROWS or size >= _GROUP_BYTES:
            yield pa.Table.from_batches(held, schema)
            held, rows, size, empty = [], 0, 0, False
    if schema is None:
        raise PermanentError(f"{place}: the source gave no batch; it must give at least one, an empty one for no rows")
    if rows or empty:
        yield pa.Table.from_batches(held, schema)


def _same(first: pa.Schema | None, found: pa.Schema, place: str) -> pa.Schema:
    if first is None:
        if not found.names:
            raise PermanentError(f"{place}: the source gave rows without any column; expected at least the timestamp")
        return found
    if first.equals(found):
        return first
    missing = [name for name in first.names if name not in found.names]
    more = [name for name in found.names if name not in first.names]
    if missing or more:
        raise PermanentError(
            f"{place}: a later batch has other columns than the first: missing {missing}, new {more}; "
            "the source must give every batch of a window the same columns"
        )
    for one, other in zip(first, found, strict=False):
        if not one.equals(other):
            raise PermanentError(
                f"{place}: column {other.name!r} of a later batch is {_type(other)}, the first batch has "
                f"{one.name!r} as {_type(one)} there; the source must give every batch of a window the same types"
            )
    raise PermanentError(f"{place}: a later batch has {len(found)} columns, the first {len(first)}")


def _refused(place: str, schema: pa.Schema, error: pa.ArrowException) -> PermanentError:
    """Names the columns at fault: Arrow's own text does not."""
    at_fault = [f"{field.name!r} ({_type(field)})" for field in schema if not _fits(field)]
    columns = ", ".join(at_fault) or "a value"
    return PermanentError(
        f"{place}: {columns} cannot be stored as Parquet: {error}; exclude it, or cast it at the source"
    )


def _fits(field: pa.Field) -> bool:
    try:
        pq.write_table(pa.schema([field]).empty_table(), pa.BufferOutputStream())
    except pa.ArrowException:
        return False
    return True


def _rows(handle: BufferedIOBase) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(handle) as parquet:
        if parquet.metadata.num_rows == 0:
            schema = parquet.schema_arrow
            yield pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)
        for group in range(parquet.num_row_groups):  # a batch of wide rows would span several, up to the whole file
            yield from parquet.iter_batches(_READ_ROWS, row_groups=[group])


def _text(schema: pa.Schema) -> str:
    return "\n".join(f"{field.name}: {_type(field)}" for field in schema)


def _type(field: pa.Field) -> str:
    return str(field.type) if field.nullable else f"{field.type} not null"


def _to_json(staged: Staged) -> bytes:
    window = staged.window
    manifest = {
        "format": _FORMAT,
        "pipeline": staged.pipeline,
        "window": {
            "start": iso(window.start_us),
            "end": iso(window.end_us),
            "start_us": window.start_us,
            "end_us": window.end_us,
        },
        "fence": staged.fence,
        "rows": staged.rows,
        # Names, not URLs: another machine may see the same folder under another path.
        "files": [
            {"name": _name(file), "rows": file.rows, "bytes": file.bytes, "sha256": file.sha256}
            for file in staged.files
        ],
        "schema": staged.schema,
        "identity": dict(staged.identity),
    }
    return json.dumps(manifest, indent=2).encode()


def _from_json(data: bytes, key: str, place: Place) -> Staged:
    """The manifest of `key`. Anything else raises whatever it runs into first: the caller knows them all."""
    found: Mapping[str, Any] = json.loads(data)
    if found["format"] != _FORMAT:
        raise ValueError(f"found format {found['format']!r}, expected {_FORMAT}")
    files = tuple(
        StagedFile(place.url(f"{key}/{file['name']}"), int(file["rows"]), int(file["bytes"]), str(file["sha256"]))
        for file in found["files"]
    )
    rows = int(found["rows"])
    if not files or rows != sum(file.rows for file in files):
        raise ValueError(f"found {len(files)} files that do not add up to {rows} rows")
    return Staged(
        key=key,
        pipeline=str(found["pipeline"]),
        window=Window.from_us(found["window"]["start_us"], found["window"]["end_us"]),
        fence=int(found["fence"]),
        rows=rows,
        files=files,
        schema=str(found["schema"]),
        identity={str(name): str(value) for name, value in found["identity"].items()},
    )


def _name(file: StagedFile) -> str:
    return PurePosixPath(unquote(urlsplit(file.url).path)).name
