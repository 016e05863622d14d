"""Claims a second, side by side: bare SKIP LOCKED, this store, pgqueuer and procrastinate; then SQLite.

Every worker is a process with one connection that claims one record after the other and does nothing else; the
asynchronous libraries run one event loop a worker. The competitors take turns, round by round, on one server whose
every commit is on the disk (fsync and synchronous_commit are on). Each has a database of its own, which before each
turn holds as many waiting records as the heading says, and is vacuumed. What is printed is the median of the rounds:
claims a second of all workers together.

`bare` is the least that a claim can be: one UPDATE of a table with nothing but the queue and its partial index.
`bare, kept` is the same with an event row beside it in the same statement: what the store promises to keep.
On SQLite these are the same two by the driver alone, in WAL mode with synchronous = NORMAL, as the store has it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import multiprocessing
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import timedelta
from typing import Any, NamedTuple
from uuid import uuid4

import asyncpg
import procrastinate
import psycopg
from pgqueuer.db import AsyncpgDriver
from pgqueuer.queries import EntrypointExecutionParameter, Queries
from postgres import new_database, postgres, with_driver

from pipeline_core import Addition, Change, ClaimRequest, Secret
from pipeline_sql.engines import open_engine
from pipeline_sql.store import opened

WARM_UP = 12  # claims a worker, so that its driver has prepared the statement
WORKERS = (1, 4, 16)
BATCH = 10
PATIENCE_S = 120
MOST_A_SECOND = 60_000  # claims, on SQLite: so many more records are made beforehand

# Each worker is forked from a process that has imported all this and runs no thread.
processes = multiprocessing.get_context("forkserver")


class Turn(NamedTuple):
    """What a worker is asked: to claim `limit` records at a time for so many seconds, once `start` returns."""

    address: str
    seconds: float
    limit: int
    start: Callable[[], Any]


class Work(NamedTuple):
    """What a worker did: when it began and ended (one clock for all), its claims and the longest of them."""

    begun: float
    ended: float
    claims: int
    longest: float


def timed(claim: Callable[[], int], turn: Turn) -> Work:
    """Claims until the time is up, or nothing waits any more."""
    for _ in range(WARM_UP):
        claim()
    turn.start()
    begun = last = time.perf_counter()
    claims, longest = 0, 0.0
    while last < begun + turn.seconds and claim() == turn.limit:
        last, before = time.perf_counter(), last
        claims, longest = claims + 1, max(longest, last - before)
    return Work(begun, last, claims, longest)


async def timed_async(claim: Callable[[], Awaitable[int]], turn: Turn) -> Work:
    """The same inside an event loop."""
    for _ in range(WARM_UP):
        await claim()
    turn.start()
    begun = last = time.perf_counter()
    claims, longest = 0, 0.0
    while last < begun + turn.seconds and await claim() == turn.limit:
        last, before = time.perf_counter(), last
        claims, longest = claims + 1, max(longest, last - before)
    return Work(begun, last, claims, longest)


# --- the competitors on PostgreSQL ------------------------------------------------------------------------------------


class Bare:
    """One statement of psycopg's."""

    name, table, batches = "bare", "jobs", True
    tables = (
        "CREATE TABLE jobs (id bigserial PRIMARY KEY, start_us bigint NOT NULL, end_us bigint NOT NULL, "
        "status text NOT NULL, fields text NOT NULL, worker text, until timestamptz)",
        "CREATE INDEX jobs_ready ON jobs (start_us) WHERE status = 'pending'",
        "CREATE TABLE told (id bigserial PRIMARY KEY, at timestamptz NOT NULL, job bigint NOT NULL, fields text)",
        "CREATE INDEX told_at ON told (at)",
    )
    added = "INSERT INTO jobs (start_us, end_us, status, fields) SELECT n * 10, n * 10 + 10, 'pending', '{}' FROM new n"
    claim = """
        UPDATE jobs SET status = 'running', worker = 'host:1', until = clock_timestamp() + interval '10 minutes'
        WHERE id IN (SELECT id FROM jobs WHERE status = 'pending' ORDER BY start_us LIMIT %s FOR UPDATE SKIP LOCKED)
        RETURNING *"""

    def prepare(self, address: str) -> None:
        execute(address, *self.tables)

    def work(self, turn: Turn) -> Work:
        with psycopg.connect(turn.address, autocommit=True) as connection:
            # As the store has it: one plan, and never a reading of the whole table, whatever it is thought to cost.
            connection.execute("SET plan_cache_mode = force_generic_plan")
            connection.execute("SET enable_seqscan = off")
            return timed(lambda: len(connection.execute(self.claim, (turn.limit,)).fetchall()), turn)


