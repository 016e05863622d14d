"""What can heal and what waits for a person, without Elasticsearch: nobody there, somebody else, a busy server."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from pipeline_core import (
    ConfigError,
    Context,
    ExtractRequest,
    PermanentError,
    PipelineError,
    Secret,
    SideError,
    TransientError,
    Window,
)
from pipeline_elasticsearch import ElasticsearchSettings

DAY = Window.from_us(1_362_873_600_000_000, 1_362_960_000_000_000)
GENUINE = {"x-elastic-product": "Elasticsearch"}


def count(url: str, **more: Any) -> int:
    with ElasticsearchSettings("flights", Secret(url), **more).open(Context("flights")) as side:
        return side.count(DAY)


@pytest.fixture
def answering() -> Iterator[Callable[..., str]]:
    """A server that gives every request the same answer: `answering(status, body, headers)` is its URL."""
    running: list[ThreadingHTTPServer] = []

    def start(status: int, body: bytes, headers: dict[str, str]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.server.asked += 1  # type: ignore[attr-defined]
                self.send_response(status)
                for name, value in {"content-type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET  # noqa: N815 - the base class names it so

            def log_message(self, *arguments: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.asked = 0  # type: ignore[attr-defined]
        running.append(server)
        Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    start.servers = running  # type: ignore[attr-defined]
    yield start
    for server in running:
        server.shutdown()
        server.server_close()


@contextmanager
def raised(kind: type[PipelineError], *texts: str) -> Iterator[pytest.ExceptionInfo[Any]]:
    with pytest.raises(kind) as caught:
        yield caught
    for text in texts:
        assert text in str(caught.value)


def test_nobody_listens() -> None:
    """The side is down, and may come back."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with raised(TransientError, "cannot be reached", "refused") as caught:
            count(url)
    assert caught.value.side_down


def test_a_name_that_does_not_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names come and go."""

    def unknown(*arguments: object, **more: object) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with raised(TransientError, "not known") as caught:
        count("http://search.example:9200")
    assert caught.value.side_down


def test_a_server_that_does_not_answer_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """It took the connection, and says nothing."""
    monkeypatch.setattr("pipeline_elasticsearch.client._GRACE_S", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as silent, raised(TransientError, "no answer within timeout_s"):
        count(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.05)


@pytest.mark.parametrize(
    ("status", "headers", "after", "down"),
    [
        (429, {"retry-after": "7"}, 7.0, True),
        (429, {"retry-after": "Wed, 21 Oct 2037 07:28:00 GMT"}, None, True),
        (503, {}, None, True),
        (502, {}, None, True),
        (504, {}, None, True),
        (500, {}, None, False),
    ],
)
def test_what_can_heal(answering: Any, status: int, headers: dict[str, str], after: float | None, down: bool) -> None:
    """With the server's own hint; and it was asked once, because only the core retries."""
    with raised(TransientError, f"status {status}") as caught:
        count(answering(status, b"<html>busy</html>", {**headers, "content-type": "text/html"}))
    assert (caught.value.retry_after, caught.value.side_down) == (after, down)
    assert answering.servers[0].asked == 1


@pytest.mark.parametrize(("status", "remedy"), [(400, "correct the settings"), (401, "correct api_key"), (403, "role")])
def test_what_waits_for_a_person(answering: Any, status: int, remedy: str) -> None:
    """With the innermost cause first, and what to do."""
    shard = {"shard": 0, "reason": {"type": "query_shard_exception", "reason": "deep down"}}
    error = {"type": "search_phase_execution_exception", "reason": "all shards failed", "failed_shards": [shard]}
    body = json.dumps({"error": error, "status": status}).encode()
    with raised(SideError, f"status {status}: query_shard_exception: deep down", remedy):
        count(answering(status, body, GENUINE))


def test_a_block_of_the_index(answering: Any) -> None:
    """No role of the user lifts it."""
    error = {"type": "cluster_block_exception", "reason": "index [flights] blocked by: [FORBIDDEN/8/index write (api)]"}
    with raised(SideError, "index write (api)", "lift that block"):
        count(answering(403, json.dumps({"error": error, "status": 403}).encode(), GENUINE))


def test_tls_where_there_is_none(answering: Any) -> None:
    """No time will make a certificate of it."""
    url = answering(200, b"{}", GENUINE).replace("http://", "https://")
    with raised(SideError, "no trusted connection", "correct url"):
        count(url)


