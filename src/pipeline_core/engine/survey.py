"""Before the workers begin: what both sides hold in full already is found by bulk counts, and settled without moving.

A lost store, a new pipeline over a table that was filled before and sides that were repointed all look like this.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial

from attrs import evolve

from pipeline_core.contracts import ClaimRequest
from pipeline_core.decision import Decision, decide
from pipeline_core.engine import owner
from pipeline_core.engine.auditing import already_processed
from pipeline_core.engine.counting import count_many
from pipeline_core.engine.outage import Outages
from pipeline_core.engine.parts import Parts
from pipeline_core.engine.runner import Order, Tally, claim_request, settle
from pipeline_core.errors import ClaimLostError
from pipeline_core.record import Claim, Span, Status, Verdict
from pipeline_core.window import Window

_WORTH_IT = 2  # windows: a single one is counted by the worker that claims it
_AT_ONCE = 100  # claims held at a time, all of them settled long before a lease ends

Found = dict[Window, Decision]


def survey(parts: Parts, order: Order, outages: Outages) -> Tally:
    """Counts every ready window that was never claimed, on both sides, and settles those that are processed already.

    A window that was asked for by hand is left to the workers: its rows are to move whatever the counts say.
    """
    request = claim_request(parts.config, parts.store, order, owner.this_process())
    ready = [span for span in parts.store.spans(parts.pipeline) if _is_ready(span, request)][: order.limit]
    if len(ready) < _WORTH_IT:
        return Tally()
    windows = [Window.from_us(span.start_us, span.end_us) for span in ready]
    decisions = [decide(counts) for counts in count_many(parts, windows)]
    tally = Tally()
    for found in _runs(windows, decisions):
        tally += Tally(Counter(_settled(parts, request, found, outages)))
    parts.report.tell("surveyed", windows=len(windows), processed=tally.verdicts.total())
    return tally


def _is_ready(span: Span, request: ClaimRequest) -> bool:
    within = request.within
    return (
        (span.status, span.fence, span.asked) == (Status.PENDING, 0, None)
        and span.end_us <= request.stable_until_us
        and (within is None or within.start_us <= span.start_us < within.end_us)
    )


def _runs(windows: Sequence[Window], decisions: Sequence[Decision]) -> Iterator[Found]:
    """Windows that are processed already, as long as one follows the other: a claim asks for all of a span."""
    run: Found = {}
    for window, decision in zip(windows, decisions, strict=True):
        if decision.exit_dag:
            run[window] = decision
        if run and (not decision.exit_dag or len(run) == _AT_ONCE):
            yield run
            run = {}
    if run:
        yield run


def _settled(parts: Parts, request: ClaimRequest, found: Found, outages: Outages) -> Iterator[str]:
    """Claims and settles them; the outcome of each."""
    first, last = next(iter(found)), next(reversed(found))
    within = Window.from_us(first.start_us, last.start_us + 1)
    left = len(found)
    while left > 0:
        wanted = evolve(request, within=within, limit=left)
        held = list(outages.store.outlast(partial(parts.store.claim, wanted)))
        if not held:
            return
        left -= len(held)
        try:
            while held:
                outcome = _settle(parts, held[0], found, outages)
                if outcome:
                    yield outcome
                held.pop(0)
        finally:
            for claim in held:
                parts.store.settle(claim, Verdict(Status.PENDING, "the survey ended before it came to this window"))


def _settle(parts: Parts, claim: Claim, found: Found, outages: Outages) -> str:
    """The outcome; empty where the window is another worker's now, or was planned after the count."""
    decision = found.get(claim.window)
    if decision is None:
        verdict = Verdict(Status.PENDING, "planned after the survey had counted")
    else:
        verdict = already_processed(parts, decision.counts, decision.reason)
    try:
        settle(parts, claim, verdict, outages)
    except ClaimLostError:
        return ""
    return str(verdict.outcome) if verdict.outcome else ""