class BareKept(Bare):
    """The same, and an event row."""

    name = "bare, kept"
    claim = f"""
        WITH claimed AS ({Bare.claim}),
        kept AS (
            INSERT INTO told (at, job, fields)
            SELECT until, id, json_build_object('status', status, 'worker', worker)::text FROM claimed
        )
        SELECT * FROM claimed"""


class Ours:
    """The record store of pipeline_sql."""

    name, table, batches = "ours", "pipeline_core_records", True
    added = """
        INSERT INTO pipeline_core_records
            (pipeline, live, start_us, end_us, status, reason, attempts, crashes, due_us, fence, identity, fields,
             evidence, updated_us)
        SELECT 'p', 1, n * 10, n * 10 + 10, 'pending', 'planned', 0, 0, 0, 0, '', '{}', '{}', 0 FROM new n"""

    def prepare(self, address: str) -> None:
        with opened(open_engine(Secret(with_driver(address)), timeout_s=30)):
            pass

    def work(self, turn: Turn) -> Work:
        request = ClaimRequest("p", 10**15, 600, limit=turn.limit, owner="host:1")
        with opened(open_engine(Secret(with_driver(turn.address)), timeout_s=30)) as store:
            return timed(lambda: len(store.claim(request)), turn)


class Pgqueuer:
    """pgqueuer's dequeue, on asyncpg."""

    name, table, batches = "pgqueuer", "pgqueuer", True
    added = "INSERT INTO pgqueuer (priority, status, entrypoint, payload) SELECT 0, 'queued', 'p', '{}' FROM new n"

    def prepare(self, address: str) -> None:
        async def install() -> None:
            connection = await asyncpg.connect(address)
            await Queries(AsyncpgDriver(connection)).install()
            await connection.close()

        asyncio.run(install())

    def work(self, turn: Turn) -> Work:
        async def worker() -> Work:
            connection = await asyncpg.connect(turn.address)
            queries, me = Queries(AsyncpgDriver(connection)), uuid4()
            entrypoints = {"p": EntrypointExecutionParameter(concurrency_limit=0)}

            async def claim() -> int:
                return len(await queries.dequeue(turn.limit, entrypoints, me, None, timedelta(minutes=10)))

            try:
                return await timed_async(claim, turn)
            finally:
                await connection.close()

        return asyncio.run(worker())


class Procrastinate:
    """procrastinate's fetch_job, on psycopg."""

    name, table, batches = "procrastinate", "procrastinate_jobs", False
    added = "INSERT INTO procrastinate_jobs (queue_name, task_name, args) SELECT 'default', 'p', '{}' FROM new n"

    def prepare(self, address: str) -> None:
        async def install() -> None:
            app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=address))
            async with app.open_async():
                await app.schema_manager.apply_schema_async()

        asyncio.run(install())

    def work(self, turn: Turn) -> Work:
        async def worker() -> Work:
            connector = procrastinate.PsycopgConnector(conninfo=turn.address, min_size=1, max_size=1)
            app = procrastinate.App(connector=connector)
            async with app.open_async():
                me = await app.job_manager.register_worker()

                async def claim() -> int:
                    return int(await app.job_manager.fetch_job(None, me) is not None)

                return await timed_async(claim, turn)

        return asyncio.run(worker())


Competitor = Bare | Ours | Pgqueuer | Procrastinate


def execute(address: str, *statements: str) -> None:
    with psycopg.connect(address, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)  # type: ignore[arg-type]


def add(address: str, competitor: Competitor, first: int, count: int) -> None:
    """Lets `count` more records wait."""
    numbers = f"(SELECT generate_series({first}, {first + count - 1}) AS n)"
    execute(address, competitor.added.replace("FROM new n", f"FROM {numbers} AS new (n)"))
    execute(address, f"VACUUM ANALYZE {competitor.table}")


