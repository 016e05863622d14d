"""A bucket of a real S3 server, and a service that answers whatever a test has in mind."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen

from pipeline_core import Secret
from pipeline_core.contracts import Context, Stage
from pipeline_objects import ObjectStageSettings

FLIGHTS = Context("flights")


def settings_of(section: dict[str, Any], **changes: Any) -> ObjectStageSettings:
    """A section `[stage]` as the configuration would make it."""
    given = {name: value for name, value in section.items() if name != "type"} | changes
    credentials = {name: Secret(value) for name, value in given.pop("credentials", {}).items()}
    return ObjectStageSettings(**given, credentials=credentials)


@frozen
class Bucket:
    """An empty bucket; `server` is what the project's `s3_server` gives."""

    server: Any
    name: str

    def settings(self, user: str = "owner", **changes: Any) -> ObjectStageSettings:
        """The stage below `stage/`, for one of the server's users."""
        return settings_of(self.server.settings(self.name, user), **changes)

    def stage(self, user: str = "owner", **changes: Any) -> AbstractContextManager[Stage]:
        """The stage, opened."""
        return self.settings(user, **changes).open(FLIGHTS)

    @property
    def store(self) -> Any:
        """The bucket by obstore."""
        return self.server.store(self.name)

    def unfinished(self) -> list[str]:
        """Uploads that were begun, and neither completed nor aborted."""
        return list(self.server.unfinished(self.name))


@pytest.fixture
def bucket(s3_server: Any) -> Bucket:
    """A new bucket."""
    return Bucket(s3_server, s3_server.new_bucket())


Answer = tuple[int, bytes, dict[str, str]]


class Service:
    """An HTTP service on a port of this machine. `answer` says what to reply, from the method and the path."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.answer: Callable[[str, str], Answer] = lambda method, path: (200, b"", {})
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _reply(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                service.asked.append(f"{self.command} {self.path}")
                service.headers.append({name.lower(): value for name, value in self.headers.items()})
                status, body, headers = service.answer(self.command, self.path)
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(body))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)
                self.close_connection = "Connection" in headers

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _reply  # noqa: N815 - the names that the base looks for

            def log_message(self, *_: object) -> None:
                """Says nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.endpoint = f"{'https' if tls else 'http'}://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def settings(self, **changes: Any) -> ObjectStageSettings:
        """A stage in a bucket of this service."""
        credentials = {"access_key_id": "owner", "secret_access_key": "hush-hush"}
        section = {"url": "s3://a-bucket/stage", "endpoint": self.endpoint, "allow_http": True}
        return settings_of(section | {"credentials": credentials}, **changes)

    def close(self) -> None:
        """Ends it."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def service() -> Iterator[Service]:
    """A service that answers what it is told to."""
    service = Service()
    yield service
    service.close()


@pytest.fixture
def secure_service(tmp_path: Path) -> Iterator[tuple[Service, str]]:
    """Such a service with TLS, and the CA that signed its certificate."""
    from elasticsearch_server import make_certificates

    make_certificates(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")
    service = Service(tls)
    yield service, str(tmp_path / "ca.crt")
    service.close()
