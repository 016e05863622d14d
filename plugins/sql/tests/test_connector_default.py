"""What the connector asks of an engine, in plain portable SQL: the default, run here on SQLAlchemy's SQLite dialect."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import sqlalchemy as sa

from pipeline_core import Context, ExtractRequest, Load, PermanentError, Secret, SideError, Window
from pipeline_sql import SqlSettings, engines
from pipeline_sql.connector import SqlConnector
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
        indexed = [column.name for column in table.columns if engine.indexed(connection, table, column, {})]
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
        assert engine.schema_version(connection, None, "t") != engine.schema_version(connection, None, "t")


# --- types ------------------------------------------------------------------------------------------------------------

KEPT = {
    "at": ("timestamptz", pa.timestamp("us", "UTC"), datetime(2013, 3, 10, 7, 0, 0, 1, UTC)),
    "flag": ("boolean", pa.bool_(), True),
    "small": ("smallint", pa.int64(), -7),
    "big": ("bigint", pa.int64(), 2**62),
    "double": ("double precision", pa.float64(), 0.1),
    "single": ("real", pa.float64(), 0.5),
    "price": ("numeric(7,2)", pa.decimal128(7, 2), Decimal("1.10")),
    "note": ("text", pa.string(), "Ελληνικά 漢字"),
    "code": ("varchar(5)", pa.string(), "ab"),
    "mood": ("mood", pa.string(), "calm"),
    "key": ("uuid", pa.string(), "6f2f1b0e-8f4b-4a55-9d7c-1f0f3c2f6a11"),
    "raw": ("bytea", pa.binary(), b"\x00\xff"),
    "day": ("date", pa.date32(), date(2013, 3, 10)),
    "clock": ("time", pa.time64("us"), time(23, 59, 59, 999_999)),
    "local": ("timestamp", pa.timestamp("us"), datetime(2013, 3, 10, 2, 30)),
}
INSTANT = pa.timestamp("us", "UTC")
WINDOW = Window(datetime(2013, 3, 10, 7, tzinfo=UTC), datetime(2013, 3, 10, 8, tzinfo=UTC))


@pytest.fixture
def unknown(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a database of an engine that this plugin has nothing about: PostgreSQL, taken for one."""
    monkeypatch.delitem(engines._ENGINES, "postgresql")
    columns = ", ".join(f"{name} {declared}" for name, (declared, *_) in KEPT.items())
    execute(postgres_url, "CREATE TYPE mood AS ENUM ('calm', 'bright')", f"CREATE TABLE t ({columns})")
    return postgres_url


def execute(url: str, *statements: str) -> None:
    engine = Engine(sa.make_url(url), timeout_s=5)
    with engine.writing() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()


def opened(url: str, table: str = "t", **more: Any) -> AbstractContextManager[SqlConnector]:
    return SqlSettings(Secret(url), table=table, timestamp_column="at", **more).open(Context("flights"))


def test_types_that_are_kept(unknown: str, load: Callable[..., Load]) -> None:
    """Each type and its NULL go there and come back; a new table takes them too."""
    values = {
        name: pa.array([value, None if name != "at" else value], arrow) for name, (_, arrow, value) in KEPT.items()
    }
    rows = pa.table(values)
    for table in ("t", "made"):
        with opened(unknown, table, create=True) as side:
            given = load(WINDOW, rows)
            side.upload(given)
            with side.transaction() as publication:
                publication.guard(given)
                publication.delete(WINDOW)
                publication.insert(given)
                assert publication.count(WINDOW) == 2
            side.discard(given.claim)
            with closing(side.extract(ExtractRequest(WINDOW))) as batches:
                assert pa.Table.from_batches([*batches]).equals(rows), table


@pytest.mark.parametrize(
    "declared", ["interval", "jsonb", "integer[]", "numeric", "timetz", "money", "inet", "tsvector"]
)
def test_types_that_are_refused(unknown: str, declared: str) -> None:
    """What has no meaning in common is refused by its column's name; without the column all else is extracted."""
    execute(unknown, f"ALTER TABLE t ADD COLUMN odd {declared}")
    with opened(unknown) as side:
        with pytest.raises(SideError, match="column 'odd'"):
            next(side.extract(ExtractRequest(WINDOW)))
        with closing(side.extract(ExtractRequest(WINDOW, frozenset({"odd"})))) as batches:
            assert len(next(batches)) == 0


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("single", pa.array([0.1])),
        ("code", pa.array(["too long"])),
        ("small", pa.array([2**63], pa.uint64())),
        ("price", pa.array([Decimal("1.105")])),
        ("local", pa.array([datetime(2013, 3, 10, tzinfo=UTC)], pa.timestamp("us", "UTC"))),
        ("fixed", pa.array(["ab"])),
        ("milli", pa.array([datetime(2013, 3, 10, 0, 0, 0, 1)], pa.timestamp("us"))),
        ("whole", pa.array([time(0, 0, 0, 500_000)])),
    ],
)
def test_values_that_the_column_may_change_are_refused(
    unknown: str, column: str, value: pa.Array, load: Callable[..., Load]
) -> None:
    """By the column's name, before anything is published."""
    columns = ("fixed char(3)", "milli timestamp(3)", "whole time(0)")
    execute(unknown, *(f"ALTER TABLE t ADD COLUMN {each}" for each in columns))
    rows = pa.table({"at": pa.array([WINDOW.start], pa.timestamp("us", "UTC")), column: value})
    with opened(unknown) as side, pytest.raises(PermanentError, match=f"column '{column}'"):
        side.upload(load(WINDOW, rows))


@pytest.mark.parametrize(("declared", "zone"), [("timestamptz(1)", None), ("timestamp(1)", "America/New_York")])
def test_a_coarse_timestamp_column_takes_what_it_keeps(
    unknown: str, declared: str, zone: str | None, load: Callable[..., Load]
) -> None:
    """A finer instant is refused by the column's name: two could become one, and one leave its window."""
    execute(unknown, f"CREATE TABLE coarse (at {declared})")
    with opened(unknown, "coarse", timestamp_timezone=zone) as side:
        side.upload(load(WINDOW, pa.table({"at": pa.array([WINDOW.start_us + 100_000], INSTANT)})))
        with pytest.raises(PermanentError, match="column 'at': found a fraction of a second of more than 1 digits"):
            side.upload(load(WINDOW, pa.table({"at": pa.array([WINDOW.start_us + 60_000], INSTANT)})))


def test_a_time_without_a_zone_wants_one_and_a_time_with_one_none(unknown: str) -> None:
    """Never guessed, and never given twice."""
    for column, zone, message in (
        ("local", None, "set timestamp_timezone"),
        ("at", "UTC", "leave out timestamp_timezone"),
    ):
        settings = SqlSettings(Secret(unknown), table="t", timestamp_column=column, timestamp_timezone=zone)
        with settings.open(Context("flights")) as side, pytest.raises(SideError, match=message):
            side.count(WINDOW)
