"""The configuration section of this plugin. No driver here: it loads when the section is opened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import date
from typing import TYPE_CHECKING, Any, Literal

from attrs import field, frozen, validators

from pipeline_core import ConfigError, Context
from pipeline_core.zones import zone

if TYPE_CHECKING:
    from pipeline_duckdb.connector import DuckDbConnector


def _is_zone(instance: object, attribute: Any, value: str) -> None:
    del instance, attribute
    zone(value)


def _is_file(instance: object, attribute: Any, value: str) -> None:
    del instance
    if not value or value.startswith(":") or "\0" in value:
        raise ConfigError(
            f"{attribute.name}: found {value!r}, expected the path of a database file, as in 'warehouse.duckdb'; "
            "a database in memory would be another one for each worker"
        )


@frozen
class DuckDbSettings:
    """A table of a DuckDB file, as source or target.

    `path` is the database file. `table` is `schema.table` or `table`; a name that holds a dot itself needs its schema.
    `timestamp_timezone` is the zone that bare local times are meant in, required where the timestamp column carries
    none. `scope` limits the side to the rows whose columns hold these values: a table that several pipelines share.
    `where` limits a source to the rows for which this SQL condition is true. With `create` a missing target table, and
    a missing file, is made from the staged rows. `new_columns` says what becomes of a staged column that a target
    lacks: `add` alters the table, `ignore` leaves the values out. `ledger` is where a target's ledger stands,
    `schema.table` or `table`; without it `pipeline_ledger` beside the table. `timeout_s` limits, in seconds, a count
    and the wait for a lock, that of the file among them.
    """

    path: str = field(validator=_is_file)
    table: str = field(validator=validators.min_len(1))
    timestamp_column: str = field(validator=validators.min_len(1))
    timestamp_timezone: str | None = field(default=None, validator=validators.optional(_is_zone))
    scope: Mapping[str, str | bool | int | float | date] = field(factory=dict)
    where: str | None = field(default=None, validator=validators.optional(validators.min_len(1)))
    create: bool = False
    new_columns: Literal["error", "add", "ignore"] = field(
        default="error", validator=validators.in_(("error", "add", "ignore"))
    )
    ledger: str | None = field(default=None, validator=validators.optional(validators.min_len(1)))
    timeout_s: float = field(default=300.0, validator=validators.gt(0))

    @contextmanager
    def open(self, context: Context, /) -> Iterator[DuckDbConnector]:
        """The side; the file is opened when it is used, and only for as long as a step takes."""
        from pipeline_duckdb.connector import DuckDbConnector  # noqa: PLC0415 - loads Arrow and DuckDB
        from pipeline_duckdb.database import Database  # noqa: PLC0415

        del context
        database = Database(self.path, timeout_s=self.timeout_s, create=self.create)
        with closing(DuckDbConnector(self, database)) as connector:
            yield connector
