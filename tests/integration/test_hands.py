"""What a person does to windows: retry, reload, skip and release, from Python, from the command line and as a task."""

from __future__ import annotations

import getpass
import socket
from typing import Any

import pytest

from pipeline_core import ClaimLostError, ConfigError, Status, Verdict, Window, tasks
from pipeline_core.engine.runner import Order, claim_request

NOW = "2013-03-10T12:00"
ME = f"{getpass.getuser()}@{socket.gethostname()}"
SECOND, THIRD = "2013-03-10T03:00", "2013-03-10T04:00"


def record_at(pipeline: Any, start: str) -> Any:
    """The record of the window that starts there."""
    at_us = pipeline.instant_us(start)
    (found,) = [record for record in pipeline.store.records("events") if record.window.start_us == at_us]
    return found


def touched(report: Any) -> list[tuple[str, str]]:
    """The windows that a hand was laid on, and what they were."""
    return [(each.window.start.in_timezone("America/New_York").format("HH:mm"), each.was) for each in report.windows]


def quarantine(pipeline: Any, start: str) -> None:
    """Ends a claim on that window as a bad row would."""
    pipeline.plan(now=NOW)
    (claim,) = pipeline.store.claim(claim_request(pipeline.config, pipeline.store, order(pipeline, start)))
    pipeline.store.settle(claim, Verdict(Status.QUARANTINED, "bad rows", attempt=True))


def order(pipeline: Any, start: str) -> Order:
    """An order for the window that starts there alone."""
    at_us = pipeline.instant_us(start)
    return Order(Window.from_us(at_us, at_us + 1), now_us=pipeline.instant_us(NOW))


def test_retry_tries_quarantined_windows_again(any_world: Any) -> None:
    """Only those of the range, from their first attempt on; a dry run names them and leaves them."""
    world = any_world
    with world.pipeline() as pipeline:
        quarantine(pipeline, SECOND)
        quarantine(pipeline, THIRD)
        dry = pipeline.retry(start=SECOND, end=THIRD, reason="mended", dry_run=True)
        assert (touched(dry), dry.dry_run) == ([("03:00", "quarantined")], True)
        assert pipeline.status().counts["quarantined"] == 2
        done = pipeline.retry(start=SECOND, end=THIRD, reason="mended")
        assert (touched(done), done.dry_run) == (touched(dry), False)
        record = record_at(pipeline, SECOND)
        assert (record.status, record.attempts, record.reason) == ("pending", 0, f"retried by {ME}: mended")
        assert touched(pipeline.retry(start=SECOND, end=THIRD, reason="mended")) == []
        assert touched(pipeline.retry(window="2013-03-10T05:59", reason="mended")) == [("04:00", "quarantined")]
        assert pipeline.run(now=NOW).windows == {"loaded": 6}
    world.assert_whole()


def test_reload_moves_rows_though_the_counts_agree(any_world: Any) -> None:
    """The decision says why it goes on; the target holds the source's rows again, and the request is over."""
    world = any_world
    world.run()
    world.query("target", "update events set note = 'tampered'")
    with world.pipeline() as pipeline:
        assert len(touched(pipeline.reload(start="2013-03-10", reason="tampered with", dry_run=True))) == 6
        assert pipeline.run(now=NOW).windows == {}
        assert touched(pipeline.reload(window=record_at(pipeline, SECOND).window, reason="tampered with")) == [
            ("03:00", "done")
        ]
        record = tasks.store_new_and_pass_valid_record(world.config(), now=NOW)["record"]
        counts = tasks.pre_validate_counts(world.config(), record)
        assert (counts["exit_dag"], counts["reason"]) == (False, "Proceed with processing: reload requested")
        assert counts["source_count"] == counts["target_count"]
        tasks.release_record(world.config(), record)
        assert len(touched(pipeline.reload(start="2013-03-10", reason="tampered with"))) == 6
        assert pipeline.run(now=NOW).windows == {"loaded": 6}
        assert pipeline.run(now=NOW).windows == {}
        log = [event.fields for event in pipeline.store.events("events") if event.step == "superseded"]
        assert {fields["reason"] for fields in log} == {f"reload by {ME}: tampered with"}
    world.assert_whole()


def test_what_is_reopened_before_begin_is_done_again(any_world: Any) -> None:
    """Once begin has moved on, what a check reopens or a person reloads is done all the same, a skipped one too."""
    world = any_world
    with world.pipeline() as pipeline:
        quarantine(pipeline, SECOND)
        pipeline.skip(window=SECOND, reason="no such data")
    world.run()
    world.query("target", "delete from events where id = 1")
    with world.pipeline(begin="2013-03-10T06:00") as pipeline:
        assert pipeline.check(reopen=True).reopened == 1
        pipeline.reload(window=SECOND, reason="there is some now")
        assert pipeline.run(now=NOW).windows == {"loaded": 2}
    world.assert_whole()


