"""A table of a DuckDB file as the source or target of a pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from attrs import define, field, frozen

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
from pipeline_core.errors import nearest
from pipeline_core.ledger import Adoption, Entry, enter, scope_of, scope_text
from pipeline_duckdb import staging, table, types
from pipeline_duckdb.counting import count_windows
from pipeline_duckdb.database import Database, quoted
from pipeline_duckdb.ledger import TargetLedger
from pipeline_duckdb.loading import Loading, StagedColumn, check_named, declarations, declared, plan, staged_columns
from pipeline_duckdb.side import Side, condition, resolved
from pipeline_duckdb.table import Column, column_of
from pipeline_duckdb.timestamps import of_column

if TYPE_CHECKING:
    from pipeline_duckdb.settings import DuckDbSettings

_INSTANT = pa.timestamp("us", "UTC")


@frozen
class _Scratch:
    """Uploaded rows: Parquet files, checked, and what is to become of their columns."""

    fence: int
    staged_key: str
    paths: Sequence[Path]
    loading: Loading


class DuckDbConnector(Source, Target):
    """One table; counts, extracts and loads. Opened by `DuckDbSettings.open`.

    Nothing is kept open between two calls: scratch is files, and the database file is opened by each verb.
    """

    def __init__(self, settings: DuckDbSettings, database: Database) -> None:
        self._settings = settings
        self._database = database
        self._schema, self._name = table.split(settings.table)
        self._place = f"{database.place}, table {settings.table!r}"
        self._scratch: dict[tuple[str, Window], _Scratch] = {}
        self._copies: list[Claim] = []
        scope = scope_of(settings.scope, table.fold)
        self._target = table.fold(f"{self._schema}.{self._name}") + scope_text(scope)
        self._ledger = TargetLedger(settings.ledger, self._schema, table.fold(self._name), scope, self._place)

    def close(self) -> None:
        """Drops scratch."""
        self._scratch.clear()
        try:
            while self._copies:
                staging.remove_copies(self._database.path, self._target, self._copies.pop())
        finally:
            self._database.close()

    @property
    def identity(self) -> Mapping[str, str]:
        settings = self._settings
        given = {
            "technology": "duckdb",
            "database": str(self._database.path),
            "table": settings.table,
            "timestamp_column": settings.timestamp_column,
            "timestamp_timezone": settings.timestamp_timezone,
            "scope": scope_text(scope_of(settings.scope)) if settings.scope else None,
            "where": settings.where,
        }
        return {name: value for name, value in given.items() if value is not None}

    @property
    def naive_timezone(self) -> str | None:
        return self._settings.timestamp_timezone

    # --- counting -----------------------------------------------------------------------------------------------------

    def count(self, window: Window) -> int:
        return self.count_many([window])[0]

    def count_many(self, windows: Sequence[Window]) -> Sequence[int]:
        with self._database.connected() as connection, self._database.limited(connection):
            side = self._side_of(connection)
            return [0] * len(windows) if side is None else count_windows(connection, side, windows)

    def excluded(self) -> int:
        with self._database.connected() as connection, self._database.limited(connection):
            side = self._side_of(connection)
            if side is None:
                return 0
            query = f"SELECT count(*) FROM {side.table.sql} WHERE {side.timestamps.excluded} AND {side.rows}"  # noqa: S608 - quoted
            return int(connection.execute(query).fetchall()[0][0])

    def problems(self) -> Iterable[Problem]:
        try:
            missing = self.excluded()
        except PipelineError as error:
            what, _, remedy = str(error).rpartition("; ")
            yield Problem(what, remedy)
            return
        if missing:
            yield Problem(
                f"{self._place}: {missing} rows have no {self._settings.timestamp_column!r}, or none of the years 1 to "
                "9999, and belong to no window",
                "fill the column, and declare it NOT NULL",
            )

    # --- the table ----------------------------------------------------------------------------------------------------

    def _side_of(self, connection: duckdb.DuckDBPyConnection) -> Side | None:
        """The table; None while it is missing and `create` is set. Raises SideError for any other misfit."""
        settings = self._settings
        found = table.find(connection, self._schema, self._name)
        if found is None:
            self._check_schema(connection)
            if settings.create:
                return None
            raise SideError(
                f"{self._place}: no such table ({nearest(self._name, table.names(connection, self._schema))}); "
                "correct its name, or if it is the target, set create = true"
            )
        timestamp = column_of(settings.timestamp_column, found.columns)
        if timestamp is None:
            raise SideError(
                f"{self._place}: it has no timestamp column {settings.timestamp_column!r} "
                f"({nearest(settings.timestamp_column, [c.name for c in found.columns])}); correct timestamp_column"
            )
        place = f"{self._place}, column {timestamp.name!r}"
        timestamps = of_column(place, quoted(timestamp.name), timestamp.type, settings.timestamp_timezone)
        scope = resolved(settings.scope, found, self._place)
        if settings.where is not None:
            self._check_where(connection, found.sql, settings.where)
        return Side(found, timestamp, timestamps, scope, condition(scope, settings.where))

    def _check_schema(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Raises SideError where the schema is missing too, in which no table can be made."""
        known = table.schemas(connection)
        if table.fold(self._schema) not in map(table.fold, known):
            raise SideError(
                f"{self._place}: no such schema ({nearest(self._schema, known)}); correct its name, or make the schema"
            )

    def _check_where(self, connection: duckdb.DuckDBPyConnection, sql: str, where: str) -> None:
        """Raises SideError where `where` is not one condition on the table: bare too, so that no bracket ends ours."""
        bare = f"CASE WHEN {where}\n THEN 1 END"
        try:
            with self._database.translated():
                connection.execute(f"SELECT {bare} FROM {sql} WHERE ({where}\n) LIMIT 0").fetchall()  # noqa: S608
        except PipelineError as error:
            raise SideError(f"{self._place}: where is no condition on it: {error}; correct it") from None

    # --- extraction ---------------------------------------------------------------------------------------------------

    def extract(self, request: ExtractRequest) -> Batches:
        with self._database.connected() as connection:
            side = self._side_of(connection)
            if side is None:
                raise SideError(f"{self._place}: no such table; create = true makes a target's table, not a source's")
            query = self._query(side, request)
            reader = None
            try:
                with self._reading():
                    reader = connection.sql(query).to_arrow_reader(request.batch_rows)
                yield from self._batches(reader, side.timestamp)
            finally:
                if reader is not None:
                    reader.close()  # an open result would keep the file open

    def _query(self, side: Side, request: ExtractRequest) -> str:
        listed = ", ".join(self._selected(side, column, request.window) for column in self._wanted(side, request))
        return f"SELECT {listed} FROM {side.table.sql} WHERE {side.inside(request.window)}"  # noqa: S608 - quoted

    def _selected(self, side: Side, column: Column, window: Window) -> str:
        name = quoted(column.name)
        if column == side.timestamp:
            return f"{side.timestamps.instant_us(window)} AS {name}"
        kind = types.extracted(column.type)
        if kind is None:
            raise SideError(
                f"{self._place}, column {column.name!r}: its type {column.type} has no counterpart elsewhere; "
                "exclude the column, or read it through a view that converts it"
            )
        return name if kind == str(column.type) else f"CAST({name} AS {kind}) AS {name}"

    def _wanted(self, side: Side, request: ExtractRequest) -> list[Column]:
        excluded = set()
        for name in sorted(request.exclude):
            column = column_of(name, side.table.columns)
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
            excluded.add(column.name)
        return [column for column in side.table.columns if column.name not in excluded]

    def _batches(self, reader: pa.RecordBatchReader, timestamp: Column) -> Iterator[pa.RecordBatch]:
        at = reader.schema.get_field_index(timestamp.name)
        schema = reader.schema.set(at, pa.field(timestamp.name, _INSTANT))
        batch = None
        while (found := self._next(reader)) is not None:
            self._check_finite(found)
            columns = [c.cast(_INSTANT) if index == at else c for index, c in enumerate(found.columns)]
            batch = pa.RecordBatch.from_arrays(columns, schema=schema)
            yield batch
        if batch is None:
            yield pa.RecordBatch.from_pylist([], schema=schema)

    def _check_finite(self, batch: pa.RecordBatch) -> None:
        for name, values in zip(batch.schema.names, batch.columns, strict=True):
            if types.is_infinite(values):
                raise PermanentError(
                    f"{self._place}, column {name!r}: found an infinite date or timestamp, which no type of others "
                    "holds; correct the row, read it through a view that converts it, or exclude the column"
                )

    def _next(self, reader: pa.RecordBatchReader) -> pa.RecordBatch | None:
        with self._reading():
            try:
                return reader.read_next_batch()
            except StopIteration:
                return None

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (duckdb.DataError, OSError) as error:
            # Arrow's stream carries only the text of DuckDB's error. That of a conversion quotes the value.
            if isinstance(error, OSError) and not str(error).startswith(("Conversion Error", "Out of Range Error")):
                raise self._database.meaning(duckdb.IOException(str(error))) from None
            raise PermanentError(
                f"{self._place}: found a number of more than 38 digits, which no type of others holds; "
                "correct the row, or exclude the column"
            ) from None

    # --- upload -------------------------------------------------------------------------------------------------------

    def upload(self, load: Load) -> None:
        """Verifies the staged files, or copies them; makes the ledger, and with `create` the table, where missing.

        Raises PermanentError for a staged column or value that the table cannot hold, SideError for a table that no
        row can be written to, or whose timestamp or scope no staged column becomes.
        """
        self.discard(load.claim)
        paths = staging.in_place(load.staged)
        if paths is None:
            self._copies.append(load.claim)
            paths = staging.copied(load, self._database.path, self._target, self._place)
        schema = pq.read_schema(paths[0])
        staging.check(schema, self._place)
        relation = staging.relation(paths)
        with self._database.connected() as connection:
            columns = staged_columns(connection, schema, relation, load.columns, self._place)
            with self._database.publishing():
                connection.begin()
                side = self._prepared(connection, columns)
                connection.commit()
            loading = plan(columns, side, self._place, ignore=self._settings.new_columns == "ignore")
            loading.check(connection, relation, load.window)
        key = load.claim.record.pipeline, load.window
        self._scratch[key] = _Scratch(load.claim.fence, load.staged.key, paths, loading)

    def _prepared(self, connection: duckdb.DuckDBPyConnection, columns: Sequence[StagedColumn]) -> Side:
        """The table, with the ledger beside it: each made where it is missing."""
        self._check_writable(self._side_of(connection))
        for statement in self._missing(connection, columns):
            connection.execute(statement)
        self._ledger.prepare(connection)
        side = self._side_of(connection)
        if side is None:
            raise PermanentError(f"{self._place}: made the table, and cannot find it")
        return side

    def _check_writable(self, side: Side | None) -> None:
        if self._settings.where is not None:
            raise SideError(f"{self._place}: where limits a source only; limit a target by scope")
        if side is not None and side.table.view:
            raise SideError(f"{self._place}: it is a view, which no row can be written to; name the table behind it")

    def _missing(self, connection: duckdb.DuckDBPyConnection, columns: Sequence[StagedColumn]) -> list[str]:
        """The statements that make what staged columns need and do not find: ledger, table, columns."""
        settings = self._settings
        ledger = self._ledger.missing(connection)
        found = table.find(connection, self._schema, self._name)
        if found is None:
            self._check_schema(connection)
            made = table.qualified(connection, self._schema, self._name)
            check_named(settings.scope, columns, self._place)
            listed = declarations(columns, settings.timestamp_column, settings.timestamp_timezone, self._place)
            return [*ledger, f"CREATE TABLE {made} ({', '.join(listed)})"]
        if settings.new_columns != "add":
            return ledger
        new = [column for column in columns if column_of(column.name, found.columns) is None]
        return [*ledger, *(f"ALTER TABLE {found.sql} ADD COLUMN {declared(column, self._place)}" for column in new)]

    def ddl(self, rows: Batch, columns: Mapping[str, str]) -> Sequence[str]:
        sample = pa.table(rows).slice(0, 0)
        staging.check(sample.schema, self._place)
        with TemporaryDirectory() as folder, self._database.connected() as connection:
            file = Path(folder) / "columns.parquet"  # as staged files are, for DuckDB reads Arrow otherwise
            pq.write_table(sample, file)
            staged = staged_columns(connection, sample.schema, staging.relation([file]), columns, self._place)
            # Whoever runs the statements need not have set `create`.
            found = table.find(connection, self._schema, self._name)
            side = None if found is None else self._side_of(connection)
            self._check_writable(side)
            if side is not None:  # what `new_columns` adds has no place yet
                plan(staged, side, self._place, ignore=self._settings.new_columns != "error")
            return [f"{statement};" for statement in self._missing(connection, staged)]

    def discard(self, claim: Claim) -> None:
        key = claim.record.pipeline, claim.window
        scratch = self._scratch.get(key)
        if scratch is not None and scratch.fence <= claim.fence:
            del self._scratch[key]
        staging.remove_copies(self._database.path, self._target, claim)

    # --- publication --------------------------------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[Publication]:
        with self._database.publishing(), self._database.connected() as connection:
            connection.begin()
            yield _Publication(connection, self._ledger, self._scratch_of, self._side_of, self._place)
            connection.commit()

    def published(self, load: Load) -> bool:
        with self._database.connected() as connection:
            return self._ledger.holds(connection, load.claim)

    def adopt(self, adoption: Adoption) -> Sequence[Entry]:
        with self._database.publishing(), self._database.connected() as connection:
            connection.begin()
            handed = [] if self._side_of(connection) is None else self._ledger.adopt(connection, adoption)
            connection.commit()
            return handed

    def _scratch_of(self, load: Load) -> _Scratch:
        """The uploaded rows of a load; PermanentError where there are none, or those of other staged files."""
        scratch = self._scratch.get((load.claim.record.pipeline, load.window))
        if scratch is None or scratch.staged_key != load.staged.key:
            raise PermanentError(f"{self._place}: {load.staged.key!r} is not uploaded; upload it first")
        return scratch


