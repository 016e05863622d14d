"""The count decision, word for word as orchestrators read it."""

from __future__ import annotations

import pytest

from pipeline_core import Counts
from pipeline_core.decision import decide, shrinks


@pytest.mark.parametrize(
    ("source", "target", "exit_dag", "begins"),
    [
        (5, 5, True, "Already processed"),
        (0, 0, False, "Proceed with processing"),
        (5, 0, False, "Proceed with processing"),
        (0, 5, False, "Proceed with processing"),
        (5, 4, False, "Proceed with processing"),
        (4, 5, False, "Proceed with processing"),
        (1, 1, True, "Already processed"),
    ],
)
def test_decide(source: int, target: int, exit_dag: bool, begins: str) -> None:
    """Equal and above zero is done; everything else is work."""
    decision = decide(Counts(source, target))
    assert decision.exit_dag is exit_dag
    assert decision.reason.startswith(begins)
    assert decision.counts == Counts(source, target)


@pytest.mark.parametrize(("source", "target"), [(5, 5), (5, 4), (0, 0), (0, 5)])
def test_a_reload_goes_on_whatever_the_counts_say(source: int, target: int) -> None:
    """Also where they agree."""
    decision = decide(Counts(source, target), reload=True)
    assert (decision.exit_dag, decision.reason) == (False, "Proceed with processing: reload requested")
    assert decision.counts == Counts(source, target)


@pytest.mark.parametrize(
    ("source", "target", "verified_rows", "expected"),
    [
        (5, 9, None, False),
        (0, 9, None, True),
        (0, 0, None, False),
        (5, 5, 5, False),
        (4, 5, 5, True),
        (4, 0, 5, True),
        (6, 9, 5, False),
        (0, 9, 0, False),
    ],
)
def test_shrinks(source: int, target: int, verified_rows: int | None, expected: bool) -> None:
    """Fewer than verified, or none over some where nothing was; 0 verified rows are evidence too."""
    assert shrinks(source, target, verified_rows) is expected


@pytest.mark.parametrize(
    ("source", "target", "verified_rows", "expected"),
    [
        (4, 5, 5, True),
        (4, 9, 5, True),
        (5, 9, 5, False),
        (4, 4, 5, False),
        (4, 0, 5, False),
        (0, 5, 5, True),
        (0, 9, 0, True),
        (0, 0, 0, False),
        (1, 9, 0, False),
        (0, 9, None, True),
        (5, 9, None, False),
    ],
)
def test_shrinks_by_evidence_of_elsewhere(source: int, target: int, verified_rows: int | None, expected: bool) -> None:
    """Fewer than verified where the target holds more; that other sides held none says nothing of these."""
    assert shrinks(source, target, verified_rows, elsewhere=True) is expected
