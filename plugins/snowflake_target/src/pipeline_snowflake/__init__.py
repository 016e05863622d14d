"""Snowflake: a connector for both sides. Imports no driver and no Arrow."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline_core import Can, Connector, Provider, Settings, hookimpl
from pipeline_snowflake.settings import OF_THE_CONNECTOR, SnowflakeSettings

__all__ = ["SnowflakeSettings"]

_ALIASES = {
    **{f"snowflake_{name}": name for name in OF_THE_CONNECTOR},
    "target_table": "table",
    "source_table": "table",
    "target_timestamp_column": "timestamp_column",
    "source_timestamp_column": "timestamp_column",
}


@hookimpl
def pipeline_connectors() -> Iterable[Provider[Settings[Connector]]]:
    """The side `type = "snowflake"`."""
    yield Provider("snowflake", SnowflakeSettings, can={Can.EXTRACT, Can.LOAD, Can.ATOMIC, Can.DEFER}, aliases=_ALIASES)
