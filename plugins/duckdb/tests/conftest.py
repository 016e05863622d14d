"""What the tests of this plugin share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any

import duckdb
import pytest

from pipeline_core import Context
from pipeline_duckdb import DuckDbSettings
from pipeline_duckdb.connector import DuckDbConnector


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a database file is to be."""
    return tmp_path / "warehouse.duckdb"


@pytest.fixture
def sql(path: Path) -> Callable[..., list[tuple[Any, ...]]]:
    """Runs statements on the file, past the connector; the rows of the last one."""

    def run(*statements: str) -> list[tuple[Any, ...]]:
        with closing(duckdb.connect(str(path))) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            for statement in statements:
                connection.execute(statement)
            return connection.fetchall()

    return run


@pytest.fixture
def side(path: Path) -> Callable[..., AbstractContextManager[DuckDbConnector]]:
    """Opens a side on the file: `side(table="t", timestamp_column="ts", **settings)`."""

    def opened(table: str = "t", timestamp_column: str = "ts", **more: Any) -> AbstractContextManager[DuckDbConnector]:
        return DuckDbSettings(str(path), table, timestamp_column, **more).open(Context("flights"))

    return opened
