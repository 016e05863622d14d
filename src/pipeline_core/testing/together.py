"""Verbs of a record store done by several workers at the same moment: threads of one object, or processes.

The processes are spawned, so nothing here may need more than the library itself.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing.synchronize import Barrier
from types import TracebackType
from typing import Any, Self, TypeVar

from attrs import frozen

from pipeline_core.contracts import Context, RecordStore, Settings
from pipeline_core.errors import ClaimLostError, TransientError

T = TypeVar("T")

WORKERS = 3
_PATIENCE_S = 120
_SKEWS_S = (3600, -3600, 0)  # of the clocks of the workers, one after the other


@frozen
class Act:
    """A verb of the store and what it is given."""

    verb: str
    given: tuple[Any, ...]


class Lost:
    """What an act comes to whose claim is lost."""


def in_threads(store: RecordStore, acts: Sequence[Act]) -> list[Any]:
    """What each act came to, done by threads that share the store."""
    barrier = threading.Barrier(len(acts))

    def act(each: Act) -> Any:
        barrier.wait(_PATIENCE_S)
        return _done(store, each)

    with ThreadPoolExecutor(len(acts)) as pool:
        return list(pool.map(act, acts))


class Processes:
    """Processes with an object and a connection each; `skewed`: and a clock that is an hour ahead, or behind."""

    def __init__(self, *, skewed: bool) -> None:
        self._skewed = skewed
        context = multiprocessing.get_context("spawn")
        self._barrier = context.Barrier(WORKERS)
        self._pool = ProcessPoolExecutor(WORKERS, context, _enter, (self._barrier,))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()

    def do(self, settings: Settings[RecordStore], acts: Sequence[Act]) -> list[Any]:
        """What each of WORKERS acts came to, on the store that `settings` open."""
        self._barrier.reset()
        skews_s = _SKEWS_S if self._skewed else (0,) * WORKERS
        futures = [self._pool.submit(_act, settings, act, skew_s) for act, skew_s in zip(acts, skews_s, strict=True)]
        _raise_the_cause(futures)
        return [future.result() for future in futures]


def _raise_the_cause(futures: Sequence[Future[Any]]) -> None:
    """Where one could not open the store, the others have waited for it in vain: theirs is not the error to see."""
    errors = [error for error in (future.exception() for future in futures) if error is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error


def healed(act: Callable[[], T], tries: int = 5) -> T:
    """What it comes to. What can heal, as a deadlock, has changed nothing, and is tried again; so the core does it."""
    for _ in range(tries - 1):
        try:
            return act()
        except TransientError:
            continue
    return act()


def _done(store: RecordStore, act: Act) -> Any:
    try:
        return healed(lambda: getattr(store, act.verb)(*act.given))
    except ClaimLostError:
        return Lost


# --- in the process of a worker ---------------------------------------------------------------------------------------

_together: list[Barrier] = []
_skew_us = 0


def _enter(barrier: Barrier) -> None:
    """Once in each process: where to meet the others, and a clock that can be wrong."""
    _together.append(barrier)
    right_ns = time.time_ns
    time.time_ns = lambda: right_ns() + _skew_us * 1000
    time.time = lambda: time.time_ns() / 1e9


def _act(settings: Settings[RecordStore], act: Act, skew_s: int) -> Any:
    global _skew_us  # noqa: PLW0603 - the process's clock is one for all
    (barrier,) = _together
    _skew_us = skew_s * 1_000_000
    try:
        with settings.open(Context("p")) as store:
            barrier.wait(_PATIENCE_S)
            return _done(store, act)
    except BaseException:
        barrier.abort()
        raise
