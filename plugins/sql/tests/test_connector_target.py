"""The SQL side as a target: what it makes, holds, refuses and publishes, on real SQLite files."""

from __future__ import annotations

import math
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from attrs import evolve

from pipeline_core import ClaimLostError, ExtractRequest, Load, PermanentError, Secret, SideError, Window
from pipeline_core.window import MIN_US
from pipeline_sql import SqlSettings
from pipeline_sql.connector import SqlConnector
from pipeline_sql.engines.sqlite import SqliteEngine
from pipeline_sql.tables import Table

START = datetime(2013, 3, 10, tzinfo=UTC)
DAY = Window(START, START + timedelta(days=1))
INSTANT = pa.timestamp("us", "UTC")
Side = Callable[..., Any]
MakeLoad = Callable[..., Load]
Publish = Callable[[Any, Load], int]


def execute(path: Path, *statements: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection, connection:
        return [connection.execute(statement).fetchall() for statement in statements][-1]  # type: ignore[no-any-return]


def rows(hours: list[float], **columns: pa.Array) -> pa.RecordBatch:
    instants = pa.array([START + timedelta(hours=hour) for hour in hours], INSTANT)
    return pa.RecordBatch.from_pydict({"at": instants, **columns})


def extracted(connector: Any, window: Window = DAY) -> pa.Table:
    with closing(connector.extract(ExtractRequest(window))) as batches:
        return pa.Table.from_batches(list(batches))


EVERY_TYPE = {
    "flag": pa.array([True, False, None]),
    "small": pa.array([-128, 127, None], pa.int8()),
    "big": pa.array([-(2**63), 2**63 - 1, None], pa.int64()),
    "single": pa.array([0.5, -math.inf, None], pa.float32()),
    "double": pa.array([0.1, math.inf, None], pa.float64()),
    "price": pa.array([Decimal("1.10"), Decimal("-99999.99"), None], pa.decimal128(7, 2)),
    "wide": pa.array([Decimal(10) ** 60, Decimal(-1), None], pa.decimal256(70, 5)),
    "text": pa.array(["Ελληνικά 漢字 🛫", "", None]),
    "large": pa.array(['O\'Hare \0 "x"', "2013-03-10", None], pa.large_string()),
    "word": pa.array(["a", "b", None]).dictionary_encode(),
    "raw": pa.array([b"\x00\xff", b"", None]),
    "fixed": pa.array([b"ab", b"cd", None], pa.binary(2)),
    "day": pa.array([date(1, 1, 1), date(9999, 12, 31), None]),
    "clock": pa.array([time(0, 0), time(23, 59, 59, 999_999), None]),
    "local": pa.array([datetime(2013, 3, 10, 2, 30), datetime(1, 1, 1, 0, 0, 0, 1), None], pa.timestamp("us")),
    "zoned": pa.array([START, START - timedelta(days=9999, microseconds=1), None], pa.timestamp("us", "Asia/Tokyo")),
}


def test_every_type_keeps_its_meaning(side: Side, load: MakeLoad, publish: Publish, tmp_path: Path) -> None:
    """Arrow to SQLite to Parquet to SQLite and back: equal values, of the same kind, at every step."""
    batch = rows([0, 1, 23.5], **EVERY_TYPE)
    tables = []
    staged: Any = batch
    for name in ("first", "second"):
        with side(tmp_path / f"{name}.db", "t", create=True) as target:
            given = load(DAY, staged)
            target.upload(given)
            assert publish(target, given) == 3
        with side(tmp_path / f"{name}.db", "t") as source:
            tables.append(extracted(source))
        pq.write_table(tables[-1], tmp_path / "staged.parquet")
        staged = pq.read_table(tmp_path / "staged.parquet")
    assert tables[0].to_pylist() == batch.to_pylist()
    assert tables[1].equals(tables[0])
    kinds = {field.name: str(field.type) for field in tables[0].schema}
    assert kinds["price"] == "decimal128(7, 2)"
    assert kinds["wide"] == "decimal256(70, 5)"
    assert (kinds["local"], kinds["zoned"]) == ("timestamp[us]", "timestamp[us, tz=UTC]")
    assert (kinds["flag"], kinds["day"], kinds["clock"]) == ("bool", "date32[day]", "time64[us]")
    assert execute(tmp_path / "first.db", "SELECT price FROM t ORDER BY at LIMIT 1") == [("1.10",)]


def test_a_table_may_change_between_windows(side: Side, load: MakeLoad, publish: Publish, tmp_path: Path) -> None:
    """A column added while the target is open takes the next window's values; a table that is dropped is missed."""
    execute(tmp_path / "t.db", "CREATE TABLE t (at TIMESTAMPTZ)")
    with side(tmp_path / "t.db", "t") as target:
        for fence, columns in enumerate([{}, {"carrier": pa.array(["AA"])}], start=1):
            window = Window(START + timedelta(hours=fence), START + timedelta(hours=fence + 1))
            given = load(window, rows([fence], **columns), fence=fence)
            target.upload(given)
            assert publish(target, given) == 1
            target.discard(given.claim)
            execute(tmp_path / "t.db", "ALTER TABLE t ADD COLUMN carrier TEXT" if fence == 1 else "SELECT 1")
        assert execute(tmp_path / "t.db", "SELECT carrier FROM t ORDER BY at") == [(None,), ("AA",)]
        execute(tmp_path / "t.db", "DROP TABLE t")
        with pytest.raises(SideError, match="no such table"):
            target.count(DAY)


def test_a_window_does_not_describe_the_table_again(load: MakeLoad, publish: Publish, tmp_path: Path) -> None:
    """While the schema stays, so does what is known of the table; our own scratch does not count as a change."""

    class Watched(SqliteEngine):
        described = 0

        def table(self, connection: sa.Connection, schema: str | None, name: str) -> Table | None:
            self.described += 1
            return super().table(connection, schema, name)

    url = f"sqlite:///{tmp_path / 't.db'}"
    engine = Watched(sa.make_url(url), timeout_s=5)
    settings = SqlSettings(Secret(url), table="t", timestamp_column="at", create=True)
    with closing(SqlConnector(settings, engine)) as target:
        before = []
        for fence in range(1, 5):
            before.append(engine.described)
            given = load(DAY, rows([1]), fence=fence)
            target.upload(given)
            assert publish(target, given) == target.count(DAY) == len(extracted(target)) == 1
            target.discard(given.claim)
        assert before[1] > 0
        assert before[-1] == engine.described


@pytest.mark.parametrize("changes", range(7))
def test_what_was_rolled_back_is_forgotten(side: Side, load: MakeLoad, tmp_path: Path, changes: int) -> None:
    """A table that could not be made to the end is not there, however often others then change the schema."""
    path = tmp_path / "t.db"
    execute(path, "CREATE TABLE pipeline_ledger_head (target_table, scope, publications CHECK (publications > 0))")
    with side(path, "t", create=True) as target:
        with pytest.raises(PermanentError, match="CHECK constraint failed"):
            target.upload(load(DAY, rows([1])))
        for number in range(changes):
            execute(path, f"CREATE TABLE more_{number} (x)")
        assert target.count(DAY) == 0


def test_nested_values_become_json(side: Side, load: MakeLoad, publish: Publish, tmp_path: Path) -> None:
    """Lists, structs and maps are stored as JSON text."""
    batch = rows(
        [0],
        many=pa.array([[1, None]]),
        one=pa.array([{"a": "é"}]),
        pairs=pa.array([[("k", 1.5)]], pa.map_(pa.string(), pa.float64())),
    )
    with side(tmp_path / "t.db", "t", create=True) as target:
        given = load(DAY, batch)
        target.upload(given)
        publish(target, given)
    assert execute(tmp_path / "t.db", "SELECT many, one, pairs FROM t") == [("[1, null]", '{"a": "é"}', '{"k": 1.5}')]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (pa.array([math.nan]), "NaN"),
        (pa.array([[math.nan]]), "survive"),
        (pa.array([[b"x"]]), "survive"),
        (pa.array([2**64 - 1], pa.uint64()), "survive"),
        (pa.array([1], pa.time64("ns")), "survive"),
        (pa.array([1], pa.timestamp("ns")), "survive"),
        (pa.nulls(1), "no type of the target keeps"),
        (pa.array([1], pa.duration("s")), "no type of the target keeps"),
    ],
)
def test_a_new_table_refuses_by_name(side: Side, load: MakeLoad, tmp_path: Path, array: pa.Array, message: str) -> None:
    """What SQLite could only store as something else is refused, with the column's name."""
    with side(tmp_path / "t.db", "t", create=True) as target:
        with pytest.raises(PermanentError, match=message) as error:
            target.upload(load(DAY, rows([0], odd=array)))
        assert "'odd'" in str(error.value)
        assert target.count(DAY) == 0


