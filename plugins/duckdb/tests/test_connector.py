"""The DuckDB side: its timestamps, its types, its plans, and what it says when something is wrong."""

from __future__ import annotations

import random
from contextlib import closing
from datetime import date
from itertools import pairwise
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from pipeline_core import ConfigError, ExtractRequest, PermanentError, SideError, TransientError, Window
from pipeline_duckdb import DuckDbSettings

NOON_US = 1_362_916_800_000_000  # 2013-03-10T12:00:00Z
NOON = Window.from_us(NOON_US, NOON_US + 3_600_000_000)
HOUR_US = 3_600_000_000


def extracted(side: Any, window: Window, **more: Any) -> pa.Table:
    with closing(side.extract(ExtractRequest(window, **more))) as batches:
        return pa.table(pa.Table.from_batches(list(batches)))


def instants(side: Any, window: Window) -> list[int]:
    return sorted(extracted(side, window).column("ts").cast(pa.int64()).to_pylist())


# --- timestamps -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("declared", ["TIMESTAMP_NS", "TIMESTAMPTZ_NS"])
def test_nanoseconds_are_truncated_never_rounded(side, sql, declared: str) -> None:
    """Before 1970 too: a row a nanosecond before a bound belongs to the window before it."""
    start, middle = -10_000_000, -1_000_000
    stamps = [middle * 1000 - 1, middle * 1000, middle * 1000 + 999]
    sql(
        f"CREATE TABLE t (ts {declared}); SET TimeZone = 'UTC'",
        *(f"INSERT INTO t SELECT make_timestamp_ns({ns})::{declared}" for ns in stamps),
    )
    zone = {"timestamp_timezone": "UTC"} if declared == "TIMESTAMP_NS" else {}
    with side(**zone) as source:
        before, after = Window.from_us(start, middle), Window.from_us(middle, middle + 1)
        assert source.count_many([before, after]) == [1, 2]
        assert instants(source, before) == [middle - 1]
        assert instants(source, after) == [middle, middle]


def test_windows_beyond_what_nanoseconds_hold_are_empty(side, sql) -> None:
    """A column of nanoseconds ends in 2262; a window after that is no error."""
    sql("CREATE TABLE t (ts TIMESTAMP_NS)", "INSERT INTO t VALUES ('2262-01-01')")
    far = Window.from_us(253_370_764_800_000_000, 253_370_764_800_000_001)
    whole = Window.from_us(-62_135_596_800_000_000, 253_370_764_800_000_000)
    with side(timestamp_timezone="UTC") as source:
        assert source.count_many([far, whole]) == [0, 1]
        assert source.excluded() == 0


