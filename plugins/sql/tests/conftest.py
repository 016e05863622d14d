"""What the tests of this plugin share."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
import sqlalchemy as sa

from pipeline_core import Context, Secret
from pipeline_sql import SqlSettings
from pipeline_sql.connector import SqlConnector
from pipeline_sql.engines.mariadb import MariaDbEngine
from pipeline_sql.engines.postgresql import PostgresEngine
from pipeline_sql.engines.sqlite import SqliteEngine

NOON_US = 1_700_000_000_000_000


class Clocked:
    """A clock that a test sets."""

    clock_us = NOON_US

    def now_us(self, connection: sa.Connection) -> int:
        del connection
        return self.clock_us


class ClockedSqlite(Clocked, SqliteEngine):
    """SQLite under that clock."""


class ClockedPostgres(Clocked, PostgresEngine):
    """PostgreSQL under that clock."""

    @property
    def clock(self) -> str:  # type: ignore[override]
        """The SQL of it."""
        return f"{self.clock_us}::bigint"


class ClockedMariaDb(Clocked, MariaDbEngine):
    """MariaDB under that clock."""


CLOCKED = {"sqlite": ClockedSqlite, "postgresql": ClockedPostgres, "mariadb": ClockedMariaDb}


@pytest.fixture(params=list(CLOCKED))
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a new database, of each engine in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'records.db'}"
    return str(request.getfixturevalue("postgres_url" if request.param == "postgresql" else "mariadb_url"))


@pytest.fixture
def clocked() -> Callable[[str], Any]:
    """An engine of a URL, with `clock_us` to set."""

    def made(url: str) -> Any:
        parsed = sa.make_url(url)
        return CLOCKED[parsed.get_backend_name()](parsed, timeout_s=30)

    return made


@pytest.fixture(scope="session")
def side() -> Callable[..., AbstractContextManager[SqlConnector]]:
    """Opens a side on a SQLite file: `side(path, table, timestamp_column, **settings)`."""

    def opened(
        path: Path, table: str, timestamp_column: str = "at", **more: Any
    ) -> AbstractContextManager[SqlConnector]:
        settings = SqlSettings(Secret(f"sqlite:///{path}"), table=table, timestamp_column=timestamp_column, **more)
        return settings.open(Context("flights"))

    return opened


class Database:
    """One database of a server, with a plain connection beside what is tested.

    `declared`: the types of its timestamp columns. `standstill_s`: the shortest time after which it can cut a
    publication off. `sleep`: the statement that waits so many seconds. `own_session`: what asks a session for its
    number. `sessions`: what counts the others of the database. `at_once`: the signal that ends the server with all it
    does. `loosely`: what lets the plain connection store dates that there are not. `counter`: columns that number their
    rows. `right_to_scratch`: what an upload needs beyond the rights on rows. `nul`: NUL, or nothing if text has none.
    """

    declared: ClassVar[dict[str, str]]
    standstill_s: ClassVar[float]
    sleep: ClassVar[str]
    own_session: ClassVar[str]
    sessions: ClassVar[str]
    at_once: ClassVar[signal.Signals]
    loosely: ClassVar[tuple[str, ...]] = ()
    counter: ClassVar[str]
    right_to_scratch: ClassVar[str] = ""
    nul: ClassVar[str] = "\0"
    schema: str
    connection: Any

    def __init__(self, server: Any) -> None:
        self.server = server
        self.name = server.new_database()
        self.url = server.url(self.name)

    def close(self) -> None:
        """Ends the plain connection."""
        self.connection.close()

    def run(self, *statements: str) -> list[Any]:
        """Runs each statement; the rows of the last."""
        with self.connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            return list(cursor.fetchall()) if cursor.description else []

    def side(self, table: str, timestamp_column: str = "at", **more: Any) -> AbstractContextManager[SqlConnector]:
        """Opens a side on a table."""
        url = Secret(more.pop("url", self.url))
        context = Context("flights", more.pop("lease_s", None))
        return SqlSettings(url, table=table, timestamp_column=timestamp_column, **more).open(context)

    def wait(self, seconds: float) -> None:
        """Lets the server's time pass."""
        self.run(self.sleep.format(seconds))

    def other_sessions(self, wanted: int) -> int:
        """How many other sessions the database has: a while is given them to become as few as wanted."""
        for _ in range(200):
            ((count,),) = self.run(self.sessions)
            if count <= wanted:
                break
            self.wait(0.01)
        return int(count)


