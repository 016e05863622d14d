"""The SQL record store on PostgreSQL: what only a server has."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
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


def change(count: int, pipeline: str = "p") -> Change:
    return Change(pipeline, add=[Addition(number * 10, number * 10 + 10, 0) for number in range(count)])


def open_once(url: str, timeout_s: float = 5) -> None:
    with opened(open_engine(Secret(url), timeout_s=timeout_s)) as store:
        store.apply(change(1))


@pytest.fixture
def engine(postgres_url: str) -> Any:
    return open_engine(Secret(postgres_url), timeout_s=5)


@pytest.fixture
def store(engine: Any) -> Iterator[SqlRecordStore]:
    with opened(engine) as store:
        yield store


def test_the_clock_is_the_servers_and_runs_inside_a_transaction(store: SqlRecordStore, engine: Any) -> None:
    """In microseconds; two readings in one transaction differ, so that a wait for a lock is not slept through."""
    with engine.writing() as connection:
        before_us = engine.now_us(connection)
        connection.exec_driver_sql("SELECT pg_sleep(0.001)")
        assert engine.now_us(connection) >= before_us + 1000
        (server,) = connection.exec_driver_sql("SELECT extract(epoch FROM now()) * 1000000").one()
    assert abs(store.now_us() - server) < 60_000_000


def test_the_database_refuses_live_windows_that_overlap(store: SqlRecordStore, engine: Any) -> None:
    """Written past the store: an overlap of one microsecond is refused; another pipeline and a dead record are not."""
    store.apply(change(2))
    store.apply(change(2, "q"))
    moved = "UPDATE pipeline_core_records SET end_us = 11, live = {live} WHERE pipeline = 'p' AND start_us = 0"
    with pytest.raises(PermanentError, match="ex_pipeline_core_records_live"), engine.writing() as connection:
        connection.exec_driver_sql(moved.format(live="1"))
    with engine.writing() as connection:
        connection.exec_driver_sql(moved.format(live="NULL"))


def test_a_worker_passes_over_what_another_one_is_claiming(store: SqlRecordStore, engine: Any) -> None:
    """Rows locked by an open transaction are skipped, not waited for; a failed claim leaves them as they were."""
    store.apply(change(3))
    locked = "SELECT id FROM pipeline_core_records WHERE start_us < 20 FOR UPDATE"
    with engine.sa.connect() as other:
        assert len(other.exec_driver_sql(locked).all()) == 2
        (claim,) = store.claim(REQUEST)
        assert claim.window.start_us == 20
        assert store.claim(REQUEST) == []
    assert [claim.window.start_us for claim in store.claim(REQUEST)] == [0]


def test_no_claim_waits_for_another_ones_commit(store: SqlRecordStore, engine: Any) -> None:
    """While a transaction that took fences stays open, another worker claims, under a higher one."""
    store.apply(change(1))
    with engine.writing() as connection:
        far_us = engine.now_us(connection) + 10**12
        assert engine.take_fences(connection, far_us, 3) == far_us
        (claim,) = store.claim(REQUEST)
    assert claim.fence == far_us + 3


def test_fences_go_on_where_an_older_store_stopped(store: SqlRecordStore, engine: Any) -> None:
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
    with opened(open_engine(Secret(engine.url.render_as_string(hide_password=False)), timeout_s=5)) as upgraded:
        upgraded.apply(change(1))
        (claim,) = upgraded.claim(REQUEST)
        assert claim.fence == last + 1
        with pytest.raises(SideError, match="pipeline_core_fence"), engine.writing() as connection:
            connection.exec_driver_sql("SELECT last FROM pipeline_core_fence")


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


def test_an_expired_lease_in_other_hands_stops_nobody(store: SqlRecordStore, engine: Any) -> None:
    """A lapsed lease or backoff that another transaction is looking at is left to that one."""
    store.apply(change(2))
    (claim,) = store.claim(REQUEST)
    store.settle(claim, Verdict(Status.PENDING, "later", wait_s=0.001))
    time.sleep(0.002)
    with engine.sa.connect() as other:
        other.exec_driver_sql("SELECT id FROM pipeline_core_records WHERE start_us = 0 FOR UPDATE")
        assert [claim.window.start_us for claim in store.claim(REQUEST)] == [10]
    assert [claim.window.start_us for claim in store.claim(REQUEST)] == [0]


def test_a_planner_waits_for_the_other_and_sees_its_work(store: SqlRecordStore, engine: Any) -> None:
    """While one transaction plans the pipeline, another cannot; other pipelines can."""
    impatient = open_engine(Secret(engine.url.render_as_string(hide_password=False)), timeout_s=0.1)
    with opened(impatient) as other, engine.writing() as connection:
        engine.lock_plan(connection, "p")
        with pytest.raises(TransientError, match="lock timeout"):
            other.apply(change(1))
        other.apply(change(1, "q"))
    assert store.apply(change(1))


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


def test_an_up_to_date_store_needs_no_right_to_make_tables(
    store: SqlRecordStore, engine: Any, postgres_server: Any
) -> None:
    """A worker may open it, claim and settle with rights on the rows alone."""
    store.apply(change(1))
    with engine.writing() as connection:
        connection.exec_driver_sql("GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO guest")
        connection.exec_driver_sql("GRANT USAGE, UPDATE ON ALL SEQUENCES IN SCHEMA public TO guest")
    url = sa.make_url(postgres_server.url(engine.url.database, "guest:hunter2"))
    with opened(open_engine(Secret(url.render_as_string(hide_password=False)), timeout_s=5)) as worker:
        (claim,) = worker.claim(REQUEST)
        worker.settle(claim, Verdict(Status.QUARANTINED, "looked at"))


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("{guest}:nonsense-42@/{database}", "password authentication failed.*check user and password"),
        ("{guest}@/{database}", "no password supplied; check user and password"),
        ("nobody_knows@/{database}", 'role "nobody_knows" does not exist'),
        ("owner@/no_such_database", 'database "no_such_database" does not exist'),
        (
            "{guest}:hunter2@/{database}",
            "permission denied for schema public.*grant this user the right.*are not there.*store upgrade",
        ),
    ],
)
def test_what_only_a_person_can_mend(postgres_server: Any, address: str, message: str) -> None:
    """A wrong or missing password, role, database or right: a fault of the side, told without the password."""
    database = postgres_server.new_database()
    url = postgres_server.url("x", "x").replace("x@/x", address.format(guest="guest", database=database), 1)
    with pytest.raises(SideError, match=message) as raised:
        open_once(url)
    assert "nonsense-42" not in str(raised.value)
    assert "hunter2" not in str(raised.value)
    assert raised.value.__suppress_context__


def test_a_server_that_is_not_there_stops_the_side(tmp_path: Any) -> None:
    """A refused connection heals by itself, for every window alike; its password is not told."""
    for place in (f"/x?host={tmp_path}", "127.0.0.1:1/x"):
        host, _, rest = place.partition("/")
        with pytest.raises(TransientError, match="check the server and the way to it") as raised:
            open_once(f"postgresql://me:hunter2@{host}/{rest}")
        assert raised.value.side_down
        assert "hunter2" not in str(raised.value)


def test_a_connection_lost_on_the_way_stops_the_side(store: SqlRecordStore, engine: Any) -> None:
    """The server ends the session in the middle of a transaction: transient, and the next call finds a new one."""

    def end_itself() -> None:
        with engine.writing() as connection:
            own = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
            with engine.sa.connect() as other:
                other.exec_driver_sql(f"SELECT pg_terminate_backend({own})")
            connection.exec_driver_sql("SELECT 1")

    with pytest.raises(TransientError) as raised:
        end_itself()
    assert raised.value.side_down
    assert store.apply(change(1))


def test_a_server_restarted_between_two_calls(tmp_path: Any, postgres_server: Any) -> None:
    """Pooled connections died with it: the first call may fail as transient, and then all is as it was."""
    engine = open_engine(Secret(postgres_server.url(postgres_server.new_database())), timeout_s=5)
    with opened(engine) as store:
        store.apply(change(2))
        (claim,) = store.claim(REQUEST)
        postgres_server.stop(signal.SIGQUIT)
        with pytest.raises(TransientError) as raised:
            store.claim(REQUEST)
        assert raised.value.side_down
        with pytest.raises(TransientError):
            store.now_us()
        postgres_server.start()
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
    with engine.sa.connect() as one, engine.sa.connect() as two:
        one.exec_driver_sql("SET deadlock_timeout = '10ms'")
        two.exec_driver_sql("SET deadlock_timeout = '1h'")
        one.exec_driver_sql(UPDATE.format(1))
        two.exec_driver_sql(UPDATE.format(2))
        pid = two.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        waiting = threading.Thread(target=two.exec_driver_sql, args=(UPDATE.format(1),))
        waiting.start()
        with engine.sa.connect().execution_options(isolation_level="AUTOCOMMIT") as look:
            waits = f"SELECT coalesce(wait_event_type, '') = 'Lock' FROM pg_stat_activity WHERE pid = {pid}"
            while not look.exec_driver_sql(waits).scalar_one():
                time.sleep(0.005)
        with pytest.raises(TransientError, match="deadlock") as raised, engine.translated():
            one.exec_driver_sql(UPDATE.format(2))
        one.rollback()
        waiting.join(10)
    assert not raised.value.side_down


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO t VALUES ('4111-1111'), ('4111-1111')",
        "INSERT INTO u VALUES ('4111-1111'::text::int)",
        "INSERT INTO c VALUES ('4111-1111')",
    ],
)
def test_errors_show_no_values(engine: Any, statement: str) -> None:
    """The server quotes the row in the detail of a message, or at its end: both are left out."""
    with engine.writing() as connection:
        for table in ("t (a text UNIQUE)", "u (a int)", "c (a text CHECK (a = ''))"):
            connection.exec_driver_sql(f"CREATE TABLE {table}")
    with pytest.raises(PermanentError) as raised, engine.writing() as connection:
        connection.exec_driver_sql(statement)
    engine.dispose()
    assert "4111" not in str(raised.value)
    assert raised.value.__suppress_context__


def test_only_psycopg_3_is_taken() -> None:
    """The plain form of the URL means it; another driver is refused before anything is connected."""
    assert open_engine(Secret("postgresql://h/d"), timeout_s=5).url.drivername == "postgresql+psycopg"
    with pytest.raises(ConfigError, match=r"expected postgresql\+psycopg") as raised:
        open_engine(Secret("postgresql+psycopg2://me:hunter2@h/d"), timeout_s=5)
    assert "hunter2" not in str(raised.value)


def test_the_provider_opens_it(postgres_url: str) -> None:
    """By its URL alone."""
    with SqlStoreSettings(Secret(postgres_url)).open(Context("p")) as store:
        assert store.apply(change(1))
