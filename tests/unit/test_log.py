"""Events and durations in the log, and what a formatter makes of them."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest

from pipeline_core import secrets
from pipeline_core.log import LOGGER, JsonFormatter, Reporter, TextFormatter, timed
from pipeline_core.record import Event, Status
from pipeline_core.secrets import Secret
from pipeline_core.window import Window

WINDOW = Window.from_us(1_362_891_600_000_000, 1_362_898_800_000_000)
AT_US = 1_362_900_000_000_000


class Listening:
    """An observer that keeps what it was told."""

    def __init__(self) -> None:
        self.told: list[Event] = []

    def notify(self, event: Event, /) -> None:
        self.told.append(event)


class Failing:
    """An observer that raises."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def notify(self, _event: Event, /) -> None:
        raise self.error


class Output(logging.StreamHandler[io.StringIO]):
    """A program's handler, with what it has written."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__(io.StringIO())
        self.setFormatter(formatter)

    @property
    def lines(self) -> list[str]:
        return self.stream.getvalue().splitlines()

    @property
    def objects(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.lines]


@pytest.fixture
def text() -> Iterator[Output]:
    """What the text formatter prints, at DEBUG."""
    yield from installed(TextFormatter())


@pytest.fixture
def jsonl() -> Iterator[Output]:
    """What the JSON formatter prints, at DEBUG."""
    yield from installed(JsonFormatter())


@pytest.fixture
def password() -> Iterator[str]:
    """A secret that was revealed, with what JSON would escape."""
    yield Secret('pä"ss\\wörd').reveal()
    secrets._revealed.clear()  # the only way to forget it: no program has a reason to


def installed(formatter: logging.Formatter) -> Iterator[Output]:
    output = Output(formatter)
    level = LOGGER.level
    LOGGER.addHandler(output)
    LOGGER.setLevel(logging.DEBUG)
    yield output
    LOGGER.setLevel(level)
    LOGGER.removeHandler(output)


def reporter(*observers: object) -> Reporter:
    return Reporter("flights", lambda: AT_US, observers)  # type: ignore[arg-type]


def test_an_event_is_one_line_for_people(text: Output) -> None:
    """Pipeline, window, step, then the fields; numbers rounded, texts with blanks in quotes, None left out."""
    reporter().tell("counted", WINDOW, source=12, target=0, seconds=0.0123456, reason="Proceed now", outcome=None)
    (line,) = text.lines
    time, level, message = line.split(" ", 2)
    assert (time[-1], level) == ("Z", "INFO")
    assert message == (
        "flights 2013-03-10T05:00:00Z/2013-03-10T07:00:00Z counted "
        'source=12 target=0 seconds=0.012 reason="Proceed now"'
    )


def test_a_line_of_another_library_says_whose_it_is() -> None:
    """Ours need not; those of our own loggers' children neither."""
    formatter = TextFormatter()
    lines = [
        formatter.format(logging.LogRecord(name, logging.WARNING, "", 0, "%s is gone", ("it",), None))
        for name in ("urllib3.connectionpool", "pipeline_core", "pipeline_core.engine", "pipeline_corelike")
    ]
    assert [line.split(" ", 1)[1] for line in lines] == [
        "WARNING urllib3.connectionpool: it is gone",
        "WARNING it is gone",
        "WARNING it is gone",
        "WARNING pipeline_corelike: it is gone",
    ]


def test_an_event_is_returned_and_observed_as_logged() -> None:
    """Every observer gets the one event that the caller gets, at the time of the store's clock."""
    one, two = Listening(), Listening()
    event = reporter(one, two).tell("counted", WINDOW, source=0, status=Status.DONE)
    assert event == Event(AT_US, "flights", WINDOW, "counted", {"source": 0, "status": "done"})
    assert one.told == two.told == [event]


def test_an_event_is_one_flat_json_object(jsonl: Output) -> None:
    """Time, level, logger, message, pipeline, window and step, and the fields beside them; 0 and false are values."""
    reporter().tell("counted", WINDOW, level=logging.WARNING, source=0, reused=False, nested={"a": [1, None]})
    (found,) = jsonl.objects
    assert found.pop("time").endswith("Z")  # type: ignore[attr-defined]
    assert found == {
        "level": "WARNING",
        "logger": "pipeline_core",
        "message": "flights 2013-03-10T05:00:00Z/2013-03-10T07:00:00Z counted "
        'source=0 reused=false nested={"a": [1, null]}',
        "pipeline": "flights",
        "window_start": "2013-03-10T05:00:00Z",
        "window_end": "2013-03-10T07:00:00Z",
        "step": "counted",
        "source": 0,
        "reused": False,
        "nested": {"a": [1, None]},
    }


def test_no_field_name_clashes(jsonl: Output) -> None:
    """Names that a log record or the JSON line has for itself are good names for fields."""
    names = ["name", "msg", "args", "module", "message", "time", "pipeline", "exc_info", "taskName", "window_start"]
    reporter().tell("counted", WINDOW, **dict.fromkeys(names, "mine"))
    (found,) = jsonl.objects
    assert (found["pipeline"], found["window_start"]) == ("flights", "2013-03-10T05:00:00Z")
    assert (found["pipeline_"], found["window_start_"], found["time_"]) == ("mine", "mine", "mine")
    assert (found["name"], found["args"], found["taskName"]) == ("mine", "mine", "mine")


