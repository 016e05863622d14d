"""Counting windows by queries that return no document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attrs import frozen

from pipeline_core import PermanentError, Window
from pipeline_elasticsearch.answers import checked
from pipeline_elasticsearch.catalog import STRICT
from pipeline_elasticsearch.client import Client, path
from pipeline_elasticsearch.faults import refused
from pipeline_elasticsearch.timestamps import Resolution, ceil_millis

Query = dict[str, Any]
WHOLE = {"allow_partial_search_results": False}
#: What is read of an answer to many windows; the rest would be most of it.
_READ = "timed_out,_shards,_clusters,hits.total,aggregations.*.doc_count,aggregations.*.buckets.*.doc_count"
_CHUNK = 1_000  # windows of one request: an answer has at most 65,536 buckets, and is a Python object meanwhile
_CROWDED = 8  # documents that lie in more windows than this on average are counted faster window by window


@frozen
class Counting:
    """The documents of `index` for which every one of `conditions` holds, counted by `timestamp_field`."""

    client: Client
    index: str
    timestamp_field: str
    conditions: Sequence[Mapping[str, Any]]

    def within(self, window: Window, resolution: Resolution) -> Query:
        """The query that holds the documents of the window, and no others."""
        if not resolution.exact(window):
            raise PermanentError(
                f"{self.client.place}, timestamp_field {self.timestamp_field!r}: it is date in some indices and "
                f"date_nanos in others, so window {window} would have to end on a whole millisecond; narrow index"
            )
        return self._matching({"range": {self.timestamp_field: resolution.bounds(window)}})

    def without(self) -> Query:
        """The query that holds the documents without a timestamp."""
        return self._matching({"bool": {"must_not": {"exists": {"field": self.timestamp_field}}}})

    def one(self, query: Query) -> int:
        """The number of documents that the query holds."""
        asked = {**STRICT, **WHOLE}
        answer = self.client.ask_for(dict[str, Any], "POST", path(self.index, "_search"), asked, self._counted(query))
        return self._total(answer)

    def many(self, windows: Sequence[Window], resolution: Resolution) -> list[int]:
        """The number of documents of each window, one request for a thousand of them."""
        counts: list[int] = []
        for first in range(0, len(windows), _CHUNK):
            chunk = windows[first : first + _CHUNK]
            whole = Window.from_us(min(w.start_us for w in chunk), max(w.end_us for w in chunk))
            # The aggregation cuts date_nanos to milliseconds; a range query does not.
            bucketed = resolution.aggregatable and not resolution.nanos and not _crowded(chunk, whole)
            counts += self._buckets(chunk, whole, resolution) if bucketed else self._searches(chunk, resolution)
        return counts

    def _buckets(self, windows: Sequence[Window], whole: Window, resolution: Resolution) -> list[int]:
        # Buckets of one key would become one.
        ranges = [
            {"key": str(n), "from": ceil_millis(window.start_us), "to": ceil_millis(window.end_us)}
            for n, window in enumerate(windows)
        ]
        # date_range would count the same, but reads every bound as a date first, on every shard.
        aggregation = {
            "range": {"field": self.timestamp_field, "format": "epoch_millis", "keyed": True, "ranges": ranges}
        }
        aggregations = {"windows": aggregation, "whole": {"filter": {"match_all": {}}}}
        body = {**self._counted(self.within(whole, resolution)), "aggs": aggregations}
        asked = {**STRICT, **WHOLE, "filter_path": _READ}
        answer = self.client.ask_for(dict[str, Any], "POST", path(self.index, "_search"), asked, body)
        found = answer["aggregations"]
        if found["whole"]["doc_count"] != self._total(answer):
            # Some documents have a _doc_count, for which they stand in every bucket; each is one row all the same.
            return self._searches(windows, resolution)
        buckets = found["windows"]["buckets"]
        return [int(buckets[str(n)]["doc_count"]) for n in range(len(windows))]

    def _searches(self, windows: Sequence[Window], resolution: Resolution) -> list[int]:
        lines: list[object] = []
        for window in windows:
            lines += [{**STRICT, **WHOLE}, self._counted(self.within(window, resolution))]
        answer = self.client.ask_for(dict[str, Any], "POST", path(self.index, "_msearch"), None, lines)
        # The request succeeds as a whole even where every item of it failed.
        return list(self._totals(answer["responses"]))

    def _totals(self, answers: Sequence[Mapping[str, Any]]) -> Iterator[int]:
        for answer in answers:
            if "error" in answer:
                raise refused(self.client.place, answer["status"], dict(answer))
            yield self._total(answer)

    def _total(self, answer: Mapping[str, Any]) -> int:
        total = checked(answer, self.client.place)["hits"]["total"]
        if total["relation"] != "eq":
            raise PermanentError(
                f"{self.client.place}: found a total of {total['value']} or more, expected an exact one"
            )
        return int(total["value"])

    def _counted(self, query: Query) -> dict[str, Any]:
        return {
            "size": 0,
            "track_total_hits": True,
            "timeout": f"{round(self.client.timeout_s * 1000)}ms",
            "query": query,
        }

    def _matching(self, condition: Query) -> Query:
        return {"bool": {"filter": [condition, *self.conditions]}}


def _crowded(windows: Sequence[Window], whole: Window) -> bool:
    """Whether the windows, which `whole` encloses, overlap so much that each document falls into many buckets."""
    return sum(w.end_us - w.start_us for w in windows) > _CROWDED * (whole.end_us - whole.start_us)
