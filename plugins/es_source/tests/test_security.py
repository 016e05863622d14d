"""A secured server: TLS with a CA of its own, the documented role, and an error of its own for each wrong one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pyarrow as pa
import pytest
from elasticsearch import Elasticsearch

from pipeline_core import (
    Claim,
    Context,
    ExtractRequest,
    Load,
    PipelineError,
    Record,
    Secret,
    SideError,
    Staged,
    TransientError,
    Window,
)
from pipeline_elasticsearch import ElasticsearchSettings

DAY = Window.from_us(1_362_873_600_000_000, 1_362_960_000_000_000)  # 2013-03-10, UTC


@pytest.fixture(scope="module")
def flights(secured: Any) -> Iterator[Any]:
    """The secured server with the index `flights`, one document in it, and `weather`."""
    admin = Elasticsearch(secured.url, basic_auth=("admin", "admin-geheim"), ca_certs=str(secured.ca))
    with closing(admin):
        for name in ("flights", "weather"):
            admin.indices.create(index=name, mappings={"properties": {"at": {"type": "date"}}})
            admin.index(index=name, document={"at": "2013-03-10T12:00:00Z"}, refresh=True)
    return secured


def settings(server: Any, **changes: Any) -> ElasticsearchSettings:
    """As `reader`, with the right password and the right CA."""
    given = {
        "url": Secret(server.url),
        "index": "flights",
        "timestamp_field": "at",
        "username": "reader",
        "password": Secret("reader-geheim"),
        "ca_certs": str(server.ca),
    }
    return ElasticsearchSettings(**{**given, **changes})


def error(server: Any, **changes: Any) -> PipelineError:
    """What counting says then; whatever it is shows no password, and `doctor` says it too."""
    with settings(server, **changes).open(Context("flights")) as side:
        with pytest.raises(PipelineError) as caught:
            side.count(DAY)
        told = [problem.what for problem in side.problems()]
        assert told
        assert "geheim" not in f"{caught.value}{told}{side!r}{side.identity}"
        return caught.value


@pytest.mark.parametrize("shape", ["fields", "document"])
def test_the_documented_role_is_enough(flights: Any, shape: str) -> None:
    """For counting, extraction and `doctor`; the URL may name user and password instead."""
    with settings(flights, shape=shape).open(Context("flights")) as side:
        assert (side.count(DAY), list(side.count_many([DAY])), side.excluded()) == (1, [1], 0)
        with closing(side.extract(ExtractRequest(DAY))) as batches:
            assert sum(map(len, batches)) == 1
        assert list(side.problems()) == []
    url = Secret(flights.url.replace("://", "://reader:reader-geheim@"))
    with settings(flights, url=url, username=None, password=None).open(Context("flights")) as side:
        assert side.count(DAY) == 1
        assert "reader" not in str(side.identity)


def test_the_documented_role_of_a_target_is_enough(flights: Any) -> None:
    """To make the index, to load it, and to make the ledger; the role of a source is not."""
    table = pa.table({"at": pa.array([DAY.start_us], pa.timestamp("us", "UTC"))})

    def publish(name: str) -> int:
        who = {"username": name, "password": Secret(f"{name}-geheim"), "index": "flights-copy", "create": True}
        staged = Staged("flights/1", "flights", DAY, 1, 1, (), "", {})
        load = Load(Claim("claim", Record("flights", DAY), 1), staged, lambda: (batch for batch in table.to_batches()))
        with settings(flights, **who).open(Context("flights")) as side:
            side.upload(load)
            with side.transaction() as verbs:
                verbs.guard(load)
                verbs.delete(DAY)
                verbs.insert(load)
                assert verbs.count(DAY) == 1
            assert side.published(load)
            return side.count(DAY)

    def doctor(name: str) -> list[str]:
        who = {"username": name, "password": Secret(f"{name}-geheim"), "index": "flights-copy", "create": True}
        with settings(flights, **who).open(Context("flights")) as side:
            return list(side.ddl(table, {}))

    for _ in range(2):
        for refused in (doctor, publish):
            with pytest.raises(SideError, match="status 403"):
                refused("reader")
        assert doctor("writer") == []
        assert publish("writer") == 1


def test_a_wrong_password(flights: Any) -> None:
    """Waits for a person."""
    found = error(flights, password=Secret("wrong-geheim"))
    assert isinstance(found, SideError)
    assert "status 401" in str(found)
    assert "correct api_key, username and password" in str(found)


@pytest.mark.parametrize(
    "wrong", [{"api_key": Secret("bm90OmdlaGVpbQ==")}, {"bearer_token": Secret("no-geheim")}, {}], ids=str
)
def test_other_ways_to_say_who_asks(flights: Any, wrong: dict[str, Any]) -> None:
    """Each reaches the server, which refuses it; and so does it who says nothing."""
    found = error(flights, username=None, password=None, **wrong)
    assert isinstance(found, SideError)
    assert "status 401" in str(found)


def test_a_forbidden_index(flights: Any) -> None:
    """Of a user that the server knows; the remedy is the role."""
    for changes in (
        {"username": "stranger", "password": Secret("stranger-geheim")},
        {"index": "weather"},
    ):
        found = error(flights, **changes)
        assert isinstance(found, SideError)
        assert "status 403" in str(found)
        assert "docs/reference/elasticsearch.md" in str(found)


def test_a_refresh_that_is_not_allowed(flights: Any) -> None:
    """It takes a privilege more, and is not left out in silence."""
    found = error(flights, refresh=True)
    assert isinstance(found, SideError)
    assert "indices:admin/refresh" in str(found)


def test_an_unknown_ca(flights: Any) -> None:
    """No request is sent, so no password either."""
    found = error(flights, ca_certs=None)
    assert isinstance(found, SideError)
    assert "CERTIFICATE_VERIFY_FAILED" in str(found)
    assert "correct url, ca_certs" in str(found)


def test_verification_can_be_switched_off_and_doctor_says_so(flights: Any) -> None:
    """It works, and is no secret."""
    with settings(flights, ca_certs=None, verify_certs=False).open(Context("flights")) as side:
        assert side.count(DAY) == 1
        assert "verify_certs = false" in next(iter(side.problems())).what


def test_no_tls_where_it_is_wanted(flights: Any) -> None:
    """The server hangs up, as it does on its way down: that may heal."""
    url = Secret(flights.url.replace("https://", "http://"))
    assert isinstance(error(flights, url=url, ca_certs=None), TransientError)
