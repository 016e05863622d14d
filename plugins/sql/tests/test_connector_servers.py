"""The SQL side on each server, as source and as target: what does not depend on which one it is."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_core import (
    ClaimLostError,
    ExtractRequest,
    Load,
    PermanentError,
    SideError,
    TransientError,
    Window,
)
from pipeline_core.zones import instant_of_naive, zone

START = datetime(2013, 3, 10, tzinfo=UTC)
DAY = Window(START, START + timedelta(days=1))
INSTANT = pa.timestamp("us", "UTC")
EPOCH = datetime(1970, 1, 1)
US = timedelta(microseconds=1)
HOUR = 3_600_000_000
NEW_YORK = "America/New_York"

Database = Any  # of the conftest
MakeLoad = Callable[..., Load]
Publish = Callable[[Any, Load], int]


@pytest.fixture(scope="module", params=["postgresql", "mariadb"])
def shared(request: pytest.FixtureRequest, database_on: Callable[[str], Any]) -> Iterator[Any]:
    """A database for many examples, on each server in turn."""
    with closing(database_on(request.param)) as made:
        yield made


@pytest.fixture(params=["postgresql", "mariadb"])
def database(request: pytest.FixtureRequest, database_on: Callable[[str], Any]) -> Iterator[Any]:
    """A new database, on each server in turn."""
    with closing(database_on(request.param)) as made:
        yield made


def rows(hours: list[float], **columns: pa.Array) -> pa.RecordBatch:
    instants = pa.array([START + timedelta(hours=hour) for hour in hours], INSTANT)
    return pa.RecordBatch.from_pydict({"at": instants, **columns})


def extracted(connector: Any, window: Window = DAY, **more: Any) -> pa.Table:
    with closing(connector.extract(ExtractRequest(window, **more))) as batches:
        return pa.Table.from_batches(list(batches))


BASE = (datetime(2013, 3, 10, 9, 59, 59) - EPOCH) // US
offsets = st.builds(
    lambda seconds, us: seconds * 1_000_000 + us,
    st.integers(-2, 2),
    st.sampled_from([0, 0, 1, 2, 499_999, 500_000, 999_998, 999_999]),
)


EVERY_TYPE = {
    "flag": pa.array([True, False, None]),
    "small": pa.array([-128, 127, None], pa.int8()),
    "whole": pa.array([-(2**31), 2**31 - 1, None], pa.int32()),
    "big": pa.array([-(2**63), 2**63 - 1, None], pa.int64()),
    "single": pa.array([0.5, -16_777_215, None], pa.float32()),
    "double": pa.array([0.1, -5e-324, None], pa.float64()),
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
}


HOSTILE = [
    '"',
    'a"b',
    "select",
    "sp ace",
    "semi;colon",
    "per%cent",
    "colon:x",
    "que?ry",
    "漢字",
    "Upper",
    "%(x)s",
    "back`tick",
]


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize(
    ("kind", "form", "more"),
    [
        ("instant", lambda us: (EPOCH + us * US).replace(tzinfo=UTC), {}),
        ("local", lambda us: EPOCH + us * US, {"timestamp_timezone": "UTC"}),
        ("number", int, {"timestamp_unit": "us"}),
    ],
)
@settings(max_examples=25, deadline=None)
@given(us=st.lists(offsets, max_size=20), cuts=st.lists(offsets, min_size=2, max_size=6, unique=True))
def test_the_boundary_at_microseconds(  # noqa: PLR0917 - pytest passes them by name
    shared: Database, index: bool, kind: str, form: Any, more: Any, us: list[int], cuts: list[int]
) -> None:
    """Count, bulk count with and without an index, and extraction hold exactly the oracle's rows."""
    cuts.sort()
    windows = [Window.from_us(BASE + a, BASE + b) for a, b in pairwise(cuts)]
    windows.append(Window.from_us(BASE + cuts[0], BASE + cuts[-1]))
    shared.run("DROP TABLE IF EXISTS logged", f"CREATE TABLE logged (at {shared.declared[kind]}, n int)")
    with shared.connection.cursor() as cursor:
        cursor.executemany("INSERT INTO logged VALUES (%s, 1)", [(form(BASE + each),) for each in us])
    if index:
        shared.run("CREATE INDEX logged_at ON logged (at, n)")
    expected = [sorted(BASE + each for each in us if w.start_us <= BASE + each < w.end_us) for w in windows]
    with shared.side("logged", **more) as connector:
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
    database.run(f"CREATE TABLE logged (at {database.declared['local']})")
    database.use_zone("+09:00")
    with database.connection.cursor() as cursor:
        cursor.executemany("INSERT INTO logged VALUES (%s)", [(EPOCH + us * US,) for us in stored])
    if index:
        database.run("CREATE INDEX logged_at ON logged (at)")
    with database.side("logged", timestamp_timezone=NEW_YORK) as connector:
        expected = [sorted(us for us in instants if w.start_us <= us < w.end_us) for w in windows]
        assert list(connector.count_many(windows)) == [len(each) for each in expected]
        found = [sorted(extracted(connector, w)["at"].cast(pa.int64()).to_pylist()) for w in windows]
        assert found == expected
        assert sum(map(len, found)) == len(stored)


