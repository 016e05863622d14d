"""The SQL side on MariaDB, as source and as target: what differs from other servers."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline_core import ExtractRequest, Load, PermanentError, SideError, TransientError, Window

START = datetime(2013, 3, 10, tzinfo=UTC)
DAY = Window(START, START + timedelta(days=1))
INSTANT = pa.timestamp("us", "UTC")

Database = Any  # of the conftest
MakeLoad = Callable[..., Load]
Publish = Callable[[Any, Load], int]


@pytest.fixture
def database(database_on: Callable[[str], Any]) -> Iterator[Any]:
    """A new database."""
    with closing(database_on("mariadb")) as made:
        yield made


@pytest.fixture(scope="module")
def shared(database_on: Callable[[str], Any]) -> Iterator[Any]:
    """A database for many examples."""
    with closing(database_on("mariadb")) as made:
        yield made


def rows(hours: list[float], **columns: pa.Array) -> pa.RecordBatch:
    instants = pa.array([START + timedelta(hours=hour) for hour in hours], INSTANT)
    return pa.RecordBatch.from_pydict({"at": instants, **columns})


def extracted(connector: Any, window: Window = DAY, **more: Any) -> pa.Table:
    with closing(connector.extract(ExtractRequest(window, **more))) as batches:
        return pa.Table.from_batches(list(batches))


# --- time -------------------------------------------------------------------------------------------------------------


def test_a_date_that_no_calendar_has_is_refused(database: Database) -> None:
    """Loose servers store the thirty-first of February: it lies in a window, and stops it by name."""
    database.run(
        "SET sql_mode = 'ALLOW_INVALID_DATES'",
        "CREATE TABLE logged (at datetime(6))",
        "INSERT INTO logged VALUES ('2013-02-31 12:00')",
    )
    window = Window(datetime(2013, 2, 1, tzinfo=UTC), datetime(2013, 3, 1, tzinfo=UTC))
    with database.side("logged", timestamp_timezone="UTC") as connector, pytest.raises(PermanentError, match="'at'"):
        extracted(connector, window)


def test_a_coarse_timestamp_column_truncates(database: Database, load: MakeLoad, publish: Publish) -> None:
    """Also where the server would round: the last microsecond of a window stays in it."""
    last = pa.table({"at": pa.array([DAY.end_us - 1], INSTANT)})
    database.run("CREATE TABLE coarse (at timestamp(3) null)", "SET GLOBAL sql_mode = 'TIME_ROUND_FRACTIONAL'")
    try:
        with database.side("coarse") as target:
            given = load(DAY, last)
            target.upload(given)
            assert publish(target, given) == 1
            assert extracted(target)["at"].cast(pa.int64()).to_pylist() == [DAY.end_us - 1_000]
    finally:
        database.run("SET GLOBAL sql_mode = DEFAULT")


def test_a_column_that_moves_rows_out_of_their_window_is_noticed(
    database: Database, load: MakeLoad, publish: Publish
) -> None:
    """Here to the past, before a start between two of its steps: the count inside the publication shows it."""
    database.run("CREATE TABLE coarse (at timestamp(3) null)")
    fine = Window.from_us(DAY.start_us + 500, DAY.end_us)
    with database.side("coarse") as target:
        given = load(fine, pa.table({"at": pa.array([fine.start_us], INSTANT)}))
        target.upload(given)
        assert publish(target, given) == 0


@pytest.mark.parametrize("declared", ["int unsigned", "bigint unsigned"])
def test_numbers_without_a_sign_are_timestamps_too(
    database: Database, load: MakeLoad, publish: Publish, declared: str
) -> None:
    """Written, counted alone and together, with an index and without, and read; before 1970 there is none."""
    database.run(f"CREATE TABLE t (at {declared})")
    before = Window(datetime(1969, 1, 1, tzinfo=UTC), datetime(1969, 1, 2, tzinfo=UTC))
    with database.side("t", timestamp_unit="s") as side:
        staged = rows([0, 1, 23.5])
        given = load(DAY, staged)
        side.upload(given)
        assert publish(side, given) == 3
        assert extracted(side).sort_by("at").to_pylist() == staged.to_pylist()
        for statement in ("DO 0", "CREATE INDEX by_time ON t (at)"):
            database.run(statement)
            assert list(side.count_many([before, DAY, Window(DAY.start, DAY.start + timedelta(hours=1))])) == [0, 3, 1]
            assert side.excluded() == 0
        with pytest.raises(PermanentError, match="Out of range value for column 'at'"):
            side.upload(load(before, pa.table({"at": pa.array([before.start], INSTANT)})))


# --- types ------------------------------------------------------------------------------------------------------------


def test_types_of_an_existing_table(database: Database, load: MakeLoad, publish: Publish) -> None:
    """json as it was written, uuid, enum, unsigned, Latin-1: read, and written into a table like it."""
    ddl = (
        "(at timestamp(6) null, j json, u uuid, m enum('sad', 'o''k'), c char(2), v varchar(3) character set latin1, "
        "b bigint unsigned, flag tinyint(1), small tinyint(4), y year, n numeric(50,3), ms datetime(3), f float, "
        "t time(2), fixed binary(2), raw varbinary(9), k int(8) unsigned zerofill)"
    )
    database.run(
        f"CREATE TABLE source {ddl}",
        f"CREATE TABLE target {ddl}",
        """INSERT INTO source VALUES ('2013-03-10 01:00', '{"a":  1, "a": 2}',
           'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11', 'o''k', 'ab', 'xyé', 18446744073709551615, 1, -128, 2013,
           12345678901234567890123456789012345678901234567.125, '2013-03-10 01:00:00.123', 16777215.0, '23:59:59.25',
           0x00FF, 0x5C090A00, 7)""",
        "INSERT INTO source (at) VALUES ('2013-03-10 02:00')",
    )
    with database.side("source") as source:
        found = extracted(source)
    assert found.to_pylist()[0] == {
        "at": START + timedelta(hours=1),
        "j": '{"a":  1, "a": 2}',
        "u": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
        "m": "o'k",
        "c": "ab",
        "v": "xyé",
        "b": 2**64 - 1,
        "flag": True,
        "small": -128,
        "y": 2013,
        "n": Decimal("12345678901234567890123456789012345678901234567.125"),
        "ms": datetime(2013, 3, 10, 1, 0, 0, 123_000),
        "f": 16_777_215.0,
        "t": time(23, 59, 59, 250_000),
        "fixed": b"\x00\xff",
        "raw": b"\\\t\n\x00",
        "k": 7,
    }
    with database.side("target") as target:
        given = load(DAY, found)
        target.upload(given)
        assert publish(target, given) == 2
        assert extracted(target).sort_by("at").equals(found.sort_by("at"))


def test_nested_values_become_json(database: Database, load: MakeLoad, publish: Publish) -> None:
    """In a made table too, where the column is one of JSON."""
    staged = rows([1], v=pa.array([{"a": ["x", None]}]))
    with database.side("made", create=True) as target:
        given = load(DAY, staged)
        target.upload(given)
        assert publish(target, given) == 1
        target.discard(given.claim)
        assert extracted(target)["v"].to_pylist() == ['{"a": ["x", null]}']
        target.upload(load(DAY, rows([1], v=pa.array([[1]]))))


def test_a_character_set_in_the_url_loses_no_letter(database: Database, load: MakeLoad, publish: Publish) -> None:
    """The server would send a question mark for each letter that the set lacks: it is not heeded."""
    staged = rows([1], note=pa.array(["Zoë 漢字 🛫"]))
    with database.side("made", create=True, url=f"{database.url}?charset=latin1") as side:
        given = load(DAY, staged)
        side.upload(given)
        publish(side, given)
        assert extracted(side).to_pylist() == staged.to_pylist()


def test_zero_is_a_value_and_null_is_no_number(database: Database, load: MakeLoad, publish: Publish) -> None:
    """A column that counts up would replace both by its next number: 0 is kept, NULL refused."""
    database.run("CREATE TABLE logged (at timestamp(6) null, id int auto_increment primary key)")
    with database.side("logged") as target:
        given_load = load(DAY, rows([0, 1], id=pa.array([0, 7], pa.int32())))
        target.upload(given_load)
        assert publish(target, given_load) == 2
        assert extracted(target)["id"].to_pylist() == [0, 7]
        with pytest.raises(PermanentError, match=r"'id'.*a NULL, which the column would replace"):
            target.upload(load(DAY, rows([0], id=pa.nulls(1, pa.int32())), fence=2))
        ready = load(DAY, rows([0, 1]), fence=3)
        target.upload(ready)
        assert publish(target, ready) == 2


# --- the source -------------------------------------------------------------------------------------------------------


def test_rows_stay_with_the_server_until_they_are_asked_for(database: Database) -> None:
    """An extraction that is given up reads none of the rest, and its session and query are gone."""
    database.run("CREATE TABLE logged (at timestamp(6) null, n int, filler char(200))")
    database.run("INSERT INTO logged SELECT '2013-03-10' + INTERVAL seq MICROSECOND, seq, 'x' FROM seq_1_to_200000")
    busy = "SELECT count(*) FROM information_schema.processlist WHERE db = database() AND command = 'Query'"
    with database.side("logged") as connector:
        batches = connector.extract(ExtractRequest(DAY, batch_rows=7_000))
        assert len(next(batches)) == 7_000
        assert database.run(busy) == [(2,)]  # the server still sends; and this question
        batches.close()
        for _ in range(500):
            if database.run(busy) == [(1,)]:
                break
            database.wait(0.01)
        assert database.run(busy) == [(1,)]
        assert sum(map(len, connector.extract(ExtractRequest(DAY)))) == 200_000


def test_the_server_ends_in_the_middle_of_an_extraction(database: Database) -> None:
    """The whole side is down, and the next extraction finds a new connection."""
    database.run("CREATE TABLE logged (at timestamp(6) null, filler char(200))")
    database.run("INSERT INTO logged SELECT '2013-03-10' + INTERVAL seq MICROSECOND, 'x' FROM seq_1_to_200000")
    with database.side("logged") as connector:
        batches = connector.extract(ExtractRequest(DAY, batch_rows=1_000))
        next(batches)
        ((session,),) = database.run(
            "SELECT id FROM information_schema.processlist WHERE db = database() AND id <> connection_id() "
            "AND command = 'Query'"
        )
        database.run(f"KILL {session}")
        with pytest.raises(TransientError) as raised:
            list(batches)
        assert raised.value.side_down
        assert sum(map(len, connector.extract(ExtractRequest(DAY)))) == 200_000


def test_equal_text_is_not_the_same_text(database: Database) -> None:
    """Most collations take case, accents and spaces at the end for nothing; a scope does not."""
    database.run(
        "CREATE TABLE logged (at timestamp(6) null, place varchar(20) character set latin1)",
        "INSERT INTO logged VALUES ('2013-03-10 01:00', 'Zürich'), ('2013-03-10 02:00', 'ZÜRICH'), "
        "('2013-03-10 03:00', 'Zurich'), ('2013-03-10 04:00', 'Zürich ')",
    )
    with database.side("logged", scope={"place": "Zürich"}) as connector:
        assert connector.count(DAY) == 1
        assert list(connector.count_many([DAY, DAY])) == [1, 1]
        assert extracted(connector)["place"].to_pylist() == ["Zürich"]


# --- the target -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "storage"),
    [("t", "MyISAM"), ("t", "Aria"), ("pipeline_ledger", "Aria"), ("pipeline_ledger_head", "Aria")],
)
def test_a_table_without_transactions_is_refused(
    database: Database, load: MakeLoad, publish: Publish, storage: str, table: str
) -> None:
    """By its name and its engine, before a row is written: the target's own, or one of the ledger's."""
    given_load = load(DAY, rows([1]))
    with database.side("t", create=True) as target:
        target.upload(given_load)
        assert publish(target, given_load) == 1
    database.run(f"ALTER TABLE {table} ENGINE = {storage}")
    with database.side("t") as target:
        with pytest.raises(SideError, match=f"'{table}' is kept by {storage}.*ENGINE = InnoDB"):
            target.upload(load(DAY, rows([1, 2]), fence=2))
        assert target.count(DAY) == 1


@pytest.fixture
def filled(database: Database, load: MakeLoad, publish: Publish) -> Iterator[Any]:
    """A target whose day holds two published rows under fence 10."""
    with database.side("t", create=True, timeout_s=1) as target:
        given_load = load(DAY, rows([0, 12]), fence=10)
        target.upload(given_load)
        assert publish(target, given_load) == 2
        target.discard(given_load.claim)
        yield target


@pytest.mark.parametrize("verb", ["guard", "delete", "insert"])
def test_a_lock_wait_undoes_the_whole_publication(
    database: Database, filled: Any, load: MakeLoad, publish: Publish, verb: str
) -> None:
    """The server takes back only the statement that waited: what came before it, the ledger's entry too, is undone."""
    held = {
        "guard": "SELECT * FROM pipeline_ledger_head FOR UPDATE",
        "delete": "SELECT * FROM t WHERE at = '2013-03-10 12:00' FOR UPDATE",
        "insert": "INSERT INTO t (at, id) VALUES (NULL, 5)",
    }
    database.run("ALTER TABLE t ADD COLUMN id int UNIQUE")
    given_load = load(DAY, rows([3], id=pa.array([5], pa.int32())), fence=11)
    filled.upload(given_load)
    database.run("BEGIN", held[verb])
    with pytest.raises(TransientError, match="Lock wait timeout") as raised:
        publish(filled, given_load)
    assert not raised.value.side_down
    database.run("ROLLBACK")
    assert filled.count(DAY) == 2
    assert not filled.published(given_load)
    assert publish(filled, given_load) == 1  # the same uploaded rows, in another transaction
    assert filled.published(given_load)


