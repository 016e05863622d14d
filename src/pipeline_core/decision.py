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


def decide(counts: Counts, *, reload: bool = False) -> Decision:
    """Equal and above zero is finished work; everything else is work, an empty window too until it has been audited.

    `reload`: a person wants the rows moved, whatever the counts say.
    """
    if reload:
        return Decision(False, "Proceed with processing: reload requested", counts)
    if counts.equal and counts.source > 0:
        return Decision(True, f"Already processed: source and target both hold {counts.source} rows", counts)
    if counts.equal:
        return Decision(False, "Proceed with processing: source and target both hold 0 rows, not yet verified", counts)
    return Decision(
        False, f"Proceed with processing: source holds {counts.source} rows, target {counts.target}", counts
    )


def shrinks(source: int, target: int, verified_rows: int | None, *, elsewhere: bool = False) -> bool:
    """Whether a load of `source` rows would silently shrink the window.

    It would where they are fewer than were last verified of it (`verified_rows`; None: it never was), or none where the
    target holds some and nothing was verified. What was verified `elsewhere`, under another identity of a side, only
    keeps rows that the target holds: there may be none of these yet.
    """
    if verified_rows is None or elsewhere:
        return source < target and source < (verified_rows or 1)
    return source < verified_rows