@pytest.mark.parametrize(
    ("kind", "settings_", "message"),
    [
        ("local", {}, "carries no zone; set timestamp_timezone"),
        ("instant", {"timestamp_timezone": NEW_YORK}, "which is UTC; leave out timestamp_timezone"),
        ("number", {}, "set timestamp_unit"),
        ("number", {"timestamp_unit": "s", "timestamp_timezone": NEW_YORK}, "numbers since 1970 are UTC"),
        ("instant", {"timestamp_unit": "s"}, "expected a timestamp, or an integer with timestamp_unit"),
        ("date", {}, "expected a timestamp"),
        ("text", {}, "expected a timestamp"),
    ],
)
def test_settings_that_do_not_fit(shared: Database, kind: str, settings_: Any, message: str) -> None:
    """What a column's values mean is never guessed."""
    declared = shared.declared.get(kind, kind)
    shared.run("DROP TABLE IF EXISTS logged", f"CREATE TABLE logged (at {declared})")
    with shared.side("logged", **settings_) as connector, pytest.raises(SideError, match=message):
        connector.count(DAY)


def test_the_zone_of_the_server_changes_nothing(database: Database) -> None:
    """Where sessions start in another zone the same instants are counted and extracted."""
    database.run(
        f"CREATE TABLE logged (at {database.declared['instant']})",
        "INSERT INTO logged VALUES ('2013-03-10 00:00'), ('2013-03-10 23:59:59.999999'), ('2013-03-11 00:00')",
    )
    with database.in_another_zone(), database.side("logged") as connector:
        assert connector.count(DAY) == 2
        assert list(connector.count_many([DAY, DAY])) == [2, 2]
        assert extracted(connector)["at"].to_pylist()[0] == START


@pytest.mark.parametrize(
    ("database", "kind", "settings_", "strays"),
    [
        ("postgresql", "instant", {}, ["infinity", "-infinity", "0044-03-15 BC"]),
        ("mariadb", "local", {"timestamp_timezone": "UTC"}, ["0000-00-00", "0000-05-00"]),
    ],
    indirect=["database"],
)
def test_rows_of_no_window_are_reported(database: Database, kind: str, settings_: Any, strays: list[str]) -> None:
    """NULL, and what is no instant of the calendar, are excluded rows, which doctor names with a missing index."""
    database.run(
        *database.loosely,
        f"CREATE TABLE logged (at {database.declared[kind]})",
        "INSERT INTO logged VALUES (NULL), ('2013-03-10 12:00')",
        *(f"INSERT INTO logged VALUES ('{stray}')" for stray in strays),
    )
    with database.side("logged", **settings_) as connector:
        assert connector.excluded() == 1 + len(strays)
        found = list(connector.problems())
        assert connector.count(DAY) == 1
    assert ["no index begins with 'at'" in each.what for each in found].count(True) == 1
    assert any("1 rows have no 'at'" in each.what for each in found)
    assert any(f"{len(strays)} rows hold a 'at'" in each.what for each in found)
    database.run(next(each.remedy for each in found if each.remedy.startswith("CREATE INDEX")))
    with database.side("logged", **settings_) as connector:
        assert connector.excluded() == 1 + len(strays)
        assert not any("no index" in each.what for each in connector.problems())


