"""An upload that goes on while no worker waits for it, task by task, with the target on Snowflake's stand-in."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from pipeline_core import SideError, TransientError, tasks
from pipeline_snowflake.connector import SnowflakeConnector
from shell import HELPERS
from worlds import World

NOW = "2013-03-10T12:00"
STEP = """
import json, sys
from pipeline_core import tasks
name, config, record = (json.loads(argument) for argument in sys.argv[1:])
print(json.dumps(getattr(tasks, name)(config, record)))
"""
on_snowflake = pytest.mark.parametrize("any_world", ["snowflake"], indirect=True)


def elsewhere(name: str, config: dict[str, Any], record: dict[str, Any]) -> tuple[int, Any]:
    """A task in a process of its own, JSON in and out: its exit code, and its result where it ended well."""
    place = {**os.environ, "PYTHONPATH": str(HELPERS)}
    words = [sys.executable, "-c", STEP, *(json.dumps(word) for word in (name, config, record))]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=place)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode, None if done.returncode else json.loads(done.stdout)


def staged(config: dict[str, Any]) -> dict[str, Any]:
    """The record of the oldest window, extracted."""
    record = tasks.store_new_and_pass_valid_record(config, now=NOW)["record"]
    return tasks.extract_source_data(config, record)["record"]


def submitted(config: dict[str, Any]) -> dict[str, Any]:
    """The record of the oldest window, submitted."""
    return tasks.submit_staged_data(config, staged(config))["record"]


def polled(config: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    """The answer of the first poll that says that the upload has ended, or that nothing is left to do."""
    while True:
        answer = json.loads(json.dumps(tasks.poll_submitted_data(config, record)))
        if answer["exit_dag"] or answer["uploaded"]:
            return answer


def uploads(world: World) -> set[str]:
    """The tables of submitted uploads that are there."""
    return {name for name in world.tables() if name.startswith("pipeline_upload_")}


@contextmanager
def held(server: Any) -> Iterator[None]:
    """As long as it lasts, nothing that was submitted begins at the server."""
    server.hold(True)
    try:
        yield
    finally:
        server.hold(False)


def release(world: World) -> None:
    """By hand: who held the claim has lost it."""
    with world.pipeline() as pipeline:
        pipeline.release(start="2013-03-10", end="2013-03-11", reason="its orchestrator is gone")


def the_rest(world: World) -> None:
    """Moves the other windows, and finds everything whole."""
    world.run()
    world.assert_whole()


@on_snowflake
def test_no_process_waits_for_the_upload(any_world: World, snowflake_server: Any) -> None:
    """Each step in a process of its own; while the server is held, polls say no and a load is refused."""
    config = any_world.config()
    with held(snowflake_server):
        _, answer = elsewhere("submit_staged_data", config, staged(config))
        record = answer["record"]
        for _ in range(2):
            _, answer = elsewhere("poll_submitted_data", config, record)
            assert (answer["exit_dag"], answer["uploaded"]) == (False, False)
            record = answer["record"]
        with pytest.raises(TransientError, match="the upload goes on"):
            tasks.load_staged_data(config, record)
    record = polled(config, record)["record"]
    _, loaded = elsewhere("load_staged_data", config, record)
    assert len(uploads(any_world)) == 1
    _, audited = elsewhere("audit_and_clean_up", config, loaded["record"])
    assert (audited["outcome"], audited["target_count"]) == ("loaded", loaded["rows"])
    the_rest(any_world)


KILLS = [
    ("submit_staged_data", "uploading"),
    ("submit_staged_data", "submitted"),
    ("poll_submitted_data", "polled"),
    ("load_staged_data", "inserted"),
    ("load_staged_data", "published"),
    ("audit_and_clean_up", "audited"),
    ("audit_and_clean_up", "settled"),
    ("audit_and_clean_up", "cleaned"),
]


@on_snowflake
@pytest.mark.parametrize(("task", "step"), KILLS)
def test_killed_at_a_step_of_a_task(any_world: World, task: str, step: str) -> None:
    """SIGKILL, and the orchestrator runs the same task again: the end is whole, and nothing lies about."""
    config = any_world.config()
    deadly = config | {"plugins": ["saboteur"], "observers": [{"type": "saboteur", "step": step}]}
    record = staged(config)
    for name in ("submit_staged_data", "poll_submitted_data", "load_staged_data", "audit_and_clean_up"):
        if name == task:
            assert elsewhere(name, deadly, record) == (-signal.SIGKILL, None)
        answer = polled(config, record) if name == "poll_submitted_data" else getattr(tasks, name)(config, record)
        record = answer.get("record", record)
    assert answer["outcome"] == "loaded"
    assert uploads(any_world) == set()
    the_rest(any_world)


@on_snowflake
def test_each_task_may_be_run_again(any_world: World) -> None:
    """Twice each, and once more when the window is done; the last submission is the one that counts."""
    config = any_world.config()
    record = staged(config)
    former, record = (tasks.submit_staged_data(config, record)["record"] for _ in range(2))
    assert len(uploads(any_world)) == 1
    with pytest.raises(TransientError, match="submitted again"):
        tasks.poll_submitted_data(config, former)
    assert polled(config, record)["uploaded"]
    assert polled(config, record)["uploaded"]
    rows = [tasks.load_staged_data(config, record)["rows"] for _ in range(2)]
    assert rows[0] == rows[1] > 0
    assert tasks.audit_and_clean_up(config, record) == tasks.audit_and_clean_up(config, record)
    for task in (tasks.submit_staged_data, tasks.poll_submitted_data, tasks.load_staged_data):
        assert task(config, record)["exit_dag"] is True
    the_rest(any_world)


@on_snowflake
def test_a_claim_that_is_lost_cancels_the_upload(any_world: World, snowflake_server: Any) -> None:
    """Whoever polls or loads under it afterwards is told to skip, and the server stops."""
    config = any_world.config()
    for task in (tasks.poll_submitted_data, tasks.load_staged_data):
        with held(snowflake_server):
            record = submitted(config)
            token = record["PIPELINE"].pop("upload")
            release(any_world)
            record["PIPELINE"]["upload"] = token
            assert len(uploads(any_world)) == 1
            answer = task(config, record)
            assert answer["exit_dag"] is True
            assert answer["reason"].startswith("claimed elsewhere")
            assert uploads(any_world) == set()
    the_rest(any_world)


@on_snowflake
def test_another_worker_drops_what_was_submitted_before(any_world: World, snowflake_server: Any) -> None:
    """It loads the window itself; the server's late rows arrive nowhere."""
    config = any_world.config()
    with held(snowflake_server):
        record = submitted(config)
        release(any_world)
        any_world.run()
        any_world.assert_whole()
    assert polled(config, record)["reason"].startswith("claimed elsewhere")
    any_world.assert_whole()


