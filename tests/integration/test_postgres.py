"""The main job with PostgreSQL as store, source and target, and what a crash may never do to it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

NOW = "2013-03-10T12:00"
LONG = bool(os.environ.get("PIPELINE_LONG"))
REPEATS = 20 if LONG else 3
STEPS = ["claimed", "extracting", "uploaded", "guarded", "deleted", "inserted", "published", "settled"]


def sabotage(step: str, **changes: object) -> dict[str, object]:
    """The configuration that adds the saboteur."""
    return {"plugins": ["saboteur"], "observers": [{"type": "saboteur", "step": step, **changes}]}


def quiet(world) -> None:
    """Waits until the sessions of killed workers are gone: what they held is rolled back then."""
    others = "select count(*) from pg_stat_activity where application_name = 'pipeline-core' and datname = %s"
    for _ in range(600):
        if world.query("target", others, world.databases["target"]) == [(0,)]:
            return
        time.sleep(0.05)
    raise AssertionError("a killed worker's session never ended")


def test_the_main_job(postgres_world) -> None:
    """Run, run again, damage, check, heal, and lose the store."""
    world = postgres_world
    first = world.run()
    assert (first["windows"], first["rows"], first["exit_code"]) == ({"loaded": 6}, len(world.rows("source")), 0)
    world.assert_whole()
    assert world.run()["windows"] == {}
    world.query("target", "delete from events where id in (1, 2)")
    world.insert([431], first_id=20_000)
    with world.pipeline() as pipeline:
        report = pipeline.check()
        assert [(d.window.start.format("HH:mm"), d.counts.source - d.counts.target) for d in report.differences] == [
            ("05:00", 2),
            ("12:00", 1),
        ]
        assert pipeline.check(reopen=True).reopened == 2
        assert pipeline.run(now=NOW).windows == {"loaded": 2}
    world.assert_whole()
    world.databases["records"] = world.server.new_database()
    assert world.run()["windows"] == {"already processed": 6}
    world.assert_whole()


def test_each_side_may_be_another_engine(postgres_world, world) -> None:
    """From SQLite to PostgreSQL, and from there back into another SQLite table."""
    there = world.config() | {"target": postgres_world.config()["target"], "store": postgres_world.config()["store"]}
    assert world.run(**there)["windows"] == {"loaded": 6}
    assert postgres_world.rows("target") == world.rows("source")
    back = {"source": postgres_world.config()["target"] | {"create": False}}
    assert world.run(**back)["windows"] == {"loaded": 6}
    world.assert_whole()


def test_eight_processes_share_the_work(postgres_world) -> None:
    """All start at once on empty databases: each window, of eleven hours, is loaded once, and none fails."""
    world = postgres_world
    children = [world.start(granularity="30min") for _ in range(8)]
    for child in children:
        out, err = child.communicate(timeout=120)
        assert child.returncode == 0, out + err
        assert '"exit_code": 0' in out, out + err
    claims = world.query(
        "records", "select start_us, count(*) from pipeline_core_events where step = 'claimed' group by 1"
    )
    assert len(claims) == 22
    assert {count for _, count in claims} == {1}
    world.assert_whole()


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_a_step_again_and_again(postgres_world, step: str) -> None:
    """SIGKILL at the step, so many times over, each time in another window; then one quiet run ends it equal."""
    world = postgres_world
    run = {"run": world.config()["run"] | {"max_crashes": 99}}
    for repeat in range(REPEATS):
        child = world.start(**sabotage(step, nth=1 + repeat % 3), **run)
        out, err = child.communicate(timeout=60)
        everything_was_done = child.returncode == 0
        assert child.returncode == -signal.SIGKILL or everything_was_done, out + err
    quiet(world)
    world.run(**run)
    world.assert_whole()


def test_killed_at_random_moments_among_others(postgres_world) -> None:
    """Three workers at a time, wherever each happens to be."""
    world = postgres_world
    random.seed(11)
    run = {"run": world.config()["run"] | {"max_crashes": 99}}
    for _ in range(20 if LONG else 2):
        children = [world.start(**run) for _ in range(3)]
        for child in children:
            time.sleep(random.uniform(0.2, 0.8))
            child.kill()
        for child in children:
            child.communicate(timeout=60)
    quiet(world)
    world.run(**run)
    world.assert_whole()


def wait_until_stopped(child: subprocess.Popen[str]) -> None:
    """Until the process has stopped itself."""
    for _ in range(600):
        if Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
            return
        time.sleep(0.05)
    raise AssertionError("the process never stopped")


@pytest.mark.skipif(not Path("/proc").exists(), reason="this system shows no process states")
@pytest.mark.parametrize("step", ["counted", "uploaded"])
def test_a_stale_worker_is_refused(postgres_world, step: str) -> None:
    """Stopped past its lease, then continued after another worker has finished: it writes nothing."""
    world = postgres_world
    lease = {"run": world.config()["run"] | {"lease_s": 1.0}}
    child = world.start(**sabotage(step, signal="SIGSTOP"), **lease)
    try:
        wait_until_stopped(child)
        assert world.run(**lease)["windows"] == {"loaded": 6}
        fences = world.query("target", "select fence from pipeline_ledger order by start_us")
    finally:
        child.send_signal(signal.SIGCONT)
        out, err = child.communicate(timeout=60)
    assert '"claim lost": 1' in out, out + err
    assert world.query("target", "select fence from pipeline_ledger order by start_us") == fences
    world.run()
    world.assert_whole()


@pytest.mark.parametrize("step", ["uploaded", "inserted"])
def test_the_server_dies_in_the_middle_of_a_load(postgres_world, step: str) -> None:
    """The run stops, or waits, and uses no attempt; once the server is back another run ends it equal."""
    world = postgres_world
    child = world.start(**sabotage(step, signal="SIGSTOP"))
    try:
        wait_until_stopped(child)
        world.server.stop(signal.SIGQUIT)
    finally:
        world.server.start()
        child.send_signal(signal.SIGCONT)
        out, err = child.communicate(timeout=120)
    assert "Traceback" not in err, out + err
    world.run()
    world.assert_whole()
    attempts = world.query("records", "select max(attempts) from pipeline_core_records")
    assert attempts == [(0,)]
