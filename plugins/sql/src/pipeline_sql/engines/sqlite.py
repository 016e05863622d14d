"""SQLite: one writer at a time, and a file that every process of the host shares."""

from __future__ import annotations

import json
import random
import sqlite3
import string
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy import event, exc

from pipeline_core import ConfigError, PermanentError, PipelineError, Problem, TransientError
from pipeline_core.errors import SideError
from pipeline_core.secrets import redact
from pipeline_sql.engines.codes import Codes
from pipeline_sql.engines.default import Engine
from pipeline_sql.tables import Column, Range, Rows, Table, named, named_column

if TYPE_CHECKING:
    from pipeline_sql.side import Side
    from pipeline_sql.types import Types

# What SQLite's own result codes mean to the core, by the first part of their name, and what a person should do.
_CODES = Codes(
    heals={
        "SQLITE_BUSY": "another process holds the write lock; see what keeps its transaction open",
        "SQLITE_LOCKED": "another connection holds the lock; see what keeps its transaction open",
    },
    heals_for_all={
        "SQLITE_FULL": "free some space on its disk",
        "SQLITE_IOERR": "check the disk, or the network drive, that holds it",
    },
    needs_a_person={
        "SQLITE_CANTOPEN": "check that its folder exists and that this user may read and write there",
        "SQLITE_READONLY": "give this user the right to write the file and its folder",
        "SQLITE_PERM": "give this user the right to read and write the file",
        "SQLITE_NOTADB": "the file is no SQLite database: check the path, or move the file away",
        "SQLITE_CORRUPT": "the file is damaged: restore a copy, or move it away",
    },
)
_ABSENT = ("no such table", "no such column")

_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
# Each checkpoint waits for the disk twice, and a claim writes seven pages; four times SQLite's own choice, 16 MB.
_PAGES_A_CHECKPOINT = 4_000
_STEPS_BETWEEN_LOOKS = 100_000  # of the database's virtual machine: about a millisecond


