"""The steps of one window, in order. Start reading here."""

from __future__ import annotations

from pipeline_core.engine.auditing import already_processed, audit
from pipeline_core.engine.counting import check_counts
from pipeline_core.engine.parts import Parts
from pipeline_core.engine.publish import publish
from pipeline_core.engine.shrinking import refuse_shrink
from pipeline_core.engine.transfer import extract, load_of, reuse, upload
from pipeline_core.record import Claim, Verdict


def run_window(parts: Parts, claim: Claim) -> Verdict:
    """Counts, and where the counts differ moves the rows and counts again. Faults are raised, not judged."""
    decision = check_counts(parts, claim.window, reload=claim.record.asked is not None)
    if decision.exit_dag:
        return already_processed(parts, decision.counts, decision.reason)
    before = decision.counts
    refuse_shrink(parts, claim, before.source, lambda: before.target)
    staged = reuse(parts, claim, before.source) or extract(parts, claim, before.source)
    load = load_of(parts, claim, staged)
    upload(parts, load)
    publish(parts, load)
    return audit(parts, claim, staged, before)
