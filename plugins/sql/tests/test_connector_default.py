"""What the connector asks of an engine, in plain portable SQL: the default, run here on SQLAlchemy's SQLite dialect."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from pipeline_core import SideError
from pipeline_sql.engines.default import Engine
from pipeline_sql.side import Side
from pipeline_sql.tables import Column
from pipeline_sql.timestamps import TextTimestamps


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """An engine without anything of SQLite's own, on a table and a view."""
    opened = Engine(sa.make_url(f"sqlite:///{tmp_path / 'side.db'}"), timeout_s=5)
    with opened.writing() as connection:
        for statement in (
            'CREATE TABLE "T x" (id INTEGER NOT NULL PRIMARY KEY, at TEXT NOT NULL, "a""b" INTEGER, c INTEGER)',
            'CREATE INDEX by_time ON "T x" (at, c)',
            'CREATE VIEW v AS SELECT * FROM "T x"',
            """INSERT INTO "T x" (at, c) VALUES ('a', 1), ('b', 2), ('b', 3), ('c', 4)""",
        ):
            connection.exec_driver_sql(statement)
    yield opened
    opened.dispose()


def test_a_table_is_described(engine: Engine) -> None:
    """Columns, what an insert must fill, indexes, views; None for a table that is not there."""
    with engine.reading() as connection:
        table = engine.table(connection, None, "T x")
        view = engine.table(connection, None, "v")
        assert engine.table(connection, None, "other") is None
        assert sorted(engine.table_names(connection, None)) == ["T x", "v"]
        assert table is not None
        assert view is not None
        assert [(column.name, column.declared) for column in table.columns] == [
            ("id", "INTEGER"),
            ("at", "TEXT"),
            ('a"b', "INTEGER"),
            ("c", "INTEGER"),
        ]
        assert [column.name for column in table.columns if column.required] == ["id", "at"]
        assert (table.view, view.view) == (False, True)
        indexed = [column.name for column in table.columns if engine.indexed(connection, table, column)]
    assert indexed == ["id", "at"]


def test_ranges_are_counted(engine: Engine) -> None:
    """Each range is half-open, and counted in the order given."""
    with engine.reading() as connection:
        table = engine.table(connection, None, "T x")
        assert table is not None
        side = Side(table, table.columns[1], TextTimestamps("t", None), indexed=True)
        ranges = [("b", "d"), ("a", "b"), ("x", "z")]
        assert engine.count_ranges(connection, side, ranges) == [3, 1, 0]


def test_scratch_takes_rows(engine: Engine) -> None:
    """A temporary table takes rows of driver values, which are fetched a few at a time."""
    columns = [Column('a"b', "INTEGER"), Column("at", "TEXT")]
    with engine.sa.connect() as session:
        with engine.transaction(session, writing=False):
            scratch = engine.create_scratch(session, "my scratch", columns)
            engine.insert_rows(session, scratch, columns, [(1, "a"), (2, None)])
        with (
            engine.transaction(session, writing=True),
            engine.fetching(session, sa.select(sa.text("*")).select_from(scratch)) as fetch,
        ):
            assert [list(map(tuple, fetch(1))) for _ in range(3)] == [[(1, "a")], [(2, None)], []]


def test_no_schema_is_taken_for_unchanged(engine: Engine) -> None:
    """Plain SQL cannot tell whether a table has changed, so two versions are never the same."""
    with engine.reading() as connection:
        assert engine.schema_version(connection) != engine.schema_version(connection)


def test_types_of_an_unknown_engine(engine: Engine) -> None:
    """An engine whose types are not known says so, and which ones are."""
    with pytest.raises(SideError, match="expected one of: mariadb, postgresql, sqlite"):
        engine.types  # noqa: B018 - asking is the test
