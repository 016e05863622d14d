"""The configuration sections of this plugin. No driver and no SQLAlchemy here: they load when a section is opened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import date
from typing import TYPE_CHECKING, Any, Literal

from attrs import field, frozen, validators

from pipeline_core import Context, RecordStore, Secret
from pipeline_core.ledger import Given, scope_of, scope_text
from pipeline_core.zones import zone

if TYPE_CHECKING:
    from pipeline_sql.connector import SqlConnector

LONGEST_SCOPE = 255  # characters: a key of the ledger, which databases limit


def _is_zone(instance: object, attribute: Any, value: str) -> None:
    del instance, attribute
    zone(value)


def _fits_the_ledger(instance: object, attribute: Any, value: Given) -> None:
    del instance, attribute
    length = len(scope_text(scope_of(value)))
    if length > LONGEST_SCOPE:
        raise ValueError(f"found {length} characters as JSON, expected {LONGEST_SCOPE} at most; name fewer columns")


@frozen
class SqlStoreSettings:
    """Records in a SQL database, such as `sqlite:////var/lib/pipeline/records.db`.

    `timeout_s` is how many seconds a lock of another process is waited for.
    """

    url: Secret
    timeout_s: float = field(default=30.0, validator=validators.gt(0))

    @contextmanager
    def open(self, context: Context, /) -> Iterator[RecordStore]:
        """The record store; makes or updates its tables. Raises SideError where the database cannot be used."""
        from pipeline_sql.engines import open_engine  # noqa: PLC0415 - loads SQLAlchemy
        from pipeline_sql.store import opened  # noqa: PLC0415

        del context
        with opened(open_engine(self.url, timeout_s=self.timeout_s)) as store:
            yield store


@frozen
class SqlSettings:
    """A table of a SQL database, as source or target.

    `table` is `schema.table` or `table`; a name that holds a dot itself needs its schema. `timestamp_timezone` is the
    zone that bare local times are meant in, required where the timestamp column carries none. `timestamp_unit` says
    what a column of numbers counts since 1970. With `create` a missing target table is made from the staged rows.
    `scope` limits the side to the rows whose columns hold these values: a table that several pipelines share. `where`
    limits a source to the rows for which that SQL condition is true. `new_columns` says what becomes of a staged column
    that a target lacks: `add` alters the table, `ignore` leaves the values out. `ledger` is where a target's ledger
    stands, `schema.table` or `table`; without it `pipeline_ledger` beside the table. `timeout_s` limits, in seconds, a
    count and the wait for a lock.
    """

    url: Secret
    table: str = field(validator=validators.min_len(1))
    timestamp_column: str = field(validator=validators.min_len(1))
    timestamp_timezone: str | None = field(default=None, validator=validators.optional(_is_zone))
    timestamp_unit: Literal["s", "ms", "us"] | None = field(
        default=None, validator=validators.optional(validators.in_(("s", "ms", "us")))
    )
    create: bool = False
    scope: Mapping[str, str | bool | int | float | date] = field(factory=dict, validator=_fits_the_ledger)
    where: str | None = field(default=None, validator=validators.optional(validators.min_len(1)))
    new_columns: Literal["error", "add", "ignore"] = field(
        default="error", validator=validators.in_(("error", "add", "ignore"))
    )
    ledger: str | None = field(default=None, validator=validators.optional(validators.min_len(1)))
    timeout_s: float = field(default=300.0, validator=validators.gt(0))

    @contextmanager
    def open(self, context: Context, /) -> Iterator[SqlConnector]:
        """The side; nothing is connected before it is used. Raises ConfigError for a URL that cannot be read."""
        from pipeline_sql.connector import SqlConnector  # noqa: PLC0415 - loads Arrow and SQLAlchemy
        from pipeline_sql.engines import open_engine  # noqa: PLC0415

        engine = open_engine(self.url, timeout_s=self.timeout_s)
        engine.lease_s = context.lease_s
        engine.prepare_side(create=self.create)
        with closing(SqlConnector(self, engine)) as connector:
            yield connector
