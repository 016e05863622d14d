"""The SQL record store on SQLite keeps what every record store promises."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline_core import RecordStore
from pipeline_core.testing import RecordStoreSuite
from pipeline_sql.store import opened


class TestSqlStoreOnSqlite(RecordStoreSuite):
    """Each store in a file of its own, copied from one that has the tables already."""

    @pytest.fixture(autouse=True)
    def _files(self, clocked: Callable[[Path], Any], tmp_path: Path) -> None:
        self.engine_of = clocked
        self.template = tmp_path / "template.db"
        self.engines: dict[RecordStore, Any] = {}
        with opened(clocked(self.template)):
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

    def set_clock(self, store: RecordStore, us: int) -> None:
        self.engines[store].clock_us = us

    @contextmanager
    def _opened(self, path: Path) -> Iterator[RecordStore]:
        engine = self.engine_of(path)
        with opened(engine) as store:
            self.engines[store] = engine
            try:
                yield store
            finally:
                del self.engines[store]
