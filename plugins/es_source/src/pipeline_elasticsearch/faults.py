"""What went wrong with a request, in the project's own errors: what can heal, what waits for a person."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import elastic_transport
import elasticsearch
import msgspec

from pipeline_core import PermanentError, PipelineError, SideError, TransientError
from pipeline_core.secrets import redact

_THROTTLED = 429
_REMEDIES = {
    400: "correct the settings of this side, its query before all",
    401: "correct api_key, username and password, or bearer_token",
    403: "give the user the role that docs/reference/elasticsearch.md lists",
    404: "correct index, or create it",
    405: "something else than Elasticsearch may answer there: correct url",
    406: "only Elasticsearch 8 and 9 are supported",
}
_HEALING_STATUS = {408, _THROTTLED, 502, 503, 504}
_HEALING_TYPES = {"circuit_breaking_exception", "es_rejected_execution_exception"}
_SHOWN_CAUSES = 3


class NoMemoryError(TransientError):
    """The server has no memory for so much at once: the whole side is down, unless less can be asked."""


@contextmanager
def translated(place: str) -> Iterator[None]:
    """Errors of the client, as those of the project; `place` names the side."""
    try:
        yield
    except elasticsearch.UnsupportedProductError:
        raise SideError(f"{place}: what answers there is not Elasticsearch; correct url") from None
    except elasticsearch.ApiError as error:
        raise refused(place, error.meta.status, error.body, error.meta.headers.get("retry-after")) from None
    except elastic_transport.TlsError as error:
        raise _of_tls(place, error) from None
    except elastic_transport.ConnectionTimeout:
        raise TransientError(f"{place}: no answer within timeout_s; raise it, or see why the server is slow") from None
    except elastic_transport.ConnectionError as error:
        text = _root_text(error)
        raise TransientError(f"{place}: cannot be reached: {text}; see whether it runs", side_down=True) from None
    except msgspec.DecodeError as error:
        raise PermanentError(f"{place}: an answer that cannot be read: {error}; see what answers there") from None
    except elastic_transport.TransportError as error:
        raise PermanentError(f"{place}: an answer that cannot be read: {redact(str(error))}") from None


def refused(place: str, status: int, body: object, retry_after: str | None = None) -> PipelineError:
    """The error that stands for an answer other than success. `body` is its JSON, as bytes or decoded."""
    types = {kind for kind, _ in _causes(_error_in(body))}
    text = reasons(body)
    if "search_context_missing_exception" in types:
        # Positions are valid inside one PIT only: going on in a new one would skip and repeat documents.
        return TransientError(f"{place}: the server lost its point in time; the window is read from its start: {text}")
    if "search_timeout_exception" in types:
        # 429 or 504, but no sign of a busy server: another window may well take less time.
        return cut_off(place)
    if types & _HEALING_TYPES or status in _HEALING_STATUS:
        kind = NoMemoryError if "circuit_breaking_exception" in types else TransientError
        return kind(f"{place}: status {status}: {text}", retry_after=_seconds(retry_after), side_down=True)
    remedy = "lift that block of the index" if "cluster_block_exception" in types else _REMEDIES.get(status)
    if remedy is not None:
        return SideError(f"{place}: status {status}: {text}; {remedy}")
    if status >= 500:
        return TransientError(f"{place}: status {status}: {text}", retry_after=_seconds(retry_after))
    return PermanentError(f"{place}: status {status}: {text}")


def cut_off(place: str) -> TransientError:
    """The error that stands for a search which the server gave up in time."""
    return TransientError(f"{place}: the search was cut off by timeout_s; raise it, or see why the server is slow")


def reasons(body: object) -> str:
    """Why the server refused, the innermost causes first."""
    causes = list(dict.fromkeys(_causes(_error_in(body))))
    return redact("; ".join(f"{kind}: {reason}" for kind, reason in causes[:_SHOWN_CAUSES])) or "no reason is given"


def _error_in(body: object) -> Any:
    if isinstance(body, bytes | bytearray):
        try:
            body = msgspec.json.decode(body)
        except msgspec.DecodeError:  # a proxy's page, or nothing at all
            return None
    return body.get("error") if isinstance(body, dict) else None


def _causes(error: Any) -> Iterator[tuple[str, str]]:
    """Type and reason, the innermost ones first: what a shard says explains more than `all shards failed`."""
    if isinstance(error, str):
        yield "error", error
    if not isinstance(error, dict):
        return
    for failure in error.get("failed_shards") or ():
        yield from _causes(failure.get("reason"))
    for cause in error.get("root_cause") or ():
        yield from _causes(cause)
    yield from _causes(error.get("caused_by"))
    reason, index = str(error.get("reason")), str(error.get("index", ""))
    yield str(error.get("type", "error")), reason if index in reason else f"{reason} ({index})"


def _seconds(retry_after: str | None) -> float | None:
    """The server's hint; a date, which is the header's other form, is left to the usual wait."""
    try:
        return None if retry_after is None else max(0.0, float(retry_after))
    except ValueError:
        return None


def _of_tls(place: str, error: elastic_transport.TlsError) -> PipelineError:
    broken_off = (ssl.SSLEOFError, ssl.SSLZeroReturnError)
    text = _root_text(error)
    if any(isinstance(each, broken_off) for each in _chain(error)):
        return TransientError(f"{place}: the connection broke off: {text}", side_down=True)
    return SideError(f"{place}: no trusted connection: {text}; correct url, ca_certs, client_cert or client_key")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and everything that it was made of."""
    yield error
    nested = [*getattr(error, "errors", ()), error.__cause__, error.__context__, getattr(error, "reason", None)]
    for each in nested:
        if isinstance(each, BaseException):
            yield from _chain(each)
            return


def _root_text(error: BaseException) -> str:
    *_, root = _chain(error)
    return redact(str(root)) or type(root).__name__
