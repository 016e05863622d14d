"""Elasticsearch as the side of a pipeline. Imports no client and no Arrow."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline_core import Can, Connector, Provider, Settings, hookimpl
from pipeline_elasticsearch.settings import ElasticsearchSettings

__all__ = ["ElasticsearchSettings"]

_ALIASES = {"elasticsearch_host": "url", "source_index": "index"}


@hookimpl
def pipeline_connectors() -> Iterable[Provider[Settings[Connector]]]:
    """The side `type = "elasticsearch"`."""
    yield Provider("elasticsearch", ElasticsearchSettings, can={Can.EXTRACT, Can.LOAD}, aliases=_ALIASES)
