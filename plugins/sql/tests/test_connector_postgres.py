"""The SQL side on PostgreSQL, as source and as target: what differs from other servers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pyarrow as pa
import pytest
import sqlalchemy as sa

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


def test_rows_that_refer_to_a_target_outlive_its_windows(database: Database, load: MakeLoad, publish: Publish) -> None:
    """Where the reference is checked at the commit: the row it means is back by then."""
    database.run(
        "CREATE TABLE t (id int PRIMARY KEY, at timestamptz)",
        "CREATE TABLE notes (id int REFERENCES t DEFERRABLE INITIALLY DEFERRED)",
    )
    with database.side("t") as target:
        for ids in ([1], [1, 2]):
            given = load(DAY, rows([1] * len(ids), id=pa.array(ids)))
            target.upload(given)
            assert publish(target, given) == len(ids)
            database.run("INSERT INTO notes VALUES (1)")
    assert database.run("SELECT count(*) FROM notes") == [(2,)]


def test_types_of_an_existing_table(database: Database, load: MakeLoad, publish: Publish) -> None:
    """json as it was written, jsonb, uuid, enum, char, domains, arrays: read, and written into a table like it."""
    ddl = (
        "(at timestamptz, j json, b jsonb, u uuid, m mood, c char(2), v varchar(3), p posint, a smallint[], "
        "t text[], n numeric(50,3), ms timestamp(3))"
    )
    database.run(
        "CREATE TYPE mood AS ENUM ('sad', 'o''k')",
        "CREATE DOMAIN wholes AS numeric(9) CHECK (value > 0)",
        "CREATE DOMAIN posint AS wholes CHECK (value < 100)",
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


@pytest.mark.parametrize(("declared", "zone"), [("timestamptz", None), ("timestamp", "America/St_Johns")])
def test_a_timestamp_column_that_rounds_is_refused(
    shared: Database, load: MakeLoad, publish: Publish, declared: str, zone: str | None
) -> None:
    """Two instants would become one, or fall into the next window; those that the column holds exactly are loaded."""
    shared.run("DROP TABLE IF EXISTS rows", f"CREATE TABLE rows (at {declared}(1))")
    with shared.side("rows", timestamp_timezone=zone) as target:
        for finer_us in (40_000, -1):
            with pytest.raises(PermanentError, match=r"'at'.*more than 1 digits.*declare the column finer"):
                target.upload(
                    load(DAY, pa.table({"at": pa.array([DAY.start_us, DAY.end_us + finer_us - 100_000], INSTANT)}))
                )
        given = load(DAY, pa.table({"at": pa.array([DAY.start_us, DAY.end_us - 100_000], INSTANT)}), fence=2)
        target.upload(given)
        assert publish(target, given) == 2
        assert extracted(target).sort_by("at")["at"].cast(pa.int64()).to_pylist() == [
            DAY.start_us,
            DAY.end_us - 100_000,
        ]


def test_an_array_of_an_enumeration(database: Database) -> None:
    """Comes as its texts, whatever they hold."""
    database.run(
        """CREATE TYPE mood AS ENUM ('a', 'b c', '{"}')""",
        "CREATE DOMAIN moods AS mood[]",
        "CREATE TABLE t (at timestamptz, m mood[], d moods)",
        """INSERT INTO t VALUES ('2013-03-10 01:00Z', ARRAY['a', 'b c', '{"}', NULL]::mood[], '{"b c"}'),
           ('2013-03-10 02:00Z', '{}', NULL)""",
    )
    with database.side("t") as source:
        found = extracted(source).sort_by("at")
    assert found["m"].to_pylist() == [["a", "b c", '{"}', None], []]
    assert found["d"].to_pylist() == [["b c"], None]


def test_what_a_role_sets_changes_no_value(database: Database) -> None:
    """Fewer digits of a float, and another way to write dates."""
    database.run(
        "CREATE TABLE t (at timestamptz, d float8, r real, day date)",
        "INSERT INTO t VALUES ('2013-03-10 01:00Z', 0.12345678901234568, 0.12345678, '2013-03-10')",
        f"ALTER DATABASE {database.name} SET extra_float_digits = 0",
        f"ALTER DATABASE {database.name} SET DateStyle = 'SQL, DMY'",
    )
    with database.side("t") as source:
        (found,) = extracted(source).to_pylist()
    assert found["at"] == START + timedelta(hours=1)
    assert found["d"] == 0.12345678901234568
    assert pa.scalar(found["r"], pa.float32()) == pa.scalar(0.12345678, pa.float32())
    assert found["day"] == START.date()


def test_a_column_of_one_length_without_a_value(database: Database, load: MakeLoad, publish: Publish) -> None:
    """No row, or NULL in each: there is no text of another length."""
    database.run("CREATE TABLE t (at timestamptz, c char(2))")
    nothing = pa.array([], pa.string())
    with database.side("t") as target:
        for fence, staged in enumerate([rows([], c=nothing), rows([1], c=pa.array([None], pa.string()))], start=1):
            given = load(DAY, staged, fence=fence)
            target.upload(given)
            assert publish(target, given) == len(staged)


@pytest.mark.parametrize("encoding", ["UTF8", "LATIN1", "SQL_ASCII"])
def test_text_keeps_its_letters_in_any_encoding(
    database: Database, load: MakeLoad, publish: Publish, encoding: str
) -> None:
    """Of the database, and of its clients by the URL: what was written is what anyone reads."""
    name = f"{database.name}_{encoding.lower()}"
    database.run(f"CREATE DATABASE {name} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
    url = f"{database.server.url(name)}&client_encoding=latin1"
    staged = rows([1], v=pa.array(["Zoë"]))
    with database.side("t", url=url, create=True) as side:
        given = load(DAY, staged)
        side.upload(given)
        assert publish(side, given) == 1
        assert extracted(side).to_pylist() == staged.to_pylist()
    with psycopg.connect(database.server.dsn(name), client_encoding="utf8") as anyone:
        assert anyone.execute("SELECT v FROM t").fetchall() == [("Zoë",)]


def test_a_lost_network_is_found_out(database: Database) -> None:
    """By the driver's own probes, unless the URL sets others."""
    with database.side("t", url=f"{database.url}&keepalives_count=9") as side, side._engine.reading() as connection:
        asked = connection.connection.driver_connection.info.get_parameters()
    assert {name: asked[name] for name in asked if name.startswith(("keepalives", "tcp_"))} == {
        "keepalives_idle": "30",
        "keepalives_interval": "10",
        "keepalives_count": "9",
    }


