"""The rows of many ranges from one pass over the column."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from math import gcd

import duckdb

from pipeline_duckdb.timestamps import Timestamps

#: Half-open, in ticks of the column.
Range = tuple[int, int]
# Groups up to which counting the finest common step beats looking up each row's range.
_MOST_STEPS = 200_000


def count_ranges(
    connection: duckdb.DuckDBPyConnection, table: str, timestamps: Timestamps, ranges: Sequence[Range]
) -> list[int]:
    """The rows in each range `low <= ticks < high`, in the order given."""
    wanted = [each for each in ranges if each[0] < each[1]]
    if len(wanted) <= 1:
        counts = {each: _count(connection, table, timestamps.between(*each)) for each in wanted}
        return [counts.get(each, 0) for each in ranges]
    cuts = sorted({end for each in wanted for end in each})
    between = _by_step if _steps(cuts) <= _MOST_STEPS else _by_lookup
    below = dict(zip(cuts, accumulate(between(connection, table, timestamps, cuts), initial=0), strict=True))
    return [below[high] - below[low] if low < high else 0 for low, high in ranges]


def _count(connection: duckdb.DuckDBPyConnection, table: str, condition: str) -> int:
    return int(connection.execute(f"SELECT count(*) FROM {table} WHERE {condition}").fetchall()[0][0])  # noqa: S608 - quoted


def _step(cuts: Sequence[int]) -> int:
    """The longest step that leads from cut to cut."""
    return gcd(*(high - low for low, high in pairwise(cuts)))


def _steps(cuts: Sequence[int]) -> int:
    return (cuts[-1] - cuts[0]) // _step(cuts)


def _by_step(
    connection: duckdb.DuckDBPyConnection, table: str, timestamps: Timestamps, cuts: Sequence[int]
) -> list[int]:
    """The rows between each two neighbouring cuts: grouped by equal steps, the cheapest for a columnar table."""
    first, step = cuts[0], _step(cuts)
    grouped = connection.execute(
        f"SELECT ({timestamps.ticks} - ({first})) // {step} AS step, count(*) FROM {table} "  # noqa: S608 - quoted
        f"WHERE {timestamps.between(first, cuts[-1])} GROUP BY step"
    ).fetchall()
    counts = [0] * _steps(cuts)
    for place, rows in grouped:
        counts[place] = rows
    below = [0, *accumulate(counts)]
    return [below[(high - first) // step] - below[(low - first) // step] for low, high in pairwise(cuts)]


def _by_lookup(
    connection: duckdb.DuckDBPyConnection, table: str, timestamps: Timestamps, cuts: Sequence[int]
) -> list[int]:
    """The same where no common step is long enough: each row is looked up among the cuts."""
    # A bin of `histogram` reaches up to its bound and holds it: the bound is the last tick before the cut.
    bins = ", ".join(str(cut - 1) for cut in cuts)
    ((found,),) = connection.execute(
        f"SELECT histogram({timestamps.ticks}, [{bins}]::BIGINT[]) FROM {table} "  # noqa: S608 - quoted
        f"WHERE {timestamps.between(cuts[0], cuts[-1])}"
    ).fetchall()
    counts = found or {}  # None: the function met no row
    return [counts.get(cut - 1, 0) for cut in cuts[1:]]
