"""The section of the configuration: the owner's flat names, what signs in, and what is refused beforehand."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from pipeline_core import ConfigError, Context, Secret
from pipeline_core.config import load
from pipeline_snowflake import SnowflakeSettings

OWNERS = {
    "timezone": "America/Los_Angeles",
    "x_time_back": "1d",
    "granularity": "2h",
    "default_record": {"source_name": "elasticsearch", "target_name": "snowflake"},
    "check_fields": ["key_x", "key_y", "key_z"],
}
CONNECTIONS = {
    "elasticsearch_host": "http://es:9200",
    "source_index": "flights",
    "snowflake_user": "me",
    "snowflake_password": "hunter22",
    "snowflake_account": "acc",
    "target_table": "FLIGHTS",
    "target_timestamp_column": "TIME_HOUR",
}


def opened(mapping: dict[str, Any]) -> SnowflakeSettings:
    """The settings of the target, as a pipeline structures them."""
    with load(mapping).target.open(Context("p")) as side:
        found: SnowflakeSettings = side._settings
        return found


def test_the_owners_flat_mapping() -> None:
    """Every name of the owner's reaches its setting; the password stays hidden."""
    settings = opened(OWNERS | CONNECTIONS)
    assert (settings.account, settings.user, settings.table) == ("acc", "me", "FLIGHTS")
    assert settings.timestamp_column == "TIME_HOUR"
    assert settings.password is not None
    assert settings.password.reveal() == "hunter22"
    assert "hunter22" not in repr(settings)


def test_the_owners_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The names in capitals fill what the mapping leaves out."""
    for name in ("account", "user", "password", "warehouse", "database", "schema", "role"):
        monkeypatch.setenv(f"SNOWFLAKE_{name.upper()}", f"my-{name}")
    left = {name: value for name, value in CONNECTIONS.items() if not name.startswith("snowflake")}
    settings = opened(OWNERS | left)
    assert (settings.account, settings.user, settings.warehouse) == ("my-account", "my-user", "my-warehouse")
    assert (settings.database, settings.schema, settings.role) == ("my-database", "my-schema", "my-role")
    assert settings.password is not None
    assert settings.password.reveal() == "my-password"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "found nothing, expected one way to sign in"),
        ({"password": "p", "token": "t", "authenticator": "oauth"}, "found password and token, expected one way"),
        ({"token": "t"}, "token is given without authenticator"),
    ],
)
def test_one_way_to_sign_in(given: dict[str, str], message: str) -> None:
    """None, two, or half of one are refused before anything is connected."""
    secrets = {name: Secret(text) if name in ("password", "token") else text for name, text in given.items()}
    with pytest.raises(ConfigError, match=message):
        SnowflakeSettings("acc", "T", "AT", **secrets)  # type: ignore[arg-type]


@pytest.mark.parametrize("table", ["", ".", "a.", "a..b", 'a"b', '"a', "a.b.c.d", '"a"b', '""'])
def test_a_table_that_is_no_name(table: str) -> None:
    """Said before anything is connected."""
    with pytest.raises(ConfigError, match=r"expected table, schema.table or database.schema.table"):
        SnowflakeSettings("acc", table, "AT", password=Secret("p"))


def test_the_connector_is_loaded_when_a_side_is_opened() -> None:
    """Neither it nor Arrow comes with the plugin's entry point."""
    import subprocess

    code = "import pipeline_snowflake, sys; sys.exit(bool({'snowflake.connector', 'pyarrow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
