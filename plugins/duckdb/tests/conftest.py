"""What the tests of this plugin share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any

import duckdb
import pytest

from pipeline_core import Claim, Context, Load, Record, Staged, StagedFile, Window
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


@pytest.fixture(scope="session")
def load() -> Callable[..., Load]:
    """A load of Arrow batches or tables, or of staged files: `load(window, *batches, files=(), columns={})`."""

    def made(
        window: Window,
        *batches: Any,
        fence: int = 1,
        files: Sequence[StagedFile] = (),
        columns: Mapping[str, str] | None = None,
        read: Callable[[], Any] | None = None,
    ) -> Load:
        rows = sum(map(len, batches)) + sum(file.rows for file in files)
        staged = Staged(f"flights/{fence}", "flights", window, fence, rows, files, "", {})
        claim = Claim("claim", Record("flights", window), fence)
        return Load(claim, staged, read or (lambda: (each for each in batches)), columns or {})

    return made


@pytest.fixture(scope="session")
def publish() -> Callable[[DuckDbConnector, Load], int]:
    """Publishes an uploaded load, in the order of the core; returns the rows that the window then holds."""

    def published(target: DuckDbConnector, load: Load) -> int:
        with target.transaction() as verbs:
            verbs.guard(load)
            verbs.delete(load.window)
            verbs.insert(load)
            return verbs.count(load.window)

    return published
