"""The SQL side keeps what every connector promises, on each engine."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest
from attrs import evolve

from pipeline_core import Can, Secret
from pipeline_core.ledger import Given
from pipeline_core.testing import ConnectorSuite
from pipeline_sql import SqlSettings, engines

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

    def scoped(self, settings: SqlSettings, scope: Given) -> SqlSettings:
        return evolve(settings, scope=scope)

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


class TestSqlOnPostgres(ConnectorSuite):
    """A table of its own for each side; an index on the timestamp as a person would make it."""

    can = frozenset({Can.EXTRACT, Can.LOAD, Can.ATOMIC})
    secret = "geheim-77"
    index = "CREATE INDEX IF NOT EXISTS {table}_at ON {table} (at)"

    @pytest.fixture(autouse=True)
    def _database(self, postgres_server: Any) -> Iterator[None]:
        name = postgres_server.new_database()
        self.url = postgres_server.url(name, f"owner:{self.secret}")
        self.connection = psycopg.connect(postgres_server.dsn(name), autocommit=True)
        yield
        self.connection.close()

    def run(self, statement: str) -> list[Any]:
        cursor = self.connection.execute(statement)  # type: ignore[arg-type]
        return cursor.fetchall() if cursor.description else []

    def fresh(self) -> SqlSettings:
        return SqlSettings(Secret(self.url), table=f"t{next(NUMBERS)}", timestamp_column="at")

    def put(self, settings: SqlSettings, rows: Any) -> None:
        self.run(CREATE.replace(" t ", f" {settings.table} "))
        self.run(self.index.format(table=settings.table))
        with self.connection.cursor() as cursor:
            cursor.executemany(
                f"INSERT INTO {settings.table} (at, n, text, ratio) VALUES (%(at)s, %(n)s, %(text)s, %(ratio)s)",
                rows.select(["at", "n", "text", "ratio"]).to_pylist(),
            )

    def scoped(self, settings: SqlSettings, scope: Given) -> SqlSettings:
        return evolve(settings, scope=scope)

    @contextmanager
    def broken(self, settings: SqlSettings) -> Iterator[None]:
        self.run(f"ALTER TABLE {settings.table} RENAME TO hidden")
        yield
        self.run(f"ALTER TABLE hidden RENAME TO {settings.table}")

    def leftovers(self, settings: SqlSettings) -> Sequence[str]:
        # A side that is still open may keep idle sessions, but no transaction.
        busy = (
            "SELECT state || query FROM pg_stat_activity WHERE application_name = 'pipeline-core' "
            "AND datname = current_database() AND state <> 'idle'"
        )
        scratch = "SELECT relname FROM pg_class WHERE relname LIKE '%scratch%'"
        for _ in range(200):  # a server notices a moment later that its client has gone
            left = [*self.run(busy), *self.run(scratch)]
            if not left:
                break
            time.sleep(0.01)
        return [str(each) for (each,) in left]


class TestSqlOnPostgresWithoutIndex(TestSqlOnPostgres):
    """Another plan counts."""

    index = "SELECT 1"


class TestSqlOnPostgresWithAMissingColumn(TestSqlOnPostgres):
    """Broken another way: the table is there, its timestamp is not."""

    @contextmanager
    def broken(self, settings: SqlSettings) -> Iterator[None]:
        self.run(f"ALTER TABLE {settings.table} RENAME COLUMN at TO hidden")
        yield
        self.run(f"ALTER TABLE {settings.table} RENAME COLUMN hidden TO at")


class TestSqlOnMariaDb(ConnectorSuite):
    """A table of its own for each side; an index on the timestamp as a person would make it."""

    can = frozenset({Can.EXTRACT, Can.LOAD, Can.ATOMIC})
    index = "CREATE INDEX IF NOT EXISTS t_at ON {table} (at)"
    columns = "(at TIMESTAMP(6) NULL, n BIGINT, text LONGTEXT CHARACTER SET utf8mb4, ratio DOUBLE)"

    @pytest.fixture(autouse=True)
    def _database(self, mariadb_server: Any) -> Iterator[None]:
        self.secret = mariadb_server.password
        name = mariadb_server.new_database()
        self.url = mariadb_server.url(name)
        self.connection = mariadb_server.connect(name)
        self.run("SET time_zone = '+00:00'")
        yield
        self.connection.close()

    def run(self, statement: str) -> list[Any]:
        with self.connection.cursor() as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall())

    def fresh(self) -> SqlSettings:
        return SqlSettings(Secret(self.url), table=f"t{next(NUMBERS)}", timestamp_column="at")

    def put(self, settings: SqlSettings, rows: Any) -> None:
        self.run(f"CREATE TABLE IF NOT EXISTS {settings.table} {self.columns}")
        self.run(self.index.format(table=settings.table))
        values = [tuple(row.values()) for row in rows.select(["at", "n", "text", "ratio"]).to_pylist()]
        with self.connection.cursor() as cursor:
            cursor.executemany(f"INSERT INTO {settings.table} VALUES (%s, %s, %s, %s)", values)

    def scoped(self, settings: SqlSettings, scope: Given) -> SqlSettings:
        return evolve(settings, scope=scope)

    @contextmanager
    def broken(self, settings: SqlSettings) -> Iterator[None]:
        self.run(f"RENAME TABLE {settings.table} TO hidden")
        yield
        self.run(f"RENAME TABLE hidden TO {settings.table}")

    def leftovers(self, settings: SqlSettings) -> Sequence[str]:
        # A side that is still open may keep idle sessions, but no transaction. Temporary tables end with their session.
        busy = (
            "SELECT concat(p.command, ' ', coalesce(p.info, '')) FROM information_schema.processlist p "
            "LEFT JOIN information_schema.innodb_trx t ON t.trx_mysql_thread_id = p.id "
            "WHERE p.db = database() AND p.id <> connection_id() AND (t.trx_id IS NOT NULL OR p.command <> 'Sleep')"
        )
        for _ in range(200):  # a server notices a moment later that its client has gone
            open_ones = self.run(busy)
            if not open_ones:
                break
            time.sleep(0.01)
        scratch = self.run("SHOW TABLES LIKE '%scratch%'")
        return [str(each) for (each,) in [*open_ones, *scratch]]


class TestSqlOnMariaDbWithoutIndex(TestSqlOnMariaDb):
    """Another plan counts."""

    index = "DO 0"


class TestSqlOnMariaDbWithAMissingColumn(TestSqlOnMariaDb):
    """Broken another way: the table is there, its timestamp is not."""

    @contextmanager
    def broken(self, settings: SqlSettings) -> Iterator[None]:
        self.run(f"ALTER TABLE {settings.table} RENAME COLUMN at TO hidden")
        yield
        self.run(f"ALTER TABLE {settings.table} RENAME COLUMN hidden TO at")


class TestSqlOnAnyDialect(TestSqlOnPostgres):
    """By nothing but what SQLAlchemy knows of every dialect; PostgreSQL here, whose sessions are not in UTC."""

    @pytest.fixture(autouse=True)
    def _unknown(self, _database: None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delitem(engines._ENGINES, "postgresql")
        self.url += "&application_name=pipeline-core&options=-c%20timezone%3DAmerica/New_York"
