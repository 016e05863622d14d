"""A target whose table and staged columns differ: new columns, changed types, and the statements of it all."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest

from pipeline_core import ExtractRequest, PermanentError, SideError, TransientError, Window

START = datetime(2013, 3, 10, tzinfo=UTC)
DAY = Window(START, datetime(2013, 3, 11, tzinfo=UTC))
TABLE = "CREATE TABLE t (ts TIMESTAMPTZ NOT NULL, n BIGINT)"
Sql = Callable[..., list[tuple[Any, ...]]]


def rows(**columns: Any) -> pa.Table:
    """One row of the day's begin."""
    at = pa.array([START], pa.timestamp("us", "UTC"))
    return pa.table({"ts": at, **{name: pa.array([value]) for name, value in columns.items()}})


def extracted(source: Any) -> list[dict[str, Any]]:
    with closing(source.extract(ExtractRequest(DAY))) as batches:
        return [row for batch in batches for row in batch.drop_columns(["ts"]).to_pylist()]


@pytest.mark.parametrize(
    ("new_columns", "expected"),
    [("add", [{"n": 2, "gate": "A1"}]), ("ignore", [{"n": 2}])],
)
def test_a_new_column_is_added_or_left_out(  # noqa: PLR0917 - pytest passes them by name
    sql: Sql, side: Any, load: Any, publish: Any, new_columns: str, expected: Any
) -> None:
    """As configured; a load without it finds the table as it is now."""
    sql(TABLE)
    with side(new_columns=new_columns) as target:
        for fence, given in enumerate([rows(n=1), rows(gate="A1", n=2)], 1):
            made = load(DAY, given, fence=fence)
            target.upload(made)
            assert publish(target, made) == 1
        assert extracted(target) == expected


@pytest.mark.parametrize("new_columns", ["error", "add", "ignore"])
def test_what_does_not_fit_is_refused_by_name(sql: Sql, side: Any, load: Any, new_columns: str) -> None:
    """A new column by default, a changed type whatever is set."""
    sql(TABLE)
    with side(new_columns=new_columns) as target:
        with pytest.raises(PermanentError, match="column 'n' is declared BIGINT and cannot hold the staged VARCHAR"):
            target.upload(load(DAY, rows(n="two")))
        if new_columns == "error":
            with pytest.raises(PermanentError, match=r"no column for the staged 'gate'.*new_columns"):
                target.upload(load(DAY, rows(gate="A1")))


def test_a_type_that_changes_after_the_upload_is_noticed(sql: Sql, side: Any, load: Any, publish: Any) -> None:
    """The rows were made to fit another column: nothing is published."""
    sql(TABLE)
    given = load(DAY, rows(n=1))
    with side() as target:
        target.upload(given)
        sql("ALTER TABLE t ALTER n TYPE VARCHAR")
        with pytest.raises(TransientError, match=r"the columns \['n'\] have changed since the upload"):
            publish(target, given)
        assert target.count(DAY) == 0
        sql("ALTER TABLE t ALTER n TYPE BIGINT", "ALTER TABLE t ADD COLUMN gate VARCHAR")
        assert publish(target, given) == 1


def test_the_statements_make_what_is_missing(sql: Sql, side: Any, load: Any, publish: Any) -> None:
    """None is run; run by a person, nothing is left to be made. The ledger stands where it was put."""
    sql("CREATE SCHEMA ops")
    wanted = rows(n=1, gate="A1")
    with side(ledger="ops.published") as target:
        statements = target.ddl(wanted, {"gate": "pier"})
        assert [statement.split(" (")[0] for statement in statements] == [
            'CREATE TABLE "warehouse"."ops"."published"',
            'CREATE TABLE "warehouse"."ops"."published_head"',
            'CREATE TABLE "warehouse"."main"."t"',
        ]
        assert sql("SELECT count(*) FROM duckdb_tables()") == [(0,)]
        sql(*statements)
        assert target.ddl(wanted, {"gate": "pier"}) == []
        given = load(DAY, wanted, columns={"gate": "pier"})
        target.upload(given)
        assert publish(target, given) == 1
        assert extracted(target) == [{"n": 1, "pier": "A1"}]
    assert sql("SELECT pipeline FROM ops.published") == [("flights",)]
    with side(ledger="ops.published", new_columns="add") as target:
        assert target.ddl(rows(n=1, delay=0.5), {}) == ['ALTER TABLE "warehouse"."main"."t" ADD COLUMN "delay" DOUBLE;']


@pytest.mark.parametrize(
    ("changes", "staged", "error", "said"),
    [
        ({}, {"ts": "at"}, SideError, "no staged column becomes its timestamp column 'ts'"),
        ({"table": "fresh", "timestamp_column": "at"}, {}, SideError, "becomes its timestamp column 'at'"),
        ({"table": "fresh", "scope": {"gate": "A1"}}, {}, SideError, r"columns \['gate'\], which no staged"),
        ({"scope": {"n": 1}}, {"n": "m"}, SideError, r"columns \['n'\], which no staged column becomes"),
        ({}, {"n": "m"}, PermanentError, "it has no column for the staged 'm'"),
        ({"where": "1 = 1"}, {}, SideError, "where limits a source only"),
        ({"table": "nosuch.t"}, {}, SideError, "no such schema"),
    ],
)
def test_the_statements_refuse_what_an_upload_refuses(  # noqa: PLR0917 - pytest passes them by name
    sql: Sql, side: Any, load: Any, changes: Any, staged: dict[str, str], error: type[Exception], said: str
) -> None:
    """No statement helps against it; where every window would fare alike, the fault is the side's."""
    sql(TABLE)
    with side(create=True, **changes) as target:
        for refuse in (
            lambda: target.ddl(rows(n=1), staged),
            lambda: target.upload(load(DAY, rows(n=1), columns=staged)),
        ):
            with pytest.raises(PermanentError, match=said) as refused:
                refuse()
            assert type(refused.value) is error
    assert sql("SELECT count(*) FROM duckdb_tables() WHERE table_name = 'fresh'") == [(0,)]
