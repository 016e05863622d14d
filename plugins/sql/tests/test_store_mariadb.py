"""The SQL record store on MariaDB: what only this server has."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from pipeline_core import (
    Addition,
    Change,
    ClaimRequest,
    ConfigError,
    Context,
    PermanentError,
    Secret,
    SideError,
    Status,
    TransientError,
    Verdict,
)
from pipeline_sql.engines import open_engine
from pipeline_sql.settings import SqlStoreSettings
from pipeline_sql.store import SqlRecordStore, opened

REQUEST = ClaimRequest("p", 10**15, 60)


def change(count: int, pipeline: str = "p") -> Change:
    return Change(pipeline, add=[Addition(number * 10, number * 10 + 10, 0) for number in range(count)])


def open_once(url: str, timeout_s: float = 5) -> None:
    with opened(open_engine(Secret(url), timeout_s=timeout_s)) as store:
        store.apply(change(1))


@pytest.fixture
def engine(mariadb_url: str) -> Any:
    return open_engine(Secret(mariadb_url), timeout_s=5)


@pytest.fixture
def store(engine: Any) -> Iterator[SqlRecordStore]:
    with opened(engine) as store:
        yield store


def test_the_clock_is_the_servers_in_utc(store: SqlRecordStore, engine: Any, mariadb_server: Any) -> None:
    """In microseconds, whatever zone the server is in; it runs on inside a transaction and a statement's wait."""
    with mariadb_server.connect() as other, other.cursor() as cursor:
        cursor.execute("SET GLOBAL time_zone = '+09:00'")
        try:
            engine.dispose()
            with engine.writing() as connection:
                before_us = engine.now_us(connection)
                connection.exec_driver_sql("DO SLEEP(0.001)")
                assert engine.now_us(connection) >= before_us + 1000
        finally:
            cursor.execute("SET GLOBAL time_zone = SYSTEM")
    assert abs(store.now_us() - time.time() * 1e6) < 60_000_000


def test_a_worker_passes_over_what_another_one_is_claiming(store: SqlRecordStore, engine: Any) -> None:
    """Rows locked by an open transaction are skipped, not waited for; a failed claim leaves them as they were."""
    store.apply(change(3))
    locked = "SELECT id FROM pipeline_core_records WHERE id <= 2 FOR UPDATE"
    with engine.sa.connect() as other:
        assert len(other.exec_driver_sql(locked).all()) == 2
        (claim,) = store.claim(REQUEST)
        assert claim.window.start_us == 20
        assert store.claim(REQUEST) == []
    assert [claim.window.start_us for claim in store.claim(REQUEST)] == [0]


def test_an_expired_lease_in_other_hands_stops_nobody(store: SqlRecordStore, engine: Any) -> None:
    """A lapsed lease or backoff that another transaction is looking at is left to that one."""
    store.apply(change(2))
    (claim,) = store.claim(REQUEST)
    store.settle(claim, Verdict(Status.PENDING, "later", wait_s=0.001))
    time.sleep(0.002)
    with engine.sa.connect() as other:
        other.exec_driver_sql("SELECT id FROM pipeline_core_records WHERE id = 1 FOR UPDATE")
        assert [claim.window.start_us for claim in store.claim(REQUEST)] == [10]
    assert [claim.window.start_us for claim in store.claim(REQUEST)] == [0]


def test_a_planner_waits_for_the_other_and_sees_its_work(store: SqlRecordStore, engine: Any) -> None:
    """While one transaction plans the pipeline, another cannot; other pipelines can, and so can the next."""
    impatient = open_engine(Secret(engine.url.render_as_string(hide_password=False)), timeout_s=0.1)
    with opened(impatient) as other:
        with engine.writing() as connection:
            engine.lock_plan(connection, "p")
            with pytest.raises(TransientError, match=r"lock 'plan of p' .* not free after 0\.1 s"):
                other.apply(change(1))
            other.apply(change(1, "q"))
        assert other.apply(change(1))


