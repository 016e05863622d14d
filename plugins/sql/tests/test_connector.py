"""The SQL side as a source: what it finds, extracts and refuses, on real SQLite files."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from pipeline_core import (
    ConfigError,
    Context,
    ExtractRequest,
    PermanentError,
    Secret,
    SideError,
    TransientError,
    Window,
)
from pipeline_sql import SqlSettings
from pipeline_sql.engines import sqlite as sqlite_engine

DAY = Window(datetime(2013, 3, 10, tzinfo=UTC), datetime(2013, 3, 11, tzinfo=UTC))
NOON = "2013-03-10 12:00:00Z"


def execute(path: Path, *statements: str) -> Path:
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in statements:
            connection.execute(statement)
    return path


def extracted(connector: Any, window: Window = DAY, **more: Any) -> pa.Table:
    with closing(connector.extract(ExtractRequest(window, **more))) as batches:
        return pa.Table.from_batches(list(batches))


def test_declared_types_become_arrow_types(side: Callable[..., Any], tmp_path: Path) -> None:
    """The schema follows the declared types, and an empty window has it too."""
    path = execute(
        tmp_path / "side.db",
        "CREATE TABLE t (at TIMESTAMP, i BIGINT, r DOUBLE PRECISION, s VARCHAR(9), b BLOB, l BOOLEAN, d DATE, c TIME,"
        " n DATETIME, z DATETIME, m DECIMAL(6,2), x DECIMALTEXT(30,3), bare NUMERIC, free)",
        f"INSERT INTO t VALUES ('{NOON}', 9223372036854775807, 0.5, 'é', x'00ff', 1, '2013-03-10', '10:00:00.5',"
        " '2013-03-10 10:00:00', '2013-03-10 10:00:00+01:00', 1.10, '123456789012345678901234567.001', 7, 'any')",
    )
    with side(path, "t") as connector:
        table = extracted(connector)
        empty = extracted(connector, Window.from_us(0, 1))
    kinds = {field.name: str(field.type) for field in table.schema}
    assert kinds == {
        "at": "timestamp[us, tz=UTC]",
        "i": "int64",
        "r": "double",
        "s": "string",
        "b": "binary",
        "l": "bool",
        "d": "date32[day]",
        "c": "time64[us]",
        "n": "timestamp[us]",
        "z": "timestamp[us, tz=UTC]",
        "m": "decimal128(6, 2)",
        "x": "decimal128(30, 3)",
        "bare": "double",
        "free": "string",
    }
    row = {name: str(value) for name, value in table.to_pylist()[0].items()}
    assert row["z"] == "2013-03-10 09:00:00+00:00"
    assert (row["m"], row["x"]) == ("1.10", "123456789012345678901234567.001")
    assert (row["i"], row["l"], row["c"]) == ("9223372036854775807", "True", "10:00:00.500000")
    assert (len(empty), empty.schema) == (0, table.schema)


@pytest.mark.parametrize(
    ("declared", "value", "found"),
    [
        ("INTEGER", "'secretive'", "text of the form 'xxxxxxxxx'"),
        ("INTEGER", "1.5", "a REAL"),
        ("DOUBLE", "'secretive'", "text"),
        ("TEXT", "x'41'", "a BLOB"),
        ("BLOB", "'secretive'", "text"),
        ("BOOLEAN", "2", "an INTEGER"),
        ("DATE", "'2013-3-10'", "text of the form '0000-0-00'"),
        ("TIME", "'25:00:00'", "text"),
        ("TIMESTAMPTZ", "'2013-03-10 10:00:00'", "text"),
        ("DECIMAL(6,2)", "1.105", "a REAL"),
        ("DECIMAL(6,2)", "123456.5", "a REAL"),
        ("DECIMALTEXT(6,2)", "'secretive'", "text"),
        ("NUMERIC", "9007199254740993", "an INTEGER"),
    ],
)
def test_a_value_that_its_column_does_not_declare(
    side: Callable[..., Any], tmp_path: Path, declared: str, value: str, found: str
) -> None:
    """Nothing is rounded, cut or turned into NULL: the error names table, column, type and row, not the value."""
    path = execute(
        tmp_path / "side.db",
        f"CREATE TABLE t (at TIMESTAMP, v {declared})",
        f"INSERT INTO t VALUES ('2013-03-10 11:00:00Z', NULL), ('{NOON}', {value})",
    )
    with side(path, "t") as connector:
        with pytest.raises(PermanentError) as error:
            extracted(connector)
        assert len(extracted(connector, exclude=frozenset({"V"}))) == 2
    message = str(error.value)
    assert "table 't', column 'v', row at 2013-03-10 12:00:00" in message
    assert f"found {found}" in message
    assert "secretive" not in message


def test_rows_come_in_batches_of_the_size_asked_for(side: Callable[..., Any], tmp_path: Path) -> None:
    """Batches are full but for the last, and together every row once, across the ranges that a window is cut into."""
    path = execute(
        tmp_path / "side.db",
        "CREATE TABLE t (at TEXT, n INTEGER)",
        "WITH RECURSIVE k(n) AS (VALUES (0) UNION ALL SELECT n + 1 FROM k WHERE n < 4999)"
        " INSERT INTO t SELECT strftime(iif(n % 2, '%Y-%m-%dT%H:%M:%SZ', '%Y-%m-%d %H:%M:%SZ'),"
        " '2013-03-09 20:00:00', (n * 10) || ' seconds'), n FROM k",
        "CREATE INDEX by_time ON t (at)",
    )
    window = Window(datetime(2013, 3, 9, 20, tzinfo=UTC), datetime(2013, 3, 11, tzinfo=UTC))
    with side(path, "t") as connector, closing(connector.extract(ExtractRequest(window, batch_rows=2100))) as batches:
        found = list(batches)
    assert [len(batch) for batch in found] == [2100, 2100, 800]
    assert sorted(n for batch in found for n in batch["n"].to_pylist()) == list(range(5000))


def test_closing_an_extraction_releases_its_cursor(side: Callable[..., Any], tmp_path: Path) -> None:
    """After close, and after leaving the side, another program can lock the file for itself."""
    path = execute(
        tmp_path / "side.db",
        "CREATE TABLE t (at TEXT)",
        "WITH RECURSIVE k(n) AS (VALUES (0) UNION ALL SELECT n + 1 FROM k WHERE n < 9999)"
        f" INSERT INTO t SELECT '{NOON}' FROM k",
    )

    def lock() -> None:
        with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")

    with side(path, "t") as connector:
        batches = connector.extract(ExtractRequest(DAY, batch_rows=10))
        next(batches)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            lock()
        batches.close()
        lock()
        next(connector.extract(ExtractRequest(DAY, batch_rows=10)))
    lock()


def test_exclude_must_name_columns(side: Callable[..., Any], tmp_path: Path) -> None:
    """A misspelt column is an error with the nearest name; the timestamp column cannot be left out."""
    path = execute(tmp_path / "side.db", "CREATE TABLE t (at TEXT, carrier TEXT)")
    with side(path, "t") as connector:
        with pytest.raises(SideError, match=r"no column of it: 'carier' .*'carrier'"):
            extracted(connector, exclude=frozenset({"carier"}))
        with pytest.raises(SideError, match="timestamp column 'AT'"):
            extracted(connector, exclude=frozenset({"AT"}))


def test_missing_things_are_named_with_the_nearest(side: Callable[..., Any], tmp_path: Path) -> None:
    """A missing table, column or file is a fault of the side, and nothing is made by looking for it."""
    path = execute(tmp_path / "side.db", "CREATE TABLE flights (at TEXT)")
    with side(path, "flihgts") as connector, pytest.raises(SideError, match=r"no such table .*'flights'"):
        connector.count(DAY)
    with side(path, "flights", "att") as connector, pytest.raises(SideError, match=r"no timestamp column 'att' .*'at'"):
        connector.count(DAY)
    missing = tmp_path / "missing.db"
    with side(missing, "flights") as connector, pytest.raises(SideError, match="no such file"):
        connector.count(DAY)
    with side(missing, "flights") as connector:
        assert [problem.what for problem in connector.problems()]
    assert not missing.exists()
    (tmp_path / "junk.db").write_bytes(b"no database" * 1000)
    with side(tmp_path / "junk.db", "flights") as connector, pytest.raises(SideError, match="not a database"):
        connector.count(DAY)


def test_an_unknown_declared_type_must_be_excluded(side: Callable[..., Any], tmp_path: Path) -> None:
    """A declared type that says nothing is not guessed."""
    path = execute(tmp_path / "side.db", "CREATE TABLE t (at TEXT, v MONEY)", f"INSERT INTO t VALUES ('{NOON}', 1)")
    with side(path, "t") as connector:
        with pytest.raises(SideError, match="'MONEY' is not known"):
            extracted(connector)
        assert extracted(connector, exclude=frozenset({"v"})).column_names == ["at"]


def test_a_view_is_a_source(side: Callable[..., Any], tmp_path: Path) -> None:
    """A view counts and extracts; its computed columns take the type of their first value; its table's index serves."""
    path = execute(
        tmp_path / "side.db",
        "CREATE TABLE t (at TEXT, a INTEGER)",
        "CREATE INDEX by_time ON t (at)",
        f"INSERT INTO t VALUES ('{NOON}', 1), ('{NOON}', 2)",
        "CREATE VIEW v AS SELECT at, a * 1.5 AS more, a || '' AS words FROM t",
    )
    with side(path, "v") as connector:
        assert connector.count(DAY) == 2
        assert extracted(connector).to_pydict()["more"] == [1.5, 3.0]
        assert extracted(connector).to_pydict()["words"] == ["1", "2"]
        assert list(connector.problems()) == []


