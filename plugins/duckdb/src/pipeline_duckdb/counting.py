"""The rows of many ranges from one pass over the column."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from math import gcd

import duckdb

from pipeline_core import Window
from pipeline_duckdb.side import Side

#: Half-open, in ticks of the column.
Range = tuple[int, int]
# Groups up to which counting the finest common step beats looking up each row's range.
_MOST_STEPS = 200_000


def count_windows(connection: duckdb.DuckDBPyConnection, side: Side, windows: Sequence[Window]) -> list[int]:
    """The side's rows in each window, in the order given."""
    cut = side.timestamps.cut
    return _count_ranges(connection, side, [(cut(window.start_us), cut(window.end_us)) for window in windows])


def _count_ranges(connection: duckdb.DuckDBPyConnection, side: Side, ranges: Sequence[Range]) -> list[int]:
    """The rows in each range `low <= ticks < high`, in the order given."""
    wanted = [each for each in ranges if each[0] < each[1]]
    if len(wanted) <= 1:
        counts = {each: _count(connection, side, each) for each in wanted}
        return [counts.get(each, 0) for each in ranges]
    cuts = sorted({end for each in wanted for end in each})
    between = _by_step if _steps(cuts) <= _MOST_STEPS else _by_lookup
    below = dict(zip(cuts, accumulate(between(connection, side, cuts), initial=0), strict=True))
    return [below[high] - below[low] if low < high else 0 for low, high in ranges]


def _count(connection: duckdb.DuckDBPyConnection, side: Side, bounds: Range) -> int:
    return int(connection.execute(f"SELECT count(*) {_from(side, bounds)}").fetchall()[0][0])


def _from(side: Side, bounds: Range) -> str:
    return f"FROM {side.table.sql} WHERE {side.timestamps.between(*bounds)} AND {side.rows}"


def _step(cuts: Sequence[int]) -> int:
    """The longest step that leads from cut to cut."""
    return gcd(*(high - low for low, high in pairwise(cuts)))


def _steps(cuts: Sequence[int]) -> int:
    return (cuts[-1] - cuts[0]) // _step(cuts)


def _by_step(connection: duckdb.DuckDBPyConnection, side: Side, cuts: Sequence[int]) -> list[int]:
    """The rows between each two neighbouring cuts: grouped by equal steps, the cheapest for a columnar table."""
    first, step = cuts[0], _step(cuts)
    grouped = connection.execute(
        f"SELECT ({side.timestamps.ticks} - ({first})) // {step} AS step, count(*) "
        f"{_from(side, (first, cuts[-1]))} GROUP BY ALL"
    ).fetchall()
    counts = [0] * _steps(cuts)
    for place, rows in grouped:
        counts[place] = rows
    below = [0, *accumulate(counts)]
    return [below[(high - first) // step] - below[(low - first) // step] for low, high in pairwise(cuts)]


def _by_lookup(connection: duckdb.DuckDBPyConnection, side: Side, cuts: Sequence[int]) -> list[int]:
    """The same where no common step is long enough: each row is looked up among the cuts."""
    # A bin of `histogram` reaches up to its bound and holds it: the bound is the last tick before the cut.
    bins = ", ".join(str(cut - 1) for cut in cuts)
    ((found,),) = connection.execute(
        f"SELECT histogram({side.timestamps.ticks}, [{bins}]::BIGINT[]) {_from(side, (cuts[0], cuts[-1]))}"
    ).fetchall()
    counts = found or {}  # None: the function met no row
    return [counts.get(cut - 1, 0) for cut in cuts[1:]]