def test_a_reload_reads_the_source_again(world: Any) -> None:
    """What an attempt before it has staged is not loaded, though it holds as many rows."""
    with world.pipeline() as pipeline:
        record = tasks.store_new_and_pass_valid_record(world.config(), now=NOW)["record"]
        assert tasks.extract_source_data(world.config(), record)["rows"] > 0
        tasks.release_record(world.config(), record)
        assert world.staged() != []
        world.query("source", "update events set note = 'corrected'")
        pipeline.reload(start="2013-03-10", reason="corrected")
        assert pipeline.run(now=NOW).windows == {"loaded": 6}
    world.assert_whole()


def test_only_a_reload_that_accepts_it_shrinks_a_window(any_world: Any) -> None:
    """A reload alone is held to the evidence; the way through is named, and gone once the window is done."""
    world = any_world
    world.run()
    world.query("source", "delete from events where ts < '2013-03-10 07:00:00'")
    with world.pipeline() as pipeline:
        pipeline.reload(start="2013-03-10", end=SECOND, reason="purged")
        assert pipeline.run(now=NOW).windows == {"quarantined": 1}
        pipeline.reload(start="2013-03-10", end=SECOND, reason="purged", accept_shrink=True)
        assert pipeline.run(now=NOW).windows == {"verified empty": 1}
        record = record_at(pipeline, "2013-03-10")
        assert (record.verified_rows, record.asked) == (0, None)
    world.assert_whole()


def test_a_skipped_window_is_left_alone_and_named(any_world: Any) -> None:
    """Planning, checking and running leave it; status says who and why; a reload takes it back in."""
    world = any_world
    with world.pipeline() as pipeline:
        quarantine(pipeline, SECOND)
        assert touched(pipeline.skip(start=SECOND, end="2013-03-10T06:00", reason="no such data")) == [
            ("03:00", "quarantined"),
            ("04:00", "pending"),
        ]
        assert pipeline.run(now=NOW).windows == {"loaded": 4}
        assert pipeline.check().checked == 4
        status = pipeline.status()
        assert [record.reason for record in status.skipped] == [f"skipped by {ME}: no such data"] * 2
        assert len(status.coverage) == 1
        assert status.exit_code == 0
    other = world.config()["target"] | {"table": "elsewhere"}
    assert world.run(target=other)["windows"] == {"loaded": 4}
    with world.pipeline() as pipeline:
        pipeline.run(now=NOW)
        pipeline.reload(start=SECOND, end="2013-03-10T06:00", reason="it came after all")
        assert pipeline.run(now=NOW).windows == {"loaded": 2}
        assert pipeline.status().skipped == []
    assert world.rows("target") == world.rows("source")


def test_release_takes_a_window_from_its_holder(any_world: Any) -> None:
    """Pending at once; the holder can no longer settle, and another worker does the window."""
    world = any_world
    with world.pipeline() as pipeline:
        pipeline.plan(now=NOW)
        (claim,) = pipeline.store.claim(claim_request(pipeline.config, pipeline.store, order(pipeline, SECOND)))
        assert touched(pipeline.release(window=SECOND, reason="its host is gone")) == [("03:00", "running")]
        with pytest.raises(ClaimLostError):
            pipeline.store.resume(claim, 60)
        assert pipeline.run(now=NOW).windows == {"loaded": 6}
    world.assert_whole()


@pytest.mark.parametrize(
    "chosen", [{}, {"start": SECOND, "window": THIRD}, {"window": "2012-01-01"}], ids=["none", "both", "nowhere"]
)
@pytest.mark.parametrize("verb", ["retry", "reload", "skip", "release"])
def test_a_hand_is_laid_on_windows_that_were_named(world: Any, verb: str, chosen: dict[str, str]) -> None:
    """Neither on everything nor on nothing."""
    world.run()
    with world.pipeline() as pipeline, pytest.raises(ConfigError, match="window"):
        getattr(pipeline, verb)(reason="why", **chosen)