def test_values_that_json_does_not_know_become_text(jsonl: Output) -> None:
    """Infinity, bytes, a set, a window, an exception: the line stays valid JSON."""
    event = reporter().tell("counted", ratio=float("inf"), seen={1}, window_of=WINDOW, error=ValueError("no"))
    (found,) = jsonl.objects
    expected = {"ratio": "inf", "seen": [1], "window_of": str(WINDOW), "error": "no"}
    assert {name: found[name] for name in expected} == expected
    assert event.fields == expected


def test_a_secret_is_nowhere(password: str, text: Output, jsonl: Output) -> None:
    """Not in a field, however deep, nor in its name, nor in what an observer gets; nor in a message or a traceback."""
    listening = Listening()
    telling = reporter(Failing(ValueError(f"as {password}")), listening)
    event = telling.tell(f"asked {password}", WINDOW, error=f"login {password}", deep=[{password: {password}}])
    error = RuntimeError(f"refused {password}")
    LOGGER.error("cannot open %s", password, exc_info=error)
    shown = repr(event) + repr(listening.told) + "".join(text.lines + jsonl.lines)
    assert "w\\xf6rd" not in shown
    assert "wörd" not in shown
    assert "w\\u00f6rd" not in shown
    assert event.fields == {"error": "login ***", "deep": [{"***": ["***"]}]}
    assert "refused ***" in str(jsonl.objects[-1]["exception"])


def test_a_programs_own_formatter_shows_no_secret_either(password: str) -> None:
    """What the reporter hands to the log is clean before any formatter: an event, and an observer's traceback."""
    output = Output(logging.Formatter("%(message)s %(fields)s", defaults={"fields": ""}))
    LOGGER.addHandler(output)
    try:
        reporter(Failing(ValueError(f"as {password}"))).tell("asked", level=logging.ERROR, error=f"login {password}")
    finally:
        LOGGER.removeHandler(output)
    assert "ValueError: as ***" in output.stream.getvalue()
    assert "'error': 'login ***'" in output.stream.getvalue()
    assert password not in output.stream.getvalue()


def test_a_failing_observer_harms_nobody(text: Output) -> None:
    """The others are told, the caller goes on, and the log names the observer, once a step."""
    listening = Listening()
    telling = reporter(Failing(ValueError("broken")), listening)
    for _ in range(3):
        telling.tell("counted", WINDOW)
    telling.tell("staged", WINDOW)
    assert [event.step for event in listening.told] == ["counted"] * 3 + ["staged"]
    complaints = [line for line in text.lines if "WARNING observer" in line]
    assert len(complaints) == 2
    assert all("Failing failed at step" in line for line in complaints)
    assert sum("ValueError: broken" in line for line in text.lines) == 2


def test_an_interrupt_in_an_observer_goes_on() -> None:
    """Ctrl-C during an observer's work ends the run as it does anywhere else."""
    with pytest.raises(KeyboardInterrupt):
        reporter(Failing(KeyboardInterrupt())).tell("counted")


def test_the_level_decides() -> None:
    """An event below the level is observed and not printed; the caller's own place is in the record."""
    output = Output(logging.Formatter("%(funcName)s %(message)s"))
    listening = Listening()
    LOGGER.addHandler(output)
    try:
        telling = reporter(listening)
        telling.tell("extracting", level=logging.DEBUG)
        telling.tell("staged", level=logging.WARNING)
    finally:
        LOGGER.removeHandler(output)
    assert output.lines == ["test_the_level_decides flights staged"]
    assert len(listening.told) == 2


def test_a_block_is_measured(text: Output) -> None:
    """`seconds` grows during the block and stands still afterwards; without a name nothing is logged."""
    with timed() as watch:
        during = watch.seconds
    after = watch.seconds
    assert 0 <= during <= after == watch.seconds
    assert text.lines == []


def test_a_function_is_measured_at_each_call(jsonl: Output) -> None:
    """As a decorator it logs the duration of every call, and keeps the function's result and name."""

    @timed("planned", level=logging.INFO, of=3)
    def plan(windows: int) -> int:
        return windows

    assert [plan(1), plan(2), plan.__name__] == [1, 2, "plan"]
    assert [(line["step"], line["level"], line["of"]) for line in jsonl.objects] == [("planned", "INFO", 3)] * 2
    assert all(line["seconds"] >= 0 for line in jsonl.objects)  # type: ignore[operator]


def test_a_failure_is_measured_too(jsonl: Output) -> None:
    """The duration and the error's type are logged, and the error goes on."""
    with pytest.raises(KeyError), timed("planned"):
        raise KeyError("x")
    (found,) = jsonl.objects
    assert found["error"] == "KeyError"
    assert found["seconds"] >= 0  # type: ignore[operator]


def test_a_strangers_record_is_formatted(jsonl: Output, text: Output) -> None:
    """A record of another library, with attributes of the same names but other types, is printed all the same."""
    logging.getLogger("pipeline_core.child").info("at %d%%", 5, extra={"window": 7, "fields": "none", "step": None})
    assert jsonl.objects[0]["message"] == "at 5%"
    assert jsonl.objects[0]["logger"] == "pipeline_core.child"
    assert text.lines[0].endswith("INFO at 5%")


def test_the_library_prints_nothing_by_itself() -> None:
    """Without a handler of the program's own even a warning stays silent."""
    code = "from pipeline_core.log import Reporter; Reporter('p', lambda: 0).tell('x', level=40)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")