def test_rows_that_go_with_those_of_a_target_are_told(database: Database) -> None:
    """References that delete or change rows with those they refer to, by table; others do no harm."""
    database.run(
        f"CREATE TABLE logged (id int PRIMARY KEY, at {database.declared['instant']}, UNIQUE (at))",
        *(
            f"CREATE TABLE {name} (id int, CONSTRAINT of_{name} FOREIGN KEY (id) REFERENCES logged (id) {action})"
            for name, action in {
                "notes": "ON DELETE CASCADE",
                "stars": "ON DELETE SET NULL",
                "kept": "",
                "held": "ON DELETE RESTRICT",
            }.items()
        ),
        "CREATE TABLE other (id int PRIMARY KEY)",
        "CREATE TABLE others (id int, FOREIGN KEY (id) REFERENCES other (id) ON DELETE CASCADE)",
    )
    with database.side("logged") as connector:
        (found,) = connector.problems()
    assert found.advice
    names = re.search(r"rows of \[(.*?)\] refer to it", found.what)
    assert names
    assert [name.strip("'").rpartition(".")[2] for name in names[1].split(", ")] == ["notes", "stars"]


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
    assert (kinds["single"], kinds["whole"]) == ("float", "int32")
    with database.side("first") as made:
        assert list(made.problems()) == []  # a missing index would be one


def test_hostile_names(database: Database, load: MakeLoad, publish: Publish) -> None:
    """Names are names, whatever they hold: of a table, of columns, of the timestamp column."""
    batch = rows([1], **{name: pa.array([name]) for name in HOSTILE}).rename_columns(['ti"me; --', *HOSTILE])
    for table in ("ta\"ble'; DROP", "order", f"{database.schema}.with.dot", "%s :x ?", "pipeline"):
        with database.side(table, 'ti"me; --', create=True) as target:
            given = load(DAY, batch, pipeline=table)
            target.upload(given)
            assert publish(target, given) == 1
            assert target.count_many([DAY, Window(DAY.end, DAY.end + timedelta(1))]) == [1, 0]
            assert extracted(target).to_pylist() == batch.to_pylist()
            assert list(target.problems()) == []


TRICKY = ["\\N", "NULL", "\\", "a\tb\n", "\r\n", "\0"]


@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(st.none() | st.text(max_size=12) | st.sampled_from(TRICKY), max_size=20),
    raw=st.lists(st.none() | st.binary(max_size=12), min_size=20, max_size=20),
)
def test_any_text_and_any_bytes_arrive(
    shared: Database, load: MakeLoad, publish: Publish, texts: list[str | None], raw: list[bytes | None]
) -> None:
    """Tabs, line ends, backslashes, NUL, quotes, NULL and what only looks like it, in every order."""
    shared.run("DROP TABLE IF EXISTS made")
    texts = [text if text is None else text.replace("\0", shared.nul) for text in texts]
    count = len(texts)
    hours = [number / 1000 for number in range(count)]
    columns = {"n": pa.array(range(count), pa.int64()), "text": pa.array(texts, pa.string())}
    batch = rows(hours, **columns, raw=pa.array(raw[:count], pa.binary()))
    with shared.side("made", create=True) as target:
        given_load = load(DAY, batch)
        target.upload(given_load)
        assert publish(target, given_load) == count
        assert extracted(target).sort_by("n").to_pylist() == batch.to_pylist()


@pytest.mark.parametrize(
    ("shared", "declared"),
    [
        ("postgresql", "interval"),
        ("postgresql", "numeric"),
        ("postgresql", "money"),
        ("postgresql", "point"),
        ("postgresql", "int4range"),
        ("postgresql", "time with time zone"),
        ("postgresql", "xml"),
        ("postgresql", "inet"),
        ("mariadb", "set('a', 'b')"),
        ("mariadb", "bit(1)"),
        ("mariadb", "point"),
        ("mariadb", "inet6"),
        ("mariadb", "float(7,2)"),
        ("mariadb", "double(9,2)"),
    ],
    indirect=["shared"],
)
def test_a_type_without_a_counterpart_is_refused_by_name(shared: Database, declared: str) -> None:
    """Until the column is excluded: then the rest is extracted."""
    shared.run(
        "DROP TABLE IF EXISTS logged",
        f"CREATE TABLE logged (at {shared.declared['instant']}, odd {declared})",
        "INSERT INTO logged (at) VALUES ('2013-03-10 00:00')",
    )
    with shared.side("logged") as connector:
        assert connector.count(DAY) == 1
        declared_type = declared.partition("(")[0]
        with pytest.raises(SideError, match=f"'odd': its declared type .*{declared_type}.*exclude"):
            extracted(connector)
        assert extracted(connector, exclude=frozenset({"odd"})).num_rows == 1


