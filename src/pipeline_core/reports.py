"""What the verbs of a pipeline answer: plain values, each with a JSON-safe mapping."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Any

from attrs import asdict, field, frozen
from pendulum import DateTime

from pipeline_core import coverage
from pipeline_core.contracts import RecordStore
from pipeline_core.decision import Counts
from pipeline_core.record import Outcome, Pruned, Record, Span, Status
from pipeline_core.window import Window, iso


class Exit(IntEnum):
    """The exit codes of the command line; a report's `exit_code` is one of them."""

    OK = 0
    ATTENTION = 1
    USAGE = 2
    UNDONE = 3


@frozen
class RunReport:
    """One run: how many windows ended which way, rows moved, what is quarantined now, and what was left undone.

    `excluded` rows of the source fall into no window, since their timestamp is null or none; None: their count failed.
    """

    pipeline: str
    windows: Mapping[str, int]
    rows: int
    excluded: int | None
    quarantined: int
    undone: str
    seconds: float

    @property
    def exit_code(self) -> Exit:
        if self.undone:
            return Exit.UNDONE
        return Exit.ATTENTION if self.quarantined else Exit.OK

    def as_mapping(self) -> dict[str, Any]:
        return {
            "pipeline": self.pipeline,
            "windows": dict(self.windows),
            "rows": self.rows,
            "excluded": self.excluded,
            "quarantined": self.quarantined,
            "undone": self.undone,
            "seconds": round(self.seconds, 3),
            "exit_code": int(self.exit_code),
        }


@frozen
class Difference:
    """A done window whose sides no longer hold the same number of rows."""

    window: Window
    counts: Counts

    def as_mapping(self) -> dict[str, Any]:
        return {**window_mapping(self.window), "source_count": self.counts.source, "target_count": self.counts.target}


@frozen
class CheckReport:
    """A recount of done windows: how many were checked, which differ, how many of those were made pending again."""

    pipeline: str
    checked: int
    differences: Sequence[Difference]
    reopened: int

    @property
    def exit_code(self) -> Exit:
        return Exit.ATTENTION if self.differences else Exit.OK

    def as_mapping(self) -> dict[str, Any]:
        return {
            "pipeline": self.pipeline,
            "checked": self.checked,
            "differences": [difference.as_mapping() for difference in self.differences],
            "reopened": self.reopened,
            "exit_code": int(self.exit_code),
        }


@frozen
class AdoptionReport:
    """What one pipeline took over from another, or with `dry_run` would: how many entries of the ledger, and which time
    they span, merged.
    """

    pipeline: str
    from_pipeline: str
    entries: int
    windows: Sequence[Window]
    dry_run: bool = False

    @property
    def exit_code(self) -> Exit:
        return Exit.OK if self.entries else Exit.ATTENTION

    def as_mapping(self) -> dict[str, Any]:
        return {
            "pipeline": self.pipeline,
            "from_pipeline": self.from_pipeline,
            "entries": self.entries,
            "windows": [window_mapping(window) for window in self.windows],
            "dry_run": self.dry_run,
            "exit_code": int(self.exit_code),
        }


@frozen
class MoveReport:
    """How many records and events of a pipeline were `exported` to a file, or `imported` from one."""

    pipeline: str
    action: str
    file: str
    records: int
    events: int

    @property
    def exit_code(self) -> Exit:
        return Exit.OK

    def as_mapping(self) -> dict[str, Any]:
        return {**asdict(self), "exit_code": int(self.exit_code)}


@frozen
class PruneReport:
    """What a prune of windows that end by `before` did away with, or with `dry_run` would.

    `done` windows gave up their details; `superseded` records and `events` are gone.
    """

    pipeline: str
    before: DateTime
    pruned: Pruned
    dry_run: bool

    @property
    def exit_code(self) -> Exit:
        return Exit.OK

    def as_mapping(self) -> dict[str, Any]:
        return {
            "pipeline": self.pipeline,
            "before": self.before.isoformat(),
            **asdict(self.pruned),
            "dry_run": self.dry_run,
            "exit_code": int(self.exit_code),
        }


@frozen
class Touched:
    """A window that a person's hand was laid on, and what it was before."""

    window: Window
    was: Status

    def as_mapping(self) -> dict[str, Any]:
        return {**window_mapping(self.window), "was": str(self.was)}


@frozen
class HandReport:
    """What was done by hand, or with `dry_run` would be: which windows, and why.

    `left`: how many of those that were named stay as they are, by their status, because the hand does not fit it.
    """

    pipeline: str
    action: str
    reason: str
    windows: Sequence[Touched]
    dry_run: bool
    left: Mapping[Status, int] = field(factory=dict)

    @property
    def exit_code(self) -> Exit:
        return Exit.OK

    def as_mapping(self) -> dict[str, Any]:
        return {
            "pipeline": self.pipeline,
            "action": self.action,
            "reason": self.reason,
            "dry_run": self.dry_run,
            "windows": [touched.as_mapping() for touched in self.windows],
            "left": {str(status): count for status, count in self.left.items()},
            "exit_code": int(self.exit_code),
        }