def test_doctor_advises_the_missing_index_with_its_ddl(side: Callable[..., Any], tmp_path: Path) -> None:
    """The remedy is a statement that runs, and cures."""
    path = execute(tmp_path / "side.db", 'CREATE TABLE "my ""t" (at TEXT)')
    with side(path, 'my "t') as connector:
        (problem,) = connector.problems()
        assert "no index begins with 'at'" in problem.what
        execute(path, problem.remedy)
        assert list(connector.problems()) == []


def test_counting_uses_the_index(side: Callable[..., Any], tmp_path: Path) -> None:
    """Many windows in a table with an index cost a few steps of the database's machine each, not a pass each.

    So it is in one opened side as the index comes and goes.
    """
    rows = (
        "WITH RECURSIVE k(n) AS (VALUES (0) UNION ALL SELECT n + 1 FROM k WHERE n < 19999)"
        " INSERT INTO t SELECT datetime('2013-03-10', n || ' seconds') || 'Z' FROM k"
    )
    path = execute(tmp_path / "side.db", "CREATE TABLE t (at TEXT)", rows)
    start = DAY.start_us
    windows = [Window.from_us(start + n * 1_000_000, start + (n + 1) * 1_000_000) for n in range(0, 20_000, 200)]

    def looks(connector: Any) -> int:
        """How many thousand steps the count took."""
        seen: list[int] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sqlite_engine, "_STEPS_BETWEEN_LOOKS", 1000)
            patch.setattr(sqlite_engine, "time", SimpleNamespace(monotonic=lambda: len(seen.append(0) or seen) * 0.0))
            assert connector.count_many(windows) == [1] * len(windows)
        return len(seen)

    with side(path, "t") as connector:
        scan = looks(connector)
        execute(path, "CREATE INDEX by_time ON t (at)")
        assert looks(connector) * 5 < scan < 100 * len(windows)  # without the index one pass serves all the windows
        execute(path, "DROP INDEX by_time")
        assert looks(connector) < 100 * len(windows)


