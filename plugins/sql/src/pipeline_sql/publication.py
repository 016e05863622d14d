"""The verbs of one publication, in the session that holds the uploaded rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import sqlalchemy as sa
from attrs import define, field, frozen

from pipeline_core import Load, PermanentError, Publication, TransientError, Window
from pipeline_core.ledger import enter
from pipeline_sql.engines.default import Engine
from pipeline_sql.side import Side
from pipeline_sql.tables import Column
from pipeline_sql.target_ledger import TargetLedger


@frozen
class Scratch:
    """Uploaded rows: a temporary table of the session."""

    staged_key: str
    side: Side
    table: sa.TableClause
    columns: Sequence[Column]


@define
class SqlPublication(Publication):
    """The verbs, in the session that holds the scratch. `guard` comes first, and says which scratch it is."""

    _engine: Engine
    _connection: sa.Connection
    _ledger: TargetLedger
    _scratch_of: Callable[[Load], Scratch]
    _side_of: Callable[[sa.Connection], Side | None]
    _place: str
    _side: Side | None = field(default=None, init=False)

    def guard(self, load: Load) -> None:
        self._ledger.lock(self._connection)
        overlapping = self._ledger.overlapping(self._connection, load.claim)
        change = enter(overlapping, load.claim, self._place, self._ledger.scope)
        self._ledger.apply(self._connection, change, self._engine.now_us(self._connection))
        self._side = self._scratch_of(load).side

    def delete(self, window: Window) -> int:
        side = self._guarded
        deletes = [sa.delete(side.table.clause()).where(each) for each in side.conditions(window)]
        return sum(self._connection.execute(statement).rowcount for statement in deletes)

    def insert(self, load: Load) -> None:
        scratch = self._scratch_of(load)
        self._check_unchanged(scratch.columns)
        # Written out, for each scratch has another name: SQLAlchemy would compile each of these anew.
        preparer = self._connection.dialect.identifier_preparer
        listed = ", ".join(preparer.quote_identifier(column.name) for column in scratch.columns)
        into, rows = map(preparer.format_table, (self._guarded.table.clause(), scratch.table))
        self._connection.exec_driver_sql(f"INSERT INTO {into} ({listed}) SELECT {listed} FROM {rows}")  # noqa: S608 - quoted

    def _check_unchanged(self, uploaded: Sequence[Column]) -> None:
        """Raises TransientError where a column is no longer what it was when the rows were made to fit it.

        After the delete, whose lock keeps a table of PostgreSQL from changing until the end of the transaction.
        """
        side = self._side_of(self._connection)
        changed = [column.name for column in uploaded if side is None or column not in side.table.columns]
        if changed:
            raise TransientError(
                f"{self._place}: the columns {changed} have changed since the upload; the rows are uploaded again"
            )

    def count(self, window: Window) -> int:
        side = self._guarded
        return sum(self._engine.count_ranges(self._connection, side, side.ranges(window)))

    @property
    def _guarded(self) -> Side:
        if self._side is None:
            raise PermanentError(f"{self._place}: a publication begins with guard; nothing was written")
        return self._side
