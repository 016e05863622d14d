"""1,000 window counts over five million rows: each engine's plans, and what the connector does, side by side.

SQLite, PostgreSQL and MariaDB, with an index on the timestamp and without; DuckDB, which needs none. The plans take
turns with ours, and the median of the rounds is printed; then each engine's own words for how it carries them out.
Plans that would take minutes (a count a window, and the join, where there is no index) are left out, and so is the join
on MariaDB, which reads the whole table for each window whatever the index.
"""

from __future__ import annotations

import argparse
import re
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

import duckdb
import psycopg
import pymysql
import sqlalchemy as sa
from mariadb import mariadb
from postgres import postgres, with_driver

from pipeline_core import Context, Secret, Window
from pipeline_duckdb import DuckDbSettings
from pipeline_sql import SqlSettings
from pipeline_sql.connector import SqlConnector

BEGIN = datetime(2013, 1, 1, tzinfo=UTC)
WINDOWS = 1_000

EACH = "SELECT count(*) FROM events WHERE ts >= {low} AND ts < {high}"
BUCKETS = "SELECT {bucket} AS bucket, count(*) FROM events WHERE ts >= {low} AND ts < {high} GROUP BY 1 ORDER BY 1"
JOINED = (
    "SELECT asked.low, count(events.ts) FROM asked LEFT JOIN events "
    "ON events.ts >= asked.low AND events.ts < asked.high GROUP BY 1 ORDER BY 1"
)

SLOW = ("COUNT a window", "join with a table of windows")  # where the whole table is read for each window
NAMES = ("COUNT a window", "GROUP BY", "join with a table of windows", "ours")

Query = Callable[[str, Any], Sequence[Sequence[Any]]]
Told = Callable[[Sequence[Sequence[Any]]], str]


class Plan(NamedTuple):
    """A way to count all windows: how to run it, the statement that it consists of, or the first of many, and what
    runs a statement where this one is known.
    """

    run: Callable[[], Sequence[int]]
    statement: str
    values: Any
    query: Query


