"""What the tests of this plugin share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from pipeline_core import Claim, Context, Load, Record, Secret, Staged, Window
from pipeline_sql import SqlSettings
from pipeline_sql.connector import SqlConnector
from pipeline_sql.engines.mariadb import MariaDbEngine
from pipeline_sql.engines.postgresql import PostgresEngine
from pipeline_sql.engines.sqlite import SqliteEngine

NOON_US = 1_700_000_000_000_000


class Clocked:
    """A clock that a test sets."""

    clock_us = NOON_US

    def now_us(self, connection: sa.Connection) -> int:
        del connection
        return self.clock_us


class ClockedSqlite(Clocked, SqliteEngine):
    """SQLite under that clock."""


class ClockedPostgres(Clocked, PostgresEngine):
    """PostgreSQL under that clock."""

    @property
    def clock(self) -> str:  # type: ignore[override]
        """The SQL of it."""
        return f"{self.clock_us}::bigint"


class ClockedMariaDb(Clocked, MariaDbEngine):
    """MariaDB under that clock."""


CLOCKED = {"sqlite": ClockedSqlite, "postgresql": ClockedPostgres, "mariadb": ClockedMariaDb}


@pytest.fixture(params=list(CLOCKED))
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a new database, of each engine in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'records.db'}"
    return str(request.getfixturevalue("postgres_url" if request.param == "postgresql" else "mariadb_url"))


@pytest.fixture
def clocked() -> Callable[[str], Any]:
    """An engine of a URL, with `clock_us` to set."""

    def made(url: str) -> Any:
        parsed = sa.make_url(url)
        return CLOCKED[parsed.get_backend_name()](parsed, timeout_s=30)

    return made


@pytest.fixture(scope="session")
def side() -> Callable[..., AbstractContextManager[SqlConnector]]:
    """Opens a side on a SQLite file: `side(path, table, timestamp_column, **settings)`."""

    def opened(
        path: Path, table: str, timestamp_column: str = "at", **more: Any
    ) -> AbstractContextManager[SqlConnector]:
        settings = SqlSettings(Secret(f"sqlite:///{path}"), table=table, timestamp_column=timestamp_column, **more)
        return settings.open(Context("flights"))

    return opened


@pytest.fixture(scope="session")
def load() -> Callable[..., Load]:
    """A load of Arrow batches or tables: `load(window, *batches, fence=1, columns={}, pipeline="flights")`."""

    def made(
        window: Window,
        *batches: Any,
        fence: int = 1,
        columns: Mapping[str, str] | None = None,
        pipeline: str = "flights",
        key: str | None = None,
    ) -> Load:
        record = Record(pipeline, window)
        rows = sum(map(len, batches))
        staged = Staged(key or f"{pipeline}/{fence}", pipeline, window, fence, rows, (), "", {})
        return Load(Claim("claim", record, fence), staged, lambda: (each for each in batches), columns or {})

    return made


@pytest.fixture(scope="session")
def publish() -> Callable[[SqlConnector, Load], int]:
    """Publishes an uploaded load, in the order of the core; returns the rows that the window then holds."""

    def published(target: SqlConnector, load: Load) -> int:
        with target.transaction() as verbs:
            verbs.guard(load)
            verbs.delete(load.window)
            verbs.insert(load)
            return verbs.count(load.window)

    return published