def test_the_lock_of_a_plan_ends_with_its_transaction(engine: Any) -> None:
    """Committed or failed: the connection goes back to the pool without it."""
    locks = "SELECT IS_USED_LOCK(%s)"
    names: list[str] = []

    @sa.event.listens_for(engine.sa, "before_cursor_execute")
    def listen(_c: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool) -> None:
        if "GET_LOCK" in statement:
            names.append(parameters[0])

    def fail() -> None:
        with engine.writing() as connection:
            engine.lock_plan(connection, "p")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    with engine.writing() as connection:
        engine.lock_plan(connection, "p")
        assert connection.exec_driver_sql(locks, (names[0],)).scalar_one() is not None
    with engine.reading() as connection:
        assert connection.exec_driver_sql(locks, (names[0],)).scalar_one() is None
    assert len(set(names)) == 1
    engine.dispose()


def test_a_migration_that_was_cut_off_is_gone_on_with(engine: Any) -> None:
    """DDL is not undone here, so whatever part of it a killed process left, the next one completes."""
    with opened(engine), engine.writing() as connection:
        tables = sa.inspect(connection).get_table_names()
    for left in range(len(tables)):
        with engine.writing() as connection:
            for table in tables[left:]:
                connection.exec_driver_sql(f"DROP TABLE IF EXISTS {table}")
            if "pipeline_core_version" in tables[:left]:
                connection.exec_driver_sql("DELETE FROM pipeline_core_version")
        with opened(engine) as store:
            store.apply(change(1, f"p{left}"))
            assert store.claim(ClaimRequest(f"p{left}", 10**15, 60))


def test_an_update_that_was_cut_off_is_gone_on_with(engine: Any) -> None:
    """Of two columns that an update adds, only one was: the next process adds the other."""
    with opened(engine), engine.writing() as connection:
        connection.exec_driver_sql("ALTER TABLE pipeline_core_records DROP COLUMN asked")
        connection.exec_driver_sql("UPDATE pipeline_core_version SET version_num = '0001'")
    with opened(engine) as store:
        store.apply(change(1))
        assert store.claim(REQUEST)


def test_the_tables_are_transactional_whatever_the_servers_default(mariadb_server: Any, mariadb_url: str) -> None:
    """A server whose new tables would be MyISAM, and whose text would be Latin-1, keeps promises and text."""
    with mariadb_server.connect() as other, other.cursor() as cursor:
        cursor.execute("SET GLOBAL default_storage_engine = MyISAM")
        try:
            open_once(mariadb_url)
        finally:
            cursor.execute("SET GLOBAL default_storage_engine = InnoDB")
        cursor.execute(
            "SELECT DISTINCT engine FROM information_schema.tables WHERE table_schema = %s",
            (sa.make_url(mariadb_url).database,),
        )
        assert cursor.fetchall() == (("InnoDB",),)


def test_a_claim_walks_the_index(store: SqlRecordStore, engine: Any) -> None:
    """Behind thousands of done records: the server touches a handful of rows, and sorts none."""
    store.apply(change(5_000))
    with engine.writing() as connection:
        connection.exec_driver_sql("UPDATE pipeline_core_records SET status = 'done' WHERE start_us < 49000")
    engine.dispose()
    store.now_us()  # one pooled connection, whose counters begin at nothing

    def touched() -> dict[str, int]:
        with engine.reading() as connection:
            found = connection.exec_driver_sql("SHOW SESSION STATUS WHERE variable_name LIKE 'Handler_read%%'").all()
            sorts = connection.exec_driver_sql("SHOW SESSION STATUS LIKE 'Sort_rows'").all()
        return {name: int(value) for name, value in [*found, *sorts]}

    before = touched()
    assert store.claim(REQUEST)
    after = touched()
    assert sum(after.values()) - sum(before.values()) < 100


def test_an_up_to_date_store_needs_no_right_to_make_tables(
    store: SqlRecordStore, engine: Any, mariadb_server: Any
) -> None:
    """A worker may open it, claim and settle with rights on the rows alone."""
    store.apply(change(1))
    database = engine.url.database
    with engine.writing() as connection:
        connection.exec_driver_sql(f"GRANT SELECT, INSERT, UPDATE ON {database}.* TO guest@'%%'")
    with opened(open_engine(Secret(mariadb_server.url(database, "guest:hunter2")), timeout_s=5)) as worker:
        (claim,) = worker.claim(REQUEST)
        worker.settle(claim, Verdict(Status.QUARANTINED, "looked at"))


