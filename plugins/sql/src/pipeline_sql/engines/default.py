"""Any SQLAlchemy dialect, by plain SQL alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from datetime import date
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import event, exc

from pipeline_core import PermanentError, PipelineError, Problem, SideError, TransientError, Window
from pipeline_core.secrets import hide, redact
from pipeline_sql.prepared import Connected, Direct, Prepared, Row
from pipeline_sql.schema import fence, records
from pipeline_sql.tables import Column, Range, Rows, Table, TypedColumn, named, named_column

if TYPE_CHECKING:  # the record store needs no Arrow
    from pipeline_sql.loading import Loading
    from pipeline_sql.side import Side
    from pipeline_sql.types import Types

#: Whoever waits for an answer finds out a lost network after a minute: so many seconds of silence, and so many between
#: probes, of which so many may go unanswered. No limit on what is sent: a server may be slow to take an upload.
SILENT_S, BETWEEN_PROBES_S, PROBES = 30, 10, 3

_STANDSTILL_S = 60.0
_UNTYPED = sa.types.NullType()


_TAKE_FENCES = Prepared(
    sa.update(fence)
    .where(fence.c.id == 1)
    .values(
        last=sa.case(
            (fence.c.last >= sa.bindparam("now_us"), fence.c.last + sa.bindparam("count")),
            else_=sa.bindparam("now_us") + sa.bindparam("count") - 1,
        )
    )
)
_LAST_FENCE = Prepared(sa.select(fence.c.last).where(fence.c.id == 1))


class Engine:
    """One database, and the ways of it that differ between engines."""

    name = "default"
    #: How long a worker may be silent before another takes its window, in seconds; None where nobody claims.
    lease_s: float | None = None

    def __init__(self, url: sa.URL, *, timeout_s: float) -> None:
        if url.password:
            hide(url.password)
        self.url = url
        self.timeout_s = timeout_s
        self.sa = self._create()

    def _create(self) -> sa.Engine:
        return self._connecting(sa.create_engine(self.url, hide_parameters=True))

    def _connecting(self, engine: sa.Engine) -> sa.Engine:
        """The engine, whose errors while it connects are translated.

        What does not heal then waits for a person: no window would fare better. Drivers raise all kinds of exceptions
        for an option of the URL that they do not know.
        """

        @event.listens_for(engine, "do_connect")
        def do_connect(dialect: sa.Dialect, record: Any, arguments: Sequence[Any], options: Mapping[str, Any]) -> Any:
            del record
            try:
                return dialect.connect(*arguments, **options)
            except Exception as error:  # noqa: BLE001 - see above; each is raised again
                found = self.translate(error)
                if isinstance(found, TransientError | SideError):
                    raise found from None
                raise SideError(f"{found}; correct the url") from None

        return engine

    def prepare_store(self) -> None:
        """Called once, before the first connection, where the database is to hold the record store."""

    def store_problems(self) -> Sequence[Problem]:
        """For `doctor`, where the database holds the record store."""
        return ()

    def prepare_side(self, *, create: bool) -> None:
        """Called once, before the first connection, where the database is a side of a pipeline.

        Only where `create` is set may connecting make a database that is not there.
        """

    def dispose(self) -> None:
        """Closes every pooled connection."""
        self.sa.dispose()

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A connection in one write transaction: commits on exit, rolls back on an exception. Errors are translated."""
        with self.translated(), self.sa.begin() as connection:
            yield connection

    @contextmanager
    def directly(self) -> Iterator[Direct]:
        """One write transaction, as in `writing`, for statements that are `Prepared`: SQLAlchemy's own way through it
        takes longer than such a statement.
        """
        dialect = self.sa.dialect
        with self.translated(), closing(self.sa.raw_connection()) as connection:
            try:
                self._begin(connection)
                yield Direct(dialect, connection)
                connection.commit()  # what ends otherwise is rolled back as the pool takes the connection back
            except dialect.loaded_dbapi.Error as error:
                if dialect.is_disconnect(error, connection, None):
                    connection.invalidate(error)  # or the pool would log that it cannot be rolled back
                raise

    def _begin(self, connection: sa.PoolProxiedConnection) -> None:
        """Begins a write transaction of the store, where the driver does not do so by itself."""

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A connection for reading. Errors are translated."""
        with self.translated(), self.sa.connect() as connection:
            yield connection

    def snapshot(self) -> AbstractContextManager[sa.Connection]:
        """A connection for reading, all of whose queries see the database as the first one does.

        What a database promises no more of than that each query is one, is read like that here.
        """
        return self.reading()

    @contextmanager
    def migrating(self) -> Iterator[sa.Connection]:
        """A write transaction that one process at a time can hold: the lock under which the schema changes.

        There is none that every database knows. Here whoever makes the same a moment later fails, and looks again.
        """
        try:
            with self.writing() as connection:
                yield connection
        except PermanentError as error:
            if "already" not in str(error):
                raise
            raise TransientError(f"{error}; another worker has made it at this moment") from None

    def take_fences(self, connection: Connected, now_us: int, count: int) -> int:
        """Takes that many fences; the first of them, `max(last + 1, now_us)`. SideError where the last one is lost."""
        # The update locks the row, so the later read sees this transaction's own number.
        _TAKE_FENCES.run(connection, [{"now_us": now_us, "count": count}])
        rows = _LAST_FENCE.rows(connection, {})
        if not rows:
            raise SideError(
                f"{self.place}: table {fence.name}: found no row, expected one that holds the last fence; put it back, "
                f"with 1 as its id and the highest fence of {records.name} (0 where there is none) as its last"
            )
        last: int = rows[0]["last"]
        return last - count + 1

    def claim_at_once(self, wanted: Mapping[str, Any]) -> list[Row] | None:
        """Claims the oldest ready records in one statement and transaction; the rows as they are now.

        No row where none is ready, or where a lease has run out or a backoff is over, which a claim looks at first.
        None where the engine has no such statement.
        """
        del wanted
        return None

    def lock_plan(self, connection: sa.Connection, pipeline: str) -> None:
        """Lets one transaction at a time plan a pipeline, or count what runs of it before it claims.

        Nothing to do where there is one writer at a time anyway.
        """

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turns the driver's errors into TransientError, SideError or PermanentError, without secrets."""
        try:
            yield
        except (exc.SQLAlchemyError, self.sa.dialect.loaded_dbapi.Error) as error:
            # Not "from error": the driver's own error may quote values, or the URL with its password.
            raise self.translate(error) from None

    def translate(self, error: Exception) -> PipelineError:
        """What an error of SQLAlchemy or of the driver means to the core."""
        text = redact(str(getattr(error, "orig", None) or error).strip())
        if isinstance(error, exc.TimeoutError):
            return TransientError(f"{self.place}: no connection became free in the pool: {text}")
        if isinstance(error, exc.DBAPIError) and error.connection_invalidated:
            return TransientError(f"{self.place}: {text}", side_down=True)
        return PermanentError(f"{self.place}: {text}")

    @property
    def place(self) -> str:
        """The database in messages: not its URL, which is a secret as a whole."""
        parts = (self.url.host, self.url.database)
        return f"{self.url.get_backend_name()} {'/'.join(part for part in parts if part)}"

    def now_us(self, connection: Connected) -> int:
        """The database's clock, in microseconds UTC."""
        del connection
        return time.time_ns() // 1000

    # --- the connector's half -----------------------------------------------------------------------------------------

    @property
    def host(self) -> str | None:
        """The server's host; None where there is none."""
        return self.url.host

    @property
    def database(self) -> str | None:
        """The database's name, the same from wherever it is opened."""
        return self.url.database

    @property
    def types(self) -> Types:
        """What the database's types mean in Arrow."""
        from pipeline_sql.portable_types import PortableTypes  # noqa: PLC0415 - loads Arrow, which the store needs not

        return PortableTypes(self.sa.dialect)

    @contextmanager
    def transaction(self, connection: sa.Connection, *, writing: bool) -> Iterator[None]:
        """One transaction on a connection that lives longer than it. `writing` takes the write lock at once."""
        del writing
        with self.translated(), connection.begin():
            yield

    def session(self) -> sa.Connection:
        """A connection for uploads and the publications that follow them."""
        return self.sa.connect()

    @property
    def standstill_s(self) -> float:
        """How long a publication may do nothing, in seconds: a worker that stands still in it holds the ledger's lock.

        A lease is renewed at each third, so that the last one outlasts half of it.
        """
        return _STANDSTILL_S if self.lease_s is None else min(_STANDSTILL_S, self.lease_s / 2)

    def lost(self, connection: sa.Connection) -> bool:
        """Whether a connection, and its temporary tables with it, is gone for good."""
        return connection.invalidated or connection.closed

    @contextmanager
    def limited(self, connection: sa.Connection) -> Iterator[None]:
        """Ends a query that takes longer than the timeout, with a TransientError."""
        del connection
        yield

    def fold(self, name: str) -> str:
        """What two names of columns or tables have in common when the database takes them for the same."""
        return name

    def schema_version(self, connection: sa.Connection, schema: str | None, name: str) -> object:
        """What compares equal on one connection as long as neither the table, view nor an index of it has changed.

        Equal to nothing here: no portable SQL tells, and a table taken for unchanged could be written wrongly.
        """
        del connection, schema, name
        return object()

    def table(self, connection: sa.Connection, schema: str | None, name: str) -> Table | None:
        """The table or view of that name; None where there is none."""
        inspector = sa.inspect(connection)
        view = name in inspector.get_view_names(schema)
        if not view and not inspector.has_table(name, schema):
            return None
        columns = tuple(
            TypedColumn(
                found["name"],
                _declared(found["type"], connection.dialect),
                required=not found["nullable"] and found["default"] is None and found.get("autoincrement") is not True,
                generated="computed" in found,
                type=found["type"],
            )
            for found in inspector.get_columns(name, schema)
        )
        return Table(schema, name, columns, view)

    def table_names(self, connection: sa.Connection, schema: str | None) -> list[str]:
        """Tables and views, for messages."""
        inspector = sa.inspect(connection)
        return [*inspector.get_table_names(schema), *inspector.get_view_names(schema)]

    def schema_names(self, connection: sa.Connection) -> Sequence[str]:
        """The schemas that this user sees; none where the database's own dotted names may be no schema of these."""
        del connection
        return ()

    def check_transactional(self, connection: sa.Connection, tables: Iterable[tuple[str | None, str]]) -> None:
        """Raises SideError for one of these tables that could not take back a change. Most databases know none."""

    def indexed(self, connection: sa.Connection, table: Table, column: Column, scope: Mapping[str, Any]) -> bool:
        """Whether a range of the column can be found without reading the whole table, where the rows hold `scope`."""
        return any(leads_to(column.name, keys, scope) for keys in self._indexes(connection, table))

    def has_index(self, connection: sa.Connection, schema: str | None, name: str) -> bool:
        """Whether an index of another table has that name, where a database allows it only once."""
        del connection, schema, name
        return False

    def _indexes(self, connection: sa.Connection, table: Table) -> list[Sequence[str | None]]:
        """The columns of each index that finds ranges; None for an expression."""
        inspector = sa.inspect(connection)
        keys: list[Sequence[str | None]] = [
            inspector.get_pk_constraint(table.name, table.schema)["constrained_columns"]
        ]
        keys += [index["column_names"] for index in inspector.get_indexes(table.name, table.schema)]
        return keys

    def followers(self, connection: sa.Connection, table: Table) -> Sequence[str]:
        """The tables whose rows the database deletes or changes with those rows of the table that they refer to.

        None where it does no such thing on these connections, or where nobody here knows how to ask.
        """
        del connection, table
        return ()

    def equals(self, column: str, value: object) -> sa.ColumnElement[bool]:
        """That a column holds exactly a value of the configuration, whatever the column's collation takes for equal."""
        # Without a type, a driver sends text that fits any column: an enumeration, a UUID, a date.
        return named_column(column) == sa.literal(value.isoformat() if isinstance(value, date) else value, _UNTYPED)

    def count_ranges(self, connection: sa.Connection, side: Side, ranges: Sequence[Range]) -> list[int]:
        """The side's rows in each range `low <= value < high` of its timestamp column, in the order given."""
        value = named_column(side.timestamp.name)
        count = sa.select(sa.func.count()).select_from(side.table.clause()).where(side.rows)
        return [int(connection.execute(count.where(value >= low, value < high)).scalar_one()) for low, high in ranges]

    def selected(self, column: Column) -> sa.ColumnElement[Any]:
        """What an extraction selects for a column."""
        return named_column(column.name)

    @contextmanager
    def fetching(self, connection: sa.Connection, query: sa.Select[Any]) -> Iterator[Callable[[int], Rows]]:
        """Runs a query; yields what fetches its next rows, none of them before it is asked for."""
        with closing(connection.execution_options(stream_results=True).execute(query)) as result:
            yield result.fetchmany

    def create_scratch(self, connection: sa.Connection, name: str, columns: Sequence[Column]) -> sa.TableClause:
        """An empty temporary table with columns of those names, in the order given, seen by this session alone."""
        quote = connection.dialect.identifier_preparer.quote_identifier
        listed = ", ".join(f"{quote(column.name)} {column.declared}" for column in columns)
        connection.exec_driver_sql(f"CREATE TEMPORARY TABLE {quote(name)} ({listed})")
        return named(None, name)

    def fill(
        self,
        connection: sa.Connection,
        scratch: sa.TableClause,
        loading: Loading,
        batches: Iterable[Any],
        window: Window,
    ) -> None:
        """Writes Arrow batches into scratch."""
        for batch in batches:
            for rows in loading.rows(batch, window):
                self.insert_rows(connection, scratch, loading.columns, rows)

    def insert_rows(
        self, connection: sa.Connection, scratch: sa.TableClause, columns: Sequence[Column], rows: Rows
    ) -> None:
        """Inserts many rows of driver values."""
        names = [column.name for column in columns]
        into = sa.insert(named(scratch.schema, scratch.name, *names))
        connection.execute(into, [dict(zip(names, row, strict=True)) for row in rows])


def leads_to(column: str, keys: Sequence[str | None], scope: Container[str]) -> bool:
    """Whether an index on these columns finds a range of one of them, those of the scope being known."""
    return column in keys and all(key in scope for key in keys[: keys.index(column)])


def _declared(found: sa.types.TypeEngine[Any], dialect: sa.Dialect) -> str:
    """A type as the dialect spells it; of one that SQLAlchemy does not know, its name in Python."""
    try:
        return found.compile(dialect=dialect)
    except exc.CompileError:
        return str(found)
