"""The SQL side on PostgreSQL, as source and as target."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_core import (
    ClaimLostError,
    Context,
    ExtractRequest,
    Load,
    PermanentError,
    Secret,
    SideError,
    TransientError,
    Window,
)
from pipeline_core.zones import instant_of_naive, zone
from pipeline_sql import SqlSettings

START = datetime(2013, 3, 10, tzinfo=UTC)
DAY = Window(START, START + timedelta(days=1))
INSTANT = pa.timestamp("us", "UTC")
EPOCH = datetime(1970, 1, 1)
US = timedelta(microseconds=1)
HOUR = 3_600_000_000
NEW_YORK = "America/New_York"

MakeLoad = Callable[..., Load]
Publish = Callable[[Any, Load], int]


class Database:
    """One database of the server, with a plain connection beside the sides under test."""

    def __init__(self, server: Any) -> None:
        self.name = server.new_database()
        self.url = server.url(self.name)
        self.server = server
        self.connection = psycopg.connect(server.dsn(self.name), autocommit=True, prepare_threshold=None)

    def run(self, *statements: str) -> list[Any]:
        """Runs each statement; the rows of the last."""
        for statement in statements:
            cursor = self.connection.execute(statement)  # type: ignore[arg-type]
        return cursor.fetchall() if cursor.description else []

    def side(self, table: str, timestamp_column: str = "at", **more: Any) -> Any:
        """Opens a side on a table."""
        url = Secret(more.pop("url", self.url))
        context = Context("flights", more.pop("lease_s", None))
        return SqlSettings(url, table=table, timestamp_column=timestamp_column, **more).open(context)


@pytest.fixture
def database(postgres_server: Any) -> Iterator[Database]:
    """A new database."""
    made = Database(postgres_server)
    yield made
    made.connection.close()


@pytest.fixture(scope="module")
def shared(postgres_server: Any) -> Iterator[Database]:
    """A database for many examples."""
    made = Database(postgres_server)
    yield made
    made.connection.close()


def rows(hours: list[float], **columns: pa.Array) -> pa.RecordBatch:
    instants = pa.array([START + timedelta(hours=hour) for hour in hours], INSTANT)
    return pa.RecordBatch.from_pydict({"at": instants, **columns})


def extracted(connector: Any, window: Window = DAY, **more: Any) -> pa.Table:
    with closing(connector.extract(ExtractRequest(window, **more))) as batches:
        return pa.Table.from_batches(list(batches))


# --- one boundary -----------------------------------------------------------------------------------------------------

BASE = (datetime(2013, 3, 10, 9, 59, 59) - EPOCH) // US
offsets = st.builds(
    lambda seconds, us: seconds * 1_000_000 + us,
    st.integers(-2, 2),
    st.sampled_from([0, 0, 1, 2, 499_999, 500_000, 999_998, 999_999]),
)


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize(
    ("declared", "form", "more"),
    [
        ("timestamptz", lambda us: f"{EPOCH + us * US}+00", {}),
        ("timestamp", lambda us: f"{EPOCH + us * US}", {"timestamp_timezone": "UTC"}),
        ("bigint", str, {"timestamp_unit": "us"}),
    ],
)
@settings(max_examples=25, deadline=None)
@given(us=st.lists(offsets, max_size=20), cuts=st.lists(offsets, min_size=2, max_size=6, unique=True))
def test_the_boundary_at_microseconds(  # noqa: PLR0917 - pytest passes them by name
    shared: Database, index: bool, declared: str, form: Any, more: Any, us: list[int], cuts: list[int]
) -> None:
    """Count, bulk count with and without an index, and extraction hold exactly the oracle's rows."""
    cuts.sort()
    windows = [Window.from_us(BASE + a, BASE + b) for a, b in pairwise(cuts)]
    windows.append(Window.from_us(BASE + cuts[0], BASE + cuts[-1]))
    shared.run("DROP TABLE IF EXISTS rows", f"CREATE TABLE rows (at {declared}, n int)")
    with shared.connection.cursor() as cursor:
        cursor.executemany("INSERT INTO rows VALUES (%s, 1)", [(form(BASE + each),) for each in us])
    if index:
        shared.run("CREATE INDEX ON rows (at, n)")
    expected = [sorted(BASE + each for each in us if w.start_us <= BASE + each < w.end_us) for w in windows]
    with shared.side("rows", **more) as connector:
        assert list(connector.count_many(windows)) == [len(each) for each in expected]
        assert connector.count(windows[0]) == len(expected[0])
        found = [sorted(extracted(connector, w)["at"].cast(pa.int64()).to_pylist()) for w in windows]
        assert found == expected
        assert connector.excluded() == 0