@pytest.mark.parametrize(
    ("shared", "declared", "value"),
    [
        ("postgresql", "timestamp", "'infinity'"),
        ("postgresql", "date", "'-infinity'"),
        ("postgresql", "numeric(5,2)", "'NaN'"),
        ("postgresql", "int[]", "'{{1,2},{3,4}}'"),
        ("mariadb", "boolean", "2"),
        ("mariadb", "time", "'-01:00'"),
        ("mariadb", "time", "'25:00'"),
        ("mariadb", "date", "'2013-00-00'"),
    ],
    indirect=["shared"],
)
def test_a_value_without_a_counterpart_is_refused(shared: Database, declared: str, value: str) -> None:
    """An infinite date or one without a day, a decimal that is no number (and is told so), a time of no day."""
    shared.run(
        *shared.loosely,
        "DROP TABLE IF EXISTS logged",
        f"CREATE TABLE logged (at {shared.declared['instant']}, odd {declared})",
        f"INSERT INTO logged VALUES ('2013-03-10 00:00', {value})",
    )
    with (
        shared.side("logged") as connector,
        pytest.raises(PermanentError, match=r"'odd'.*found (?!Decimal)|infinity, 24:00"),
    ):
        extracted(connector)


@pytest.mark.parametrize(
    ("shared", "declared", "array"),
    [
        ("postgresql", "numeric(5,2)", pa.array([Decimal("1.105")], pa.decimal128(5, 3))),
        ("postgresql", "numeric(5,2)", pa.array([1000])),
        ("postgresql", "smallint", pa.array([2**15])),
        ("postgresql", "bigint", pa.array([2**64 - 1], pa.uint64())),
        ("postgresql", "double precision", pa.array([2**53 + 1])),
        ("postgresql", "real", pa.array([0.1])),
        ("postgresql", "integer", pa.array(["5"])),
        ("postgresql", "integer", pa.array([5.0])),
        ("postgresql", "text", pa.array([5])),
        ("postgresql", "text", pa.array(["a\0b"])),
        ("postgresql", "character(3)", pa.array(["ab"])),
        ("postgresql", "bytea", pa.array(["x"])),
        ("postgresql", "boolean", pa.array([1])),
        ("postgresql", "uuid", pa.array(["no uuid"])),
        ("postgresql", "date", pa.array([datetime(2013, 3, 10)], pa.timestamp("us"))),
        ("postgresql", "timestamp(3) without time zone", pa.array([datetime(2013, 3, 10, 0, 0, 0, 1)])),
        ("postgresql", "time(0) without time zone", pa.array([time(0, 0, 0, 500_000)])),
        ("postgresql", "timestamp with time zone", pa.array([datetime(2013, 3, 10)], pa.timestamp("us"))),
        ("postgresql", "text", pa.array([["a"]])),
        ("postgresql", "integer[]", pa.array([[2**31]])),
        ("postgresql", "real[]", pa.array([[0.5, None, 0.1]])),
        ("postgresql", "character varying[]", pa.array([["a"]])),
        ("postgresql", "jsonb", pa.array([[math.nan]])),
        ("postgresql", "money", pa.array([5])),
        ("postgresql", "interval", pa.array([1], pa.duration("s"))),
        ("mariadb", "decimal(5,2)", pa.array([Decimal("1.105")], pa.decimal128(5, 3))),
        ("mariadb", "decimal(5,2)", pa.array([1000])),
        ("mariadb", "smallint(6)", pa.array([2**15])),
        ("mariadb", "bigint(20)", pa.array([2**64 - 1], pa.uint64())),
        ("mariadb", "bigint(20) unsigned", pa.array([-1])),
        ("mariadb", "double", pa.array([2**53 + 1])),
        ("mariadb", "double", pa.array([float("nan")])),
        ("mariadb", "double", pa.array([float("-inf")])),
        ("mariadb", "float", pa.array([0.1])),
        ("mariadb", "int(11)", pa.array(["5"])),
        ("mariadb", "int(11)", pa.array([5.0])),
        ("mariadb", "tinyint(1)", pa.array([1])),
        ("mariadb", "text", pa.array([5])),
        ("mariadb", "varchar(3)", pa.array(["abc "])),
        ("mariadb", "char(3)", pa.array(["ab "])),
        ("mariadb", "binary(3)", pa.array([b"ab"])),
        ("mariadb", "blob", pa.array(["x"])),
        ("mariadb", "uuid", pa.array(["no uuid"])),
        ("mariadb", "enum('sad','ok')", pa.array(["SAD"])),
        ("mariadb", "enum('sad','ok')", pa.array(["1"])),
        ("mariadb", "date", pa.array([datetime(2013, 3, 10)], pa.timestamp("us"))),
        ("mariadb", "datetime(3)", pa.array([datetime(2013, 3, 10, 0, 0, 0, 1)])),
        ("mariadb", "datetime(6)", pa.array([START], INSTANT)),
        ("mariadb", "timestamp(6)", pa.array([datetime(2013, 3, 10)], pa.timestamp("us"))),
        ("mariadb", "time", pa.array([time(0, 0, 0, 500_000)])),
        ("mariadb", "text", pa.array([["a"]])),
    ],
    indirect=["shared"],
)
def test_an_existing_column_refuses(shared: Database, load: MakeLoad, declared: str, array: pa.Array) -> None:
    """A type or value that the column would change is refused, naming the column and both types."""
    null = " null" if declared.startswith("timestamp") else ""
    instant = shared.declared["instant"]
    shared.run("DROP TABLE IF EXISTS logged", f"CREATE TABLE logged (at {instant}, v {declared}{null})")
    with shared.side("logged") as target, pytest.raises(PermanentError) as error:
        target.upload(load(DAY, rows([0], v=array)))
    for part in ("'v'", declared, str(array.type)):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("shared", "declared", "array", "message"),
    [
        ("postgresql", "varchar(2)", pa.array(["abc"]), "too long"),
        ("postgresql", "mood", pa.array(["great"]), "enum"),
        ("postgresql", "json", pa.array(["{"]), "json"),
        ("postgresql", "int not null", pa.nulls(1, pa.int32()), "not-null"),
        (
            "mariadb",
            "timestamp(6) null",
            pa.array([datetime(2050, 1, 1, tzinfo=UTC)], INSTANT),
            "1 staged rows.*column 'v'",
        ),
        (
            "mariadb",
            "decimal(5,2) unsigned",
            pa.array([Decimal("-1.00")], pa.decimal128(5, 2)),
            "1 staged rows.*column 'v'",
        ),
        ("mariadb", "tinytext", pa.array(["x" * 256]), "too long for column 'v'"),
        ("mariadb", "varchar(9) character set latin1", pa.array(["漢字"]), "Incorrect string.*v"),
        ("mariadb", "json", pa.array(["{"]), r"CONSTRAINT `logged.v` failed"),
        ("mariadb", "int not null", pa.nulls(1, pa.int32()), "'v' cannot be null"),
    ],
    indirect=["shared"],
)
def test_what_only_the_server_can_tell(  # noqa: PLR0917 - pytest passes them by name
    shared: Database, load: MakeLoad, publish: Publish, declared: str, array: pa.Array, message: str
) -> None:
    """Its refusal is a fault of the window and quotes no value; nothing is published, and the next one works."""
    for table in ("logged", "pipeline_ledger", "pipeline_ledger_head"):
        shared.run(f"DROP TABLE IF EXISTS {table}")
    if declared == "mood":
        shared.run("CREATE TYPE mood AS ENUM ('sad')")
    shared.run(f"CREATE TABLE logged (at {shared.declared['instant']}, v {declared})")
    if "not null" in declared:
        shared.run("ALTER TABLE logged ALTER v SET DEFAULT 1")
    given_load = load(DAY, rows([0], v=array))

    def attempt() -> None:
        target.upload(given_load)
        publish(target, given_load)

    with shared.side("logged") as target:
        with pytest.raises(PermanentError, match=message) as error:
            attempt()
        assert not any(value in str(error.value) for value in ("漢", "abc", "great"))
        assert target.count(DAY) == 0
        assert not target.published(given_load)
        target.discard(given_load.claim)
        empty = load(DAY, rows([], v=array[:0]), fence=2)
        target.upload(empty)
        assert publish(target, empty) == 0


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
        while not database.someone_waits():
            pass
        assert outcome == []
        verbs.delete(DAY)
        verbs.insert(mine)
    thread.join(10)
    assert outcome == ["refused"]
    assert filled.count(DAY) == 2