@pytest.mark.parametrize(
    ("declared", "array"),
    [
        ("NUMERIC", pa.array([Decimal("0.1234567890123456")], pa.decimal128(20, 16))),
        ("DECIMAL(5,2)", pa.array([Decimal("1.105")], pa.decimal128(5, 3))),
        ("DECIMAL(5,2)", pa.array([1000])),
        ("DECIMALTEXT(5,2)", pa.array([Decimal("1000.00")], pa.decimal128(7, 2))),
        ("DOUBLE", pa.array([2**53 + 1])),
        ("INTEGER", pa.array(["5"])),
        ("INTEGER", pa.array([5.0])),
        ("TEXT", pa.array([5])),
        ("TEXT", pa.array([b"x"])),
        ("BLOB", pa.array(["x"])),
        ("BOOLEAN", pa.array([1])),
        ("DATE", pa.array([datetime(2013, 3, 10)], pa.timestamp("us"))),
        ("TIMESTAMPTZ", pa.array([datetime(2013, 3, 10)], pa.timestamp("us"))),
        ("JSON", pa.array(["1.10"])),
        ("JSON", pa.array([" -1E+2\n"])),
        ("UUID", pa.array(["12345e78901234567890123456789012"])),
        ("UUID", pa.array(["00000000000000000000000000000001"])),
        ("DATE", pa.array([2**31 - 1], pa.int32()).cast(pa.date32())),
        ("TEXT", pa.array([-(2**20)], pa.int32()).cast(pa.date32())),
        ("TIME", pa.array([24 * 3600], pa.int32()).cast(pa.time32("s"))),
        ("TIMESTAMP", pa.array([2**63 - 1], pa.timestamp("us"))),
        ("TIMESTAMPTZ", pa.array([MIN_US - 1], INSTANT)),
        ("MONEY", pa.array([5])),
    ],
)
def test_an_existing_column_refuses(side: Side, load: MakeLoad, tmp_path: Path, declared: str, array: pa.Array) -> None:
    """A type or value that the column would change is refused, naming the column and both types."""
    execute(tmp_path / "t.db", f"CREATE TABLE t (at TIMESTAMPTZ, v {declared})")
    with side(tmp_path / "t.db", "t") as target, pytest.raises(PermanentError) as error:
        target.upload(load(DAY, rows([0], v=array)))
    for part in ("'v'", declared, str(array.type)):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("declared", "array", "stored"),
    [
        ("NUMERIC", pa.array([Decimal("0.10")], pa.decimal128(20, 2)), (0.1, "real")),
        ("DECIMAL(20,2)", pa.array([Decimal("9007199254740993.00")], pa.decimal128(20, 2)), (2**53 + 1, "integer")),
        ("DECIMAL(5,2)", pa.array([999]), (999, "integer")),
        ("DECIMALTEXT(5,2)", pa.array([7]), ("7.00", "text")),
        ("DOUBLE", pa.array([7]), (7.0, "real")),
        ("INTEGER", pa.array([True]), (1, "integer")),
        ("VARCHAR(2)", pa.array([date(2013, 3, 10)]), ("2013-03-10", "text")),
        ("TIMESTAMP", pa.array([START], INSTANT), ("2013-03-10 00:00:00.000000Z", "text")),
        ("", pa.array([b"x"]), (b"x", "blob")),
        ("INTEGER", pa.nulls(1), (None, "null")),
        ("JSON", pa.array(['"1.10"']), ('"1.10"', "text")),
        ("UUID", pa.array(["00000000-0000-0000-0000-000000000001"]), ("00000000-0000-0000-0000-000000000001", "text")),
        ("DATE", pa.array([date.max]), ("9999-12-31", "text")),
        ("TIME", pa.array([time.max]), ("23:59:59.999999", "text")),
        ("TIMESTAMPTZ", pa.array([MIN_US], INSTANT), ("0001-01-01 00:00:00.000000Z", "text")),
    ],
)
def test_an_existing_column_takes(  # noqa: PLR0917 - pytest passes them by name
    side: Side, load: MakeLoad, publish: Publish, tmp_path: Path, declared: str, array: pa.Array, stored: Any
) -> None:
    """A staged type that keeps its meaning in the column is stored as the column would have it."""
    execute(tmp_path / "t.db", f"CREATE TABLE t (at TIMESTAMPTZ, v {declared})")
    with side(tmp_path / "t.db", "t") as target:
        given = load(DAY, rows([0], v=array))
        target.upload(given)
        publish(target, given)
    assert execute(tmp_path / "t.db", "SELECT v, typeof(v) FROM t") == [stored]


