"""What the tests of this plugin share: the stand-in, tables of their own in it, and a side on them."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from threading import Thread
from typing import Any
from uuid import uuid4

import pytest
import snowflake.connector

from pipeline_core import Context, Secret
from pipeline_snowflake import SnowflakeSettings
from pipeline_snowflake.connector import SnowflakeConnector

NUMBERS = count()
MAJOR = int(snowflake.connector.__version__.partition(".")[0])


class Account:
    """An account, the official connector to make tables with, and nothing of the plugin."""

    def __init__(self, options: Mapping[str, Any], server: Any = None) -> None:
        self.options = dict(options)
        self._server = server
        self._unique = uuid4().hex[:8].upper()
        self._names: list[str] = []

    def connect(self, **more: Any) -> Any:
        """A connection of the official connector; each statement is committed at once."""
        quiet = {"enable_server_session_keep_alive_auto_detection": False} if MAJOR >= 5 else {}
        given = {
            "paramstyle": "qmark",
            "autocommit": True,
            "session_parameters": {"TIMEZONE": "UTC"},
        }
        return snowflake.connector.connect(**self.options, **given, **quiet, **more)

    def run(self, *statements: str) -> list[tuple[Any, ...]]:
        """Runs statements; the rows of the last one."""
        found: list[tuple[Any, ...]] = []
        with closing(self.connect()) as connection, closing(connection.cursor()) as cursor:
            for statement in statements:
                found = [tuple(row) for row in cursor.execute(statement).fetchall()]
        return found

    def settings(self, table: str, **more: Any) -> SnowflakeSettings:
        """The configuration of a side on a table."""
        given = {
            **self.options,
            "table": table,
            "timestamp_column": "AT",
            "timeout_s": 30,
            "login_timeout_s": 5,
            **more,
        }
        password = given.pop("password")
        return SnowflakeSettings(**given, password=password if isinstance(password, Secret) else Secret(password))

    def side(self, table: str, pipeline: str = "flights", **more: Any) -> AbstractContextManager[SnowflakeConnector]:
        """A side on a table."""
        return self.settings(table, **more).open(Context(pipeline))

    def name(self) -> str:
        """A name that no table has."""
        self._names.append(f"T{self._unique}_{next(NUMBERS)}")
        return self._names[-1]

    def clear(self) -> None:
        """Drops the tables of those names, and their ledgers."""
        for name in self._names:
            tables = (name, f"L{name}", f"L{name}_HEAD")
            self.run(*(f"DROP TABLE IF EXISTS {table}" for table in tables))

    def sent(self, since: int = 0) -> list[dict[str, Any]]:
        """The statements that the stand-in was sent; a test that asks for them is skipped elsewhere."""
        if self._server is None:
            pytest.skip("only the stand-in keeps the statements that it was sent")
        return list(self._server.sent(since))

    @contextmanager
    def held(self) -> Iterator[None]:
        """As long as it lasts, no statement that was left to the stand-in begins; skipped elsewhere, as `sent` is."""
        if self._server is None:
            pytest.skip("only the stand-in can be made to hold a statement")
        self._server.hold(True)
        try:
            yield
        finally:
            self._server.hold(False)

    def uploads(self) -> list[str]:
        """The tables of submitted uploads that are there."""
        listed = "SELECT TABLE_NAME FROM INFORMATION_SCHEMA.TABLES WHERE STARTSWITH(TABLE_NAME, 'PIPELINE_UPLOAD_')"
        return sorted(name for (name,) in self.run(listed))

    def sessions(self) -> list[str]:
        """The sessions that are open, their temporary tables and the files in stages, as far as that can be seen."""
        return [] if self._server is None else list(self._server.sessions())


@pytest.fixture(scope="session")
def account(request: pytest.FixtureRequest) -> Iterator[Account]:
    """The account that the stand-in plays; with PIPELINE_SNOWFLAKE=1 the one that the environment names."""
    if os.environ.get("PIPELINE_SNOWFLAKE") == "1":
        real = Account(named_in_the_environment())
        yield real
        real.clear()
    else:
        server = request.getfixturevalue("snowflake_server")
        yield Account(server.options(), server)


def named_in_the_environment() -> dict[str, Any]:
    """How to connect to a real account: `make test-snowflake` asks for it."""
    needed = ("account", "user", "password", "database", "schema")
    missing = [f"SNOWFLAKE_{name.upper()}" for name in needed if f"SNOWFLAKE_{name.upper()}" not in os.environ]
    if missing:
        pytest.fail(f"PIPELINE_SNOWFLAKE=1 asks for a real account: set {', '.join(missing)}")
    optional = ("warehouse", "role", "host", "port", "protocol")
    found = {name: os.environ.get(f"SNOWFLAKE_{name.upper()}") for name in (*needed, *optional)}
    given: dict[str, Any] = {name: value for name, value in found.items() if value is not None}
    return given | ({"port": int(given["port"])} if "port" in given else {})


#: A status and a body.
Answer = tuple[int, bytes]


class Front(ThreadingHTTPServer):
    """A proxy before a stand-in: `answer` is given a statement, or else a path, and what asks the stand-in."""

    def __init__(self, behind: int) -> None:
        super().__init__(("127.0.0.1", 0), Passing)
        self.behind = behind
        self.answer: Callable[[str, Callable[[], Answer]], Answer] = lambda what, ask: ask()


class Passing(BaseHTTPRequestHandler):
    """One connection to a Front."""

    protocol_version = "HTTP/1.1"
    server: Front

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        plain = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
        path = self.path.partition("?")[0]
        what = json.loads(plain)["sqlText"] if path.endswith("query-request") else path

        def ask() -> Answer:
            with closing(HTTPConnection("127.0.0.1", self.server.behind)) as behind:
                behind.request(self.command, self.path, body, dict(self.headers.items()))
                found = behind.getresponse()
                return found.status, found.read()

        status, answer = self.server.answer(what, ask)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST  # noqa: N815 - http.server's names

    def log_message(self, *given: object) -> None:
        """Nothing: pytest shows what the tests say."""


@pytest.fixture
def front(request: pytest.FixtureRequest) -> Iterator[Front]:
    """A proxy before the stand-in of all tests; a test that asks for it is skipped elsewhere."""
    if os.environ.get("PIPELINE_SNOWFLAKE") == "1":
        pytest.skip("a proxy stands before the stand-in alone")
    with Front(request.getfixturevalue("snowflake_server").port) as started:
        Thread(target=started.serve_forever, daemon=True).start()
        yield started
        started.shutdown()