def test_a_column_that_goes_is_extracted_no_more(side: Callable[..., Any], tmp_path: Path) -> None:
    """Columns are those of the moment: SQLite would read a quoted name that is gone as a text of those letters."""
    path = execute(tmp_path / "side.db", "CREATE TABLE t (at TEXT, s TEXT)", f"INSERT INTO t VALUES ('{NOON}', 'x')")
    with side(path, "t") as connector:
        assert extracted(connector).column_names == ["at", "s"]
        execute(path, "ALTER TABLE t DROP COLUMN s")
        assert extracted(connector).column_names == ["at"]
        execute(path, "ALTER TABLE t RENAME COLUMN at TO moment")
        with pytest.raises(SideError, match="no timestamp column 'at'"):
            connector.count(DAY)


def test_a_count_that_takes_too_long_is_no_number(side: Callable[..., Any], tmp_path: Path) -> None:
    """A query past timeout_s ends with a TransientError."""
    path = execute(
        tmp_path / "side.db",
        "CREATE VIEW t AS WITH RECURSIVE k(n) AS (VALUES (0) UNION ALL SELECT n + 1 FROM k WHERE n < 100000000)"
        f" SELECT '{NOON}' AS at FROM k",
    )
    with side(path, "t", timeout_s=0.2) as connector, pytest.raises(TransientError, match="longer than timeout_s"):
        connector.count(DAY)


