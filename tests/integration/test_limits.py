"""What a run takes of others: rows a second of the source, bytes of the stage."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from attrs import define, field

from pipeline_core import Event, Pipeline, Status, Verdict
from pipeline_core.engine import runner, transfer

NOW = "2013-03-10T12:00"
HOUR_S = 3600


@define
class Clock:
    """Stands in for the module's time: a sleep takes no time, and is added up."""

    now_s: float = 0.0
    rows: list[int] = field(factory=list)

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def notify(self, event: Event) -> None:
        if event.step == "extracting":
            self.rows.append(event.fields["rows"])


def test_rows_per_second_paces_the_extraction(world, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many seconds as there are rows for; no batch holds more than those of one second."""
    clock = Clock()
    monkeypatch.setattr(transfer, "time", clock)
    run = world.config()["run"] | {"rows_per_second": 4, "batch_rows": 1000}
    with world.pipeline(run=run) as plain, Pipeline(plain.config, observers=[clock]) as pipeline:
        report = pipeline.run(now=NOW)
    assert report.windows == {"loaded": 6}
    assert clock.now_s == pytest.approx(report.rows / 4)
    assert clock.rows[:2] == [4, 8]
    world.assert_whole()


def test_a_request_to_stop_ends_the_pause(
    world, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """A worker that waits for the next second's rows brings its window back."""

    class Impatient:
        def notify(self, event: Event) -> None:
            if event.step == "extracting":
                signal.pthread_kill(main, signal.SIGINT)

    main = threading.main_thread().ident
    assert main is not None
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background begins with it ignored
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, handler))
    run = world.config()["run"] | {"rows_per_second": 1}
    monkeypatch.setattr(transfer, "time", Asleep())
    with world.pipeline(run=run) as plain, Pipeline(plain.config, observers=[Impatient()]) as pipeline:
        with pytest.raises(KeyboardInterrupt):
            pipeline.run(now=NOW)
        assert pipeline.status().counts["pending"] == 6


class Asleep:
    """A clock that stands still: what waits by it never ends by itself."""

    def monotonic(self) -> float:
        return 0.0

    def sleep(self, seconds: float) -> None:
        del seconds
        time.sleep(0.01)


@contextmanager
def staged_elsewhere(pipeline: Pipeline, wait_s: float = HOUR_S) -> Iterator[str]:
    """The oldest window staged by a worker that failed later, and in backoff for an hour; yields the key."""
    pipeline.plan(now=NOW)
    order = runner.Order(now_us=pipeline.instant_us(NOW))
    with pipeline.parts() as parts:
        (claim,) = parts.store.claim(runner.claim_request(pipeline.config, parts.store, order))
        staged = transfer.extract(parts, claim, 0)
        parts.store.settle(claim, Verdict(Status.PENDING, "failed", wait_s=wait_s))
        yield staged.key


def limited(world, **run: Any) -> dict[str, Any]:
    """The configuration with these limits, and hardly any patience."""
    retry = {"retries": 2, "wait_s": 0.01}
    return {"run": world.config()["run"] | {"give_up_after": "0s"} | run, "retry": retry}


def test_nothing_is_extracted_into_a_full_stage(world) -> None:
    """The windows stay pending, none is to blame; the report says what is full, exit code 3."""
    with world.pipeline() as pipeline, staged_elsewhere(pipeline):
        pass
    with world.pipeline(**limited(world, stage_max_bytes=1)) as pipeline:
        report = pipeline.run(now=NOW)
        records = pipeline.store.records("events")
    assert report.exit_code == 3
    assert report.undone.startswith("the stage was away for ")
    assert "stage: full: " in report.undone
    assert "run.stage_max_bytes is 1; they go when their windows are done" in report.undone
    assert report.undone.endswith("; 6 windows are pending")
    assert {(record.status, record.attempts) for record in records} == {("pending", 0)}
    assert "events" not in world.tables()


def test_a_worker_waits_for_room(world) -> None:
    """Another worker's window ends meanwhile, its files go, and the extraction goes on."""
    told: list[str] = []

    class Finisher:
        def notify(self, event: Event) -> None:
            if event.fields.get("of") == "find room in the stage":
                told.append(key)
                with plain.parts() as parts:
                    parts.stage.remove(key)

    with world.pipeline() as plain, staged_elsewhere(plain) as key:
        with plain.parts() as parts:
            size = sum(file.bytes for staged in parts.stage.find(key) for file in staged.files)
        with (
            world.pipeline(**limited(world, stage_max_bytes=size)) as again,
            Pipeline(again.config, observers=[Finisher()]) as pipeline,
        ):
            report = pipeline.run(now=NOW, start="2013-03-10T03:00", end="2013-03-10T04:00")
    assert told == [key]
    assert (report.windows, report.undone) == ({"loaded": 1}, "")


def test_a_windows_own_files_do_not_keep_it_out(world) -> None:
    """They no longer fit the source, and go when it is done."""
    with world.pipeline() as plain, staged_elsewhere(plain, wait_s=0) as key, plain.parts() as parts:
        size = sum(file.bytes for staged in parts.stage.find(key) for file in staged.files)
    world.query("source", "delete from events where id in (1, 2, 3)")
    with world.pipeline(**limited(world, stage_max_bytes=size)) as pipeline:
        assert pipeline.run(now=NOW, limit=1).windows == {"loaded": 1}


def test_a_window_larger_than_the_stage_is_named(world) -> None:
    """It is quarantined with its size and the limit, and leaves no file."""
    with world.pipeline(**limited(world, stage_max_bytes=100)) as pipeline:
        report = pipeline.run(now=NOW)
        (record, *_) = pipeline.status().quarantined
    assert report.windows == {"quarantined": 6}
    assert "this window alone takes " in record.reason
    assert "run.stage_max_bytes is 100; raise it, or cut finer windows (granularity)" in record.reason
    assert world.staged() == []


def test_many_workers_with_little_room(world) -> None:
    """Everything is done in the end."""
    config = limited(world, stage_max_bytes=20_000, give_up_after="30min", workers=4)
    with world.pipeline(**config) as pipeline:
        assert pipeline.run(now=NOW).windows == {"loaded": 6}
    world.assert_whole()
