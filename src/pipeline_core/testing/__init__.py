"""Conformance suites for plugins, and a record store and a side in memory. Needs `windowed-pipeline[testing]`."""

from pipeline_core.testing.connectors import ConnectorSuite
from pipeline_core.testing.findings import BrokenPromiseError
from pipeline_core.testing.memory_connector import MemoryConnector, MemorySettings, MemoryTable
from pipeline_core.testing.memory_store import MemoryRecordStore
from pipeline_core.testing.stages import StageSuite
from pipeline_core.testing.stores import RecordStoreSuite
from pipeline_core.testing.timepolicies import TimePolicySuite

__all__ = [
    "BrokenPromiseError",
    "ConnectorSuite",
    "MemoryConnector",
    "MemoryRecordStore",
    "MemorySettings",
    "MemoryTable",
    "RecordStoreSuite",
    "StageSuite",
    "TimePolicySuite",
]
