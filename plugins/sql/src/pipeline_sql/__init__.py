"""SQL databases: the record store, and a connector for both sides. Imports no driver and no SQLAlchemy."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline_core import Can, Connector, Provider, RecordStore, Settings, hookimpl
from pipeline_sql.settings import SqlSettings, SqlStoreSettings

__all__ = ["SqlSettings", "SqlStoreSettings"]


@hookimpl
def pipeline_record_stores() -> Iterable[Provider[Settings[RecordStore]]]:
    """The store `type = "sql"`."""
    yield Provider("sql", SqlStoreSettings)


@hookimpl
def pipeline_connectors() -> Iterable[Provider[Settings[Connector]]]:
    """The side `type = "sql"`."""
    # mypy cannot see through the converter of `can`, which is the bare `frozenset`.
    yield Provider("sql", SqlSettings, can={Can.EXTRACT, Can.LOAD, Can.ATOMIC})
