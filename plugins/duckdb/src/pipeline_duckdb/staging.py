"""The uploaded rows: Parquet files that DuckDB reads by itself.

Staged files that lie on this machine are taken where they are, once they are known to be what the manifest says. All
else comes through `load.read()` into a file of its own beside the database.
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline_core import Claim, Load, PermanentError, SideError, Staged, StagedFile
from pipeline_duckdb.database import text
from pipeline_duckdb.types import stageable


def in_place(staged: Staged) -> list[Path] | None:
    """The staged files, if all are Parquet on this machine and as the manifest says; None otherwise.

    One that is missing or differs is left to the stage's own reading, which knows what to do about it.
    """
    paths = [path for file in staged.files if (path := _verified(file)) is not None]
    return paths if paths and len(paths) == len(staged.files) else None


def _verified(file: StagedFile) -> Path | None:
    parts = urlsplit(file.url)
    path = Path(url2pathname(parts.path))
    if parts.scheme != "file" or parts.netloc or path.suffix != ".parquet":
        return None
    try:
        with path.open("rb") as handle:
            found = hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError:
        return None
    return path if found == file.sha256 else None


def copied(load: Load, database: Path, target: str, place: str) -> list[Path]:
    """The staged rows, written to a file beside the database; at most one batch of them is in memory."""
    path = database.parent / f"{_prefix(database, target, load.claim)}{load.claim.fence}.parquet"
    try:
        with closing(_batches(load, place)) as batches:
            first = next(batches)
            with pq.ParquetWriter(path, first.schema, compression="zstd") as writer:
                writer.write_batch(first)
                for batch in batches:
                    writer.write_batch(batch)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return [path]


def _batches(load: Load, place: str) -> Generator[pa.RecordBatch, None, None]:
    """The staged rows, whichever library they come from; at least one batch, if only for the schema."""
    schema: pa.Schema | None = None
    with closing(load.read()) as staged:
        for each in staged:
            reader = pa.RecordBatchReader.from_stream(each)
            if schema is None:
                schema = reader.schema
                check(schema, place)
                yield pa.RecordBatch.from_pylist([], schema=schema)
            if not reader.schema.equals(schema):
                raise PermanentError(
                    f"{place}: found a staged batch whose columns differ from the first one's; expected one schema a "
                    "window: extract it again"
                )
            yield from reader
    if schema is None:
        raise PermanentError(f"{place}: found no staged batch at all, expected at least an empty one")


def remove_copies(database: Path, target: str, claim: Claim) -> None:
    """Removes what `copied` wrote for the claim's window under this and every lower fence."""
    prefix = _prefix(database, target, claim)
    try:
        for path in database.parent.glob(f"{glob.escape(prefix)}*.parquet"):
            fence = path.name.removeprefix(prefix).removesuffix(".parquet")
            if fence.isdecimal() and int(fence) <= claim.fence:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise SideError(
            f"duckdb {database}: a scratch file beside it cannot be removed: {error.strerror}; "
            "give this user the right to write in its folder"
        ) from None


def check(schema: pa.Schema, place: str) -> None:
    """Raises PermanentError for a staged column of a type that DuckDB would read as something else."""
    strange = [f"{field.name!r} ({field.type})" for field in schema if not stageable(field.type)]
    if strange:
        raise PermanentError(
            f"{place}: no type of the target keeps what the staged {', '.join(strange)} means; "
            "exclude it at the source, or convert it there"
        )


def relation(paths: Sequence[Path]) -> str:
    """The rows of the files, in SQL. Their paths are no patterns, and their folders no columns."""
    listed = ", ".join(text(glob.escape(str(path))) for path in paths)
    return f"read_parquet([{listed}], hive_partitioning = false)"


def _prefix(database: Path, target: str, claim: Claim) -> str:
    digest = hashlib.sha256(f"{claim.record.pipeline}\0{target}".encode()).hexdigest()[:16]
    return f"{database.name}.scratch-{digest}-{claim.window.start_us}_{claim.window.end_us}-"