def test_a_publication_sees_what_was_committed_while_it_waited(database: Database, filled: Any, load: MakeLoad) -> None:
    """A snapshot of the first statement would show the ledger as it was before the lock: the guard reads anew."""
    given_load = load(DAY, rows([3]), fence=11)
    filled.upload(given_load)
    with database.side("t") as other:
        later = load(DAY, rows([5]), fence=12)
        other.upload(later)
        refused: list[BaseException] = []

        def guard() -> None:
            try:
                with filled.transaction() as verbs:
                    verbs.guard(given_load)
            except BaseException as error:  # noqa: BLE001 - the thread's failure is looked at below
                refused.append(error)

        thread = threading.Thread(target=guard)
        with other.transaction() as verbs:
            verbs.guard(later)
            thread.start()
            while not database.someone_waits():
                pass
            verbs.delete(DAY)
            verbs.insert(later)
        thread.join(20)
    assert [type(error).__name__ for error in refused] == ["ClaimLostError"]


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
            database.wait(database.standstill_s * 3)
            verbs.delete(DAY)

    with database.side("t", lease_s=database.standstill_s) as hurried:
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


def test_columns_that_fill_themselves(database: Database, load: MakeLoad, publish: Publish) -> None:
    """Defaults and counters need no staged column; a generated or required one is named."""
    instant = database.declared["instant"]
    database.run(
        f"CREATE TABLE ok ({database.counter}, d int NOT NULL DEFAULT 1, at {instant})",
        f"CREATE TABLE needs (v int NOT NULL, at {instant})",
        f"CREATE TABLE makes (v int GENERATED ALWAYS AS (1) STORED, at {instant})",
        "CREATE VIEW seen AS SELECT * FROM ok",
    )
    with database.side("ok") as target:
        given_load = load(DAY, rows([1]))
        target.upload(given_load)
        assert publish(target, given_load) == 1
    with database.side("needs") as target, pytest.raises(PermanentError, match=r"\['v'\] are NOT NULL"):
        target.upload(load(DAY, rows([1])))
    with database.side("makes") as target, pytest.raises(PermanentError, match="is generated"):
        target.upload(load(DAY, rows([1], v=pa.array([1]))))
    with database.side("seen") as target, pytest.raises(SideError, match="it is a view"):
        target.upload(load(DAY, rows([1])))


