"""Replacing a window's documents, without a transaction: it converges, and is not atomic.

What the window held goes before the first new document is written; where it held more than it will, once the last one
is there. So what a crash leaves in between never counts as the whole window, and the next publication begins again.
Each document is written under its fence, so a worker that lost its window overwrites nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing

from attrs import frozen

from pipeline_core import Claim, Load, PermanentError, Publication, Window
from pipeline_elasticsearch.bulk import Operation, OvertakenError, operation, write
from pipeline_elasticsearch.catalog import STRICT
from pipeline_elasticsearch.client import path
from pipeline_elasticsearch.counting import Counting, Query
from pipeline_elasticsearch.documents import Documents, staged
from pipeline_elasticsearch.extraction import Extraction
from pipeline_elasticsearch.pages import IdentitiesShape
from pipeline_elasticsearch.target_ledger import TargetLedger

_CHUNK_DOCUMENTS = 2_000
_CHUNK_BYTES = 5_000_000
_SLICES, _PAGE_ROWS = 2, 10_000  # of the identities of what a window holds


@frozen
class Scratch:
    """What an upload leaves behind: staged rows that were read through and found to fit. The rows stay in the stage."""

    fence: int
    staged_key: str
    documents: Callable[[], Documents]


class ElasticsearchPublication(Publication):
    """The verbs. `guard` comes first, and says which scratch it is."""

    def __init__(
        self,
        counting: Counting,
        within: Callable[[Window], Query],
        ledger: TargetLedger,
        scratch_of: Callable[[Load], Scratch],
    ) -> None:
        self._counting = counting
        self._client = counting.client
        self._index = counting.index
        self._within = within
        self._ledger = ledger
        self._scratch_of = scratch_of
        self._load: Load | None = None

    def guard(self, load: Load) -> None:
        self._scratch_of(load)
        self._ledger.announce(load.claim)
        self._load = load

    def delete(self, window: Window) -> int:
        """Counts what will go. Where it is more than what comes, it goes once that is there: on its way down to
        nothing the count would pass the new one.
        """
        load, held = self._guarded(), self.count(window)
        if held <= load.staged.rows:
            self._remove(window, load.claim)
        return held

    def insert(self, load: Load) -> None:
        claim = self._guarded().claim
        written: set[str] = set()
        for chunk in _chunks(self._scratch_of(load).documents(), load, claim.fence):
            self._write(chunk, claim)
            written.update(line["index"]["_id"] for line, _ in chunk)
        if self.count(load.window) > len(written):
            self._remove(load.window, claim, written)

    def _remove(self, window: Window, claim: Claim, but: Collection[str] = ()) -> None:
        """Removes the window's documents but these; returns once nobody sees them any more."""
        shape = IdentitiesShape(self._client.place)
        found = Extraction(self._client, self._index, self._within(window), shape, _SLICES, _PAGE_ROWS)
        with closing(found.pages()) as batches:
            for batch in batches:
                others = [id_ for id_ in batch.column("_id").to_pylist() if id_ not in but]
                if others:
                    self._write([(operation("delete", id_, claim.fence), None) for id_ in others], claim)
        self._refresh()

    def _write(self, operations: Sequence[Operation], claim: Claim) -> None:
        try:
            write(self._client, self._index, operations)
        except OvertakenError as error:
            self._ledger.check(claim)  # raises where another worker has taken over indeed
            raise PermanentError(
                f"{self._client.place}: document {error.document!r} has a higher version than fence {claim.fence}, and "
                f"the ledger knows of no later publication of window {claim.window}, so something else has written it; "
                "delete that document, or give what wrote it another index"
            ) from None

    def count(self, window: Window) -> int:
        self._guarded()
        self._refresh()
        return self._counting.one(self._within(window))

    def _refresh(self) -> None:
        self._client.ask("POST", path(self._index, "_refresh"), STRICT)

    def _guarded(self) -> Load:
        if self._load is None:
            raise PermanentError(f"{self._client.place}: a publication begins with guard; nothing was written")
        return self._load

    def finish(self) -> None:
        """Says that everything is there, unless another worker has taken over meanwhile."""
        if self._load is not None:
            self._ledger.check(self._load.claim)
            self._ledger.publish(self._load.claim)


def _chunks(documents: Documents, load: Load, fence: int) -> Iterator[list[Operation]]:
    """The documents of a load as operations, as many at a time as one request should hold."""
    chunk: list[Operation] = []
    size = 0
    with closing(staged(load)) as batches:
        for batch in batches:
            for id_, source in documents.made(batch):
                chunk.append((operation("index", id_, fence), source))
                size += len(bytes(source))
                if len(chunk) >= _CHUNK_DOCUMENTS or size >= _CHUNK_BYTES:
                    yield chunk
                    chunk, size = [], 0
    if chunk:
        yield chunk
