"""A store that is lost, or put back as it was at a backup, while workers run: no row is lost, and none comes twice."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from attrs import define

from pipeline_core import ClaimLostError, ClaimRequest, Event, TransientError, tasks
from pipeline_core.config import load
from pipeline_core.pipeline import Pipeline
from worlds import World

NOW = "2013-03-10T12:00"
HOUR_US = 3_600_000_000
RUN = {"backoff_s": 0.01, "crash_backoff_s": 0.01, "batch_rows": 10, "lease_s": 2.0}
#: The records, and where an engine keeps the last fence in a table, that one too.
KEPT = ("pipeline_core_records", "pipeline_core_events", "pipeline_core_fence")


@define
class Backup:
    """The store's tables as they were: a copy of each, put back by one's own hands."""

    world: World
    tables: list[str]
    last_fence: int | None

    @classmethod
    def take(cls, world: World) -> Backup:
        tables = [name for name in KEPT if _is_there(world, name)]
        for name in tables:
            world.query("records", f"create table kept_{name} as select * from {name}")
        sequence = None
        if "pipeline_core_fence" not in tables:
            ((sequence,),) = world.query("records", "select last_value from pipeline_core_fences")
        return cls(world, tables, sequence)

    def restore(self) -> None:
        """All at once, as a tool that restores would."""
        with closing(self.world.connection("records")) as connection:
            cursor = connection.cursor()
            cursor.execute("begin")
            for name in self.tables:
                cursor.execute(f"delete from {name}")
                cursor.execute(f"insert into {name} select * from kept_{name}")
            if self.last_fence is not None:
                cursor.execute(f"select setval('pipeline_core_fences', {self.last_fence})")
            cursor.execute("commit")


def _is_there(world: World, table: str) -> bool:
    try:
        world.query("records", f"select 1 from {table} where 1 = 0")
    except Exception:  # noqa: BLE001 - each driver has an error of its own for a table that is not there
        return False
    return True


@define
class At:
    """An observer that does something once, the first time that a step is told."""

    step: str
    act: Callable[[], None]
    done: bool = False

    def notify(self, event: Event, /) -> None:
        if event.step == self.step and not self.done:
            self.done = True
            self.act()


@pytest.fixture
def planned(any_world: World) -> World:
    """A world with all of its windows planned and none of them claimed."""
    with any_world.pipeline() as pipeline:
        pipeline.plan(now=NOW)
    return any_world


def test_a_restored_store_still_outranks_the_ledger(planned: World) -> None:
    """It knows of no fence that was given out since its backup, but its clock is later than all of them."""
    world, backup = planned, Backup.take(planned)
    world.run()
    before = world.fences()
    backup.restore()
    with world.pipeline() as pipeline:
        pipeline.reload(start="2013-03-10", end=NOW, reason="what happened since is not known")
        assert pipeline.run(now=NOW).windows == {"loaded": 6}
    assert all(later > earlier for (later,), (earlier,) in zip(world.fences(), before, strict=True))
    world.assert_whole()


def test_a_lost_store_still_outranks_the_ledger(any_world: World) -> None:
    """A new, empty one finds what is done by its counts, and what it loads goes in over the old fences."""
    world = any_world
    world.run()
    before = world.fences()
    world.forget()
    world.query("target", "delete from events where id in (1, 60)")
    told: list[Event] = []
    listening: Any = type("Listening", (), {"notify": staticmethod(told.append)})()
    with Pipeline(load(world.config()), [listening]) as pipeline:
        assert pipeline.run(now=NOW).windows == {"already processed": 4, "loaded": 2}
    (surveyed,) = [event.fields for event in told if event.step == "surveyed"]
    assert surveyed == {"windows": 6, "processed": 4}
    assert sum(later > earlier for (later,), (earlier,) in zip(world.fences(), before, strict=True)) == 2
    world.assert_whole()


def test_a_store_whose_clock_was_ahead_tells_what_the_target_refuses(any_world: World) -> None:
    """The ledger outranks a new store: that is what the record and a task's failure say, not that a worker died."""
    world = any_world
    world.run()
    world.query("target", f"update pipeline_ledger set fence = fence + {HOUR_US}")
    world.query("target", "delete from events where id = 1")
    world.forget()
    assert world.run(run=RUN | {"max_attempts": 2})["windows"] == {
        "already processed": 5,
        "pending": 1,
        "quarantined": 1,
    }
    with world.pipeline() as pipeline:
        (record,) = pipeline.status().quarantined
        assert "was published under fence" in record.reason
        assert "retry the window once the store's clock is past it (attempt 2 of 2)" in record.reason
        assert (record.attempts, record.crashes) == (2, 0)
        pipeline.retry(window=record.window, reason="the clock is right now")
    parcel = tasks.store_new_and_pass_valid_record(world.config(), now=NOW)["record"]
    tasks.extract_source_data(world.config(), parcel)
    with pytest.raises(TransientError, match="was published under fence"):
        tasks.load_staged_data(world.config(), parcel)
    world.query("target", f"update pipeline_ledger set fence = fence - {HOUR_US}")
    tasks.release_record(world.config(), parcel)
    assert world.run()["windows"] == {"loaded": 1}
    world.assert_whole()


def test_a_worker_whose_claim_the_restored_store_does_not_know_loses_it(planned: World) -> None:
    """It can neither renew nor settle nor resume, whether another worker has claimed its window or nobody has."""
    backup = Backup.take(planned)
    with planned.pipeline() as pipeline:
        store = pipeline.store
        request = ClaimRequest("events", store.now_us(), 600)
        (claim,) = store.claim(request)
        backup.restore()
        for _ in range(2):
            with pytest.raises(ClaimLostError):
                store.renew(claim, 600)
            with pytest.raises(ClaimLostError):
                store.resume(claim, 600)
            (other,) = store.claim(request)
            assert other.window >= claim.window
            assert other.fence > claim.fence


@pytest.mark.parametrize("step", ["claimed", "staged", "uploaded", "published"])
def test_a_backup_restored_under_a_worker_harms_nothing(planned: World, step: str) -> None:
    """At each step of its first window, and others then do all of them: it gives up that window, and does no harm."""
    world, backup = planned, Backup.take(planned)

    def restore_and_run() -> None:
        backup.restore()
        others.append(world.run())

    others: list[dict[str, Any]] = []
    at = At(step, restore_and_run)
    with Pipeline(load(world.config()), [at]) as pipeline:
        report = pipeline.run(workers=1, now=NOW)
    assert at.done
    assert sum(others[0]["windows"].values()) == 6
    assert (report.rows, report.exit_code) == (0, 0)
    assert world.run()["windows"] == {}
    world.assert_whole()


def test_a_backup_restored_under_a_fleet_harms_nothing(any_world: World) -> None:
    """Processes that go on over a store put back under them end well, and what they leave is whole."""
    world = any_world
    changes = {"granularity": "30min"}
    with world.pipeline(**changes) as pipeline:
        pipeline.plan(now=NOW)
    backup = Backup.take(world)
    fleet = [world.start(**changes) for _ in range(min(3, world.processes))]
    while world.done() < 5:
        time.sleep(0.02)
    backup.restore()
    for code, said in [child.end() for child in fleet]:
        assert code == 0, said
    assert world.run(**changes)["exit_code"] == 0
    assert world.done() == 22
    assert world.run(**changes)["windows"] == {}
    world.assert_whole()
