"""What goes wrong on the way to Snowflake: told as what it is, without a secret, and with nothing half done."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pytest
from attrs import evolve
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from snowflake.connector import __version__, errors

from pipeline_core import Context, ExtractRequest, Load, PermanentError, Secret, SideError, TransientError, Window
from pipeline_snowflake.connector import SnowflakeConnector
from pipeline_snowflake.faults import meaning

START = int(datetime(2013, 3, 10, 12, tzinfo=UTC).timestamp()) * 1_000_000
NOON = Window.from_us(START, START + 3_600_000_000)
ROWS = pa.table({"at": pa.array([START, START + 1], pa.timestamp("us", "UTC"))})
MAJOR = int(__version__.partition(".")[0])
Publish = Callable[[SnowflakeConnector, Load], int]
MakeLoad = Callable[..., Load]


@pytest.fixture
def own(snowflake_servers: ModuleType, tmp_path: Path) -> Iterator[Any]:
    """A stand-in of one test's own, which it may kill."""
    started = snowflake_servers.Server(tmp_path)
    yield started
    started.stop()


def test_a_wrong_password_needs_a_person(account: Any) -> None:
    """At once, naming the settings, without the password."""
    with account.side(account.name(), password="geheim-wrong") as side, pytest.raises(SideError) as error:
        side.count(NOON)
    assert "Incorrect username or password" in str(error.value)
    assert "correct account, user" in str(error.value)
    assert "geheim" not in str(error.value) + repr(error.value.__context__ or "")


def test_a_server_that_is_not_there_is_down(account: Any) -> None:
    """For the whole side, so that the run stops claiming."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with account.side(account.name(), port=port, login_timeout_s=1) as side, pytest.raises(TransientError) as error:
        side.count(NOON)
    assert error.value.side_down


def test_a_failed_upload_leaves_nothing(
    account: Any, load: MakeLoad, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither rows nor files in the session, nor files here; a full disk is one of the ways to fail, and heals."""
    monkeypatch.setattr("pipeline_snowflake.uploading._FILE_BYTES", 1)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    table = account.name()
    before = account.sessions()

    def filling_the_disk() -> Iterator[pa.Table]:
        yield ROWS
        (folder,) = tmp_path.iterdir()
        (folder / "part1.parquet").symlink_to("/dev/full")
        yield ROWS

    def stopped() -> Iterator[pa.Table]:
        yield ROWS
        raise KeyboardInterrupt

    fails = {TransientError: filling_the_disk, KeyboardInterrupt: stopped}
    with account.side(table, create=True) as side:
        for fence, (kind, read) in enumerate(fails.items(), 1):
            begun = len(account.sent())
            with pytest.raises(kind) as error:
                side.upload(load(NOON, ROWS, fence=fence, read=read))
            assert any(each["sql"].startswith("PUT") for each in account.sent(begun)), "a file was there"
            left = [each for each in account.sessions() if each not in before and not each.startswith("session")]
            assert left == []
            assert list(tmp_path.iterdir()) == []
            if kind is TransientError:
                assert error.value.side_down
                assert "TMPDIR" in str(error.value)


