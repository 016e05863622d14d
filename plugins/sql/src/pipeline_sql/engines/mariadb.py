"""MariaDB by PyMySQL: many writers, row locks, and one clock, the server's."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event, exc

from pipeline_core import ConfigError, PermanentError, PipelineError, SideError, TransientError
from pipeline_core.secrets import redact
from pipeline_sql.engines.default import Engine

_CONNECT_TIMEOUT_S = 10
_OLDEST = (10, 6)  # the first that passes over locked rows
_SCHEMA_LOCK = "schema"
_PLAN_LOCK = "plan of "
_LOCKED = "whether this session holds a named lock"

# A value that does not fit is an error and never changed, 0 is no request for the next number, and no quote or escape
# means anything else than this code takes it for, whatever the server's own default is.
_SQL_MODE = "STRICT_ALL_TABLES,ERROR_FOR_DIVISION_BY_ZERO,NO_AUTO_VALUE_ON_ZERO,NO_ENGINE_SUBSTITUTION"

# What codes of the server and the driver mean to the core (https://mariadb.com/kb/en/mariadb-error-code-reference/).
_HEALS = {
    1205: "see what keeps its transaction open, or raise timeout_s",
    1213: "another transaction was in the way",
    1020: "another transaction was in the way",
    1969: "make an index on the timestamp column, or raise timeout_s",
    1317: "someone ended the query",
}
_HEALS_FOR_ALL = {
    1021: "free some space on its disk",
    1040: "the server has no more to give: wait, or raise its limits",
    1041: "the server has no more to give: wait, or raise its limits",
    1053: "the server is stopping",
    1114: "free some space on its disk",
    1203: "the server has no more to give: wait, or raise its limits",
    1226: "the server has no more to give: wait, or raise its limits",
    1927: "the server ended the connection",
    2002: "check the server and the way to it",
    2003: "check the server and the way to it",
    2006: "check the server and the way to it",
    2013: "check the server and the way to it",
}
_NEEDS_A_PERSON = {
    1044: "grant this user the right",
    1045: "check user and password",
    1046: "name a database in the url",
    1049: "create the database, or correct its name",
    1054: "create it, or correct its name",
    1142: "grant this user the right",
    1143: "grant this user the right",
    1146: "create it, or correct its name",
    1227: "grant this user the right",
    1290: "connect to a server that may be written to",
    1698: "check user and password",
    1836: "connect to a server that may be written to",
}

_QUOTED = re.compile(r"\b(entry|value:?|near) '.*'(?= for | at |$)", re.DOTALL)


class MariaDbEngine(Engine):
    """MariaDB. Waiting for a lock ends after the timeout."""

    name = "mariadb"

    def _create(self) -> sa.Engine:
        if self.url.drivername in ("mysql", "mariadb", "mysql+pymysql"):
            self.url = self.url.set(drivername="mariadb+pymysql")
        if self.url.drivername != "mariadb+pymysql":
            raise ConfigError(
                f"url: found the driver {self.url.drivername!r}, expected mariadb+pymysql://; "
                "pip install 'windowed-pipeline-sql[mariadb]' brings it"
            )
        wait_s = math.ceil(self.timeout_s)
        # Set as the connection is made: SQLAlchemy asks each new server how it quotes.
        known = {
            "connect_timeout": _CONNECT_TIMEOUT_S,
            "sql_mode": _SQL_MODE,
            "init_command": (
                f"SET time_zone = '+00:00', innodb_lock_wait_timeout = {wait_s}, lock_wait_timeout = {wait_s}, "
                "default_storage_engine = InnoDB"
            ),
        }
        engine = sa.create_engine(
            self.url,
            hide_parameters=True,
            # Each statement sees what was committed before it: a lock is of use only to what is read after it.
            isolation_level="READ COMMITTED",
            connect_args=known,
        )

        @event.listens_for(engine, "connect")
        def on_connect(connection: Any, record: Any) -> None:
            del record
            self._check_version(connection.get_server_info())

        return engine

    def _check_version(self, found: str) -> None:
        version, _, kind = found.removeprefix("5.5.5-").partition("-")
        number = tuple(int(part) for part in version.split(".")[:2])
        if "MariaDB" not in kind or number < _OLDEST:
            raise SideError(
                f"{self.place}: found a server of version {found!r}, expected MariaDB {'.'.join(map(str, _OLDEST))} "
                "or later; upgrade the server"
            )

    def prepare_store(self) -> None:
        # A worker that was stopped inside a transaction of the store would hold its locks for ever.
        @event.listens_for(self.sa, "connect")
        def on_connect(connection: Any, record: Any) -> None:
            del record
            with connection.cursor() as cursor:
                cursor.execute(f"SET idle_transaction_timeout = {math.ceil(self.timeout_s)}")

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        with self.translated(), self.sa.connect() as connection:
            try:
                with connection.begin():
                    yield connection
            finally:
                # A named lock belongs to the session, and may go only after the transaction has.
                if connection.info.pop(_LOCKED, False) and not connection.invalidated:
                    connection.exec_driver_sql("DO RELEASE_ALL_LOCKS()")

    @contextmanager
    def migrating(self) -> Iterator[sa.Connection]:
        # DDL commits what came before it, so a process that dies in here leaves a part: each step can be taken again.
        with self.writing() as connection:
            self._lock(connection, _SCHEMA_LOCK)
            yield connection

    def lock_plan(self, connection: sa.Connection, pipeline: str) -> None:
        self._lock(connection, _PLAN_LOCK + pipeline)

    def _lock(self, connection: sa.Connection, name: str) -> None:
        """Waits for the lock of that name, which the end of `writing` frees. Names are the whole server's."""
        of_database = f"pipeline_core {sha256(f'{self.url.database} {name}'.encode()).hexdigest()[:48]}"
        got = connection.exec_driver_sql("SELECT GET_LOCK(%s, %s)", (of_database, self.timeout_s)).scalar_one()
        if got != 1:
            raise TransientError(
                f"{self.place}: the lock {name!r} of another process was not free after {self.timeout_s:g} s; "
                f"{_HEALS[1205]}"
            )
        connection.info[_LOCKED] = True

    def now_us(self, connection: sa.Connection) -> int:
        clock = "SELECT CAST(UNIX_TIMESTAMP(SYSDATE(6)) * 1000000 AS SIGNED)"
        return int(connection.exec_driver_sql(clock).scalar_one())

    def translate(self, error: Exception) -> PipelineError:
        cause: Any = getattr(error, "orig", None) or error
        if not isinstance(cause, self.sa.dialect.loaded_dbapi.Error):
            return super().translate(error)
        code, text = cause.args[0] if cause.args else None, redact(_without_values(str(cause.args[-1])))
        if code in _HEALS:
            return TransientError(f"{self.place}: {text}; {_HEALS[code]}")
        if code in _HEALS_FOR_ALL:
            return TransientError(f"{self.place}: {text}; {_HEALS_FOR_ALL[code]}", side_down=True)
        if code in _NEEDS_A_PERSON:
            return SideError(f"{self.place}: {text}; {_NEEDS_A_PERSON[code]}")
        if isinstance(error, exc.DBAPIError) and error.connection_invalidated:
            return TransientError(f"{self.place}: the connection was lost", side_down=True)
        return PermanentError(f"{self.place}: {text}")


def _without_values(text: str) -> str:
    """A message of the server without the values that it quotes."""
    return _QUOTED.sub(r"\1", text)