def test_the_timestamp_is_written_as_the_settings_say(
    side: Side, load: MakeLoad, publish: Publish, tmp_path: Path
) -> None:
    """UTC text, local text, or numbers; each reads back as the same instants, and is counted in the same windows."""
    batch = rows([5, 5.5])
    for number, (settings, stored) in enumerate(
        [
            ({}, "2013-03-10 05:00:00.000000Z"),
            ({"timestamp_timezone": "America/New_York"}, "2013-03-10 00:00:00.000000"),
            ({"timestamp_unit": "s"}, 1362891600),
        ]
    ):
        path = tmp_path / f"{number}.db"
        with side(path, "t", create=True, **settings) as target:
            given = load(DAY, batch)
            target.upload(given)
            assert publish(target, given) == 2
            assert extracted(target).to_pylist() == batch.to_pylist()
            assert target.count(Window(START + timedelta(hours=5.5), DAY.end)) == 1
        assert execute(path, "SELECT min(at) FROM t") == [(stored,)]
        assert execute(path, "SELECT count(*) FROM pragma_index_list('t')") == [(1,)]


def test_instants_that_do_not_fit(side: Side, load: MakeLoad, publish: Publish, tmp_path: Path) -> None:
    """Half a second in a column of seconds, a row outside the window, none at all, or a bare time is refused."""
    before = Window.from_us(-10, 0)
    with side(tmp_path / "t.db", "t", create=True, timestamp_unit="s") as target:
        target.upload(load(DAY, rows([0])))
        with pytest.raises(PermanentError, match="between two whole s"):
            target.upload(load(DAY, rows([0.5 / 3600])))
    with side(tmp_path / "u.db", "t", create=True) as target:
        given = load(before, pa.table({"at": pa.array([-1001, -1], pa.timestamp("ns", "UTC"))}))
        target.upload(given)
        publish(target, given)
        assert extracted(target, before)["at"].cast(pa.int64()).to_pylist() == [-2, -1]  # towards the past
        with pytest.raises(PermanentError, match="outside window"):
            target.upload(load(DAY, rows([24])))
        with pytest.raises(PermanentError, match="without a timestamp"):
            target.upload(load(DAY, pa.table({"at": pa.array([None], INSTANT)})))
        with pytest.raises(PermanentError, match="expected a timestamp with a zone"):
            target.upload(load(DAY, pa.table({"at": pa.array([START.replace(tzinfo=None)])})))


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
    "pipeline_ledger",
    "rowid",
]


