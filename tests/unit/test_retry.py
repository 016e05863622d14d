"""What is tried again, how often, after which wait; and that a wait ends when the run is asked to stop."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import pytest
import stamina
from stamina.instrumentation import LoggingOnRetryHook, set_on_retry_hooks

from pipeline_core import retry
from pipeline_core.errors import Interrupted, PermanentError, SideError, TransientError

Told = list[tuple[int, float, str]]


class Flaky:
    """Raises each of `errors` in turn, then returns its arguments."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = iter(errors)
        self.tries = 0

    def __call__(self, *args: object) -> object:
        self.tries += 1
        for error in self.errors:
            raise error
        return args


class Clock:
    """Stands in for the module's time: a sleep takes no time and is kept."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Waits of a test take no time."""
    clock = Clock()
    monkeypatch.setattr(retry, "time", clock)
    return clock


@pytest.fixture
def told() -> Told:
    """What `on_retry` was told."""
    return []


@pytest.fixture
def tell(told: Told) -> Callable[[int, float, TransientError], None]:
    """An `on_retry` that keeps what it is told."""
    return lambda attempt, wait_s, error: told.append((attempt, wait_s, str(error)))


def transient(count: int, **options: float) -> Iterator[TransientError]:
    return (TransientError(f"away {n}", **options) for n in range(count))  # type: ignore[arg-type]


def test_what_can_heal_is_tried_again(clock: Clock) -> None:
    """Three faults of connectivity and then an answer: the answer counts."""
    flaky = Flaky(*transient(3))
    assert retry.call(flaky) == ()
    assert flaky.tries == 4


def test_the_last_error_goes_on(clock: Clock) -> None:
    """One try and so many retries; then the last error, unchanged, without a wait after it."""
    flaky = Flaky(*transient(9))
    with pytest.raises(TransientError, match="away 3"):
        retry.call(flaky, retries=3)
    assert flaky.tries == 4
    assert len(clock.slept) == 3


def test_the_last_error_goes_on_alone(clock: Clock) -> None:
    """With the place where it was raised, and with nothing of the tries before or of what counts them."""
    with pytest.raises(TransientError, match="away 1") as raised:
        retry.call(Flaky(*transient(2)), retries=1)
    assert raised.traceback[-1].name == "__call__"
    assert raised.value.__cause__ is raised.value.__context__ is None


@pytest.mark.parametrize("count", [1, 9])
def test_staminas_own_log_holds_nothing_of_the_error(
    clock: Clock, caplog: pytest.LogCaptureFixture, count: int
) -> None:
    """It logs what it sees of a fault as it is, secrets too: whether a try heals it or not, it sees nothing."""
    seen: list[BaseException] = []
    set_on_retry_hooks([LoggingOnRetryHook, lambda details: seen.append(details.caused_by)])
    try:
        with nullcontext() if count == 1 else pytest.raises(TransientError):
            retry.call(Flaky(*(TransientError("refused hunter2") for _ in range(count))))
    finally:
        set_on_retry_hooks(None)
    assert len(caplog.records) == min(count, 3)
    assert "hunter2" not in str([vars(record) for record in caplog.records])
    assert {(error.__cause__, error.__context__) for error in seen} == {(None, None)}


def test_no_retries_is_one_try(clock: Clock) -> None:
    """0 retries are a value: the first error goes on."""
    flaky = Flaky(*transient(1))
    with pytest.raises(TransientError):
        retry.call(flaky, retries=0)
    assert (flaky.tries, clock.slept) == (1, [])


@pytest.mark.parametrize(
    "error", [PermanentError("no"), SideError("no"), ValueError("no"), ConnectionError("no"), KeyboardInterrupt()]
)
def test_everything_else_fails_at_once(clock: Clock, error: BaseException) -> None:
    """A wrong password, a bad query, an interrupt, and any exception that the plugin did not call transient."""
    flaky = Flaky(error)
    with pytest.raises(type(error)) as raised:
        retry.call(flaky)
    assert raised.value is error
    assert (flaky.tries, clock.slept) == (1, [])


def test_the_waits_double_from_the_first(clock: Clock) -> None:
    """5, 10 and 20 seconds, each with up to a quarter more, and never more than the greatest wait."""
    with pytest.raises(TransientError):
        retry.call(Flaky(*transient(9)), retries=5, wait_s=5, wait_max_s=30)
    for slept, least in zip(clock.slept, [5, 10, 20, 30, 30], strict=True):
        assert least - 1e-9 <= slept <= min(30, least * 1.25) + 1e-9


def test_the_waits_are_jittered(clock: Clock) -> None:
    """Workers that failed together do not come back together."""
    for _ in range(20):
        retry.call(Flaky(*transient(1)))
    assert len(set(clock.slept)) > 10


