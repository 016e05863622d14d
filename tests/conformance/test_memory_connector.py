"""The side in memory keeps what every connector promises."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

from attrs import evolve

from pipeline_core import Can, SideError
from pipeline_core.ledger import Scope
from pipeline_core.testing import ConnectorSuite, MemorySettings, MemoryTable

NUMBERS = count()


class TestMemoryConnector(ConnectorSuite):
    """A table of its own for each side."""

    can = frozenset(Can)

    def fresh(self) -> MemorySettings:
        return MemorySettings(MemoryTable(f"t{next(NUMBERS)}"))

    def put(self, settings: MemorySettings, rows: Any) -> None:
        settings.table.put(rows)

    def scoped(self, settings: MemorySettings, scope: Scope) -> MemorySettings:
        return evolve(settings, scope=scope)

    @contextmanager
    def broken(self, settings: MemorySettings) -> Iterator[None]:
        settings.table.fault = SideError("the table is gone")
        yield
        settings.table.fault = None

    def leftovers(self, settings: MemorySettings) -> Sequence[str]:
        table = settings.table
        left = {"open sessions": table.sessions, "scratch": table.scratch, "a held lock": table.lock.locked()}
        return [what for what, number in left.items() if number]


class TestACounterAlone(TestMemoryConnector):
    """What declares nothing is asked for counts only."""

    can = frozenset()