def test_hostile_names(side: Side, load: MakeLoad, publish: Publish, tmp_path: Path) -> None:
    """Names are names, whatever they hold: of a table, of columns, of the timestamp column."""
    batch = rows([1], **{name: pa.array([name]) for name in HOSTILE}).rename_columns(['ti"me; --', *HOSTILE])
    for table in ("ta\"ble'; DROP", "order", "main.with.dot", "%s :x ?"):
        with side(tmp_path / "t.db", table, 'ti"me; --', create=True) as target:
            given = load(DAY, batch, pipeline=table)
            target.upload(given)
            assert publish(target, given) == 1
            assert target.count_many([DAY, Window(DAY.end, DAY.end + timedelta(1))]) == [1, 0]
            assert extracted(target).to_pylist() == batch.to_pylist()
            assert list(target.problems()) == []


def test_columns_are_renamed_and_matched_without_case(
    side: Side, load: MakeLoad, publish: Publish, tmp_path: Path
) -> None:
    """The map goes from source to target; the rest match by SQLite's rule, which folds ASCII letters only."""
    execute(tmp_path / "t.db", "CREATE TABLE Flights (TIME_HOUR TIMESTAMPTZ, Carrier TEXT, note TEXT DEFAULT 'none')")
    with side(tmp_path / "t.db", "FLIGHTS", "time_hour") as target:
        given = load(DAY, rows([1], CARRIER=pa.array(["UA"])), columns={"at": "Time_Hour"})
        target.upload(given)
        publish(target, given)
    assert execute(tmp_path / "t.db", "SELECT carrier, note FROM flights") == [("UA", "none")]