@define
class _Publication(Publication):
    """The verbs, in one transaction. `guard` comes first, and says which scratch it is."""

    _connection: duckdb.DuckDBPyConnection
    _ledger: TargetLedger
    _scratch_of: Callable[[Load], _Scratch]
    _side_of: Callable[[duckdb.DuckDBPyConnection], Side | None]
    _place: str
    _loading: Loading | None = field(default=None, init=False)

    def guard(self, load: Load) -> None:
        self._ledger.lock(self._connection)
        overlapping = self._ledger.overlapping(self._connection, load.claim)
        change = enter(overlapping, load.claim, self._place, self._ledger.scope)
        self._ledger.apply(self._connection, change)
        self._loading = self._scratch_of(load).loading

    def delete(self, window: Window) -> int:
        side = self._guarded.side
        statement = f"DELETE FROM {side.table.sql} WHERE {side.inside(window)}"  # noqa: S608 - quoted
        return int(self._connection.execute(statement).fetchall()[0][0])

    def insert(self, load: Load) -> None:
        loading, scratch = self._guarded, self._scratch_of(load)
        self._check_unchanged(loading)
        gone = [path for path in scratch.paths if not path.exists()]
        if gone:
            raise TransientError(f"{self._place}: the uploaded file {gone[0]} is gone; the window is done again")
        self._connection.execute(loading.insert(staging.relation(scratch.paths), load.window))

    def _check_unchanged(self, loading: Loading) -> None:
        """Raises TransientError where a column is no longer what it was when the rows were made to fit it."""
        side = self._side_of(self._connection)
        changed = [column.name for column, _ in loading.pairs if side is None or column not in side.table.columns]
        if changed:
            raise TransientError(
                f"{self._place}: the columns {changed} have changed since the upload; the rows are uploaded again"
            )

    def count(self, window: Window) -> int:
        return count_windows(self._connection, self._guarded.side, [window])[0]

    @property
    def _guarded(self) -> Loading:
        if self._loading is None:
            raise PermanentError(f"{self._place}: a publication begins with guard; nothing was written")
        return self._loading
