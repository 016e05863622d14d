"""The record store in memory keeps what every record store promises."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from pipeline_core import RecordStore
from pipeline_core.testing import MemoryRecordStore, RecordStoreSuite


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.us = 1_700_000_000_000_000

    def __call__(self) -> int:
        return self.us


class SettableStore(MemoryRecordStore):
    """Keeps the clock it was given."""

    def __init__(self) -> None:
        self.clock = Clock()
        super().__init__(self.clock)


class TestMemoryRecordStore(RecordStoreSuite):
    """With a clock that is set, and objects that are shared."""

    @contextmanager
    def open_store(self) -> Iterator[RecordStore]:
        yield SettableStore()

    def open_again(self, store: RecordStore) -> AbstractContextManager[RecordStore]:
        return nullcontext(store)

    def set_clock(self, store: SettableStore, us: int) -> None:
        store.clock.us = us


class TestMemoryRecordStoreByTheRealClock(RecordStoreSuite):
    """As a third party adopts the suite first: no clock to set."""

    examples = 10

    def open_store(self) -> AbstractContextManager[RecordStore]:
        return nullcontext(MemoryRecordStore())
