"""The ledger's rule: what a publication replaces, and when it is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline_core import Claim, ClaimLostError, PermanentError, Record, Window
from pipeline_core.ledger import Entry, enter


def claim(start: int, end: int, fence: int, pipeline: str = "p") -> Claim:
    """A claim on [start, end)."""
    return Claim("c", Record(pipeline, Window.from_us(start, end)), fence)


def entry(start: int, end: int, fence: int, pipeline: str = "p") -> Entry:
    """A published span."""
    return Entry(pipeline, start, end, fence)


def test_an_empty_span_takes_the_entry() -> None:
    """Nothing there: one entry is added."""
    assert enter([], claim(10, 20, 5), "t").add == [entry(10, 20, 5)]


def test_a_lower_fence_is_replaced() -> None:
    """The same window again: one entry, the later fence."""
    change = enter([entry(10, 20, 4)], claim(10, 20, 5), "t")
    assert (change.remove, change.add) == ([entry(10, 20, 4)], [entry(10, 20, 5)])


def test_the_same_publication_may_be_repeated() -> None:
    """A transaction retried after a lost reply meets its own entry."""
    assert enter([entry(10, 20, 5)], claim(10, 20, 5), "t").add == [entry(10, 20, 5)]


@pytest.mark.parametrize("old", [(10, 20), (5, 11), (19, 30), (0, 100), (12, 13)])
def test_a_higher_fence_over_any_overlap_refuses(old: tuple[int, int]) -> None:
    """A worker that lost its claim cannot write, whatever the later window's bounds."""
    with pytest.raises(ClaimLostError, match="published under fence 6"):
        enter([entry(*old, 6)], claim(10, 20, 5), "t")


def test_rows_of_another_pipeline_refuse() -> None:
    """By name, whatever the fence."""
    with pytest.raises(PermanentError, match="'other' has published"):
        enter([entry(10, 20, 1, "other")], claim(10, 20, 5), "t")


def test_what_sticks_out_keeps_its_fence() -> None:
    """A re-cut window takes its part; the rest of the old entry still guards what is left."""
    change = enter([entry(0, 15, 1), entry(15, 30, 2)], claim(10, 20, 5), "t")
    assert change.add == [entry(0, 10, 1), entry(10, 20, 5), entry(20, 30, 2)]


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 10)), max_size=25))
def test_every_instant_is_guarded_by_the_highest_fence_published_over_it(spans: Any) -> None:
    """Published in the order of fences, entries never overlap and each instant keeps its latest fence."""
    entries: list[Entry] = []
    expected: dict[int, int] = {}
    for fence, (start, length) in enumerate(spans, 1):
        mine = claim(start, start + length, fence)
        over = [e for e in entries if e.start_us < start + length and start < e.end_us]
        change = enter(over, mine, "t")
        entries = [e for e in entries if e not in change.remove] + list(change.add)
        expected |= dict.fromkeys(range(start, start + length), fence)
    guarded = [(t, e.fence) for e in entries for t in range(e.start_us, e.end_us)]
    assert sorted(guarded) == sorted(expected.items())
