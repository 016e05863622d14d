"""Servers that go away under eight workers and come back: every window ends done, and none is to blame."""

from __future__ import annotations

import signal
import threading
from typing import Any

import pytest

from pipeline_core import Event, Pipeline, TransientError

NOW = "2013-03-10T12:00"
WINDOWS = 22
SETTINGS: dict[str, Any] = {
    "granularity": "30min",
    "retry": {"retries": 1, "wait_s": 0.01, "wait_max_s": 0.1},
    "run": {"workers": 8, "batch_rows": 10, "backoff_s": 0.01, "max_attempts": 1},
}


class Outage:
    """An observer that stops the server once `stop_at` was told so often, and starts it after so many failed tries."""

    def __init__(self, server: Any, stop_at: str, nth: int = 1, tries: int = 12) -> None:
        self.server, self.stop_at, self.nth, self.tries = server, stop_at, nth, tries
        self.lock = threading.Lock()
        self.told: list[Event] = []

    def notify(self, event: Event) -> None:
        with self.lock:
            self.told.append(event)
            if event.step == self.stop_at and self.count(self.stop_at) == self.nth:
                self.server.stop(signal.SIGQUIT)
            if event.step == "away" and self.count("away") == self.tries:
                self.server.start()

    def count(self, step: str) -> int:
        return sum(event.step == step for event in self.told)

    def claims_meanwhile(self) -> int:
        """How many windows were claimed between the second failed try and the last."""
        tries = [at for at, event in enumerate(self.told) if event.step == "away"]
        return sum(event.step == "claimed" for event in self.told[tries[1] : tries[-1]])


def run(world, outage: Outage, **changes: Any) -> tuple[dict[str, Any], list[Any]]:
    """A whole run through the outage: its report, and the records after."""
    with world.pipeline(**SETTINGS | changes) as pipeline, Pipeline(pipeline.config, observers=[outage]) as watched:
        try:
            report = watched.run(now=NOW).as_mapping()
        finally:
            if outage.server._process is None:
                outage.server.start()
        return report, list(watched.store.records("events"))


def assert_nothing_happened(report: dict[str, Any], records: list[Any]) -> None:
    """The outage shows nowhere but in the log: all done, no attempt used, none quarantined, nothing undone."""
    assert [str(record.status) for record in records] == ["done"] * WINDOWS
    assert {record.attempts for record in records} == {0}
    assert (report["quarantined"], report["undone"], report["exit_code"]) == (0, "", 0)


@pytest.mark.parametrize("step", ["claimed", "extracting", "uploaded", "guarded", "inserted", "published"])
def test_the_target_goes_away_and_comes_back(world, postgres_world, step: str) -> None:
    """Whatever the eight workers were doing: none claims anything meanwhile, and all go on when it is back."""
    outage = Outage(postgres_world.server, step, nth=3)
    report, records = run(world, outage, target=postgres_world.config()["target"])
    assert_nothing_happened(report, records)
    assert outage.count("away") >= outage.tries
    assert outage.count("back") >= 1
    assert outage.claims_meanwhile() == 0
    assert postgres_world.rows("target") == world.rows("source")


@pytest.mark.parametrize("step", ["planned", "counted", "extracting"])
def test_the_source_goes_away_and_comes_back(world, postgres_world, step: str) -> None:
    """From the first count of the run on."""
    outage = Outage(postgres_world.server, step)
    report, records = run(world, outage, source=postgres_world.config()["source"])
    assert_nothing_happened(report, records)
    assert outage.claims_meanwhile() == 0
    assert world.rows("target") == postgres_world.rows("source")


@pytest.mark.parametrize("step", ["planned", "claimed", "staged", "cleaned", "settled"])
def test_the_store_goes_away_and_comes_back(world, postgres_world, step: str) -> None:
    """Workers keep what they have done until they can settle it; each window is published once."""
    outage = Outage(postgres_world.server, step, nth=3 if step != "planned" else 1)
    report, records = run(world, outage, store=postgres_world.config()["store"])
    assert_nothing_happened(report, records)
    assert outage.count("published") == WINDOWS
    assert {record.crashes for record in records} == {0}
    assert world.rows("target") == world.rows("source")


@pytest.mark.parametrize("step", ["claimed", "inserted"])
def test_everything_goes_away_and_comes_back(postgres_world, step: str) -> None:
    """Store, source and target at once."""
    report, records = run(postgres_world, Outage(postgres_world.server, step, nth=3))
    assert_nothing_happened(report, records)
    postgres_world.assert_whole()


def test_a_run_that_begins_during_an_outage_waits(postgres_world) -> None:
    """Nothing can be opened, planned or claimed; then everything is."""
    outage = Outage(postgres_world.server, "never")
    postgres_world.server.stop()
    report, records = run(postgres_world, outage)
    assert_nothing_happened(report, records)
    postgres_world.assert_whole()


def test_an_outage_beyond_patience_leaves_the_rest_pending(world, postgres_world) -> None:
    """Exit code 3, what was away, how many windows are left; the next run goes on, no attempt used."""
    outage = Outage(postgres_world.server, "published", nth=3, tries=10**6)
    patience = {"run": SETTINGS["run"] | {"give_up_after": "1s"}}
    report, records = run(world, outage, target=postgres_world.config()["target"], **patience)
    left = [record for record in records if record.status == "pending"]
    assert report["exit_code"] == 3
    assert "run.give_up_after is 1s: postgresql" in report["undone"]
    assert report["undone"].endswith(f"; {len(left)} windows are pending")
    assert 0 < len(left) < WINDOWS
    assert {record.status for record in records} == {"pending", "done"}
    assert {record.attempts for record in records} == {0}
    again, records = run(world, Outage(postgres_world.server, "never"), target=postgres_world.config()["target"])
    assert_nothing_happened(again, records)


def test_a_store_beyond_patience_ends_the_run(postgres_world) -> None:
    """There is nothing left to report from; what is held is taken over by the next run."""
    outage = Outage(postgres_world.server, "published", nth=3, tries=10**6)
    with pytest.raises(TransientError, match=r"the store was away for .* run.give_up_after is 1s"):
        run(postgres_world, outage, run=SETTINGS["run"] | {"give_up_after": "1s", "lease_s": 1.0})
    postgres_world.run(**SETTINGS)
    postgres_world.assert_whole()