@pytest.mark.parametrize(
    ("ddl", "columns", "message"),
    [
        ("at TEXT, v TEXT", {"carier": "v"}, r"renames 'carier'.*'carrier'"),
        ("at TEXT, v TEXT", {}, r"no column for the staged 'carrier'.*exclude"),
        ("at TEXT, v TEXT", {"carrier": "AT"}, "would both become 'AT'"),
        ("at TEXT, v TEXT NOT NULL, carrier TEXT", {}, r"\['v'\] are NOT NULL"),
        ("at TEXT, carrier TEXT AS (at)", {}, "is generated"),
        ("at TEXT, time TEXT, carrier TEXT", {"at": "time"}, "becomes its timestamp column 'at'"),
    ],
)
def test_columns_that_do_not_match(  # noqa: PLR0917 - pytest passes them by name
    side: Side, load: MakeLoad, tmp_path: Path, ddl: str, columns: dict[str, str], message: str
) -> None:
    """Each misfit names the column and the ways out, and nothing is uploaded."""
    execute(tmp_path / "t.db", f"CREATE TABLE t ({ddl})")
    with side(tmp_path / "t.db", "t") as target, pytest.raises(PermanentError, match=message):
        target.upload(load(DAY, rows([1], carrier=pa.array(["UA"])), columns=columns))


def test_required_columns_that_fill_themselves(side: Side, load: MakeLoad, publish: Publish, tmp_path: Path) -> None:
    """A default or a row id needs no staged column."""
    execute(
        tmp_path / "t.db",
        "CREATE TABLE t (id INTEGER PRIMARY KEY NOT NULL, at TEXT NOT NULL, seen INTEGER NOT NULL DEFAULT 0)",
    )
    with side(tmp_path / "t.db", "t") as target:
        given = load(DAY, rows([1]))
        target.upload(given)
        assert publish(target, given) == 1


def test_a_missing_target_table(side: Side, load: MakeLoad, tmp_path: Path) -> None:
    """It counts 0 only while create is set; an empty window makes it too."""
    with side(tmp_path / "t.db", "t", create=True) as target:
        assert target.count_many([DAY, DAY]) == [0, 0]
        assert target.excluded() == 0
        assert list(target.problems()) == []
        with pytest.raises(PermanentError, match="becomes its timestamp column 'at'"):
            target.upload(load(DAY, rows([]).rename_columns(["time"])))
        target.upload(load(DAY, rows([])))
        assert len(extracted(target)) == 0
    with side(tmp_path / "t.db", "other") as target, pytest.raises(SideError, match="no such table"):
        target.upload(load(DAY, rows([])))


def test_targets_that_cannot_be_written(side: Side, load: MakeLoad, tmp_path: Path) -> None:
    """A view is refused as a fault of the side."""
    execute(tmp_path / "t.db", "CREATE TABLE t (at TEXT)", "CREATE VIEW v AS SELECT * FROM t")
    with side(tmp_path / "t.db", "v") as target, pytest.raises(SideError, match="it is a view"):
        target.upload(load(DAY, rows([1])))


def test_a_read_only_database(side: Side, load: MakeLoad, tmp_path: Path) -> None:
    """A file that may not be written is a fault of the side."""
    path = tmp_path / "t.db"
    execute(path, "CREATE TABLE t (at TEXT)")
    uri = Path(f"file:{path}?mode=ro&uri=true")
    with side(uri, "t") as target, pytest.raises(SideError, match="readonly"):
        target.upload(load(DAY, rows([1])))


