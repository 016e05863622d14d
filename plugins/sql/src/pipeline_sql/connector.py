"""A table of a SQL database as the source or target of a pipeline.

What differs between databases is asked of the `Engine`; how the timestamp column stores instants, of `Timestamps`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from itertools import chain, count
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import sqlalchemy as sa

from pipeline_core import (
    Batch,
    Batches,
    Claim,
    ExtractRequest,
    Load,
    PermanentError,
    PipelineError,
    Problem,
    Publication,
    SideError,
    Source,
    Target,
    TransientError,
    Window,
)
from pipeline_core.contracts import target_names
from pipeline_core.errors import nearest
from pipeline_core.ledger import Adoption, Entry, scope_of, scope_text
from pipeline_sql.ddl import add_column, create_index, create_table, printed
from pipeline_sql.engines.default import Engine
from pipeline_sql.extraction import Extraction
from pipeline_sql.loading import Loading, declared, plan, timestamp_of
from pipeline_sql.publication import Scratch, SqlPublication
from pipeline_sql.scope import check_named, condition, resolved
from pipeline_sql.side import Side
from pipeline_sql.tables import Column, Table, named_column, split
from pipeline_sql.target_ledger import TargetLedger

if TYPE_CHECKING:
    from pipeline_sql.settings import SqlSettings

_SEEN = "the table, and the version of the schema it was seen in"


class SqlConnector(Source, Target):
    """One table; counts, extracts and loads. Opened by `SqlSettings.open`.

    Scratch is a temporary table, so one session lasts from an upload to its publication; all else takes a connection
    of its own for as long as it runs.
    """

    def __init__(self, settings: SqlSettings, engine: Engine) -> None:
        self._settings = settings
        self._engine = engine
        self._schema, self._name = split(settings.table)
        self._place = f"{engine.place}, table {settings.table!r}"
        self._form_checked = False
        self._ledger_ready = False
        self._samples: dict[str, object] = {}
        self._session: sa.Connection | None = None
        self._scratch: dict[tuple[str, Window, int], Scratch] = {}
        self._numbers = count(1)
        scope = scope_of(settings.scope, engine.fold)
        self._ledger = TargetLedger(settings.ledger, self._schema, engine.fold(self._name), scope, self._place)

    def close(self) -> None:
        """Drops scratch and closes every connection."""
        self._scratch.clear()
        try:
            self._end_session()
        finally:
            self._engine.dispose()

    @property
    def identity(self) -> Mapping[str, str]:
        url = self._engine.url
        settings = self._settings
        given = {
            "technology": url.get_backend_name(),
            "host": self._engine.host,
            "port": url.port,
            "database": self._engine.database,
            "table": settings.table,
            "timestamp_column": settings.timestamp_column,
            "timestamp_timezone": settings.timestamp_timezone,
            "timestamp_unit": settings.timestamp_unit,
            "scope": scope_text(scope_of(settings.scope)) if settings.scope else None,
            "where": settings.where,
        }
        return {name: str(value) for name, value in given.items() if value is not None}

    @property
    def naive_timezone(self) -> str | None:
        return self._settings.timestamp_timezone

    # --- counting -----------------------------------------------------------------------------------------------------

    def count(self, window: Window) -> int:
        return self.count_many([window])[0]

    def count_many(self, windows: Sequence[Window]) -> Sequence[int]:
        with self._engine.reading() as connection, self._engine.limited(connection):
            side = self._side_of(connection)
            if side is None:
                return [0] * len(windows)
            self._check_form(connection, side)
            ranges = [side.ranges(window) for window in windows]
            counts = iter(self._engine.count_ranges(connection, side, [each for several in ranges for each in several]))
            return [sum(next(counts) for _ in several) for several in ranges]

    def excluded(self) -> int:
        with self._engine.reading() as connection, self._engine.limited(connection):
            side = self._side_of(connection)
            return 0 if side is None else self._excluded(connection, side)

    def _excluded(self, connection: sa.Connection, side: Side) -> int:
        value = named_column(side.timestamp.name)
        low, high = side.timestamps.limits
        if all(map(side.timestamps.check, self._ends(connection, side))):
            # Between two well-formed ends nothing can hide: a value written otherwise lies in some window of the span.
            outside = [value.is_(None), value < low, value >= high]
            conditions = outside if side.indexed else [sa.or_(*outside)]
        else:
            conditions = [side.timestamps.strays(value)]
        return sum(self._count_where(connection, side, condition) for condition in conditions)

    def _count_where(self, connection: sa.Connection, side: Side, condition: sa.ColumnElement[bool]) -> int:
        counted = sa.select(sa.func.count()).select_from(side.table.clause()).where(side.rows, condition)
        return int(connection.execute(counted).scalar_one())

    def _check_form(self, connection: sa.Connection, side: Side) -> None:
        """Raises SideError where the settings misread the column, as far as a cheap look at its values can tell."""
        if not self._form_checked:
            for value in self._ends(connection, side) if side.indexed else self._any(connection, side):
                side.timestamps.check(value)
            self._form_checked = True

    def _ends(self, connection: sa.Connection, side: Side) -> list[Any]:
        """The least and the greatest timestamp as stored; none where there is no row."""
        value = named_column(side.timestamp.name)
        queries = [self._inside(side).order_by(order) for order in (value, value.desc())]
        return [end for query in queries for end in connection.execute(query).scalars()]

    def _any(self, connection: sa.Connection, side: Side) -> list[Any]:
        """Some timestamp as stored."""
        return list(connection.execute(self._inside(side)).scalars())

    def _inside(self, side: Side) -> sa.Select[Any]:
        value = named_column(side.timestamp.name)
        low, high = side.timestamps.limits
        return sa.select(value).select_from(side.table.clause()).where(value >= low, value < high).limit(1)

    # --- the table ----------------------------------------------------------------------------------------------------

    def _side_of(self, connection: sa.Connection) -> Side | None:
        """The table, as `_look` finds it; it looks again only after the schema has changed."""
        version = self._engine.schema_version(connection, self._schema, self._name)
        # Kept with the connection: another one may have opened another file of the same name.
        seen: tuple[object, Side | None] | None = connection.info.get(_SEEN)
        if seen is None or seen[0] != version:
            seen = connection.info[_SEEN] = version, self._look(connection)
        return seen[1]

    def _look(self, connection: sa.Connection) -> Side | None:
        """The table; None while it is missing and `create` is set. Raises SideError for any other misfit."""
        engine, settings = self._engine, self._settings
        table = engine.table(connection, self._schema, self._name)
        if table is None:
            self._check_schema(connection)
            if settings.create:
                return None
            raise SideError(
                f"{self._place}: no such table ({nearest(self._name, engine.table_names(connection, self._schema))}); "
                "correct its name, or if it is the target, set create = true"
            )
        timestamp = _column(settings.timestamp_column, table, engine)
        if timestamp is None:
            raise SideError(
                f"{self._place}: it has no timestamp column {settings.timestamp_column!r} "
                f"({nearest(settings.timestamp_column, [c.name for c in table.columns])}); correct timestamp_column"
            )
        timestamps = engine.types.timestamps(
            f"{self._place}, column {timestamp.name!r}", timestamp, settings.timestamp_timezone, settings.timestamp_unit
        )
        scope = resolved(settings.scope, table, engine, self._place)
        rows = condition(scope, settings.where, engine)
        side = Side(table, timestamp, timestamps, engine.indexed(connection, table, timestamp, scope), scope, rows)
        if settings.where is not None:
            self._check_where(connection, side, settings.where)
        return side

    def _check_schema(self, connection: sa.Connection) -> None:
        """Raises SideError where the schema is missing too, in which no table can be made."""
        known = self._engine.schema_names(connection)
        if self._schema is not None and known and self._engine.fold(self._schema) not in map(self._engine.fold, known):
            raise SideError(
                f"{self._place}: no such schema ({nearest(self._schema, known)}); correct its name, or make the schema"
            )

    def _check_where(self, connection: sa.Connection, side: Side, where: str) -> None:
        """Raises SideError where `where` is not one condition on the table: bare too, so that no bracket ends ours."""
        bare: sa.ColumnElement[Any] = sa.literal_column(f"CASE WHEN {where}\n THEN 1 END")
        try:
            with self._engine.translated():
                connection.execute(sa.select(bare).select_from(side.table.clause()).where(side.rows).limit(0))
        except PermanentError as error:
            raise SideError(f"{self._place}: where is no condition on it: {error}; correct it") from None

    def problems(self) -> Iterable[Problem]:
        try:
            with self._engine.reading() as connection:
                side = self._side_of(connection)
                if side is not None:
                    self._check_form(connection, side)
                    yield from self._findings(connection, side)
        except PipelineError as error:
            what, _, remedy = str(error).rpartition("; ")
            yield Problem(what, remedy)

    def _findings(self, connection: sa.Connection, side: Side) -> Iterator[Problem]:
        table, timestamp = side.table, side.timestamp
        if not side.indexed:
            what = "view" if table.view else "table"
            yield Problem(
                f"{self._place}: no index begins with {timestamp.name!r}, so each count reads the whole {what}",
                "index that column in the table behind the view"
                if table.view
                else printed(self._index_ddl(connection, side), connection.dialect),
                advice=True,
            )
        followers = self._engine.followers(connection, table)
        if followers:
            yield Problem(
                f"{self._place}: rows of {followers} refer to it ON DELETE CASCADE or SET; where it is a target, they "
                "go or change with the rows of a window that is loaded again",
                "on PostgreSQL declare those references NO ACTION DEFERRABLE INITIALLY DEFERRED, for they are checked "
                "when the rows are back; elsewhere drop them",
                advice=True,
            )
        value = named_column(timestamp.name)
        missing = self._count_where(connection, side, value.is_(None))
        if missing:
            yield Problem(
                f"{self._place}: {missing} rows have no {timestamp.name!r} and belong to no window",
                "fill the column, and declare it NOT NULL",
            )
        strays = self._count_where(connection, side, side.timestamps.strays(value)) - missing
        if strays:
            yield Problem(
                f"{self._place}: {strays} rows hold a {timestamp.name!r} that is not well formed",
                "correct them; docs/decisions/0003-sqlite-timestamps.md lists the accepted forms",
            )

    def _index_ddl(self, connection: sa.Connection, side: Side) -> str:
        return self._create_index(connection, side.table.schema, side.table.name, side.timestamp.name)

    def _create_index(self, connection: sa.Connection, schema: str | None, name: str, column: str) -> str:
        taken = partial(self._engine.has_index, connection, schema)
        return create_index(schema, name, column, connection.dialect, taken)

    # --- extraction ---------------------------------------------------------------------------------------------------

    def extract(self, request: ExtractRequest) -> Batches:
        with self._engine.reading() as connection:
            side = self._side_of(connection)
            if side is None:
                raise SideError(f"{self._place}: no such table; create = true makes a target's table, not a source's")
            self._check_form(connection, side)
            extraction = self._extraction(connection, side, request.exclude)
            listed = [self._engine.selected(column) for column in extraction.columns]
            query = sa.select(*listed).select_from(side.table.clause())
            queries = [query.where(condition) for condition in side.conditions(request.window)]
            with ExitStack() as results:
                fetches = (results.enter_context(self._engine.fetching(connection, each)) for each in queries)
                yield from extraction.batches(fetches, request.window, request.batch_rows)

    def _extraction(self, connection: sa.Connection, side: Side, exclude: frozenset[str]) -> Extraction:
        columns = self._wanted(side, exclude)
        types = self._engine.types
        arrow: dict[str, pa.DataType] = {}
        for column in columns:
            if column != side.timestamp:
                sample = self._sample(connection, side, column) if types.needs_sample(column) else None
                kind = types.arrow(column, sample)
                if kind is None:
                    raise SideError(
                        f"{self._place}, column {column.name!r}: its declared type {column.declared!r} is not known; "
                        "exclude the column, or declare a type that the database documents"
                    )
                arrow[column.name] = kind
        return Extraction(self._place, columns, side.timestamp, side.timestamps, types, arrow)

    def _wanted(self, side: Side, exclude: frozenset[str]) -> list[Column]:
        excluded = set()
        for name in sorted(exclude):
            column = _column(name, side.table, self._engine)
            if column is None:
                known = [each.name for each in side.table.columns]
                raise SideError(
                    f"{self._place}: exclude names no column of it: {name!r} ({nearest(name, known)}); "
                    "correct exclude under [columns]"
                )
            if column == side.timestamp:
                raise SideError(
                    f"{self._place}: exclude names the timestamp column {name!r}, which every row needs; take it out "
                    "of exclude under [columns]"
                )
            excluded.add(column)
        return [column for column in side.table.columns if column not in excluded]

    def _sample(self, connection: sa.Connection, side: Side, column: Column) -> object:
        """The column's first value that is not null. Kept, so that every window gets the same schema."""
        if column.name not in self._samples:
            value = named_column(column.name)
            first = sa.select(value).select_from(side.table.clause()).where(value.is_not(None)).limit(1)
            self._samples[column.name] = connection.execute(first).scalar()
        return self._samples[column.name]

    # --- upload -------------------------------------------------------------------------------------------------------

    def upload(self, load: Load) -> None:
        """Copies the staged rows into a temporary table; makes the ledger, and with `create` the table, where missing.

        Raises PermanentError for a staged column or value that the table cannot hold, SideError for a table that no
        row can be written to, or whose timestamp or scope no staged column becomes.
        """
        self.discard(load.claim)
        with closing(_staged(load)) as batches:
            first = next(batches, None)
            if first is None:
                raise PermanentError(f"{self._place}: found no staged batch at all, expected at least an empty one")
            side, loading = self._prepare(first.schema, load)
            self._fill(load, side, loading, chain([first], batches))

    def _prepare(self, schema: pa.Schema, load: Load) -> tuple[Side, Loading]:
        """The table, made if it is missing, and where each staged column goes. Nothing is locked afterwards."""
        engine = self._engine
        names = target_names(schema.names, load.columns, self._place, engine.fold)
        with engine.reading() as connection:
            side = self._side_of(connection)
            self._check_writable(side)
            self._ledger_ready = self._ledger_ready or self._ledger.ready(connection)
        known = set() if side is None else {engine.fold(column.name) for column in side.table.columns}
        adding = self._settings.new_columns == "add" and any(engine.fold(name) not in known for name in names)
        if side is None or adding or not self._ledger_ready:
            with engine.migrating() as connection:
                for statement in self._missing(connection, schema, names):
                    connection.exec_driver_sql(statement)
                self._ledger.prepare(connection)
                # Not kept: what this transaction makes may yet be rolled back, and its version given to another schema.
                side = self._look(connection)
            self._ledger_ready = True
        if side is None:
            raise PermanentError(f"{self._place}: made the table, and cannot find it")
        with engine.reading() as connection:
            engine.check_transactional(connection, [(side.table.schema, side.table.name), *self._ledger.tables])
            self._check_form(connection, side)
        return side, plan(schema, names, side, engine, self._place, ignore=self._settings.new_columns == "ignore")

    def _check_writable(self, side: Side | None) -> None:
        if self._settings.where is not None:
            raise SideError(f"{self._place}: where limits a source only; limit a target by scope")
        if side is not None and side.table.view:
            raise SideError(f"{self._place}: it is a view, which no row can be written to; name the table behind it")

    def _missing(self, connection: sa.Connection, schema: pa.Schema, names: Sequence[str]) -> list[str]:
        """The statements that make what rows of a staged schema need and do not find: ledger, table, index, columns."""
        engine, dialect = self._engine, connection.dialect
        ledger = self._ledger.missing(connection)
        table = engine.table(connection, self._schema, self._name)
        if table is None:
            self._check_schema(connection)
            columns = self._new_table(schema, names)
            index = self._create_index(connection, self._schema, self._name, self._timestamp_of(names))
            return [*ledger, create_table(self._schema, self._name, columns, dialect), index]
        if self._settings.new_columns != "add":
            return ledger
        known = {engine.fold(column.name) for column in table.columns}
        new = [at for at, name in enumerate(names) if engine.fold(name) not in known]
        added = [declared(schema.field(at), names[at], engine, self._place) for at in new]
        return [*ledger, *(add_column(self._schema, self._name, column, dialect) for column in added)]

    def _new_table(self, schema: pa.Schema, names: Sequence[str]) -> list[Column]:
        """The columns of a table to be made: the timestamp column is declared by the settings, not by Arrow."""
        engine, settings = self._engine, self._settings
        timestamp = self._timestamp_of(names)
        check_named(settings.scope, names, engine, self._place)
        as_set = engine.types.timestamp_declaration(settings.timestamp_timezone, settings.timestamp_unit)
        return [
            Column(name, as_set) if name == timestamp else declared(field, name, engine, self._place)
            for field, name in zip(schema, names, strict=True)
        ]

    def _timestamp_of(self, names: Sequence[str]) -> str:
        return timestamp_of(names, self._settings.timestamp_column, self._engine, self._place)

    def ddl(self, rows: Batch, columns: Mapping[str, str]) -> Sequence[str]:
        schema = pa.RecordBatchReader.from_stream(rows).schema
        names = target_names(schema.names, columns, self._place, self._engine.fold)
        with self._engine.reading() as connection:
            # Whoever runs the statements need not have set `create`.
            found = self._engine.table(connection, self._schema, self._name)
            side = None if found is None else self._side_of(connection)
            self._check_writable(side)
            statements = self._missing(connection, schema, names)
            if side is not None:
                self._engine.check_transactional(connection, [(side.table.schema, side.table.name)])
                # What `new_columns` adds has no place yet.
                plan(schema, names, side, self._engine, self._place, ignore=self._settings.new_columns != "error")
                statements += [] if side.indexed else [self._index_ddl(connection, side)]
            return [printed(statement, connection.dialect) for statement in statements]

    def _fill(self, load: Load, side: Side, loading: Loading, batches: Iterable[pa.RecordBatch]) -> None:
        session = self._session = self._connect() if self._session is None else self._session
        name = f"pipeline_scratch_{next(self._numbers)}"
        # The transaction touches temporary tables alone, so it locks nothing that others see.
        with self._engine.transaction(session, writing=False):
            table = self._engine.create_scratch(session, name, loading.columns)
            self._engine.fill(session, table, loading, batches, load.window)
        claim = load.claim
        self._scratch[claim.record.pipeline, claim.window, claim.fence] = Scratch(
            load.staged.key, side, table, loading.columns
        )

    def _connect(self) -> sa.Connection:
        with self._engine.translated():
            return self._engine.session()

    def discard(self, claim: Claim) -> None:
        if self._session is not None and self._engine.lost(self._session):
            self._scratch.clear()  # it went with the session
            self._end_session()
        of_window = [key for key in self._scratch if key[:2] == (claim.record.pipeline, claim.window)]
        for key in of_window:
            if key[2] <= claim.fence and self._session is not None:
                with self._engine.transaction(self._session, writing=False):
                    into = self._session.dialect.identifier_preparer.format_table(self._scratch[key].table)
                    self._session.exec_driver_sql(f"DROP TABLE {into}")
                del self._scratch[key]
        if not self._scratch:  # what an upload that failed may have left goes with the session
            self._end_session()

    def _end_session(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            with self._engine.translated():
                session.close()

    # --- publication --------------------------------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[Publication]:
        if self._session is None:
            raise PermanentError(
                f"{self._place}: nothing is uploaded in this session; upload, then publish in the same one"
            )
        if self._engine.lost(self._session):
            # A connection that is made anew in its place holds no scratch.
            raise TransientError(
                f"{self._place}: the session that held the uploaded rows is gone; they are uploaded again",
                side_down=True,
            )
        with self._engine.transaction(self._session, writing=True):
            yield SqlPublication(
                self._engine, self._session, self._ledger, self._scratch_of, self._side_of, self._place
            )

    def published(self, load: Load) -> bool:
        with self._engine.reading() as connection:
            return self._ledger.holds(connection, load.claim)

    def adopt(self, adoption: Adoption) -> Sequence[Entry]:
        with self._engine.writing() as connection:
            if self._side_of(connection) is None:
                return []
            return self._ledger.adopt(connection, adoption, self._engine.now_us(connection))

    def _scratch_of(self, load: Load) -> Scratch:
        """The uploaded rows of a load; PermanentError where there are none, or those of other staged files."""
        scratch = self._scratch.get((load.claim.record.pipeline, load.window, load.claim.fence))
        if scratch is None or scratch.staged_key != load.staged.key:
            raise PermanentError(f"{self._place}: {load.staged.key!r} is not uploaded in this session; upload it first")
        return scratch


def _column(name: str, table: Table, engine: Engine) -> Column | None:
    return next((each for each in table.columns if engine.fold(each.name) == engine.fold(name)), None)


def _staged(load: Load) -> Generator[pa.RecordBatch, None, None]:
    """The staged rows, whichever library they come from; at least one batch, if only for the schema."""
    with closing(load.read()) as staged:
        for each in staged:
            reader = pa.RecordBatchReader.from_stream(each)
            batch = None
            for batch in reader:
                yield batch
            if batch is None:
                yield pa.RecordBatch.from_pylist([], schema=reader.schema)
