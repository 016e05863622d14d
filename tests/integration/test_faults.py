"""What faults may never do: become a number, give a secret away, wait for ever, or pass unseen."""

from __future__ import annotations

import importlib.util
import json
import logging
import sqlite3
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pipeline_core import Event, PermanentError, Pipeline, SideError, TransientError, tasks
from pipeline_core.engine.counting import count_many
from pipeline_core.log import JsonFormatter, TextFormatter
from pipeline_sql.connector import SqlConnector

NOW = "2013-03-10T12:00"
PASSWORD = "correct-horse-battery"
WINDOW = {"WINDOW_START_TIME": "2013-03-10T00:00:00-05:00", "WINDOW_END_TIME": "2013-03-10T03:00:00-04:00"}


@pytest.fixture
def sides(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The plugin with the faulty source."""
    monkeypatch.setenv("FAULTY_PASSWORD", PASSWORD)
    place = Path(__file__).parent / "helpers/sides.py"
    spec = importlib.util.spec_from_file_location("sides", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.syspath_prepend(place.parent)
    spec.loader.exec_module(module)
    return module


def faulty(world, **settings: Any) -> dict[str, Any]:
    """A configuration whose source is the faulty one."""
    source = {"type": "faulty", "password": "${env:FAULTY_PASSWORD}", **settings}
    return world.config(source=source, plugins=["sides"], run={"max_attempts": 2, "backoff_s": 0.01})


@pytest.mark.usefixtures("sides")
@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"fault": "transient"}, TransientError),
        ({"fault": "permanent"}, PermanentError),
        ({"fault": "driver"}, ConnectionResetError),
        ({"fault": "none"}, PermanentError),
        ({"fault": "float"}, PermanentError),
        ({"answer": -1}, PermanentError),
    ],
)
def test_a_count_that_is_not_sure_is_an_error_never_a_number(world, settings, error) -> None:
    """Whichever way a connector fails to know: the check raises, nothing is decided."""
    config = faulty(world, **settings)
    with pytest.raises(error):
        tasks.get_source_count(config, WINDOW)
    with pytest.raises(error):
        tasks.pre_validate_counts(config | {"target": config["target"] | {"url": world.url("source")}}, WINDOW)


@pytest.mark.usefixtures("sides")
@pytest.mark.parametrize("many", [[], [1], [1] * 7, [1, 1, 1, 1, 1, -1]])
def test_bulk_counts_are_one_each(world, many) -> None:
    """Too few, too many, or a negative one: the check of many windows raises."""
    world.run()
    with world.pipeline() as pipeline:
        windows = [record.window for record in pipeline.store.records("events")]
    with (
        Pipeline.from_mapping(faulty(world, many=many)) as pipeline,
        pipeline.parts() as parts,
        pytest.raises(PermanentError, match="source: "),
    ):
        count_many(parts, windows)


@pytest.mark.usefixtures("sides")
@pytest.mark.parametrize("fault", ["transient", "permanent", "driver"])
def test_no_secret_is_ever_printed(world, fault: str, caplog: pytest.LogCaptureFixture) -> None:
    """A driver's message gives the password away: no log, event, record, report or repr does."""
    told: list[Event] = []

    class Listener:
        def notify(self, event: Event) -> None:
            told.append(event)

    with Pipeline.from_mapping(faulty(world, fault=fault)) as pipeline:
        listening = Pipeline(pipeline.config, observers=[Listener()])
        with listening, caplog.at_level(logging.DEBUG, logger="pipeline_core"):
            report = listening.run(now=NOW)
            status = listening.status()
            shown = [repr(listening.config), str(listening.config), json.dumps(status.as_mapping()), repr(report)]
            shown += [repr(event) for event in listening.store.events("events")]
            shown += [repr(record) for record in listening.store.records("events")]
            shown += [f"{finding}" for finding in listening.doctor()]
    assert report.quarantined == 6
    assert len(told) > 6
    shown += [repr(event) for event in told]
    for formatter in (TextFormatter(), JsonFormatter()):
        shown += [formatter.format(line) for line in caplog.records]
    assert any("cannot log in with ***" in text for text in shown)
    assert not [text for text in shown if PASSWORD in text]
    stored = b"".join(path.read_bytes() for path in world.folder.glob("records.db*"))
    assert PASSWORD.encode() not in stored


@pytest.mark.usefixtures("sides")
def test_a_fault_that_can_heal_is_tried_again_and_then_quarantined_in_sight(world) -> None:
    """Bounded attempts; the exit code, the status and the events say so."""
    with Pipeline.from_mapping(faulty(world, fault="transient")) as pipeline:
        report = pipeline.run(now=NOW)
        (record, *_) = pipeline.status().quarantined
        events = [event.fields["status"] for event in pipeline.store.events("events", window=record.window)]
    assert report.exit_code == 1
    assert record.attempts == 2
    assert events == ["running", "pending", "running", "quarantined"]


@pytest.mark.parametrize("what", ["count", "heartbeat"])
def test_a_host_without_threads_puts_no_window_into_quarantine(
    world, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both sides are counted one after the other; for a heartbeat the run waits as for a side that is away."""
    plain, left = threading.Thread.start, 2 if what == "heartbeat" else 1_000

    def start(thread: threading.Thread) -> None:
        nonlocal left
        if thread.name.startswith(what) and left:
            left -= 1
            raise RuntimeError("can't start new thread")
        plain(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    assert world.run()["windows"] == {"loaded": 6}
    with world.pipeline() as pipeline:
        assert {(record.attempts, record.crashes) for record in pipeline.store.records("events")} == {(0, 0)}
    assert left < 1_000 if what == "count" else left == 0
    world.assert_whole()


@pytest.mark.parametrize("in_bulk", [True, False])
@pytest.mark.parametrize("end", [KeyboardInterrupt(), SideError("no right to read")])
def test_an_end_does_not_wait_for_the_other_sides_retries(
    world, end: BaseException, in_bulk: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupt or a fault while the target is counted: the source is not tried again, and its wait is cut short."""
    asked: list[str] = []
    failing = threading.Event()

    def count(connector: SqlConnector, *_: object) -> int:
        asked.append(connector.identity["database"])
        if asked[-1].endswith("source.db"):
            failing.set()
            raise TransientError("timed out")
        assert failing.wait(30)
        raise end

    monkeypatch.setattr(SqlConnector, "count_many" if in_bulk else "count", count)
    with world.pipeline(retry={"retries": 1, "wait_s": 2}) as pipeline, pytest.raises(type(end)):
        pipeline.run(now=NOW, **({} if in_bulk else {"limit": 1}))
    assert len(asked) == 2


def test_a_lock_wait_is_waited_out_and_the_whole_publication_repeated(world) -> None:
    """The target is locked for a while by someone else: the window is loaded, once, when the lock is gone."""
    world.run(end="2013-03-10T03:00")  # the table exists
    holder = sqlite3.connect(world.folder / "target.db", check_same_thread=False)
    holder.execute("begin immediate")
    steps: list[str] = []

    class Listener:
        def notify(self, event: Event) -> None:
            steps.append(str(event.fields.get("of", event.step)))
            if event.step == "retrying":
                holder.rollback()

    target = world.config()["target"] | {"timeout_s": 0.2}
    with world.pipeline(target=target, end="2013-03-10T04:00") as pipeline:
        listening = Pipeline(pipeline.config, observers=[Listener()])
        with listening:
            assert listening.run(now=NOW).windows == {"loaded": 1}
    holder.close()
    assert "publish" in steps
    assert steps.count("published") == 1
    world.run()
    world.assert_whole()
