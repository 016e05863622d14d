"""Conformance suites for plugins, and a record store in memory. Needs `windowed-pipeline[testing]`."""

from pipeline_core.testing.findings import BrokenPromiseError
from pipeline_core.testing.memory_store import MemoryRecordStore
from pipeline_core.testing.stores import RecordStoreSuite

__all__ = ["BrokenPromiseError", "MemoryRecordStore", "RecordStoreSuite"]
