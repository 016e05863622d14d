"""The main job on real flights: move them, move them again, damage the target, check, heal, and prove it.

    make demo

Works in a folder of its own, `demo/` unless `--folder` names another, and leaves it for you to look around in. Exits 0
only if everything it claims was proved.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

import duckdb
from flights import COLUMNS, ZONE, Row, compare, configuration, fresh, insert, make_source, prove, sample_rows, stamp

from pipeline_core import Pipeline, Window
from pipeline_core.reports import CheckReport, Exit

Expected = dict[str | None, dict[Window, tuple[int, int]]]  # by profile and window: the rows at source and target

COMMAND = Path(sys.executable).with_name("pipeline-core")
SPRING, AUTUMN = None, "autumn"  # profiles: the configuration as it stands, and [profiles.autumn]


def main() -> None:
    """The demo, from an empty folder to the proof."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(__file__).parents[2] / "demo", help="made anew")
    folder = fresh(parser.parse_args().folder)
    prepare(folder)
    show_windows(folder)
    move(folder)
    move_again(folder)
    expected = damage(folder)
    find_and_heal(folder, expected)
    title("Row for row, in every column")
    prove_equal(folder)
    purge_and_restore(folder)
    print(
        f"\nAll proved. Look around: {os.path.relpath(COMMAND)} -c {os.path.relpath(folder / 'pipeline.toml')} status"
    )


def prepare(folder: Path) -> None:
    title(f"Real flights from New York, in {folder.name}/source.db")
    (folder / "pipeline.toml").write_text(configuration(folder), encoding="utf-8")
    rows = make_source(folder / "source.db", sample_rows())
    print(f"  {rows:,} flights of 2013, of the two weeks in which the clock changes; the target is to be a DuckDB file")


def show_windows(folder: Path) -> None:
    title("Windows of 2 h on New York's clock, on the days when it changes")
    with Pipeline.from_file(folder / "pipeline.toml") as pipeline:
        for day in (datetime(2013, 3, 10, tzinfo=ZONE), datetime(2013, 11, 3, tzinfo=ZONE)):
            windows = pipeline.config.policy.windows(day, day + timedelta(days=1))
            print(f"  {day:%Y-%m-%d}  {'  '.join(map(on_the_clock, windows[:4]))}  …  {len(windows)} windows")


def move(folder: Path) -> None:
    title("The main job: count, extract, stage, upload, publish, audit. It may stop anywhere, and goes on from there")
    pipeline_core(folder, "run", "--limit", "40")
    pipeline_core(folder, "status")
    pipeline_core(folder, "run")
    pipeline_core(folder, "run", profile=AUTUMN)
    prove_equal(folder)


def move_again(folder: Path) -> None:
    title("Again: everything is done already")
    for profile in (SPRING, AUTUMN):
        with Pipeline.from_file(folder / "pipeline.toml", profile) as pipeline:
            report = pipeline.run()
            prove(f"{report.pipeline}: a second run moves nothing", report.windows == {} and report.rows == 0)


def damage(folder: Path) -> Expected:
    """Harms both sides behind the pipeline's back; returns the counts, source and target, of each window it touched."""
    title("Harm, behind the pipeline's back")
    deleted, left = delete_rows(folder)
    doubled = double_rows(folder)
    insert(folder / "source.db", late_rows())
    print(f"  target: {deleted} rows deleted on 2013-03-10 at 6 and 7, {doubled} doubled on 2013-03-12 at 16 and 17")
    print("  source: rows come late to 2013-11-03: 01:30 EDT, 01:30 EST, the last microsecond before 02:00, and 02:00")
    return {
        SPRING: {window(3, 10, 6, 8): (left + deleted, left), window(3, 12, 16, 18): (doubled, 2 * doubled)},
        AUTUMN: {window(11, 3, 0, 2): (3, 0), window(11, 3, 2, 4): (1, 0)},
    }


def delete_rows(folder: Path) -> tuple[int, int]:
    """Deletes one airline's flights of two hours from the target; returns how many went and how many are left."""
    hours = "month = 3 AND day = 10 AND hour IN (6, 7)"
    with closing(duckdb.connect(str(folder / "target.duckdb"))) as database:
        ((deleted,),) = database.execute(f"DELETE FROM flights WHERE {hours} AND carrier = 'UA'").fetchall()
        ((left,),) = database.execute(f"SELECT count(*) FROM flights WHERE {hours}").fetchall()
    return deleted, left


def double_rows(folder: Path) -> int:
    """Inserts the flights of two hours into the target once more; returns how many."""
    hours = "month = 3 AND day = 12 AND hour IN (16, 17)"
    with closing(duckdb.connect(str(folder / "target.duckdb"))) as database:
        ((doubled,),) = database.execute(f"INSERT INTO flights SELECT * FROM flights WHERE {hours}").fetchall()
    return doubled