def test_a_locked_database_heals(side: Callable[..., Any], tmp_path: Path) -> None:
    """Another program's lock is transient."""
    path = execute(tmp_path / "side.db", "CREATE TABLE t (at TEXT)")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with side(path, "t", timeout_s=0.1) as connector, pytest.raises(TransientError, match="locked"):
            connector.count(DAY)


def test_text_that_is_no_utf8(side: Callable[..., Any], tmp_path: Path) -> None:
    """Broken text is an error, not a replacement character."""
    path = execute(
        tmp_path / "side.db",
        "CREATE TABLE t (at TEXT, s TEXT)",
        f"INSERT INTO t VALUES ('{NOON}', CAST(x'ff' || 'secretive' AS TEXT))",
    )
    with side(path, "t") as connector, pytest.raises(PermanentError, match="UTF-8 column 's'") as error:
        extracted(connector)
    assert "secretive" not in str(error.value)


def test_identity_names_the_side_and_no_secret(side: Callable[..., Any], tmp_path: Path) -> None:
    """Technology, absolute path, table, column and zone; the same from a relative path."""
    with side(tmp_path / "side.db", "main.t", timestamp_timezone="Europe/Paris") as connector:
        assert dict(connector.identity) == {
            "technology": "sqlite",
            "database": str(tmp_path / "side.db"),
            "table": "main.t",
            "timestamp_column": "at",
            "timestamp_timezone": "Europe/Paris",
        }


def test_settings_are_checked() -> None:
    """An unknown zone or unit, an empty name and an unreadable URL are refused; the URL is never shown."""
    url = Secret("sqlite:///x.db")
    for wrong in (
        {"table": ""},
        {"timestamp_timezone": "Mars/Olympus"},
        {"timestamp_unit": "h"},
        {"timeout_s": 0},
    ):
        with pytest.raises(ValueError, match=r"table|Mars|timestamp_unit|timeout_s"):
            SqlSettings(**{"url": url, "table": "t", "timestamp_column": "at", **wrong})  # type: ignore[arg-type]
    broken = SqlSettings(Secret("hunter2-no-url"), table="t", timestamp_column="at")
    with pytest.raises(ConfigError) as error, broken.open(Context("flights")):
        pass
    assert "hunter2" not in str(error.value) + repr(broken)