def test_hands_on_the_command_line(any_shell: Any) -> None:
    """Each command names its windows, as text and as JSON, with exit code 0; status shows who skipped, and why."""
    shell = any_shell
    with shell.world.pipeline() as pipeline:
        quarantine(pipeline, SECOND)
        quarantine(pipeline, THIRD)
    dry = shell("retry", "--window", SECOND, "--reason", "mended", "--dry-run", "--json")
    assert dry.code == dry.json["exit_code"] == 0
    second = {"start": "2013-03-10T07:00:00+00:00", "end": "2013-03-10T08:00:00+00:00", "was": "quarantined"}
    expected = {
        "pipeline": "events",
        "action": "retry",
        "reason": "mended",
        "dry_run": True,
        "windows": [second],
        "left": {},
    }
    assert dry.json == {**expected, "exit_code": 0}
    assert shell("status").code == 1
    assert "would retry 1 windows: mended" in shell("retry", "--window", SECOND, "--reason", "mended", "--dry-run").out
    said = shell("retry", "--from", SECOND, "--to", THIRD, "--reason", "mended")
    assert (said.code, said.out.splitlines()[1]) == (0, "  2013-03-10 03:00 EDT to 04:00 EDT, was quarantined")
    assert shell("skip", "--window", THIRD, "--reason", "never existed").code == 0
    status = shell("status")
    assert status.code == 0
    assert f"skipped by {ME}: never existed" in status.out
    assert [each["reason"] for each in shell("status", "--json").json["skipped"]] == [f"skipped by {ME}: never existed"]
    assert shell("run", "--json").json["windows"] == {"loaded": 5}
    assert (
        len(shell("reload", "--from", "2013-03-10", "--to", THIRD, "--reason", "again", "--json").json["windows"]) == 2
    )
    assert shell("run", "--json").json["windows"] == {"loaded": 2}
    purged = "delete from events where ts < '2013-03-10 07:00:00'"
    shell.world.query("source", purged)
    shell("reload", "--to", SECOND, "--reason", "purged")
    assert shell("run").code == 1
    assert shell("reload", "--to", SECOND, "--reason", "purged", "--accept-shrink").code == 0
    assert shell("run", "--json").json["windows"] == {"verified empty": 1}
    record = tasks.store_new_and_pass_valid_record(shell.world.config(), now=NOW)["record"]
    assert record is None
    shell("reload", "--window", SECOND, "--reason", "again")
    tasks.store_new_and_pass_valid_record(shell.world.config(), now=NOW)
    assert [
        each["was"] for each in shell("release", "--window", SECOND, "--reason", "x", "--json").json["windows"]
    ] == ["running"]


@pytest.mark.parametrize(
    ("verb", "left", "instead"),
    [
        ("retry", {"done": 1}, "1 done: `reload` moves it again"),
        ("skip", {"done": 1}, "1 done: `reload` moves it again"),
        ("release", {"done": 1}, "1 done: `reload` moves it again"),
        ("retry", {"pending": 1}, "1 pending: the next `run` tries it, `skip` takes it out"),
        ("release", {"quarantined": 1}, "1 quarantined: `retry` tries it again, `skip` takes it out"),
        ("skip", {"running": 1}, "1 running: `release` takes it from its holder"),
    ],
)
def test_a_hand_that_does_not_fit_says_what_does(shell: Any, verb: str, left: dict[str, int], instead: str) -> None:
    """Nothing is done, which is no failure; but why, and what would do it, is said."""
    (status,) = left
    with shell.world.pipeline() as pipeline:
        if status == "done":
            pipeline.run(now=NOW)
        pipeline.plan(now=NOW)
        if status == "quarantined":
            quarantine(pipeline, SECOND)
        if status == "running":
            pipeline.store.claim(claim_request(pipeline.config, pipeline.store, order(pipeline, SECOND)))
        before = shell.statuses()
        arguments = [verb, "--window", SECOND, "--reason", "why"]
        said = shell(*arguments)
        assert (said.code, said.out.splitlines()[1:]) == (0, [f"  {instead}"])
        found = shell(*arguments, "--json").json
        assert (found["windows"], found["left"]) == ([], left)
        assert shell.statuses() == before


@pytest.mark.parametrize("command", ["retry", "reload", "skip", "release"])
def test_a_hand_needs_a_reason_and_a_window(shell: Any, command: str) -> None:
    """Without either it exits 2 and says what is missing."""
    for arguments in (["--window", SECOND], ["--reason", "why"]):
        refused = shell(command, *arguments)
        assert refused.code == 2
        assert "reason" in refused.err if "--window" in arguments else "window" in refused.err


def test_a_cleared_task_acts_on_its_own_window(any_world: Any) -> None:
    """Never on the oldest: done already, it says how; with reload it moves again; quarantined, it says why."""
    world = any_world
    config = world.config()
    span = {"now": NOW, "start": SECOND, "end": THIRD}
    record = tasks.store_new_and_pass_valid_record(config, **span)["record"]
    assert record["WINDOW_START_TIME"] == "2013-03-10T03:00:00-04:00"
    held = tasks.store_new_and_pass_valid_record(config, **span)
    assert (held["exit_dag"], "is running" in held["reason"]) == (True, True)
    tasks.extract_source_data(config, record)
    tasks.load_staged_data(config, record)
    recorded = tasks.audit_and_clean_up(config, record)["reason"]
    cleared = tasks.store_new_and_pass_valid_record(config, **span)
    assert cleared == {"exit_dag": True, "record": None, "reason": recorded}
    again = tasks.store_new_and_pass_valid_record(config, **span, reload=True)
    assert again["record"]["WINDOW_START_TIME"] == record["WINDOW_START_TIME"]
    assert tasks.pre_validate_counts(config, again["record"])["reason"].endswith("reload requested")
    with world.pipeline() as pipeline:
        pipeline.release(window=SECOND, reason="over")
        quarantine(pipeline, SECOND)
    assert "is quarantined: bad rows" in tasks.store_new_and_pass_valid_record(config, **span)["reason"]