def test_a_constraint_of_the_table(side: Side, load: MakeLoad, publish: Publish, tmp_path: Path) -> None:
    """A row that the table refuses leaves the old rows, and the error does not quote it."""
    execute(
        tmp_path / "t.db",
        "CREATE TABLE t (at TEXT, n TEXT UNIQUE)",
        "INSERT INTO t VALUES ('2013-03-10 00:00:00Z', 'a')",
    )
    with side(tmp_path / "t.db", "t") as target:
        given = load(DAY, rows([1, 2], n=pa.array(["same", "same"])))
        target.upload(given)
        with pytest.raises(PermanentError, match="UNIQUE") as error:
            publish(target, given)
        assert target.count(DAY) == 1
    assert "same" not in str(error.value)


# --- publication ------------------------------------------------------------------------------------------------------


@pytest.fixture
def filled(side: Side, load: MakeLoad, publish: Publish, tmp_path: Path) -> Iterator[Any]:
    """A target whose day holds three published rows under fence 10."""
    with side(tmp_path / "t.db", "t", create=True) as target:
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


def test_each_publication_writes_its_head_row(filled: Any, load: MakeLoad, publish: Publish, tmp_path: Path) -> None:
    """The lock is a write: it leaves a trace, and without the row there is no lock and no publication."""
    assert execute(tmp_path / "t.db", "SELECT * FROM pipeline_ledger_head") == [("t", "{}", 1)]
    execute(tmp_path / "t.db", "DELETE FROM pipeline_ledger_head")
    given = load(DAY, rows([1]), fence=11)
    filled.upload(given)
    with pytest.raises(SideError, match="found no row for it in pipeline_ledger_head"):
        publish(filled, given)
    assert filled.count(DAY) == 3


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


def test_a_stale_fence_writes_nothing(filled: Any, load: MakeLoad, publish: Publish) -> None:
    """A worker that lost its window is refused, over any span that overlaps what a later one has published."""
    for window in (DAY, Window(START + timedelta(hours=23), START + timedelta(hours=30))):
        given = load(window, rows([23.5]), fence=9)
        filled.upload(given)
        with pytest.raises(ClaimLostError, match="fence 10"):
            publish(filled, given)
        assert filled.count(DAY) == 3
        assert not filled.published(given)


def test_a_clipped_entry_still_refuses_its_late_worker(filled: Any, load: MakeLoad, publish: Publish) -> None:
    """After a re-cut, what is left of the old window keeps its fence."""
    morning = Window(START, START + timedelta(hours=6))
    given = load(morning, rows([1]), fence=20)
    filled.upload(given)
    publish(filled, given)
    evening = load(Window(START + timedelta(hours=18), DAY.end), rows([20]), fence=5)
    filled.upload(evening)
    with pytest.raises(ClaimLostError, match="fence 10"):
        publish(filled, evening)


def test_rows_of_another_pipeline_are_not_replaced(filled: Any, load: MakeLoad, publish: Publish) -> None:
    """Two pipelines in one table over one span are refused."""
    given = load(DAY, rows([1]), fence=99, pipeline="weather")
    filled.upload(given)
    with pytest.raises(PermanentError, match="give the two pipelines different tables, or scopes"):
        publish(filled, given)
    assert filled.count(DAY) == 3


def test_many_windows_and_one_over_all_of_them(filled: Any, load: MakeLoad, publish: Publish, tmp_path: Path) -> None:
    """The ledger holds an entry a window, and one that spans them all takes their place."""
    for hour in range(24):
        given = load(
            Window(START + timedelta(hours=hour), START + timedelta(hours=hour + 1)), rows([hour]), fence=20 + hour
        )
        filled.upload(given)
        publish(filled, given)
    assert execute(tmp_path / "t.db", "SELECT count(*) FROM pipeline_ledger") == [(24,)]
    whole = load(Window(START - timedelta(hours=1), DAY.end), rows([5]), fence=50)
    filled.upload(whole)
    assert publish(filled, whole) == 1
    found = execute(tmp_path / "t.db", "SELECT target_table, pipeline, start_us, end_us, fence FROM pipeline_ledger")
    assert found == [("t", "flights", whole.window.start_us, whole.window.end_us, 50)]


