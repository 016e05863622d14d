"""1,000 window counts over five million rows: each engine's plans, and what the connector does, side by side.

SQLite and PostgreSQL, with an index on the timestamp and without; DuckDB, which needs none. The plans take turns with
ours, and the median of the rounds is printed. Plans that would take minutes (a count a window, and the join, where
there is no index) are left out.
"""

from __future__ import annotations

import argparse
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import psycopg
from postgres import postgres, with_driver

from pipeline_core import Context, Secret, Window
from pipeline_duckdb import DuckDbSettings
from pipeline_sql import SqlSettings

BEGIN = datetime(2013, 1, 1, tzinfo=UTC)
WINDOWS = 1_000

EACH = "SELECT count(*) FROM events WHERE ts >= {low} AND ts < {high}"
BUCKETS = "SELECT {bucket} AS bucket, count(*) FROM events WHERE ts >= {low} AND ts < {high} GROUP BY 1 ORDER BY 1"
JOINED = (
    "SELECT asked.low, count(events.ts) FROM asked LEFT JOIN events "
    "ON events.ts >= asked.low AND events.ts < asked.high GROUP BY 1 ORDER BY 1"
)

Plan = Callable[[], Sequence[int]]
Query = Callable[..., Sequence[Sequence[Any]]]


def windows(rows: int) -> list[Window]:
    """Equal windows over all rows, which are a second apart."""
    step = timedelta(seconds=rows // WINDOWS)
    return [Window(BEGIN + number * step, BEGIN + (number + 1) * step) for number in range(WINDOWS)]


def plans(query: Query, mark: str, bucket: str, spans: Sequence[tuple[Any, Any]], *, whole: bool) -> dict[str, Plan]:
    """The plans to choose from. `whole`: the engine reads the whole table for each window, if asked for one."""
    each = EACH.format(low=mark, high=mark)
    buckets = BUCKETS.format(bucket=bucket, low=mark, high=mark)
    few: dict[str, Plan] = {"GROUP BY": lambda: [n for _, n in query(buckets, (spans[0][0], spans[-1][1]))]}
    if whole:
        return few
    return {
        "COUNT a window": lambda: [query(each, span)[0][0] for span in spans],
        **few,
        "join with a table of windows": lambda: [n for _, n in query(JOINED, ())],
    }


def compare(title: str, plans: Mapping[str, Plan], ours: Plan, rounds: int, expected: list[int]) -> None:
    """Lets all plans take turns; prints the medians, and ours over the best."""
    took: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, plan in (*plans.items(), ("ours", ours)):
            begun = time.perf_counter()
            found = list(plan())
            took.setdefault(name, []).append(time.perf_counter() - begun)
            if found != expected:
                raise SystemExit(f"{title}, {name}: found other counts than expected")
    middle = {name: statistics.median(seconds) for name, seconds in took.items()}
    best = min(middle[name] for name in plans)
    listed = "  ".join(f"{name} {seconds * 1e3:,.0f} ms" for name, seconds in middle.items())
    print(f"{title:<24}{listed}  ours : best {middle['ours'] / best:.2f}", flush=True)


def on_sqlite(folder: Path, rows: int, rounds: int) -> None:
    path, asked, step = folder / "events.db", windows(rows), rows // WINDOWS
    spans = [(f"{w.start:%Y-%m-%d %H:%M:%S}", f"{w.end:%Y-%m-%d %H:%M:%S}") for w in asked]
    bucket = f"(unixepoch(ts) - {int(BEGIN.timestamp())}) / {step}"
    settings = SqlSettings(Secret(f"sqlite:///{path}"), "events", "ts", timestamp_timezone="UTC")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE events (id integer PRIMARY KEY, ts timestamp NOT NULL, value real)")
        connection.execute(
            "WITH RECURSIVE n (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n < ? - 1) "
            "INSERT INTO events SELECT n, datetime(? + n, 'unixepoch'), n / 8.0 FROM n",
            (rows, int(BEGIN.timestamp())),
        )
        connection.execute("CREATE TEMPORARY TABLE asked (low timestamp PRIMARY KEY, high timestamp)")
        connection.executemany("INSERT INTO asked VALUES (?, ?)", spans)

        def query(sql: str, values: Any) -> Any:
            return connection.execute(sql, values).fetchall()

        for indexed in (False, True):
            if indexed:
                connection.execute("CREATE INDEX events_ts ON events (ts)")
            found = plans(query, "?", bucket, spans, whole=not indexed)
            with settings.open(Context("bench")) as side:
                side.count(asked[0])  # connects, and looks at the table
                title = f"SQLite, {'indexed' if indexed else 'no index'}"
                compare(title, found, lambda: side.count_many(asked), rounds, [step] * WINDOWS)


def on_postgres(rows: int, rounds: int) -> None:
    asked, step = windows(rows), rows // WINDOWS
    spans = [(w.start, w.end) for w in asked]
    bucket = f"floor((extract(epoch FROM ts) - {int(BEGIN.timestamp())}) / {step})"
    with postgres() as address, psycopg.connect(address, autocommit=True) as connection:
        connection.execute("CREATE TABLE events (id bigint, ts timestamptz NOT NULL, value float8)")
        connection.execute(
            "INSERT INTO events SELECT n, to_timestamp(%s + n), n / 8.0 FROM generate_series(0, %s - 1) AS n",
            (int(BEGIN.timestamp()), rows),
        )
        connection.execute("CREATE TEMPORARY TABLE asked (low timestamptz PRIMARY KEY, high timestamptz)")
        connection.cursor().executemany("INSERT INTO asked VALUES (%s, %s)", spans)

        def query(sql: str, values: Any) -> Any:
            return connection.execute(sql, values).fetchall()  # type: ignore[call-overload]

        settings = SqlSettings(Secret(with_driver(address)), "events", "ts")
        for indexed in (False, True):
            if indexed:
                connection.execute("CREATE INDEX events_ts ON events (ts)")
            connection.execute("VACUUM ANALYZE")
            found = plans(query, "%s", bucket, spans, whole=not indexed)
            with settings.open(Context("bench")) as side:
                side.count(asked[0])  # connects, and looks at the table
                title = f"PostgreSQL, {'indexed' if indexed else 'no index'}"
                compare(title, found, lambda: side.count_many(asked), rounds, [step] * WINDOWS)


def on_duckdb(folder: Path, rows: int, rounds: int) -> None:
    path, asked, step = folder / "events.duckdb", windows(rows), rows // WINDOWS
    spans = [(w.start, w.end) for w in asked]
    bucket = f"(epoch_us(ts) - {int(BEGIN.timestamp()) * 10**6}) // {step * 10**6}"
    with duckdb.connect(str(path)) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(
            "CREATE TABLE events AS SELECT n AS id, to_timestamp(? + n) AS ts, n / 8.0 AS value FROM range(?) AS r (n)",
            (int(BEGIN.timestamp()), rows),
        )
        connection.execute("CREATE TEMPORARY TABLE asked (low timestamptz, high timestamptz)")
        connection.executemany("INSERT INTO asked VALUES (?, ?)", spans)

        def query(sql: str, values: Any) -> Any:
            return connection.execute(sql, values).fetchall()

        bare = plans(query, "?", bucket, spans, whole=False)
        took = {name: _timed(plan) for name, plan in bare.items() for _ in range(rounds)}
    # One process, and one kind of connection, may hold the file at a time: so ours comes after, not in turns.
    with DuckDbSettings(str(path), "events", "ts").open(Context("bench")) as side:
        side.count(asked[0])  # connects, and looks at the table
        ours = min(_timed(lambda: side.count_many(asked)) for _ in range(rounds))
    listed = "  ".join(f"{name} {seconds * 1e3:,.0f} ms" for name, seconds in {**took, "ours": ours}.items())
    print(f"{'DuckDB':<24}{listed}  ours : best {ours / min(took.values()):.2f}", flush=True)


def _timed(plan: Plan) -> float:
    begun = time.perf_counter()
    plan()
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows, one round")
    chosen = parser.parse_args()
    rows, rounds = (500_000, 1) if chosen.quick else (5_000_000, 5)
    print(f"{WINDOWS:,} windows of {rows // WINDOWS:,} rows each")
    with tempfile.TemporaryDirectory() as folder:
        on_sqlite(Path(folder), rows, rounds)
        on_duckdb(Path(folder), rows, rounds)
    on_postgres(rows, rounds)


if __name__ == "__main__":
    main()
