"""The count decision: does this window still need work? Pure."""

from __future__ import annotations

from attrs import frozen


@frozen
class Counts:
    """The rows of one window, on both sides."""

    source: int
    target: int

    @property
    def equal(self) -> bool:
        return self.source == self.target


@frozen
class Decision:
    """What the count check says of a window. `exit_dag` True: nothing is left to do."""

    exit_dag: bool
    reason: str
    counts: Counts


def decide(counts: Counts) -> Decision:
    """Equal and above zero is finished work; everything else is work, an empty window too until it has been audited."""
    if counts.equal and counts.source > 0:
        return Decision(True, f"Already processed: source and target both hold {counts.source} rows", counts)
    if counts.equal:
        return Decision(False, "Proceed with processing: source and target both hold 0 rows, not yet verified", counts)
    return Decision(
        False, f"Proceed with processing: source holds {counts.source} rows, target {counts.target}", counts
    )
