"""What a person does to windows: retry, reload, skip, release. Each is one change of the store, and says by whom."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pipeline_core.config import Config
from pipeline_core.contracts import RecordStore
from pipeline_core.engine import owner
from pipeline_core.record import Addition, Asked, Change, Hand, Intervention, Removal, Span, Status
from pipeline_core.window import Window

RELOADABLE = {Status.DONE, Status.PENDING, Status.QUARANTINED}


def chosen(spans: Sequence[Span], status: Collection[Status], within: Window) -> list[Span]:
    """Those that start `within` and are in one of `status`."""
    return [span for span in spans if span.status in status and within.start_us <= span.start_us < within.end_us]


def lay(store: RecordStore, pipeline: str, hand: Hand, spans: Sequence[Span], reason: str) -> list[Span]:
    """Does it; returns those of `spans` that still stood as they were read."""
    moved = store.intervene(Intervention(pipeline, hand, spans, reason, owner.person()))
    return _among(spans, {record.window.start_us for record in moved})


def reload(store: RecordStore, config: Config, spans: Sequence[Span], asked: Asked, reason: str) -> list[Span]:
    """Makes them pending, as records of their own, to be moved whatever the counts say; returns as `lay` does."""
    told = f"{asked} by {owner.person()}: {reason}"
    remove = [Removal(span.start_us, span.end_us, span.fence, told) for span in spans]
    add = [Addition(span.start_us, span.end_us, 0, span.identity, span.verified_rows, asked) for span in spans]
    done = store.apply(Change(config.pipeline, remove, add, config.default_record, told))
    return _among(spans, {addition.start_us for addition in done.add})


def _among(spans: Sequence[Span], starts: set[int]) -> list[Span]:
    return [span for span in spans if span.start_us in starts]