def test_what_a_role_ends_is_told(database: Database) -> None:
    """By its own statement_timeout, which neither an index nor timeout_s changes."""
    database.run(
        "CREATE TABLE t (at timestamptz, v int)",
        "INSERT INTO t VALUES ('2013-03-10 01:00Z', 1)",
        "CREATE VIEW slow AS SELECT at, v FROM t, pg_sleep(5)",
        f"ALTER DATABASE {database.name} SET statement_timeout = '50ms'",
    )
    with (
        database.side("slow") as source,
        pytest.raises(TransientError, match="statement_timeout of role or database"),
    ):
        extracted(source)


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


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("ALTER TABLE t ALTER v TYPE text", {"v": pa.string()}),
        ("ALTER TABLE t RENAME v TO w", {"w": pa.int32()}),
        ("ALTER TABLE t DROP v; ALTER TABLE t ADD v boolean", {"v": pa.bool_()}),
        ("DROP TABLE t; CREATE TABLE t (at timestamptz, v float8)", {"v": pa.float64()}),
        ("ALTER TABLE t RENAME TO was; ALTER TABLE u RENAME TO t", {"v": pa.string()}),
        (
            "CREATE DOMAIN other AS text; ALTER TABLE t ALTER v TYPE other; DROP DOMAIN whole; "
            "ALTER DOMAIN other RENAME TO whole",
            {"v": pa.string()},
        ),
        ("ALTER DOMAIN whole RENAME TO entire", {"v": pa.int32()}),
    ],
)
def test_a_changed_table_is_noticed(
    database: Database, load: MakeLoad, change: str, expected: dict[str, pa.DataType]
) -> None:
    """By a side that has already used it: another type or column, another table of that name, another domain."""
    database.run(
        "BEGIN; CREATE DOMAIN whole AS int; CREATE DOMAIN word AS text; "
        "CREATE TABLE t (at timestamptz, v whole); CREATE TABLE u (at timestamptz, v word); COMMIT"
    )
    before = load(DAY, rows([1]))
    with database.side("t") as side:
        side.upload(before)
        side.discard(before.claim)
        assert extracted(side).schema.field("v").type == pa.int32()
        database.run(change)
        found = extracted(side)
        assert {name: found.schema.field(name).type for name in found.column_names if name != "at"} == expected
        side.upload(load(DAY, found))


def test_a_new_index_is_noticed(database: Database) -> None:
    """By a side that has already looked for one."""
    database.run("CREATE TABLE t (at timestamptz)")
    with database.side("t") as side:
        assert any("no index" in each.what for each in side.problems())
        database.run("CREATE INDEX ON t (at)")
        assert not any("no index" in each.what for each in side.problems())


def test_a_table_is_described_once(database: Database, load: MakeLoad, publish: Publish) -> None:
    """As long as it does not change: each further window only asks whether it has."""
    described: list[str] = []
    database.run("CREATE TABLE t (at timestamptz)", "CREATE INDEX ON t (at)")
    with database.side("t") as side:

        @sa.event.listens_for(side._engine.sa, "before_cursor_execute")
        def listen(_c: Any, _cursor: Any, statement: str, _p: Any, _context: Any, _many: bool) -> None:
            described.extend(["described"] if "format_type" in statement else [])

        for fence in range(1, 4):
            if fence == 2:
                assert described  # by the first one
                described.clear()
            given = load(DAY, rows([1]), fence=fence)
            side.upload(given)
            assert publish(side, given) == side.count(DAY) == 1
            side.discard(given.claim)
    assert described == []


def test_a_missing_table_or_column(database: Database) -> None:
    """The nearest names are told."""
    database.run("CREATE TABLE flights (at_time timestamptz)", "CREATE SCHEMA s", "CREATE TABLE s.x (at timestamptz)")
    with database.side("Flights") as side, pytest.raises(SideError, match=r"no such table .nearest: 'flights'"):
        side.count(DAY)
    with database.side("flights") as side, pytest.raises(SideError, match=r"no timestamp column 'at' .*'at_time'"):
        side.count(DAY)
    with database.side("s.x") as side:
        assert side.count(DAY) == 0


def test_identity_names_the_host_and_no_secret(database: Database) -> None:
    """Two servers on two sockets differ in it."""
    with database.side("t", url=database.server.url("d", "me:hunter2")) as side:
        identity = side.identity
    assert identity["host"] == str(database.connection.info.host)
    assert (identity["technology"], identity["database"], identity["table"]) == ("postgresql", "d", "t")
    assert "hunter2" not in str(identity)
