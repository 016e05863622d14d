"""The one connection of a side: opened at its first statement, dropped when it is lost, closed with the side."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pyarrow as pa
import snowflake.connector
from snowflake.connector import SnowflakeConnection, errors

from pipeline_core import SideError, TransientError, Window
from pipeline_snowflake import faults
from pipeline_snowflake.names import literal, quoted
from pipeline_snowflake.settings import OF_THE_CONNECTOR

if TYPE_CHECKING:
    from pipeline_snowflake.settings import SnowflakeSettings

_SECRET = {"password", "token", "private_key_file_pwd"}
_PATIENCE_S = 30  # how much later than the server the client gives up, so that the server's own reason is heard

# Importing 5.x starts threads that do its work; a fork leaves them behind.
_IMPORTED_BY = os.getpid()

Row = tuple[Any, ...]


class Session:
    """Statements of one side. `generation` tells which connection is open: what a former one held is gone with it."""

    def __init__(self, settings: SnowflakeSettings, pipeline: str) -> None:
        self.place = f"snowflake {settings.account}, table {settings.table!r}"
        self.generation = 0
        self._settings = settings
        self._pipeline = pipeline
        self._connection: SnowflakeConnection | None = None
        self._current: tuple[str, str] | None = None
        self._stage: str | None = None
        self._tagged: Window | None = None

    def close(self) -> None:
        """Closes the connection; with it go its temporary tables and stages, and an open transaction."""
        connection = self._forget()
        if connection is not None:
            try:
                connection.close()
            except faults.RAISED as error:
                if not faults.lost(error):  # else the server ends what it held
                    raise faults.meaning(error, self.place) from None

    # --- statements ---------------------------------------------------------------------------------------------------

    def rows(self, sql: str, *values: object) -> list[Row]:
        """Runs a statement; its rows. Of an insert, update or delete: one row of counts."""
        with self._cursor() as cursor:
            cursor.execute(sql, values or None)
            return [tuple(row) for row in cursor.fetchall()]

    def count(self, sql: str, *values: object) -> int:
        """Runs a statement whose answer is one number."""
        ((found, *_),) = self.rows(sql, *values)
        return int(found)

    def described(self, table: str) -> list[Row] | None:
        """The columns of a table, given quoted; None where there is none that the role can see."""
        with self._cursor() as cursor:
            try:
                cursor.execute(f"DESCRIBE TABLE {table}")
            except errors.ProgrammingError as error:
                if error.errno != faults.MISSING:
                    raise
                return None
            return [tuple(row) for row in cursor.fetchall()]

    def tables(self, sql: str, values: Sequence[object]) -> Iterator[pa.Table]:
        """Runs a query; its rows as Arrow tables, one at a time, none where there is no row."""
        with self._cursor() as cursor:
            cursor.execute(sql, tuple(values) or None)
            yield from cursor.fetch_arrow_batches()

    def begin(self, sql: str) -> str:
        """Starts a statement that the server ends without this process, and commits; its query id.

        By a connection of its own, for that of the side commits nothing by itself. 4.x leaves its session to the server
        while the statement goes on, which ends it once it is idle.
        """
        self._refuse_in_a_fork()
        options = self._options() | {"autocommit": True}
        options["session_parameters"] |= {"ABORT_DETACHED_QUERY": False, "QUERY_TAG": self._tag(self._tagged)}
        try:
            with closing(self._connect(options)) as connection, closing(connection.cursor()) as cursor:
                cursor.execute_async(sql)
                return str(cursor.sfqid)
        except faults.RAISED as error:
            raise faults.meaning(error, self.place) from None

    def goes_on(self, query: str) -> bool | None:
        """Whether the server is still at a statement that was begun; None where it does not know of it.

        Raises what the statement failed with.
        """
        with self._connected() as connection:
            status = connection.get_query_status(query)
            if status.name in ("ABORTING", "ABORTED"):
                raise TransientError(f"{self.place}: statement {query} was cancelled before its end")
            if connection.is_an_error(status):
                connection.get_query_status_throw_if_error(query)
            return None if status.name in ("NO_DATA", "RESTARTED") else connection.is_still_running(status)

    def abort(self, query: str) -> None:
        """Ends a statement that was begun, where it is still going on."""
        with self._cursor() as cursor:
            cursor.abort_query(query)

    def put(self, file: Path, stage: str) -> None:
        """Uploads a file into a folder of an internal stage, given as it stands after the `@`."""
        uri = literal(f"file://{file}")
        # Compressed is what it holds; 5.x would compress it under another name.
        self.rows(f"PUT {uri} @{stage} AUTO_COMPRESS = FALSE OVERWRITE = TRUE")

    def stage(self, schema: Sequence[str]) -> str:
        """The connection's own temporary stage, quoted; made in that schema, given as database and name."""
        if self._stage is None:
            name = quoted(*schema, f"PIPELINE_STAGE_{uuid4().hex.upper()}")
            self.rows(f"CREATE TEMPORARY STAGE {name}")
            self._stage = name
        return self._stage

    def tag(self, window: Window) -> None:
        """Names the window in the account's query history."""
        if self._tagged != window:
            self.rows(f"ALTER SESSION SET QUERY_TAG = {literal(self._tag(window))}")
            self._tagged = window

    def _tag(self, window: Window | None) -> str:
        said = {"pipeline": self._pipeline}
        return json.dumps(said if window is None else {**said, "window": str(window)})

    def full(self, path: Sequence[str]) -> tuple[str, str, str]:
        """A name with its database and schema: those of the session where it says none.

        Raises SideError where the session has none either.
        """
        if len(path) == 3:
            database, schema, name = path
            return database, schema, name
        if self._current is None:
            ((database, schema),) = self.rows("SELECT CURRENT_DATABASE(), CURRENT_SCHEMA()")
            if database is None or (schema is None and len(path) < 2):
                raise SideError(
                    f"{self.place}: the session has no current database and schema; set database and schema, "
                    "or write table as database.schema.table"
                )
            self._current = str(database), str(schema)
        database, schema = self._current
        return (database, path[0], path[1]) if len(path) == 2 else (database, schema, path[0])

    # --- transactions -------------------------------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """One transaction: commits on exit, rolls back on any exception.

        Statements do not commit by themselves, so whatever happens to the transaction none of them takes effect alone.
        Raises TransientError where the server has ended the transaction meanwhile, as it does with an idle one that
        stands in others' way: what came after belongs to another one, which the ledger does not guard.
        """
        begun = self.generation
        self.rows("BEGIN TRANSACTION")
        try:
            first = self._transaction()
            yield
            self._check_same(begun, first)
            self.rows("COMMIT")
        except BaseException:
            self._roll_back(begun)
            raise

    def _check_same(self, begun: int, transaction: object) -> None:
        if begun != self.generation or self._transaction() != transaction:
            raise TransientError(f"{self.place}: the server has ended the transaction; the window is published again")

    def _transaction(self) -> object:
        ((found,),) = self.rows("SELECT CURRENT_TRANSACTION()")
        return found

    def _roll_back(self, begun: int) -> None:
        """Ends the transaction, if need be by ending its session."""
        if self._connection is None or begun != self.generation:
            return
        try:
            self._connection.cursor().execute("ROLLBACK")
        except faults.RAISED:
            self._drop()

    # --- the connection -----------------------------------------------------------------------------------------------

    @contextmanager
    def _cursor(self) -> Iterator[Any]:
        with self._connected() as connection, closing(connection.cursor()) as cursor:
            yield cursor

    @contextmanager
    def _connected(self) -> Iterator[SnowflakeConnection]:
        try:
            yield self._open()
        except faults.RAISED as error:
            if faults.lost(error):
                self._drop()
            # Not "from error": the connector's own quotes the statement, and values.
            raise faults.meaning(error, self.place) from None

    def _open(self) -> SnowflakeConnection:
        self._refuse_in_a_fork()
        if self._connection is None:
            self._connection = self._connect(self._options())
        return self._connection

    def _connect(self, options: dict[str, Any]) -> SnowflakeConnection:
        try:
            return snowflake.connector.connect(**options)
        except faults.RAISED:
            raise
        except (OSError, TypeError, ValueError) as error:
            # 4.x lets through what is wrong with a key. Of its text only the system's own words are sure to quote none.
            why = (isinstance(error, OSError) and error.strerror) or type(error).__name__
            raise SideError(
                f"{self.place}: cannot sign in: {why}; correct what signs in: a private_key_file has to be "
                "there, to hold a private key, and to be opened by private_key_file_pwd"
            ) from None

    def _refuse_in_a_fork(self) -> None:
        if faults.MAJOR >= 5 and os.getpid() != _IMPORTED_BY:
            raise SideError(
                f"{self.place}: this process was forked from one that had loaded Snowflake's connector, and lacks the "
                "threads that do its work: it would wait for ever; start workers by spawn, as in "
                "ProcessPoolExecutor(mp_context=multiprocessing.get_context('spawn'))"
            )

    def _forget(self) -> SnowflakeConnection | None:
        """The connection, of which nothing is known any more."""
        connection, self._connection = self._connection, None
        self._stage = self._tagged = None
        self.generation += 1
        return connection

    def _drop(self) -> None:
        connection = self._forget()
        if connection is not None:
            try:
                connection.close()
            except faults.RAISED:
                return  # it is lost already; the server ends what it held

    def _options(self) -> dict[str, Any]:
        settings = self._settings
        given = {name: getattr(settings, name) for name in OF_THE_CONNECTOR}
        options = {
            name: value.reveal() if name in _SECRET else value for name, value in given.items() if value is not None
        }
        if settings.private_key_file is not None:
            options.setdefault("authenticator", "SNOWFLAKE_JWT")
        limit = math.ceil(settings.timeout_s)
        patience = limit + _PATIENCE_S
        if faults.MAJOR >= 5:
            if "private_key_file_pwd" in options:
                options["private_key_password"] = options.pop("private_key_file_pwd")
            options |= {"query_timeout": patience, "request_timeout": patience}
            options["enable_server_session_keep_alive_auto_detection"] = False
        else:
            options["network_timeout"] = patience
        return options | {
            "application": "windowed_pipeline",
            "autocommit": False,
            "paramstyle": "qmark",
            "arrow_number_to_decimal": True,
            "login_timeout": math.ceil(settings.login_timeout_s),
            "session_parameters": {
                "TIMEZONE": "UTC",
                "QUERY_TAG": self._tag(None),
                "STATEMENT_TIMEOUT_IN_SECONDS": limit,
                "LOCK_TIMEOUT": limit,
                "ROWS_PER_RESULTSET": 0,  # a user's own limit would cut off counts and rows, without a word
            },
        }
