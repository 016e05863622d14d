"""The ledger's rule: which published windows a new publication replaces, and when it is refused. Pure.

The target keeps the entries in its own database and calls `enter` inside its transaction, after it has locked.

A scope limits a pipeline to the rows of a table that hold given values. Two scopes are apart where a column is to hold
different values; no row is in both, so their entries do not concern each other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import date

from attrs import evolve, field, frozen

from pipeline_core import coverage
from pipeline_core.errors import ClaimLostError, SideError
from pipeline_core.record import Claim
from pipeline_core.window import MAX_US, MIN_US, Window

#: As a configuration gives it: the values that every row holds, by column. None at all: the whole table.
Given = Mapping[str, str | bool | int | float | date]
#: As entries hold it: names as the target folds them, dates as ISO 8601 text.
Scope = Mapping[str, str | bool | int | float]
_ALL = (MIN_US, MAX_US)


@frozen
class Entry:
    """A span of the target that `pipeline` has published under `fence`. Times are microseconds UTC."""

    pipeline: str
    start_us: int
    end_us: int
    fence: int
    scope: Scope = field(factory=dict)


@frozen
class LedgerChange:
    remove: Sequence[Entry]
    add: Sequence[Entry]


@frozen
class Adoption:
    """`pipeline` takes the place of `from_pipeline` in the ledger; of the span `within` alone, where one is given.

    With `dry_run` the ledger stays as it is.
    """

    pipeline: str
    from_pipeline: str
    within: Window | None = None
    dry_run: bool = False


def scope_of(given: Given, fold: Callable[[str], str] = str) -> Scope:
    """A configured scope as entries hold it; `fold` says what names of one column have in common."""
    return {fold(name): value.isoformat() if isinstance(value, date) else value for name, value in given.items()}


def scope_text(scope: Scope) -> str:
    """A scope as one line of JSON, the same for equal ones."""
    return json.dumps(dict(sorted(scope.items())), ensure_ascii=False)


def apart(one: Scope, other: Scope) -> bool:
    """Whether no row can be in both scopes."""
    return any(column in other and other[column] != value for column, value in one.items())


def enter(overlapping: Sequence[Entry], claim: Claim, place: str, scope: Scope | None = None) -> LedgerChange:
    """How the ledger changes when `claim` publishes its window within `scope`, given the entries that overlap it.

    An entry that sticks out keeps its fence over what is left of it, so that a late worker of the old window is still
    refused there; so does one of a wider scope, for the rows that this publication does not replace. Raises
    ClaimLostError where a higher fence has published, and SideError on rows of another pipeline; `place` names
    the target in the message.
    """
    window = claim.window
    mine = Entry(claim.record.pipeline, window.start_us, window.end_us, claim.fence, scope or {})
    shared = [entry for entry in overlapping if not apart(entry.scope, mine.scope)]
    for entry in shared:
        if entry.pipeline != mine.pipeline:
            raise SideError(
                f"{place}: window {window} of pipeline {mine.pipeline!r}{_within(mine.scope)} overlaps rows that "
                f"pipeline {entry.pipeline!r} has published{_within(entry.scope)}; give the two pipelines different "
                "tables, or scopes that set one column to different values; or, to take the other's place: "
                f"`pipeline-core store adopt --from-pipeline {entry.pipeline}`"
            )
        if entry.fence > mine.fence:
            raise ClaimLostError(
                f"{place}: window {window} was published under fence {entry.fence}, "
                f"later than this worker's {mine.fence}"
            )
    replaced = [entry for entry in shared if mine.scope.items() <= entry.scope.items()]
    rest = _outside(replaced, mine.start_us, mine.end_us)
    return LedgerChange(replaced, sorted([*rest, mine], key=lambda entry: entry.start_us))


def adopt(entries: Sequence[Entry], adoption: Adoption, scope: Scope) -> LedgerChange:
    """How the ledger changes when `adoption.pipeline` takes the place of another within `scope`: entries keep their
    fences, so that a late worker is still refused.

    What lies outside the span stays as it is. A wider scope narrows to what both have in common, so that a table can be
    parted between pipelines; where that lays entries over each other, each instant keeps its highest fence.
    """
    within = adoption.within
    start_us, end_us = _ALL if within is None else (within.start_us, within.end_us)
    taken = [
        entry
        for entry in entries
        if entry.pipeline == adoption.from_pipeline
        and entry.start_us < end_us
        and start_us < entry.end_us
        and not apart(entry.scope, scope)
    ]
    ours: dict[str, list[Entry]] = {}
    for entry in taken:
        inside = evolve(
            entry,
            pipeline=adoption.pipeline,
            start_us=max(entry.start_us, start_us),
            end_us=min(entry.end_us, end_us),
            scope={**entry.scope, **scope},
        )
        ours.setdefault(scope_text(inside.scope), []).append(inside)
    rest = _outside(taken, start_us, end_us)
    return LedgerChange(taken, [*rest, *(entry for each in ours.values() for entry in _uppermost(each))])


def _outside(entries: Sequence[Entry], start_us: int, end_us: int) -> list[Entry]:
    """What is left of entries outside a span."""
    left = [evolve(entry, end_us=start_us) for entry in entries if entry.start_us < start_us]
    right = [evolve(entry, start_us=end_us) for entry in entries if entry.end_us > end_us]
    return [*left, *right]


def _uppermost(entries: Sequence[Entry]) -> list[Entry]:
    """Entries that may overlap, cut so that over each instant the one of the highest fence is left."""
    covered: list[coverage.Span] = []
    found: list[Entry] = []
    for entry in sorted(entries, key=lambda entry: entry.fence, reverse=True):
        span = (entry.start_us, entry.end_us)
        found += [evolve(entry, start_us=a, end_us=b) for a, b in coverage.subtract([span], covered)]
        covered = coverage.merge([*covered, span])
    return found


def _within(scope: Scope) -> str:
    return f" within {scope_text(scope)}" if scope else ""