class PostgresDatabase(Database):
    """On PostgreSQL."""

    declared: ClassVar = {"instant": "timestamptz", "local": "timestamp", "number": "bigint"}
    standstill_s = 0.1
    sleep = "SELECT pg_sleep({})"
    own_session = "SELECT pg_backend_pid()"
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    at_once = signal.SIGQUIT
    nul = ""
    counter = "id int GENERATED BY DEFAULT AS IDENTITY, s serial"
    schema = "public"

    def __init__(self, server: Any) -> None:
        import psycopg

        super().__init__(server)
        self.connection = psycopg.connect(server.dsn(self.name), autocommit=True, prepare_threshold=None)

    def use_zone(self, offset: str) -> None:
        """Sets the zone of the plain connection."""
        self.run(f"SET TIME ZONE INTERVAL '{offset}' HOUR TO MINUTE")

    def someone_waits(self) -> bool:
        """Whether a transaction waits for another one's lock."""
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        return self.run(waiting) == [(1,)]

    def end(self, session: int) -> None:
        """Ends another session."""
        self.run(f"SELECT pg_terminate_backend({session})")

    def let_guest(self, rights: str) -> None:
        """Lets the guest use the tables that are there."""
        self.run(f"GRANT {rights} ON ALL TABLES IN SCHEMA public TO guest")
        self.run("GRANT USAGE, UPDATE ON ALL SEQUENCES IN SCHEMA public TO guest")

    @contextmanager
    def in_another_zone(self) -> Iterator[None]:
        """Sessions that begin meanwhile start in another time zone."""
        self.run(f"ALTER DATABASE {self.name} SET timezone = 'Asia/Tokyo'")
        yield
        self.run(f"ALTER DATABASE {self.name} RESET timezone")


class MariaDbDatabase(Database):
    """On MariaDB."""

    declared: ClassVar = {"instant": "timestamp(6) null", "local": "datetime(6)", "number": "bigint"}
    standstill_s = 1
    sleep = "DO SLEEP({})"
    own_session = "SELECT CONNECTION_ID()"
    sessions = "SELECT count(*) FROM information_schema.processlist WHERE db = database() AND id <> connection_id()"
    at_once = signal.SIGKILL
    loosely = ("SET sql_mode = ''",)
    counter = "id int AUTO_INCREMENT PRIMARY KEY"
    right_to_scratch = ", CREATE TEMPORARY TABLES"

    def __init__(self, server: Any) -> None:
        super().__init__(server)
        self.schema = self.name
        self.connection = server.connect(self.name)
        self.use_zone("+00:00")

    def use_zone(self, offset: str) -> None:
        """Sets the zone of the plain connection."""
        self.run(f"SET time_zone = '{offset}'")

    def someone_waits(self) -> bool:
        """Whether a transaction waits for another one's lock."""
        self.wait(0.15)  # the server answers what it answered before, if it is asked again within a tenth of a second
        return self.run("SELECT count(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'") == [(1,)]

    def end(self, session: int) -> None:
        """Ends another session."""
        self.run(f"KILL {session}")

    def let_guest(self, rights: str) -> None:
        """Lets the guest use all tables of the database."""
        self.run(f"GRANT {rights} ON {self.name}.* TO guest@'%'")

    @contextmanager
    def in_another_zone(self) -> Iterator[None]:
        """Sessions that begin meanwhile start in another time zone."""
        self.run("SET GLOBAL time_zone = '+09:00'")
        try:
            yield
        finally:
            self.run("SET GLOBAL time_zone = SYSTEM")


@pytest.fixture(scope="session")
def database_on(request: pytest.FixtureRequest) -> Callable[[str], Database]:
    """Makes a database on a server: `database_on("mariadb")`. To be closed."""

    def made(engine: str) -> Database:
        if engine == "mariadb":
            return MariaDbDatabase(request.getfixturevalue("mariadb_server"))
        return PostgresDatabase(request.getfixturevalue("postgres_server"))

    return made
