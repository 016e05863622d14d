"""The ledger of an index: which windows were published, under which fences, in an index of its own beside it.

There is no transaction to lock it in. A publication enters itself first and then looks again: of two that come at once,
at least the later one sees the other, and the one with the lower fence gives way.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

from attrs import asdict, frozen

from pipeline_core import Claim, PipelineError, TransientError, Window
from pipeline_core.ledger import Adoption, Entry, LedgerChange, Scope, adopt, enter, scope_text
from pipeline_elasticsearch.bulk import Operation, operation, write
from pipeline_elasticsearch.client import Client, path
from pipeline_elasticsearch.counting import WHOLE

INDEX = "pipeline-ledger"
_PAGE = 10_000  # entries that a search gives at once
_FIELDS = ("pipeline", "start_us", "end_us", "fence", "scope")
_ORDER = ["start_us", "end_us", "fence", "pipeline"]
_LONG, _KEYWORD = {"type": "long"}, {"type": "keyword"}
_MAPPING = {
    "dynamic": "strict",
    "properties": {
        "target": _KEYWORD,
        "pipeline": _KEYWORD,
        "start_us": _LONG,
        "end_us": _LONG,
        "fence": _LONG,
        "scope": {"type": "object", "enabled": False},
        "published": {"type": "boolean"},
    },
}


@frozen
class TargetLedger:
    """The entries of the index `target`, for publications within `scope`."""

    client: Client
    target: str
    scope: Scope
    place: str

    def prepare(self) -> None:
        """Makes the ledger's index where it is missing."""
        found = self.client.ask_for(dict[str, Any], "GET", path(INDEX, "_settings"), {"ignore_unavailable": True})
        if found:
            return
        body = {"mappings": _MAPPING, "settings": {"auto_expand_replicas": "0-1"}}
        try:
            self.client.ask("PUT", path(INDEX), None, body)
        except PipelineError as error:
            if "resource_already_exists_exception" not in str(error):
                raise

    def announce(self, claim: Claim) -> None:
        """Enters the claim, not yet as published. Raises ClaimLostError or SideError where it has to give way."""
        change = enter(self._overlapping(claim.window), claim, self.place, self.scope)
        mine = self._entry(claim)
        self._index([mine], published=False)
        try:
            self.check(claim)
        except PipelineError:
            self._remove([mine])
            raise
        self._apply(LedgerChange(change.remove, [entry for entry in change.add if entry != mine]), mine)

    def check(self, claim: Claim) -> None:
        """Raises ClaimLostError or SideError where another publication has come first, or since."""
        enter(self._overlapping(claim.window), claim, self.place, self.scope)

    def adopt(self, adoption: Adoption) -> Sequence[Entry]:
        """Hands entries of another pipeline over; returns them."""
        theirs = {"term": {"pipeline": adoption.from_pipeline}}
        change = adopt(self._overlapping(adoption.within, theirs), adoption, self.scope)
        if not adoption.dry_run:
            self._apply(change)
        return [entry for entry in change.add if entry.pipeline == adoption.pipeline]

    def publish(self, claim: Claim) -> None:
        """Says that the claim's documents are all there."""
        self._index([self._entry(claim)], published=True)

    def holds(self, claim: Claim) -> bool:
        """Whether the claim's window was published under its very fence."""
        this = {"ids": {"values": [self._id(self._entry(claim))]}}
        found = self._found({"bool": {"filter": [this, {"term": {"published": True}}]}})
        return any(entry.fence == claim.fence for entry in found)

    def _overlapping(self, window: Window | None, *conditions: dict[str, Any]) -> list[Entry]:
        """Entries of the index that overlap the window, or all; and that meet the conditions."""
        wanted: list[dict[str, Any]] = [{"term": {"target": self.target}}, *conditions]
        if window is not None:
            wanted += [{"range": {"start_us": {"lt": window.end_us}}}, {"range": {"end_us": {"gt": window.start_us}}}]
        return self._found({"bool": {"filter": wanted}})

    def _found(self, query: dict[str, Any]) -> list[Entry]:
        self.client.ask("POST", path(INDEX, "_refresh"), {"ignore_unavailable": True})
        body = {"query": query, "size": _PAGE, "track_total_hits": True, "sort": _ORDER}
        asked = {**WHOLE, "ignore_unavailable": True}
        found: list[Entry] = []
        while True:
            hits = self.client.ask_for(dict[str, Any], "POST", path(INDEX, "_search"), asked, body)["hits"]
            found += [Entry(*(hit["_source"][name] for name in _FIELDS)) for hit in hits["hits"]]
            if len(hits["hits"]) < _PAGE:
                break
            body["search_after"] = hits["hits"][-1]["sort"]
        if len(found) != hits["total"]["value"]:
            raise TransientError(
                f"{self.place}: {len(found)} entries of the ledger were read, but it holds {hits['total']['value']}; "
                "others publish meanwhile: it is read again"
            )
        return found

    def _entry(self, claim: Claim) -> Entry:
        window = claim.window
        return Entry(claim.record.pipeline, window.start_us, window.end_us, claim.fence, self.scope)

    def _id(self, entry: Entry) -> str:
        place = f"{self.target} {entry.pipeline} {entry.start_us} {entry.end_us} {scope_text(entry.scope)}"
        return sha256(place.encode()).hexdigest()

    def _apply(self, change: LedgerChange, *kept: Entry) -> None:
        self._index(change.add, published=True)
        there = {self._id(entry) for entry in (*change.add, *kept)}
        self._remove([entry for entry in change.remove if self._id(entry) not in there])

    def _index(self, entries: Sequence[Entry], *, published: bool) -> None:
        more = {"target": self.target, "published": published}
        self._write([(operation("index", self._id(each), each.fence), {**asdict(each), **more}) for each in entries])

    def _remove(self, entries: Sequence[Entry]) -> None:
        self._write([(operation("delete", self._id(entry), entry.fence), None) for entry in entries])

    def _write(self, operations: Sequence[Operation]) -> None:
        if operations:
            write(self.client, INDEX, operations, refresh=True)
