"""What a window of the year of flights costs on top of the SQL it needs. SQLite to SQLite, 2 h windows, one worker.

Needs the development environment only. The bare SQL is what one window asks of both databases, by Python's sqlite3 and
nothing else: count both, read, replace and count in one durable transaction, count both again. Everything else is ours:
records, claims and events, the staged Parquet file, the checks. The two take turns, a month of windows each, so that a
noisy moment hits both alike.
"""

from __future__ import annotations

import argparse
import sqlite3
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from pipeline_core import Pipeline, WallClockPolicy, Window

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "flights"))
from flights import COLUMNS, ZONE, between_sqlite_files, compare, make_source, stamp, year_rows

BEGIN, END = "2013-01-01", "2014-01-01"
MONTH = 30 * 12  # windows
IN_WINDOW = "FROM flights WHERE time_hour >= ? AND time_hour < ?"


def year_windows() -> Sequence[Window]:
    """The 4,380 windows of 2013."""
    begin, end = (datetime.fromisoformat(day).replace(tzinfo=ZONE) for day in (BEGIN, END))
    return WallClockPolicy(granularity="2h", timezone=ZONE.key).windows(begin, end)


def bare(source: sqlite3.Connection, target: sqlite3.Connection, windows: Sequence[Window]) -> float:
    """Moves the windows by SQL alone; returns the seconds it took."""
    insert = f"INSERT INTO flights VALUES ({', '.join('?' * len(COLUMNS))})"
    begun = time.perf_counter()
    for window in windows:
        span = stamp(window.start), stamp(window.end)
        for side in (source, target):
            side.execute(f"SELECT COUNT(*) {IN_WINDOW}", span).fetchone()
        rows = source.execute(f"SELECT {', '.join(COLUMNS)} {IN_WINDOW}", span).fetchall()
        target.execute("BEGIN IMMEDIATE")
        target.execute(f"DELETE {IN_WINDOW}", span)
        target.executemany(insert, rows)
        target.execute(f"SELECT COUNT(*) {IN_WINDOW}", span).fetchone()
        target.execute("COMMIT")
        for side in (source, target):
            side.execute(f"SELECT COUNT(*) {IN_WINDOW}", span).fetchone()
    return time.perf_counter() - begun


def ours(pipeline: Pipeline, windows: int) -> float:
    """Moves the next windows by the library; returns the seconds it took, planning included."""
    begun = time.perf_counter()
    report = pipeline.run(workers=1, limit=windows)
    if report.exit_code != 0 or sum(report.windows.values()) != windows:
        raise SystemExit(f"the run did not go well: {report}")
    return time.perf_counter() - begun


def measure(folder: Path, months: int) -> None:
    """Both ways through as many months, in turns; prints them side by side."""
    windows = year_windows()[: months * MONTH] if months < 12 else year_windows()
    rows = make_source(folder / "source.db", year_rows())
    make_source(folder / "bare.db", [])
    mapping = {**between_sqlite_files(folder), "begin": BEGIN, "end": END}
    bare_s = ours_s = 0.0
    print(f"{len(windows):,} windows of 2 h; the whole year holds {rows:,} rows")
    print(" | ".join(f"{head:>12}" for head in ("windows", "bare SQL, s", "ours, s", "ms a window")))
    with (
        closing(sqlite3.connect(folder / "source.db", isolation_level=None)) as source,
        closing(sqlite3.connect(folder / "bare.db", isolation_level=None)) as target,
        Pipeline.from_mapping(mapping) as pipeline,
    ):
        for first, last in pairwise([*range(0, len(windows), MONTH), len(windows)]):
            bare_s += bare(source, target, windows[first:last])
            ours_s += ours(pipeline, last - first)
            figures = f"{last:>12,}", f"{bare_s:>12.2f}", f"{ours_s:>12.2f}", f"{(ours_s - bare_s) / last * 1e3:>12.1f}"
            print(" | ".join(figures), flush=True)
    if not compare(folder / "bare.db", folder / "target.db").equal:
        raise SystemExit("the two ways did not end with the same rows")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--months", type=int, default=12, choices=range(1, 13), help="how much of the year (default 12)"
    )
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        measure(Path(scratch), chosen.months)
