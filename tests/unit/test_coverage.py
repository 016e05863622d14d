"""Set arithmetic over spans, against sets of whole numbers."""

import itertools
import random

import pytest

from pipeline_core.coverage import gaps, merge, subtract


def points(spans):
    """Every whole number in the spans."""
    return {number for start, end in spans for number in range(start, end)}


def some_spans(random_source, count, limit=60):
    """Sorted spans that may touch, overlap or nest."""
    starts = sorted(random_source.randrange(limit) for _ in range(count))
    return [(start, start + random_source.randint(1, 12)) for start in starts]


def test_merge_joins_what_touches_overlaps_or_nests():
    """Touching, overlapping and nested spans become one; a gap of one keeps two apart."""
    assert merge([(0, 2), (2, 4), (3, 9), (5, 6), (10, 11)]) == [(0, 9), (10, 11)]
    assert merge([]) == []
    assert merge([(0, 1)]) == [(0, 1)]


def test_merge_takes_spans_in_any_order():
    """Unsorted spans give what sorted ones give."""
    assert merge([(5, 6), (0, 2), (2, 5)]) == [(0, 6)]
    assert merge([(0, 10), (5, 6), (3, 4), (20, 30), (1, 2)]) == [(0, 10), (20, 30)]


def test_subtract_keeps_bounds_of_untouched_spans():
    """Neighbouring windows stay apart, a hole across their seam clips both, and one inside cuts in two."""
    assert subtract([(0, 10), (10, 20), (20, 30)], [(5, 15), (22, 24)]) == [(0, 5), (15, 20), (20, 22), (24, 30)]
    assert subtract([(0, 10)], []) == [(0, 10)]
    assert subtract([(0, 10)], [(0, 10)]) == []
    assert subtract([(0, 10), (2, 12)], [(1, 3)]) == [(0, 1), (3, 10), (3, 12)]


def test_gaps_are_what_no_span_covers():
    """Before, between and after; spans that reach out of the range count only inside it."""
    assert gaps([(5, 10), (10, 15), (20, 25)], 0, 30) == [(0, 5), (15, 20), (25, 30)]
    assert gaps([(-5, 10), (20, 99)], 0, 30) == [(10, 20)]
    assert gaps([], 0, 30) == [(0, 30)]
    assert gaps([(40, 50)], 0, 30) == [(0, 30)]
    assert gaps([(-9, -5), (0, 30), (2, 3)], 0, 30) == []


@pytest.mark.parametrize("seed", range(300))
def test_against_sets_of_numbers(seed):
    """Random spans: every function agrees with sets, and its answer is sorted and minimal."""
    source = random.Random(seed)
    spans, minus = some_spans(source, source.randrange(12)), some_spans(source, source.randrange(6))
    merged = merge(spans)
    assert points(merged) == points(spans)
    assert all(before[1] < after[0] for before, after in itertools.pairwise(merged))
    assert merge(source.sample(spans, len(spans))) == merged
    start, end = sorted(source.sample(range(80), 2))
    found = gaps(spans, start, end)
    assert points(found) == set(range(start, end)) - points(spans)
    assert all(before[1] < after[0] for before, after in itertools.pairwise(found))
    left = subtract(spans, minus)
    assert points(left) == points(spans) - points(minus)
    assert sum(end - start for start, end in left) == sum(len(points([span]) - points(minus)) for span in spans)