def windows(rows: int) -> list[Window]:
    """Equal windows over all rows, which are a second apart."""
    step = timedelta(seconds=rows // WINDOWS)
    return [Window(BEGIN + number * step, BEGIN + (number + 1) * step) for number in range(WINDOWS)]


def plans(query: Query, mark: str, bucket: str, spans: Sequence[tuple[Any, Any]], *without: str) -> dict[str, Plan]:
    """The plans to choose from, but those that are named."""
    each = EACH.format(low=mark, high=mark)
    buckets = BUCKETS.format(bucket=bucket, low=mark, high=mark)
    ends = spans[0][0], spans[-1][1]
    runs: list[Plan] = [
        Plan(lambda: [query(each, span)[0][0] for span in spans], each, spans[0], query),
        Plan(lambda: [n for _, n in query(buckets, ends)], buckets, ends, query),
        Plan(lambda: [n for _, n in query(JOINED, ())], JOINED, (), query),
    ]
    return {name: plan for name, plan in zip(NAMES, runs, strict=False) if name not in without}


def of_ours(side: SqlConnector, asked: Sequence[Window]) -> Plan:
    """What the connector does, and the statement that counts."""
    said: list[tuple[str, Any]] = []

    def listen(_c: Any, _cursor: Any, statement: str, values: Any, _context: Any, _many: bool) -> None:
        said.append((statement, values))

    engine = side._engine.sa
    sa.event.listen(engine, "before_cursor_execute", listen)
    side.count_many(asked)
    sa.event.remove(engine, "before_cursor_execute", listen)
    statement, values = next(each for each in reversed(said) if "count(*)" in each[0] or "tally" in each[0])

    def query(statement: str, values: Any) -> Any:
        with side._engine.reading() as connection:
            return connection.exec_driver_sql(statement, values).all()

    return Plan(lambda: side.count_many(asked), statement, values, query)


def compare(title: str, plans: Mapping[str, Plan], rounds: int, expected: list[int]) -> None:
    """Lets all plans take turns; prints the medians, and ours over the best, as a row."""
    took: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, plan in plans.items():
            begun = time.perf_counter()
            found = list(plan.run())
            took.setdefault(name, []).append(time.perf_counter() - begun)
            if found != expected:
                raise SystemExit(f"{title}, {name}: found other counts than expected")
    row(title, {name: statistics.median(seconds) for name, seconds in took.items()})


def row(title: str, seconds: Mapping[str, float]) -> None:
    best = min(each for name, each in seconds.items() if name != "ours")
    cells = (f"{seconds[name] * 1e3:,.0f}" if name in seconds else "-" for name in NAMES)
    print(f"| {title} | {' | '.join(cells)} | {seconds['ours'] / best:.2f} |", flush=True)


EXPLAINED: list[str] = []


def explain(title: str, plans: Mapping[str, Plan], word: str, told: Told) -> None:
    """Keeps what the engine says of each plan, for the end."""
    for name, plan in plans.items():
        EXPLAINED.append(f"{title}, {name}: {told(plan.query(f'{word} {plan.statement}', plan.values))}")


def lines(found: Sequence[Sequence[Any]]) -> str:
    """The beginning of each different last value, once."""
    return " / ".join(dict.fromkeys(shorten(str(each[-1]), 100, placeholder=" …") for each in found))


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
            title = f"SQLite, {'indexed' if indexed else 'no index'}"
            with settings.open(Context("bench")) as side:
                found = plans(query, "?", bucket, spans, *() if indexed else SLOW) | {"ours": of_ours(side, asked)}
                compare(title, found, rounds, [step] * WINDOWS)
                explain(title, found, "EXPLAIN QUERY PLAN", lines)


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
            title = f"PostgreSQL, {'indexed' if indexed else 'no index'}"
            with settings.open(Context("bench")) as side:
                found = plans(query, "%s", bucket, spans, *() if indexed else SLOW) | {"ours": of_ours(side, asked)}
                compare(title, found, rounds, [step] * WINDOWS)
                explain(title, found, "EXPLAIN (COSTS OFF)", lines)


def on_mariadb(rows: int, rounds: int) -> None:
    asked, step = windows(rows), rows // WINDOWS
    spans = [(f"{w.start:%Y-%m-%d %H:%M:%S}", f"{w.end:%Y-%m-%d %H:%M:%S}") for w in asked]
    bucket = f"(unix_timestamp(ts) - {int(BEGIN.timestamp())}) DIV {step}"
    with mariadb() as url:
        if url is None:
            print("MariaDB: this system has no server", flush=True)
            return
        known = sa.make_url(url).translate_connect_args(username="user")
        with closing(pymysql.connect(**known, autocommit=True)) as connection, connection.cursor() as cursor:

            def query(sql: str, values: Any) -> Any:
                cursor.execute(sql, values)
                return cursor.fetchall()

            query("SET time_zone = '+00:00'", ())
            query("CREATE TABLE events (id bigint, ts timestamp(6) NOT NULL, value double)", ())
            begin = f"TIMESTAMP'{BEGIN:%Y-%m-%d %H:%M:%S}'"
            source = f"SELECT seq, {begin} + INTERVAL seq SECOND, seq / 8 FROM seq_0_to_{rows - 1}"
            query(f"INSERT INTO events {source}", ())
            settings = SqlSettings(Secret(url), "events", "ts")
            for indexed in (False, True):
                if indexed:
                    query("CREATE INDEX events_ts ON events (ts)", ())
                query("ANALYZE TABLE events", ())
                title = f"MariaDB, {'indexed' if indexed else 'no index'}"
                without = SLOW[1:] if indexed else SLOW
                with settings.open(Context("bench")) as side:
                    found = plans(query, "%s", bucket, spans, *without) | {"ours": of_ours(side, asked)}
                    compare(title, found, rounds, [step] * WINDOWS)
                    explain(title, found, "EXPLAIN", walked)


def walked(found: Sequence[Sequence[Any]]) -> str:
    """Of MariaDB's table: how it reads, by which key, and what else it says."""
    return " / ".join(dict.fromkeys(f"{each[3]} {each[5] or 'no key'} {each[9]}".strip() for each in found if each[3]))


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

        bare = plans(query, "?", bucket, spans)
        took = {
            name: statistics.median(_timed(plan.run) for _ in range(1 if name in SLOW else rounds))
            for name, plan in bare.items()
        }
        explain("DuckDB", bare, "EXPLAIN", operators)
    # One process, and one kind of connection, may hold the file at a time: so ours comes after, not in turns.
    with DuckDbSettings(str(path), "events", "ts").open(Context("bench")) as side:
        side.count(asked[0])  # connects, and looks at the table
        ours = statistics.median(_timed(lambda: side.count_many(asked)) for _ in range(rounds))
    row("DuckDB", took | {"ours": ours})


def operators(found: Sequence[Sequence[Any]]) -> str:
    """The operators of DuckDB's drawing, from the top."""
    return " / ".join(re.findall(r"─ ([A-Z][A-Za-z ]*?) [─┴]", str(found[0][1])))


def _timed(run: Callable[[], Sequence[int]]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows, one round")
    chosen = parser.parse_args()
    rows, rounds = (500_000, 1) if chosen.quick else (5_000_000, 3)
    print(f"{WINDOWS:,} windows of {rows // WINDOWS:,} rows each, ms\n")
    print(f"| engine | {' | '.join(NAMES)} | ours : best |\n|{'---|' * (len(NAMES) + 2)}")
    with tempfile.TemporaryDirectory() as folder:
        on_sqlite(Path(folder), rows, rounds)
        on_duckdb(Path(folder), rows, rounds)
    on_postgres(rows, rounds)
    on_mariadb(rows, rounds)
    print("\nHow each is carried out, in the engine's own words:")
    print("\n".join(f"- {each}" for each in EXPLAINED))


if __name__ == "__main__":
    main()
