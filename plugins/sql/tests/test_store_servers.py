"""The SQL record store on each server: what only a server has."""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
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

Database = Any  # of the conftest

on_postgres = pytest.mark.parametrize("database", ["postgresql"], indirect=True)
on_mariadb = pytest.mark.parametrize("database", ["mariadb"], indirect=True)


def change(count: int, pipeline: str = "p") -> Change:
    return Change(pipeline, add=[Addition(number * 10, number * 10 + 10, 0) for number in range(count)])


def open_once(url: str, timeout_s: float = 5) -> None:
    with opened(open_engine(Secret(url), timeout_s=timeout_s)) as store:
        store.apply(change(1))


@pytest.fixture(params=["postgresql", "mariadb"])
def database(request: pytest.FixtureRequest, database_on: Callable[[str], Any]) -> Iterator[Any]:
    """A new database, on each server in turn."""
    with closing(database_on(request.param)) as made:
        yield made


@pytest.fixture
def engine(database: Database) -> Iterator[Any]:
    made = open_engine(Secret(database.url), timeout_s=5)
    yield made
    made.dispose()


@pytest.fixture
def store(engine: Any) -> Iterator[SqlRecordStore]:
    with opened(engine) as store:
        yield store


def test_the_clock_is_the_servers_in_utc(store: SqlRecordStore, engine: Any, database: Database) -> None:
    """In microseconds, whatever zone the server is in; it runs on inside a transaction, so no wait is slept through."""
    with database.in_another_zone():
        engine.dispose()
        with engine.writing() as connection:
            before_us = engine.now_us(connection)
            connection.exec_driver_sql(database.sleep.format(0.001))
            assert engine.now_us(connection) >= before_us + 1000
        engine.dispose()
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


def test_a_planner_waits_for_the_other_and_sees_its_work(
    store: SqlRecordStore, engine: Any, database: Database
) -> None:
    """While one transaction plans the pipeline, another cannot; other pipelines can, and so can the next."""
    impatient = open_engine(Secret(database.url), timeout_s=0.1)
    refused = r"lock timeout|lock 'plan of p' .* not free after 0\.1 s"
    with opened(impatient) as other:
        with engine.writing() as connection:
            engine.lock_plan(connection, "p")
            with pytest.raises(TransientError, match=refused):
                other.apply(change(1))
            other.apply(change(1, "q"))
        assert other.apply(change(1))


@on_mariadb
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


@on_postgres
def test_the_database_refuses_live_windows_that_overlap(store: SqlRecordStore, engine: Any) -> None:
    """Written past the store: an overlap of one microsecond is refused; another pipeline and a dead record are not."""
    store.apply(change(2))
    store.apply(change(2, "q"))
    moved = "UPDATE pipeline_core_records SET end_us = 11, live = {live} WHERE pipeline = 'p' AND start_us = 0"
    with pytest.raises(PermanentError, match="ex_pipeline_core_records_live"), engine.writing() as connection:
        connection.exec_driver_sql(moved.format(live="1"))
    with engine.writing() as connection:
        connection.exec_driver_sql(moved.format(live="NULL"))


@on_postgres
def test_no_claim_waits_for_another_ones_commit(store: SqlRecordStore, engine: Any) -> None:
    """While a transaction that took fences stays open, another worker claims, under a higher one."""
    store.apply(change(1))
    with engine.writing() as connection:
        far_us = engine.now_us(connection) + 10**12
        assert engine.take_fences(connection, far_us, 3) == far_us
        (claim,) = store.claim(REQUEST)
    assert claim.fence == far_us + 3


@on_postgres
def test_a_claim_in_one_statement_writes_what_the_steps_write(store: SqlRecordStore, engine: Any) -> None:
    """A batch claimed at once, and one claimed step by step for a dead owner's sake: records and events are alike."""
    store.apply(change(4))
    at_once = store.claim(ClaimRequest("p", 10**15, 60, limit=2, owner="host:1"))
    steps = store.claim(ClaimRequest("p", 10**15, 60, limit=2, owner="host:1", dead_owners=frozenset({"gone"})))
    told = [event for event in store.events("p") if event.step == "claimed"]
    for claims, events in ((at_once, told[:2]), (steps, told[2:])):
        assert [claim.record for claim in claims] == [store.records("p", within=claim.window)[0] for claim in claims]
        assert claims[1].fence == claims[0].fence + 1
        for claim, found in zip(claims, events, strict=True):
            assert (found.window, found.at_us) == (claim.window, claim.record.updated_us)
            assert claim.record.lease_until_us == found.at_us + 60_000_000
            assert dict(found.fields) == {
                "status": "running",
                "was": "pending",
                "reason": "claimed",
                "fence": claim.fence,
                "claim": claim.id,
                "owner": "host:1",
            }
    assert len({claim.id for claim in (*at_once, *steps)}) == 4


