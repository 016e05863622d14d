"""Done records told in short: a run of neighbours is one row, which keeps of each window what planning goes by.

Such a row is live and covers its whole run, so that nothing else can be put there; its `verified_rows` are their sum.
What is read of it are the records it stands for, and before one of them is replaced they are laid apart again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pipeline_core import RecordError, Status, Window
from pipeline_core.record import PRUNED
from pipeline_sql.prepared import Row

FOLDED = "folded"  # the outcome of such a row, in the database alone
MOST = 1_000  # windows in a row: so many are laid apart where one is replaced

_SHORT = {"status": Status.DONE, "live": 1, "crashes": 0, "due_us": 0, "claim_id": None, "owner": None, "asked": None}


def is_folded(row: Row) -> bool:
    """Whether the row stands for many records."""
    return bool(row["outcome"] == FOLDED)


def joins(one: Row, other: Row) -> bool:
    """Whether `other` follows at once, and says the same of both sides and to the user."""
    return (one["end_us"], one["identity"], one["fields"]) == (other["start_us"], other["identity"], other["fields"])


def folded(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows of single records, in order of time, as few rows."""
    run: list[Row] = []
    for row in rows:
        if run and (len(run) == MOST or not joins(run[-1], row)):
            yield _fold(run)
            run = []
        run.append(row)
    if run:
        yield _fold(run)


def _fold(run: Sequence[Row]) -> Row:
    fence = max(row["fence"] for row in run)
    updated_us = max(row["updated_us"] for row in run)
    windows = [
        [
            row["end_us"] - row["start_us"],
            row["attempts"],
            row["outcome"],
            row["verified_rows"],
            fence - row["fence"],
            updated_us - row["updated_us"],
        ]
        for row in run
    ]
    return {
        **_SHORT,
        "pipeline": run[0]["pipeline"],
        "start_us": run[0]["start_us"],
        "end_us": run[-1]["end_us"],
        "outcome": FOLDED,
        "reason": f"{len(run)} windows in short: {PRUNED}",
        "attempts": 0,
        "fence": fence,
        "identity": run[0]["identity"],
        "verified_rows": sum(row["verified_rows"] or 0 for row in run),
        "fields": run[0]["fields"],
        "evidence": json.dumps({FOLDED: windows}, separators=(",", ":")),
        "updated_us": updated_us,
    }


def laid_apart(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows of the single records; those that stand for one are as they were."""
    for row in rows:
        if is_folded(row):
            yield from _apart(row)
        else:
            yield row


def _apart(row: Row) -> Iterator[Row]:
    end_us = row["start_us"]
    for length_us, attempts, outcome, verified_rows, below, before_us in _windows(row):
        start_us, end_us = end_us, end_us + length_us
        yield {
            **_SHORT,
            "pipeline": row["pipeline"],
            "start_us": start_us,
            "end_us": end_us,
            "outcome": outcome,
            "reason": PRUNED,
            "attempts": attempts,
            "fence": row["fence"] - below,
            "identity": row["identity"],
            "verified_rows": verified_rows,
            "fields": row["fields"],
            "evidence": "{}",
            "updated_us": row["updated_us"] - before_us,
        }


def _windows(row: Row) -> list[list[Any]]:
    try:
        windows: list[list[Any]] = json.loads(row["evidence"])[FOLDED]
        whole = row["start_us"] + sum(window[0] for window in windows) == row["end_us"]
    except (ValueError, LookupError, TypeError):
        whole = False
    if not whole:
        raise RecordError(
            f"pipeline {row['pipeline']!r}: {Window.from_us(row['start_us'], row['end_us'])}: found a row of many "
            "windows whose evidence was changed, expected what `store prune` wrote; bring the row back from a backup, "
            "or delete it: its windows are then counted again"
        )
    return windows
