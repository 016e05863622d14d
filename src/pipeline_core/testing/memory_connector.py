"""A side in memory, source and target: for tests of pipelines, and the smallest complete example of the contract."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from threading import Lock
from typing import Any, ClassVar
from uuid import uuid4

import pyarrow as pa
from attrs import field, frozen

from pipeline_core.contracts import Batches, Context, DeferredTarget, ExtractRequest, Load, Publication, Source
from pipeline_core.errors import PermanentError, SideError, TransientError
from pipeline_core.ledger import Adoption, Entry, Scope, adopt, enter, scope_text
from pipeline_core.record import Claim
from pipeline_core.window import SECOND_US, Window

_A_SECOND = {"s": 1, "ms": 1_000, "us": SECOND_US, "ns": 1_000 * SECOND_US}


@frozen
class Rows:
    """Rows in Arrow, and the instant of each in microseconds UTC (None where it has none). Never changed in place."""

    instants: tuple[int | None, ...]
    table: pa.Table

    def inside(self, window: Window, scope: Scope) -> list[int]:
        """Where the rows of the window are that the scope holds: `start <= t < end`."""
        start_us, end_us = window.start_us, window.end_us
        within = self.within(scope)
        return [at for at in within if (us := self.instants[at]) is not None and start_us <= us < end_us]

    def within(self, scope: Scope) -> list[int]:
        """Where the rows of the scope are, whenever they are."""
        strange = sorted(scope.keys() - {*self.table.column_names})
        if strange:
            raise SideError(f"scope names no column of {self.table.column_names}: {strange}; correct the name")
        places = range(len(self.instants))
        columns = [(self.table.column(name).to_pylist(), value) for name, value in scope.items()]
        return [at for at in places if all(values[at] == value for values, value in columns)]

    def take(self, places: list[int]) -> Rows:
        return Rows(tuple(self.instants[at] for at in places), self.table.take(pa.array(places, pa.int64())))

    def without(self, places: list[int]) -> Rows:
        gone = set(places)
        return self.take([at for at in range(len(self.instants)) if at not in gone])

    def plus(self, others: Rows) -> Rows:
        return Rows(self.instants + others.instants, pa.concat_tables([self.table, others.table]))


class MemoryTable:
    """What all connectors of one side share: its rows, its ledger, and the lock of its publications.

    `timestamp` names the column of instants, a timestamp with a zone. Set `fault` to an error to have every access fail
    with it, as a side does that cannot be reached. `sessions` counts the connectors that are open, `scratch` the loads
    uploaded and not yet dropped, `submitted` among them, which are kept by token.
    """

    def __init__(self, name: str = "memory", timestamp: str = "at", timeout_s: float = 30) -> None:
        self.name = name
        self.timestamp = timestamp
        self.timeout_s = timeout_s
        self.fault: Exception | None = None
        self.sessions = 0
        self.scratch = 0
        self.submitted: dict[str, Submitted] = {}
        self.rows: Rows | None = None
        self.ledger: tuple[Entry, ...] = ()
        self.lock = Lock()

    @property
    def place(self) -> str:
        return f"table {self.name!r} in memory"

    def put(self, rows: Any) -> None:
        """Adds rows of any Arrow library, past pipeline and ledger; the first ones give the schema."""
        new = self.read(rows)
        self.rows = new if self.rows is None else self.rows.plus(self.fitted(new.table))

    def read(self, rows: Any) -> Rows:
        """Rows of any Arrow library, each with its instant; what is finer than a microsecond is truncated."""
        table = pa.table(rows)
        if self.timestamp not in table.column_names:
            raise PermanentError(
                f"{self.place}: found the columns {table.column_names}, expected {self.timestamp!r} among them; "
                "name the timestamp column, or rename one in [columns]"
            )
        column = table.column(self.timestamp)
        if not pa.types.is_timestamp(column.type) or column.type.tz is None:
            raise PermanentError(
                f"{self.place}, column {self.timestamp!r}: found {column.type}, expected a timestamp with a zone"
            )
        scale = _A_SECOND[column.type.unit]
        values = column.cast(pa.int64()).to_pylist()
        return Rows(tuple(None if v is None else v * SECOND_US // scale for v in values), table)

    def fitted(self, table: pa.Table) -> Rows:
        """Rows in the columns of this side, in their order; a column that they lack is NULL."""
        if self.rows is None:
            return self.read(table)
        schema = self.rows.table.schema
        strange = sorted(set(table.column_names) - set(schema.names))
        if strange:
            raise PermanentError(
                f"{self.place}: no column for the staged {strange}; it has {schema.names}: exclude or rename them"
            )
        length = len(table)
        columns = [
            table.column(each.name) if each.name in table.column_names else pa.nulls(length, each.type)
            for each in schema
        ]
        try:
            return self.read(pa.Table.from_arrays(columns, names=schema.names).cast(schema))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise PermanentError(
                f"{self.place}: found the types {table.schema.types}, expected what fits {schema.types}"
            ) from None


@frozen
class MemorySettings:
    """A table in memory, as source or target; `connector` is the class that is opened on it.

    `scope` limits the side to the rows whose columns hold these values.
    """

    table: MemoryTable
    connector: type[MemoryConnector] = field(factory=lambda: MemoryConnector)
    scope: Scope = field(factory=dict)

    @contextmanager
    def open(self, context: Context, /) -> Iterator[MemoryConnector]:
        """The side; its scratch goes on the way out."""
        with closing(self.connector(self.table, self.scope)) as connector:
            yield connector


@frozen
class Scratch:
    """Uploaded rows, seen by their connector alone."""

    fence: int
    staged_key: str
    rows: Rows


@frozen
class Submitted:
    """Scratch that outlives its connector: of which window of which pipeline it is."""

    pipeline: str
    window: Window
    scratch: Scratch


class MemoryPublication(Publication):
    """Works on a copy, which the commit puts in the table's place. Holds the table's lock from the guard on."""

    def __init__(self, table: MemoryTable, scope: Scope, scratch: Mapping[tuple[str, Window], Scratch]) -> None:
        self.table = table
        self.scope = scope
        self.scratch = scratch
        self.locked = False
        self.rows: Rows | None = None
        self.ledger: tuple[Entry, ...] = ()

    def guard(self, load: Load) -> None:
        self.lock()
        self.check(load.claim)
        self.rows = self.table.rows
        self.find(load)

    def lock(self) -> None:
        """Waits until no other publication goes on."""
        if not self.table.lock.acquire(timeout=self.table.timeout_s):
            raise TransientError(f"{self.table.place}: waited {self.table.timeout_s} s for another publication")
        self.locked = True

    def check(self, claim: Claim) -> None:
        """Refuses or enters the fence."""
        window = claim.window
        overlapping = [e for e in self.table.ledger if e.start_us < window.end_us and window.start_us < e.end_us]
        change = enter(overlapping, claim, self.table.place, self.scope)
        self.ledger = (*(each for each in self.table.ledger if each not in change.remove), *change.add)

    def find(self, load: Load) -> Scratch:
        """The uploaded rows of the load."""
        scratch = self.scratch.get((load.claim.record.pipeline, load.window))
        if load.token is not None:
            submitted = self.table.submitted.get(load.token)
            scratch = None if submitted is None else submitted.scratch
        if scratch is None or scratch.staged_key != load.staged.key:
            raise PermanentError(f"{self.table.place}: {load.staged.key!r} is not uploaded; upload it first")
        return scratch

    def delete(self, window: Window) -> int:
        gone = self.guarded().inside(window, self.scope)
        self.rows = self.guarded().without(gone)
        return len(gone)

    def insert(self, load: Load) -> None:
        self.rows = self.guarded().plus(self.find(load).rows)

    def count(self, window: Window) -> int:
        return len(self.guarded().inside(window, self.scope))

    def guarded(self) -> Rows:
        """The rows of this transaction, once the guard has let it pass."""
        if self.rows is None:
            raise PermanentError(f"{self.table.place}: a publication begins with guard; nothing was written")
        return self.rows

    def commit(self) -> None:
        """Everything at once; nothing where nobody asked the guard."""
        if self.rows is not None:
            self.table.rows, self.table.ledger = self.rows, self.ledger

    def release(self) -> None:
        """Lets the next publication go on."""
        if self.locked:
            self.locked = False
            self.table.lock.release()


class MemoryConnector(Source, DeferredTarget):
    """Counts, extracts and loads a MemoryTable. `publication` is the class of its transactions."""

    publication: ClassVar[type[MemoryPublication]] = MemoryPublication

    def __init__(self, table: MemoryTable, scope: Scope) -> None:
        self.table = table
        self.scope = scope
        self.scratch: dict[tuple[str, Window], Scratch] = {}
        table.sessions += 1

    def close(self) -> None:
        """Drops scratch."""
        self.table.scratch -= len(self.scratch)
        self.scratch.clear()
        self.table.sessions -= 1

    @property
    def identity(self) -> Mapping[str, str]:
        return {"technology": "memory", "table": self.table.name, "scope": scope_text(self.scope)}

    # --- counting and extraction --------------------------------------------------------------------------------------

    def count(self, window: Window) -> int:
        rows = self.reach()
        return 0 if rows is None else len(rows.inside(window, self.scope))

    def excluded(self) -> int:
        rows = self.reach()
        return 0 if rows is None else sum(rows.instants[at] is None for at in rows.within(self.scope))

    def extract(self, request: ExtractRequest) -> Batches:
        rows = self.reach()
        if rows is None:
            raise SideError(f"{self.table.place}: it has no rows and so no columns; put some into it first")
        unknown = sorted(request.exclude - set(rows.table.column_names))
        if unknown:
            raise SideError(f"{self.table.place}: no column {unknown} to exclude; it has {rows.table.column_names}")
        found = (
            rows.take(rows.inside(request.window, self.scope))
            .table.drop_columns(sorted(request.exclude))
            .combine_chunks()
        )
        yield from found.to_batches(request.batch_rows) or [pa.RecordBatch.from_pylist([], found.schema)]

    def reach(self) -> Rows | None:
        """The rows as they are now; raises where the side cannot be reached."""
        if self.table.fault is not None:
            raise self.table.fault
        return self.table.rows

    # --- loading ------------------------------------------------------------------------------------------------------

    def upload(self, load: Load) -> None:
        rows = self.staged(load)
        self.drop(load.claim)
        self.scratch[load.claim.record.pipeline, load.window] = Scratch(load.claim.fence, load.staged.key, rows)
        self.table.scratch += 1

    def staged(self, load: Load) -> Rows:
        """The staged rows as rows of the table, which is made where it is missing."""
        self.reach()
        with closing(load.read()) as batches:
            tables = [pa.table(batch) for batch in batches]
        staged = pa.concat_tables(tables)
        renamed = staged.rename_columns([load.columns.get(name, name) for name in staged.column_names])
        rows = self.table.fitted(renamed)
        if len(rows.inside(load.window, self.scope)) != len(rows.instants):
            raise PermanentError(
                f"{self.table.place}: found staged rows outside window {load.window}, or outside the scope "
                f"{scope_text(self.scope)}"
            )
        if self.table.rows is None:
            self.table.rows = rows.take([])  # the table is made here: a publication makes none
        return rows

    def submit(self, load: Load) -> str:
        rows, claim = self.staged(load), load.claim
        self.withdraw(claim)
        token = uuid4().hex
        scratch = Scratch(claim.fence, load.staged.key, rows)
        self.table.submitted[token] = Submitted(claim.record.pipeline, claim.window, scratch)
        self.table.scratch += 1
        return token

    def uploaded(self, token: str) -> bool:
        self.reach()
        if token not in self.table.submitted:
            raise TransientError(f"{self.table.place}: what was submitted is there no more; submit it again")
        return True

    def cancel(self, token: str) -> None:
        if self.table.submitted.pop(token, None) is not None:
            self.table.scratch -= 1

    def withdraw(self, claim: Claim) -> None:
        """Drops what was submitted of the window under this and every lower fence."""
        for token, each in list(self.table.submitted.items()):
            mine = (each.pipeline, each.window) == (claim.record.pipeline, claim.window)
            if mine and each.scratch.fence <= claim.fence:
                self.cancel(token)

    @contextmanager
    def transaction(self) -> Iterator[Publication]:
        publication = self.publication(self.table, self.scope, self.scratch)
        try:
            yield publication
            self.reach()
            publication.commit()
        finally:
            publication.release()

    def published(self, load: Load) -> bool:
        self.reach()
        claim = load.claim
        window = claim.window
        mine = Entry(claim.record.pipeline, window.start_us, window.end_us, claim.fence, self.scope)
        return mine in self.table.ledger

    def adopt(self, adoption: Adoption) -> Sequence[Entry]:
        self.reach()
        with self.table.lock:
            change = adopt(self.table.ledger, adoption, self.scope)
            if not adoption.dry_run:
                self.table.ledger = (*(e for e in self.table.ledger if e not in change.remove), *change.add)
        return [entry for entry in change.add if entry.pipeline == adoption.pipeline]

    def discard(self, claim: Claim) -> None:
        self.withdraw(claim)
        scratch = self.scratch.get((claim.record.pipeline, claim.window))
        if scratch is not None and scratch.fence <= claim.fence:
            self.drop(claim)

    def drop(self, claim: Claim) -> None:
        if self.scratch.pop((claim.record.pipeline, claim.window), None) is not None:
            self.table.scratch -= 1