# 4.x tells of a server that is gone in a thread of its own, too.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_server_that_dies_during_an_upload(
    own: Any, account: Any, load: MakeLoad, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The upload is an error that heals; nothing is counted, and a new server gets the rows by another try."""
    monkeypatch.setattr("pipeline_snowflake.session._PATIENCE_S", 9)
    mine = type(account)(own.options(), own)
    table = account.name()
    with mine.side(table, create=True, timeout_s=1) as side:
        one = load(NOON, ROWS.slice(0, 1))
        side.upload(one)
        publish(side, one)

        def dying() -> Iterator[pa.Table]:
            yield ROWS
            own.stop(signal.SIGKILL)

        late = load(NOON, ROWS, fence=2, read=dying)
        with pytest.raises(TransientError) as error:
            side.upload(late)
        assert error.value.side_down
        with pytest.raises(TransientError):
            side.count(NOON)
        own.start()
        assert side.count(NOON) == 1
        again = load(NOON, ROWS, fence=3)
        side.upload(again)
        assert publish(side, again) == 2


def test_scratch_that_went_with_its_session(own: Any, account: Any, load: MakeLoad, publish: Publish) -> None:
    """A session lost between upload and publication: an error that heals, and the old rows stay."""
    mine = type(account)(own.options(), own)
    table = account.name()
    made = f'CREATE TABLE {table} ("AT" TIMESTAMP_TZ)'
    mine.run(made, f"INSERT INTO {table} SELECT TO_TIMESTAMP_TZ({START}, 6)")
    with mine.side(table, timeout_s=1) as side:
        one = load(NOON, ROWS)
        side.upload(one)
        own.stop(signal.SIGKILL)
        own.start()
        with pytest.raises(TransientError):
            publish(side, one)
        with pytest.raises(TransientError, match="the session that held the uploaded rows is gone"):
            publish(side, one)
        side.discard(one.claim)
        assert side.count(NOON) == 1


def test_a_transaction_that_the_server_has_ended_publishes_nothing(
    account: Any, load: MakeLoad, publish: Publish
) -> None:
    """A worker that stood still with the lock until another took over: what it does after is not committed."""
    table = account.name()
    settings = {"create": True, "ledger": f"L{table}"}
    with account.side(table, **settings) as slow, account.side(table, **settings) as other:
        first, second = load(NOON, ROWS, fence=1), load(NOON, ROWS.slice(0, 1), fence=2)
        slow.upload(first)
        other.upload(second)

        def stand_still() -> None:
            with slow.transaction() as verbs:
                verbs.guard(first)
                # Waits for the lock until the server rolls back the one that stands still.
                assert publish(other, second) == 1
                verbs.delete(NOON)
                verbs.insert(first)
                assert verbs.count(NOON) == 2

        with pytest.raises(TransientError, match="the server has ended the transaction"):
            stand_still()
        assert not slow.published(first)
        assert other.published(second)
        assert slow.count(NOON) == other.count(NOON) == 1


def test_a_transaction_that_the_server_ends_just_before_its_commit(
    front: Any, account: Any, load: MakeLoad, publish: Publish
) -> None:
    """The commit succeeds, of nothing: as many old rows as new would not tell, the ledger does."""
    table = account.name()
    settings = {"create": True, "ledger": f"L{table}"}
    with account.side(table, **settings, port=front.server_port) as slow, account.side(table, **settings) as other:
        first, second = load(NOON, ROWS, fence=1), load(NOON, ROWS, fence=2)
        slow.upload(first)
        other.upload(second)

        def outrun(what: str, ask: Callable[[], tuple[int, bytes]]) -> tuple[int, bytes]:
            if what == "COMMIT":  # the other waits for the lock until the server rolls back the one that stands still
                assert publish(other, second) == 2
            return ask()

        front.answer = outrun
        with pytest.raises(TransientError, match="the server ended the transaction before its commit"):
            publish(slow, first)
        front.answer = lambda what, ask: ask()
        assert not slow.published(first)
        assert other.published(second)


def test_a_lock_is_waited_for_no_longer_than_said(account: Any, load: MakeLoad, publish: Publish) -> None:
    """A publication that finds another at work heals, and blames no side; then it goes through."""
    table = account.name()
    settings = {"create": True, "ledger": f"L{table}"}
    with account.side(table, **settings) as first, account.side(table, **settings, timeout_s=1) as second:
        one, two = load(NOON, ROWS, fence=1), load(NOON, ROWS, fence=2)
        first.upload(one)
        second.upload(two)
        with first.transaction() as verbs:
            verbs.guard(one)
            with pytest.raises(TransientError, match="another transaction was in the way") as error:
                publish(second, two)
            assert not error.value.side_down
        assert publish(second, two) == 2


def test_a_side_is_left_in_peace_after_its_server_was_lost(own: Any, account: Any) -> None:
    """What it held is gone with the server, so there is nothing that could not be released."""
    mine = type(account)(own.options(), own)
    with mine.side(mine.name(), create=True) as side:
        assert side.count(NOON) == 0
        own.stop(signal.SIGKILL)


def test_a_value_that_the_server_refuses_is_not_shown(account: Any, load: MakeLoad, publish: Publish) -> None:
    """Text that is no JSON, for a VARIANT: nothing is published, and the message holds no value."""
    table = account.name()
    account.run(f'CREATE TABLE {table} ("AT" TIMESTAMP_TZ, DOC VARIANT)')
    with account.side(table) as side:
        one = load(NOON, ROWS.append_column("doc", pa.array(["{}", "secret-value {"])))
        side.upload(one)
        with pytest.raises(PermanentError) as error:
            publish(side, one)
        assert "secret-value" not in str(error.value)
        assert side.count(NOON) == 0


@pytest.mark.parametrize(
    ("number", "state", "kind", "down", "words"),
    [
        (625, "57014", TransientError, False, "another transaction was in the way"),
        (630, "57014", TransientError, False, "raise timeout_s"),
        (604, "57014", TransientError, False, "raise timeout_s"),
        (390114, "08001", TransientError, False, "the session has ended"),
        (390400, "08001", TransientError, False, "the session has ended"),
        (250001, "08001", TransientError, True, "cannot be reached"),
        (14, "HYT00", TransientError, True, "cannot be reached"),
        (250003, None, TransientError, True, "cannot be reached"),
        (580503, None, TransientError, True, "cannot be reached"),
        (580429, None, TransientError, True, "cannot be reached"),
        (290408, None, TransientError, True, "cannot be reached"),
        (290403, None, TransientError, True, "cannot be reached"),
        (290404, "08001", SideError, None, "correct account, host"),
        (540001, "08001", SideError, None, "correct account and host"),
        (7, None, SideError, None, "correct account, user"),
        (251005, None, SideError, None, "correct account, user"),
        (251012, None, TransientError, True, "cannot be reached"),
        (390100, "28000", SideError, None, "correct account, user"),
        (390101, "08001", SideError, None, "correct account, user"),
        (390144, "28000", SideError, None, "correct account, user"),
        (390189, "08001", SideError, None, "correct the name of the role"),
        (390201, "08001", SideError, None, "correct the name of the database"),
        (394400, "08001", SideError, None, "correct account, user"),
        (3001, "42501", SideError, None, "docs/reference/snowflake.md"),
        (2003, "42S02", SideError, None, "correct its name"),
        (606, "57P03", SideError, None, "name a warehouse"),
        (90105, "22000", SideError, None, "set database and schema"),
        (100038, "22018", PermanentError, None, "Numeric value … is not recognized"),
        (1003, "42000", PermanentError, None, "is not recognized"),
    ],
)
def test_errors_by_their_numbers(
    number: int, state: str | None, kind: type[Exception], down: bool | None, words: str
) -> None:
    """What the server's and the connector's numbers mean: most of them no stand-in can give."""
    Secret("geheim-4711").reveal()
    text = "Numeric value 'of a row' is not recognized\ngeheim-4711\nSELECT 'statement'"
    found = meaning(errors.ProgrammingError(msg=text, errno=number, sqlstate=state), "snowflake acc")
    assert type(found) is kind
    assert words in str(found)
    assert str(found).startswith("snowflake acc: ")
    assert getattr(found, "side_down", None) is down
    assert "geheim-4711" not in str(found)
    assert "SELECT" not in str(found)


@pytest.mark.parametrize(
    ("text", "kind", "number", "state", "heals"),
    [
        ("While putting file(s): 'https://a.example/f?sig=geheim-sas'", errors.OperationalError, 253003, None, True),
        ("Failed to read batches from query response. Connection refused", errors.InternalError, 6, None, True),
        ("Snowflake responded with error status: 403 Forbidden", errors.InternalError, 6, None, True),
        ("lock poisoned", errors.InternalError, 6, None, False),
        ("Failed to login: Authentication failed. Unspecified", errors.DatabaseError, 250001, "08001", False),
        ("Failed to login: responded with error status: 404 Not", errors.DatabaseError, 250001, "08001", False),
        ("Failed to login: last status 503 Service", errors.DatabaseError, 250001, "08001", True),
    ],
)
def test_errors_by_their_words(
    text: str, kind: type[errors.Error], number: int, state: str | None, *, heals: bool
) -> None:
    """A transfer that broke off is an outage, a key that is refused is none; the address of a file is cut."""
    found = meaning(kind(msg=text, errno=number, sqlstate=state), "here")
    assert isinstance(found, TransientError) == heals
    assert getattr(found, "side_down", heals) == heals
    assert "geheim" not in str(found)


def test_a_commit_whose_answer_a_throttled_server_kept(
    front: Any, account: Any, load: MakeLoad, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It heals, so that the ledger is asked, which knows that the rows are there."""
    monkeypatch.setattr("pipeline_snowflake.session._PATIENCE_S", 0)
    with account.side(account.name(), create=True, port=front.server_port, timeout_s=5) as side:
        one = load(NOON, ROWS)
        side.upload(one)
        commits = []

        def throttled(what: str, ask: Callable[[], tuple[int, bytes]]) -> tuple[int, bytes]:
            if what != "COMMIT":
                return ask()
            commits.append(ask() if not commits else None)
            return 503, b""

        front.answer = throttled
        with pytest.raises(TransientError, match="cannot be reached") as error:
            publish(side, one)
        assert error.value.side_down
        assert len(commits) > 1, "the connector itself has tried again"
        assert side.published(one)