def plans_of_claims(engine: Any, store: SqlRecordStore) -> list[Any]:
    """How the server finds the oldest ready record, asked in the store's own words."""
    plans: list[Any] = []

    class Explaining(psycopg.Cursor[Any]):
        def execute(self, query: Any, params: Any = None, **more: Any) -> Any:
            if "LIMIT" in query:
                super().execute(f"EXPLAIN (FORMAT JSON) {query}", params)
                plans.append(self.fetchone())
            return super().execute(query, params, **more)

    with engine.sa.connect() as connection:
        connection.connection.driver_connection.cursor_factory = Explaining
    assert store.claim(REQUEST)
    return plans


def nodes(plan: Any) -> Iterator[Any]:
    """Every step of a plan."""
    yield plan
    for each in plan.get("Plans", ()):
        yield from nodes(each)


@on_postgres
def test_a_claim_walks_the_partial_index(store: SqlRecordStore, engine: Any) -> None:
    """Behind thousands of done records: one range of the index of claimable records, in order, without a sort."""
    store.apply(change(5_000))
    with engine.writing() as connection:
        connection.exec_driver_sql("UPDATE pipeline_core_records SET status = 'done' WHERE start_us < 49000")
        connection.exec_driver_sql("ANALYZE pipeline_core_records")
    (((found,),),) = plans_of_claims(engine, store)
    (ready,) = [each for each in nodes(found["Plan"]) if each.get("Subplan Name") == "CTE ready"]
    plan = json.dumps(ready)
    assert '"Index Name": "ix_pipeline_core_records_claim"' in plan
    assert "Sort" not in plan
    assert "Seq Scan" not in plan


@on_mariadb
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


# --- the tables -------------------------------------------------------------------------------------------------------


@on_postgres
def test_fences_go_on_where_an_older_store_stopped(store: SqlRecordStore, engine: Any, database: Database) -> None:
    """An upgrade hands the last fence over, and leaves nothing that an older program could count on with."""
    last = 4 * 10**15
    with engine.writing() as connection:
        for statement in (
            "DROP FUNCTION pipeline_core_take_fences",
            "DROP SEQUENCE pipeline_core_fences",
            "CREATE TABLE pipeline_core_fence (id smallint PRIMARY KEY, last bigint NOT NULL)",
            f"INSERT INTO pipeline_core_fence VALUES (1, {last})",
            "UPDATE pipeline_core_version SET version_num = '0002'",
        ):
            connection.exec_driver_sql(statement)
    with opened(open_engine(Secret(database.url), timeout_s=5)) as upgraded:
        upgraded.apply(change(1))
        (claim,) = upgraded.claim(REQUEST)
        assert claim.fence == last + 1
        with pytest.raises(SideError, match="pipeline_core_fence"), engine.writing() as connection:
            connection.exec_driver_sql("SELECT last FROM pipeline_core_fence")


@on_mariadb
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


@on_mariadb
def test_an_update_that_was_cut_off_is_gone_on_with(engine: Any) -> None:
    """Of two columns that an update adds, only one was: the next process adds the other."""
    with opened(engine), engine.writing() as connection:
        connection.exec_driver_sql("ALTER TABLE pipeline_core_records DROP COLUMN asked")
        connection.exec_driver_sql("UPDATE pipeline_core_version SET version_num = '0001'")
    with opened(engine) as store:
        store.apply(change(1))
        assert store.claim(REQUEST)


@on_mariadb
def test_the_tables_are_transactional_whatever_the_servers_default(database: Database) -> None:
    """A server whose new tables would be MyISAM, and whose text would be Latin-1, keeps promises and text."""
    database.run("SET GLOBAL default_storage_engine = MyISAM")
    try:
        open_once(database.url)
    finally:
        database.run("SET GLOBAL default_storage_engine = InnoDB")
    engines = "SELECT DISTINCT engine FROM information_schema.tables WHERE table_schema = database()"
    assert database.run(engines) == [("InnoDB",)]


