"""The ledger in the table's own account: which spans of a table are published, by whom, under which fence."""

from __future__ import annotations

import json
import time

from pipeline_core import Claim, SideError
from pipeline_core.ledger import Adoption, Entry, LedgerChange, Scope, adopt, scope_text
from pipeline_snowflake.names import quoted
from pipeline_snowflake.session import Session

LEDGER = "PIPELINE_LEDGER"
_COLUMNS = {
    "": "TARGET_TABLE VARCHAR NOT NULL, SCOPE VARCHAR NOT NULL, START_US NUMBER(19, 0) NOT NULL, "
    "END_US NUMBER(19, 0) NOT NULL, PIPELINE VARCHAR NOT NULL, FENCE NUMBER(19, 0) NOT NULL, "
    "PUBLISHED_US NUMBER(19, 0) NOT NULL",
    "_HEAD": "TARGET_TABLE VARCHAR NOT NULL, PUBLICATIONS NUMBER(19, 0) NOT NULL",
}


class TargetLedger:
    """The entries of one target table, found at `path`; `target` names that table.

    Entries of one scope never overlap. The table's head row is what a publication writes first: Snowflake locks the
    whole table of heads with it until the end of the transaction, and another publication waits there. No keys are
    declared, for Snowflake would not hold them.
    """

    def __init__(self, session: Session, path: tuple[str, str, str], target: str, scope: Scope) -> None:
        self.scope = scope
        self._session = session
        self._target = target
        database, schema, name = path
        self._tables = {suffix: quoted(database, schema, name + suffix) for suffix in _COLUMNS}
        self._entries, self._head = self._tables.values()
        self._name = path[2]

    def ready(self) -> bool:
        """Whether `prepare` has been here."""
        return not self.missing() and self._heads() > 0

    def missing(self) -> list[str]:
        """The statements that make those of the ledger's tables that are not there."""
        return [
            f"CREATE TABLE IF NOT EXISTS {table} ({_COLUMNS[suffix]})"
            for suffix, table in self._tables.items()
            if self._session.described(table) is None
        ]

    def prepare(self) -> None:
        """Makes this table's head row, once the tables are there. A second one, made at once, does no harm."""
        if not self._heads():
            self._session.rows(f"INSERT INTO {self._head} VALUES (?, 0)", self._target)  # noqa: S608 - quoted
            self._session.rows("COMMIT")

    def lock(self) -> None:
        """Keeps every other publication into the table out: by writing, before any reading."""
        update = f"UPDATE {self._head} SET PUBLICATIONS = PUBLICATIONS + 1 WHERE TARGET_TABLE = ?"  # noqa: S608 - quoted
        if not self._session.count(update, self._target):
            raise SideError(
                f"{self._session.place}: found no row for it in {self._name}_HEAD, which the upload makes; "
                "someone has emptied that table: run the window again"
            )

    def overlapping(self, claim: Claim) -> list[Entry]:
        """The entries of any scope that overlap the claim's window."""
        return self._found("END_US > ? AND START_US < ?", claim.window.start_us, claim.window.end_us)

    def adopt(self, adoption: Adoption) -> list[Entry]:
        """Hands entries over, under the lock of a publication; those handed over."""
        self.lock()
        change = adopt(self._found("PIPELINE = ?", adoption.from_pipeline), adoption, self.scope)
        if not adoption.dry_run:
            self.apply(change)
        return [entry for entry in change.add if entry.pipeline == adoption.pipeline]

    def apply(self, change: LedgerChange) -> None:
        """Replaces the entries removed by those added."""
        for entry in change.remove:
            self._session.rows(
                f"DELETE FROM {self._entries} WHERE TARGET_TABLE = ? AND SCOPE = ? AND START_US = ?",  # noqa: S608 - quoted
                self._target,
                scope_text(entry.scope),
                entry.start_us,
            )
        now_us = time.time_ns() // 1000
        rows = [
            (self._target, scope_text(e.scope), e.start_us, e.end_us, e.pipeline, e.fence, now_us) for e in change.add
        ]
        if rows:
            values = ", ".join(["(?, ?, ?, ?, ?, ?, ?)"] * len(rows))
            insert = f"INSERT INTO {self._entries} VALUES {values}"  # noqa: S608 - quoted
            self._session.rows(insert, *(value for row in rows for value in row))

    def holds(self, claim: Claim) -> bool:
        """Whether the claim's window is published under the claim's own fence."""
        return self.ready() and self.entered(claim)

    def entered(self, claim: Claim) -> bool:
        """The same, of a ledger that is known to be there."""
        window = claim.window
        mine = Entry(claim.record.pipeline, window.start_us, window.end_us, claim.fence, self.scope)
        return mine in self.overlapping(claim)

    def _found(self, condition: str, *values: object) -> list[Entry]:
        rows = self._session.rows(
            f"SELECT PIPELINE, START_US, END_US, FENCE, SCOPE FROM {self._entries} "  # noqa: S608 - quoted
            f"WHERE TARGET_TABLE = ? AND {condition} ORDER BY START_US, SCOPE",
            self._target,
            *values,
        )
        return [
            Entry(pipeline, int(start_us), int(end_us), int(fence), json.loads(scope))
            for pipeline, start_us, end_us, fence, scope in rows
        ]

    def _heads(self) -> int:
        query = f"SELECT COUNT(*) FROM {self._head} WHERE TARGET_TABLE = ?"  # noqa: S608 - quoted
        return self._session.count(query, self._target)
