"""A small world to move data in: source, target and store in one kind of database, and a stage in a folder."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline_core.pipeline import Pipeline

BEGIN = datetime(2013, 3, 10, 5, tzinfo=UTC)  # midnight in New York, on the day its clocks go forward
WINDOWS = 6
NOW = "2013-03-10T12:00"
HELPERS = Path(__file__).parent / "helpers"
RUN = """
import json, signal, sys
from pipeline_core.pipeline import Pipeline
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background begins with it ignored
with Pipeline.from_mapping(json.loads(sys.argv[1])) as pipeline:
    print(json.dumps(pipeline.run(now=sys.argv[2]).as_mapping()))
"""


class World:
    """Six windows of New York's 2013-03-10, up to noon; a row every seven minutes, and one exactly on each boundary."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.insert(range(0, 11 * 60, 7))
        self.insert(range(60, 11 * 60, 60), first_id=10_000)

    def insert(self, minutes: Sequence[int], first_id: int = 0) -> None:
        """Rows so many minutes after midnight."""
        columns = "id integer primary key, ts timestamp not null, value real, note text"
        self.query("source", f"create table if not exists events ({columns})")
        self.query("source", "create index if not exists events_ts on events (ts)")
        self.write(
            [
                (
                    first_id + n,
                    f"{BEGIN + timedelta(minutes=m):%Y-%m-%d %H:%M:%S}",
                    m / 8,
                    None if m % 2 else f"nöte {m}",
                )
                for n, m in enumerate(minutes)
            ]
        )

    def write(self, rows: list[tuple[Any, ...]]) -> None:
        """Adds rows to the source."""
        with closing(self.connection("source")) as connection, connection:
            connection.executemany("insert into events values (?, ?, ?, ?)", rows)

    def config(self, **changes: Any) -> dict[str, Any]:
        """The pipeline's mapping."""
        side = {"type": "sql", "table": "events", "timestamp_column": "ts", "timestamp_timezone": "UTC"}
        return {
            "name": "events",
            "timezone": "America/New_York",
            "granularity": "2h",
            "x_time_back": "0s",
            "begin": "2013-03-10",
            "source": {**side, "url": self.url("source")},
            "target": {**side, "url": self.url("target"), "create": True},
            "stage": {"type": "objects", "url": f"file://{self.folder / 'stage'}"},
            "store": {"type": "sql", "url": self.url("records")},
            "run": {"crash_backoff_s": 0.01, "backoff_s": 0.01, "batch_rows": 10},
            "retry": {"wait_s": 0.01},
        } | changes

    def url(self, name: str) -> str:
        """The URL of one of the databases."""
        return f"sqlite:///{self.folder / name}.db"

    def connection(self, name: str) -> sqlite3.Connection:
        """A plain connection to one of the databases."""
        return sqlite3.connect(self.folder / f"{name}.db", isolation_level="DEFERRED")

    def query(self, name: str, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """Rows of a query, or what a statement returns, by the database's own driver."""
        connection = self.connection(name)
        try:
            with connection:
                return connection.execute(sql, values).fetchall()
        finally:
            connection.close()

    def rows(self, name: str) -> list[tuple[Any, ...]]:
        """All rows of a side, in order, their times as instants."""
        found = self.query(name, "select id, ts, value, note from events order by id, ts")
        return [(a, datetime.fromisoformat(b).replace(tzinfo=None), c, d) for a, b, c, d in found]

    def pipeline(self, **changes: Any) -> Pipeline:
        """The pipeline, in this process."""
        return Pipeline.from_mapping(self.config(**changes))

    def run(self, **changes: Any) -> dict[str, Any]:
        """A whole run, in this process."""
        with self.pipeline(**changes) as pipeline:
            return pipeline.run(now=NOW).as_mapping()

    def start(self, *, now: str = NOW, **changes: Any) -> subprocess.Popen[str]:
        """A whole run in a process of its own; the modules in `helpers` can be named as plugins."""
        path = os.pathsep.join([str(HELPERS), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = os.environ | {"PYTHONPATH": path}
        command = [sys.executable, "-c", RUN, json.dumps(self.config(**changes)), now]
        return subprocess.Popen(command, env=environment, stdout=-1, stderr=-1, text=True)

    def staged(self) -> list[Path]:
        """What lies in the stage."""
        return sorted((self.folder / "stage").rglob("*")) if (self.folder / "stage").exists() else []

    def assert_whole(self) -> None:
        """Source and target equal row for row, every window done once, nothing left lying about."""
        assert self.rows("target") == self.rows("source")
        spans = self.query(
            "records", "select start_us, end_us, status from pipeline_core_records where live = 1 order by start_us"
        )
        assert [status for *_, status in spans] == ["done"] * len(spans)
        ledger = self.query("target", "select start_us, end_us from pipeline_ledger order by start_us")
        assert len(ledger) == len(set(ledger))
        assert set(ledger) <= {(start, end) for start, end, _ in spans}
        assert self.tables() == {"events", "pipeline_ledger", "pipeline_ledger_head"}
        assert [path for path in self.staged() if path.is_file()] == []

    def tables(self) -> set[str]:
        """What stands in the target."""
        return {name for (name,) in self.query("target", "select name from sqlite_master where type = 'table'")}


class PostgresWorld(World):
    """The same on PostgreSQL: three databases of one server."""

    def __init__(self, folder: Path, server: Any) -> None:
        self.server = server
        self.databases = {name: server.new_database() for name in ("source", "target", "records")}
        super().__init__(folder)

    def url(self, name: str) -> str:
        return str(self.server.url(self.databases[name]))

    def connection(self, name: str) -> Any:
        import psycopg

        return psycopg.connect(self.server.dsn(self.databases[name]))

    def query(self, name: str, sql: str, *values: object) -> list[tuple[Any, ...]]:
        with self.connection(name) as connection:
            cursor = connection.execute(sql, values or None)
            return cursor.fetchall() if cursor.description else []

    def write(self, rows: list[tuple[Any, ...]]) -> None:
        with self.connection("source") as connection:
            connection.cursor().executemany("insert into events values (%s, %s, %s, %s)", rows)

    def rows(self, name: str) -> list[tuple[Any, ...]]:
        return self.query(name, "select id, ts, value, note from events order by id, ts")

    def tables(self) -> set[str]:
        # Temporary tables end with their session; those of a server that was killed, when it next tidies up.
        listed = (
            "select relname from pg_class where relkind = 'r' and relpersistence = 'p' "
            "and relnamespace = 'public'::regnamespace"
        )
        return {name for (name,) in self.query("target", listed)}


@pytest.fixture
def postgres_world(tmp_path: Path, postgres_server: Any) -> PostgresWorld:
    """A fresh world on PostgreSQL."""
    return PostgresWorld(tmp_path, postgres_server)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A fresh world."""
    return World(tmp_path)


@pytest.fixture(params=["world", "postgres_world"])
def each_world(request: pytest.FixtureRequest) -> World:
    """A fresh world, on each engine in turn."""
    found: World = request.getfixturevalue(request.param)
    return found