@pytest.mark.parametrize("change", [datetime(2013, 3, 10, 7), datetime(2013, 11, 3, 6)])
@pytest.mark.parametrize("index", [True, False])
def test_local_times_across_a_clock_change(database: Database, change: datetime, index: bool) -> None:
    """Each naive value stands for one instant, a repeated one for its first pass and a skipped one for the jump."""
    around = (change - timedelta(hours=5) - EPOCH) // US
    stored = [around + quarter * HOUR // 4 + us for quarter in range(-12, 13) for us in (0, 1, 500_000)]
    instants = [instant_of_naive(EPOCH + us * US, zone(NEW_YORK)) for us in stored]
    middle = (change - EPOCH) // US
    windows = [Window.from_us(*cut) for cut in pairwise(middle + part * HOUR // 2 for part in range(-10, 11))]
    database.run("CREATE TABLE rows (at timestamp)", "SET timezone = 'Asia/Tokyo'")
    with database.connection.cursor() as cursor:
        cursor.executemany("INSERT INTO rows VALUES (%s)", [(EPOCH + us * US,) for us in stored])
    if index:
        database.run("CREATE INDEX ON rows (at)")
    with database.side("rows", timestamp_timezone=NEW_YORK) as connector:
        expected = [sorted(us for us in instants if w.start_us <= us < w.end_us) for w in windows]
        assert list(connector.count_many(windows)) == [len(each) for each in expected]
        found = [sorted(extracted(connector, w)["at"].cast(pa.int64()).to_pylist()) for w in windows]
        assert found == expected
        assert sum(map(len, found)) == len(stored)


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


@pytest.mark.parametrize(
    ("declared", "settings_", "message"),
    [
        ("timestamp", {}, "carries no zone; set timestamp_timezone"),
        ("timestamptz", {"timestamp_timezone": NEW_YORK}, "which is UTC; leave out timestamp_timezone"),
        ("bigint", {}, "set timestamp_unit"),
        ("bigint", {"timestamp_unit": "s", "timestamp_timezone": NEW_YORK}, "numbers since 1970 are UTC"),
        ("timestamptz", {"timestamp_unit": "s"}, "expected a timestamp, or an integer with timestamp_unit"),
        ("date", {}, "expected a timestamp"),
        ("timestamptz[]", {}, "expected a timestamp"),
        ("text", {}, "expected a timestamp"),
    ],
)
def test_settings_that_do_not_fit(shared: Database, declared: str, settings_: Any, message: str) -> None:
    """What a column's values mean is never guessed."""
    shared.run("DROP TABLE IF EXISTS rows", f"CREATE TABLE rows (at {declared})")
    with shared.side("rows", **settings_) as connector, pytest.raises(SideError, match=message):
        connector.count(DAY)


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

EVERY_TYPE = {
    "flag": pa.array([True, False, None]),
    "small": pa.array([-128, 127, None], pa.int8()),
    "whole": pa.array([-(2**31), 2**31 - 1, None], pa.int32()),
    "big": pa.array([-(2**63), 2**63 - 1, None], pa.int64()),
    "single": pa.array([0.5, -math.inf, None], pa.float32()),
    "double": pa.array([0.1, math.inf, None], pa.float64()),
    "price": pa.array([Decimal("1.10"), Decimal("-99999.99"), None], pa.decimal128(7, 2)),
    "huge": pa.array([Decimal(10) ** 33, Decimal("-0.0001"), None], pa.decimal128(38, 4)),
    "text": pa.array(["Ελληνικά 漢字 🛫", "", None]),
    "large": pa.array(['O\'Hare "x" \\N \t', "2013-03-10", None], pa.large_string()),
    "word": pa.array(["a", "b", None]).dictionary_encode(),
    "raw": pa.array([b"\x00\xff", b"", None]),
    "fixed": pa.array([b"ab", b"cd", None], pa.binary(2)),
    "day": pa.array([date(1, 1, 1), date(9999, 12, 31), None]),
    "clock": pa.array([time(0, 0), time(23, 59, 59, 999_999), None]),
    "local": pa.array([datetime(2013, 3, 10, 2, 30), datetime(1, 1, 1, 0, 0, 0, 1), None], pa.timestamp("us")),
    "zoned": pa.array([START, START - timedelta(days=9999, microseconds=1), None], pa.timestamp("us", "Asia/Tokyo")),
    "many": pa.array([[1, None], [], None], pa.list_(pa.int64())),
    "words": pa.array([["a", "{,}"], [None], None], pa.list_(pa.string())),
}


def test_every_type_keeps_its_meaning(database: Database, load: MakeLoad, publish: Publish) -> None:
    """Arrow to a made table, and back, and to a second one: equal values, of the same kind, at every step."""
    staged = pa.Table.from_batches([rows([0, 1, 23.5], **EVERY_TYPE)])
    tables = []
    for name in ("first", "second"):
        with database.side(name, create=True) as target:
            given = load(DAY, tables[-1] if tables else staged)
            target.upload(given)
            assert publish(target, given) == 3
            tables.append(extracted(target).sort_by("at"))
    assert tables[0].to_pylist() == staged.to_pylist()
    assert tables[1].equals(tables[0])
    kinds = {field.name: str(field.type) for field in tables[0].schema}
    assert (kinds["price"], kinds["huge"]) == ("decimal128(7, 2)", "decimal128(38, 4)")
    assert (kinds["local"], kinds["zoned"]) == ("timestamp[us]", "timestamp[us, tz=UTC]")
    assert (kinds["single"], kinds["whole"], kinds["small"]) == ("float", "int32", "int16")
    indexes = database.run("SELECT indexdef FROM pg_indexes WHERE tablename = 'first'")
    assert [definition.endswith("(at)") for (definition,) in indexes] == [True]


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

HOSTILE = ['"', 'a"b', "select", "sp ace", "semi;colon", "per%cent", "colon:x", "que?ry", "漢字", "Upper", "%(x)s"]


def test_hostile_names(database: Database, load: MakeLoad, publish: Publish) -> None:
    """Names are names, whatever they hold: of a table, of columns, of the timestamp column."""
    batch = rows([1], **{name: pa.array([name]) for name in HOSTILE}).rename_columns(['ti"me; --', *HOSTILE])
    for table in ("ta\"ble'; DROP", "order", "public.with.dot", "%s :x ?", "pipeline"):
        with database.side(table, 'ti"me; --', create=True) as target:
            given = load(DAY, batch, pipeline=table)
            target.upload(given)
            assert publish(target, given) == 1
            assert target.count_many([DAY, Window(DAY.end, DAY.end + timedelta(1))]) == [1, 0]
            assert extracted(target).to_pylist() == batch.to_pylist()
            assert list(target.problems()) == []


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


@pytest.fixture
def filled(database: Database, load: MakeLoad, publish: Publish) -> Iterator[Any]:
    """A target whose day holds three published rows under fence 10."""
    with database.side("t", create=True) as target:
        given = load(DAY, rows([0, 12, 23.99]), fence=10)
        target.upload(given)
        assert publish(target, given) == 3
        target.discard(given.claim)
        yield target


def test_a_publication_replaces_its_window_alone(filled: Any, load: MakeLoad, publish: Publish) -> None:
    """Rows outside the window stay; uploading and publishing again changes nothing."""
    noon = Window(START + timedelta(hours=12), START + timedelta(hours=13))
    given = load(noon, rows([12, 12.25, 12.5]), fence=11)
    for _ in range(2):
        filled.upload(given)
        assert publish(filled, given) == 3
    assert filled.count(DAY) == 5
    assert filled.published(given)


@pytest.mark.parametrize("verb", ["guard", "delete", "insert", "count"])
def test_a_failure_between_verbs_leaves_the_old_rows(filled: Any, load: MakeLoad, verb: str) -> None:
    """Whatever is raised after whichever verb, rows and ledger are as before, and the same load can publish then."""
    given = load(DAY, rows([1]), fence=11)
    filled.upload(given)

    def until(last: str) -> None:
        with filled.transaction() as verbs:
            steps: dict[str, Callable[[], object]] = {
                "guard": lambda: verbs.guard(given),
                "delete": lambda: verbs.delete(DAY),
                "insert": lambda: verbs.insert(given),
                "count": lambda: verbs.count(DAY),
            }
            for name, step in steps.items():
                step()
                if name == last:
                    raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        until(verb)
    assert filled.count(DAY) == 3
    assert not filled.published(given)
    until("none")
    assert filled.count(DAY) == 1
    assert filled.published(given)


def test_a_stale_fence_and_another_pipeline_write_nothing(filled: Any, load: MakeLoad, publish: Publish) -> None:
    """Over any span that overlaps what a later fence, or someone else, has published."""
    for window in (DAY, Window(START + timedelta(hours=23), START + timedelta(hours=30))):
        given = load(window, rows([23.5]), fence=9)
        filled.upload(given)
        with pytest.raises(ClaimLostError, match="fence 10"):
            publish(filled, given)
        filled.discard(given.claim)
    other = load(DAY, rows([1]), fence=99, pipeline="weather")
    filled.upload(other)
    with pytest.raises(PermanentError, match="give the two pipelines different tables, or scopes"):
        publish(filled, other)
    assert filled.count(DAY) == 3


def test_two_publications_of_overlapping_windows_queue(database: Database, filled: Any, load: MakeLoad) -> None:
    """The second waits at the guard until the first has committed, and then sees its entry: both cannot pass."""
    half = Window(START + timedelta(hours=6), START + timedelta(hours=18))
    outcome: list[str] = []
    mine = load(DAY, rows([1, 2]), fence=20)
    filled.upload(mine)

    def late() -> None:
        with database.side("t") as target:
            given = load(half, rows([12]), fence=15)
            target.upload(given)
            try:
                with target.transaction() as verbs:
                    verbs.guard(given)
                    outcome.append("passed")
            except ClaimLostError:
                outcome.append("refused")

    thread = threading.Thread(target=late)
    with filled.transaction() as verbs:
        verbs.guard(mine)
        thread.start()
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        while database.run(waiting) != [(1,)]:
            pass
        assert outcome == []
        verbs.delete(DAY)
        verbs.insert(mine)
    thread.join(10)
    assert outcome == ["refused"]
    assert filled.count(DAY) == 2


def test_another_tables_publication_does_not_wait(database: Database, filled: Any, load: MakeLoad) -> None:
    """The lock is a row of one table's own."""
    mine = load(DAY, rows([1]), fence=11)
    filled.upload(mine)
    with filled.transaction() as verbs:
        verbs.guard(mine)
        with database.side("u", create=True, timeout_s=5) as other:
            given = load(DAY, rows([1]), fence=1)
            other.upload(given)
            with other.transaction() as theirs:
                theirs.guard(given)
                theirs.insert(given)
            assert other.count(DAY) == 1


def test_a_publication_that_stands_still_is_cut_off(
    database: Database, filled: Any, load: MakeLoad, publish: Publish
) -> None:
    """Before its lease ends the server ends it and frees the ledger; the worker gets a transient error, and can do the
    window again.
    """
    given = load(DAY, rows([1]), fence=11)

    def stand_still(target: Any) -> None:
        with target.transaction() as verbs:
            verbs.guard(given)
            database.run("SELECT pg_sleep(0.5)")
            verbs.delete(DAY)

    with database.side("t", lease_s=0.1) as hurried:
        hurried.upload(given)
        with pytest.raises(TransientError):
            stand_still(hurried)
        assert filled.count(DAY) == 3
        for _ in range(2):  # what was uploaded went with the session: the same again, and no fault of the window
            with pytest.raises(TransientError, match="the session that held the uploaded rows is gone") as raised:
                publish(hurried, given)
            assert raised.value.side_down
        hurried.upload(given)
        assert publish(hurried, given) == 1
    filled.upload(given)
    stand_still(filled)  # a minute is allowed where no lease is shorter


def test_many_sides_make_the_table_at_once(database: Database, load: MakeLoad, publish: Publish) -> None:
    """Eight workers, each with a window: one makes the table, and every row arrives."""
    errors: list[BaseException] = []

    def work(hour: int) -> None:
        try:
            with database.side("t", create=True) as target:
                window = Window(START + timedelta(hours=hour), START + timedelta(hours=hour + 1))
                given = load(window, rows([hour]), fence=hour + 1)
                target.upload(given)
                publish(target, given)
        except BaseException as error:  # noqa: BLE001 - the thread's failure is the test's
            errors.append(error)

    threads = [threading.Thread(target=work, args=(hour,)) for hour in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert database.run("SELECT count(*) FROM t") == [(8,)]
    assert database.run("SELECT count(*) FROM pipeline_ledger") == [(8,)]


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
