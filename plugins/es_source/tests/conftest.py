"""What the tests of this plugin share: genuine servers, indices of their own, and a side on them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from elasticsearch import Elasticsearch

from pipeline_core import Context, Secret
from pipeline_elasticsearch import ElasticsearchSettings
from pipeline_elasticsearch.connector import ElasticsearchConnector

VERSIONS = ["8.19.0", "9.2.0"]
SECURED = "9.2.0"
NUMBERS = count()
Start = Callable[..., AbstractContextManager[Any]]


class Cluster:
    """A server, and the official client to make indices with; nothing of the plugin."""

    def __init__(self, server: Any) -> None:
        self.server = server
        self.url: str = server.url
        self.client = Elasticsearch(self.url, request_timeout=60)

    def index(self, properties: Mapping[str, Any], *documents: Mapping[str, Any], **settings: Any) -> str:
        """Makes an index with that mapping and those documents; its name."""
        name = f"test-{next(NUMBERS):04}"
        more = {"number_of_shards": 2, "number_of_replicas": 0, **settings.pop("settings", {})}
        self.client.indices.create(index=name, mappings={"properties": properties, **settings}, settings=more)
        self.put(name, *documents)
        return name

    def put(self, index: str, *documents: Mapping[str, Any], refresh: bool = True) -> None:
        """Adds documents to an index."""
        operations: list[Mapping[str, Any]] = []
        for document in documents:
            operations += [{"index": {}}, document]
        if operations:
            answer = self.client.bulk(index=index, operations=operations, refresh=refresh)
            assert not answer["errors"], answer

    def settings(self, index: str, **more: Any) -> ElasticsearchSettings:
        """The configuration of a side on an index."""
        return ElasticsearchSettings(**{"index": index, "url": Secret(self.url), "timestamp_field": "at", **more})

    def side(self, index: str, **more: Any) -> AbstractContextManager[ElasticsearchConnector]:
        """A side on an index."""
        return self.settings(index, **more).open(Context("flights"))

    def open_points_in_time(self) -> int:
        """How many there are in the whole server."""
        stats = self.client.nodes.stats(metric="indices", index_metric="search")
        return sum(node["indices"]["search"]["open_contexts"] for node in stats["nodes"].values())


def one_a_version(version: str) -> Any:
    """Tests of one version share a process, and so a server."""
    return pytest.param(version, marks=pytest.mark.xdist_group(f"elasticsearch-{version}"))


@pytest.fixture(scope="session", params=[one_a_version(version) for version in VERSIONS])
def cluster(request: pytest.FixtureRequest, start_elasticsearch: Start) -> Iterator[Cluster]:
    """A server without security, of each version in turn."""
    with start_elasticsearch(request.param) as server:
        cluster = Cluster(server)
        yield cluster
        cluster.client.close()


REFERENCE = Path(__file__).parents[3] / "docs/reference/elasticsearch.md"


def documented_role(heading: str) -> dict[str, Any]:
    """The role that the reference gives under a heading."""
    text = REFERENCE.read_text().partition(heading)[2]
    return dict(json.loads(re.findall(r"```json\n(.*?)```", text, re.DOTALL)[0]))


@pytest.fixture(scope="session", params=[one_a_version(SECURED)])
def secured(request: pytest.FixtureRequest, start_elasticsearch: Start) -> Iterator[Any]:
    """A server with TLS by a CA of its own. `reader` and `writer` have the documented roles for `flights`."""
    roles = {
        "reads": documented_role("A source needs"),
        "writes": documented_role("A target needs"),
        "elsewhere": {"cluster": [], "indices": [{"names": ["weather"], "privileges": ["read"]}]},
    }
    users = {
        "admin": ("admin-geheim", "superuser"),
        "reader": ("reader-geheim", "reads"),
        "writer": ("writer-geheim", "writes"),
        "stranger": ("stranger-geheim", "elsewhere"),
    }
    with start_elasticsearch(request.param, users=users, roles=roles) as server:
        yield server