def test_local_times_across_a_clock_change(side, sql) -> None:
    """A repeated time stands for its first pass, a skipped one for the jump, in counting and extracting alike."""
    spring = ["2013-03-10 01:59:59.999999", "2013-03-10 02:30:00", "2013-03-10 03:00:00"]
    autumn = ["2013-11-03 01:30:00", "2013-11-03 02:00:00"]
    sql("CREATE TABLE t (ts TIMESTAMP)", *(f"INSERT INTO t VALUES ('{stamp}')" for stamp in spring + autumn))
    jump, back = 1_362_898_800_000_000, 1_383_458_400_000_000  # 07:00Z, 06:00Z
    with side(timestamp_timezone="America/New_York") as source:
        windows = [Window.from_us(jump - HOUR_US, jump), Window.from_us(jump, jump + HOUR_US)]
        windows += [Window.from_us(back + n * HOUR_US, back + (n + 1) * HOUR_US) for n in (-1, 0, 1)]
        assert source.count_many(windows) == [1, 2, 1, 0, 1]
        assert [source.count(window) for window in windows] == [1, 2, 1, 0, 1]
        whole = Window.from_us(jump - HOUR_US, back + 2 * HOUR_US)
        assert instants(source, whole) == [jump - 1, jump, jump, back - HOUR_US // 2, back + HOUR_US]


@pytest.mark.parametrize("unit", [("TIMESTAMP_S", 1_000_000), ("TIMESTAMP_MS", 1_000)])
def test_a_coarse_target_refuses_what_it_would_round(side, sql, load, publish, unit: tuple[str, int]) -> None:
    """Whole values land; one between two of them is refused, though DuckDB would round it without a word."""
    declared, step_us = unit
    sql(f"CREATE TABLE t (ts {declared})")
    stamps = pa.timestamp("us", "UTC")
    with side(timestamp_timezone="UTC") as target:
        good = load(NOON, pa.table({"ts": pa.array([NOON_US, NOON_US + step_us], stamps)}))
        target.upload(good)
        assert publish(target, good) == 2
        assert instants(target, NOON) == [NOON_US, NOON_US + step_us]
        with pytest.raises(PermanentError, match=f"finer than its type {declared}"):
            target.upload(load(NOON, pa.table({"ts": pa.array([NOON.end_us - 1], stamps)})))


def test_staged_nanoseconds_are_truncated(side, sql, load, publish) -> None:
    """The last nanosecond of a window stays in it."""
    sql("CREATE TABLE t (ts TIMESTAMPTZ)")
    late = load(NOON, pa.table({"ts": pa.array([NOON.end_us * 1000 - 1], pa.timestamp("ns", "UTC"))}))
    with side() as target:
        target.upload(late)
        assert publish(target, late) == 1
        assert instants(target, NOON) == [NOON.end_us - 1]


def test_a_local_target_holds_the_instants_it_was_given(side, sql, load, publish) -> None:
    """Through a window in which the clock goes forward, and back out again."""
    jump = 1_362_898_800_000_000
    window = Window.from_us(jump - HOUR_US, jump + HOUR_US)
    given = [jump - HOUR_US, jump - 1, jump, jump + HOUR_US - 1]
    staged = load(window, pa.table({"ts": pa.array(given, pa.timestamp("us", "UTC"))}))
    with side(timestamp_timezone="America/New_York", create=True) as target:
        target.upload(staged)
        assert publish(target, staged) == 4
        assert instants(target, window) == given
    rows = sql("SELECT ts::VARCHAR FROM t ORDER BY ts")
    assert rows[1:3] == [("2013-03-10 01:59:59.999999",), ("2013-03-10 03:00:00",)]


def test_rows_in_no_window_are_told(side, sql) -> None:
    """NULL, infinity and years that no window reaches: excluded, and doctor names them."""
    sql(
        "CREATE TABLE t (ts TIMESTAMPTZ)",
        "INSERT INTO t VALUES (NULL), ('infinity'), ('-infinity'), ('0044-03-15 (BC)'), ('12013-01-01')",
        "INSERT INTO t VALUES ('2013-01-01')",
    )
    with side() as source:
        assert source.excluded() == 5
        (problem,) = source.problems()
        assert "5 rows" in problem.what


@pytest.mark.parametrize(
    ("declared", "timezone", "said"),
    [
        ("TIMESTAMP", None, "carries no zone; set timestamp_timezone"),
        ("TIMESTAMPTZ", "UTC", "which is UTC; leave out timestamp_timezone"),
        ("DATE", None, "expected a TIMESTAMP or TIMESTAMPTZ"),
        ("BIGINT", None, "expected a TIMESTAMP or TIMESTAMPTZ"),
    ],
)
def test_settings_that_misread_the_column_are_refused(side, sql, declared: str, timezone: str | None, said) -> None:
    """A zone is never guessed."""
    sql(f"CREATE TABLE t (ts {declared})")
    with side(timestamp_timezone=timezone) as source, pytest.raises(SideError, match=said):
        source.count(NOON)


# --- counting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step_us", [60_000_000, 1])
def test_many_windows_are_counted_as_each_alone(side, sql, step_us: int) -> None:
    """Whether their bounds share a long step or none: in any order, overlapping, repeated and empty."""
    chance = random.Random(5)
    span = 1_000 * 60_000_000
    sql(
        "CREATE TABLE t (ts TIMESTAMPTZ)",
        f"INSERT INTO t SELECT make_timestamptz({NOON_US} + (i * 2999999929) % {span}) FROM range(20000) AS r(i)",
    )
    cuts = sorted(NOON_US + chance.randrange(span // step_us) * step_us for _ in range(60))
    windows = [Window.from_us(*pair) for pair in pairwise(cuts) if pair[0] < pair[1]]
    windows += [Window.from_us(cuts[3], cuts[40]), windows[0], Window.from_us(NOON_US - step_us, NOON_US)]
    chance.shuffle(windows)
    with side() as source:
        expected = [
            sql(f"SELECT count(*) FROM t WHERE epoch_us(ts) >= {w.start_us} AND epoch_us(ts) < {w.end_us}")[0][0]
            for w in windows
        ]
        assert source.count_many(windows) == expected
        assert sum(expected) > 10_000


def test_a_count_that_takes_too_long_is_no_number(side, sql) -> None:
    """It is interrupted, and the error can heal."""
    sql(
        "CREATE VIEW t AS SELECT make_timestamptz((a.i + b.i) % 7) AS ts "
        "FROM range(9999999) AS a(i), range(9999999) AS b(i)"
    )
    with side(timeout_s=0.2) as source, pytest.raises(TransientError, match=r"longer than timeout_s = 0\.2"):
        source.count(NOON)


# --- types ------------------------------------------------------------------------------------------------------------

KEPT = {
    "BOOLEAN": "true",
    "UTINYINT": "255",
    "BIGINT": "-9223372036854775808",
    "HUGEINT": "12345678901234567890123456789012345678",
    "DOUBLE": "'nan'",
    "DECIMAL(38,3)": "12345678901234567890123456789012345.678",
    "VARCHAR": "'O''Hare\\n漢字 🛫'",
    "BLOB": "'\\x00\\xFF'::BLOB",
    "DATE": "'0001-01-01'",
    "TIME": "'23:59:59.999999'",
    "TIMESTAMP": "'2013-03-10 02:30:00'",
    "TIMESTAMPTZ": "'2013-03-10 02:30:00.000001+00'",
    "UUID": "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'",
    "JSON": """'{"a": [1, null]}'""",
    "ENUM('on', 'it''s')": "'it''s'",
    "INTEGER[]": "[1, NULL]",
    "INTEGER[2]": "[1, 2]",
    'STRUCT("a b" INTEGER, "q""t" VARCHAR[])': "{'a b': 1, 'q\"t': ['x']}",
    "MAP(VARCHAR, DOUBLE)": "MAP {'k': 0.5}",
    "MAP(DATE, TIMESTAMP[])": "MAP {'5881580-07-10'::DATE: ['294247-01-10 04:00:54.775806'::TIMESTAMP, NULL]}",
}


@pytest.mark.parametrize("declared", KEPT)
def test_a_type_that_is_kept_arrives_as_it_was(side, sql, load, publish, declared: str) -> None:
    """Extracted, and loaded into a column of the same declaration; NULL too."""
    columns = f"(ts TIMESTAMPTZ, v {declared})"
    sql(
        f"CREATE TABLE t {columns}",
        f"CREATE TABLE u {columns}",
        f"INSERT INTO t VALUES (make_timestamptz({NOON_US}), {KEPT[declared]}), (make_timestamptz({NOON_US}), NULL)",
    )
    with side() as source, side("u") as target:
        staged = load(NOON, extracted(source, NOON))
        target.upload(staged)
        assert publish(target, staged) == 2
    assert sql("SELECT count(*) FROM t") == [(2,)]
    assert sql("FROM t EXCEPT ALL FROM u") == []


@pytest.mark.parametrize("declared", ["INTERVAL", "BIT", "TIMETZ", "UNION(a INTEGER)", "VARIANT", "BIT[]"])
def test_a_type_without_counterpart_is_refused_by_name(side, sql, declared: str) -> None:
    """And passes when the column is excluded."""
    sql(f"CREATE TABLE t (ts TIMESTAMPTZ, odd {declared})", f"INSERT INTO t VALUES (make_timestamptz({NOON_US}), NULL)")
    with side() as source:
        with pytest.raises(SideError, match="column 'odd': its type"):
            extracted(source, NOON)
        assert extracted(source, NOON, exclude=frozenset({"ODD"})).column_names == ["ts"]


def test_a_number_that_no_decimal_holds_is_an_error_without_its_value(side, sql) -> None:
    """A HUGEINT of 39 digits."""
    number = 2**127 - 1
    sql("CREATE TABLE t (ts TIMESTAMPTZ, v HUGEINT)", f"INSERT INTO t VALUES (make_timestamptz({NOON_US}), {number})")
    with side() as source, pytest.raises(PermanentError, match="more than 38 digits") as caught:
        extracted(source, NOON)
    assert str(number)[:6] not in str(caught.value)


INFINITE = {
    "DATE": "'infinity'",
    "TIMESTAMP": "'-infinity'",
    "TIMESTAMP_S": "'infinity'",
    "DATE[]": "[NULL, 'infinity']",
    "STRUCT(a TIMESTAMPTZ[1])": "{'a': ['infinity']}",
    "MAP(DATE, INTEGER)": "MAP {'infinity'::DATE: 1}",
    "MAP(INTEGER, DATE)": "MAP {1: '-infinity'::DATE}",
}


def test_an_infinite_date_is_refused_by_column(side, sql) -> None:
    """Others would take it for a date in a far year; beside it all else is extracted."""
    names = {f"v{at}" for at in range(len(INFINITE))}
    listed = ", ".join(f"v{at} {declared}" for at, declared in enumerate(INFINITE))
    sql(
        f"CREATE TABLE t (ts TIMESTAMPTZ, {listed})",
        f"INSERT INTO t VALUES (make_timestamptz({NOON_US}), {', '.join(INFINITE.values())})",
    )
    with side() as source:
        for name in names:
            with pytest.raises(PermanentError, match=f"'{name}': found an infinite date"):
                extracted(source, NOON, exclude=frozenset(names - {name}))
        assert extracted(source, NOON, exclude=frozenset(names)).num_rows == 1


@pytest.mark.parametrize(
    ("declared", "value"),
    [
        ("INTEGER", pa.scalar(2**40)),
        ("FLOAT", pa.scalar(0.1)),
        ("DOUBLE", pa.scalar(2**53 + 1)),
        ("DECIMAL(9,1)", pa.scalar("1.25").cast(pa.decimal128(9, 2))),
        ("BIGINT", pa.scalar("1.25").cast(pa.decimal128(9, 2))),
        ("UUID", pa.scalar("nonsense-4711")),
        ("JSON", pa.scalar("nonsense-4711")),
        ("ENUM('a', 'b')", pa.scalar("nonsense-4711")),
        ("TIMESTAMP_S", pa.scalar(NOON_US + 1, pa.timestamp("us"))),
        ("TIME", pa.scalar(1_001, pa.time64("ns"))),
        ("STRUCT(a INTEGER)", pa.scalar({"a": 2**40})),
    ],
)
def test_a_value_that_would_not_survive_is_refused_by_column(side, sql, load, declared: str, value: Any) -> None:
    """DuckDB would round most of them silently; the message shows no value."""
    sql(f"CREATE TABLE t (ts TIMESTAMPTZ, v {declared})")
    rows = pa.table({"ts": pa.array([NOON_US], pa.timestamp("us", "UTC")), "v": pa.array([value], value.type)})
    with side() as target, pytest.raises(PermanentError, match="column 'v': 1 staged values") as caught:
        target.upload(load(NOON, rows))
    assert "4711" not in str(caught.value)
    assert sql("SELECT count(*) FROM t") == [(0,)]


@pytest.mark.parametrize(
    ("declared", "value"),
    [
        ("INTEGER", pa.scalar(1.0)),
        ("BOOLEAN", pa.scalar(1)),
        ("VARCHAR", pa.scalar(1)),
        ("TIMESTAMPTZ", pa.scalar(NOON_US, pa.timestamp("us"))),
        ("DATE", pa.scalar("2013-01-01")),
        ("BIT", pa.scalar("1")),
        ("STRUCT(a INTEGER)", pa.scalar({"b": 1})),
    ],
)
def test_a_staged_type_of_another_meaning_is_refused(side, sql, load, declared: str, value: Any) -> None:
    """Whatever DuckDB would make of it."""
    sql(f"CREATE TABLE t (ts TIMESTAMPTZ, v {declared})")
    rows = pa.table({"ts": pa.array([NOON_US], pa.timestamp("us", "UTC")), "v": pa.array([value], value.type)})
    with side() as target, pytest.raises(PermanentError, match=r"column 'v' is declared .* cannot hold"):
        target.upload(load(NOON, rows))


@pytest.mark.parametrize("odd", [pa.duration("us"), pa.decimal256(50, 0), pa.list_(pa.duration("s"))])
def test_a_staged_type_that_parquet_would_change_is_refused(side, load, odd: pa.DataType) -> None:
    """DuckDB reads a duration from Parquet as a number, and a long decimal as a binary fraction."""
    rows = pa.table({"ts": pa.array([NOON_US], pa.timestamp("us", "UTC")), "v": pa.array([None], odd)})
    with side(create=True) as target, pytest.raises(PermanentError, match="staged 'v'"):
        target.upload(load(NOON, rows))


# --- names, files, settings -------------------------------------------------------------------------------------------


def test_hostile_names_pass_unharmed(side, sql, load, publish) -> None:
    """Quotes, keywords, blanks; a table called like the file; case as DuckDB folds it."""
    sql('CREATE SCHEMA "s; --"', 'CREATE TABLE "s; --"."ware""house" ("At" TIMESTAMPTZ, "select" BIGINT, "Ä" BIGINT)')
    rows = pa.table({"AT": pa.array([NOON_US], pa.timestamp("us", "UTC")), "SELECT": [1], "Ä": [2]})
    staged = load(NOON, rows)
    with side('s; --.WARE"house', "aT") as target:
        target.upload(staged)
        assert publish(target, staged) == 1
        assert target.count(NOON) == 1
        assert extracted(target, NOON).column_names == ["At", "select", "Ä"]
        with pytest.raises(PermanentError, match="no column for the staged 'ä'"):
            target.upload(load(NOON, rows.rename_columns(["at", "select", "ä"])))
    assert sql('SELECT count(*) FROM "s; --".pipeline_ledger') == [(1,)]


def test_a_temporary_table_or_schema_of_the_same_name_is_no_matter(tmp_path, load, publish) -> None:
    """A file called main.duckdb makes the name `main.t` ambiguous to DuckDB."""
    settings = DuckDbSettings(str(tmp_path / "main.duckdb"), "t", "ts", create=True)
    staged = load(NOON, pa.table({"ts": pa.array([NOON_US], pa.timestamp("us", "UTC"))}))
    with settings.open(None) as target:  # type: ignore[arg-type]
        target.upload(staged)
        assert publish(target, staged) == 1


def test_a_missing_file_is_made_by_create_alone(side, path) -> None:
    """A misspelt path is no empty database."""
    with side() as source, pytest.raises(SideError, match="found no such file"):
        source.count(NOON)
    assert not path.exists()
    with side(create=True) as target:
        assert target.count(NOON) == 0


def test_a_file_that_is_no_database_is_named(side, path) -> None:
    """And what to do about it."""
    path.write_text("hello " * 1000)
    with side() as source, pytest.raises(SideError, match="correct the path, or move the file away"):
        source.count(NOON)


@pytest.mark.parametrize("path", ["", ":memory:", ":memory:shared"])
def test_a_database_in_memory_is_refused(path: str) -> None:
    """Each worker would have another one."""
    with pytest.raises(ConfigError, match="expected the path of a database file"):
        DuckDbSettings(path, "t", "ts")


def test_a_missing_table_or_column_names_the_nearest(side, sql) -> None:
    """Both are for a person to correct."""
    sql("CREATE TABLE flights (time_hour TIMESTAMPTZ)")
    with (
        side("flihgts", "time_hour") as source,
        pytest.raises(SideError, match=r"no such table \(nearest: 'flights'\)"),
    ):
        source.count(NOON)
    with side("flights", "timehour") as source, pytest.raises(SideError, match="nearest: 'time_hour'"):
        source.count(NOON)


def test_two_transactions_over_one_row_can_heal(side, sql, path, load, publish) -> None:
    """DuckDB aborts the second at once: another try of the whole transaction passes."""
    sql("CREATE TABLE t (ts TIMESTAMPTZ)", f"INSERT INTO t VALUES (make_timestamptz({NOON_US}))")
    staged = load(NOON, pa.table({"ts": pa.array([NOON_US], pa.timestamp("us", "UTC"))}))
    with side() as target, closing(duckdb.connect(str(path))) as other:
        target.upload(staged)
        other.execute("BEGIN; DELETE FROM t")
        with pytest.raises(TransientError, match="another transaction was in the way"):
            publish(target, staged)
        assert not target.published(staged)
        other.execute("ROLLBACK")
        assert publish(target, staged) == 1


# --- scope and where --------------------------------------------------------------------------------------------------


def test_a_scope_compares_to_the_letter(side, sql) -> None:
    """Whatever the column's collation takes for equal; numbers, booleans and dates in columns of their type."""
    sql(
        "CREATE TABLE t (ts TIMESTAMPTZ, name VARCHAR COLLATE NOCASE, n INTEGER, b BOOLEAN, d DATE)",
        f"INSERT INTO t SELECT make_timestamptz({NOON_US}), unnest(['eu', 'EU', 'o''Hare']), 1, true, '2013-03-10'",
    )
    scopes: list[tuple[dict[str, Any], int]] = [
        ({"NAME": "eu"}, 1),
        ({"name": "o'Hare"}, 1),
        ({"n": 1}, 3),
        ({"b": True, "d": date(2013, 3, 10)}, 3),
        ({"b": False}, 0),
    ]
    for scope, rows in scopes:
        with side(scope=scope) as source:
            assert source.count(NOON) == rows
            assert source.count_many([NOON, NOON]) == [rows, rows]
    for scope in ({"n": "1"}, {"naem": "eu"}):
        with side(scope=scope) as source, pytest.raises(SideError, match="scope"):
            source.count(NOON)


@pytest.mark.parametrize("where", ["n >", "n = 1) OR (true", "count(*) > 1", "m = 1", "n = 1; DROP TABLE t"])
def test_a_where_that_is_no_condition_is_refused(side, sql, where: str) -> None:
    """So that no bracket of its own widens the window."""
    sql("CREATE TABLE t (ts TIMESTAMPTZ, n INTEGER)")
    with side(where=where) as source, pytest.raises(SideError, match="where is no condition"):
        source.count(NOON)
    assert sql("SELECT count(*) FROM t") == [(0,)]


def test_a_where_limits_a_source_alone(side, sql, load) -> None:
    """Its counts and its rows; a comment at its end does no harm."""
    sql(
        "CREATE TABLE t (ts TIMESTAMPTZ, n INTEGER)",
        f"INSERT INTO t SELECT make_timestamptz({NOON_US}), range FROM range(5)",
    )
    with side(where="n < 1 OR n = 3 -- these") as source:
        assert source.count(NOON) == 2
        assert source.count_many([NOON, Window.from_us(0, 1)]) == [2, 0]
        assert sorted(extracted(source, NOON).column("n").to_pylist()) == [0, 3]
        with pytest.raises(SideError, match="limits a source only"):
            source.upload(load(NOON, pa.table({"ts": pa.array([NOON_US], pa.timestamp("us", "UTC")), "n": [1]})))


@pytest.mark.parametrize(("stranger", "shown"), [("EU", "'EU'"), (None, "None"), ("x" * 99, f"'{'x' * 59}...")])
def test_a_staged_row_outside_the_scope_is_shown(side, sql, load, stranger: str | None, shown: str) -> None:
    """By column, with what was found and what was expected; nothing is published."""
    sql("CREATE TABLE t (ts TIMESTAMPTZ, n BIGINT, region VARCHAR)")
    at = pa.array([NOON_US] * 3, pa.timestamp("us", "UTC"))
    staged = pa.table({"ts": at, "n": pa.array([1, 2, 3]), "region": pa.array(["eu", stranger, "eu"], pa.string())})
    with side(scope={"region": "eu"}) as target:
        message = rf'column "region": found 1 staged rows outside the scope, such as one of {shown}, expected \'eu\''
        with pytest.raises(PermanentError, match=message):
            target.upload(load(NOON, staged))
        assert target.count(NOON) == 0
