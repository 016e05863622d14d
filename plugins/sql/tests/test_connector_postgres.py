"""The SQL side on PostgreSQL, as source and as target."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from pipeline_core import (
    ExtractRequest,
    Load,
    PermanentError,
    SideError,
    TransientError,
    Window,
)

START = datetime(2013, 3, 10, tzinfo=UTC)
DAY = Window(START, START + timedelta(days=1))
INSTANT = pa.timestamp("us", "UTC")
EPOCH = datetime(1970, 1, 1)
US = timedelta(microseconds=1)
HOUR = 3_600_000_000
NEW_YORK = "America/New_York"

MakeLoad = Callable[..., Load]
Publish = Callable[[Any, Load], int]


Database = Any  # of the conftest


@pytest.fixture
def database(database_on: Callable[[str], Any]) -> Iterator[Any]:
    """A new database."""
    with closing(database_on("postgresql")) as made:
        yield made


@pytest.fixture(scope="module")
def shared(database_on: Callable[[str], Any]) -> Iterator[Any]:
    """A database for many examples."""
    with closing(database_on("postgresql")) as made:
        yield made


def rows(hours: list[float], **columns: pa.Array) -> pa.RecordBatch:
    instants = pa.array([START + timedelta(hours=hour) for hour in hours], INSTANT)
    return pa.RecordBatch.from_pydict({"at": instants, **columns})


def extracted(connector: Any, window: Window = DAY, **more: Any) -> pa.Table:
    with closing(connector.extract(ExtractRequest(window, **more))) as batches:
        return pa.Table.from_batches(list(batches))


# --- one boundary -----------------------------------------------------------------------------------------------------


def test_the_zone_of_the_session_changes_nothing(database: Database) -> None:
    """A database whose sessions start in another zone counts and extracts the same instants."""
    database.run(
        f"ALTER DATABASE {database.name} SET timezone = 'Asia/Tokyo'",
        "CREATE TABLE rows (at timestamptz)",
        "INSERT INTO rows VALUES ('2013-03-10 00:00Z'), ('2013-03-10 23:59:59.999999Z'), ('2013-03-11 00:00Z')",
    )
    with database.side("rows") as connector:
        assert connector.count(DAY) == 2
        assert connector.count_many([DAY, DAY]) == [2, 2]
        assert extracted(connector)["at"].to_pylist()[0] == START


def test_rows_of_no_window_are_reported(database: Database) -> None:
    """NULL, the infinities and years before 1 are excluded rows, which doctor names with a missing index."""
    database.run(
        "CREATE TABLE rows (at timestamptz)",
        "INSERT INTO rows VALUES (NULL), ('infinity'), ('-infinity'), ('0044-03-15 BC'), ('2013-03-10 12:00Z')",
    )
    with database.side("rows") as connector:
        assert connector.excluded() == 4
        found = list(connector.problems())
        assert connector.count(DAY) == 1
    assert ["no index begins with 'at'" in each.what for each in found].count(True) == 1
    assert any(each.remedy.startswith("CREATE INDEX") for each in found)
    assert any("1 rows have no 'at'" in each.what for each in found)
    assert any("3 rows hold a 'at'" in each.what for each in found)
    database.run(next(each.remedy for each in found if each.remedy.startswith("CREATE INDEX")))
    with database.side("rows") as connector:
        assert connector.excluded() == 4
        assert not any("no index" in each.what for each in connector.problems())


def test_a_partial_index_is_none(database: Database) -> None:
    """It does not find every row of a window."""
    database.run("CREATE TABLE rows (at timestamptz, n int)", "CREATE INDEX ON rows (at) WHERE n > 0")
    with database.side("rows") as connector:
        assert any("no index" in each.what for each in connector.problems())


# --- types ------------------------------------------------------------------------------------------------------------


def test_lists_and_infinities(database: Database, load: MakeLoad, publish: Publish) -> None:
    """Arrays of numbers and of texts, and numbers that only some databases have: in a made table, and back."""
    columns = {
        "single": pa.array([0.5, -math.inf, None], pa.float32()),
        "double": pa.array([0.1, math.inf, None], pa.float64()),
        "many": pa.array([[1, None], [], None], pa.list_(pa.int64())),
        "words": pa.array([["a", "{,}"], [None], None], pa.list_(pa.string())),
    }
    staged = pa.Table.from_batches([rows([0, 1, 23.5], **columns)])
    with database.side("made", create=True) as target:
        given = load(DAY, staged)
        target.upload(given)
        assert publish(target, given) == 3
        assert extracted(target).sort_by("at").to_pylist() == staged.to_pylist()


def test_types_of_an_existing_table(database: Database, load: MakeLoad, publish: Publish) -> None:
    """json as it was written, jsonb, uuid, enum, char, domains, arrays: read, and written into a table like it."""
    ddl = (
        "(at timestamptz, j json, b jsonb, u uuid, m mood, c char(2), v varchar(3), p posint, a smallint[], "
        "t text[], n numeric(50,3), ms timestamp(3))"
    )
    database.run(
        "CREATE TYPE mood AS ENUM ('sad', 'o''k')",
        "CREATE DOMAIN posint AS int CHECK (value > 0)",
        f"CREATE TABLE source {ddl}",
        f"CREATE TABLE target {ddl}",
        """INSERT INTO source VALUES ('2013-03-10 01:00Z', '{"a":  1, "a": 2}', '{"k": [1.50, null]}',
           'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11', 'o''k', 'ab', 'xyz', 7, '{1,NULL}', '{"x y",NULL}', 1.5,
           '2013-03-10 01:00:00.123')""",
        "INSERT INTO source (at) VALUES ('2013-03-10 02:00Z')",
    )
    with database.side("source") as source:
        found = extracted(source, exclude=frozenset({"n"}))
        full = extracted(source)
    assert found.to_pylist()[0] | {"at": None} == {
        "at": None,
        "j": '{"a":  1, "a": 2}',
        "b": '{"k": [1.50, null]}',
        "u": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
        "m": "o'k",
        "c": "ab",
        "v": "xyz",
        "p": 7,
        "a": [1, None],
        "t": ["x y", None],
        "ms": datetime(2013, 3, 10, 1, 0, 0, 123_000),
    }
    assert str(full.schema.field("n").type) == "decimal256(50, 3)"
    with database.side("target") as target:
        given = load(DAY, found)
        target.upload(given)
        assert publish(target, given) == 2
        with pytest.raises(PermanentError, match=r"'n' is declared numeric\(50,3\)"):
            target.upload(load(DAY, full))
    columns = "at, j::text, b, u, m, c, v, p, a, t, ms"
    assert database.run(f"SELECT {columns} FROM target EXCEPT SELECT {columns} FROM source") == []


@pytest.mark.parametrize(
    "declared", ["interval", "numeric", "money", "point", "int4range", "time with time zone", "xml", "inet"]
)
def test_a_type_without_a_counterpart_is_refused_by_name(shared: Database, declared: str) -> None:
    """Until the column is excluded: then the rest is extracted."""
    shared.run(
        "DROP TABLE IF EXISTS rows",
        f"CREATE TABLE rows (at timestamptz, odd {declared})",
        "INSERT INTO rows VALUES ('2013-03-10 00:00Z', NULL)",
    )
    with shared.side("rows") as connector:
        assert connector.count(DAY) == 1
        with pytest.raises(SideError, match=f"column 'odd': its declared type '{declared}'.*exclude"):
            extracted(connector)
        assert extracted(connector, exclude=frozenset({"odd"})).num_rows == 1


@pytest.mark.parametrize(
    ("declared", "value"),
    [("timestamp", "infinity"), ("date", "-infinity"), ("numeric(5,2)", "NaN"), ("int[]", "{{1,2},{3,4}}")],
)
def test_a_value_without_a_counterpart_is_refused(shared: Database, declared: str, value: str) -> None:
    """An infinite date, a decimal that is no number, an array of two dimensions."""
    shared.run(
        "DROP TABLE IF EXISTS rows",
        f"CREATE TABLE rows (at timestamptz, odd {declared})",
        f"INSERT INTO rows VALUES ('2013-03-10 00:00Z', '{value}')",
    )
    with shared.side("rows") as connector, pytest.raises(PermanentError, match=r"'odd'|infinity, 24:00"):
        extracted(connector)


@pytest.mark.parametrize(
    ("declared", "array"),
    [
        ("numeric(5,2)", pa.array([Decimal("1.105")], pa.decimal128(5, 3))),
        ("numeric(5,2)", pa.array([1000])),
        ("smallint", pa.array([2**15])),
        ("bigint", pa.array([2**64 - 1], pa.uint64())),
        ("double precision", pa.array([2**53 + 1])),
        ("real", pa.array([0.1])),
        ("integer", pa.array(["5"])),
        ("integer", pa.array([5.0])),
        ("text", pa.array([5])),
        ("text", pa.array(["a\0b"])),
        ("character(3)", pa.array(["ab"])),
        ("bytea", pa.array(["x"])),
        ("boolean", pa.array([1])),
        ("uuid", pa.array(["no uuid"])),
        ("date", pa.array([datetime(2013, 3, 10)], pa.timestamp("us"))),
        ("timestamp(3) without time zone", pa.array([datetime(2013, 3, 10, 0, 0, 0, 1)])),
        ("time(0) without time zone", pa.array([time(0, 0, 0, 500_000)])),
        ("timestamp with time zone", pa.array([datetime(2013, 3, 10)], pa.timestamp("us"))),
        ("text", pa.array([["a"]])),
        ("integer[]", pa.array([[2**31]])),
        ("character varying[]", pa.array([["a"]])),
        ("jsonb", pa.array([[math.nan]])),
        ("money", pa.array([5])),
        ("interval", pa.array([1], pa.duration("s"))),
    ],
)
def test_an_existing_column_refuses(shared: Database, load: MakeLoad, declared: str, array: pa.Array) -> None:
    """A type or value that the column would change is refused, naming the column and both types."""
    shared.run("DROP TABLE IF EXISTS rows", f"CREATE TABLE rows (at timestamptz, v {declared})")
    with shared.side("rows") as target, pytest.raises(PermanentError) as error:
        target.upload(load(DAY, rows([0], v=array)))
    for part in ("'v'", declared, str(array.type)):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("declared", "value", "message"),
    [("varchar(2)", "abc", "too long"), ("mood", "great", "enum"), ("json", "{", "json")],
)
def test_what_only_the_server_can_tell(
    shared: Database, load: MakeLoad, declared: str, value: str, message: str
) -> None:
    """Its refusal is a fault of the window, and quotes no value; the next upload works."""
    shared.run(
        "DROP TABLE IF EXISTS rows",
        "DROP TYPE IF EXISTS mood",
        "CREATE TYPE mood AS ENUM ('sad')",
        f"CREATE TABLE rows (at timestamptz, v {declared})",
    )
    with shared.side("rows") as target:
        with pytest.raises(PermanentError, match=message) as error:
            target.upload(load(DAY, rows([0], v=pa.array([value]))))
        assert "great" not in str(error.value)
        target.upload(load(DAY, rows([0], v=pa.nulls(1))))


def test_a_rounding_timestamp_column_is_refused(shared: Database, load: MakeLoad, publish: Publish) -> None:
    """A row just before the end would be rounded into the next window: the count inside the publication shows it."""
    shared.run("DROP TABLE IF EXISTS rows", "CREATE TABLE rows (at timestamptz(3))")
    last = pa.table({"at": pa.array([DAY.end_us - 1], INSTANT)})
    with shared.side("rows") as target:
        given = load(DAY, last)
        target.upload(given)
        assert publish(target, given) == 0


def test_memory_is_bounded(database: Database) -> None:
    """Batches come one by one from a cursor of the server, which is gone when the extraction is closed."""
    database.run(
        "CREATE TABLE rows AS SELECT '2013-03-10 00:00Z'::timestamptz + n * interval '1 ms' AS at, n FROM "
        "generate_series(0, 99999) AS n"
    )
    with database.side("rows") as connector:
        batches = connector.extract(ExtractRequest(DAY, batch_rows=7_000))
        assert len(next(batches)) == 7_000
        held = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
            "AND query LIKE '%FETCH%'"
        )
        assert database.run(held) == [(1,)]
        batches.close()
        assert database.run(held.replace("query LIKE", "state <> 'idle' AND query LIKE")) == [(0,)]
        assert sum(map(len, connector.extract(ExtractRequest(DAY)))) == 100_000


# --- the target -------------------------------------------------------------------------------------------------------


def test_a_missing_table_or_column(database: Database) -> None:
    """The nearest names are told."""
    database.run("CREATE TABLE flights (at_time timestamptz)", "CREATE SCHEMA s", "CREATE TABLE s.x (at timestamptz)")
    with database.side("Flights") as side, pytest.raises(SideError, match=r"no such table .nearest: 'flights'"):
        side.count(DAY)
    with database.side("flights") as side, pytest.raises(SideError, match=r"no timestamp column 'at' .*'at_time'"):
        side.count(DAY)
    with database.side("s.x") as side:
        assert side.count(DAY) == 0


def test_columns_that_fill_themselves(database: Database, load: MakeLoad, publish: Publish) -> None:
    """Defaults and identities need no staged column; a generated or required one is named."""
    database.run(
        "CREATE TABLE ok (id int GENERATED BY DEFAULT AS IDENTITY, s serial, d int NOT NULL DEFAULT 1, at timestamptz)",
        "CREATE TABLE needs (v int NOT NULL, at timestamptz)",
        "CREATE TABLE makes (v int GENERATED ALWAYS AS (1) STORED, at timestamptz)",
        "CREATE VIEW seen AS SELECT * FROM ok",
    )
    with database.side("ok") as target:
        given = load(DAY, rows([1]))
        target.upload(given)
        assert publish(target, given) == 1
    with database.side("needs") as target, pytest.raises(PermanentError, match=r"\['v'\] are NOT NULL"):
        target.upload(load(DAY, rows([1])))
    with database.side("makes") as target, pytest.raises(PermanentError, match="is generated"):
        target.upload(load(DAY, rows([1], v=pa.array([1]))))
    with database.side("seen") as target, pytest.raises(SideError, match="it is a view"):
        target.upload(load(DAY, rows([1])))


def test_a_count_that_takes_too_long(database: Database) -> None:
    """Is ended by the server, and is an error, never a number."""
    database.run(
        "CREATE TABLE slow AS SELECT '2013-03-10 00:00Z'::timestamptz AS at FROM generate_series(1, 100)",
        "CREATE FUNCTION nap() RETURNS boolean LANGUAGE sql AS 'SELECT true FROM (SELECT pg_sleep(0.1)) s'",
        "CREATE VIEW v AS SELECT * FROM slow WHERE nap()",
    )
    with database.side("v", timeout_s=0.2) as connector:
        with pytest.raises(TransientError, match=r"statement timeout.*index on the timestamp column") as raised:
            connector.count(DAY)
        assert not raised.value.side_down


def test_rights_that_are_missing(database: Database, load: MakeLoad) -> None:
    """Reading, making and writing without the right is a fault of the side; the password is not told."""
    url = database.server.url(database.name, "guest:hunter2")
    database.run("CREATE TABLE t (at timestamptz)")
    with (
        database.side("t", url=url) as side,
        pytest.raises(SideError, match=r"denied.*grant this") as raised,
    ):
        side.count(DAY)
    assert "hunter2" not in str(raised.value)
    with (
        database.side("new", url=url, create=True) as side,
        pytest.raises(SideError, match="permission denied for schema"),
    ):
        side.upload(load(DAY, rows([1])))


def test_identity_names_the_host_and_no_secret(database: Database) -> None:
    """Two servers on two sockets differ in it."""
    with database.side("t", url=database.server.url("d", "me:hunter2")) as side:
        identity = side.identity
    assert identity["host"] == str(database.connection.info.host)
    assert (identity["technology"], identity["database"], identity["table"]) == ("postgresql", "d", "t")
    assert "hunter2" not in str(identity)


def test_nothing_stays_behind(database: Database, load: MakeLoad) -> None:
    """Leaving the side ends its sessions, and scratch with them."""
    with database.side("t", create=True) as target:
        target.upload(load(DAY, rows([1])))
        assert database.run("SELECT count(*) FROM pg_class WHERE relname LIKE 'pipeline_scratch%'") == [(1,)]
    others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    for _ in range(200):
        if database.run(others) == [(0,)]:
            break
        database.run("SELECT pg_sleep(0.01)")
    assert database.run(others) == [(0,)]
    assert database.run("SELECT count(*) FROM pg_class WHERE relname LIKE 'pipeline_scratch%'") == [(0,)]
