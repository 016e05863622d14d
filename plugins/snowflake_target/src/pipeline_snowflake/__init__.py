"""Snowflake: a connector for both sides. Imports no driver and no Arrow."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline_core import Can, Connector, Provider, Settings, hookimpl
from pipeline_snowflake.settings import SnowflakeSettings

__all__ = ["SnowflakeSettings"]

_SIGNED = ("account", "user", "password", "role", "warehouse", "database", "schema", "host", "authenticator", "token")
_ALIASES = {
    **{f"snowflake_{name}": name for name in _SIGNED},
    "snowflake_private_key_file": "private_key_file",
    "target_table": "table",
    "source_table": "table",
    "target_timestamp_column": "timestamp_column",
    "source_timestamp_column": "timestamp_column",
}


@hookimpl
def pipeline_connectors() -> Iterable[Provider[Settings[Connector]]]:
    """The side `type = "snowflake"`."""
    yield Provider("snowflake", SnowflakeSettings, can={Can.EXTRACT, Can.LOAD, Can.ATOMIC}, aliases=_ALIASES)
