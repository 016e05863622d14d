"""Records: the table of transitions."""

from __future__ import annotations

import pytest

from pipeline_core import RecordError, Status
from pipeline_core.record import transition

ALLOWED = {
    ("pending", "running"),
    ("pending", "superseded"),
    ("pending", "quarantined"),
    ("pending", "done"),
    ("running", "running"),
    ("running", "pending"),
    ("running", "done"),
    ("running", "quarantined"),
    ("done", "superseded"),
    ("quarantined", "superseded"),
    ("quarantined", "pending"),
    ("quarantined", "done"),
}


@pytest.mark.parametrize("before", Status)
@pytest.mark.parametrize("after", Status)
def test_transitions(before: Status, after: Status) -> None:
    """What is allowed is allowed, all else is refused with the states named."""
    if (before, after) in ALLOWED:
        assert transition(before, after) is after
    else:
        with pytest.raises(RecordError, match=f"is {before} cannot become {after}"):
            transition(before, after)
