"""Servers that go away under eight workers and come back: every window ends done, and none is to blame."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType
from typing import Any

import pyarrow as pa
import pytest
from attrs import frozen

from pipeline_core import (
    Can,
    Claim,
    Connector,
    Context,
    Event,
    Pipeline,
    Provider,
    Record,
    Status,
    TransientError,
    Verdict,
    hookimpl,
    tasks,
)
from pipeline_core.testing import MemorySettings, MemoryTable
from pipeline_objects.stage import ObjectStage
from pipeline_sql.settings import SqlSettings
from pipeline_sql.store import SqlRecordStore
from worlds import WORLDS, World
from worlds.base import BEGIN

NOW = "2013-03-10T12:00"
WINDOWS = 22
AT_MOST = 7  # claims after the first failure: what each other worker was about to do
SETTINGS: dict[str, Any] = {
    "granularity": "30min",
    "retry": {"retries": 1, "wait_s": 0.01, "wait_max_s": 0.1},
    "run": {"workers": 8, "batch_rows": 10, "backoff_s": 0.01, "max_attempts": 1},
}

with_a_server = pytest.mark.parametrize(
    "any_world", [n for n, kind in WORLDS.items() if kind.server and kind.keeps_records], indirect=True
)


class Outage:
    """An observer that stops the server once `stop_at` was told so often, and starts it after so many failed tries."""

    def __init__(self, served: World, stop_at: str, nth: int = 3, tries: int = 12) -> None:
        self.served, self.stop_at, self.nth, self.tries = served, stop_at, nth, tries
        self.stopped = False
        self.lock = threading.Lock()
        self.told: list[Event] = []

    def notify(self, event: Event) -> None:
        with self.lock:
            self.told.append(event)
            if event.step == self.stop_at and self.count(self.stop_at) == self.nth:
                self.stop()
            if event.step == "away" and self.count("away") == self.tries:
                self.start()

    def stop(self) -> None:
        self.served.kill_server()
        self.stopped = True

    def start(self) -> None:
        self.served.start_server()
        self.stopped = False

    def count(self, step: str) -> int:
        return sum(event.step == step for event in self.told)

    def claims_meanwhile(self) -> int:
        """How many windows were claimed between the first failed try and the last."""
        tries = [at for at, event in enumerate(self.told) if event.step == "away"]
        return sum(event.step == "claimed" for event in self.told[tries[0] : tries[-1]])


def run(world: World, outage: Outage, **changes: Any) -> tuple[dict[str, Any], list[Any]]:
    """A whole run through the outage: its report, and the records after."""
    with world.pipeline(**SETTINGS | changes) as pipeline, Pipeline(pipeline.config, observers=[outage]) as watched:
        try:
            report = watched.run(now=NOW).as_mapping()
        finally:
            if outage.stopped:
                outage.start()
        return report, list(watched.store.records("events"))


def assert_nothing_happened(report: dict[str, Any], records: list[Any]) -> None:
    """The outage shows nowhere but in the log: all done, no attempt used, none quarantined, nothing undone."""
    assert [str(record.status) for record in records] == ["done"] * WINDOWS
    assert {record.attempts for record in records} == {0}
    assert (report["quarantined"], report["undone"], report["exit_code"]) == (0, "", 0)


@with_a_server
@pytest.mark.parametrize("step", ["extracting", "uploaded", "inserted", "published"])
def test_the_target_goes_away_and_comes_back(world: World, any_world: World, step: str) -> None:
    """Whatever the eight workers were doing: none claims anything meanwhile, and all go on when it is back."""
    outage = Outage(any_world, step)
    report, records = run(world, outage, target=any_world.config()["target"])
    assert_nothing_happened(report, records)
    assert outage.count("away") >= outage.tries
    assert outage.count("back") >= 1
    assert outage.claims_meanwhile() <= AT_MOST
    assert any_world.rows("target") == world.rows("source")


@with_a_server
@pytest.mark.parametrize("step", ["planned", "extracting"])
def test_the_source_goes_away_and_comes_back(world: World, any_world: World, step: str) -> None:
    """From the first count of the run on."""
    outage = Outage(any_world, step, nth=1)
    report, records = run(world, outage, source=any_world.config()["source"])
    assert_nothing_happened(report, records)
    assert outage.claims_meanwhile() <= AT_MOST
    assert world.rows("target") == any_world.rows("source")


@with_a_server
@pytest.mark.parametrize("step", ["claimed", "staged", "settled"])
def test_the_store_goes_away_and_comes_back(world: World, any_world: World, step: str) -> None:
    """Workers keep what they have done until they can settle it; each window is published once."""
    outage = Outage(any_world, step)
    report, records = run(world, outage, store=any_world.config()["store"])
    assert_nothing_happened(report, records)
    assert outage.count("published") == WINDOWS
    assert {record.crashes for record in records} == {0}
    assert world.rows("target") == world.rows("source")


@with_a_server
@pytest.mark.parametrize("step", ["settled", "inserted"])
def test_everything_goes_away_and_comes_back(any_world: World, step: str) -> None:
    """Store, source and target at once."""
    report, records = run(any_world, Outage(any_world, step))
    assert_nothing_happened(report, records)
    any_world.assert_whole()


@with_a_server
def test_a_run_that_begins_during_an_outage_waits(any_world: World) -> None:
    """Nothing can be opened, planned or claimed; then everything is."""
    outage = Outage(any_world, "never")
    outage.stop()
    report, records = run(any_world, outage)
    assert_nothing_happened(report, records)
    any_world.assert_whole()


@with_a_server
def test_an_outage_beyond_patience_leaves_the_rest_pending(world: World, any_world: World) -> None:
    """Exit code 3, what was away, how many windows are left; the next run goes on, no attempt used."""
    # Whoever publishes a ninth window among eight workers has settled one before.
    outage = Outage(any_world, "published", nth=9, tries=10**6)
    patience = {"run": SETTINGS["run"] | {"give_up_after": "1s"}}
    report, records = run(world, outage, target=any_world.config()["target"], **patience)
    left = [record for record in records if record.status == "pending"]
    assert report["exit_code"] == 3
    assert report["undone"].startswith("the target was away for ")
    assert "run.give_up_after is 1s: " in report["undone"]
    assert report["undone"].endswith(f"; {len(left)} windows are pending")
    assert 0 < len(left) < WINDOWS
    assert {record.status for record in records} == {"pending", "done"}
    assert {record.attempts for record in records} == {0}
    again, records = run(world, Outage(any_world, "never"), target=any_world.config()["target"])
    assert_nothing_happened(again, records)


@with_a_server
def test_a_limit_counts_what_was_done(world: World, any_world: World) -> None:
    """A window that went back to pending takes none of the turns."""
    outage = Outage(any_world, "extracting", nth=1)
    changes = SETTINGS | {"target": any_world.config()["target"]}
    with world.pipeline(**changes) as pipeline, Pipeline(pipeline.config, observers=[outage]) as watched:
        try:
            assert watched.run(limit=9, now=NOW).windows == {"loaded": 9}
        finally:
            if outage.stopped:
                outage.start()


@pytest.mark.parametrize("limits", [{}, {"start": "2013-03-10"}])
def test_a_store_that_is_away_from_the_start_is_named(world: World, limits: dict[str, str]) -> None:
    """Whoever is to bring it back has to know that it is no side."""
    nowhere = {"type": "sql", "url": "postgresql+psycopg://reader@127.0.0.1:1/records"}
    with (
        world.pipeline(store=nowhere, run={"give_up_after": "0s"}) as pipeline,
        pytest.raises(TransientError, match="the store was away"),
    ):
        pipeline.run(now=NOW, **limits)


@pytest.mark.parametrize("verb", ["spans", "apply", "records"])
def test_a_run_begins_once_the_store_answers(world: World, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    """What it waits for as it claims, a lock for instance, it waits for as it plans."""
    lost = Forgetful(monkeypatch, verb, done=False, times=3)
    outage = Outage(world, "never")
    report, _ = run(world, outage)
    assert (report["windows"], lost.left) == ({"loaded": WINDOWS}, 0)
    assert {event.fields["of"] for event in outage.told if event.step == "away"} == {"the store"}


def test_a_stage_that_cannot_be_looked_over_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though it is asked amid what the store is asked."""

    def away(stage: ObjectStage, prefix: str) -> list[str]:
        monkeypatch.undo()
        raise TransientError("503")

    monkeypatch.setattr(ObjectStage, "keys", away)
    outage = Outage(world, "never")
    run(world, outage)
    assert [event.fields["of"] for event in outage.told if event.step == "away"] == ["the stage"]