def test_an_up_to_date_store_needs_no_right_to_make_tables(store: SqlRecordStore, database: Database) -> None:
    """A worker may open it, claim and settle with rights on the rows alone."""
    store.apply(change(1))
    database.let_guest("SELECT, INSERT, UPDATE")
    with opened(open_engine(Secret(database.server.url(database.name, "guest:hunter2")), timeout_s=5)) as worker:
        (claim,) = worker.claim(REQUEST)
        worker.settle(claim, Verdict(Status.QUARANTINED, "looked at"))


def test_who_may_not_make_the_tables_is_told_what_makes_them(database: Database) -> None:
    """The command that another user may run once."""
    database.let_guest("SELECT, INSERT, UPDATE")
    message = r"denied.*grant this user the right.*are not there.*`pipeline-core store upgrade`"
    with pytest.raises(SideError, match=message) as raised:
        open_once(database.server.url(database.name, "guest:hunter2"))
    assert "hunter2" not in str(raised.value)


@on_postgres
def test_a_database_of_another_encoding_holds_no_store(database: Database) -> None:
    """It could not write every reason, and a claim whose end cannot be told would count as a crash."""
    for encoding in ("LATIN1", "SQL_ASCII"):
        name = f"{database.name}_{encoding.lower()}"
        database.run(f"CREATE DATABASE {name} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
        with pytest.raises(SideError, match=f"found a database in {encoding}, .* expected UTF8; make one"):
            open_once(database.server.url(name))


@on_postgres
def test_a_store_holds_any_text(database: Database) -> None:
    """Whatever encoding the URL names for its client."""
    with opened(open_engine(Secret(f"{database.url}&client_encoding=latin1"), timeout_s=5)) as store:
        store.apply(change(1))
        (claim,) = store.claim(REQUEST)
        store.settle(claim, Verdict(Status.QUARANTINED, "column '値'"))
        assert [record.reason for record in store.records("p")] == ["column '値'"]


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("database", "user", "name", "message"),
    [
        ("postgresql", "guest:nonsense-42", "{name}", "password authentication failed.*check user and password"),
        ("postgresql", "guest", "{name}", "no password supplied; check user and password"),
        ("postgresql", "nobody_knows", "{name}", 'role "nobody_knows" does not exist'),
        ("postgresql", "owner", "no_such_database", 'database "no_such_database" does not exist'),
        ("mariadb", "guest:nonsense-42", "{name}", "Access denied.*check user and password"),
        ("mariadb", "guest", "{name}", "Access denied.*check user and password"),
        ("mariadb", "nobody_knows", "{name}", "Access denied.*check user and password"),
        ("mariadb", "owner:geheim-77", "no_such_database", "Unknown database 'no_such_database'; create the database"),
        ("mariadb", "guest:hunter2", "{name}", "Access denied.*grant this user the right"),
    ],
    indirect=["database"],
)
def test_what_only_a_person_can_mend(database: Database, user: str, name: str, message: str) -> None:
    """A wrong or missing password, user, database or right: a fault of the side, told without the password."""
    with pytest.raises(SideError, match=message) as raised:
        open_once(database.server.url(name.format(name=database.name), user))
    for password in ("nonsense-42", "hunter2", "geheim-77"):
        assert password not in str(raised.value)
    assert raised.value.__suppress_context__


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hunter2@/x?host={folder}",
        "postgresql://me:hunter2@127.0.0.1:1/x",
        "mysql://me:hunter2@127.0.0.1:1/x",
    ],
)
def test_a_server_that_is_not_there_stops_the_side(tmp_path: Path, url: str) -> None:
    """A refused connection heals by itself, for every window alike; its password is not told."""
    with pytest.raises(TransientError, match="check the server and the way to it") as raised:
        open_once(url.format(folder=tmp_path))
    assert raised.value.side_down
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    ("database", "option"),
    [
        ("postgresql", "&sslmod=require"),
        ("postgresql", "&sslmode=requir"),
        ("postgresql", "&connect_timeout=ten"),
        ("postgresql", "&options=-c%20foo%3Dbar"),
        ("mariadb", "?charst=utf8"),
        ("mariadb", "?ssl_ca=/there/is/no/such/file"),
    ],
    indirect=["database"],
)
def test_an_option_that_nobody_knows(database: Database, option: str) -> None:
    """In the URL: a fault of the side, whatever kind of exception the driver makes of it."""
    kind = sa.make_url(database.url).get_backend_name()
    with pytest.raises(SideError, match=f"^{kind} .*; correct the url") as raised:
        open_once(database.url + option)
    assert raised.value.__suppress_context__


