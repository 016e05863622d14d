"""Asking the server: one request, one answer in bytes, every fault translated. Nothing is retried here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar
from urllib.parse import quote, unquote, urlsplit

import elastic_transport
import msgspec
from elasticsearch import Elasticsearch

from pipeline_core import ConfigError, Secret
from pipeline_core.secrets import hide, redact
from pipeline_elasticsearch.faults import translated

if TYPE_CHECKING:
    from pipeline_elasticsearch.settings import ElasticsearchSettings

T = TypeVar("T")
_JSON = "application/json"
_NDJSON = "application/x-ndjson"
_GRACE_S = 10.0  # beyond the server's own time limit, so that its answer, which says more, comes first
_PORTS = {"http": 9200, "https": 443}


class _Bytes(elastic_transport.Serializer):
    """Hands the body on as it is: who asked knows how to read it."""

    mimetype: ClassVar[str] = _JSON

    def loads(self, data: bytes) -> bytes:
        return data

    def dumps(self, data: Any) -> bytes:
        return bytes(data)


class _Node(elastic_transport.Urllib3HttpNode):
    """Drops what the server warns of: how its next major version will differ is no concern of who runs a pipeline.

    Here, because the client would warn by Python's own means, whose filters belong to the whole process.
    """

    def perform_request(self, *arguments: Any, **named: Any) -> Any:
        answer = super().perform_request(*arguments, **named)
        answer.meta.headers.pop("warning", None)
        return answer


def _vendored(mimetype: str) -> str:
    return mimetype.replace("/", "/vnd.elasticsearch+")


class Client:
    """The official client, with nothing of it but its connections. May be used by several threads at once."""

    def __init__(self, settings: ElasticsearchSettings) -> None:
        self.timeout_s = settings.timeout_s
        where, user = _cluster(settings)
        self.host = where.get("hosts", settings.cloud_id and settings.cloud_id.partition(":")[0])
        serializer = _Bytes()
        try:
            self._client = Elasticsearch(
                **where,
                **(user or _credentials(settings)),
                **_tls(settings),
                node_class=_Node,
                serializers={each: serializer for m in (_JSON, _NDJSON) for each in (m, _vendored(m))},
                http_compress=settings.compress,
                connections_per_node=settings.slices + 1,
                request_timeout=settings.timeout_s + _GRACE_S,
                max_retries=0,
                retry_on_status=(),
                retry_on_timeout=False,
            )
        except (ValueError, TypeError, OSError) as error:
            raise ConfigError(
                f"elasticsearch: the connection cannot be set up: {redact(str(error))}; correct url, cloud_id or the "
                "files that ca_certs, client_cert and client_key name"
            ) from None
        self.place = f"Elasticsearch {self.host}, index {settings.index!r}"

    def close(self) -> None:
        """Closes every connection."""
        self._client.close()

    def ask(
        self, method: str, path: str, parameters: Mapping[str, object] | None = None, body: object | None = None
    ) -> bytes:
        """The body of the answer. `body` is sent as JSON, a list as one line each."""
        headers = {"accept": _JSON}
        data = None
        if isinstance(body, list):
            headers["content-type"] = _NDJSON
            data = b"".join(msgspec.json.encode(line) + b"\n" for line in body)
        elif body is not None:
            headers["content-type"] = _JSON
            data = msgspec.json.encode(body)
        with translated(self.place):
            answer = self._client.perform_request(
                method, path, params=parameters and _parameters(parameters), headers=headers, body=data
            )
            return bytes(answer.body)

    def ask_for(
        self,
        kind: type[T],
        method: str,
        path: str,
        parameters: Mapping[str, object] | None = None,
        body: object | None = None,
    ) -> T:
        """The answer as a msgspec type."""
        answer = self.ask(method, path, parameters, body)
        with translated(self.place):
            return msgspec.json.decode(answer, type=kind)


def path(*parts: str) -> str:
    """A path of these parts, quoted."""
    return "/" + "/".join(quote(part, safe=",*") for part in parts)


def _parameters(given: Mapping[str, object]) -> dict[str, str]:
    return {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in given.items()}


def _cluster(settings: ElasticsearchSettings) -> tuple[dict[str, Any], dict[str, Any]]:
    """Where the cluster is, and who asks, where its URL says so."""
    if settings.url is None:
        return {"cloud_id": settings.cloud_id}, {}
    url = settings.url.reveal()
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in _PORTS or not parts.hostname:
        # The URL is a secret as a whole: who knows what was put in its place.
        begins = url.startswith(tuple(f"{scheme}://" for scheme in _PORTS))
        found = "no host with a port" if begins else "no http:// or https:// at its beginning"
        raise ConfigError(
            f"url: found {found}, expected http or https, a host and its port, such as https://search.example:9200"
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    where = f"{parts.scheme}://{host}:{_PORTS[parts.scheme] if port is None else port}{parts.path.rstrip('/')}"
    if parts.username is None:
        return {"hosts": where}, {}
    if ways := settings.ways():
        raise ConfigError(f"elasticsearch: found a user in url and {ways[0]}, expected one way to say who asks")
    password = unquote(parts.password or "")
    hide(password)
    return {"hosts": where}, {"basic_auth": (unquote(parts.username), password)}


def _credentials(settings: ElasticsearchSettings) -> dict[str, Any]:
    if settings.username is not None:
        return {"basic_auth": (settings.username, _revealed(settings.password))}
    return {
        name: _revealed(secret)
        for name, secret in (("api_key", settings.api_key), ("bearer_auth", settings.bearer_token))
        if secret is not None
    }


def _revealed(secret: Secret | None) -> str:
    return "" if secret is None else secret.reveal()


def _tls(settings: ElasticsearchSettings) -> dict[str, Any]:
    """What the client refuses for a URL without TLS is left out where it is not set."""
    given = {name: getattr(settings, name) for name in ("ca_certs", "client_cert", "client_key")}
    given = {name: value for name, value in given.items() if value is not None}
    for name, value in given.items():
        # The client would say so no sooner than at its first request.
        if not Path(value).exists():
            raise ConfigError(f"elasticsearch: {name} names no file: found {value!r}; correct the path")
    # `doctor` says that certificates are not verified; the client need not warn of it too.
    return given if settings.verify_certs else {**given, "verify_certs": False, "ssl_show_warn": False}
