"""PostgreSQL by psycopg 3: many writers, row locks, and one clock, the server's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event, exc

from pipeline_core import ConfigError, PermanentError, PipelineError, SideError, TransientError
from pipeline_core.secrets import redact
from pipeline_sql.engines.default import Engine

_CONNECT_TIMEOUT_S = 10
_SCHEMA_LOCK = "pipeline_core schema"
_PLAN_LOCK = "pipeline_core plan of "

# What codes of the server mean to the core, by how they begin (https://www.postgresql.org/docs/current/errcodes-appendix.html).
_HEALS = {
    "40": "another transaction was in the way",
    "55P03": "see what keeps its transaction open, or raise timeout_s",
    "57014": "make an index on the timestamp column, or raise timeout_s",
    "25P03": "the transaction stood still for too long",
}
_HEALS_FOR_ALL = {
    "08": "check the server and the way to it",
    "53100": "free some space on its disk",
    "53": "the server has no more to give: wait, or raise its limits",
    "57P": "the server ended the connection, or is starting",
    "58": "check the server's disk and log",
}
_NEEDS_A_PERSON = {
    "28": "check user and password",
    "3D000": "create the database, or correct its name",
    "3F000": "create the schema, or correct its name",
    "42501": "grant this user the right",
    "42P01": "create it, or correct its name",
    "42703": "create it, or correct its name",
    "25006": "connect to a server that may be written to",
}
# A refused connection carries no code, only the server's words.
_REFUSED = {
    "password authentication failed": _NEEDS_A_PERSON["28"],
    "no password supplied": _NEEDS_A_PERSON["28"],
    "authentication failed": _NEEDS_A_PERSON["28"],
    "no pg_hba.conf entry": "let the server's pg_hba.conf admit this user from here",
    "permission denied": _NEEDS_A_PERSON["42501"],
    "is not permitted to log in": _NEEDS_A_PERSON["42501"],
    "invalid connection option": "correct the url",
}


class PostgresEngine(Engine):
    """PostgreSQL. Waiting for a lock ends after the timeout."""

    name = "postgresql"

    def _create(self) -> sa.Engine:
        if self.url.drivername == "postgresql":
            self.url = self.url.set(drivername="postgresql+psycopg")
        if self.url.get_driver_name() != "psycopg":
            raise ConfigError(
                f"url: found the driver {self.url.drivername!r}, expected postgresql+psycopg://; "
                "pip install 'windowed-pipeline-sql[postgresql]' brings it"
            )
        known = {"connect_timeout": _CONNECT_TIMEOUT_S, "application_name": "pipeline-core"}
        engine = sa.create_engine(
            self.url,
            hide_parameters=True,
            # Each statement sees what was committed before it: a lock is of use only to what is read after it.
            isolation_level="READ COMMITTED",
            connect_args={name: value for name, value in known.items() if name not in self.url.query},
        )

        @event.listens_for(engine, "connect")
        def on_connect(connection: Any, record: Any) -> None:
            del record
            milliseconds = max(1, round(self.timeout_s * 1000))
            connection.execute(
                f"SELECT set_config('lock_timeout', '{milliseconds}', false), set_config('TimeZone', 'UTC', false)"
            )
            connection.commit()

        return engine

    def prepare_store(self) -> None:
        # A worker that was stopped inside a transaction of the store would hold its locks for ever.
        @event.listens_for(self.sa, "connect")
        def on_connect(connection: Any, record: Any) -> None:
            del record
            milliseconds = max(1, round(self.timeout_s * 1000))
            connection.execute(f"SET idle_in_transaction_session_timeout = {milliseconds}")
            connection.commit()

    @contextmanager
    def migrating(self) -> Iterator[sa.Connection]:
        with self.writing() as connection:
            _lock(connection, _SCHEMA_LOCK)
            yield connection

    def lock_plan(self, connection: sa.Connection, pipeline: str) -> None:
        _lock(connection, _PLAN_LOCK + pipeline)

    def now_us(self, connection: sa.Connection) -> int:
        # Not now(): that is the instant at which the transaction began, before any wait for a lock.
        clock = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
        return int(connection.exec_driver_sql(clock).scalar_one())

    def translate(self, error: Exception) -> PipelineError:
        cause: Any = getattr(error, "orig", None) or error
        code = getattr(cause, "sqlstate", None)
        if code is None:
            return self._without_code(error, cause)
        # Neither detail nor context, which quote the row; nor the end of a text such as: invalid input: "…".
        text = redact(str(cause.diag.message_primary or type(cause).__name__))
        if code.startswith("22"):
            text = text.partition(': "')[0]
        for begin, advice in _HEALS.items():
            if code.startswith(begin):
                return TransientError(f"{self.place}: {text}; {advice}")
        for begin, advice in _HEALS_FOR_ALL.items():
            if code.startswith(begin):
                return TransientError(f"{self.place}: {text}; {advice}", side_down=True)
        for begin, advice in _NEEDS_A_PERSON.items():
            if code.startswith(begin):
                return SideError(f"{self.place}: {text}; {advice}")
        return PermanentError(f"{self.place}: {text}")

    def _without_code(self, error: Exception, cause: Exception) -> PipelineError:
        if not isinstance(cause, self.sa.dialect.loaded_dbapi.OperationalError):
            if isinstance(error, exc.DBAPIError) and error.connection_invalidated:
                return TransientError(f"{self.place}: the connection was lost", side_down=True)
            return super().translate(error)
        text = redact(" ".join(str(cause).split()))
        for words, advice in _REFUSED.items():
            if words in text:
                return SideError(f"{self.place}: {text}; {advice}")
        if "does not exist" in text and "FATAL" in text:
            return SideError(f"{self.place}: {text}; create it, or correct the url")
        return TransientError(f"{self.place}: {text}; {_HEALS_FOR_ALL['08']}", side_down=True)


def _lock(connection: sa.Connection, name: str) -> None:
    """Waits for the lock of that name, which the end of the transaction frees."""
    connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"), {"name": name})
