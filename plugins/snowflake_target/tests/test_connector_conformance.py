"""The Snowflake side keeps what every connector promises, through the official connector."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import pyarrow as pa
import pytest
from attrs import evolve

from pipeline_core import Can
from pipeline_core.ledger import Given
from pipeline_core.testing import ConnectorSuite
from pipeline_snowflake import SnowflakeSettings


class TestSnowflake(ConnectorSuite):
    """A table of its own for each side; its columns have lower-case names, which only quotes keep."""

    can = frozenset({Can.EXTRACT, Can.LOAD, Can.ATOMIC, Can.DEFER})
    declared = "TIMESTAMP_TZ"
    timezone: str | None = None

    @pytest.fixture(autouse=True)
    def _account(self, account: Any) -> None:
        self.account = account
        self.others = {*account.sessions(), *account.uploads()}  # of processes that other tests have killed
        type(self).secret = account.options["password"]

    def fresh(self) -> SnowflakeSettings:
        # A ledger of its own too: Snowflake locks the whole of one.
        name = self.account.name()
        zone = {} if self.timezone is None else {"timestamp_timezone": self.timezone}
        return self.account.settings(name, timestamp_column="at", ledger=f"L{name}", **zone)

    def put(self, settings: SnowflakeSettings, rows: pa.Table) -> None:
        columns = f'"at" {self.declared}, "n" NUMBER(18, 0), "text" VARCHAR, "ratio" FLOAT'
        made = f"CREATE TABLE IF NOT EXISTS {settings.table} ({columns})"
        stamps = rows.column("at").cast(pa.int64()).to_pylist()
        others = [rows.column(name).to_pylist() for name in ("n", "text", "ratio")]
        with closing(self.account.connect()) as connection, closing(connection.cursor()) as cursor:
            cursor.execute(made)
            values = [value for row in zip(stamps, *others, strict=True) for value in row]
            if values:
                listed = ", ".join([f"(TO_{self.declared}(?, 6), ?, ?, ?)"] * len(stamps))
                cursor.execute(f"INSERT INTO {settings.table} SELECT * FROM VALUES {listed}", values)

    def scoped(self, settings: SnowflakeSettings, scope: Given) -> SnowflakeSettings:
        return evolve(settings, scope=scope)

    @contextmanager
    def broken(self, settings: SnowflakeSettings) -> Iterator[None]:
        self.account.run(f"ALTER TABLE {settings.table} RENAME TO {settings.table}_HIDDEN")
        yield
        self.account.run(f"ALTER TABLE {settings.table}_HIDDEN RENAME TO {settings.table}")

    def leftovers(self, settings: SnowflakeSettings) -> Sequence[str]:
        del settings
        found = [*self.account.uploads(), *self.account.sessions()]
        return [each for each in found if each not in self.others]


class TestSnowflakeLocalTime(TestSnowflake):
    """A column that carries no zone."""

    declared = "TIMESTAMP_NTZ"
    timezone = "UTC"