@frozen
class StatusReport:
    """Where a pipeline stands.

    `coverage` is what is done and `pending` what is pending, merged; `gaps` is time between the records that none of
    them covers. `failing` are the pending windows that have used attempts or lost workers; `skipped` those
    that a person has taken out, with who and why in their reason.
    """

    pipeline: str
    counts: Mapping[Status, int]
    coverage: Sequence[Window]
    gaps: Sequence[Window]
    pending: Sequence[Window]
    running: Sequence[Record]
    failing: Sequence[Record]
    quarantined: Sequence[Record]
    skipped: Sequence[Record] = ()

    @property
    def exit_code(self) -> Exit:
        return Exit.ATTENTION if self.quarantined else Exit.OK

    def as_mapping(self) -> dict[str, Any]:
        return {
            "pipeline": self.pipeline,
            "counts": {str(status): count for status, count in self.counts.items()},
            "coverage": [window_mapping(window) for window in self.coverage],
            "gaps": [window_mapping(window) for window in self.gaps],
            "pending": [window_mapping(window) for window in self.pending],
            "running": [_record(record) for record in self.running],
            "failing": [_record(record) for record in self.failing],
            "quarantined": [_record(record) for record in self.quarantined],
            "skipped": [_record(record) for record in self.skipped],
            "exit_code": int(self.exit_code),
        }


def status_of(store: RecordStore, pipeline: str) -> StatusReport:
    """Where a pipeline stands, from its records alone."""
    spans = store.spans(pipeline)
    counts = Counter(span.status for span in spans)
    live = _merged(spans)
    between = coverage.gaps(live, live[0][0], live[-1][1]) if live else []
    return StatusReport(
        pipeline,
        {status: counts[status] for status in Status if status is not Status.SUPERSEDED},
        coverage=_windows(_merged(span for span in spans if span.status is Status.DONE)),
        gaps=_windows(between),
        pending=_windows(_merged(span for span in spans if span.status is Status.PENDING)),
        running=store.records(pipeline, Status.RUNNING),
        failing=_failing(store, pipeline, spans),
        quarantined=store.records(pipeline, Status.QUARANTINED),
        skipped=_skipped(store, pipeline, spans),
    )


def _skipped(store: RecordStore, pipeline: str, spans: Sequence[Span]) -> list[Record]:
    runs = _windows(_merged(span for span in spans if span.outcome is Outcome.SKIPPED))
    return [record for run in runs for record in store.records(pipeline, Status.DONE, within=run)]


def _failing(store: RecordStore, pipeline: str, spans: Sequence[Span]) -> list[Record]:
    tried = [span for span in spans if span.status is Status.PENDING and (span.fence or span.attempts)]
    if not tried:
        return []
    within = Window.from_us(tried[0].start_us, tried[-1].end_us)
    records = store.records(pipeline, Status.PENDING, within=within)
    return [record for record in records if record.attempts or record.crashes]


def _merged(spans: Iterable[Span]) -> list[tuple[int, int]]:
    return coverage.merge([(span.start_us, span.end_us) for span in spans])


def _windows(spans: Iterable[tuple[int, int]]) -> list[Window]:
    return [Window.from_us(*span) for span in spans]


@frozen
class Finding:
    """What `doctor` says of one part: `problem` is empty where all is well; `advice` where a run goes well with it."""

    part: str
    problem: str = ""
    remedy: str = ""
    advice: bool = False

    @property
    def severity(self) -> str:
        """`ok`, `advice` or `problem`."""
        return ("advice" if self.advice else "problem") if self.problem else "ok"

    def as_mapping(self) -> dict[str, Any]:
        return {"part": self.part, "severity": self.severity, "problem": self.problem, "remedy": self.remedy}


def window_mapping(window: Window) -> dict[str, str]:
    """A window as JSON: ISO 8601, UTC."""
    return {"start": window.start.isoformat(), "end": window.end.isoformat()}


def _record(record: Record) -> dict[str, Any]:
    return {
        **window_mapping(record.window),
        "reason": record.reason,
        "attempts": record.attempts,
        "crashes": record.crashes,
        **(_held(record) if record.status is Status.RUNNING else {}),
    }


def _held(record: Record) -> dict[str, Any]:
    until = None if record.lease_until_us is None else iso(record.lease_until_us)
    return {"owner": record.owner, "lease_until": until}