class Refusing:
    """Stands for a PostgreSQL server that refuses whoever connects, with a code and in its own language."""

    def __init__(self, code: str, text: str) -> None:
        fields = (b"SFATAL", b"VFATAL", b"C" + code.encode(), b"M" + text.encode(), b"")
        body = b"".join(field + b"\0" for field in fields)
        self._answer = b"E" + struct.pack("!i", len(body) + 4) + body
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._refuse)
        at = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.url = f"postgresql://loader:hunter2@{at}/flights?sslmode=disable&gssencmode=disable"

    def __enter__(self) -> Refusing:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        self._listener.close()

    def _refuse(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            (length,) = struct.unpack("!i", connection.recv(4, socket.MSG_WAITALL))
            connection.recv(length - 4, socket.MSG_WAITALL)
            connection.sendall(self._answer)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("28P01", "Passwort-Authentifizierung für Benutzer »loader« fehlgeschlagen"),
        ("28P01", "authentification par mot de passe échouée pour l'utilisateur «\u00a0loader\u00a0»"),
        ("28000", 'role "loader" is not permitted to log in'),
        ("28000", "Rolle »loader« existiert nicht"),
        ("3D000", "Datenbank »flights« existiert nicht"),
        ("42501", "Zugriff auf Datenbank »flights« verweigert"),
        ("55000", 'database "flights" is not currently accepting connections'),
    ],
)
def test_a_refusal_in_any_language_is_for_a_person(code: str, text: str) -> None:
    """Of a user or a database: none of these heals by itself."""
    told = " ".join(text.split())
    with Refusing(code, text) as server, pytest.raises(SideError, match=f"{told}; check user and password"):
        open_once(server.url)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("57P03", "the database system is starting up"),
        ("57P03", "das Datenbanksystem startet"),
        ("57P03", "das Datenbanksystem fährt herunter"),
        ("53300", "sorry, too many clients already"),
        ("53300", "tut mir leid, schon zu viele Verbindungen"),
        ("53300", 'too many connections for role "loader"'),
        ("53300", 'too many connections for database "flights"'),
    ],
)
def test_a_refusal_in_any_language_that_heals(code: str, text: str) -> None:
    """A server that starts, stops or is full is away for every window alike, and is waited for."""
    with Refusing(code, text) as server, pytest.raises(TransientError, match=text) as raised:
        open_once(server.url)
    assert raised.value.side_down


@on_mariadb
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


def test_a_connection_lost_on_the_way_stops_the_side(store: SqlRecordStore, engine: Any, database: Database) -> None:
    """The server ends the session in the middle of a transaction: transient, and the next call finds a new one."""

    def end_itself() -> None:
        with engine.writing() as connection:
            engine.lock_plan(connection, "p")
            database.end(connection.exec_driver_sql(database.own_session).scalar_one())
            connection.exec_driver_sql("SELECT 1")

    with pytest.raises(TransientError) as raised:
        end_itself()
    assert raised.value.side_down
    assert store.apply(change(1))


def test_a_server_restarted_between_two_calls(store: SqlRecordStore, database: Database) -> None:
    """Pooled connections died with it: the first call may fail as transient, and then all is as it was."""
    store.apply(change(2))
    (claim,) = store.claim(REQUEST)
    database.server.stop(database.at_once)
    try:
        with pytest.raises(TransientError) as raised:
            store.claim(REQUEST)
        assert raised.value.side_down
        with pytest.raises(TransientError):
            store.now_us()
    finally:
        database.server.start()
    store.renew(claim, 60)
    assert [claim.window.start_us for claim in store.claim(REQUEST)] == [10]


UPDATE = "UPDATE t SET n = n + 1 WHERE id = {}"


@pytest.fixture
def two_rows(database: Database) -> None:
    """A table of two rows."""
    database.run("CREATE TABLE t (id int PRIMARY KEY, n int)", "INSERT INTO t VALUES (1, 0), (2, 0)")


