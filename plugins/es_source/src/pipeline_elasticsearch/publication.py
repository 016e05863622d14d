"""Replacing a window's documents, without a transaction: it converges, and is not atomic.

New documents come first, then what the window still holds of others goes; so a reader in between sees too much rather
than too little, and after a crash the next publication finishes the work. Each document is written under its fence, so
a worker that lost its window overwrites nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing

from attrs import frozen

from pipeline_core import ClaimLostError, Load, PermanentError, Publication, Window
from pipeline_elasticsearch.bulk import Operation, operation, write
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
        """Counts what will go: the documents themselves make place only once the new ones are there."""
        return self.count(window)

    def insert(self, load: Load) -> None:
        self._check_guarded()
        fence = load.claim.fence
        written: set[str] = set()
        for chunk in _chunks(self._scratch_of(load).documents(), load, fence):
            write(self._client, self._index, chunk)
            written.update(line["index"]["_id"] for line, _ in chunk)
        if self.count(load.window) != len(written):
            self._remove_others(load.window, written, fence)

    def _remove_others(self, window: Window, written: set[str], fence: int) -> None:
        shape = IdentitiesShape(self._client.place)
        found = Extraction(self._client, self._index, self._within(window), shape, _SLICES, _PAGE_ROWS)
        with closing(found.pages()) as batches:
            for batch in batches:
                ids, versions = (batch.column(name).to_pylist() for name in ("_id", "_version"))
                others = [pair for pair in zip(ids, versions, strict=True) if pair[0] not in written]
                later = [id_ for id_, version in others if version > fence]
                if later:
                    raise ClaimLostError(
                        f"{self._client.place}: document {later[0]!r} of window {window} was written under a later "
                        f"fence than this worker's {fence}"
                    )
                if others:
                    write(self._client, self._index, [(operation("delete", id_, fence), None) for id_, _ in others])

    def count(self, window: Window) -> int:
        self._check_guarded()
        self._client.ask("POST", path(self._index, "_refresh"), STRICT)
        return self._counting.one(self._within(window))

    def _check_guarded(self) -> None:
        if self._load is None:
            raise PermanentError(f"{self._client.place}: a publication begins with guard; nothing was written")

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
