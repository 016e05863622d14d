"""The whole pipeline with its stage in a bucket of a real S3 server: run, killed, cut off, and swept."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import obstore
import pytest

from pipeline_core import Event, Pipeline, SideError
from worlds import S3StageWorld, World

NOW = "2013-03-10T12:00"
shows_process_states = pytest.mark.skipif(not Path("/proc").exists(), reason="this system shows no process states")


@pytest.fixture
def world(tmp_path: Path, s3_server: Any) -> Iterator[S3StageWorld]:
    """A fresh world whose rows are staged in a fresh bucket."""
    with closing(S3StageWorld(tmp_path, s3_server)) as fresh:
        yield fresh


def sabotage(step: str, **changes: object) -> dict[str, object]:
    """The configuration that adds the saboteur."""
    return {"plugins": ["saboteur"], "observers": [{"type": "saboteur", "step": step, **changes}]}


def test_a_run_moves_everything_and_a_second_one_nothing(world: S3StageWorld) -> None:
    """Six windows by way of the bucket, by several workers; then none is left, in the bucket neither."""
    with world.pipeline() as pipeline:
        report = pipeline.run(workers=3, now=NOW)
    assert (report.windows, report.rows) == ({"loaded": 6}, len(world.rows("source")))
    world.assert_whole()
    assert world.run()["windows"] == {}


def test_every_target_takes_rows_from_a_bucket(any_world: World, s3_server: Any) -> None:
    """Also one that would rather read the staged files itself, where they lie on this machine."""
    stage = s3_server.settings(s3_server.new_bucket())
    assert any_world.run(stage=stage)["windows"] == {"loaded": 6}
    any_world.assert_whole()


@pytest.mark.parametrize("step", ["extracting", "staged", "uploading", "uploaded", "published", "cleaned"])
def test_killed_at_a_step(world: S3StageWorld, step: str) -> None:
    """SIGKILL in three windows; then one quiet run ends it equal, and the bucket is empty."""
    undaunted = {"run": world.config()["run"] | {"max_crashes": 99}}
    kills = [world.start(**sabotage(step, nth=nth), **undaunted).end()[0] for nth in (1, 2, 3)]
    assert kills == [-signal.SIGKILL] * 3
    world.run(**undaunted)
    world.assert_whole()
    assert world.unfinished() == []


def test_a_retry_starts_from_what_is_staged(world: S3StageWorld) -> None:
    """A worker that was killed after staging leaves files that the next one uses again."""
    world.start(**sabotage("staged")).end()
    left = world.staged()
    assert [path.name for path in left] == ["manifest.json", "part-00000.parquet"]
    reused = []

    class Listener:
        def notify(self, event: Event) -> None:
            if event.step == "staged" and event.fields.get("reused"):
                reused.append(event.window)

    with Pipeline(world.pipeline().config, observers=[Listener()]) as pipeline:
        pipeline.run(now=NOW)
    assert len(reused) == 1
    world.assert_whole()


@shows_process_states
def test_what_a_late_worker_stages_is_swept(world: S3StageWorld) -> None:
    """Stopped past its lease, then continued: its claim is lost, and the next run removes what it has written."""
    leased = {"run": world.config()["run"] | {"lease_s": 1.0}}
    child = world.start(**sabotage("counted", signal="SIGSTOP"), **leased)
    try:
        child.wait_until_stopped()
        assert world.run(**leased)["windows"] == {"loaded": 6}
    finally:
        child.send(signal.SIGCONT)
        _, said = child.end()
    assert '"claim lost": 1' in said
    world.run()
    world.assert_whole()


def test_files_of_superseded_windows_are_swept(world: S3StageWorld) -> None:
    """Staged, killed and set free, then cut anew: planning leaves nothing that no live record needs."""
    world.start(**sabotage("staged")).end()
    assert world.staged() != []
    with world.pipeline() as pipeline:
        pipeline.release(start="2013-03-10", end="2013-03-11", reason="cut anew")
    with world.pipeline(granularity="1h") as pipeline:
        pipeline.plan(now=NOW)
    assert world.staged() == []
    world.run(granularity="1h")
    world.assert_whole()


@shows_process_states
@pytest.mark.parametrize("step", ["counted", "staged"])
def test_a_service_that_dies_is_waited_for(world: S3StageWorld, step: str) -> None:
    """Before rows are staged, and before they are read: no attempt is used, and the run goes on once it is back."""
    child = world.start(**sabotage(step, signal="SIGSTOP"))
    try:
        child.wait_until_stopped()
        world.kill_server()
        child.send(signal.SIGCONT)
    finally:
        world.start_server()
        code, said = child.end()
    assert (code, "Traceback" in said) == (0, False), said
    world.run()
    world.assert_whole()
    assert world.query("records", "select max(attempts) from pipeline_core_records") == [(0,)]


def test_a_wrong_key_leaves_everything_pending(world: S3StageWorld) -> None:
    """The run stops; no window is quarantined, no attempt is used, and no secret is in what is kept or said."""
    stage = world.config()["stage"]
    stage["credentials"] = {"access_key_id": "owner", "secret_access_key": "never-show-me-55"}
    with world.pipeline(stage=stage) as pipeline:
        with pytest.raises(SideError, match="SignatureDoesNotMatch") as raised:
            pipeline.run(now=NOW)
        status = pipeline.status()
        kept = repr(list(pipeline.store.events("events"))) + repr(pipeline.store.records("events"))
    assert (status.counts["quarantined"], list(status.failing)) == (0, [])
    assert "never-show-me-55" not in f"{raised.value}{kept}"
    world.run()
    world.assert_whole()


def test_strangers_files_are_left_alone(world: S3StageWorld) -> None:
    """Whatever somebody else has put into the pipeline's folder is neither read nor removed, and stops nobody."""
    strange = [
        "stage/readme.txt",
        "stage/events/notes.txt",
        "stage/events/2024/01/x.csv",
        "stage/events/2024_01/7/x.csv",
    ]
    for path in strange:
        obstore.put(world.store, path, b"mine")
    assert world.run()["windows"] == {"loaded": 6}
    assert [str(path) for path in world.staged()] == sorted(strange)
