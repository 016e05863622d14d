"""The one place of retries. What can heal is tried again with a growing wait; everything else fails at once.

stamina decides whether there is another try and how the wait grows. The wait itself is made here, because stamina's
cannot be ended: a worker would sleep on after the run was asked to stop (docs/decisions/0004).
"""

from __future__ import annotations

import functools
import inspect
import random
import time
from collections.abc import Callable
from contextlib import suppress
from typing import ParamSpec, Protocol, TypeVar

from pipeline_core.errors import Interrupted, TransientError
from pipeline_core.secrets import redact

P = ParamSpec("P")
T = TypeVar("T")

_POLL_S = 0.1  # how soon a request to stop ends a wait
_MOST_DOUBLINGS = 64  # far behind any longest wait: the power of more would overflow


class _FailedError(Exception):
    """What stamina is shown of a fault: it hands the text of what it sees to the program's log, secrets and all."""


class OnRetry(Protocol):
    """Told before each wait: the number of the try that failed, from 1, the wait in seconds, and the error."""

    def __call__(self, attempt: int, wait_s: float, error: TransientError, /) -> object: ...


def call(
    function: Callable[[], T],
    *,
    retries: int = 3,
    wait_s: float = 5.0,
    wait_max_s: float = 60.0,
    on_retry: OnRetry | None = None,
    stopping: Callable[[], bool] | None = None,
) -> T:
    """What `function` returns, tried again up to `retries` times where it raises TransientError.

    The waits are `wait_s` seconds, then twice as long each, with up to a quarter more at random, so that workers which
    failed together do not come back together; `wait_max_s` at most. An error's own `retry_after` takes their place;
    where it is longer than `wait_max_s` the error goes on at once, so that the window waits and not the worker. The
    last error goes on as it is.

    Raises Interrupted as soon as `stopping()` is true before or during a wait (`is_set` of a `threading.Event` serves).
    """
    import stamina  # noqa: PLC0415 - it doubles the time that importing the core takes

    failed: list[TransientError] = []

    def heals(error: Exception) -> bool | float:
        return 0.0 if isinstance(error, _FailedError) else False  # seconds, for stamina to wait

    backoff_s = 0.0
    with suppress(_FailedError):
        for attempt in stamina.retry_context(
            on=heals, attempts=retries + 1, timeout=None, wait_initial=wait_s, wait_max=wait_max_s, wait_jitter=0
        ):
            if failed:
                error = failed[-1]
                chosen_s = 0.0 if stamina.is_testing() else _wait_s(error, backoff_s, wait_max_s)
                if on_retry is not None:
                    on_retry(len(failed), chosen_s, error)
                _pause(chosen_s, stopping, error)
            backoff_s = attempt.next_wait
            with attempt:
                try:
                    return function()
                except TransientError as error:
                    if (error.retry_after or 0) > wait_max_s:
                        raise
                    failed.append(error)
                raise _FailedError  # here, where it has nothing of the error in its context
    raise failed[-1]


def retried(
    *,
    retries: int = 3,
    wait_s: float = 5.0,
    wait_max_s: float = 60.0,
    on_retry: OnRetry | None = None,
    stopping: Callable[[], bool] | None = None,
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """`call` as a decorator. Raises TypeError for a generator or a coroutine function, which `call` cannot repeat."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        if inspect.isgeneratorfunction(function) or inspect.iscoroutinefunction(function):
            raise TypeError(
                f"retried: {function.__qualname__} hands out its work bit by bit, so that repeating the call would "
                "repeat nothing; decorate the function that consumes it"
            )

        @functools.wraps(function)
        def repeat(*args: P.args, **kwargs: P.kwargs) -> T:
            return call(
                functools.partial(function, *args, **kwargs),
                retries=retries,
                wait_s=wait_s,
                wait_max_s=wait_max_s,
                on_retry=on_retry,
                stopping=stopping,
            )

        return repeat

    return decorate


def doubled_s(first_s: float, times: int, most_s: float) -> float:
    """A wait of `first_s` seconds, doubled so many times; `most_s` at most."""
    return min(first_s * 2.0 ** min(times, _MOST_DOUBLINGS), most_s)


def _wait_s(error: TransientError, backoff_s: float, wait_max_s: float) -> float:
    if error.retry_after is not None:
        return max(0.0, error.retry_after)
    return min(wait_max_s, backoff_s * random.uniform(1, 1.25))  # noqa: S311 - jitter, no secret


def _pause(seconds: float, stopping: Callable[[], bool] | None, error: TransientError) -> None:
    until = time.monotonic() + seconds
    while True:
        if stopping is not None and stopping():
            raise Interrupted(f"asked to stop before another try of what failed with: {redact(str(error))}") from error
        left = until - time.monotonic()
        if left <= 0:
            return
        time.sleep(left if stopping is None else min(left, _POLL_S))