@pytest.mark.parametrize(
    ("database", "nap", "message"),
    [
        ("postgresql", "(SELECT pg_sleep(0.1) WHERE at IS NOT NULL) IS NOT NULL", "statement timeout"),
        ("mariadb", "SLEEP(0.1) = 0", "max_statement_time"),
    ],
    indirect=["database"],
)
def test_a_count_that_takes_too_long(database: Database, nap: str, message: str) -> None:
    """Is ended by the server, and is an error, never a number; the next query of the session has no limit."""
    database.run(
        f"CREATE TABLE slow (at {database.declared['instant']})",
        "INSERT INTO slow VALUES " + ", ".join(f"('2013-03-10 00:00:{second:02}')" for second in range(60)),
        f"CREATE VIEW v AS SELECT * FROM slow WHERE {nap}",
    )
    with database.side("v", timeout_s=0.2) as connector:
        with pytest.raises(TransientError, match=f"{message}.*index on the timestamp column") as raised:
            connector.count(DAY)
        assert not raised.value.side_down
        assert extracted(connector, Window(START, START + timedelta(seconds=5))).num_rows == 5


def test_rights_that_are_missing(database: Database, load: MakeLoad) -> None:
    """Reading, making and writing without the right is a fault of the side; the password is not told."""
    url = database.server.url(database.name, "guest:hunter2")
    database.run(f"CREATE TABLE t (at {database.declared['instant']})")
    database.let_guest("INSERT")
    with database.side("t", url=url) as side, pytest.raises(SideError, match=r"denied.*grant this") as raised:
        side.count(DAY)
    assert "hunter2" not in str(raised.value)
    with database.side("new", url=url, create=True) as side, pytest.raises(SideError, match=r"denied.*grant this"):
        side.upload(load(DAY, rows([1])))


def test_a_target_that_is_there_needs_no_right_to_make_tables(
    database: Database, load: MakeLoad, publish: Publish
) -> None:
    """Only temporary ones, which the upload makes."""
    given_load = load(DAY, rows([1]), fence=1)
    with database.side("t", create=True) as target:
        target.upload(given_load)
        assert publish(target, given_load) == 1
    database.let_guest(f"SELECT, INSERT, UPDATE, DELETE{database.right_to_scratch}")
    with database.side("t", url=database.server.url(database.name, "guest:hunter2")) as target:
        again = load(DAY, rows([1, 2]), fence=2)
        target.upload(again)
        assert publish(target, again) == 2
        target.discard(again.claim)
        assert target.count(DAY) == 2


def test_nothing_stays_behind(database: Database, load: MakeLoad) -> None:
    """Leaving the side ends its sessions, and scratch with them."""
    with database.side("t", create=True) as target:
        target.upload(load(DAY, rows([1])))
        assert database.run(database.sessions) != [(0,)]
    assert database.other_sessions(0) == 0
