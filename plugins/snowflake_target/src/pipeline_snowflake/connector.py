"""A table of a Snowflake account as the source or target of a pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline_core import (
    Batch,
    Batches,
    Claim,
    DeferredTarget,
    ExtractRequest,
    Load,
    PermanentError,
    PipelineError,
    Problem,
    Publication,
    SideError,
    Source,
    TransientError,
    Window,
)
from pipeline_core.contracts import target_names
from pipeline_core.errors import nearest
from pipeline_core.ledger import Adoption, Entry, scope_of, scope_text
from pipeline_snowflake import table
from pipeline_snowflake.counting import count_windows
from pipeline_snowflake.deferred import Uploads
from pipeline_snowflake.extraction import extraction
from pipeline_snowflake.ledger import LEDGER, TargetLedger
from pipeline_snowflake.loading import Loading, declarations, declared, plan
from pipeline_snowflake.names import fold, parts, quoted
from pipeline_snowflake.publication import SnowflakePublication
from pipeline_snowflake.session import Session
from pipeline_snowflake.side import Side, condition, resolved
from pipeline_snowflake.table import column_of
from pipeline_snowflake.timestamps import of_column
from pipeline_snowflake.uploading import Scratch, filled, staged_batches

if TYPE_CHECKING:
    from pipeline_snowflake.settings import SnowflakeSettings


class SnowflakeConnector(Source, DeferredTarget):
    """One table; counts, extracts and loads. Opened by `SnowflakeSettings.open`.

    One connection serves every verb. Scratch is a temporary table of it: where the connection is lost between upload
    and publication, the rows are uploaded again. What was submitted is in a table that outlives it.
    """

    def __init__(self, settings: SnowflakeSettings, session: Session, pipeline: str) -> None:
        self._settings = settings
        self._pipeline = pipeline
        self._session = session
        self._place = session.place
        self._given = parts(settings.table) or (settings.table,)
        self._seen: Side | None = None
        self._ledger_seen: int | None = None  # by the connection of that generation
        self._scratch: dict[tuple[str, Window], Scratch] = {}

    def close(self) -> None:
        """Closes the connection, and drops scratch with it."""
        self._scratch.clear()
        self._session.close()

    @property
    def identity(self) -> Mapping[str, str]:
        settings = self._settings
        given = {
            "technology": "snowflake",
            "account": settings.account,
            "host": settings.host,
            "database": settings.database,
            "schema": settings.schema,
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
        with self._known() as side:
            return [0] * len(windows) if side is None else count_windows(self._session, side, windows)

    def excluded(self) -> int:
        with self._known() as side:
            if side is None:
                return 0
            condition, values = side.where(side.timestamps.excluded)
            return self._session.count(f"SELECT COUNT(*) FROM {side.table.sql} WHERE {condition}", *values)  # noqa: S608 - quoted

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

    @contextmanager
    def _known(self) -> Iterator[Side | None]:
        """The table as it was last seen, for to look would take longer than to count. An error makes it forgotten."""
        try:
            self._seen = self._seen or self._look()
            yield self._seen
        except BaseException:
            self._seen = None
            raise

    def _look(self) -> Side | None:
        """The table; None while it is missing and `create` is set. Raises SideError for any other misfit."""
        settings, path = self._settings, self._session.full(self._given)
        found = table.find(self._session, path)
        if found is None:
            if settings.create:
                return None
            raise SideError(
                f"{self._place}: no such table ({table.nearest_table(self._session, path)}); "
                "correct its name, or if it is the target, set create = true"
            )
        timestamp = column_of(settings.timestamp_column, found.columns)
        if timestamp is None:
            raise SideError(
                f"{self._place}: it has no timestamp column {settings.timestamp_column!r} "
                f"({nearest(settings.timestamp_column, [c.name for c in found.columns])}); correct timestamp_column"
            )
        place = f"{self._place}, column {timestamp.name!r}"
        timestamps = of_column(place, timestamp, settings.timestamp_timezone)
        scope = resolved(settings.scope, found, self._place)
        if settings.where is not None:
            self._check_where(found.sql, settings.where)
        return Side(found, timestamp, timestamps, scope, condition(scope, settings.where))

    def _check_where(self, sql: str, where: str) -> None:
        """Raises SideError where `where` is not one condition on the table: bare too, so that no bracket ends ours."""
        bare = f"CASE WHEN {where}\n THEN 1 END"
        try:
            self._session.rows(f"SELECT {bare} FROM {sql} WHERE ({where}\n) LIMIT 0")  # noqa: S608 - the owner's own
        except TransientError:
            raise
        except PipelineError as error:
            raise SideError(f"{self._place}: where is no condition on it: {error}; correct it") from None

    # --- extraction ---------------------------------------------------------------------------------------------------

    def extract(self, request: ExtractRequest) -> Batches:
        with self._known() as side:
            if side is None:
                raise SideError(f"{self._place}: no such table; create = true makes a target's table, not a source's")
            self._session.tag(request.window)
            how = extraction(side, request.exclude, self._place)
            with closing(how.batches(self._session, request.window, request.batch_rows)) as batches:
                yield from batches

    # --- upload -------------------------------------------------------------------------------------------------------

    def upload(self, load: Load) -> None:
        """Copies the staged rows into a temporary table; makes the ledger, and with `create` the table, where missing.

        Raises PermanentError for a staged column or value that the table cannot hold, SideError for a table that is not
        there, lacks what the settings name, or is limited by `where`. Whether the role may write to it, and whether it
        is a table and no view, shows at publication.
        """
        with self._planned(load) as (loading, batches):
            scratch = filled(self._session, loading.side.table.path[:2], load, loading, batches)
        self._scratch[load.claim.record.pipeline, load.window] = scratch

    @contextmanager
    def _planned(self, load: Load) -> Iterator[tuple[Loading, Iterator[pa.RecordBatch]]]:
        """What becomes of the staged rows in the table, which is made where it is missing; and those rows."""
        if self._settings.where is not None:
            raise SideError(f"{self._place}: where limits a source only; limit a target by scope")
        self.discard(load.claim)
        with closing(staged_batches(load)) as batches:
            first = next(batches, None)
            if first is None:
                raise PermanentError(f"{self._place}: found no staged batch at all, expected at least an empty one")
            self._session.tag(load.window)
            names = target_names(first.schema.names, load.columns, self._place, fold)
            yield self._plan(first.schema, names, self._prepared(first.schema, names)), chain([first], batches)

    def _plan(self, schema: pa.Schema, names: Sequence[str], side: Side) -> Loading:
        return plan(schema, names, side, self._place, ignore=self._settings.new_columns == "ignore")

    def _prepared(self, schema: pa.Schema, names: Sequence[str]) -> Side:
        """The table, with the ledger beside it: each made where it is missing."""
        side = self._look()
        statements = self._missing(schema, names, side)
        for statement in statements:
            self._session.rows(statement)
        if self._ledger_seen != self._session.generation:
            self._ledger().prepare()
            self._ledger_seen = self._session.generation
        self._seen = self._look() if statements else side
        if self._seen is None:
            raise PermanentError(f"{self._place}: made the table, and cannot find it")
        return self._seen

    def _missing(self, schema: pa.Schema, names: Sequence[str], side: Side | None) -> list[str]:
        """The statements that make what rows of a staged schema need and do not find: ledger, table, columns."""
        settings = self._settings
        ledger = [] if self._ledger_seen == self._session.generation else self._ledger().missing()
        if side is None:
            naive = settings.timestamp_timezone is not None
            listed = declarations(schema, names, settings.timestamp_column, naive=naive, place=self._place)
            path = quoted(*self._session.full(self._given))
            return [*ledger, f"CREATE TABLE IF NOT EXISTS {path} ({', '.join(listed)})"]
        if settings.new_columns != "add":
            return ledger
        known = side.table.columns
        new = [at for at, name in enumerate(names) if column_of(name, known) is None]
        added = [declared(schema.field(at), names[at], self._place) for at in new]
        return [*ledger, *(f"ALTER TABLE {side.table.sql} ADD COLUMN IF NOT EXISTS {column}" for column in added)]

    def ddl(self, rows: Batch, columns: Mapping[str, str]) -> Sequence[str]:
        schema = pa.RecordBatchReader.from_stream(rows).schema
        names, side = target_names(schema.names, columns, self._place, fold), self._look()
        statements = self._missing(schema, names, side)
        if side is not None and self._settings.new_columns != "add":
            self._plan(schema, names, side)
        return [f"{statement};" for statement in statements]

    # --- an upload that the server ends by itself ---------------------------------------------------------------------

    @cached_property
    def _uploads(self) -> Uploads:
        database, schema, _ = self._session.full(self._given)
        return Uploads(self._session, self._pipeline, (database, schema), self._settings.timeout_s)

    def submit(self, load: Load) -> str:
        """Puts the staged rows beside the table, and has the server copy them into another; raises what upload does."""
        with self._planned(load) as (loading, batches):
            return self._uploads.submit(load, loading, batches)

    def uploaded(self, token: str) -> bool:
        return self._uploads.uploaded(self._uploads.read(token))

    def cancel(self, token: str) -> None:
        self._uploads.cancel(self._uploads.read(token))

    def _submitted(self, load: Load, token: str) -> Scratch:
        """The table of a submitted upload, and how its rows go into the target as it is now.

        Raises TransientError where they were made to fit another one, or are those of other staged files.
        """
        upload, side = self._uploads.read(token), self._look()
        if upload.staged_key != load.staged.key:
            raise TransientError(
                f"{self._place}: {load.staged.key!r} was staged since {upload.staged_key!r} was submitted; submit it"
            )
        names = target_names(upload.schema.names, load.columns, self._place, fold)
        loading = None if side is None else self._plan(upload.schema, names, side)
        if loading is None or loading.layout != upload.layout:
            raise TransientError(
                f"{self._place}: its columns have changed since the upload was submitted; submit it again"
            )
        return Scratch(load.claim.fence, upload.staged_key, None, self._uploads.table(upload.name), loading)

    # --- cleaning -----------------------------------------------------------------------------------------------------

    def discard(self, claim: Claim) -> None:
        self._uploads.discard(claim)
        key = claim.record.pipeline, claim.window
        scratch = self._scratch.get(key)
        if scratch is None or scratch.fence > claim.fence:
            return
        if scratch.generation == self._session.generation:
            self._session.rows(f"DROP TABLE IF EXISTS {scratch.sql}")
        del self._scratch[key]

    # --- publication --------------------------------------------------------------------------------------------------

    def _ledger(self, side: Side | None = None) -> TargetLedger:
        """The ledger of the table; of its entries, those that concern a side's scope."""
        settings, path = self._settings, self._session.full(self._given)
        beside = path[:2]
        given = (LEDGER,) if settings.ledger is None else parts(settings.ledger) or (settings.ledger,)
        at = (*beside, *given) if len(given) == 1 else self._session.full(given)
        scope = {} if side is None else scope_of(side.scope)
        return TargetLedger(self._session, (at[0], at[1], at[2]), quoted(*path), scope)

    @contextmanager
    def transaction(self) -> Iterator[Publication]:
        publication = SnowflakePublication(self._session, self._ledger, self._scratch_of, self._look)
        with self._session.transaction():
            yield publication
        publication.check_committed()

    def published(self, load: Load) -> bool:
        side = self._look()
        return side is not None and self._ledger(side).holds(load.claim)

    def adopt(self, adoption: Adoption) -> Sequence[Entry]:
        side = self._look()
        ledger = self._ledger(side)
        if side is None or not ledger.ready():
            return []  # nothing was ever published into this table
        with self._session.transaction():
            return ledger.adopt(adoption)

    def _scratch_of(self, load: Load) -> Scratch:
        """The uploaded rows of a load; PermanentError where there are none, or those of other staged files."""
        if load.token is not None:
            return self._submitted(load, load.token)
        scratch = self._scratch.get((load.claim.record.pipeline, load.window))
        if scratch is None or scratch.staged_key != load.staged.key or scratch.fence != load.claim.fence:
            raise PermanentError(f"{self._place}: {load.staged.key!r} is not uploaded; upload it first")
        if scratch.generation != self._session.generation:
            raise TransientError(
                f"{self._place}: the session that held the uploaded rows is gone; they are uploaded again",
                side_down=True,
            )
        return scratch
