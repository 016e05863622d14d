"""A process killed at any step, stopped past its lease, or interrupted: nothing is lost, nothing is doubled."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

LONG = bool(os.environ.get("PIPELINE_LONG"))
REPEATS = 20 if LONG else 3
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


def sabotage(step: str, **changes: object) -> dict[str, object]:
    """The configuration that adds the saboteur."""
    return {"plugins": ["saboteur"], "observers": [{"type": "saboteur", "step": step, **changes}]}


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_a_step_again_and_again(world, step: str) -> None:
    """SIGKILL at the step, so many times over, each time in another window; then one quiet run ends it equal."""
    for repeat in range(REPEATS):
        child = world.start(**sabotage(step, nth=1 + repeat % 3), run=world.config()["run"] | {"max_crashes": 99})
        out, err = child.communicate(timeout=60)
        everything_was_done = child.returncode == 0
        assert child.returncode == -signal.SIGKILL or everything_was_done, out + err
    world.run(run=world.config()["run"] | {"max_crashes": 99})
    world.assert_whole()


@pytest.mark.parametrize("step", ["uploaded", "guarded", "deleted", "inserted"])
def test_a_crash_before_the_commit_leaves_the_old_rows(world, step: str) -> None:
    """Killed while a window that holds rows is replaced: all of them are still there."""
    world.run()
    world.query("target", "delete from events where id = 1")
    with world.pipeline() as pipeline:
        assert pipeline.check(reopen=True).reopened == 1
    before = world.rows("target")
    child = world.start(**sabotage(step))
    out, err = child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL, out + err
    assert world.rows("target") == before
    world.run()
    world.assert_whole()


def test_killed_at_random_moments(world) -> None:
    """Wherever it happens to be."""
    random.seed(11)
    for _ in range(60 if LONG else 6):
        child = world.start()
        time.sleep(random.uniform(0.3, 1.2))
        child.kill()
        child.communicate(timeout=60)
    world.run()
    world.assert_whole()


def wait_until_stopped(child: subprocess.Popen[str]) -> None:
    """Until the process has stopped itself."""
    for _ in range(600):
        if Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
            return
        time.sleep(0.05)
    raise AssertionError("the process never stopped")


@pytest.mark.skipif(not Path("/proc").exists(), reason="this system shows no process states")
@pytest.mark.parametrize("step", ["claimed", "counted", "staged", "uploaded"])
def test_a_stale_worker_is_refused(world, step: str) -> None:
    """Stopped past its lease, then continued after another worker has finished: it writes nothing."""
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
    world.run()  # sweeps what the late worker may have staged
    world.assert_whole()


def test_a_window_that_kills_its_worker_is_quarantined_and_the_next_one_goes_on(world) -> None:
    """Crashes have their own counter; the other windows do not wait."""
    crashing = {"run": world.config()["run"] | {"max_crashes": 3, "crash_backoff_s": 0.0}}
    for _ in range(3):
        child = world.start(**sabotage("counted"), **crashing)
        child.communicate(timeout=60)
    report = world.run(**crashing)
    assert report["quarantined"] == 1
    assert report["windows"] == {"loaded": 5}
    with world.pipeline() as pipeline:
        (record,) = pipeline.status().quarantined
    assert record.crashes == 3
    assert record.attempts == 0


def test_interrupt_brings_every_window_back(world) -> None:
    """SIGINT in the middle of a window: pending again, no attempt used, nothing half-written."""
    child = world.start(**sabotage("staged", signal="SIGINT"))
    child.communicate(timeout=60)
    assert child.returncode == -signal.SIGINT
    with world.pipeline() as pipeline:
        status = pipeline.status()
    assert not status.running
    assert not status.failing
    world.run()
    world.assert_whole()