def test_a_deadlock_is_transient(database: Database, filled: Any, load: MakeLoad, publish: Publish) -> None:
    """The server ends the publication, which is undone, and can be done again with the same uploaded rows."""
    given_load = load(DAY, rows([3]), fence=11)
    filled.upload(given_load)
    database.run("INSERT INTO t SELECT NULL FROM seq_1_to_500")
    # The other one has written more, so that the server ends the publication and not it.
    database.run("BEGIN", "DELETE FROM t WHERE at IS NULL", "SELECT * FROM t WHERE at = '2013-03-10 12:00' FOR UPDATE")
    waits = threading.Event()

    def want_the_ledger() -> None:
        waits.set()
        database.run("UPDATE pipeline_ledger_head SET publications = publications + 1")
        database.run("ROLLBACK")

    thread = threading.Thread(target=want_the_ledger)

    def publish_meanwhile() -> None:
        with filled.transaction() as verbs:
            verbs.guard(given_load)
            thread.start()
            waits.wait()
            verbs.delete(DAY)

    with pytest.raises(TransientError, match="Deadlock") as raised:
        publish_meanwhile()
    thread.join(20)
    assert not raised.value.side_down
    assert not filled.published(given_load)
    assert publish(filled, given_load) == 1


def test_a_failed_upload_leaves_nothing(
    database: Database, load: MakeLoad, publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither its file nor its session, and so no temporary table, once the window is discarded; the next one works."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    sessions = "SELECT count(*) FROM information_schema.processlist WHERE db = database()"
    with database.side("t", create=True) as target:
        bad = rows([0], v=pa.array([datetime(2050, 1, 1, tzinfo=UTC)], INSTANT))
        given_load = load(DAY, rows([1], v=pa.nulls(1, INSTANT)), bad)
        with pytest.raises(PermanentError, match="column 'v'"):
            target.upload(given_load)
        with_session = database.run(sessions)
        target.discard(given_load.claim)
        for _ in range(200):
            if database.run(sessions) < with_session:
                break
            database.wait(0.01)
        assert database.run(sessions) < with_session
        assert list(tmp_path.iterdir()) == []
        again = load(DAY, rows([1], v=pa.nulls(1, INSTANT)))
        target.upload(again)
        assert publish(target, again) == 1


def test_a_server_that_takes_no_files_is_told_of(database: Database, load: MakeLoad) -> None:
    """The upload needs `local_infile`: a person has to allow it."""
    database.run("SET GLOBAL local_infile = OFF")
    try:
        with database.side("t", create=True) as target, pytest.raises(SideError, match="set local_infile = ON"):
            target.upload(load(DAY, rows([1])))
    finally:
        database.run("SET GLOBAL local_infile = ON")


def test_only_an_upload_offers_files_to_the_server(database: Database, tmp_path: Path) -> None:
    """A server may ask whoever offers `LOCAL INFILE` for any file: counting and extracting do not."""
    (tmp_path / "secret").write_text("1\n")
    database.run("CREATE TABLE t (at datetime(6))")
    with database.side("t", timestamp_timezone="UTC") as side:
        engine = side._engine
        asked = f"LOAD DATA LOCAL INFILE '{tmp_path / 'secret'}' INTO TABLE t"
        with pytest.raises(SideError, match="local_infile"), engine.writing() as connection:
            connection.exec_driver_sql(asked)


def test_a_table_that_may_not_be_seen_into(database: Database) -> None:
    """The server shows the table without a column to who may do nothing with its rows."""
    url = database.server.url(database.name, "guest:hunter2")
    database.run("CREATE TABLE t (at timestamp(6) null)")
    database.let_guest("CREATE VIEW")
    with database.side("t", url=url) as side, pytest.raises(SideError, match=r"shows this user no column; grant"):
        side.count(DAY)


# --- a server that does not answer ------------------------------------------------------------------------------------


@contextmanager
def hanging(database: Database) -> Iterator[None]:
    """The server stands still and its connections stay open; it goes on if nobody gives up on it."""
    process = database.server._process
    rescue = threading.Timer(30, process.send_signal, [signal.SIGCONT])
    process.send_signal(signal.SIGSTOP)
    rescue.start()
    try:
        yield
        assert rescue.is_alive()
    finally:
        rescue.cancel()
        process.send_signal(signal.SIGCONT)


def test_a_server_that_hangs_is_given_up(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a count soon after its timeout, and by whoever connects; then it is away for every window alike."""
    monkeypatch.setattr("pipeline_sql.engines.mariadb._CONNECT_TIMEOUT_S", 1)
    database.run("CREATE TABLE t (at timestamp(6) null)")
    with database.side("t", timeout_s=0.2) as side, database.side("t") as late:
        assert side.count(DAY) == 0
        with hanging(database):
            for each in (side, late):
                with pytest.raises(TransientError) as raised:
                    each.count(DAY)
                assert raised.value.side_down
        assert side.count(DAY) == late.count(DAY) == 0


def test_a_lost_network_is_found_out(database: Database) -> None:
    """Each connection probes it, uploads' too; what waits for an answer may wait for long once it is connected."""
    with database.side("t") as side:
        for session in (side._engine.sa.connect(), side._engine.session()):
            with session:
                session.exec_driver_sql("DO 1")
                driver: Any = session.connection.driver_connection
                asked = [
                    driver._sock.getsockopt(socket.IPPROTO_TCP, option)
                    for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
                ]
                assert asked == [30, 10, 3]
                assert driver._sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
                assert driver._sock.gettimeout() is None
