"""The ledger's rule: which published windows a new publication replaces, and when it is refused. Pure.

The target keeps the entries in its own database and calls `enter` inside its transaction, after it has locked.
"""

from __future__ import annotations

from collections.abc import Sequence

from attrs import evolve, frozen

from pipeline_core.errors import ClaimLostError, PermanentError
from pipeline_core.record import Claim


@frozen
class Entry:
    """A span of the target that `pipeline` has published under `fence`. Times are microseconds UTC."""

    pipeline: str
    start_us: int
    end_us: int
    fence: int


@frozen
class LedgerChange:
    remove: Sequence[Entry]
    add: Sequence[Entry]


def enter(overlapping: Sequence[Entry], claim: Claim, place: str) -> LedgerChange:
    """How the ledger changes when `claim` publishes its window, given the entries that overlap it.

    An entry that sticks out keeps its fence over what is left of it, so that a late worker of the old window is still
    refused there. Raises ClaimLostError where a higher fence has published, and PermanentError on
    rows of another pipeline; `place` names the target in the message.
    """
    mine = Entry(claim.record.pipeline, claim.window.start_us, claim.window.end_us, claim.fence)
    for entry in overlapping:
        if entry.pipeline != mine.pipeline:
            raise PermanentError(
                f"{place}: window {claim.window} of pipeline {mine.pipeline!r} overlaps rows that pipeline "
                f"{entry.pipeline!r} has published; give the two pipelines different tables"
            )
        if entry.fence > mine.fence:
            raise ClaimLostError(
                f"{place}: window {claim.window} was published under fence {entry.fence}, "
                f"later than this worker's {mine.fence}; another worker has taken over"
            )
    left = [evolve(e, end_us=mine.start_us) for e in overlapping if e.start_us < mine.start_us]
    right = [evolve(e, start_us=mine.end_us) for e in overlapping if e.end_us > mine.end_us]
    return LedgerChange(overlapping, [*left, mine, *right])
