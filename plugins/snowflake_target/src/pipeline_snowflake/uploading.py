"""From staged rows to scratch: Parquet files, put into an internal stage and copied into a temporary table.

Table and stage are temporary, so nobody else sees them, and they go with the session whatever ends it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
from attrs import frozen

from pipeline_core import Load, PermanentError, Window
from pipeline_snowflake.loading import Loading
from pipeline_snowflake.names import quoted
from pipeline_snowflake.session import Session

# As large as Snowflake advises for files that are loaded at once, before its threads run short of them.
_FILE_BYTES = 128 * 1024 * 1024


@frozen
class Scratch:
    """Uploaded rows: a temporary table of the session's connection of that generation."""

    fence: int
    staged_key: str
    generation: int
    sql: str
    loading: Loading


def staged_batches(load: Load) -> Generator[pa.RecordBatch, None, None]:
    """The staged rows, whichever library they come from; at least one batch for each that is staged."""
    with closing(load.read()) as staged:
        for each in staged:
            reader = pa.RecordBatchReader.from_stream(each)
            yield pa.RecordBatch.from_pylist([], schema=reader.schema)
            yield from reader


def filled(
    session: Session, schema: Sequence[str], load: Load, loading: Loading, batches: Iterator[pa.RecordBatch]
) -> Scratch:
    """Copies staged rows into a new temporary table of a schema, given as database and name."""
    name = f"PIPELINE_SCRATCH_{uuid4().hex.upper()}"
    table, stage = quoted(*schema, name), f"{session.stage(schema)}/{name}/"
    session.rows(f"CREATE TEMPORARY TABLE {table} ({', '.join(loading.scratch)})")
    generation = session.generation
    rows = 0
    with TemporaryDirectory(prefix="pipeline-snowflake-") as folder:
        for path, some in _files(Path(folder), loading, batches, load.window):
            session.put(path, stage)
            path.unlink()
            rows += some
    if rows:
        _copy(session, table, stage, rows)
    return Scratch(load.claim.fence, load.staged.key, generation, table, loading)


def _copy(session: Session, table: str, stage: str, rows: int) -> None:
    """Raises PermanentError where other rows arrive than were put there."""
    # Text is kept as it is: by default one that reads \\N would become NULL.
    answer = session.rows(
        f"COPY INTO {table} FROM @{stage} FILE_FORMAT = (TYPE = PARQUET NULL_IF = ()) "
        "MATCH_BY_COLUMN_NAME = CASE_SENSITIVE PURGE = TRUE"
    )
    session.rows("COMMIT")
    loaded = sum(int(each[3]) for each in answer if len(each) > 3)
    if loaded != rows:
        raise PermanentError(f"{session.place}: {rows} rows were put, but {loaded} copied; nothing was published")


def _files(
    folder: Path, loading: Loading, batches: Iterator[pa.RecordBatch], window: Window
) -> Iterator[tuple[Path, int]]:
    """Parquet files with the rows for scratch, and how many each holds; one file at a time is on the disk."""
    number, writer, rows = 0, None, 0
    try:
        for batch in batches:
            found = loading.rows(batch, window)
            if not len(found):
                continue
            if writer is None:
                path, rows = folder / f"part{number}.parquet", 0
                sink = path.open("wb")
                writer = pq.ParquetWriter(sink, found.schema, compression="snappy")
            writer.write_batch(found)
            rows += len(found)
            if sink.tell() >= _FILE_BYTES:
                writer.close()
                sink.close()
                writer, number = None, number + 1
                yield path, rows
        if writer is not None:
            writer.close()
            sink.close()
            writer = None
            yield path, rows
    finally:
        if writer is not None:
            writer.close()
            sink.close()