def test_something_else_answers(answering: Any) -> None:
    """A success without the product's header is none; neither is one that cannot be read."""
    with raised(SideError, "not Elasticsearch"):
        count(answering(200, b"{}", {}))
    with raised(PermanentError, "cannot be read"):
        count(answering(200, b"<html>", GENUINE))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "or set the environment variable ELASTICSEARCH_HOST"),
        ({"url": Secret("http://a:1"), "cloud_id": "x:eA=="}, "found url and cloud_id"),
        ({"url": Secret("http://a:1"), "username": "u"}, "go together"),
        (
            {"url": Secret("http://a:1"), "api_key": Secret("k"), "bearer_token": Secret("t")},
            "found api_key and bearer_token",
        ),
        (
            {"url": Secret("http://u:geheim@a:1"), "api_key": Secret("k")},
            "found a user in url and api_key, expected one way",
        ),
        ({"url": Secret("search.example:9200")}, "url: found no http:// or https:// at its beginning"),
        ({"url": Secret("ftp://u:geheim@search.example")}, "url: found no http:// or https:// at its beginning"),
        ({"url": Secret("https://a:b")}, "url: found no host with a port"),
        ({"cloud_id": "nonsense"}, "cannot be set up"),
        ({"url": Secret("https://a:1"), "ca_certs": "/no/such/file"}, "ca_certs names no file"),
    ],
)
def test_settings_that_name_no_cluster(settings: dict[str, Any], text: str) -> None:
    """Are refused before anything is asked, and show no password."""
    with raised(ConfigError, text) as caught, ElasticsearchSettings("flights", **settings).open(Context("flights")):
        pass
    assert "geheim" not in str(caught.value)


def test_what_the_owner_calls_them() -> None:
    """`elasticsearch_host` and `source_index`, from the environment too."""
    from pipeline_core.contracts import Provider
    from pipeline_elasticsearch import pipeline_connectors

    provider: Provider[Any]
    (provider,) = pipeline_connectors()
    assert provider.aliases == {"elasticsearch_host": "url", "source_index": "index"}


def test_too_much_to_write_heals(answering: Any) -> None:
    """One document of many that the server had no room for: the side is told to wait."""
    from pipeline_elasticsearch.bulk import operation, write
    from pipeline_elasticsearch.client import Client

    error = {"type": "es_rejected_execution_exception", "reason": "queue is full"}
    items = [{"index": {"_id": "a", "status": 201}}, {"index": {"_id": "b", "status": 429, "error": error}}]
    url = answering(200, json.dumps({"errors": True, "items": items}).encode(), GENUINE)
    operations = [(operation("index", each, 1), {}) for each in "ab"]
    busy = raised(TransientError, "document 'b'", "queue is full")
    with closing(Client(ElasticsearchSettings("flights", Secret(url)))) as client, busy as caught:
        write(client, "flights", operations)
    assert caught.value.side_down


WHOLE = {
    "indices": ["flights"],
    "fields": {"@timestamp": {"date": {"searchable": True, "aggregatable": True}}},
    "timed_out": False,
    "_shards": {"total": 2, "successful": 2, "skipped": 0, "failed": 0},
    "_clusters": {"total": 1, "successful": 1, "skipped": 0},
    "hits": {"total": {"value": 7, "relation": "eq"}},
}


@pytest.mark.parametrize(
    ("part", "error", "text"),
    [
        ({"timed_out": True}, TransientError, "cut off by timeout_s"),
        ({"_shards": {"total": 2, "successful": 2, "failed": 1}}, TransientError, "2 of 2 shards"),
        ({"_shards": {"total": 2, "successful": 1, "failed": 0}}, TransientError, "1 of 2 shards"),
        ({"_clusters": {"total": 2, "successful": 1, "skipped": 1}}, TransientError, "skipped"),
        ({"_clusters": {"total": 2, "successful": 1, "partial": 1}}, TransientError, "partial"),
        ({"hits": {"total": {"value": 7, "relation": "gte"}}}, PermanentError, "7 or more"),
    ],
    ids=["timed-out", "failed", "missing", "skipped", "partial", "at-least"],
)
def test_a_partial_answer_is_no_count(answering: Any, part: Any, error: type[PipelineError], text: str) -> None:
    """Though it came with success and a number."""
    assert count(answering(200, json.dumps(WHOLE).encode(), GENUINE)) == 7
    with raised(error, text):
        count(answering(200, json.dumps({**WHOLE, **part}).encode(), GENUINE))


def test_a_slice_that_gave_too_few_documents_is_no_window(answering: Any) -> None:
    """The server said how many it holds; a page less of them ends the extraction, and the window is read again."""
    body = {**WHOLE, "id": "point", "pit_id": "point", "hits": {"total": {"value": 7, "relation": "eq"}, "hits": []}}
    url = answering(200, json.dumps(body).encode(), GENUINE)
    settings = ElasticsearchSettings("flights", Secret(url), slices=1, shape="document")
    with settings.open(Context("flights")) as side, closing(side.extract(ExtractRequest(DAY))) as batches:
        assert len(next(batches)) == 0
        with raised(TransientError, "gave 0 documents, but holds 7"):
            next(batches)


def test_what_the_server_warns_of_is_no_warning_here(answering: Any, recwarn: pytest.WarningsRecorder) -> None:
    """How its next version will differ is no concern of who runs a pipeline."""
    from pipeline_elasticsearch.client import Client

    url = answering(200, b"{}", {**GENUINE, "warning": '299 Elasticsearch-8.19.0 "this will be gone"'})
    with closing(Client(ElasticsearchSettings("flights", Secret(url)))) as client:
        assert client.ask("GET", "/") == b"{}"
    assert not list(recwarn)


def test_an_error_in_an_answer_of_many() -> None:
    """An item without a type that is known is permanent, and shows what there is."""
    from pipeline_elasticsearch.faults import refused

    assert type(refused("here", 418, {"error": "teapot"})) is PermanentError
    assert "teapot" in str(refused("here", 418, {"error": "teapot"}))
