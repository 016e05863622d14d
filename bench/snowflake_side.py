"""Staged Parquet into Snowflake's stand-in, side by side: the bare official connector, dlt, and ours.

The stand-in (tools/snowflake_server.py) is DuckDB on the same machine: rows a second compare what each way does beside
it, and say nothing of Snowflake, where every statement is a journey. So the statements of a window are told too, as the
stand-in received them; signing in is told apart. What `bench/load.py` stages is loaded, once as one large window and
once as many small ones. `bench/stage.py` measures the staging itself.

`bare connector` puts the files as they are, copies them into a temporary table, deletes the window and does
`INSERT ... SELECT`, in one transaction, and nothing else. `dlt` appends the files by a pipeline of its own, Arrow in;
it replaces nothing. `ours` is the library's stage and target: checksums, upload, ledger, delete, insert, count. Each
loads one window more before the clock starts, with which it signs in and makes its tables, and runs in a process of its
own, whose peak of memory is told.

Two settings of dlt are not its defaults, since the stand-in takes one statement at a time, and no JSON by the names of
columns: the statements that make dlt's tables are sent one by one (before the clock starts), and its pipeline's state
is not kept in the target, which spares dlt a file with its PUT and COPY whenever that state has changed. The stand-in
passes over `ALTER SESSION`, by which dlt turns autocommit off: its COPY commits alone.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from staged import BATCH_ROWS, files, stage

from pipeline_core import Claim, Context, Load, Record, Secret, Staged
from pipeline_objects import ObjectStageSettings
from pipeline_snowflake import SnowflakeSettings

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

from snowflake_server import Server

# What the connector asks for on closing, lest it warn.
QUIET = {"enable_server_session_keep_alive_auto_detection": False}
COLUMNS = "(TS TIMESTAMP_LTZ NOT NULL, NAME VARCHAR, VALUE FLOAT)"

# Spawned: the connector's 5.x starts threads when it is imported, which no fork would have.
processes = multiprocessing.get_context("spawn")
Loading = Callable[[Staged], None]
Way = Callable[[Mapping[str, Any], str], AbstractContextManager[Loading]]


def connect(options: Mapping[str, Any]) -> Any:
    """The official connector; each statement is committed at once, except in a transaction."""
    import snowflake.connector

    given = {**options, **QUIET, "autocommit": True, "paramstyle": "qmark", "session_parameters": {"TIMEZONE": "UTC"}}
    return snowflake.connector.connect(**given)


# --- the ways: each opens, and gives what loads a window -------------------------------------------------------------


@contextmanager
def bare_connector(options: Mapping[str, Any], folder: str) -> Iterator[Loading]:
    scratch = "PIPELINE_SCRATCH_BARE"  # by the beginning of its name the stand-in knows a temporary table

    with closing(connect(options)) as connection, closing(connection.cursor()) as cursor:
        cursor.execute("CREATE TEMPORARY STAGE BARE")

        def load(staged: Staged) -> None:
            cursor.execute(f"CREATE TEMPORARY TABLE {scratch} {COLUMNS}")
            place = f"@BARE/{staged.window.start_us}"
            for path in files(folder, staged):
                cursor.execute(f"PUT 'file://{path}' {place} AUTO_COMPRESS = FALSE OVERWRITE = TRUE")
            cursor.execute(
                f"COPY INTO {scratch} FROM {place} FILE_FORMAT = (TYPE = PARQUET USE_LOGICAL_TYPE = TRUE) "
                "MATCH_BY_COLUMN_NAME = CASE_INSENSITIVE PURGE = TRUE"
            )
            cursor.execute("BEGIN TRANSACTION")
            span = staged.window.start, staged.window.end
            cursor.execute("DELETE FROM EVENTS WHERE TS >= ? AND TS < ?", span)
            cursor.execute(f"INSERT INTO EVENTS SELECT * FROM {scratch}")
            cursor.execute("COMMIT")
            cursor.execute(f"DROP TABLE {scratch}")

        yield load


@contextmanager
def by_dlt(options: Mapping[str, Any], folder: str) -> Iterator[Loading]:
    os.environ |= {"RUNTIME__DLTHUB_TELEMETRY": "false", "RESTORE_FROM_DESTINATION": "false"}
    import dlt

    credentials = {
        "host": options["account"],
        "username": options["user"],
        "password": options["password"],
        "database": options["database"],
        "query": {name: options[name] for name in ("host", "port", "protocol")} | QUIET,
    }
    with tempfile.TemporaryDirectory() as working:
        destination = dlt.destinations.snowflake(credentials, supports_multiple_statements=False)
        schema = options["schema"].lower()
        pipeline = dlt.pipeline("bench", pipelines_dir=working, destination=destination, dataset_name=schema)

        def load(staged: Staged) -> None:
            def rows() -> Iterator[pa.RecordBatch]:
                for path in files(folder, staged):
                    yield from pq.ParquetFile(path).iter_batches(BATCH_ROWS)

            pipeline.run(dlt.resource(rows, name="events"), write_disposition="append")

        yield load


@contextmanager
def ours(options: Mapping[str, Any], folder: str) -> Iterator[Loading]:
    given = {**options, "password": Secret(options["password"])}
    with (
        ObjectStageSettings(f"file://{folder}").open(Context("bench")) as opened,
        SnowflakeSettings(**given, table="EVENTS", timestamp_column="TS").open(Context("bench")) as target,
    ):

        def load(staged: Staged) -> None:
            claim = Claim("bench", Record("bench", staged.window), 1)
            one = Load(claim, staged, lambda: opened.read(staged))
            target.upload(one)
            with target.transaction() as publication:
                publication.guard(one)
                publication.delete(one.window)
                publication.insert(one)
                publication.count(one.window)
            target.discard(claim)

        yield load


WAYS: dict[str, Way] = {"bare connector": bare_connector, "dlt": by_dlt, "ours": ours}


# --- rounds -----------------------------------------------------------------------------------------------------------


class Figures(NamedTuple):
    """What one way took: rows a second, statements and sign-ins a window, and the peak of memory in MB."""

    rate: float
    statements: float
    logins: float
    peak: float


def one(name: str, options: Mapping[str, Any], folder: str, windows: Sequence[Staged], parent: Connection) -> None:
    """What one process does. Tells its parent when it is about to begin, and then the seconds and the peak in bytes.

    It waits for the parent's word in between, and before it closes, so that the parent may look what was sent.
    """
    first, *others = windows
    with WAYS[name](options, folder) as load:
        load(first)
        parent.send("ready")
        parent.recv()
        begun = time.perf_counter()
        for staged in others:
            load(staged)
        took = time.perf_counter() - begun
        parent.send((took, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))
        parent.recv()


def measure(name: str, server: Server, schema: str, folder: str, windows: Sequence[Staged]) -> Figures:
    """The figures of one way into an empty table."""
    options = server.options(schema=schema)
    with closing(connect(options)) as connection, closing(connection.cursor()) as cursor:
        cursor.execute(f"CREATE TABLE EVENTS {COLUMNS}")
        here, there = processes.Pipe()
        process = processes.Process(target=one, args=(name, options, folder, windows, there))
        process.start()
        there.close()
        try:
            here.recv()
            before = len(server.sent())
            here.send("go")
            took, peak = here.recv()
            sent = server.sent(before)
            here.send("close")
        except EOFError:
            raise SystemExit(f"{name} failed") from None
        finally:
            process.join()
        cursor.execute("SELECT COUNT(*) FROM EVENTS")
        if cursor.fetchone() != (sum(staged.rows for staged in windows),):
            raise SystemExit(f"{name}: the target holds other rows than were staged")
        cursor.execute("DROP TABLE EVENTS")
    measured = windows[1:]
    logins = sum(each["sql"].startswith("LOGIN") for each in sent)
    rows = sum(staged.rows for staged in measured)
    return Figures(rows / took, (len(sent) - logins) / len(measured), logins / len(measured), peak / 1e6)


def compare(windows: int, rows: int, rounds: int) -> None:
    found: dict[str, list[Figures]] = {}
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as data:
        staged = stage(folder, windows + 1, rows)
        server = Server(Path(data))
        try:
            for turn in range(rounds):
                for number, name in enumerate(WAYS):
                    figures = measure(name, server, f"LOAD_{turn}_{number}", folder, staged)
                    found.setdefault(name, []).append(figures)
        finally:
            server.stop()
    print(f"\n{windows:,} windows of {rows:,} rows, staged as Parquet, into the stand-in; the median of {rounds}\n")
    print("| | rows/s | ours | statements a window | sign-ins a window | peak of memory, MB |")
    print("|---|---|---|---|---|---|")
    middle = {name: Figures(*map(statistics.median, zip(*taken, strict=True))) for name, taken in found.items()}
    for name, (rate, statements, logins, peak) in middle.items():
        share = middle["ours"].rate / rate
        print(f"| {name} | {rate:,.0f} | {share:.0%} | {statements:g} | {logins:g} | {peak:,.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows, one round")
    chosen = parser.parse_args()
    part, rounds = (10, 1) if chosen.quick else (1, 3)
    compare(1, 200_000 // part, rounds)
    compare(50 // part, 5_000, rounds)


if __name__ == "__main__":
    main()
