"""The SQL side on SQLite keeps what every connector promises."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from pipeline_core import Can, Secret
from pipeline_core.testing import ConnectorSuite
from pipeline_sql import SqlSettings

NUMBERS = count()
INSERT = "INSERT INTO t (at, n, text, ratio) VALUES (?, ?, ?, ?)"
CREATE = "CREATE TABLE IF NOT EXISTS t (at TIMESTAMPTZ, n BIGINT, text TEXT, ratio DOUBLE PRECISION)"


def path_of(settings: SqlSettings) -> Path:
    return Path(settings.url.reveal().removeprefix("sqlite:///"))


@contextmanager
def database(settings: SqlSettings) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path_of(settings), timeout=5)) as connection, connection:
        yield connection


class TestSqlOnSqlite(ConnectorSuite):
    """A file of its own for each side; an index on the timestamp as a person would make it."""

    can = frozenset({Can.EXTRACT, Can.LOAD, Can.ATOMIC})
    index = "CREATE INDEX IF NOT EXISTS t_at ON t (at)"

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    def fresh(self) -> SqlSettings:
        path = self.folder / f"side{next(NUMBERS)}.db"
        return SqlSettings(Secret(f"sqlite:///{path}"), table="t", timestamp_column="at")

    def put(self, settings: SqlSettings, rows: Any) -> None:
        stamps = [None if at is None else f"{at:%Y-%m-%d %H:%M:%S.%f}Z" for at in rows.column("at").to_pylist()]
        with database(settings) as connection:
            connection.execute(CREATE)
            connection.execute(self.index)
            values = (rows.column(name).to_pylist() for name in ("n", "text", "ratio"))
            connection.executemany(INSERT, zip(stamps, *values, strict=True))

    @contextmanager
    def broken(self, settings: SqlSettings) -> Iterator[None]:
        with database(settings) as connection:
            connection.execute("ALTER TABLE t RENAME TO hidden")
        yield
        with database(settings) as connection:
            connection.execute("ALTER TABLE hidden RENAME TO t")

    def leftovers(self, settings: SqlSettings) -> Sequence[str]:
        with database(settings) as connection:
            connection.execute("BEGIN EXCLUSIVE")  # raises where anyone still holds the file
            return [
                name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE name LIKE '%scratch%'")
            ]


class TestSqlOnSqliteWithoutIndex(TestSqlOnSqlite):
    """Another plan counts and deletes."""

    index = "SELECT 1"


class TestSqlOnSqliteWithAMissingColumn(TestSqlOnSqlite):
    """Broken another way: the table is there, its timestamp is not."""

    @contextmanager
    def broken(self, settings: SqlSettings) -> Iterator[None]:
        with database(settings) as connection:
            connection.execute("ALTER TABLE t RENAME COLUMN at TO hidden")
        yield
        with database(settings) as connection:
            connection.execute("ALTER TABLE t RENAME COLUMN hidden TO at")
