"""MariaDB by PyMySQL: many writers, row locks, and one clock, the server's."""

from __future__ import annotations

import math
import re
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from functools import cached_property
from hashlib import sha256
from itertools import accumulate, groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import event, exc

from pipeline_core import ConfigError, PermanentError, PipelineError, SideError, TransientError, Window
from pipeline_core.secrets import redact
from pipeline_sql.engines.codes import Codes
from pipeline_sql.engines.default import BETWEEN_PROBES_S, PROBES, SILENT_S, Engine
from pipeline_sql.prepared import Connected, scalar
from pipeline_sql.tables import Column, Range, Rows, Table, named, named_column

if TYPE_CHECKING:  # the record store needs no Arrow
    from pipeline_sql.loading import Loading
    from pipeline_sql.mariadb_types import MariaDbTypes
    from pipeline_sql.side import Side

_CONNECT_TIMEOUT_S = 10
_GRACE_S = 1
_OLDEST = (10, 6)  # the first that passes over locked rows
_SCHEMA_LOCK = "schema"
_PLAN_LOCK = "plan of "
_LOCKED = "whether this session holds a named lock"

# A value that does not fit is an error and never changed, 0 is no request for the next number, and no quote or escape
# means anything else than this code takes it for, whatever the server's own default is.
_SQL_MODE = "STRICT_ALL_TABLES,ERROR_FOR_DIVISION_BY_ZERO,NO_AUTO_VALUE_ON_ZERO,NO_ENGINE_SUBSTITUTION"

# What codes of the server and the driver mean to the core (https://mariadb.com/kb/en/mariadb-error-code-reference/).
_CODES = Codes(
    heals={
        "1205": "see what keeps its transaction open, or raise timeout_s",
        "1213": "another transaction was in the way",
        "1020": "another transaction was in the way",
        "1969": "make an index on the timestamp column, or raise timeout_s",
        "1317": "someone ended the query",
    },
    heals_for_all={
        "1021": "free some space on its disk",
        "1040": "the server has no more to give: wait, or raise its limits",
        "1041": "the server has no more to give: wait, or raise its limits",
        "1053": "the server is stopping",
        "1114": "free some space on its disk",
        "1203": "the server has no more to give: wait, or raise its limits",
        "1226": "the server has no more to give: wait, or raise its limits",
        "1927": "the server ended the connection",
        "2002": "check the server and the way to it",
        "2003": "check the server and the way to it",
        "2006": "check the server and the way to it",
        "2013": "check the server and the way to it",
    },
    needs_a_person={
        "1044": "grant this user the right",
        "1045": "check user and password",
        "1046": "name a database in the url",
        "1049": "create the database, or correct its name",
        "1054": "create it, or correct its name",
        "1148": "set local_infile = ON at the server, which the upload needs",
        "1142": "grant this user the right",
        "1143": "grant this user the right",
        "1146": "create it, or correct its name",
        "1227": "grant this user the right",
        "1290": "connect to a server that may be written to",
        "1698": "check user and password",
        "4166": "set local_infile = ON at the server, which the upload needs",
        "1836": "connect to a server that may be written to",
    },
)

_SLOW_READER_S = 3600  # so long the server waits for an extraction whose rows nobody takes
_LOADED_ROWS = 50_000  # written to a file at a time
_COUNTED_RANGES = 500  # in one statement
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - the server's times come without their zone
_US = timedelta(microseconds=1)