class SqliteEngine(Engine):
    """SQLite by Python's own driver, with explicit transactions: a writer locks before it reads."""

    name = "sqlite"

    def __init__(self, url: sa.URL, *, timeout_s: float) -> None:
        super().__init__(url, timeout_s=timeout_s)
        self._writer = self.sa.execution_options(writing=True)

    def _create(self) -> sa.Engine:
        engine = sa.create_engine(
            self.url, hide_parameters=True, connect_args={"timeout": self.timeout_s, "check_same_thread": False}
        )

        # The driver's implicit transactions begin too late and lock too late: see "Serializable isolation" in
        # SQLAlchemy's page on the pysqlite dialect.
        @event.listens_for(engine, "connect")
        def on_connect(connection: Any, record: Any) -> None:
            del record
            connection.isolation_level = None

        @event.listens_for(engine, "begin")
        def on_begin(connection: sa.Connection) -> None:
            driver: Any = connection.connection.driver_connection
            if connection.get_execution_options().get("writing"):
                self._lock(driver)
            else:
                driver.execute("BEGIN")

        return engine

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        with self.translated(), self._writer.begin() as connection:
            yield connection

    def _begin(self, connection: sa.PoolProxiedConnection) -> None:
        driver: Any = connection.driver_connection
        self._lock(driver)

    @contextmanager
    def migrating(self) -> Iterator[sa.Connection]:
        # One at a time in the whole file: what is there already was not made a moment ago.
        with self.writing() as connection:
            yield connection

    def _lock(self, driver: sqlite3.Connection, statement: str = "BEGIN IMMEDIATE") -> None:
        """Runs a statement that takes the write lock, waiting for it up to the timeout.

        SQLite's own waiting sleeps longer with every try, so that among many writers the newest wins and the oldest
        starves; short random sleeps give each the same chance.
        """
        deadline = time.monotonic() + self.timeout_s
        driver.execute("PRAGMA busy_timeout = 0")
        try:
            while True:
                try:
                    driver.execute(statement)
                    return  # noqa: TRY300 - the end of a loop, not of a try
                except sqlite3.OperationalError as error:
                    if not error.sqlite_errorname.startswith("SQLITE_BUSY") or time.monotonic() >= deadline:
                        raise
                    time.sleep(random.uniform(0.000_1, 0.003))  # noqa: S311 - no secret depends on it
        finally:
            driver.execute(f"PRAGMA busy_timeout = {int(self.timeout_s * 1000)}")

    def prepare_store(self) -> None:
        self._make_folder()

        # Only the store's own file is switched; the file of a source or target stays as its owner set it. In WAL mode
        # readers and the writer do not wait for each other, and synchronous = NORMAL saves an fsync a transaction. A
        # power cut may then lose the last transactions, never the file: such a window is counted again, and its rows
        # are guarded by the target's ledger, not by the store.
        @event.listens_for(self.sa, "connect")
        def on_connect(connection: Any, record: Any) -> None:
            del record
            self._lock(connection, "PRAGMA journal_mode = WAL")
            if connection.execute("PRAGMA journal_mode").fetchone() == ("wal",):
                connection.execute("PRAGMA synchronous = NORMAL")
                connection.execute(f"PRAGMA wal_autocheckpoint = {_PAGES_A_CHECKPOINT}")

    def store_problems(self) -> Sequence[Problem]:
        path = Path(self.url.database or "")
        if path.is_absolute() or str(path).startswith("file:"):
            return ()
        what = f"{self.place}: begins in the working directory, and in another one no run finds what was verified"
        return [Problem(what, f"give its whole path: sqlite:///{path.absolute()}", advice=True)]

    def _make_folder(self) -> None:
        path = self.url.database
        if not path or path == ":memory:" or self.url.query.get("mode") == "memory":
            raise ConfigError(
                f"url: found {self.place}, an in-memory database that only one thread could see; "
                "expected a file, such as sqlite:////var/lib/pipeline/records.db"
            )
        if path.startswith("file:"):
            return
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SideError(
                f"{self.place}: its folder {str(Path(path).parent)!r} cannot be made: {error.strerror}; "
                "choose another path, or make the folder"
            ) from None

    def translate(self, error: Exception) -> PipelineError:
        cause = getattr(error, "orig", None) or error
        code = getattr(cause, "sqlite_errorname", "")
        text = redact(str(cause))
        waited = f", after waiting {self.timeout_s:g} s" if code.startswith(tuple(_CODES.heals)) else ""
        known = _CODES.error(code, f"{self.place}: {text}{waited}")
        if known is not None:
            return known
        if text.startswith(_ABSENT):
            return SideError(f"{self.place}: {text}; create it, or correct its name")
        return super().translate(error)

    # --- the connector's half -----------------------------------------------------------------------------------------

    def prepare_side(self, *, create: bool) -> None:
        path = self.url.database
        if create or not path or path == ":memory:" or path.startswith("file:"):
            return

        # Connecting to a path makes the file: a misspelt one would be an empty database.
        @event.listens_for(self.sa, "do_connect")
        def do_connect(dialect: Any, record: Any, arguments: list[Any], options: dict[str, Any]) -> None:
            del dialect, record
            if not Path(path).exists():
                raise SideError(f"{self.place}: found no such file; correct the url, or put the database there")
            arguments[:] = [f"file:{quote(str(Path(path).absolute()))}?mode=rw"]
            options["uri"] = True

    @property
    def database(self) -> str | None:
        path = self.url.database
        return path if not path or path == ":memory:" or path.startswith("file:") else str(Path(path).absolute())

    @property
    def types(self) -> Types:
        from pipeline_sql.sqlite_types import SqliteTypes  # noqa: PLC0415 - loads Arrow, which the record store needs not

        return SqliteTypes()

    @contextmanager
    def transaction(self, connection: sa.Connection, *, writing: bool) -> Iterator[None]:
        connection.execution_options(writing=writing)
        with super().transaction(connection, writing=writing):
            yield

    @contextmanager
    def limited(self, connection: sa.Connection) -> Iterator[None]:
        driver: Any = connection.connection.driver_connection
        deadline = time.monotonic() + self.timeout_s
        driver.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS_BETWEEN_LOOKS)
        try:
            yield
        except exc.OperationalError as error:
            if getattr(error.orig, "sqlite_errorname", "") != "SQLITE_INTERRUPT":
                raise
            raise TransientError(
                f"{self.place}: a query took longer than timeout_s = {self.timeout_s:g}; "
                "make an index on the timestamp column, or raise timeout_s"
            ) from None
        finally:
            driver.set_progress_handler(None, 0)

    def fold(self, name: str) -> str:
        # SQLite folds the letters of ASCII and no others.
        return name.translate(_LOWER)

    def schema_version(self, connection: sa.Connection, schema: str | None, name: str) -> object:
        del schema, name
        # Of the file, as the transaction begun here will see it to its end; temporary tables do not count in it.
        return connection.exec_driver_sql("PRAGMA schema_version").scalar_one()

    def table(self, connection: sa.Connection, schema: str | None, name: str) -> Table | None:
        # Pragmas answer from what the connection last knew of the schema; a query looks whether it has changed since.
        connection.exec_driver_sql("SELECT 1 FROM sqlite_master LIMIT 1").all()
        row = connection.execute(
            sa.text(
                "SELECT schema, name, type FROM pragma_table_list WHERE name = :name COLLATE NOCASE "
                "AND schema = coalesce(:schema, 'main') COLLATE NOCASE"
            ),
            {"name": name, "schema": schema},
        ).one_or_none()
        if row is None:
            return None
        found = connection.execute(
            sa.text('SELECT name, type, "notnull", dflt_value, pk, hidden FROM pragma_table_xinfo(:name, :schema)'),
            {"name": row.name, "schema": row.schema},
        ).all()
        keys = sum(each.pk > 0 for each in found)
        columns = tuple(
            Column(
                each.name,
                each.type,
                # A lone INTEGER PRIMARY KEY fills itself.
                required=bool(each.notnull)
                and each.dflt_value is None
                and not (each.pk and keys == 1 and each.type.upper() == "INTEGER"),
                generated=each.hidden in (2, 3),
            )
            for each in found
            if each.hidden != 1
        )
        return Table(row.schema, row.name, columns, row.type == "view")

    def table_names(self, connection: sa.Connection, schema: str | None) -> list[str]:
        listed = sa.text(
            "SELECT name FROM pragma_table_list WHERE schema = coalesce(:schema, 'main') AND name NOT LIKE 'sqlite_%'"
        )
        return list(connection.execute(listed, {"schema": schema}).scalars())

    def has_index(self, connection: sa.Connection, schema: str | None, name: str) -> bool:
        master = named(schema, "sqlite_master")
        found = sa.select(sa.literal(1)).select_from(master).where(named_column("name").collate("NOCASE") == name)
        return connection.execute(found).first() is not None

    def indexed(self, connection: sa.Connection, table: Table, column: Column, scope: Mapping[str, Any]) -> bool:
        # Asked of the planner itself: it knows row ids, partial indexes, collations and the table behind a view.
        value = named_column(column.name)
        held = [self.equals(name, each) for name, each in scope.items()]
        query = sa.select(sa.func.count()).select_from(table.clause()).where(value >= "0", value < "1", *held)
        compiled = query.compile(connection)
        values = tuple(compiled.params[name] for name in compiled.positiontup or ())
        # The driver keeps statements by their text, and a kept plan would outlive the index it was made for.
        version = self.schema_version(connection, table.schema, table.name)
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled} /* {version} */", values).all()
        ranged = any(">?" in step.detail for step in plan)  # and not the scope's columns alone
        return ranged and not any(step.detail.startswith("SCAN") for step in plan)

    def equals(self, column: str, value: object) -> sa.ColumnElement[bool]:
        # A column may be declared COLLATE NOCASE.
        if isinstance(value, str):
            return named_column(column).collate("BINARY") == value
        return super().equals(column, value)

    def count_ranges(self, connection: sa.Connection, side: Side, ranges: Sequence[Range]) -> list[int]:
        if not ranges:
            return []
        if side.indexed:
            # Written out, for SQLAlchemy takes longer to build such a query than SQLite to answer it.
            preparer = connection.dialect.identifier_preparer
            counted = preparer.format_table(side.table.clause())
            at = preparer.quote_identifier(side.timestamp.name)
            rows = side.rows.compile(dialect=connection.dialect)
            values = [rows.params[name] for name in rows.positiontup or ()]
            low, high = (f"json_extract(pipeline_range.value, '$[{end}]')" for end in (0, 1))
            query = (
                f"SELECT (SELECT count(*) FROM {counted} WHERE {at} >= {low} AND {at} < {high} AND {rows}) "  # noqa: S608 - quoted
                "FROM json_each(?) AS pipeline_range ORDER BY pipeline_range.key"
            )
            return list(connection.exec_driver_sql(query, (*values, json.dumps(ranges))).scalars())
        # One pass over the table, and no sorting of its rows, as GROUP BY would.
        cuts = sorted({cut for both in ranges for cut in both})
        driver: Any = connection.connection.driver_connection
        driver.create_aggregate("pipeline_tally", 1, partial(_Tally, cuts))
        value = named_column(side.timestamp.name)
        tally = sa.select(sa.func.pipeline_tally(value)).select_from(side.table.clause()).where(side.rows)
        text = connection.execute(tally.where(value >= cuts[0], value < cuts[-1])).scalar_one()
        counts = [0] * (len(cuts) - 1) if text is None else json.loads(text)  # None: the function met no row
        before = dict(zip(cuts, accumulate(counts, initial=0), strict=True))
        return [before[high] - before[low] for low, high in ranges]

    @contextmanager
    def fetching(self, connection: sa.Connection, query: sa.Select[Any]) -> Iterator[Callable[[int], Rows]]:
        # The driver's own rows: SQLAlchemy would wrap each of them.
        with closing(connection.execute(query)) as result:
            try:
                yield result.cursor.fetchmany
            except sqlite3.OperationalError as error:
                what, quoted, _ = str(error).partition(" with text ")
                if not quoted:
                    raise
                raise PermanentError(f"{self.place}: {what}; correct the row, or exclude the column") from None

    def create_scratch(self, connection: sa.Connection, name: str, columns: Sequence[Column]) -> sa.TableClause:
        # No declared types: a value lies in scratch as it came, and only the target's column may convert it.
        scratch = named("temp", name)
        preparer = connection.dialect.identifier_preparer
        listed = ", ".join(preparer.quote_identifier(column.name) for column in columns)
        connection.exec_driver_sql(f"CREATE TABLE {preparer.format_table(scratch)} ({listed})")
        return scratch

    def insert_rows(
        self, connection: sa.Connection, scratch: sa.TableClause, columns: Sequence[Column], rows: Rows
    ) -> None:
        # The driver's own executemany: SQLAlchemy would make a mapping of every row.
        driver: Any = connection.connection.driver_connection
        into = connection.dialect.identifier_preparer.format_table(scratch)
        driver.executemany(f"INSERT INTO {into} VALUES ({', '.join('?' * len(columns))})", rows)  # noqa: S608 - quoted


class _Tally:
    """Counts values between sorted cuts: an aggregate function, whose result is a JSON list of one count a gap."""

    def __init__(self, cuts: list[Any]) -> None:
        self._cuts = cuts
        self._counts = [0] * (len(cuts) - 1)
        self._gap, self._run = 0, 0
        self._low, self._high = cuts[0], cuts[1]

    def step(self, value: Any) -> None:
        # Rows lie mostly in order of time, so nearly every one falls where the last one fell.
        if self._low <= value < self._high:
            self._run += 1
            return
        self._counts[self._gap] += self._run
        self._gap, self._run = bisect_right(self._cuts, value) - 1, 1
        self._low, self._high = self._cuts[self._gap], self._cuts[self._gap + 1]

    def finalize(self) -> str:
        self._counts[self._gap] += self._run
        return json.dumps(self._counts)