def test_the_other_side_may_ask_for_a_wait(clock: Clock) -> None:
    """`retry_after` takes the place of the backoff, exactly; 0 means at once."""
    errors = [TransientError("busy", retry_after=7.5), TransientError("busy", retry_after=0), TransientError("away")]
    retry.call(Flaky(*errors))
    assert clock.slept[0] == pytest.approx(7.5)
    assert 20 <= sum(clock.slept[1:]) <= 25


def test_a_wait_that_is_too_long_is_the_windows(clock: Clock) -> None:
    """Where the other side asks for more than the greatest wait, the error goes on at once and the worker is free."""
    flaky = Flaky(TransientError("come back later", retry_after=61))
    with pytest.raises(TransientError, match="later") as raised:
        retry.call(flaky, wait_max_s=60)
    assert raised.value.retry_after == 61
    assert (flaky.tries, clock.slept) == (1, [])


def test_every_retry_is_told(clock: Clock, told: Told, tell: retry.OnRetry) -> None:
    """The number of the failed try, the wait and the error; nothing for the failure that goes on."""
    with pytest.raises(TransientError):
        retry.call(Flaky(*transient(9)), retries=2, on_retry=tell)
    assert [(attempt, text) for attempt, _, text in told] == [(1, "away 0"), (2, "away 1")]
    assert [wait_s for _, wait_s, _ in told] == pytest.approx(clock.slept)


def test_a_request_to_stop_ends_the_wait() -> None:
    """A worker in a wait of an hour is free in a moment; the error says what it was waiting for."""
    stop, waiting = threading.Event(), threading.Event()
    raised: list[BaseException] = []

    def work() -> None:
        try:
            retry.call(
                Flaky(*transient(1)),
                wait_s=3600,
                wait_max_s=3600,
                on_retry=lambda *_: waiting.set(),
                stopping=stop.is_set,
            )
        except Interrupted as error:
            raised.append(error)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    assert waiting.wait(30)
    stop.set()
    worker.join(30)
    assert not worker.is_alive()
    assert "away 0" in str(raised[0])


def test_a_request_to_stop_prevents_the_next_try(clock: Clock) -> None:
    """Also where there is nothing to wait for."""
    flaky = Flaky(*transient(1))
    with pytest.raises(Interrupted):
        retry.call(flaky, wait_s=0, stopping=lambda: True)
    assert flaky.tries == 1


def test_a_wait_that_may_be_stopped_is_a_whole_one(clock: Clock) -> None:
    """Looking for a request to stop makes the wait neither shorter nor longer."""
    retry.call(Flaky(TransientError("busy", retry_after=1)), stopping=lambda: False)
    assert sum(clock.slept) == pytest.approx(1)
    assert max(clock.slept) <= 0.1


def test_a_decorated_function_is_tried_again(clock: Clock) -> None:
    """With its arguments, its result and its name; each call has its own allowance."""
    flaky = Flaky(*transient(2))

    @retry.retried(retries=2)
    def count(one: int, two: int) -> object:
        return flaky(one, two)

    assert count(1, two=2) == (1, 2)
    assert count.__name__ == "count"
    flaky.errors = transient(2)
    assert count(3, 4) == (3, 4)


def test_a_generator_function_is_refused() -> None:
    """Repeating the call would repeat nothing, and so nothing is promised."""

    def rows() -> Iterator[int]:
        yield 1

    async def row() -> int:
        return 1

    for function in (rows, row):
        with pytest.raises(TypeError, match="decorate the function that consumes it"):
            retry.retried()(function)


def test_staminas_testing_mode_is_kept(clock: Clock, told: Told, tell: retry.OnRetry) -> None:
    """A program that tests with stamina waits for nothing here either, and decides how often."""
    flaky = Flaky(*transient(5, retry_after=9))
    with stamina.set_testing(True, attempts=2), pytest.raises(TransientError):
        retry.call(flaky, on_retry=tell)
    assert flaky.tries == 2
    assert (told, sum(clock.slept)) == ([(1, 0.0, "away 0")], 0)


def test_stamina_may_be_inactive(clock: Clock) -> None:
    """A program that turned retries off gets the first error."""
    flaky = Flaky(*transient(1))
    stamina.set_active(False)
    try:
        with pytest.raises(TransientError):
            retry.call(flaky)
    finally:
        stamina.set_active(True)
    assert flaky.tries == 1


def test_importing_retries_loads_no_library() -> None:
    """stamina takes a while to import, and most programs never fail."""
    code = "import pipeline_core.retry, sys; sys.exit('stamina' in sys.modules or 'tenacity' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
