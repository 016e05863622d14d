"""A process killed at any step, stopped past its lease, or interrupted, on each kind of database.

Whatever happens to a worker or to the server: nothing is lost, nothing is doubled.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipeline_core import Pipeline, tasks
from pipeline_objects.stage import ObjectStage
from worlds import WORLDS, World, harry

NOW = "2013-03-10T12:00"
LONG = bool(os.environ.get("PIPELINE_LONG"))
REPEATS = 20 if LONG else None
STEPS = [
    "planned",
    "claimed",
    "counted",
    "extracting",
    "staged",
    "uploading",
    "uploaded",
    "guarded",
    "deleted",
    "inserted",
    "published",
    "audited",
    "cleaned",
    "settled",
]
IN_THE_TRANSACTION = ["guarded", "deleted", "inserted"]

with_every_kind = pytest.mark.parametrize("any_world", WORLDS, indirect=True)
with_one_writer = pytest.mark.parametrize(
    "any_world", [n for n, kind in WORLDS.items() if kind.one_writer], indirect=True
)
with_many_writers = pytest.mark.parametrize(
    "any_world", [n for n, kind in WORLDS.items() if not kind.one_writer], indirect=True
)
with_a_server = pytest.mark.parametrize("any_world", [n for n, kind in WORLDS.items() if kind.server], indirect=True)
shows_process_states = pytest.mark.skipif(not Path("/proc").exists(), reason="this system shows no process states")


def sabotage(step: str, **changes: object) -> dict[str, object]:
    """The configuration that adds the saboteur."""
    return {"plugins": ["saboteur"], "observers": [{"type": "saboteur", "step": step, **changes}]}


def settings(world: World, **changes: object) -> dict[str, Any]:
    """The configuration that changes how windows are run."""
    return {"run": world.config()["run"] | changes}


@with_every_kind
@pytest.mark.parametrize("step", STEPS)
def test_killed_at_a_step_again_and_again(any_world: World, step: str) -> None:
    """SIGKILL at the step, so many times over, each time in another window; then one quiet run ends it equal."""
    world = any_world
    undaunted = settings(world, max_crashes=99)
    kills = 0
    for repeat in range(REPEATS or world.kills):
        code, said = world.start(**sabotage(step, nth=1 + repeat % 3), **undaunted).end()
        everything_was_done = code == 0
        assert code == -signal.SIGKILL or everything_was_done, said
        kills += not everything_was_done
    assert (kills > 0) == (step not in world.untold)
    world.quiet()
    world.run(**undaunted)
    world.assert_whole()


@with_every_kind
@pytest.mark.parametrize("step", ["uploaded", *IN_THE_TRANSACTION])
def test_a_crash_before_the_commit_leaves_the_old_rows(any_world: World, step: str) -> None:
    """Killed while a window that holds rows is replaced: all of them are still there."""
    world = any_world
    world.run()
    world.query("target", "delete from events where id = 1")
    with world.pipeline() as pipeline:
        assert pipeline.check(reopen=True).reopened == 1
    before = world.rows("target")
    code, said = world.start(**sabotage(step)).end()
    assert code == -signal.SIGKILL, said
    assert world.rows("target") == before
    world.quiet()
    world.run()
    world.assert_whole()


@pytest.mark.timeout(1200)  # many processes in turn, on a machine that may be busy
def test_killed_at_random_moments_among_others(any_world: World) -> None:
    """Many workers; again and again one of them is killed, wherever it happens to be, and another takes its place."""
    world = any_world
    random.seed(11)
    changes = settings(world, max_crashes=99) | {"granularity": "5min"}
    with world.pipeline(**changes) as pipeline:
        windows = len(pipeline.plan(now=NOW).add)
    start = partial(world.start, **changes)
    assert harry(start, workers=world.processes, kills=100 if LONG else 8, done=world.done, windows=windows) > 0
    world.quiet()
    assert world.run(**changes)["windows"] == {}
    world.assert_whole()


@shows_process_states
@with_every_kind
@pytest.mark.parametrize("step", ["claimed", "counted", "staged", "uploaded"])
def test_a_stale_worker_is_refused(any_world: World, step: str) -> None:
    """Stopped past its lease, then continued after another worker has finished: it writes nothing."""
    _assert_refused(any_world, step)


@shows_process_states
@with_many_writers
@pytest.mark.parametrize("step", IN_THE_TRANSACTION)
def test_a_stale_worker_is_refused_in_the_midst_of_its_publication(any_world: World, step: str) -> None:
    """Where the server ends the transaction that stands still, another worker finishes the window."""
    _assert_refused(any_world, step)


def _assert_refused(world: World, step: str) -> None:
    leased = settings(world, lease_s=1.0)
    child = world.start(**sabotage(step, signal="SIGSTOP"), **leased)
    try:
        child.wait_until_stopped()
        if step in IN_THE_TRANSACTION:
            world.cut_off()
        assert world.run(**leased)["windows"] == {"loaded": 6}
        fences = world.fences()
    finally:
        child.send(signal.SIGCONT)
        _, said = child.end()
    assert '"claim lost": 1' in said
    assert world.fences() == fences
    world.run()  # sweeps what the late worker may have staged
    world.assert_whole()


def test_a_sweep_leaves_what_is_staged_meanwhile(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another worker's window is reopened and staged while a run lists the stage, and goes on from there."""
    config = {**world.config(end="2013-03-10T01:00"), "run": {"max_attempts": 1}}
    world.run(end="2013-03-10T01:00")
    plain, meanwhile = ObjectStage.keys, []

    def slow(stage: ObjectStage, prefix: str) -> Sequence[str]:
        monkeypatch.undo()
        found = tasks.store_new_and_pass_valid_record(config, now=NOW, start="2013-03-10", end=NOW, reload=True)
        meanwhile.append(tasks.extract_source_data(config, found["record"]))
        return plain(stage, prefix)

    monkeypatch.setattr(ObjectStage, "keys", slow)
    with Pipeline.from_mapping(config) as pipeline:
        pipeline.plan(now=NOW)
    (staged,) = meanwhile
    assert tasks.load_staged_data(config, staged["record"])["rows"] == staged["rows"] > 0