def test_who_may_not_make_the_tables_is_told_what_makes_them(mariadb_server: Any) -> None:
    """The command that another user may run once."""
    database = mariadb_server.new_database()
    with open_engine(Secret(mariadb_server.url(database)), timeout_s=5).writing() as connection:
        connection.exec_driver_sql(f"GRANT SELECT, INSERT, UPDATE ON {database}.* TO guest@'%%'")
    with pytest.raises(SideError, match=r"denied.*are not there.*`pipeline-core store upgrade`"):
        open_once(mariadb_server.url(database, "guest:hunter2"))


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("user", "database", "message"),
    [
        ("guest:nonsense-42", "{database}", "Access denied.*check user and password"),
        ("guest", "{database}", "Access denied.*check user and password"),
        ("nobody_knows", "{database}", "Access denied.*check user and password"),
        ("owner:geheim-77", "no_such_database", "Unknown database 'no_such_database'; create the database"),
        ("guest:hunter2", "{database}", "Access denied.*grant this user the right"),
    ],
)
def test_what_only_a_person_can_mend(mariadb_server: Any, user: str, database: str, message: str) -> None:
    """A wrong or missing password, user, database or right: a fault of the side, told without the password."""
    url = mariadb_server.url(database.format(database=mariadb_server.new_database()), user)
    with pytest.raises(SideError, match=message) as raised:
        open_once(url)
    for password in ("nonsense-42", "hunter2", "geheim-77"):
        assert password not in str(raised.value)
    assert raised.value.__suppress_context__


def test_a_server_that_is_not_there_stops_the_side() -> None:
    """A refused connection heals by itself, for every window alike; its password is not told."""
    with pytest.raises(TransientError, match="check the server and the way to it") as raised:
        open_once("mysql://me:hunter2@127.0.0.1:1/x")
    assert raised.value.side_down
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    ("version", "known"),
    [("8.4.2", False), ("10.5.99-MariaDB", False), ("10.6.0-MariaDB-log", True), ("5.5.5-11.4.1-MariaDB", True)],
)
def test_a_server_that_is_too_old_or_another_is_refused(
    store: SqlRecordStore, engine: Any, monkeypatch: pytest.MonkeyPatch, version: str, known: bool
) -> None:
    """Before it does anything that this code was not tested with."""
    engine.dispose()
    monkeypatch.setattr(engine.sa.dialect.loaded_dbapi.connections.Connection, "get_server_info", lambda _: version)
    if known:
        assert store.now_us()
    else:
        with pytest.raises(SideError, match=f"found a server of version '{version}', expected MariaDB 10.6"):
            store.now_us()


def test_a_connection_lost_on_the_way_stops_the_side(store: SqlRecordStore, engine: Any) -> None:
    """The server ends the session in the middle of a transaction: transient, and the next call finds a new one."""

    def end_itself() -> None:
        with engine.writing() as connection:
            engine.lock_plan(connection, "p")
            own = connection.exec_driver_sql("SELECT CONNECTION_ID()").scalar_one()
            with engine.sa.connect() as other:
                other.exec_driver_sql(f"KILL {own}")
            connection.exec_driver_sql("SELECT 1")

    with pytest.raises(TransientError) as raised:
        end_itself()
    assert raised.value.side_down
    assert store.apply(change(1))


def test_a_server_restarted_between_two_calls(mariadb_server: Any, mariadb_url: str) -> None:
    """Pooled connections died with it: the first call may fail as transient, and then all is as it was."""
    engine = open_engine(Secret(mariadb_url), timeout_s=5)
    with opened(engine) as store:
        store.apply(change(2))
        (claim,) = store.claim(REQUEST)
        mariadb_server.stop(signal.SIGKILL)
        with pytest.raises(TransientError) as raised:
            store.claim(REQUEST)
        assert raised.value.side_down
        with pytest.raises(TransientError):
            store.now_us()
        mariadb_server.start()
        store.renew(claim, 60)
        assert [claim.window.start_us for claim in store.claim(REQUEST)] == [10]


UPDATE = "UPDATE t SET n = n + 1 WHERE id = {}"


@pytest.fixture
def two_rows(engine: Any) -> Iterator[None]:
    """A table of two rows."""
    with engine.writing() as connection:
        connection.exec_driver_sql("CREATE TABLE t (id int PRIMARY KEY, n int)")
        connection.exec_driver_sql("INSERT INTO t VALUES (1, 0), (2, 0)")
    yield
    engine.dispose()


