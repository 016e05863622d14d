"""The DuckDB side keeps what every connector promises."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import duckdb
import pytest
from attrs import evolve

from pipeline_core import Can
from pipeline_core.ledger import Given
from pipeline_core.testing import ConnectorSuite
from pipeline_duckdb import DuckDbSettings

NUMBERS = count()


class TestDuckDb(ConnectorSuite):
    """A file of its own for each side."""

    can = frozenset({Can.EXTRACT, Can.LOAD, Can.ATOMIC})
    declared = "TIMESTAMPTZ"
    timezone: str | None = None

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    def fresh(self) -> DuckDbSettings:
        path = self.folder / f"side{next(NUMBERS)}.duckdb"
        return DuckDbSettings(str(path), table="t", timestamp_column="at", timestamp_timezone=self.timezone)

    def put(self, settings: DuckDbSettings, rows: Any) -> None:
        with closing(duckdb.connect(settings.path)) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            connection.execute(
                f'CREATE TABLE IF NOT EXISTS t ("at" {self.declared}, n BIGINT, text VARCHAR, ratio DOUBLE)'
            )
            connection.register("rows", rows)
            connection.execute(f'INSERT INTO t SELECT "at"::{self.declared}, n, text, ratio FROM rows')

    def scoped(self, settings: DuckDbSettings, scope: Given) -> DuckDbSettings:
        return evolve(settings, scope=scope)

    @contextmanager
    def broken(self, settings: DuckDbSettings) -> Iterator[None]:
        with closing(duckdb.connect(settings.path)) as connection:
            connection.execute("ALTER TABLE t RENAME TO hidden")
        yield
        with closing(duckdb.connect(settings.path)) as connection:
            connection.execute("ALTER TABLE hidden RENAME TO t")

    def leftovers(self, settings: DuckDbSettings) -> Sequence[str]:
        duckdb.connect(settings.path, read_only=True).close()  # raises where this process still has the file open
        return [path.name for path in self.folder.iterdir() if "scratch" in path.name]


class TestDuckDbNanoseconds(TestDuckDb):
    """A column that is finer than a microsecond."""

    declared = "TIMESTAMP_NS"
    timezone = "UTC"