@pytest.mark.parametrize("status", [None, 503, 403])
def test_rows_that_cannot_be_fetched_are_an_outage(
    front: Any, account: Any, monkeypatch: pytest.MonkeyPatch, status: int | None
) -> None:
    """Snowflake has put them into files elsewhere: no server there, one that is busy, an address that has expired."""
    if MAJOR < 5:
        monkeypatch.setattr("snowflake.connector.result_batch.MAX_DOWNLOAD_RETRY", 1)
    table = account.name()
    account.run(f'CREATE TABLE {table} ("AT" TIMESTAMP_TZ)', f"INSERT INTO {table} SELECT TO_TIMESTAMP_TZ({START}, 6)")

    def elsewhere(what: str, ask: Callable[[], tuple[int, bytes]]) -> tuple[int, bytes]:
        if what == "/rows" and status is not None:
            return status, b""
        found, body = ask()
        if not what.startswith("SELECT") or " AS C0 " not in what:
            return found, body
        answer = json.loads(body)
        file = f"http://127.0.0.1:{1 if status is None else front.server_port}/rows?sig=geheim-sas"
        chunk = {"url": file, "rowCount": 1, "uncompressedSize": 1, "compressedSize": 1}
        answer["data"] |= {"rowsetBase64": "", "chunks": [chunk], "chunkHeaders": {}}
        return found, json.dumps(answer).encode()

    front.answer = elsewhere
    with account.side(table, port=front.server_port) as side:
        with pytest.raises(TransientError) as error:
            list(side.extract(ExtractRequest(NOON)))
        assert error.value.side_down
        assert "geheim" not in str(error.value)
        front.answer = lambda what, ask: ask()
        assert side.count(NOON) == 1


