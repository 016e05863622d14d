"""The ledger's rule: what a publication replaces, and when it is refused."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline_core import Claim, ClaimLostError, PermanentError, Record, SideError, Window
from pipeline_core.ledger import Adoption, Entry, adopt, apart, enter, scope_of, scope_text


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


def test_scopes_apart_do_not_concern_each_other() -> None:
    """Entries of other values in one column stay, whoever's they are and whatever their fence."""
    eu = Entry("other", 0, 30, 99, {"region": "eu"})
    change = enter([eu], claim(10, 20, 5), "t", {"region": "us", "kind": 1})
    assert (change.remove, change.add) == ([], [Entry("p", 10, 20, 5, {"region": "us", "kind": 1})])


@pytest.mark.parametrize("scope", [{}, {"kind": 1}, {"region": "eu"}, {"region": "eu", "kind": 1}])
def test_overlapping_scopes_of_two_pipelines_refuse(scope: Any) -> None:
    """Where a row could be in both; the message names the pipeline, and its scope."""
    with pytest.raises(SideError, match=r"'other' has published within \{\"region\": \"eu\"\}; give"):
        enter([Entry("other", 10, 20, 1, {"region": "eu"})], claim(10, 20, 5), "t", scope)


def test_a_date_in_a_scope_is_its_text() -> None:
    """As the entries hold it that were read from the target."""
    scope = scope_of({"Day": date(2013, 3, 10), "n": 0}, str.lower)
    assert scope == {"day": "2013-03-10", "n": 0}
    assert scope_text(scope) == '{"day": "2013-03-10", "n": 0}'
    assert not apart(scope, {"day": "2013-03-10"})


def test_an_adoption_takes_what_was_asked_for() -> None:
    """Of one pipeline, one span, and no scope apart; what sticks out stays with the other, and every fence is kept."""
    theirs = [entry(0, 15, 7, "old"), entry(15, 40, 9, "old"), Entry("old", 0, 40, 3, {"region": "eu"})]
    adoption = Adoption("p", "old", Window.from_us(10, 30))
    us = {"region": "us"}
    change = adopt([*theirs, entry(20, 25, 1, "third")], adoption, us)
    assert change.remove == theirs[:2]
    assert sorted(change.add, key=lambda e: e.start_us) == [
        entry(0, 10, 7, "old"),
        Entry("p", 10, 15, 7, us),
        Entry("p", 15, 30, 9, us),
        entry(30, 40, 9, "old"),
    ]


def test_an_adoption_of_scopes_that_become_one_keeps_the_highest_fence() -> None:
    """A pipeline that was narrowed before left entries of both scopes over one span."""
    us = {"region": "us"}
    theirs = [entry(0, 20, 3, "old"), Entry("old", 5, 10, 8, us), Entry("old", 30, 40, 2, us)]
    change = adopt(theirs, Adoption("p", "old"), us)
    found = sorted((e.start_us, e.end_us, e.fence) for e in change.add)
    assert found == [(0, 5, 3), (5, 10, 8), (10, 20, 3), (30, 40, 2)]
    assert {(e.pipeline, scope_text(e.scope)) for e in change.add} == {("p", scope_text(us))}


SCOPES: list[Any] = [{}, {"a": 1}, {"a": 2}, {"b": 1}, {"a": 1, "b": 1}]


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 10), st.sampled_from(SCOPES)), max_size=25))
def test_every_row_of_a_shared_table_is_guarded_by_its_highest_fence(spans: Any) -> None:
    """Whatever scopes one pipeline had: entries of one scope never overlap, and each row keeps its latest fence."""
    entries: list[Entry] = []
    expected: dict[Any, int] = {}
    kinds = [{"a": a, "b": b} for a in (1, 2, 3) for b in (1, 2)]
    for fence, (start, length, scope) in enumerate(spans, 1):
        over = [e for e in entries if e.start_us < start + length and start < e.end_us]
        change = enter(over, claim(start, start + length, fence), "t", scope)
        entries = [e for e in entries if e not in change.remove] + list(change.add)
        rows = [str(kind) for kind in kinds if scope.items() <= kind.items()]
        expected |= {(t, row): fence for t in range(start, start + length) for row in rows}
    keys = [(scope_text(e.scope), t) for e in entries for t in range(e.start_us, e.end_us)]
    assert len(keys) == len(set(keys))
    guarded: dict[Any, int] = {}
    for e in sorted(entries, key=lambda e: e.fence):
        rows = [str(kind) for kind in kinds if e.scope.items() <= kind.items()]
        guarded |= {(t, row): e.fence for t in range(e.start_us, e.end_us) for row in rows}
    assert guarded == expected


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
