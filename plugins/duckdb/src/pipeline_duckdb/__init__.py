"""DuckDB: a connector for both sides. Imports no driver and no Arrow."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline_core import Can, Connector, Provider, Settings, hookimpl
from pipeline_duckdb.settings import DuckDbSettings

__all__ = ["DuckDbSettings"]


@hookimpl
def pipeline_connectors() -> Iterable[Provider[Settings[Connector]]]:
    """The side `type = "duckdb"`."""
    yield Provider("duckdb", DuckDbSettings, can={Can.EXTRACT, Can.LOAD, Can.ATOMIC})
