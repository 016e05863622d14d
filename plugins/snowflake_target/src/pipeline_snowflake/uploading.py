"""From staged rows to scratch: Parquet files, put into an internal stage and copied into a temporary table.

Table and stage are temporary, so nobody else sees them, and they go with the session whatever ends it.
"""

from __future__ import annotations

import errno
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import BinaryIO
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
from attrs import frozen

from pipeline_core import Load, PermanentError, PipelineError, TransientError, Window
from pipeline_snowflake.loading import Loading
from pipeline_snowflake.names import quoted
from pipeline_snowflake.session import Session

# As large as Snowflake advises for files that are loaded at once, before its threads run short of them.
_FILE_BYTES = 128 * 1024 * 1024
_FULL = {errno.ENOSPC, errno.EDQUOT}


@frozen
class Scratch:
    """Uploaded rows: a temporary table of the session's connection of that generation; None: one that outlives it."""

    fence: int
    staged_key: str
    generation: int | None
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
    """Copies staged rows into a new temporary table of a schema, given as database and name; leaves none on failure."""
    name = f"PIPELINE_SCRATCH_{uuid4().hex.upper()}"
    table, stage = quoted(*schema, name), f"{session.stage(schema)}/{name}/"
    generation = session.generation
    try:
        session.rows(f"CREATE TEMPORARY TABLE {table} ({', '.join(loading.scratch)})")
        rows = put(session, stage, loading, batches, load.window)
        if rows:
            _copy(session, table, stage, rows)
    except BaseException:
        _remove(session, generation, table, stage)
        raise
    return Scratch(load.claim.fence, load.staged.key, generation, table, loading)


def put(session: Session, stage: str, loading: Loading, batches: Iterator[pa.RecordBatch], window: Window) -> int:
    """Puts staged rows into a folder of a stage, given as it stands after the `@`; how many there were."""
    rows = 0
    with _disk(session.place), TemporaryDirectory(prefix="pipeline-snowflake-") as folder:
        for path, some in _files(Path(folder), loading, batches, window):
            session.put(path, stage)
            path.unlink()
            rows += some
    return rows


def _remove(session: Session, generation: int, table: str, stage: str) -> None:
    """Drops scratch and what was put for it, where the session that holds them is still there."""
    if session.generation == generation:
        with suppress(PipelineError):  # what failed before is worth telling; these end with the session
            session.rows(f"DROP TABLE IF EXISTS {table}")
            session.rows(f"REMOVE @{stage}")


@contextmanager
def _disk(place: str) -> Iterator[None]:
    """Raises TransientError for a full disk: no other window would fare better."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise TransientError(
            f"{place}: cannot write what is to be uploaded into {gettempdir()}: {error.strerror}; free space there, or "
            "name a larger folder (TMPDIR)",
            side_down=True,
        ) from None


def copying(table: str, stage: str) -> str:
    """The statement that copies what was put there into a scratch table, given quoted."""
    # Text is kept as it is: by default one that reads \\N would become NULL.
    return (
        f"COPY INTO {table} FROM @{stage} FILE_FORMAT = (TYPE = PARQUET NULL_IF = ()) "
        "MATCH_BY_COLUMN_NAME = CASE_SENSITIVE PURGE = TRUE"
    )


def _copy(session: Session, table: str, stage: str, rows: int) -> None:
    """Raises PermanentError where other rows arrive than were put there."""
    answer = session.rows(copying(table, stage))
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
                full, writer, number = writer, None, number + 1
                _close(full, sink)
                yield path, rows
        if writer is not None:
            last, writer = writer, None
            _close(last, sink)
            yield path, rows
    finally:
        if writer is not None:
            _close(writer, sink)


def _close(writer: pq.ParquetWriter, sink: BinaryIO) -> None:
    with sink:  # whatever the writer's last rows meet
        writer.close()
