"""The configuration section of this plugin. No client and no Arrow here: they load when it is opened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, Literal

from attrs import field, frozen, validators

from pipeline_core import ConfigError, Context, Secret

if TYPE_CHECKING:
    from pipeline_elasticsearch.connector import ElasticsearchConnector


@frozen
class ElasticsearchSettings:
    """Documents of an Elasticsearch index, alias, data stream or pattern of them; one index as target.

    The cluster is named by `url` (`https://host:9200`) or `cloud_id`; who asks, by `api_key`, by `username` and
    `password`, by `bearer_token` or by a client certificate. `ca_certs`, `client_cert` and `client_key` are PEM files.

    `query`, in Elasticsearch's own language, narrows counting and extraction alike. `shape` says what a row is:
    `fields` gives a column for each mapped field, `document` the columns `_id`, `_index`, the timestamp and `_source`
    as JSON text. `lists` names the fields that hold several values, and so become lists. With `refresh` the index is
    refreshed before it is counted, so that what was written a moment ago is seen.

    `scope` limits the side to the documents whose fields hold these values: an index that several pipelines share. A
    target takes the `_id` of a document from its scope, its timestamp and the fields that `key` names, else from the
    whole row; with `create` a missing index is made from the staged rows.

    `slices` are the parts of a window that are read at the same time, `page_rows` the documents of one answer,
    at most.
    `timeout_s` limits, in seconds, what one request may take.
    """

    index: str = field(validator=validators.min_len(1))
    url: Secret | None = None
    cloud_id: str | None = None
    timestamp_field: str = field(default="@timestamp", validator=validators.min_len(1))
    query: Mapping[str, Any] | None = None
    shape: Literal["fields", "document"] = field(default="fields", validator=validators.in_(("fields", "document")))
    lists: frozenset[str] = frozenset()
    refresh: bool = False
    scope: Mapping[str, str | bool | int | float] = field(factory=dict)
    key: tuple[str, ...] = ()
    create: bool = False
    api_key: Secret | None = None
    username: str | None = None
    password: Secret | None = None
    bearer_token: Secret | None = None
    ca_certs: str | None = None
    client_cert: str | None = None
    client_key: str | None = None
    verify_certs: bool = True
    compress: bool = False
    slices: int = field(default=2, validator=[validators.ge(1), validators.le(64)])
    page_rows: int = field(default=10_000, validator=[validators.ge(1), validators.le(10_000)])
    timeout_s: float = field(default=300.0, validator=validators.gt(0))

    def __attrs_post_init__(self) -> None:
        """Raises ConfigError for settings that contradict each other."""
        if self.url is None and self.cloud_id is None:
            raise ConfigError(
                "elasticsearch: expected either url or cloud_id; give the one that names the cluster, or set the "
                "environment variable ELASTICSEARCH_HOST"
            )
        if self.url is not None and self.cloud_id is not None:
            raise ConfigError(
                "elasticsearch: found url and cloud_id, expected either; give the one that names the cluster"
            )
        if (self.username is None) != (self.password is None):
            raise ConfigError("elasticsearch: username and password go together; give both or neither")
        ways = self.ways()
        if len(ways) > 1:
            raise ConfigError(f"elasticsearch: found {' and '.join(ways)}, expected one way to say who asks")

    def ways(self) -> Sequence[str]:
        """The settings that say who asks."""
        return [each for each in ("api_key", "username", "bearer_token") if getattr(self, each) is not None]

    @contextmanager
    def open(self, context: Context, /) -> Iterator[ElasticsearchConnector]:
        """The side; nothing is connected before it is used. Raises ConfigError for a cluster that cannot be named."""
        from pipeline_elasticsearch.client import Client  # noqa: PLC0415 - loads the client
        from pipeline_elasticsearch.connector import ElasticsearchConnector  # noqa: PLC0415 - loads Arrow

        del context
        with closing(Client(self)) as client:
            yield ElasticsearchConnector(self, client)
