"""A target whose table and staged columns differ, on each engine: new columns, changed types, and the DDL of it all."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest
import sqlalchemy as sa

from pipeline_core import Context, ExtractRequest, PermanentError, Secret, SideError, TransientError, Window
from pipeline_sql import SqlSettings

START = datetime(2013, 3, 10, tzinfo=UTC)
DAY = Window(START, datetime(2013, 3, 11, tzinfo=UTC))
MakeLoad = Callable[..., Any]
Publish = Callable[[Any, Any], int]


class Database:
    """A database with plain statements beside the sides under test."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = sa.create_engine(url)
        self.instant = "TIMESTAMP(6)" if self.engine.name == "mariadb" else "TIMESTAMPTZ"

    def run(self, *statements: str) -> list[Any]:
        """Runs each; the rows of the last."""
        rows: list[Any] = []
        with self.engine.begin() as connection:
            for statement in statements:
                found = connection.execute(sa.text(statement))
                rows = [tuple(row) for row in found] if found.returns_rows else []
        return rows

    def side(self, **more: Any) -> Any:
        """Opens a side on table `t`."""
        more = {"table": "t", "timestamp_column": "at", **more}
        return SqlSettings(Secret(self.url), **more).open(Context("flights"))

    def columns(self, table: str = "t") -> list[str]:
        """The columns that a table has now."""
        return [column["name"] for column in sa.inspect(self.engine).get_columns(table)]


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    """A new database, with an empty table."""
    made = Database(url)
    made.run(f"CREATE TABLE t (at {made.instant} NOT NULL, n INTEGER)", "CREATE INDEX t_at ON t (at)")
    yield made
    made.engine.dispose()


def rows(**columns: Any) -> pa.Table:
    """One row of noon."""
    noon = pa.array([datetime(2013, 3, 10, 12, tzinfo=UTC)], pa.timestamp("us", "UTC"))
    return pa.table({"at": noon, **{name: pa.array([value]) for name, value in columns.items()}})


def extracted(source: Any) -> list[dict[str, Any]]:
    with closing(source.extract(ExtractRequest(DAY))) as batches:
        return [row for batch in batches for row in batch.drop_columns(["at"]).to_pylist()]


def test_a_new_column_is_an_error_by_default(database: Database, load: MakeLoad) -> None:
    """It is named, with the ways out; nothing is uploaded, and the table stays as it is."""
    with database.side() as side, pytest.raises(PermanentError, match=r"no column for the staged 'gate'.*new_columns"):
        side.upload(load(DAY, rows(n=1, gate="A1")))
    assert database.columns() == ["at", "n"]


def test_a_new_column_is_added(database: Database, load: MakeLoad, publish: Publish) -> None:
    """With the type that a new table would give it; rows that were there have no value, later loads find the column."""
    with database.side(new_columns="add") as side, database.side(new_columns="add") as other:
        for fence, given in enumerate(
            [rows(n=1), rows(n=1, gate="A1", ok=True), rows(gate="A2", miles=0.5), rows(n=3)], 1
        ):
            made = load(DAY, given, fence=fence)
            for each in (side, other):  # the second one finds the table changed under it
                each.upload(made)
                assert publish(each, made) == 1
        assert extracted(side) == [{"n": 3, "gate": None, "ok": None, "miles": None}]
    assert database.columns() == ["at", "n", "gate", "ok", "miles"]


def test_a_new_column_is_left_out(database: Database, load: MakeLoad, publish: Publish) -> None:
    """Wherever it stands among the staged ones; the others arrive in their own columns."""
    given = load(DAY, rows(gate="A1", n=7).select(["gate", "n", "at"]))
    with database.side(new_columns="ignore") as side:
        side.upload(given)
        assert publish(side, given) == 1
        assert extracted(side) == [{"n": 7}]
    assert database.columns() == ["at", "n"]


@pytest.mark.parametrize("new_columns", ["error", "add", "ignore"])
def test_a_changed_type_is_refused_whatever_is_set(database: Database, load: MakeLoad, new_columns: str) -> None:
    """By column, with both types."""
    with database.side(new_columns=new_columns) as side:
        with pytest.raises(
            PermanentError, match=r"column 'n' is declared (?i:int).* and cannot hold the staged string"
        ):
            side.upload(load(DAY, rows(n="seven")))
        with pytest.raises(
            PermanentError, match=r"column 'n' is declared (?i:int).* and cannot hold the staged double"
        ):
            side.upload(load(DAY, rows(n=0.5)))
    assert database.columns() == ["at", "n"]


