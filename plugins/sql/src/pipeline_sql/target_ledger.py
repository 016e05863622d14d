"""The ledger in the target's own database: which spans of a table are published, by whom, under which fence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from pipeline_core import Claim, SideError
from pipeline_core.ledger import Entry, LedgerChange
from pipeline_sql.prepared import Prepared

LEDGER = "pipeline_ledger"
HEAD = "pipeline_ledger_head"


class TargetLedger:
    """The entries of one target table. `target` names it, folded by the database's own case rule.

    The entries of a table never overlap. Its head row is what a publication writes first, so that two of them queue.
    """

    def __init__(self, schema: str | None, target: str, place: str) -> None:
        self._target = target
        self._place = place
        self._metadata = sa.MetaData(schema=schema)
        self._entries = sa.Table(
            LEDGER,
            self._metadata,
            sa.Column("target_table", sa.String(255), primary_key=True),
            sa.Column("start_us", sa.BigInteger, primary_key=True, autoincrement=False),
            sa.Column("end_us", sa.BigInteger, nullable=False),
            sa.Column("pipeline", sa.String(255), nullable=False),
            sa.Column("fence", sa.BigInteger, nullable=False),
            sa.Column("published_us", sa.BigInteger, nullable=False),
        )
        self._head = sa.Table(
            HEAD,
            self._metadata,
            sa.Column("target_table", sa.String(255), primary_key=True),
            sa.Column("publications", sa.BigInteger, nullable=False),
        )
        self._count_up = (
            sa.update(self._head).where(self._mine(self._head)).values(publications=self._head.c.publications + 1)
        )
        self._overlapping = Prepared(self._select_overlapping())
        self._insert = Prepared(sa.insert(self._entries))

    def _select_overlapping(self) -> sa.Select[Any]:
        ledger = self._entries
        start: sa.BindParameter[int] = sa.bindparam("start")
        end: sa.BindParameter[int] = sa.bindparam("end")
        # Entries do not overlap, so only the last one that starts before the window can reach into it.
        before = sa.select(sa.func.max(ledger.c.start_us)).where(self._mine(ledger), ledger.c.start_us <= start)
        return (
            sa.select(ledger.c.pipeline, ledger.c.start_us, ledger.c.end_us, ledger.c.fence)
            .where(
                self._mine(ledger),
                ledger.c.start_us >= sa.func.coalesce(before.scalar_subquery(), start),
                ledger.c.start_us < end,
                ledger.c.end_us > start,
            )
            .order_by(ledger.c.start_us)
        )

    def ready(self, connection: sa.Connection) -> bool:
        """Whether `prepare` has been here."""
        inspector = sa.inspect(connection)
        if not all(inspector.has_table(each.name, each.schema) for each in self._metadata.sorted_tables):
            return False
        return connection.execute(sa.select(self._head).where(self._mine(self._head))).first() is not None

    def prepare(self, connection: sa.Connection) -> None:
        """Makes the ledger's tables, and this table's head row. DDL: never inside a publication."""
        self._metadata.create_all(connection)
        if connection.execute(sa.select(self._head).where(self._mine(self._head))).first() is None:
            connection.execute(sa.insert(self._head).values(target_table=self._target, publications=0))

    def lock(self, connection: sa.Connection) -> None:
        """Waits until no other transaction publishes into the table: by writing, before any reading."""
        if connection.execute(self._count_up).rowcount != 1:
            raise SideError(
                f"{self._place}: found no row for it in {HEAD}, which the upload makes; "
                "someone has emptied that table: run the window again"
            )

    def overlapping(self, connection: sa.Connection, claim: Claim) -> list[Entry]:
        """The entries that overlap the claim's window."""
        window = claim.window
        return [
            Entry(**row) for row in self._overlapping.rows(connection, {"start": window.start_us, "end": window.end_us})
        ]

    def apply(self, connection: sa.Connection, change: LedgerChange, now_us: int) -> None:
        """Replaces the entries removed by those added."""
        ledger = self._entries
        starts = [entry.start_us for entry in change.remove]
        for chunk in _chunks(starts):
            connection.execute(sa.delete(ledger).where(self._mine(ledger), ledger.c.start_us.in_(chunk)))
        self._insert.run(
            connection,
            [
                {
                    "target_table": self._target,
                    "start_us": entry.start_us,
                    "end_us": entry.end_us,
                    "pipeline": entry.pipeline,
                    "fence": entry.fence,
                    "published_us": now_us,
                }
                for entry in change.add
            ],
        )

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

    def _mine(self, table: sa.Table) -> sa.ColumnElement[bool]:
        return table.c.target_table == self._target


def _chunks(starts: Sequence[int], size: int = 500) -> list[Sequence[int]]:
    return [starts[at : at + size] for at in range(0, len(starts), size)]