_TABLE = """
SELECT table_schema, table_name, table_type LIKE '%VIEW'
FROM information_schema.tables
WHERE table_schema = coalesce(:schema, database()) AND table_name = :name
"""
_COLUMNS = """
SELECT column_name AS name, column_type AS declared, extra AS extra,
       is_nullable = 'NO' AND column_default IS NULL AS required, character_maximum_length AS length,
       numeric_precision AS precision_, numeric_scale AS scale, datetime_precision AS fraction
FROM information_schema.columns
WHERE table_schema = :schema AND table_name = :name
ORDER BY ordinal_position
"""
# Asked apart: a subquery on this view makes the server (10.11.19) crash now and then.
_CHECKS = """
SELECT check_clause
FROM information_schema.check_constraints
WHERE constraint_schema = :schema AND table_name = :name
"""
_INDEXES = """
SELECT index_name, column_name
FROM information_schema.statistics
WHERE table_schema = :schema AND table_name = :table AND index_type = 'BTREE' AND ignored = 'NO'
ORDER BY index_name, seq_in_index
"""
_FOLLOWERS = """
SELECT DISTINCT concat(constraint_schema, '.', table_name) AS name
FROM information_schema.referential_constraints
WHERE unique_constraint_schema = :schema AND referenced_table_name = :table
  AND delete_rule IN ('CASCADE', 'SET NULL', 'SET DEFAULT')
ORDER BY name
"""
_STORAGE = """
SELECT engine
FROM information_schema.tables
WHERE table_schema = coalesce(:schema, database()) AND table_name = :name
"""
_TRANSACTIONAL = "SELECT engine FROM information_schema.engines WHERE transactions = 'YES'"

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
        return self._made()

    def _made(self, **more: Any) -> sa.Engine:
        from pymysql import converters  # noqa: PLC0415
        from pymysql.constants import FIELD_TYPE as KIND  # noqa: PLC0415

        wait_s = math.ceil(self.timeout_s)
        # Arrow parses these, many times as fast as the driver.
        as_text = {KIND.DATETIME, KIND.TIMESTAMP, KIND.DATE, KIND.TIME, KIND.DECIMAL, KIND.NEWDECIMAL}
        # Set as the connection is made: SQLAlchemy asks each new server how it quotes.
        known = {
            "connect_timeout": _CONNECT_TIMEOUT_S,
            "charset": "utf8mb4",  # whatever the URL says: the server writes what another set lacks as a question mark
            "conv": {kind: how for kind, how in converters.conversions.items() if kind not in as_text},
            "sql_mode": _SQL_MODE,
            "init_command": (
                f"SET time_zone = '+00:00', innodb_lock_wait_timeout = {wait_s}, lock_wait_timeout = {wait_s}, "
                f"net_write_timeout = {_SLOW_READER_S}, default_storage_engine = InnoDB"
            ),
        }
        patience = {} if "read_timeout" in self.url.query else {"read_timeout": _CONNECT_TIMEOUT_S}
        made = sa.create_engine(
            self.url,
            hide_parameters=True,
            # Each statement sees what was committed before it: a lock is of use only to what is read after it.
            isolation_level="READ COMMITTED",
            paramstyle="format",
            connect_args=known | patience | more.pop("connect_args", {}),
            **more,
        )
        engine = self._connecting(made)

        @event.listens_for(engine, "connect")
        def on_connect(connection: Any, record: Any) -> None:
            del record
            # What follows may take longer than to connect. The driver offers no other way to say so, nor to its socket.
            if patience:
                connection._read_timeout = None
            _probe(connection._sock)
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
    def snapshot(self) -> Iterator[sa.Connection]:
        with self.reading() as connection:
            yield connection.execution_options(isolation_level="REPEATABLE READ")

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
                f"{_CODES.heals['1205']}"
            )
        connection.info[_LOCKED] = True

    def now_us(self, connection: Connected) -> int:
        return int(scalar(connection, "SELECT CAST(UNIX_TIMESTAMP(SYSDATE(6)) * 1000000 AS SIGNED)"))

    def translate(self, error: Exception) -> PipelineError:
        cause: Any = getattr(error, "orig", None) or error
        if not isinstance(cause, self.sa.dialect.loaded_dbapi.Error) or not cause.args:
            return super().translate(error)
        said = f"{self.place}: {redact(_without_values(str(cause.args[-1])))}"
        known = _CODES.error(str(cause.args[0]), said)
        if known is not None:
            return known
        if isinstance(error, exc.DBAPIError) and error.connection_invalidated:
            return TransientError(f"{self.place}: the connection was lost", side_down=True)
        return PermanentError(said)

    # --- the connector's half -----------------------------------------------------------------------------------------

    @property
    def types(self) -> MariaDbTypes:
        from pipeline_sql.mariadb_types import MariaDbTypes  # noqa: PLC0415 - loads Arrow, which the store needs not

        return MariaDbTypes()

    @cached_property
    def _uploading(self) -> sa.Engine:
        """Connections of their own: a server may ask a client that offers `LOCAL INFILE` for any file it can read."""
        return self._made(connect_args={"local_infile": True}, poolclass=sa.NullPool)

    def session(self) -> sa.Connection:
        return self._uploading.connect()

    @contextmanager
    def transaction(self, connection: sa.Connection, *, writing: bool) -> Iterator[None]:
        with super().transaction(connection, writing=writing):
            # A worker that stands still while it holds the ledger's lock is cut off before its lease ends.
            limit_s = max(1, int(self.standstill_s)) if writing else 0
            connection.exec_driver_sql(f"SET idle_write_transaction_timeout = {limit_s}")
            yield

    def lost(self, connection: sa.Connection) -> bool:
        return super().lost(connection) or not getattr(connection.connection.driver_connection, "open", False)

    @contextmanager
    def limited(self, connection: sa.Connection) -> Iterator[None]:
        # The server ends what takes too long. One that hangs does not: so much later its connection is given up.
        driver: Any = connection.connection.driver_connection
        patience_s, driver._read_timeout = driver._read_timeout, self.timeout_s + max(self.timeout_s, _GRACE_S)
        connection.exec_driver_sql(f"SET max_statement_time = {self.timeout_s}")
        try:
            yield
        finally:
            if not self.lost(connection):
                connection.exec_driver_sql("SET max_statement_time = DEFAULT")
                driver._read_timeout = patience_s

    def fold(self, name: str) -> str:
        # Columns are the same whatever their case; whether tables are is the server's choice. Where two tables differ
        # by case alone, their publications queue.
        return name.lower()

    def schema_names(self, connection: sa.Connection) -> Sequence[str]:
        return sa.inspect(connection).get_schema_names()

    def table(self, connection: sa.Connection, schema: str | None, name: str) -> Table | None:
        row = connection.execute(sa.text(_TABLE), {"schema": schema, "name": name}).one_or_none()
        if row is None:
            return None
        schema, name, is_view = row
        of_table = {"schema": schema, "name": name}
        checks = frozenset(connection.execute(sa.text(_CHECKS), of_table).scalars())
        found = connection.execute(sa.text(_COLUMNS), of_table).mappings()
        columns = tuple(self.types.column(**each, checks=checks) for each in found)
        if not columns:
            raise SideError(f"{self.place}: table {name!r} shows this user no column; grant this user the right")
        return Table(schema, name, columns, bool(is_view))

    def check_transactional(self, connection: sa.Connection, tables: Iterable[tuple[str | None, str]]) -> None:
        safe = set(connection.exec_driver_sql(_TRANSACTIONAL).scalars())
        for schema, name in tables:
            storage = connection.execute(sa.text(_STORAGE), {"schema": schema, "name": name}).scalar_one()
            if storage not in safe:
                raise SideError(
                    f"{self.place}: table {name!r} is kept by {storage}, which cannot take back a change, so no window "
                    f"could be replaced as a whole; convert it: ALTER TABLE {name} ENGINE = InnoDB"
                )

    def _indexes(self, connection: sa.Connection, table: Table) -> list[Sequence[str | None]]:
        found = connection.execute(sa.text(_INDEXES), {"schema": table.schema, "table": table.name}).all()
        return [[column for _, column in keys] for _, keys in groupby(found, key=itemgetter(0))]

    def followers(self, connection: sa.Connection, table: Table) -> Sequence[str]:
        asked = {"schema": table.schema, "table": table.name}
        return list(connection.execute(sa.text(_FOLLOWERS), asked).scalars())

    def equals(self, column: str, value: object) -> sa.ColumnElement[bool]:
        # Text is compared without regard to case, accents and spaces at its end, as most collations have it. The plain
        # comparison stays beside the exact one, for an index.
        plain = super().equals(column, value)
        if not isinstance(value, str):
            return plain
        quoted = "`" + column.replace("`", "``") + "`"
        exact: sa.ColumnElement[str] = sa.literal_column(f"CONVERT({quoted} USING utf8mb4)")
        return sa.and_(plain, exact.collate("utf8mb4_nopad_bin") == value)

    def count_ranges(self, connection: sa.Connection, side: Side, ranges: Sequence[Range]) -> list[int]:
        if len(ranges) <= 1:
            return super().count_ranges(connection, side, ranges)
        if not side.indexed:
            cuts = sorted({end for each in ranges for end in each})
            below = self._count_below(connection, side, cuts)
            return [below[high] - below[low] for low, high in ranges]
        parts = [ranges[at : at + _COUNTED_RANGES] for at in range(0, len(ranges), _COUNTED_RANGES)]
        return [count for part in parts for count in self._count_each(connection, side, part)]

    def _count_each(self, connection: sa.Connection, side: Side, ranges: Sequence[Range]) -> list[int]:
        """Range by range, each a walk of the index, in one statement: bounds that are no constants use no index."""
        counted, at, rows, values = _written(connection, side)
        one = f"count(*) FROM {counted} WHERE {at} >= %s AND {at} < %s AND {rows}"
        query = " UNION ALL ".join(f"SELECT {place}, {one}" for place in range(len(ranges)))
        found = connection.exec_driver_sql(query, tuple(value for each in ranges for value in (*each, *values)))
        return [int(count) for _, count in sorted(map(tuple, found))]

    def _count_below(self, connection: sa.Connection, side: Side, cuts: list[Any]) -> dict[Any, int]:
        """The rows between the first cut and each one, from one reading of the whole table."""
        counted, at, rows, values = _written(connection, side)
        if isinstance(cuts[0], datetime):
            number, edges = f"TIMESTAMPDIFF(MICROSECOND, '1970-01-01', {at})", [(cut - _EPOCH) // _US for cut in cuts]
        else:
            number, edges = at, cuts
        gap = f"INTERVAL({number}, {', '.join(map(str, edges))})"
        query = f"SELECT {gap} AS gap, count(*) FROM {counted} WHERE {at} >= %s AND {at} < %s AND {rows} GROUP BY gap"  # noqa: S608 - quoted
        found = connection.exec_driver_sql(query, (cuts[0], cuts[-1], *values))
        counts = {int(place): int(number) for place, number in found}
        return dict(zip(cuts, accumulate((counts.get(n, 0) for n in range(1, len(cuts))), initial=0), strict=True))

    def selected(self, column: Column) -> sa.ColumnElement[Any]:
        # The server writes a FLOAT with six digits, and a DOUBLE with all it has.
        value = named_column(column.name)
        return value + sa.literal_column("0e0") if self.types.is_single(column) else value

    @contextmanager
    def fetching(self, connection: sa.Connection, query: sa.Select[Any]) -> Iterator[Callable[[int], Rows]]:
        from pymysql.cursors import SSCursor  # noqa: PLC0415

        # The driver's own cursor without a buffer: rows stay with the server until they are asked for.
        compiled = query.compile(connection)
        driver: Any = connection.connection.driver_connection
        with closing(driver.cursor(SSCursor)) as cursor:
            try:
                cursor.execute(str(compiled), tuple(compiled.params[name] for name in compiled.positiontup or ()))
                yield cursor.fetchmany
            finally:
                # Closing the cursor would read all rows that are left; only the end of the connection ends the query.
                result = cursor._result
                if result is not None and result.unbuffered_active:
                    result.unbuffered_active = False
                    connection.invalidate()

    def create_scratch(self, connection: sa.Connection, name: str, columns: Sequence[Column]) -> sa.TableClause:
        # What a failed upload left is replaced: a temporary table is not undone with its transaction.
        quote = connection.dialect.identifier_preparer.quote_identifier
        listed = ", ".join(f"{quote(column.name)} {self.types.scratch_type(column)}" for column in columns)
        connection.exec_driver_sql(f"CREATE OR REPLACE TEMPORARY TABLE {quote(name)} ({listed}) CHARACTER SET utf8mb4")
        return named(None, name)

    def fill(
        self,
        connection: sa.Connection,
        scratch: sa.TableClause,
        loading: Loading,
        batches: Iterable[Any],
        window: Window,
    ) -> None:
        from pipeline_sql.mariadb_types import lines  # noqa: PLC0415

        into = connection.dialect.identifier_preparer.format_table(scratch)
        driver: Any = connection.connection.driver_connection
        with tempfile.NamedTemporaryFile(prefix="pipeline-upload-") as file, driver.cursor() as cursor:
            statement = (
                f"LOAD DATA LOCAL INFILE {driver.escape(file.name)} INTO TABLE {into} CHARACTER SET binary "
                r"FIELDS TERMINATED BY '\t' ESCAPED BY '\\' LINES TERMINATED BY '\n'"
            )
            for batch in batches:
                for at in range(0, max(1, len(batch)), _LOADED_ROWS):
                    rows = batch.slice(at, _LOADED_ROWS)
                    arrays = loading.values(rows, window)
                    if len(rows):
                        file.seek(0)
                        file.truncate()
                        file.write(lines(arrays))
                        file.flush()
                        _load(cursor, statement, len(rows), loading.place)


def _probe(connected: socket.socket) -> None:
    """Lets the operating system find out that a network is lost; of these options each system has its own."""
    options = {"TCP_KEEPIDLE": SILENT_S, "TCP_KEEPINTVL": BETWEEN_PROBES_S, "TCP_KEEPCNT": PROBES}
    if connected.family in (socket.AF_INET, socket.AF_INET6):
        for name, value in options.items():
            if hasattr(socket, name):
                connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _load(cursor: Any, statement: str, rows: int, place: str) -> None:
    """Runs it. The server takes what does not fit for something else, and only warns: the data come from the client."""
    loaded = cursor.execute(statement)
    if loaded == rows and not cursor.warning_count:
        return
    cursor.execute("SHOW WARNINGS LIMIT 1")
    said = "".join(_without_values(text) for _, _, text in cursor.fetchall())
    raise PermanentError(
        f"{place}: {rows} staged rows were sent, {loaded} loaded, and the server says: {said or 'nothing'}; "
        "declare the column wider, or exclude it at the source"
    )


def _written(connection: sa.Connection, side: Side) -> tuple[str, str, str, list[Any]]:
    """Table, timestamp column and the side's rows as text, and the values of the latter: SQLAlchemy would take longer
    to build a statement of a thousand parts than the server to answer it.
    """
    preparer = connection.dialect.identifier_preparer
    rows = side.rows.compile(dialect=connection.dialect)
    values = [rows.params[name] for name in rows.positiontup or ()]
    return preparer.format_table(side.table.clause()), preparer.quote_identifier(side.timestamp.name), str(rows), values


def _without_values(text: str) -> str:
    """A message of the server without the values that it quotes."""
    return _QUOTED.sub(r"\1", text)