@pytest.mark.usefixtures("two_rows")
def test_a_lock_that_is_not_freed_undoes_the_whole_transaction(mariadb_url: str, engine: Any) -> None:
    """The server takes back only the statement that waited; what came before it goes too."""
    impatient = open_engine(Secret(mariadb_url), timeout_s=1)

    def wait_for_it() -> None:
        with impatient.writing() as connection:
            connection.exec_driver_sql(UPDATE.format(1))
            connection.exec_driver_sql(UPDATE.format(2))

    with engine.writing() as holder:
        holder.exec_driver_sql(UPDATE.format(2))
        with pytest.raises(TransientError, match="Lock wait timeout") as raised:
            wait_for_it()
    assert not raised.value.side_down
    with impatient.reading() as connection:
        assert connection.exec_driver_sql("SELECT n FROM t ORDER BY id").scalars().all() == [0, 1]
    impatient.dispose()


@pytest.mark.usefixtures("two_rows")
def test_a_deadlock_is_transient(engine: Any) -> None:
    """Two transactions that wait for each other's row: the one that the server ends may be run again."""
    outcomes: list[Exception | None] = []
    both = threading.Barrier(2)

    def work(first: int, second: int) -> None:
        try:
            with engine.writing() as connection:
                connection.exec_driver_sql(UPDATE.format(first))
                both.wait(10)
                connection.exec_driver_sql(UPDATE.format(second))
            outcomes.append(None)
        except Exception as error:  # noqa: BLE001 - the thread's failure is looked at below
            outcomes.append(error)

    threads = [threading.Thread(target=work, args=order) for order in ((1, 2), (2, 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    (error,) = [each for each in outcomes if each is not None]
    assert len(outcomes) == 2
    assert isinstance(error, TransientError)
    assert "Deadlock" in str(error)
    assert not error.side_down
    with engine.reading() as connection:
        assert connection.exec_driver_sql("SELECT n FROM t").scalars().all() == [1, 1]


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO t VALUES ('4111-1111'), ('4111-1111')",
        "INSERT INTO u VALUES ('4111-1111')",
        "INSERT INTO d VALUES ('4111-1111')",
        "INSERT INTO c VALUES ('4111-1111')",
        "NONSENSE '4111-1111' x",
    ],
)
def test_errors_show_no_values(engine: Any, statement: str) -> None:
    """The server quotes values in its messages: they are left out."""
    with engine.writing() as connection:
        for table in ("t (a varchar(20) UNIQUE)", "u (a int)", "d (a datetime)", "c (a varchar(20) CHECK (a = ''))"):
            connection.exec_driver_sql(f"CREATE TABLE {table}")
    with pytest.raises(PermanentError) as raised, engine.writing() as connection:
        connection.exec_driver_sql(statement)
    engine.dispose()
    assert "4111" not in str(raised.value)
    assert raised.value.__suppress_context__


def test_a_transaction_that_stands_still_is_cut_off(mariadb_url: str, engine: Any) -> None:
    """A worker that was stopped inside one keeps nobody waiting: the server ends it and frees its rows."""
    short = open_engine(Secret(mariadb_url), timeout_s=1)
    with opened(short) as store:
        store.apply(change(1))
        with short.sa.connect() as stopped:
            stopped.exec_driver_sql("SELECT id FROM pipeline_core_records FOR UPDATE").all()
            with engine.writing() as connection:  # waits up to five seconds
                connection.exec_driver_sql("UPDATE pipeline_core_records SET reason = 'freed'")
            stopped.invalidate()
        assert [record.reason for record in store.records("p")] == ["freed"]
    engine.dispose()


def test_only_pymysql_is_taken() -> None:
    """The plain forms of the URL mean it; another driver is refused before anything is connected."""
    for plain in ("mysql", "mariadb", "mysql+pymysql", "mariadb+pymysql"):
        assert open_engine(Secret(f"{plain}://h/d"), timeout_s=5).url.drivername == "mariadb+pymysql"
    with pytest.raises(ConfigError, match=r"expected mariadb\+pymysql") as raised:
        open_engine(Secret("mysql+mysqldb://me:hunter2@h/d"), timeout_s=5)
    assert "hunter2" not in str(raised.value)


def test_the_provider_opens_it(mariadb_url: str) -> None:
    """By its URL alone."""
    with SqlStoreSettings(Secret(mariadb_url)).open(Context("p")) as store:
        assert store.apply(change(1))
