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

from pipeline_core.errors import ClaimLostError, SideError
from pipeline_core.record import Claim

#: As a configuration gives it: the values that every row holds, by column. None at all: the whole table.
Given = Mapping[str, str | bool | int | float | date]
#: As entries hold it: names as the target folds them, dates as ISO 8601 text.
Scope = Mapping[str, str | bool | int | float]


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
                "tables, or scopes that set one column to different values"
            )
        if entry.fence > mine.fence:
            raise ClaimLostError(
                f"{place}: window {window} was published under fence {entry.fence}, "
                f"later than this worker's {mine.fence}; another worker has taken over"
            )
    replaced = [entry for entry in shared if mine.scope.items() <= entry.scope.items()]
    left = [evolve(e, end_us=mine.start_us) for e in replaced if e.start_us < mine.start_us]
    right = [evolve(e, start_us=mine.end_us) for e in replaced if e.end_us > mine.end_us]
    return LedgerChange(replaced, [*left, mine, *right])


def _within(scope: Scope) -> str:
    return f" within {scope_text(scope)}" if scope else ""
