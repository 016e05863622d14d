"""Staged Parquet into PostgreSQL, side by side: bare pgpq and COPY, ADBC, dlt, and ours.

The same Parquet files (a timestamp, a text, a double) are the source for all, and a table with an index on its
timestamp the target: once as one window of five million rows, once as a thousand windows of five thousand.

`bare pgpq` reads a file with pyarrow, encodes it with pgpq, copies it into a temporary table, deletes the window and
does `insert ... select`: one transaction a window, and nothing else. `ADBC` ingests into a table made for the window
and replaces from that, since it opens a connection of its own. `dlt` appends the files by a pipeline of its own, Arrow
in, and loads as it does by default; it replaces nothing, and is judged on a few of the thousand windows. `ours` is the
library's stage and target: checksums, upload, ledger, delete, insert, count. Each runs in a process of its own, whose
peak of memory is told.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any
from urllib.parse import quote

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
from postgres import new_database, postgres, with_driver
from psycopg.conninfo import conninfo_to_dict
from staged import BATCH_ROWS, files, stage

from pipeline_core import Claim, Context, Load, Record, Secret, Staged
from pipeline_objects import ObjectStageSettings
from pipeline_sql import SqlSettings

FEW = 20  # windows, of which dlt is judged
TABLE = "CREATE TABLE events (ts timestamptz NOT NULL, name text, value float8); CREATE INDEX ON events (ts)"

processes = multiprocessing.get_context("forkserver")
Way = Callable[[str, str, Sequence[Staged]], None]


# --- the ways ---------------------------------------------------------------------------------------------------------


def replace_window(connection: Any, staged: Staged, rows: str) -> None:
    span = staged.window.start, staged.window.end
    connection.execute("DELETE FROM events WHERE ts >= %s AND ts < %s", span)
    connection.execute(f"INSERT INTO events SELECT * FROM {rows}")


def bare_pgpq(address: str, folder: str, windows: Sequence[Staged]) -> None:
    from pgpq import ArrowToPostgresBinaryEncoder

    with psycopg.connect(address) as connection:
        for staged in windows:
            connection.execute("CREATE TEMPORARY TABLE scratch (LIKE events) ON COMMIT DROP")
            encoder = None
            with connection.cursor().copy("COPY scratch FROM STDIN (FORMAT BINARY)") as copy:
                for path in files(folder, staged):
                    for batch in pq.ParquetFile(path).iter_batches(BATCH_ROWS):
                        if encoder is None:
                            encoder = ArrowToPostgresBinaryEncoder(batch.schema)
                            copy.write(encoder.write_header())
                        copy.write(encoder.write_batch(batch))
                if encoder is not None:
                    copy.write(encoder.finish())
            replace_window(connection, staged, "scratch")
            connection.commit()


def adbc(address: str, folder: str, windows: Sequence[Staged]) -> None:
    from adbc_driver_postgresql import dbapi

    with psycopg.connect(address) as connection, dbapi.connect(address) as ingesting:
        for staged in windows:
            connection.execute("CREATE UNLOGGED TABLE scratch (LIKE events)")
            connection.commit()
            with ingesting.cursor() as cursor:
                for path in files(folder, staged):
                    parquet = pq.ParquetFile(path)
                    reader = pa.RecordBatchReader.from_batches(parquet.schema_arrow, parquet.iter_batches(BATCH_ROWS))
                    cursor.adbc_ingest("scratch", reader, mode="append")
            ingesting.commit()
            replace_window(connection, staged, "scratch")
            connection.execute("DROP TABLE scratch")
            connection.commit()


def by_dlt(address: str, folder: str, windows: Sequence[Staged]) -> None:
    os.environ["RUNTIME__DLTHUB_TELEMETRY"] = "false"
    import dlt

    known = conninfo_to_dict(address)
    credentials = {
        "host": quote(known["host"], safe=""),
        "username": known["user"],
        "database": known["dbname"],
        "password": "-",
    }
    with tempfile.TemporaryDirectory() as working:
        destination = dlt.destinations.postgres(credentials)
        pipeline = dlt.pipeline("bench", pipelines_dir=working, destination=destination, dataset_name="public")
        for staged in windows:

            def rows(staged: Staged = staged) -> Iterator[pa.RecordBatch]:
                for path in files(folder, staged):
                    yield from pq.ParquetFile(path).iter_batches(BATCH_ROWS)

            pipeline.run(dlt.resource(rows, name="events_dlt"), write_disposition="append")


def ours(address: str, folder: str, windows: Sequence[Staged]) -> None:
    with (
        ObjectStageSettings(f"file://{folder}").open(Context("bench")) as opened,
        SqlSettings(Secret(with_driver(address)), "events", "ts").open(Context("bench")) as target,
    ):
        for staged in windows:
            claim = Claim("bench", Record("bench", staged.window), 1)
            load = Load(claim, staged, lambda staged=staged: opened.read(staged))  # type: ignore[misc]
            target.upload(load)
            with target.transaction() as publication:
                publication.guard(load)
                publication.delete(load.window)
                publication.insert(load)
                publication.count(load.window)
            target.discard(claim)


# Imported before the clock starts.
DRIVERS: dict[str, tuple[str, ...]] = {
    "bare pgpq": ("pgpq",),
    "ADBC": ("adbc_driver_postgresql.dbapi",),
    "dlt": ("dlt", "dlt.destinations.impl.postgres.postgres"),
    "ours": ("pipeline_sql.connector", "pipeline_sql.engines.postgresql", "pipeline_objects.stage", "pgpq"),
}
WAYS: dict[str, Way] = {"bare pgpq": bare_pgpq, "ADBC": adbc, "dlt": by_dlt, "ours": ours}


# --- rounds -----------------------------------------------------------------------------------------------------------


def one(name: str, address: str, folder: str, windows: Sequence[Staged], results: Any) -> None:
    """What one process does: the seconds it took, and the peak of its memory in bytes."""
    for module in DRIVERS[name]:
        import_module(module)
    begun = time.perf_counter()
    WAYS[name](address, folder, windows)
    took = time.perf_counter() - begun
    results.put((took, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


def measure(name: str, server: str, database: str, folder: str, windows: Sequence[Staged]) -> tuple[float, float]:
    """Rows a second, and the peak of memory in MB, of one way into an empty table."""
    address = new_database(server, database)
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(TABLE)
    asked = windows[:FEW] if name == "dlt" else windows
    results = processes.SimpleQueue()
    process = processes.Process(target=one, args=(name, address, folder, asked, results))
    process.start()
    process.join()
    if process.exitcode != 0:
        raise SystemExit(f"{name} failed")
    took, peak = results.get()
    rows = sum(staged.rows for staged in asked)
    with psycopg.connect(address) as connection:
        table = "events_dlt" if name == "dlt" else "events"
        if connection.execute(f"SELECT count(*) FROM {table}").fetchone() != (rows,):  # type: ignore[arg-type]
            raise SystemExit(f"{name}: the target holds other rows than were staged")
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {database} WITH (FORCE)")  # type: ignore[arg-type]
    return rows / took, peak / 1e6


def compare(windows: int, rows: int, rounds: int) -> None:
    found: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder, postgres() as server:
        staged = stage(folder, windows, rows)
        for turn in range(rounds):
            for number, name in enumerate(WAYS):
                figures = measure(name, server, f"load_{turn}_{number}", folder, staged)
                found.setdefault(name, []).append(figures)
    print(f"\n{windows:,} windows of {rows:,} rows, staged as Parquet, into PostgreSQL; the median of {rounds}\n")
    print("| | rows/s | ours | peak of memory, MB |\n|---|---|---|---|")
    middle = {name: [statistics.median(each) for each in zip(*taken, strict=True)] for name, taken in found.items()}
    for name, (rate, peak) in middle.items():
        share = middle["ours"][0] / rate
        print(f"| {name} | {rate:,.0f} | {share:.0%} | {peak:,.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a twentieth of the rows, one round")
    chosen = parser.parse_args()
    part, rounds = (20, 1) if chosen.quick else (1, 2)
    compare(1, 5_000_000 // part, rounds)
    compare(1_000 // part, 5_000, 1)


if __name__ == "__main__":
    main()