@pytest.mark.parametrize("nth", [1, 2, 5, 6])
def test_a_side_that_cannot_be_opened_is_opened_again(world: World, monkeypatch: pytest.MonkeyPatch, nth: int) -> None:
    """By the run as it begins, and by a worker after the survey: a lock in the way is no reason to end."""
    plain, opened = SqlSettings.open, []

    def shaky(settings: SqlSettings, context: Context) -> AbstractContextManager[Connector]:
        opened.append(settings)
        if len(opened) == nth:
            raise TransientError("the catalog is locked")
        return plain(settings, context)

    monkeypatch.setattr(SqlSettings, "open", shaky)
    outage = Outage(world, "never")
    report, records = run(world, outage, run={**SETTINGS["run"], "workers": 1})
    assert_nothing_happened(report, records)
    assert outage.count("away") == 1


class Throttled:
    """An observer of a source in memory: it refuses once a window is claimed, may ask for rest, then answers."""

    def __init__(self, retry_after: float | None) -> None:
        self.table = MemoryTable("events", "ts")
        self.table.put(pa.table({"id": [1], "ts": pa.array([BEGIN], pa.timestamp("us", "UTC"))}))
        self.refusal = TransientError("too many requests", retry_after=retry_after, side_down=True)
        self.told: list[Event] = []

    @contextmanager
    def open(self, context: Context) -> Iterator[Connector]:
        with MemorySettings(self.table).open(context) as connector:
            yield connector

    def notify(self, event: Event) -> None:
        self.told.append(event)
        if event.step == "claimed" and "away" not in [each.step for each in self.told]:
            self.table.fault = self.refusal
            time.sleep(0.3)  # long enough for the other worker to find nothing to do
        if event.step == "away":
            self.table.fault = None