def test_two_publications_of_overlapping_windows_queue(side: Side, load: MakeLoad, tmp_path: Path) -> None:
    """The second waits at the guard until the first has committed, and then sees its entry: both cannot pass."""
    path = tmp_path / "t.db"
    with side(path, "t", create=True) as target:
        target.upload(load(DAY, rows([])))
    half = Window(START + timedelta(hours=6), START + timedelta(hours=18))
    order: list[str] = []
    inside, done = threading.Event(), threading.Event()

    def late() -> None:
        with side(path, "t") as target:
            given = load(half, rows([12]), fence=1)
            target.upload(given)
            inside.wait(10)
            order.append("late asks")
            try:
                with target.transaction() as verbs:
                    verbs.guard(given)
                    order.append("late passed")
            except ClaimLostError:
                order.append("late refused")
            finally:
                done.set()

    thread = threading.Thread(target=late)
    thread.start()
    with side(path, "t") as target:
        given = load(DAY, rows([1, 2]), fence=2)
        target.upload(given)
        with target.transaction() as verbs:
            verbs.guard(given)
            inside.set()
            assert not done.wait(0.3)
            verbs.delete(DAY)
            verbs.insert(given)
            order.append("first commits")
        thread.join(10)
        assert target.count(DAY) == 2
    assert order == ["late asks", "first commits", "late refused"]


def test_scratch_is_seen_by_nobody_and_goes(filled: Any, load: MakeLoad, publish: Publish, tmp_path: Path) -> None:
    """Uploading locks and shows nothing; a discard drops scratch of its fence and lower ones, harmlessly twice."""
    given = load(DAY, rows([1]), fence=11)
    filled.upload(given)
    execute(tmp_path / "t.db", "BEGIN EXCLUSIVE")
    assert execute(tmp_path / "t.db", "SELECT count(*) FROM sqlite_master WHERE name LIKE '%scratch%'") == [(0,)]
    filled.discard(evolve(given.claim, fence=10))
    assert publish(filled, given) == 1
    filled.discard(evolve(given.claim, fence=12))
    filled.discard(given.claim)
    with pytest.raises(PermanentError, match="nothing is uploaded"):
        publish(filled, given)


def test_only_what_was_uploaded_is_published(filled: Any, load: MakeLoad, publish: Publish) -> None:
    """Scratch of other staged files does not stand in for these; a verb before the guard is refused."""
    filled.upload(load(DAY, rows([1]), fence=11, key="old"))
    with pytest.raises(PermanentError, match="'new' is not uploaded"):
        publish(filled, load(DAY, rows([1]), fence=12, key="new"))
    with pytest.raises(PermanentError, match="begins with guard"), filled.transaction() as verbs:
        verbs.delete(DAY)
    assert filled.count(DAY) == 3


def test_a_failing_stage_keeps_its_error(filled: Any, load: MakeLoad) -> None:
    """An error of the staged rows comes through as it is, they are closed, and nothing stays behind."""
    closed: list[bool] = []

    def read() -> Iterator[Any]:
        try:
            yield rows([1])
            raise OSError("the stage is gone")
        finally:
            closed.append(True)

    given = evolve(load(DAY, rows([1]), fence=11), read=read)
    with pytest.raises(OSError, match="the stage is gone"):
        filled.upload(given)
    assert closed == [True]
    again = load(DAY, rows([1]), rows([2]).rename_columns(["time"]), fence=11)
    with pytest.raises(PermanentError, match="columns differ"):
        filled.upload(again)
    filled.upload(load(DAY, rows([1]), rows([2]), fence=11))


def test_leaving_the_side_closes_everything(side: Side, load: MakeLoad, tmp_path: Path) -> None:
    """With scratch still there, and a transaction interrupted, another program can take the file."""
    path = tmp_path / "t.db"
    given = load(DAY, rows([1]))

    def interrupted() -> None:
        with side(path, "t", create=True) as target:
            target.upload(given)
            with target.transaction() as verbs:
                verbs.guard(given)
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    execute(path, "BEGIN EXCLUSIVE")
    assert execute(path, "SELECT count(*) FROM t") == [(0,)]
