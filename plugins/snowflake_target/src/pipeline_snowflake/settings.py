"""The configuration section of this plugin. No driver here: it loads when the section is opened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import date
from typing import TYPE_CHECKING, Any, Final, Literal

from attrs import field, frozen, validators

from pipeline_core import ConfigError, Context, Secret
from pipeline_core.zones import zone
from pipeline_snowflake.names import parts

if TYPE_CHECKING:
    from pipeline_snowflake.connector import SnowflakeConnector

#: The settings that are the connector's own, by its names.
OF_THE_CONNECTOR: Final = (
    *("account", "user", "password", "authenticator", "token", "private_key_file", "private_key_file_pwd"),
    *("role", "warehouse", "database", "schema", "host", "port", "protocol"),
)

_text = validators.optional(validators.min_len(1))


def _is_zone(instance: object, attribute: Any, value: str) -> None:
    del instance, attribute
    zone(value)


def _is_name(instance: object, attribute: Any, value: str) -> None:
    del instance
    if parts(value) is None:
        raise ConfigError(
            f"{attribute.name}: found {value!r}, expected table, schema.table or database.schema.table, "
            "a part that holds a dot in double quotes"
        )


@frozen
class SnowflakeSettings:
    """A table of a Snowflake account, as source or target.

    `account`, `user`, `password`, `authenticator`, `token`, `private_key_file`, `private_key_file_pwd`, `role`,
    `warehouse`, `database`, `schema`, `host`, `port` and `protocol` are the connector's own settings. Who asks is shown
    by `password`, by `private_key_file`, or by `token` with its `authenticator` (`oauth`, `programmatic_access_token`).

    `table` is `table`, `schema.table` or `database.schema.table`, as Snowflake writes names: in capitals unless it
    stands in double quotes. `timestamp_timezone` is the zone that bare local times are meant in, required where the
    timestamp column is a TIMESTAMP_NTZ. `scope` limits the side to the rows whose columns hold these values: a table
    that several pipelines share. `where` limits a source to the rows for which this SQL condition is true. With
    `create` a missing target table is made from the staged rows. `new_columns` says what becomes of a staged column
    that a target lacks: `add` alters the table, `ignore` leaves the values out. `ledger` is where a target's ledger
    stands, written as `table` is; without it `PIPELINE_LEDGER` beside the table. `timeout_s` limits, in seconds, what
    one statement may take, its wait for a lock included; `login_timeout_s` the making of a connection.
    """

    account: str = field(validator=validators.min_len(1))
    table: str = field(validator=_is_name)
    timestamp_column: str = field(validator=validators.min_len(1))
    user: str | None = field(default=None, validator=_text)
    password: Secret | None = None
    authenticator: str | None = field(default=None, validator=_text)
    token: Secret | None = None
    private_key_file: str | None = field(default=None, validator=_text)
    private_key_file_pwd: Secret | None = None
    role: str | None = field(default=None, validator=_text)
    warehouse: str | None = field(default=None, validator=_text)
    database: str | None = field(default=None, validator=_text)
    schema: str | None = field(default=None, validator=_text)
    host: str | None = field(default=None, validator=_text)
    port: int | None = None
    protocol: Literal["http", "https"] | None = field(
        default=None, validator=validators.optional(validators.in_(("http", "https")))
    )
    timestamp_timezone: str | None = field(default=None, validator=validators.optional(_is_zone))
    scope: Mapping[str, str | bool | int | float | date] = field(factory=dict)
    where: str | None = field(default=None, validator=_text)
    create: bool = False
    new_columns: Literal["error", "add", "ignore"] = field(
        default="error", validator=validators.in_(("error", "add", "ignore"))
    )
    ledger: str | None = field(default=None, validator=validators.optional(_is_name))
    timeout_s: float = field(default=300.0, validator=validators.ge(1))
    login_timeout_s: float = field(default=60.0, validator=validators.ge(1))

    def __attrs_post_init__(self) -> None:
        """Raises ConfigError where nothing says who asks, or two things do."""
        ways = [name for name in ("password", "token", "private_key_file") if getattr(self, name) is not None]
        if len(ways) > 1 or (not ways and self.authenticator is None):
            raise ConfigError(
                f"snowflake: found {' and '.join(ways) or 'nothing'}, expected one way to sign in: "
                "password, token or private_key_file"
            )
        if self.token is not None and self.authenticator is None:
            raise ConfigError(
                "snowflake: token is given without authenticator; set it to 'oauth' or 'programmatic_access_token'"
            )

    @contextmanager
    def open(self, context: Context, /) -> Iterator[SnowflakeConnector]:
        """The side; nothing is connected before it is used."""
        from pipeline_snowflake.connector import SnowflakeConnector  # noqa: PLC0415 - loads Arrow
        from pipeline_snowflake.session import Session  # noqa: PLC0415 - loads the driver

        session = Session(self, context.pipeline)
        with closing(SnowflakeConnector(self, session, context.pipeline)) as connector:
            yield connector