def test_a_column_that_rows_need_and_lack_is_refused(database: Database, load: MakeLoad) -> None:
    """It is named, also where other columns would be added."""
    database.run("ALTER TABLE t ADD COLUMN needed INTEGER NOT NULL DEFAULT 0", "DROP TABLE t")
    database.run(f"CREATE TABLE t (at {database.instant} NOT NULL, n INTEGER NOT NULL)")
    with database.side(new_columns="add") as side, pytest.raises(PermanentError, match=r"\['n'\] are NOT NULL"):
        side.upload(load(DAY, rows(other=1)))


def test_a_type_that_changes_after_the_upload_is_noticed(database: Database, load: MakeLoad, publish: Publish) -> None:
    """The rows were made to fit a column that is gone: nothing is published, and a new upload fits the new one."""
    given = load(DAY, rows(n=1))
    with database.side() as side:
        side.upload(given)
        database.run("ALTER TABLE t DROP COLUMN n", "ALTER TABLE t ADD COLUMN n TEXT")
        with pytest.raises(TransientError, match=r"the columns \['n'\] have changed since the upload"):
            publish(side, given)
        assert side.count(DAY) == 0
        with pytest.raises(PermanentError, match="cannot hold the staged int64"):
            side.upload(given)


def test_a_column_that_is_added_after_the_upload_harms_nothing(
    database: Database, load: MakeLoad, publish: Publish
) -> None:
    """Another worker may add one at any time."""
    given = load(DAY, rows(n=1))
    with database.side() as side:
        side.upload(given)
        database.run("ALTER TABLE t ADD COLUMN gate TEXT")
        assert publish(side, given) == 1


def test_scratch_of_several_loads_lies_side_by_side(database: Database, load: MakeLoad, publish: Publish) -> None:
    """Of one window under a lower fence, and of another pipeline: each is found again, and none is in the way."""
    first, low = load(DAY, rows(n=1), fence=5), load(DAY, rows(n=2), fence=4)
    other = load(DAY, rows(n=3), fence=6, pipeline="weather")
    with database.side() as side:
        for each in (first, low, other):
            side.upload(each)
        assert publish(side, first) == 1
        assert extracted(side) == [{"n": 1}]
        side.discard(low.claim)
        with pytest.raises(PermanentError, match="is not uploaded in this session"), side.transaction() as verbs:
            verbs.insert(low)
        assert publish(side, first) == 1


# --- the statements ---------------------------------------------------------------------------------------------------


def test_the_ddl_of_a_missing_target_makes_it(url: str, load: MakeLoad, publish: Publish) -> None:
    """Nothing is run; run by a person, it is all that a side without the right to make tables needs."""
    database = Database(url)
    database.run("CREATE TABLE x (y INTEGER)", "DROP TABLE x")  # a file that is there
    given = load(DAY, rows(n=1, gate="A1"), columns={"n": "num 100%"})
    with database.side(ledger="my_ledger") as side:
        statements = side.ddl(rows(n=1, gate="A1"), {"n": "num 100%"})
        assert sa.inspect(database.engine).get_table_names() == []
        assert [statement.split("(")[0].split()[:2] for statement in statements] == [
            ["CREATE", "TABLE"],
            ["CREATE", "TABLE"],
            ["CREATE", "TABLE"],
            ["CREATE", "INDEX"],
        ]
        with database.engine.begin() as connection:
            for statement in statements:
                assert statement.endswith(";")
                connection.connection.cursor().execute(statement)
        assert side.ddl(rows(n=1, gate="A1"), {"n": "num 100%"}) == []
        side.upload(given)
        assert publish(side, given) == 1
        assert list(side.problems()) == []
    names = sorted(sa.inspect(database.engine).get_table_names())
    assert names == ["my_ledger", "my_ledger_head", "t"]
    assert database.columns() == ["at", "num 100%", "gate"]
    database.engine.dispose()


def test_the_ddl_of_what_is_there_names_what_it_lacks(database: Database, load: MakeLoad, publish: Publish) -> None:
    """New columns where they may be added, and the index that counting wants."""
    database.run("DROP INDEX t_at ON t" if database.engine.name == "mariadb" else "DROP INDEX t_at")
    with database.side(new_columns="add") as side:
        given = load(DAY, rows(n=1))
        side.upload(given)
        publish(side, given)
        side.discard(given.claim)
        added, index = side.ddl(rows(n=1, gate="A1"), {})
    assert added.replace("`", '"').casefold().startswith('alter table "t" add column "gate" ')
    assert re.fullmatch(r'CREATE INDEX .*ix_t_at"? ON .*t"? \("at"\);', index.replace("`", '"'))
    assert database.columns() == ["at", "n"]


