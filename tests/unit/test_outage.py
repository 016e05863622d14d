"""How long a run waits for what is away, who tries, and when it gives up; on a clock that only waiting moves."""

from __future__ import annotations

import threading
from itertools import pairwise
from typing import Any

import pytest
from attrs import define, field

from pipeline_core import Event, TransientError
from pipeline_core.config import RetrySettings, RunSettings
from pipeline_core.engine import outage
from pipeline_core.engine.outage import GaveUpError, Outage
from pipeline_core.engine.parts import blaming
from pipeline_core.errors import Interrupted
from pipeline_core.log import Reporter

HOUR_S = 3600


@define
class Clock(threading.Event):
    """Stands in for the module's time and for the request to stop: a wait takes no time, and is added up."""

    now_s: float = 0.0
    asked_after_s: float = float("inf")
    events: list[Event] = field(factory=list)

    def monotonic(self) -> float:
        return self.now_s

    def is_set(self) -> bool:
        return self.now_s >= self.asked_after_s

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.now_s += timeout
        return self.is_set()

    def notify(self, event: Event) -> None:
        self.events.append(event)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock of the test's own."""
    clock = Clock()
    monkeypatch.setattr(outage, "time", clock)
    return clock


def an_outage(clock: Clock, give_up_after: str = "30min", **retry: Any) -> Outage:
    """None yet."""
    run, told = RunSettings(give_up_after=give_up_after), Reporter("p", lambda: 0, [clock])
    waits = RetrySettings(**retry)
    return Outage("the source", run=run, retry=waits, report=told, stop=clock)


def away(**details: Any) -> TransientError:
    """What a side raises that cannot be reached."""
    return TransientError("connection refused", side_down=True, **details)


def tries_until(clock: Clock, watched: Outage, healed_s: float, **details: Any) -> list[float]:
    """When the one worker tries, from the first failure on to the first success."""
    tried = []

    def ask() -> None:
        tried.append(clock.now_s)
        if clock.now_s < healed_s:
            raise away(**details)

    watched.outlast(ask)
    return tried


def test_what_is_away_is_named_by_whose_fault_it_was(clock: Clock) -> None:
    """An outage of the sides is of the part that was noted last; without a note it is what it was called."""
    run, told = RunSettings(give_up_after="0s"), Reporter("p", lambda: 0, [clock])
    watched = Outage("a side", run=run, retry=RetrySettings(), report=told, stop=clock)

    def ask() -> None:
        with blaming("target"), blaming("stage"):
            raise away()

    with pytest.raises(GaveUpError, match=r"^the stage was away for 0 s, .* connection refused$"):
        watched.outlast(ask)
    assert [event.fields["of"] for event in clock.events] == ["the stage"]


def test_three_hours_are_outlasted(clock: Clock) -> None:
    """Waits double from wait_s to wait_max_s; the end is seen a wait later at most, and told."""
    tried = tries_until(clock, an_outage(clock, "4h"), 3 * HOUR_S)
    waits = [after - before for before, after in pairwise(tried)]
    assert [round(wait_s) for wait_s in waits[:5]] == pytest.approx([5.6, 11.2, 22.5, 45, 60], rel=0.15)
    assert max(waits) <= 60.5
    assert 3 * HOUR_S <= tried[-1] <= 3 * HOUR_S + 60.5
    assert [event.step for event in clock.events] == ["away"] * (len(tried) - 1) + ["back"]
    assert clock.events[-1].fields["seconds"] == tried[-1]


def test_a_day_is_outlasted(clock: Clock) -> None:
    """More tries than a float has powers of two; the longest wait stays what it is."""
    tried = tries_until(clock, an_outage(clock, "2d"), 24 * HOUR_S)
    assert len(tried) > 1_100
    assert tried[-1] - tried[-2] <= 60.5


def test_patience_ends_after_one_last_try(clock: Clock) -> None:
    """At give_up_after itself; the error says what was away, for how long, and whose setting that is."""
    watched = an_outage(clock)
    with pytest.raises(GaveUpError, match=r"^the source was away for 1800 s, run.give_up_after is 30min: connection"):
        tries_until(clock, watched, 3 * HOUR_S)
    assert clock.now_s == pytest.approx(HOUR_S / 2, abs=0.1)
    with pytest.raises(GaveUpError):
        watched.admit()


def test_no_patience_at_all(clock: Clock) -> None:
    """`0s` gives up at the first failure."""
    with pytest.raises(GaveUpError):
        tries_until(clock, an_outage(clock, "0s"), 1)
    assert clock.now_s == 0


def test_each_outage_has_the_whole_patience(clock: Clock) -> None:
    """Two of twenty minutes, with an answer in between, are not one of forty; and the waits begin anew."""
    watched = an_outage(clock)
    tries_until(clock, watched, 1200)
    started_s = clock.now_s
    tried = tries_until(clock, watched, started_s + 1200)
    assert tried[1] - started_s < 7


def test_nobody_tries_before_the_side_said(clock: Clock) -> None:
    """`retry_after` takes the place of a shorter wait."""
    tried = tries_until(clock, an_outage(clock), 500, retry_after=300.0)
    assert tried == pytest.approx([0, 300, 600], abs=0.1)


def test_a_side_that_asks_for_more_patience_than_there_is(clock: Clock) -> None:
    """Is given up at once: waiting would only end in giving up without another try."""
    with pytest.raises(GaveUpError):
        tries_until(clock, an_outage(clock), 10, retry_after=2 * HOUR_S)
    assert clock.now_s == 0


def test_a_request_to_stop_ends_the_wait(clock: Clock) -> None:
    """Long before the next try."""
    clock.asked_after_s = 1
    with pytest.raises(Interrupted, match="the source was away"):
        tries_until(clock, an_outage(clock, wait_s=50), 100)
    assert clock.now_s < 2


class Worker(threading.Thread):
    """Another worker's thread, which does one thing."""

    def __init__(self, act: Any) -> None:
        super().__init__()
        self.act, self.answer = act, None
        self.start()
        self.join()

    def run(self) -> None:
        self.answer = self.act()


def test_one_tries_and_the_others_wait_for_what_it_finds(clock: Clock) -> None:
    """However often they ask; a failure of theirs makes the wait no longer, and only the one who tries ends it."""
    watched = an_outage(clock)
    watched.away(away())
    assert watched.admit()
    assert watched.trying
    clock.asked_after_s = clock.now_s + 1000
    assert Worker(watched.admit).answer is False
    clock.asked_after_s = float("inf")
    Worker(lambda: watched.away(away()))
    Worker(watched.back)
    assert [event.step for event in clock.events] == ["away"]
    watched.back()
    assert Worker(watched.admit).answer is True
    assert Worker(lambda: watched.trying).answer is False


def test_who_leaves_lets_another_try(clock: Clock) -> None:
    """A worker without a window to try with does not keep the others waiting."""
    watched = an_outage(clock)
    watched.away(away())
    assert watched.admit()
    watched.leave()

    def other() -> bool:
        return watched.admit() and watched.trying

    assert Worker(other).answer is True
    assert not watched.trying
