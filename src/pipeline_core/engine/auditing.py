"""After the load: count both sides again, compare with the manifest, and say what was verified. Then clean up."""

from __future__ import annotations

from collections.abc import Sequence
from logging import WARNING
from typing import Any

from attrs import asdict

from pipeline_core.contracts import Staged
from pipeline_core.decision import Counts
from pipeline_core.engine.counting import count_both, count_many
from pipeline_core.engine.parts import Parts
from pipeline_core.engine.transfer import remove_staged
from pipeline_core.errors import AuditError
from pipeline_core.log import timed
from pipeline_core.record import Addition, Change, Claim, Outcome, Removal, Span, Status, Verdict
from pipeline_core.window import MIN_US, Window


def already_processed(parts: Parts, counts: Counts, reason: str) -> Verdict:
    """The verdict on a window that both sides hold in full before any work."""
    return _verified(parts, Outcome.ALREADY_PROCESSED, reason, {"before": asdict(counts)}, counts.source)


def audit(parts: Parts, claim: Claim, staged: Staged, before: Counts | None = None) -> Verdict:
    """Recounts both sides. Raises AuditError where one of them differs from what was staged.

    A source that moved on meanwhile makes the staged files worthless: they are dropped, and the window is tried again.
    """
    window = claim.window
    with timed() as watch:
        after = count_both(parts, window)
    parts.report.tell(
        "audited", window, source=after.source, target=after.target, staged=staged.rows, seconds=watch.seconds
    )
    if after.source != staged.rows:
        remove_staged(parts, claim)
        raise AuditError(
            f"audit: {window}: the source moved: {staged.rows} rows were staged, it now counts {after.source}"
        )
    if after.target != staged.rows:
        raise AuditError(
            f"audit: {window}: {staged.rows} rows were published, the target now counts {after.target}; "
            "something else writes to this table"
        )
    outcome = Outcome.LOADED if staged.rows else Outcome.VERIFIED_EMPTY
    evidence: dict[str, Any] = {
        "before": asdict(before) if before else None,
        "staged": {"rows": staged.rows, "sha256": [file.sha256 for file in staged.files]},
        "after": asdict(after),
        "fence": claim.fence,
    }
    reason = f"{outcome}: source and target both hold {staged.rows} rows"
    return _verified(parts, outcome, reason, evidence, staged.rows)


def clean_up(parts: Parts, claim: Claim, *, finished: bool) -> None:
    """Drops the window's scratch; its staged files too once it is finished (a retry starts from them).

    A window that was verified stays verified when something could not be cleaned; it is told, not hidden.
    """
    try:
        _clean_up(parts, claim, finished=finished)
    except Exception as error:  # noqa: BLE001 - whatever a plugin raises, the claim is settled as was decided
        parts.report.tell("cleanup failed", claim.window, level=WARNING, error=f"{type(error).__name__}: {error}")


def _clean_up(parts: Parts, claim: Claim, *, finished: bool) -> None:
    try:
        parts.target.discard(claim)
    finally:  # a target that is away keeps no files here
        if finished:
            remove_staged(parts, claim)
    parts.report.tell("cleaned", claim.window)


def recheck(
    parts: Parts, within: Window | None, now_us: int, since_us: int = MIN_US
) -> tuple[int, list[tuple[Span, Counts]]]:
    """Recounts the done windows that start `within`, in bulk: how many they are, and those whose counts differ.

    Those that a person skipped are left out, those that are sealed at `now_us`, and those that ended by `since_us`
    (microseconds UTC).
    """
    sealed_us = parts.config.sealed_us(now_us)
    spans = [
        span
        for span in parts.store.spans(parts.pipeline)
        if span.status is Status.DONE
        and span.outcome is not Outcome.SKIPPED
        and span.start_us >= sealed_us
        and span.end_us > since_us
    ]
    if within is not None:
        spans = [span for span in spans if within.start_us <= span.start_us < within.end_us]
    counts = count_many(parts, [Window.from_us(span.start_us, span.end_us) for span in spans])
    differing = [(span, found) for span, found in zip(spans, counts, strict=True) if not found.equal]
    for span, found in differing:
        window = Window.from_us(span.start_us, span.end_us)
        parts.report.tell("differs", window, source=found.source, target=found.target)
    return len(spans), differing


def reopen(parts: Parts, spans: Sequence[Span]) -> int:
    """Makes done windows pending again, as records of their own; returns how many still stood as they were read."""
    reason = "reopened: a recheck found the counts apart"
    remove = [Removal(span.start_us, span.end_us, span.fence, reason) for span in spans]
    add = [Addition(span.start_us, span.end_us, 0, span.identity, span.verified_rows) for span in spans]
    fields = parts.config.default_record
    change = parts.store.apply(Change(parts.pipeline, remove, add, fields, "reopened"))
    parts.report.tell("reopened", windows=len(change.add))
    return len(change.add)


def _verified(parts: Parts, outcome: Outcome, reason: str, evidence: dict[str, Any], rows: int) -> Verdict:
    sides = parts.identities()
    return Verdict(Status.DONE, reason, outcome, {**evidence, **sides}, parts.identity(), rows)