@contextmanager
def bulk(address: str, competitor: Competitor) -> Iterator[None]:
    """Builds the store's constraint against overlaps after a million rows instead of row by row."""
    if competitor.table != Ours.table:
        yield
        return
    find = "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'ex_pipeline_core_records_live'"
    with psycopg.connect(address, autocommit=True) as connection:
        (definition,) = connection.execute(find).fetchone() or ("",)
        change = f"ALTER TABLE {competitor.table} {{}} CONSTRAINT ex_pipeline_core_records_live {{}}"
        connection.execute(change.format("DROP", ""))  # type: ignore[arg-type]
        yield
        connection.execute(change.format("ADD", definition))  # type: ignore[arg-type]


# --- SQLite -----------------------------------------------------------------------------------------------------------


class BareSqlite:
    """The same statement by Python's sqlite3."""

    name = "bare"
    tables = (
        "CREATE TABLE jobs (id integer PRIMARY KEY, start_us integer NOT NULL, end_us integer NOT NULL, "
        "status text NOT NULL, fields text NOT NULL, worker text, until integer)",
        "CREATE INDEX jobs_ready ON jobs (start_us) WHERE status = 'pending'",
        "CREATE TABLE told (id integer PRIMARY KEY, at integer NOT NULL, job integer NOT NULL, fields text)",
        "CREATE INDEX told_at ON told (at)",
    )
    claim = """
        UPDATE jobs SET status = 'running', worker = 'host:1', until = ?
        WHERE id = (SELECT id FROM jobs WHERE status = 'pending' ORDER BY start_us LIMIT 1) RETURNING *"""
    keep = False

    def prepare(self, path: str, records: int) -> None:
        with closing(self.connect(path)) as connection:
            for statement in self.tables:
                connection.execute(statement)
            connection.execute("BEGIN")
            rows = ((at * 10, at * 10 + 10, "pending", "{}") for at in range(records))
            connection.executemany("INSERT INTO jobs (start_us, end_us, status, fields) VALUES (?, ?, ?, ?)", rows)
            connection.execute("COMMIT")

    def connect(self, path: str) -> sqlite3.Connection:
        connection = sqlite3.connect(path, timeout=60, isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        return connection

    def work(self, turn: Turn) -> Work:
        with closing(self.connect(turn.address)) as connection:

            def claim() -> int:
                now_us = time.time_ns() // 1000
                connection.execute("BEGIN IMMEDIATE")
                rows = connection.execute(self.claim, (now_us,)).fetchall()
                if self.keep:
                    told = now_us, rows[0][0], json.dumps({"status": "running", "worker": "host:1"})
                    connection.execute("INSERT INTO told (at, job, fields) VALUES (?, ?, ?)", told)
                connection.execute("COMMIT")
                return len(rows)

            return timed(claim, turn)


class BareKeptSqlite(BareSqlite):
    """The same, and an event row."""

    name, keep = "bare, kept", True


class OursSqlite:
    """The record store of pipeline_sql."""

    name = "ours"

    def prepare(self, path: str, records: int) -> None:
        with opened(open_engine(Secret(f"sqlite:///{path}"), timeout_s=60)) as store:
            store.apply(Change("p", add=[Addition(at * 10, at * 10 + 10, 0) for at in range(records)]))

    def work(self, turn: Turn) -> Work:
        request = ClaimRequest("p", 10**15, 600, limit=turn.limit, owner="host:1")
        with opened(open_engine(Secret(f"sqlite:///{turn.address}"), timeout_s=60)) as store:
            return timed(lambda: len(store.claim(request)), turn)


# --- rounds -----------------------------------------------------------------------------------------------------------


def at_once(competitor: Any, address: str, workers: int, limit: int, seconds: float) -> list[Work]:
    """All workers, each in a process, begin together."""
    barrier, results = processes.Barrier(workers), processes.SimpleQueue()
    asked = address, seconds, limit
    started = [processes.Process(target=worker, args=(competitor, asked, barrier, results)) for _ in range(workers)]
    for process in started:
        process.start()
    for process in started:
        process.join(PATIENCE_S)
    print(".", end="", file=sys.stderr, flush=True)
    if any(process.exitcode != 0 for process in started):
        raise SystemExit(f"a worker of {competitor.name!r} failed")
    return [Work(*results.get()) for _ in started]


def worker(competitor: Any, asked: tuple[str, float, int], barrier: Any, results: Any) -> None:
    """What one process does."""
    results.put(competitor.work(Turn(*asked, lambda: barrier.wait(PATIENCE_S))))


def rate(done: Sequence[Work], limit: int) -> float:
    """Claimed records a second."""
    return limit * sum(each.claims for each in done) / (max(w.ended for w in done) - min(w.begun for w in done))


def on_postgres(records: int, workers: Sequence[int], rounds: int, seconds: float) -> None:
    competitors: list[Competitor] = [Bare(), BareKept(), Ours(), Pgqueuer(), Procrastinate()]
    columns = [(count, 1) for count in workers] + [(4, BATCH)]
    rates: dict[tuple[str, int, int], list[float]] = {}
    with postgres() as server:
        databases = [new_database(server, f"claims_{number}") for number in range(len(competitors))]
        filled = dict.fromkeys(databases, records)
        for competitor, address in zip(competitors, databases, strict=True):
            competitor.prepare(address)
            with bulk(address, competitor):
                add(address, competitor, 0, records)
        for _ in range(rounds):
            for count, limit in columns:
                for competitor, address in zip(competitors, databases, strict=True):
                    if limit > 1 and not competitor.batches:
                        continue
                    done = at_once(competitor, address, count, limit, seconds)
                    rates.setdefault((competitor.name, count, limit), []).append(rate(done, limit))
                    taken = sum(each.claims + WARM_UP for each in done) * limit
                    add(address, competitor, filled[address], taken)
                    filled[address] += taken
    print(f"\nPostgreSQL, {records:,} records waiting: claims a second\n")
    table([competitor.name for competitor in competitors], columns, rates)


def on_sqlite(records: int, workers: Sequence[int], rounds: int, seconds: float) -> None:
    competitors: list[BareSqlite | OursSqlite] = [BareSqlite(), BareKeptSqlite(), OursSqlite()]
    rates: dict[tuple[str, int, int], list[float]] = {}
    longest: dict[str, float] = {}
    needed = records + int(rounds * len(workers) * seconds * MOST_A_SECOND)
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"{folder}/{number}.db" for number in range(len(competitors))]
        for competitor, path in zip(competitors, paths, strict=True):
            competitor.prepare(path, needed)
        for _ in range(rounds):
            for count in workers:
                for competitor, path in zip(competitors, paths, strict=True):
                    done = at_once(competitor, path, count, 1, seconds)
                    rates.setdefault((competitor.name, count, 1), []).append(rate(done, 1))
                    if count == max(workers):
                        waited = max(work.longest for work in done)
                        longest[competitor.name] = max(longest.get(competitor.name, 0), waited)
    print(f"\nSQLite, {records:,} records waiting: claims a second\n")
    table([competitor.name for competitor in competitors], [(count, 1) for count in workers], rates)
    waits = ", ".join(f"{name} {wait_s:.2f} s" for name, wait_s in longest.items())
    print(f"\nThe longest wait of any of {max(workers)} workers for one claim: {waits}", flush=True)