@pytest.mark.parametrize("code", ["390101", "390106", "390189", "390201", "390303", "390422", "394400", 403, 404])
def test_a_refusal_to_sign_in_needs_a_person(front: Any, account: Any, code: str | int) -> None:
    """The server's number says so, or its status does; the state is that of a connection that could not be made."""
    refusal = {"data": {"nextAction": "RETRY_LOGIN"}, "code": code, "message": "no", "success": False}
    front.answer = lambda *_: (code, b"") if isinstance(code, int) else (200, json.dumps(refusal).encode())
    with account.side(account.name(), port=front.server_port) as side, pytest.raises(SideError, match="correct"):
        side.count(NOON)


@pytest.mark.parametrize("broken", ["missing", "no key", "no password", "another password"])
def test_a_key_that_does_not_sign_in_needs_a_person(account: Any, tmp_path: Path, broken: str) -> None:
    """Before the server is asked, without the key and what opens it."""
    file = tmp_path / "key.p8"
    key = rsa.generate_private_key(65537, 2048)
    lock = serialization.BestAvailableEncryption(b"geheim-right")
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock)
    if broken != "missing":
        file.write_bytes(b"geheim-text" if broken == "no key" else pem)
    password = Secret("geheim-wrong") if broken == "another password" else None
    key_pair = {"password": None, "private_key_file": str(file), "private_key_file_pwd": password}
    settings = evolve(account.settings(account.name()), **key_pair)
    with settings.open(Context("flights")) as side, pytest.raises(SideError, match=r"private_key|signs in") as error:
        side.count(NOON)
    assert "geheim" not in str(error.value) + repr(error.value.__context__ or "")


FORKED = """
import os, sys
from pipeline_core import Context, PipelineError, Secret, Window
from pipeline_snowflake import SnowflakeSettings
port, loaded = sys.argv[1:]
if loaded == "before":
    import pipeline_snowflake.session
place = {"host": "127.0.0.1", "port": int(port), "protocol": "http", "database": "DB", "schema": "PUBLIC"}
settings = SnowflakeSettings("fakesnow", "NOWHERE", "AT", user="owner", password=Secret("geheim-owner"), **place)
if os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
with settings.open(Context("p")) as side:
    try:
        side.count(Window.from_us(0, 1))
    except PipelineError as error:
        print(error)
"""


@pytest.mark.skipif(MAJOR < 5, reason="4.x needs no threads")
@pytest.mark.parametrize(("loaded", "said"), [("before", "start workers by spawn"), ("after", "no such table")])
def test_a_forked_process_is_told_instead_of_hanging(snowflake_server: Any, loaded: str, said: str) -> None:
    """The connector's threads do not follow a fork. One that comes before it is loaded does no harm."""
    command = [sys.executable, "-c", FORKED, str(snowflake_server.port), loaded]
    child = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert child.returncode == 0, child.stderr
    assert said in child.stdout


def test_too_many_waiters_for_a_lock_heal() -> None:
    """Snowflake lets no more than twenty statements wait for a table."""
    text = "aborted because the number of waiters for this lock exceeds the 20 statements limit."
    found = meaning(errors.ProgrammingError(msg=text, errno=999, sqlstate="57014"), "here")
    assert isinstance(found, TransientError)
    assert not found.side_down
