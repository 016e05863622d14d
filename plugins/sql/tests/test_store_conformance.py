"""The SQL record store keeps what every record store promises, on each engine."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from pipeline_core import RecordStore, Secret
from pipeline_core.testing import BrokenPromiseError, RecordStoreSuite
from pipeline_sql.settings import SqlStoreSettings
from pipeline_sql.store import opened

pytestmark = pytest.mark.timeout(1800)  # the longer profile takes 10,000 steps of each kind


class TestSqlStoreOnSqlite(RecordStoreSuite):
    """Each store in a file of its own, copied from one that has the tables already."""

    @pytest.fixture(autouse=True)
    def _files(self, clocked: Callable[[str], Any], tmp_path: Path) -> None:
        self.engine_of = clocked
        self.template = tmp_path / "template.db"
        self.engines: dict[RecordStore, Any] = {}
        with opened(clocked(f"sqlite:///{self.template}")):
            pass

    @contextmanager
    def open_store(self) -> Iterator[RecordStore]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "records.db"
            shutil.copy(self.template, path)
            with self._opened(path) as store:
                yield store

    def open_again(self, store: RecordStore) -> AbstractContextManager[RecordStore]:
        return self._opened(Path(self.engines[store].url.database))

    def settings_of(self, store: RecordStore) -> SqlStoreSettings:
        return SqlStoreSettings(Secret(self.engines[store].url.render_as_string(hide_password=False)))

    def set_clock(self, store: RecordStore, us: int) -> None:
        self.engines[store].clock_us = us

    @contextmanager
    def _opened(self, path: Path) -> Iterator[RecordStore]:
        engine = self.engine_of(f"sqlite:///{path}")
        with opened(engine) as store:
            self.engines[store] = engine
            try:
                yield store
            finally:
                del self.engines[store]


class OnAServer(RecordStoreSuite):
    """Each store in a database of its own; one that was closed is emptied and used again."""

    __test__ = False
    server_fixture: str
    fences_again = "UPDATE pipeline_core_fence SET last = 0"
    examples = 30
    server_clock = True

    @pytest.fixture(autouse=True)
    def _server(self, request: pytest.FixtureRequest, clocked: Callable[[str], Any]) -> None:
        self.server = request.getfixturevalue(self.server_fixture)
        self.engine_of = clocked
        self.free: list[str] = []
        self.engines: dict[RecordStore, Any] = {}

    @contextmanager
    def open_store(self) -> Iterator[RecordStore]:
        url = self.free.pop() if self.free else self.server.url(self.server.new_database())
        with self._opened(url) as store:
            with self.engines[store].writing() as connection:
                for table in ("records", "events"):
                    connection.exec_driver_sql(f"DELETE FROM pipeline_core_{table}")
                connection.exec_driver_sql(self.fences_again)
            yield store
        self.free.append(url)

    def open_again(self, store: RecordStore) -> AbstractContextManager[RecordStore]:
        return self._opened(self.engines[store].url.render_as_string(hide_password=False))

    def settings_of(self, store: RecordStore) -> SqlStoreSettings:
        return SqlStoreSettings(Secret(self.engines[store].url.render_as_string(hide_password=False)))

    def set_clock(self, store: RecordStore, us: int) -> None:
        self.engines[store].clock_us = us

    @contextmanager
    def _opened(self, url: str) -> Iterator[RecordStore]:
        engine = self.engine_of(url)
        with opened(engine) as store:
            self.engines[store] = engine
            try:
                yield store
            finally:
                del self.engines[store]


class Misjudged(TestSqlStoreOnSqlite):
    """SQLite taken for a server: its clock is each worker's own."""

    __test__ = False
    server_clock = True
    examples = 600  # it ends with the first one that is noticed

    def _settings(self) -> settings:
        # What is found first will do: it need not be made small.
        return settings(super()._settings(), derandomize=True)


def test_a_lease_by_the_workers_clock_is_noticed(clocked: Callable[[str], Any], tmp_path: Path) -> None:
    """By processes whose clocks differ: one takes the window that another still holds."""
    suite = Misjudged()
    TestSqlStoreOnSqlite._files.__wrapped__(suite, clocked, tmp_path)
    with pytest.raises(BrokenPromiseError):
        suite.test_processes_behave_as_the_model()


class TestSqlStoreOnPostgres(OnAServer):
    """Row locks, and advisory ones for planning."""

    __test__ = True
    server_fixture = "postgres_server"
    fences_again = "SELECT setval('pipeline_core_fences', 1, false)"


class TestSqlStoreOnMariaDb(OnAServer):
    """Row locks, and named ones for planning."""

    __test__ = True
    server_fixture = "mariadb_server"