@pytest.mark.parametrize("retry_after", [1.0, None])
def test_nobody_asks_before_the_wait_is_over(world: World, retry_after: float | None) -> None:
    """Neither who met the fault nor the worker that had nothing to do; then the window is done, none is to blame."""
    throttled = Throttled(retry_after)

    @frozen
    class Settings:
        """The throttled source."""

        def open(self, context: Context) -> AbstractContextManager[Connector]:
            return throttled.open(context)

    module = ModuleType("throttled")
    module.pipeline_connectors = hookimpl(  # type: ignore[attr-defined]
        lambda: iter([Provider("throttled", Settings, can={Can.EXTRACT})]), specname="pipeline_connectors"
    )
    config = world.config(source={"type": "throttled"}, retry={"retries": 0, "wait_s": 1.0})
    with (
        Pipeline.from_mapping(config, plugins=[module]) as plain,
        Pipeline(plain.config, observers=[throttled]) as pipeline,
    ):
        report = pipeline.run(workers=2, start="2013-03-10T00:00", end="2013-03-10T02:00", now=NOW)
        (record, *_) = pipeline.store.records("events")
    assert (report.exit_code, report.rows, report.windows) == (0, 1, {"loaded": 1})
    assert record.attempts == 0
    (away,) = [event for event in throttled.told if event.step == "away"]
    after = throttled.told[throttled.told.index(away) + 1]
    assert away.fields["wait_s"] >= 1.0
    assert after.at_us - away.at_us >= 1_000_000


@with_a_server
def test_a_store_beyond_patience_ends_the_run(any_world: World) -> None:
    """There is nothing left to report from; what is held is taken over by the next run."""
    outage = Outage(any_world, "published", tries=10**6)
    with pytest.raises(TransientError, match=r"the store was away for .* run.give_up_after is 1s"):
        run(any_world, outage, run=SETTINGS["run"] | {"give_up_after": "1s", "lease_s": 1.0})
    any_world.run(**SETTINGS)
    any_world.assert_whole()


class Forgetful:
    """A store's verb whose first answers are lost, after what they tell of was done, or before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, verb: str, *, done: bool, times: int = 1) -> None:
        self.left = times
        plain = getattr(SqlRecordStore, verb)

        def forgetting(store: SqlRecordStore, *given: Any, **named: Any) -> Any:
            verdict = given[1] if len(given) > 1 else None
            ends = not isinstance(verdict, Verdict) or verdict.status in (Status.DONE, Status.QUARANTINED)
            lost = self.left > 0 and ends
            answer = plain(store, *given, **named) if done or not lost else None
            if lost:
                self.left -= 1
                raise TransientError("deadlock: try again")
            return answer

        monkeypatch.setattr(SqlRecordStore, verb, forgetting)


@pytest.mark.parametrize("any_world", ["sqlite", "postgresql", "mariadb"], indirect=True)
def test_an_answer_that_was_lost_is_no_lost_claim(any_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the store has kept is told as it is: by a worker that moves rows, and by a survey that finds them there."""
    config = any_world.config(**SETTINGS)
    lost = Forgetful(monkeypatch, "settle", done=True, times=5)  # some more where workers meet in it
    with Pipeline.from_mapping(config) as pipeline:
        assert (pipeline.run(now=NOW).windows, lost.left > 0) == ({"loaded": WINDOWS}, False)
    lost.left = 5
    with Pipeline.from_mapping({**config, "columns": {"exclude": ["note"]}}) as pipeline:
        assert (pipeline.run(now=NOW).windows, lost.left > 0) == ({"already processed": WINDOWS}, False)


def test_a_claim_that_another_took_is_lost_all_the_same(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that somebody else has ended is not this worker's, though it ended in the same state."""
    plain = SqlRecordStore.settle

    def overtaken(store: SqlRecordStore, claim: Claim, verdict: Verdict) -> Record:
        monkeypatch.undo()
        return plain(store, store.resume(claim, 60), verdict)

    monkeypatch.setattr(SqlRecordStore, "settle", lambda *given: overtaken(*given) and plain(*given))
    with Pipeline.from_mapping(world.config()) as pipeline:
        assert pipeline.run(now=NOW).windows == {"loaded": 5, "claim lost": 1}


def test_a_task_claims_again_where_the_store_was_in_the_way(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deadlock does not reach the orchestrator; an absence does, once it is given up."""
    lost = Forgetful(monkeypatch, "claim", done=False, times=3)
    found = tasks.store_new_and_pass_valid_record(world.config(), now=NOW)
    assert (found["exit_dag"], lost.left) == (False, 0)
    tasks.release_record(world.config(), found["record"])
    lost.left = 10**6
    config = world.config(run={**world.config()["run"], "give_up_after": "0s"})
    with pytest.raises(TransientError, match=r"the store was away .* deadlock"):
        tasks.store_new_and_pass_valid_record(config, now=NOW)