@pytest.mark.usefixtures("two_rows")
def test_a_lock_that_is_not_freed_undoes_the_whole_transaction(database: Database, engine: Any) -> None:
    """MariaDB takes back only the statement that waited: what came before it goes too."""
    impatient = open_engine(Secret(database.url), timeout_s=1)

    def wait_for_it() -> None:
        with impatient.writing() as connection:
            connection.exec_driver_sql(UPDATE.format(1))
            connection.exec_driver_sql(UPDATE.format(2))

    with engine.writing() as holder:
        holder.exec_driver_sql(UPDATE.format(2))
        with pytest.raises(TransientError, match=r"Lock wait timeout|lock timeout") as raised:
            wait_for_it()
    assert not raised.value.side_down
    assert database.run("SELECT n FROM t ORDER BY id") == [(0,), (1,)]
    impatient.dispose()


@on_postgres
@pytest.mark.usefixtures("two_rows")
def test_a_serialisation_failure_is_transient(engine: Any) -> None:
    """A row changed behind a repeatable read: the transaction may be run again, and no side is down."""
    repeatable = engine.sa.execution_options(isolation_level="REPEATABLE READ")
    with repeatable.connect() as one, engine.translated():
        one.exec_driver_sql("SELECT * FROM t").all()
        with engine.writing() as two:
            two.exec_driver_sql(UPDATE.format(1))
        with pytest.raises(TransientError, match="could not serialize") as raised, engine.translated():
            one.exec_driver_sql(UPDATE.format(1))
    assert not raised.value.side_down


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
    assert "deadlock" in str(error).lower()
    assert not error.side_down
    with engine.reading() as connection:
        assert connection.exec_driver_sql("SELECT n FROM t").scalars().all() == [1, 1]


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO t VALUES ('4111-1111'), ('4111-1111')",
        "INSERT INTO u VALUES ('4111-1111')",
        "INSERT INTO u VALUES (CAST(concat('4111-1111', '') AS int))",
        "INSERT INTO d VALUES ('4111-1111')",
        "INSERT INTO c VALUES ('4111-1111')",
        "NONSENSE '4111-1111' x",
    ],
)
def test_errors_show_no_values(database: Database, engine: Any, statement: str) -> None:
    """The server quotes the row in the detail of a message, or values within it or at its end: all are left out."""
    tables = ("t (a varchar(20) UNIQUE)", "u (a int)", "d (a timestamp)", "c (a varchar(20) CHECK (a = ''))")
    database.run(*(f"CREATE TABLE {table}" for table in tables))
    with pytest.raises(PermanentError) as raised, engine.writing() as connection:
        connection.exec_driver_sql(statement)
    assert "4111" not in str(raised.value)
    assert raised.value.__suppress_context__


def test_a_transaction_that_stands_still_is_cut_off(database: Database, engine: Any) -> None:
    """A worker that was stopped inside one keeps nobody waiting: the server ends it and frees its rows."""
    short = open_engine(Secret(database.url), timeout_s=1)
    with opened(short) as store:
        store.apply(change(1))
        with short.sa.connect() as stopped:
            stopped.exec_driver_sql("SELECT id FROM pipeline_core_records FOR UPDATE").all()
            with engine.writing() as connection:  # waits up to five seconds
                connection.exec_driver_sql("UPDATE pipeline_core_records SET reason = 'freed'")
            stopped.invalidate()
        assert [record.reason for record in store.records("p")] == ["freed"]


@pytest.mark.parametrize(
    ("plain", "taken", "other"),
    [
        (["postgresql", "postgresql+psycopg"], "postgresql+psycopg", "postgresql+psycopg2"),
        (["mysql", "mariadb", "mysql+pymysql", "mariadb+pymysql"], "mariadb+pymysql", "mysql+mysqldb"),
    ],
)
def test_only_one_driver_is_taken(plain: list[str], taken: str, other: str) -> None:
    """The plain forms of the URL mean it; another driver is refused before anything is connected."""
    for form in plain:
        assert open_engine(Secret(f"{form}://h/d"), timeout_s=5).url.drivername == taken
    with pytest.raises(ConfigError, match=re.escape(f"expected {taken}")) as raised:
        open_engine(Secret(f"{other}://me:hunter2@h/d"), timeout_s=5)
    assert "hunter2" not in str(raised.value)


def test_the_provider_opens_it(database: Database) -> None:
    """By its URL alone."""
    with SqlStoreSettings(Secret(database.url)).open(Context("p")) as store:
        assert store.apply(change(1))
