"""Answers of a search: whole, or an error. A partial one is never read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline_core import TransientError
from pipeline_elasticsearch.faults import cut_off


def checked(answer: Mapping[str, Any], place: str) -> Mapping[str, Any]:
    """The answer, if every shard of every cluster gave its part in time."""
    shards = answer["_shards"]
    if answer["timed_out"]:
        raise cut_off(place)
    if shards["failed"] or shards["successful"] != shards["total"]:
        raise TransientError(
            f"{place}: {shards['successful']} of {shards['total']} shards answered; a part of them is no answer"
        )
    clusters = answer.get("_clusters") or {}
    missing = {state: clusters[state] for state in ("skipped", "partial", "failed", "running") if clusters.get(state)}
    if missing:
        raise TransientError(
            f"{place}: not every remote cluster answered in full ({missing}); see whether each can be reached"
        )
    return answer