def test_a_table_whose_forerunner_kept_the_indexs_name(database: Database, load: MakeLoad, publish: Publish) -> None:
    """It was renamed away, twice, and its index was not: each new one gets a name that is free."""
    for was in ("first", "second", "third"):
        with database.side(table="made", create=True) as side:
            given = load(DAY, rows(n=1))
            side.upload(given)
            assert publish(side, given) == 1
            assert list(side.problems()) == []
        database.run(
            f"ALTER TABLE made RENAME TO {was}", "DROP TABLE pipeline_ledger", "DROP TABLE pipeline_ledger_head"
        )


def test_an_indexs_name_is_no_longer_than_the_database_takes(database: Database, load: MakeLoad) -> None:
    """Two long names that only their ends tell apart, in letters of several bytes; the same name every time."""
    table, columns = "t" * 40, ["é" * 25 + "a", "é" * 25 + "b"]
    database.run(f"CREATE TABLE {table} ({columns[0]} {database.instant}, {columns[1]} {database.instant})")
    for column in columns:
        with database.side(table=table, timestamp_column=column) as side:
            (advice,) = side.problems()
            assert side.ddl(pa.table({name: rows()["at"] for name in columns}), {})[-1] == advice.remedy
        database.run(advice.remedy)
        with database.side(table=table, timestamp_column=column) as side:
            assert list(side.problems()) == []
    with database.side(table=f"{table}2", timestamp_column=columns[0], create=True) as side:
        side.upload(load(DAY, rows().rename_columns([columns[0]])))


@pytest.mark.parametrize(
    ("changes", "staged", "error", "said"),
    [
        ({}, {"at": "ts"}, SideError, "no staged column becomes its timestamp column 'at'"),
        ({"new_columns": "ignore"}, {"at": "ts"}, SideError, "no staged column becomes its timestamp column 'at'"),
        ({"table": "fresh", "timestamp_column": "ts"}, {}, SideError, "becomes its timestamp column 'ts'"),
        ({"table": "fresh", "scope": {"gate": "A1"}}, {}, SideError, r"columns \['gate'\], which no staged"),
        ({"scope": {"n": 1}}, {"n": "m"}, SideError, r"columns \['n'\], which no staged column becomes"),
        ({}, {"n": "m"}, PermanentError, "it has no column for the staged 'm'"),
        ({"where": "1 = 1"}, {}, SideError, "where limits a source only"),
    ],
)
def test_the_ddl_refuses_what_an_upload_refuses(  # noqa: PLR0917 - pytest passes them by name
    database: Database,
    load: MakeLoad,
    changes: dict[str, Any],
    staged: dict[str, str],
    error: type[Exception],
    said: str,
) -> None:
    """No statement helps against it; where every window would fare alike, the fault is the side's."""
    with database.side(create=True, **changes) as side:
        for refuse in (
            lambda: side.ddl(rows(n=1), staged),
            lambda: side.upload(load(DAY, rows(n=1), columns=staged)),
        ):
            with pytest.raises(PermanentError, match=said) as refused:
                refuse()
            assert type(refused.value) is error
    assert sa.inspect(database.engine).has_table("fresh") is False


def test_a_view_takes_no_statement(database: Database) -> None:
    """As it takes no row."""
    database.run("CREATE VIEW v AS SELECT * FROM t")
    with database.side(table="v") as side, pytest.raises(SideError, match="it is a view"):
        side.ddl(rows(n=1), {})


def test_a_schema_that_is_missing_is_named(database: Database) -> None:
    """`create` makes tables and no schema: `doctor` says so, before a run would."""
    if database.engine.name == "sqlite":
        pytest.skip("a file of SQLite has no schemas")
    with database.side(table="nosuch.t", create=True) as side:
        (problem,) = side.problems()
        assert "no such schema (nearest: " in problem.what
        for refuse in (lambda: side.count(DAY), lambda: side.ddl(rows(n=1), {})):
            with pytest.raises(SideError, match="no such schema"):
                refuse()


def test_the_ledger_stands_where_it_is_put(database: Database, load: MakeLoad, publish: Publish) -> None:
    """It decides there as well: a stale fence and another pipeline are refused."""
    database.run("CREATE SCHEMA ops" if "postgresql" in database.url else "SELECT 1")
    ledger = "ops.published" if "postgresql" in database.url else "published"
    given = load(DAY, rows(n=1), fence=5)
    with database.side(ledger=ledger) as side:
        side.upload(given)
        assert publish(side, given) == 1
        assert side.published(given)
        late = load(DAY, rows(n=2), fence=6, pipeline="weather")
        side.upload(late)
        with pytest.raises(PermanentError, match="'flights' has published"):
            publish(side, late)
    assert database.run(f"SELECT pipeline, fence FROM {ledger}") == [("flights", 5)]
    assert "pipeline_ledger" not in sa.inspect(database.engine).get_table_names()