def late_rows() -> list[Row]:
    """Flights in both passes of the hour that the clock repeats, and on both sides of the end of that window."""
    second_pass = datetime(2013, 11, 3, 1, 30, tzinfo=ZONE, fold=1)
    end = datetime(2013, 11, 3, 2, tzinfo=ZONE)
    times = [
        second_pass.replace(fold=0),
        second_pass,
        end.replace(hour=1, minute=59, second=59, microsecond=999_999, fold=1),
        end,
    ]
    flight = dict(zip(COLUMNS, next(sample_rows()), strict=True))
    return [
        tuple({**flight, "month": 11, "day": 3, "hour": t.hour, "minute": t.minute, "time_hour": stamp(t)}.values())
        for t in times
    ]


def find_and_heal(folder: Path, expected: Expected) -> None:
    title("Check counts every window again, and names those that differ")
    for profile, windows in expected.items():
        pipeline_core(folder, "check", profile=profile, exits=Exit.ATTENTION)
        differences = check(folder, profile, reopen=True).differences
        found = {each.window: (each.counts.source, each.counts.target) for each in differences}
        prove("exactly the windows that were harmed, and their counts; all are pending again", found == windows)
    title("Run heals them")
    for profile in expected:
        pipeline_core(folder, "run", profile=profile)
    reports = [check(folder, profile) for profile in expected]
    checked = sum(report.checked for report in reports)
    prove(f"{checked} windows counted once more, none differs", not any(report.differences for report in reports))


def purge_and_restore(folder: Path) -> None:
    title("The source is purged of four hours: what the target may be the last to hold is left as it is")
    purged = take_rows(folder)
    check(folder, SPRING, reopen=True)
    pipeline_core(folder, "run", exits=Exit.ATTENTION)
    found = compare(folder / "source.db", folder / "target.duckdb")
    kept = found.only_target.total() == len(purged) and not found.only_source
    prove(f"the target still holds the {len(purged)} rows that the source has lost", kept)
    with Pipeline.from_file(folder / "pipeline.toml") as pipeline:
        named = [record.window for record in pipeline.status().quarantined]
    prove("the windows that shrank are named", named == [window(3, 11, 6, 8), window(3, 11, 8, 10)])
    insert(folder / "source.db", purged)
    pipeline_core(folder, "retry", "--from", "2013-03-11", "--to", "2013-03-12", "--reason", "the rows are back")
    pipeline_core(folder, "run")
    prove_equal(folder)


def take_rows(folder: Path) -> list[Row]:
    """Deletes four hours' flights from the source; returns them."""
    hours = "month = 3 AND day = 11 AND hour BETWEEN 6 AND 9"
    with closing(sqlite3.connect(folder / "source.db")) as database, database:
        rows: list[Row] = database.execute(f"SELECT {', '.join(COLUMNS)} FROM flights WHERE {hours}").fetchall()
        database.execute(f"DELETE FROM flights WHERE {hours}")
    return rows


def check(folder: Path, profile: str | None, *, reopen: bool = False) -> CheckReport:
    with Pipeline.from_file(folder / "pipeline.toml", profile) as pipeline:
        return pipeline.check(reopen=reopen)


def prove_equal(folder: Path) -> None:
    found = compare(folder / "source.db", folder / "target.duckdb")
    prove(f"source and target hold the same {found.source_rows:,} rows", found.equal)


def pipeline_core(folder: Path, *arguments: str, profile: str | None = None, exits: int = Exit.OK) -> None:
    """Runs the command line as a person would, in the demo's folder, and looks at its exit code."""
    command = [*arguments, *(["--profile", profile] if profile else [])]
    print(f"$ pipeline-core {shlex.join(command)}", flush=True)
    ended = subprocess.run([COMMAND, *command], cwd=folder, check=False)
    if ended.returncode != exits:
        raise SystemExit(f"  ✗ exit code {ended.returncode}, expected {exits}")


def window(month: int, day: int, start: int, end: int) -> Window:
    """A window of 2013, from hour to hour on New York's clock."""
    return Window(*(datetime(2013, month, day, hour, tzinfo=ZONE) for hour in (start, end)))


def on_the_clock(window: Window) -> str:
    """A window as `00-03 (2 h)`: on New York's clock, and how long it takes."""
    start, end = (instant.in_timezone(ZONE.key) for instant in (window.start, window.end))
    return f"{start:%H}-{end:%H} ({(window.end_us - window.start_us) / 3.6e9:g} h)"


def title(text: str) -> None:
    print(f"\n{text}", flush=True)


if __name__ == "__main__":
    main()
