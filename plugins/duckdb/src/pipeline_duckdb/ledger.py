"""The ledger in the file itself: which spans of a table are published, by whom, under which fence."""

from __future__ import annotations

import json
import time

import duckdb

from pipeline_core import Claim, SideError
from pipeline_core.ledger import Adoption, Entry, LedgerChange, Scope, adopt, scope_text
from pipeline_duckdb.table import fold, names, qualified, split

LEDGER = "pipeline_ledger"


class TargetLedger:
    """The entries of one target table; `target` names it, and `scope` its columns, folded by DuckDB's own case rule.
    `ledger` is where they stand, if not in `pipeline_ledger` of the schema `beside`.

    Entries of one scope never overlap. The table's head row is what a publication writes first: DuckDB aborts a second
    transaction that writes it too. No keys are declared: their indexes would cost more than these few rows.
    """

    def __init__(self, ledger: str | None, beside: str, target: str, scope: Scope, place: str) -> None:
        self.scope = scope
        self._schema, self._name = (beside, LEDGER) if ledger is None else split(ledger)
        self._head = f"{self._name}_head"
        self._target = target
        self._place = place

    def ready(self, connection: duckdb.DuckDBPyConnection) -> bool:
        """Whether `prepare` has been here."""
        return not self.missing(connection) and self._heads(connection) > 0

    def missing(self, connection: duckdb.DuckDBPyConnection) -> list[str]:
        """The statements that make those of the ledger's tables that are not there."""
        ledger, head = self._named(connection)
        statements = {
            self._name: f"CREATE TABLE {ledger} (target_table VARCHAR NOT NULL, scope VARCHAR NOT NULL, "
            "start_us BIGINT NOT NULL, end_us BIGINT NOT NULL, pipeline VARCHAR NOT NULL, fence BIGINT NOT NULL, "
            "published_us BIGINT NOT NULL)",
            self._head: f"CREATE TABLE {head} (target_table VARCHAR NOT NULL, publications BIGINT NOT NULL)",
        }
        known = {fold(name) for name in names(connection, self._schema)}
        return [statement for name, statement in statements.items() if fold(name) not in known]

    def prepare(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Makes this table's head row, once the tables are there."""
        _, head = self._named(connection)
        if not self._heads(connection):
            connection.execute(f"INSERT INTO {head} VALUES (?, 0)", [self._target])  # noqa: S608 - quoted

    def lock(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Keeps every other publication into the table out: by writing, before any reading."""
        _, head = self._named(connection)
        counted = connection.execute(
            f"UPDATE {head} SET publications = publications + 1 WHERE target_table = ?",  # noqa: S608 - quoted
            [self._target],
        ).fetchall()
        if counted != [(1,)]:
            raise SideError(
                f"{self._place}: found no row for it in {self._head}, which the upload makes; "
                "someone has emptied that table: run the window again"
            )

    def overlapping(self, connection: duckdb.DuckDBPyConnection, claim: Claim) -> list[Entry]:
        """The entries of any scope that overlap the claim's window."""
        return self._entries(connection, "end_us > ? AND start_us < ?", [claim.window.start_us, claim.window.end_us])

    def adopt(self, connection: duckdb.DuckDBPyConnection, adoption: Adoption) -> list[Entry]:
        """Hands entries over, under the lock of a publication; those handed over."""
        if not self.ready(connection):
            return []  # nothing was ever published into this table
        self.lock(connection)
        entries = self._entries(connection, "pipeline = ?", [adoption.from_pipeline])
        change = adopt(entries, adoption, self.scope)
        if not adoption.dry_run:
            self.apply(connection, change)
        return [entry for entry in change.add if entry.pipeline == adoption.pipeline]

    def apply(self, connection: duckdb.DuckDBPyConnection, change: LedgerChange) -> None:
        """Replaces the entries removed by those added."""
        ledger, _ = self._named(connection)
        for entry in change.remove:
            connection.execute(
                f"DELETE FROM {ledger} WHERE target_table = ? AND scope = ? AND start_us = ?",  # noqa: S608 - quoted
                [self._target, scope_text(entry.scope), entry.start_us],
            )
        now_us = time.time_ns() // 1000
        for entry in change.add:
            scope = scope_text(entry.scope)
            connection.execute(
                f"INSERT INTO {ledger} VALUES (?, ?, ?, ?, ?, ?, ?)",  # noqa: S608 - quoted
                [self._target, scope, entry.start_us, entry.end_us, entry.pipeline, entry.fence, now_us],
            )

    def holds(self, connection: duckdb.DuckDBPyConnection, claim: Claim) -> bool:
        """Whether the claim's window is published under the claim's own fence."""
        window = claim.window
        mine = Entry(claim.record.pipeline, window.start_us, window.end_us, claim.fence, self.scope)
        return self.ready(connection) and mine in self.overlapping(connection, claim)

    def _entries(self, connection: duckdb.DuckDBPyConnection, condition: str, values: list[object]) -> list[Entry]:
        ledger, _ = self._named(connection)
        rows = connection.execute(
            f"SELECT pipeline, start_us, end_us, fence, scope FROM {ledger} "  # noqa: S608 - quoted
            f"WHERE target_table = ? AND {condition} ORDER BY start_us, scope",
            [self._target, *values],
        ).fetchall()
        return [
            Entry(pipeline, start_us, end_us, fence, json.loads(scope))
            for pipeline, start_us, end_us, fence, scope in rows
        ]

    def _heads(self, connection: duckdb.DuckDBPyConnection) -> int:
        _, head = self._named(connection)
        query = f"SELECT count(*) FROM {head} WHERE target_table = ?"  # noqa: S608 - quoted
        return int(connection.execute(query, [self._target]).fetchall()[0][0])

    def _named(self, connection: duckdb.DuckDBPyConnection) -> tuple[str, str]:
        return qualified(connection, self._schema, self._name), qualified(connection, self._schema, self._head)
