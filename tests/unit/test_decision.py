"""The count decision, word for word as orchestrators read it."""

from __future__ import annotations

import pytest

from pipeline_core import Counts
from pipeline_core.decision import decide


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