def table(
    names: Sequence[str], columns: Sequence[tuple[int, int]], rates: dict[tuple[str, int, int], list[float]]
) -> None:
    """A row a competitor: the medians, and how large a part of ours each is."""
    heads = [f"{count} workers" + (f", {limit} at a time" if limit > 1 else "") for count, limit in columns]
    print(f"| | {' | '.join(heads)} |\n|{'---|' * (len(heads) + 1)}")
    middle = {key: statistics.median(found) for key, found in rates.items()}
    for name in names:
        cells = []
        for count, limit in columns:
            found = middle.get((name, count, limit))
            ours = middle["ours", count, limit]
            cells.append("-" if found is None else f"{found:,.0f}  (ours: {ours / found:4.0%})")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round, ten thousand records only")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", choices=("postgresql", "sqlite"), help="one engine")
    chosen = parser.parse_args()
    logging.disable(logging.WARNING)  # procrastinate's advice on where to make its App
    sizes, rounds, seconds = ([10_000], 1, 0.4) if chosen.quick else ([10_000, 1_000_000], chosen.rounds, 0.5)
    for records in sizes:
        if chosen.only != "sqlite":
            on_postgres(records, WORKERS, rounds, seconds)
        if chosen.only != "postgresql":
            on_sqlite(records, WORKERS, rounds, seconds)


if __name__ == "__main__":
    main()
