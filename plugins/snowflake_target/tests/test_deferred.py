"""Uploads that the server ends by itself: what they leave, what becomes of them, and who may take them away."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest
from attrs import evolve

from pipeline_core import Load, PermanentError, SideError, TransientError, Window
from pipeline_snowflake.connector import SnowflakeConnector
from pipeline_snowflake.deferred import Name

START = int(datetime(2013, 3, 10, 12, tzinfo=UTC).timestamp()) * 1_000_000
NOON = Window.from_us(START, START + 3_600_000_000)
ROWS = pa.table({"at": pa.array([START, START + 1], pa.timestamp("us", "UTC")), "n": pa.array([1, 2])})
DDL = re.compile(r"\s*(CREATE|ALTER\s+TABLE|DROP|TRUNCATE|COMMENT)\b", re.IGNORECASE)
Publish = Callable[[SnowflakeConnector, Load], int]
MakeLoad = Callable[..., Load]


@pytest.fixture
def table(account: Any) -> Iterator[str]:
    """A table with one old row; no upload stands beside it in the end."""
    name = account.name()
    account.run(f'CREATE TABLE {name} ("AT" TIMESTAMP_TZ, N NUMBER(18, 0))')
    account.run(f"INSERT INTO {name} SELECT TO_TIMESTAMP_TZ({START + 7}, 6), 7")
    yield name
    assert account.uploads() == []


def ended(side: SnowflakeConnector, token: str) -> bool:
    """What `uploaded` says once it is not False any more."""
    deadline = time.monotonic() + 30
    while not side.uploaded(token):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return True


def test_it_goes_on_without_its_side(account: Any, table: str, load: MakeLoad, publish: Publish) -> None:
    """Not one row shows, and the poll says no, until the server has them all; then any side publishes them."""
    one = load(NOON, ROWS)
    with account.held():
        with account.side(table) as side:
            token = side.submit(one)
        with account.side(table) as other:
            assert [other.uploaded(token) for _ in range(2)] == [False, False]
            assert other.count(NOON) == 1
            assert json.loads(json.dumps(token)) == token
    with account.side(table) as other:
        assert ended(other, token)
        later = evolve(one, token=token, claim=evolve(one.claim, fence=2))
        assert publish(other, later) == 2
        assert account.uploads() == [json.loads(token)["table"]], "it stays for the task that is run again"
        other.discard(later.claim)


def test_what_is_sent(account: Any, table: str, load: MakeLoad, publish: Publish) -> None:
    """No DDL inside a transaction, no name without quotes, no value in a text; the COPY commits by itself."""
    given = pa.table({"at": pa.array([START], pa.timestamp("us", "UTC")), "n": pa.array([4_711_815])})
    one = load(NOON, given)
    before = len(account.sent())
    with account.side(table) as side:
        token = side.submit(one)
        assert ended(side, token)
        assert publish(side, evolve(one, token=token)) == 1
        side.cancel(token)
    sent = account.sent(before)
    texts = [each["sql"] for each in sent if not each["sql"].startswith("LOGIN")]
    assert not any(account.options["password"] in text for text in [*texts, token])
    assert [text for text in texts if "4711815" in text or str(START) in text] == []
    inside = [each["sql"] for each in sent if each["transaction"] is not None]
    assert len(inside) > 10
    assert [text for text in inside if DDL.match(text)] == []
    name = json.loads(token)["table"]
    quotes = ('"DB"."PUBLIC"."%', '"DB"."PUBLIC"."')
    assert [text for text in texts if name in text and not any(quote + name + '"' in text for quote in quotes)] == []
    (copy,) = [each for each in sent if each["sql"].startswith("COPY")]
    (login,) = [each["sql"] for each in sent if each["session"] == copy["session"] and each["sql"].startswith("LOGIN")]
    parameters = json.loads(login.removeprefix("LOGIN "))
    given = [str(parameters[name]).lower() for name in ("AUTOCOMMIT", "ABORT_DETACHED_QUERY")]
    assert given == ["true", "false"]
    assert json.loads(parameters["QUERY_TAG"]) == {"pipeline": "flights", "window": str(NOON)}


def test_a_copy_that_fails_says_why(account: Any, table: str, load: MakeLoad) -> None:
    """As any statement does: what a row is to blame for is permanent, and no value is quoted."""
    given = pa.table({"at": pa.array([START], pa.timestamp("us", "UTC")), "n": pa.array([4_711_815])})
    with account.side(table) as side:
        with account.held():
            token = side.submit(load(NOON, given))
            scratch = json.loads(token)["table"]
            account.run(f'ALTER TABLE "{scratch}" DROP COLUMN "C1"', f'ALTER TABLE "{scratch}" ADD COLUMN "C1" DATE')
        with pytest.raises(PermanentError) as error:
            ended(side, token)
        assert "rows were submitted" not in str(error.value), "the server's own reason"
        assert "4711815" not in str(error.value)
        side.cancel(token)


def test_a_copy_that_somebody_ends_can_be_submitted_again(account: Any, table: str, load: MakeLoad) -> None:
    """The window is to blame for nothing."""
    with account.held(), account.side(table) as side:
        one = load(NOON, ROWS)
        token = side.submit(one)
        with closing(account.connect()) as connection, closing(connection.cursor()) as cursor:
            assert cursor.abort_query(json.loads(token)["query"])
        with pytest.raises(TransientError, match="cancel"):
            ended(side, token)
        side.discard(one.claim)


def test_cancelling_ends_the_copy(account: Any, table: str, load: MakeLoad) -> None:
    """While it goes on: no row arrives, and no table is left for one."""
    with account.side(table) as side:
        with account.held():
            token = side.submit(load(NOON, ROWS))
            side.cancel(token)
            assert account.uploads() == []
        with closing(account.connect()) as connection:
            assert connection.get_query_status(json.loads(token)["query"]).name == "ABORTED"


def test_a_copy_that_the_server_does_not_tell_of(account: Any, table: str, load: MakeLoad) -> None:
    """May yet begin; when the upload has expired, it will not."""
    with account.side(table) as side:
        with account.held():
            token = side.submit(load(NOON, ROWS))
        assert ended(side, token)
        said = json.loads(token)
        account.run(f'DELETE FROM "{said["table"]}"')
        unknown = {**said, "query": "01234567-89ab-cdef-0123-456789abcdef"}
        assert not side.uploaded(json.dumps(unknown))
        old = str(evolve(Name.read(said["table"]), expires_s=1))
        account.run(f'ALTER TABLE "{said["table"]}" RENAME TO "{old}"')
        with pytest.raises(TransientError, match="submit it again"):
            side.uploaded(json.dumps({**unknown, "table": old}))
        side.cancel(json.dumps({**unknown, "table": old}))


def test_rows_that_somebody_adds_are_noticed(account: Any, table: str, load: MakeLoad) -> None:
    """What is published is what was submitted."""
    with account.side(table) as side:
        token = side.submit(load(NOON, ROWS))
        assert ended(side, token)
        account.run(f'INSERT INTO "{json.loads(token)["table"]}" VALUES (0, 0)')
        with pytest.raises(PermanentError, match="2 rows were submitted, but 3 copied"):
            side.uploaded(token)
        side.cancel(token)


def test_whoever_loads_next_sweeps_what_has_expired(account: Any, table: str, load: MakeLoad) -> None:
    """Of its own pipeline alone; what has not expired stays, and so does what only looks alike."""
    one = load(NOON, ROWS, fence=5)
    day = Window.from_us(START - 3_600_000_000, START)
    mine, theirs = (Name.of(load(day, pipeline=pipeline).claim, 1) for pipeline in ("flights", "weather"))
    late = Name.of(load(day).claim, 2**33)
    alike = [f"{mine}_1", f"{mine}X", str(mine).replace("UPLOAD", "UPLOADS")]
    names = [str(each) for each in (mine, theirs, late)]
    account.run(*(f'CREATE TRANSIENT TABLE "{name}" (C0 NUMBER)' for name in [*names, *alike]))
    with account.side(table) as side:
        side.upload(one)
        assert account.uploads() == sorted({*names[1:], *alike[:2]})
        side.discard(load(NOON, fence=2**62).claim)
        assert account.uploads() == sorted({*names[1:], *alike[:2]})
    with account.side(table) as side:
        side.discard(load(day, fence=1).claim)
    assert account.uploads() == sorted({names[1], *alike[:2]})
    account.run(*(f'DROP TABLE "{name}"' for name in [names[1], *alike]))


@pytest.mark.parametrize(
    "change",
    [
        {"table": 'X" (C0 NUMBER); DROP TABLE T; --'},
        {"table": "PIPELINE_LEDGER"},
        {"schema": "AAAA"},
        {"query": []},
        {"rows": "many"},
        {"staged": None, "schema": None},
    ],
    ids=["hostile", "ledger", "schema", "query", "rows", "nothing"],
)
def test_a_token_of_somebody_else_is_refused(account: Any, table: str, load: MakeLoad, change: dict[str, Any]) -> None:
    """Nothing of it reaches a statement."""
    with account.side(table) as side:
        token = side.submit(load(NOON, ROWS))
        before = len(account.sent())
        for verb in (side.uploaded, side.cancel):
            with pytest.raises(SideError, match="not submitted here by this pipeline"):
                verb(json.dumps({**json.loads(token), **change}))
        assert [each for each in account.sent(before) if "DROP" in each["sql"]] == []
        with account.side(table, "weather") as other, pytest.raises(SideError, match="not submitted here"):
            other.cancel(token)
        side.cancel(token)


def test_a_table_that_was_changed_meanwhile(account: Any, table: str, load: MakeLoad, publish: Publish) -> None:
    """The rows were made to fit another one, and are submitted again; other staged files are not published for them."""
    one = load(NOON, ROWS, key="one")
    with account.side(table, new_columns="ignore") as side:
        token = side.submit(one)
        assert ended(side, token)
        with pytest.raises(TransientError, match="'two' was staged since 'one' was submitted"):
            publish(side, evolve(load(NOON, ROWS, key="two"), token=token))
        account.run(f"ALTER TABLE {table} DROP COLUMN N", f"ALTER TABLE {table} ADD COLUMN N NUMBER(20, 0)")
        with pytest.raises(TransientError, match="columns have changed since the upload was submitted"):
            publish(side, evolve(one, token=token))
        assert side.count(NOON) == 1
        side.discard(one.claim)
