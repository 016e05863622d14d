"""The ledger in the target's own database: which spans of a table are published, by whom, under which fence."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from pipeline_core import Claim, SideError
from pipeline_core.ledger import Adoption, Entry, LedgerChange, Scope, adopt, apart, scope_text
from pipeline_sql.ddl import create
from pipeline_sql.prepared import Prepared
from pipeline_sql.schema import exact_text
from pipeline_sql.settings import LONGEST_SCOPE
from pipeline_sql.tables import split

LEDGER = "pipeline_ledger"
_WHOLE = scope_text({})


class TargetLedger:
    """The entries of one target table, and what of it is this side's. `target` names that table, folded by the
    database's own case rule; `table` the ledger, if not `pipeline_ledger` in the schema `beside`.

    The entries of one scope never overlap. The table's head row is what a publication writes first, so that two of
    them queue; beside it stands a head row for each scope that was ever used, so that all entries are found by a key.
    """

    def __init__(self, table: str | None, beside: str | None, target: str, scope: Scope, place: str) -> None:
        schema, name = (beside, LEDGER) if table is None else split(table)
        self.scope = scope
        self._target = target
        self._place = place
        self._metadata = sa.MetaData(schema=schema)
        self._entries = sa.Table(
            name,
            self._metadata,
            sa.Column("target_table", exact_text(255), primary_key=True),
            sa.Column("scope", exact_text(LONGEST_SCOPE), primary_key=True),
            sa.Column("start_us", sa.BigInteger, primary_key=True, autoincrement=False),
            sa.Column("end_us", sa.BigInteger, nullable=False),
            sa.Column("pipeline", exact_text(255), nullable=False),
            sa.Column("fence", sa.BigInteger, nullable=False),
            sa.Column("published_us", sa.BigInteger, nullable=False),
        )
        self._head = sa.Table(
            f"{name}_head",
            self._metadata,
            sa.Column("target_table", exact_text(255), primary_key=True),
            sa.Column("scope", exact_text(LONGEST_SCOPE), primary_key=True),
            sa.Column("publications", sa.BigInteger, nullable=False),
        )
        self._count_up = (
            sa.update(self._head)
            .where(self._mine(self._head), self._head.c.scope == _WHOLE)
            .values(publications=self._head.c.publications + 1)
        )
        self._scopes = Prepared(sa.select(self._head.c.scope).where(self._mine(self._head)))
        self._overlapping = Prepared(self._select_overlapping())
        self._insert = Prepared(sa.insert(self._entries))
        self._delete = Prepared(
            sa.delete(self._entries).where(
                self._mine(self._entries),
                self._entries.c.scope == sa.bindparam("of_scope"),
                self._entries.c.start_us == sa.bindparam("start"),
            )
        )

    def _select_overlapping(self) -> sa.Select[Any]:
        ledger = self._entries
        start: sa.BindParameter[int] = sa.bindparam("start")
        end: sa.BindParameter[int] = sa.bindparam("end")
        of_scope = sa.and_(self._mine(ledger), ledger.c.scope == sa.bindparam("of_scope"))
        # Entries of a scope do not overlap, so only its last one that starts before the window can reach into it.
        before = sa.select(sa.func.max(ledger.c.start_us)).where(of_scope, ledger.c.start_us <= start)
        return (
            sa.select(ledger.c.pipeline, ledger.c.start_us, ledger.c.end_us, ledger.c.fence, ledger.c.scope)
            .where(
                of_scope,
                ledger.c.start_us >= sa.func.coalesce(before.scalar_subquery(), start),
                ledger.c.start_us < end,
                ledger.c.end_us > start,
            )
            .order_by(ledger.c.start_us)
        )

    @property
    def tables(self) -> list[tuple[str | None, str]]:
        """Schema and name of each of the ledger's own tables."""
        return [(each.schema, each.name) for each in (self._entries, self._head)]

    def ready(self, connection: sa.Connection) -> bool:
        """Whether `prepare` has been here."""
        return self._made(connection) and not self._headless(connection, [self.scope])

    def _made(self, connection: sa.Connection) -> bool:
        return not self.missing(connection)

    def missing(self, connection: sa.Connection) -> list[str]:
        """The statements that make those of the ledger's tables that are not there."""
        inspector = sa.inspect(connection)
        tables = [each for each in (self._entries, self._head) if not inspector.has_table(each.name, each.schema)]
        return [create(each, connection.dialect) for each in tables]

    def prepare(self, connection: sa.Connection) -> None:
        """Makes the head rows of this table and scope, once the tables are there."""
        self._add_heads(connection, [self.scope])

    def _add_heads(self, connection: sa.Connection, scopes: Sequence[Scope]) -> None:
        for scope in self._headless(connection, scopes):
            connection.execute(sa.insert(self._head).values(target_table=self._target, scope=scope, publications=0))

    def _headless(self, connection: sa.Connection, scopes: Sequence[Scope]) -> list[str]:
        """Which of the scopes, and of the table itself, have no head row."""
        found = connection.execute(sa.select(self._head.c.scope).where(self._mine(self._head))).scalars()
        return sorted({_WHOLE, *map(scope_text, scopes)} - set(found))

    def lock(self, connection: sa.Connection) -> None:
        """Waits until no other transaction publishes into the table: by writing, before any reading."""
        if connection.execute(self._count_up).rowcount != 1:
            raise SideError(
                f"{self._place}: found no row for it in {self._head.name}, which the upload makes; "
                "someone has emptied that table: run the window again"
            )

    def overlapping(self, connection: sa.Connection, claim: Claim) -> list[Entry]:
        """The entries that overlap the claim's window, of every scope that overlaps this side's."""
        scopes = [row["scope"] for row in self._scopes.rows(connection, {})]
        shared = [scope for scope in scopes if not apart(json.loads(scope), self.scope)]
        span = {"start": claim.window.start_us, "end": claim.window.end_us}
        # One by one: asked for all at once, a database may read the table's whole ledger.
        found = [self._overlapping.rows(connection, {**span, "of_scope": scope}) for scope in shared]
        return [_entry(row) for rows in found for row in rows]

    def adopt(self, connection: sa.Connection, adoption: Adoption, now_us: int) -> list[Entry]:
        """Hands entries over, under the lock of a publication; those handed over."""
        if not self._made(connection) or _WHOLE in self._headless(connection, []):
            return []  # nothing was ever published into this table
        self.lock(connection)
        ledger = self._entries
        columns = (ledger.c.pipeline, ledger.c.start_us, ledger.c.end_us, ledger.c.fence, ledger.c.scope)
        asked = sa.select(*columns).where(self._mine(ledger), ledger.c.pipeline == adoption.from_pipeline)
        entries = [_entry(row) for row in connection.execute(asked).mappings()]
        change = adopt(entries, adoption, self.scope)
        if not adoption.dry_run:
            self._add_heads(connection, [entry.scope for entry in change.add])
            self.apply(connection, change, now_us)
        return [entry for entry in change.add if entry.pipeline == adoption.pipeline]

    def apply(self, connection: sa.Connection, change: LedgerChange, now_us: int) -> None:
        """Replaces the entries removed by those added."""
        gone = [{"of_scope": scope_text(entry.scope), "start": entry.start_us} for entry in change.remove]
        added = [
            {
                "target_table": self._target,
                "scope": scope_text(entry.scope),
                "start_us": entry.start_us,
                "end_us": entry.end_us,
                "pipeline": entry.pipeline,
                "fence": entry.fence,
                "published_us": now_us,
            }
            for entry in change.add
        ]
        for statement, many in ((self._delete, gone), (self._insert, added)):
            if many:
                statement.run(connection, many)

    def holds(self, connection: sa.Connection, claim: Claim) -> bool:
        """Whether the claim's window is published under the claim's own fence."""
        if not self.ready(connection):
            return False
        ledger = self._entries
        found = connection.execute(
            sa.select(ledger.c.fence).where(
                self._mine(ledger),
                ledger.c.pipeline == claim.record.pipeline,
                ledger.c.start_us == claim.window.start_us,
                ledger.c.end_us == claim.window.end_us,
                ledger.c.fence == claim.fence,
            )
        )
        return found.first() is not None

    def _mine(self, table: sa.FromClause) -> sa.ColumnElement[bool]:
        return table.c.target_table == self._target


def _entry(row: Mapping[Any, Any]) -> Entry:
    return Entry(**{**row, "scope": json.loads(row["scope"])})
