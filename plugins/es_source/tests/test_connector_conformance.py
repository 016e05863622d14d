"""The Elasticsearch side keeps what every connector promises, on each version of the server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from attrs import evolve

from pipeline_core import Can, Secret
from pipeline_core.ledger import Given
from pipeline_core.testing import ConnectorSuite
from pipeline_elasticsearch import ElasticsearchSettings

PROPERTIES = {
    "at": {"type": "date_nanos"},
    "n": {"type": "long"},
    "text": {"type": "keyword"},
    "ratio": {"type": "double"},
}


class TestElasticsearch(ConnectorSuite):
    """An index of its own for each side; broken by closing it."""

    can = frozenset({Can.EXTRACT, Can.LOAD})
    secret = "geheim-77"

    @pytest.fixture(autouse=True)
    def _cluster(self, cluster: Any) -> Iterator[None]:
        self.cluster = cluster
        before = cluster.open_points_in_time()
        yield
        assert cluster.open_points_in_time() == before

    def fresh(self) -> ElasticsearchSettings:
        where = self.cluster.url.replace("://", f"://owner:{self.secret}@")
        return self.cluster.settings(self.cluster.index(PROPERTIES), url=Secret(where))

    def put(self, settings: ElasticsearchSettings, rows: Any) -> None:
        documents = [
            {**row, "at": None if row["at"] is None else row["at"].isoformat()}
            for row in rows.select(["at", "n", "text", "ratio"]).to_pylist()
        ]
        self.cluster.put(settings.index, *documents)

    @contextmanager
    def broken(self, settings: ElasticsearchSettings) -> Iterator[None]:
        self.cluster.client.indices.close(index=settings.index)
        yield
        self.cluster.client.indices.open(index=settings.index)
        self.cluster.client.cluster.health(index=settings.index, wait_for_status="yellow")

    def scoped(self, settings: ElasticsearchSettings, scope: Given) -> ElasticsearchSettings:
        return evolve(settings, scope=scope)

    def leftovers(self, settings: ElasticsearchSettings) -> Sequence[str]:
        return ["a point in time"] * self.cluster.open_points_in_time()
