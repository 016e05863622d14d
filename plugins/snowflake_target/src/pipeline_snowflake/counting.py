"""The rows of many windows from as few passes over the column as may be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from math import gcd

from pipeline_core import Window
from pipeline_snowflake.session import Session
from pipeline_snowflake.side import Side

#: Half-open, in microseconds on the column's clock.
Range = tuple[int, int]
# Groups up to which one pass, grouped by the finest common step, beats asking for each range.
_MOST_STEPS = 50_000
# Ranges that are asked for in one statement, where no common step is long enough.
_AT_ONCE = 100


def count_windows(session: Session, side: Side, windows: Sequence[Window]) -> list[int]:
    """The side's rows in each window, in the order given."""
    cut = side.timestamps.cut
    ranges = [(cut(window.start_us), cut(window.end_us)) for window in windows]
    wanted = sorted({each for each in ranges if each[0] < each[1]})
    if len(wanted) <= 1:
        counts = {each: _count(session, side, each) for each in wanted}
    else:
        cuts = sorted({end for each in wanted for end in each})
        step = gcd(*(high - low for low, high in pairwise(cuts)))
        by_step = (cuts[-1] - cuts[0]) // step <= _MOST_STEPS
        counts = _by_step(session, side, cuts, step, wanted) if by_step else dict(_one_by_one(session, side, wanted))
    return [counts.get(each, 0) for each in ranges]


def _count(session: Session, side: Side, bounds: Range) -> int:
    condition, values = side.where(side.timestamps.between(*bounds))
    return session.count(f"SELECT COUNT(*) FROM {side.table.sql} WHERE {condition}", *values)  # noqa: S608 - quoted


def _by_step(session: Session, side: Side, cuts: Sequence[int], step: int, wanted: Sequence[Range]) -> dict[Range, int]:
    """Grouped by equal steps from the first cut."""
    first, last = cuts[0], cuts[-1]
    condition, values = side.where(side.timestamps.between(first, last))
    timestamps = side.timestamps
    after = f"DATEDIFF(MICROSECOND, {timestamps.bound}, {timestamps.sql})"
    # Without its remainder the distance divides evenly; Snowflake would round a quotient.
    grouped = session.rows(
        f"SELECT FROM_FIRST - MOD(FROM_FIRST, ?), COUNT(*) FROM "  # noqa: S608 - quoted
        f"(SELECT {after} AS FROM_FIRST FROM {side.table.sql} WHERE {condition}) GROUP BY 1",
        step,
        first,
        *values,
    )
    counts = [0] * ((last - first) // step)
    for distance, rows in grouped:
        counts[int(distance) // step] = int(rows)
    below = [0, *accumulate(counts)]
    return {(low, high): below[(high - first) // step] - below[(low - first) // step] for low, high in wanted}


def _one_by_one(session: Session, side: Side, wanted: Sequence[Range]) -> Iterator[tuple[Range, int]]:
    """Neighbours together, a statement for so many ranges, which reads no more than they span."""
    timestamps = side.timestamps
    for at in range(0, len(wanted), _AT_ONCE):
        some = wanted[at : at + _AT_ONCE]
        condition, values = side.where(timestamps.between(some[0][0], max(high for _, high in some)))
        inside = [timestamps.between(*each) for each in some]
        listed = ", ".join(f"COUNT(CASE WHEN {each} THEN 1 END)" for each, _ in inside)
        bound = [value for _, each in inside for value in each]
        query = f"SELECT {listed} FROM {side.table.sql} WHERE {condition}"  # noqa: S608 - quoted
        (found,) = session.rows(query, *bound, *values)
        yield from zip(some, map(int, found), strict=True)