@on_snowflake
def test_a_released_record_gives_its_upload_up(any_world: World, snowflake_server: Any) -> None:
    """By the record that carries it the server is told to stop; without it the table is gone all the same."""
    config = any_world.config() | {"run": any_world.config()["run"] | {"backoff_s": 0.0}}
    with held(snowflake_server):
        for carried in (True, False):
            record = submitted(config)
            query = json.loads(record["PIPELINE"]["upload"])["query"]
            if not carried:
                del record["PIPELINE"]["upload"]
            assert tasks.release_record(config, record)["status"] == "pending"
            assert uploads(any_world) == set()
            with closing(any_world.connection("target")) as connection:
                assert connection.get_query_status(query).name == ("ABORTED" if carried else "RUNNING")
    the_rest(any_world)


@on_snowflake
def test_a_record_is_released_though_its_upload_cannot_be_cancelled(
    any_world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is left of it expires; the window waits for nothing."""
    config = any_world.config()
    record = submitted(config)

    def away(*given: object) -> None:
        raise TransientError("the target is away")

    with monkeypatch.context() as patch:
        for verb in ("cancel", "discard"):
            patch.setattr(SnowflakeConnector, verb, away)
        assert tasks.release_record(config, record)["status"] == "pending"
    assert sum("cleanup failed" in each.getMessage() for each in caplog.records) == 2
    assert len(uploads(any_world)) == 1
    the_rest(any_world)


@on_snowflake
def test_a_poll_renews_the_lease(any_world: World, snowflake_server: Any) -> None:
    """So that a window whose upload takes longer is not taken for abandoned."""
    config = any_world.config()
    leases = []
    with held(snowflake_server):
        record = submitted(config)
        for _ in range(2):
            tasks.poll_submitted_data(config, record)
            leases += any_world.query("records", "select due_us from pipeline_core_records where status = 'running'")
        tasks.release_record(config, record)
    assert leases[0] < leases[1]
    the_rest(any_world)


def test_a_target_that_cannot_defer_uploads_when_it_loads(world: World) -> None:
    """The same tasks, the same end: nothing is submitted, and the poll says yes at once."""
    config = world.config()
    record = submitted(config)
    assert "upload" not in record["PIPELINE"]
    answer = tasks.poll_submitted_data(config, record)
    assert (answer["exit_dag"], answer["uploaded"]) == (False, True)
    assert tasks.load_staged_data(config, answer["record"])["rows"] > 0
    assert tasks.audit_and_clean_up(config, record)["outcome"] == "loaded"
    the_rest(world)


def test_an_upload_of_another_target_is_not_gone_on_with(world: World) -> None:
    """Nothing is published in its place, the window is not to blame, and it can be released."""
    config = world.config()
    record = submitted(config)
    record["PIPELINE"]["upload"] = "somebody's"
    for task in (tasks.poll_submitted_data, tasks.load_staged_data):
        with pytest.raises(SideError, match="release the record"):
            task(config, record)
    assert tasks.release_record(config, record)["status"] == "pending"
    the_rest(world)
