"""Cutting time into windows, and finding the gaps, side by side with peers. Prints one table each.

The peers stay out of the project's own environment; make one beside it:

    python -m venv .venv-bench
    .venv-bench/bin/pip install -r requirements/bench.in -e .
    .venv-bench/bin/python bench/windows.py

Compared with Dagster's time-window partitions, pandas `date_range` in a zone (a limit of speed, not of truth: from the
first change of the clock on it drifts to odd hours), and one bare `range()` per span of constant offset, the least that
any Python code can do. Figures are medians of interleaved rounds. Only the ratios within one run mean anything.
"""

from __future__ import annotations

import argparse
import gc
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import islice, pairwise
from statistics import median
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
from dagster import TimeWindowPartitionsDefinition
from dagster._core.definitions.partitions.subset.time_window import TimeWindowPartitionsSubset
from dagster._core.definitions.partitions.utils.time_window import PersistedTimeWindow
from dagster._core.definitions.timestamp import TimestampWithTimezone

from pipeline_core.coverage import gaps, merge
from pipeline_core.timepolicy import WallClockPolicy
from pipeline_core.window import from_us, to_us
from pipeline_core.zones import segments, zone

ZONE = "America/Los_Angeles"
START, END = (datetime(year, 1, 1, tzinfo=ZoneInfo(ZONE)) for year in (2015, 2025))
# Granularity, Dagster's cron line, pandas' frequency, microseconds.
CUTS = [
    ("15min", "*/15 * * * *", "15min", 900_000_000),
    ("1h", "0 * * * *", "1h", 3_600_000_000),
    ("2h", "0 */2 * * *", "2h", 7_200_000_000),
    ("1d", "0 0 * * *", "1D", 86_400_000_000),
]


def seconds(rounds: int, *tasks: Callable[[], object]) -> list[float]:
    """The median time of each task, the tasks taking turns, so that a noisy moment hits all of them alike."""
    taken: list[list[float]] = [[] for _ in tasks]
    for _ in range(rounds):
        for times, task in zip(taken, tasks, strict=True):
            begun = time.perf_counter()
            task()
            times.append(time.perf_counter() - begun)
    return [median(times) for times in taken]


def bare_ranges(step: int) -> list[int]:
    """All multiples of the step on the local clock, with nothing of the rule around a change of it."""
    found: list[int] = []
    for start, end, offset in segments(zone(ZONE), to_us(START), to_us(END)):
        found.extend(range(start + -(start + offset) % step, end, step))
    return found


def generation(rounds: int) -> None:
    """Windows per second over ten years in a zone with daylight saving time."""
    head = ["", "ours, int bounds", "bare range()", "ours, datetimes", "Dagster", "pandas"]
    head += ["bounds/range", "bounds/Dagster", "times/Dagster"]
    print(f"Windows per second, {ZONE}, 2015 to 2025\n" + " | ".join(f"{title:>16}" for title in head))
    for granularity, cron, frequency, step in CUTS:
        policy = WallClockPolicy(granularity=granularity, timezone=ZONE)
        count = len(policy.windows(START, END))
        peer = TimeWindowPartitionsDefinition(start=START, cron_schedule=cron, timezone=ZONE, fmt="%Y-%m-%d %H:%M")
        some = min(count, 3_000)
        bounds, bare, datetimes, dagster, pandas = seconds(
            rounds,
            lambda policy=policy: policy.windows(START, END).edges(),
            lambda step=step: bare_ranges(step),
            lambda policy=policy: list(pairwise(map(from_us, policy.windows(START, END).edges()))),
            lambda peer=peer, some=some: list(islice(peer._iterate_time_windows(START.timestamp()), some)),
            lambda frequency=frequency: pd.date_range(START, END, freq=frequency, tz=ZONE),
        )
        dagster *= count / some
        rates = [f"{count / taken:>16,.0f}" for taken in (bounds, bare, datetimes, dagster, pandas)]
        ratios = [f"{bare / bounds:>16.0%}", f"{dagster / bounds:>15,.0f}x", f"{dagster / datetimes:>15,.1f}x"]
        print(" | ".join([f"{granularity:>16}", *rates, *ratios]))


def laziness(rounds: int) -> None:
    """What counting and indexing cost without making the windows."""
    print("\nTen years, microseconds\n" + " | ".join(f"{title:>16}" for title in ("", "count", "n-th", "window_at")))
    for granularity in ("15min", "2h", "1d", "1mo"):
        policy = WallClockPolicy(granularity=granularity, timezone=ZONE)
        taken = seconds(
            max(rounds, 100),
            lambda policy=policy: len(policy.windows(START, END)),
            lambda policy=policy: policy.windows(START, END)[100],
            lambda policy=policy: policy.window_at_us(1_741_000_000_000_000),
        )
        print(" | ".join([f"{granularity:>16}", *(f"{figure * 1e6:>16.1f}" for figure in taken)]))


def missing(rounds: int) -> None:
    """Gaps among hours of which one in a hundred is missing; the done ones as single windows, and merged into runs."""
    head = ["", "ours, windows", "ours, runs", "merging", "numpy diff", "Dagster minus"]
    head += ["windows/numpy", "runs/numpy", "Dagster/runs"]
    print("\nGaps, 1% missing, milliseconds\n" + " | ".join(f"{title:>16}" for title in head))
    begin = datetime(1971, 1, 1, tzinfo=UTC)
    origin, hour = to_us(begin), 3_600_000_000
    peer = TimeWindowPartitionsDefinition(start=begin, cron_schedule="0 * * * *", timezone="UTC", fmt="%Y-%m-%d %H:%M")

    def subset(spans: list[tuple[int, int]]) -> TimeWindowPartitionsSubset:
        stamps = [tuple(TimestampWithTimezone(us / 1e6, "UTC") for us in span) for span in spans]
        return TimeWindowPartitionsSubset(peer, None, [PersistedTimeWindow(*pair) for pair in stamps])

    for size in (100_000, 1_000_000):
        absent = set(random.Random(7).sample(range(size), size // 100))
        edges = list(range(origin, origin + (size + 1) * hour, hour))
        done = [span for number, span in enumerate(pairwise(edges)) if number not in absent]
        runs = merge(done)
        array = np.array([start for start, _ in done])
        whole, held = subset([(edges[0], edges[-1])]), subset(runs)
        results = seconds(
            rounds,
            lambda done=done, edges=edges: gaps(done, edges[0], edges[-1]),
            lambda runs=runs, edges=edges: gaps(runs, edges[0], edges[-1]),
            lambda done=done: merge(done),
            lambda array=array, hour=hour: np.nonzero(np.diff(array) != hour)[0],
            lambda whole=whole, held=held: whole - held,
        )
        windows, ours, _, numpy, dagster = results
        ratios = [f"{windows / numpy:>15.1f}x", f"{ours / numpy:>15.2f}x", f"{dagster / ours:>15,.0f}x"]
        print(" | ".join([f"{size:>16,}", *(f"{taken * 1e3:>16.2f}" for taken in results), *ratios]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7, help="rounds to take the median of (default 7)")
    chosen = parser.parse_args()
    # What the peers' imports left behind would otherwise be searched again and again while lists of windows are made.
    gc.freeze()
    generation(chosen.rounds)
    laziness(chosen.rounds)
    missing(chosen.rounds)