@shows_process_states
@with_one_writer
@pytest.mark.parametrize("step", IN_THE_TRANSACTION)
def test_a_worker_stopped_in_the_midst_of_its_publication_shows_as_a_lock_wait(any_world: World, step: str) -> None:
    """Past its lease another worker takes the window, cannot publish it, and says why; continued, the first ends it."""
    world = any_world
    leased = settings(world, lease_s=1.0)
    impatient = {"target": world.side("target") | {"timeout_s": 0.1}, "retry": {"retries": 0}}
    child = world.start(**sabotage(step, signal="SIGSTOP"), **leased)
    try:
        child.wait_until_stopped()
        with world.pipeline(**leased, **impatient) as pipeline:
            report = pipeline.run(start="2013-03-10", end="2013-03-10T03:00", limit=1, now=NOW)
            (record,) = pipeline.status().failing
        assert report.windows == {"pending": 1}
        assert "lock" in record.reason
    finally:
        child.send(signal.SIGCONT)
        code, said = child.end()
    assert (code, '"claim lost": 1' in said) == (0, True), said
    world.run()
    world.assert_whole()


def test_a_window_that_kills_its_worker_is_quarantined_and_the_next_one_goes_on(any_world: World) -> None:
    """Crashes have their own counter; the other windows do not wait."""
    world = any_world
    crashing = settings(world, max_crashes=3, crash_backoff_s=0.0)
    for _ in range(3):
        world.start(**sabotage("counted"), **crashing).end()
    report = world.run(**crashing)
    assert report["quarantined"] == 1
    assert report["windows"] == {"loaded": 5}
    with world.pipeline() as pipeline:
        (record,) = pipeline.status().quarantined
    assert record.crashes == 3
    assert record.attempts == 0


def test_interrupt_brings_every_window_back(any_world: World) -> None:
    """SIGINT in the middle of a window: pending again, no attempt used, nothing half-written."""
    world = any_world
    code, said = world.start(**sabotage("staged", signal="SIGINT")).end()
    assert (code, "KeyboardInterrupt" in said) == (1, True), said
    with world.pipeline() as pipeline:
        status = pipeline.status()
    assert not status.running
    assert not status.failing
    world.run()
    world.assert_whole()


@shows_process_states
@with_a_server
@pytest.mark.parametrize("step", ["uploaded", *IN_THE_TRANSACTION])
def test_the_server_dies_in_the_middle_of_a_load(any_world: World, step: str) -> None:
    """The run stops, or waits, and uses no attempt; once the server is back another run ends it equal."""
    world = any_world
    child = world.start(**sabotage(step, signal="SIGSTOP"))
    try:
        child.wait_until_stopped()
        world.kill_server()
    finally:
        world.start_server()
        child.send(signal.SIGCONT)
        _, said = child.end()
    assert "Traceback" not in said
    world.run()
    world.assert_whole()
    assert world.query("records", "select max(attempts) from pipeline_core_records") == [(0,)]
