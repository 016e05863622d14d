"""An outage: a side, or the store, is away for every window alike. One view of it, shared by the workers of a run."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from functools import partial
from logging import WARNING
from typing import TypeVar

from attrs import frozen

from pipeline_core.config import Config, RetrySettings, RunSettings
from pipeline_core.errors import Interrupted, TransientError
from pipeline_core.log import Reporter
from pipeline_core.retry import doubled_s
from pipeline_core.secrets import redact

T = TypeVar("T")

_POLL_S = 0.2  # how soon a waiting worker sees that the outage is over, or that it is asked to stop


class GaveUpError(TransientError):
    """An outage lasted longer than the run is willing to wait."""


class Outage:
    """Whether `what` is away, and when it is tried again.

    While it is away nobody begins anything new. When a wait is over one worker tries, and the others wait for what it
    finds: `what` is back, or the wait doubles. `retry.wait_s` and `retry.wait_max_s` of the configuration are the first
    and the longest wait; where the error says `retry_after`, nobody tries before. Raises GaveUpError to every worker
    once `run.give_up_after` has passed since the first of them found it away, the last try included.
    """

    def __init__(
        self,
        what: str,
        *,
        run: RunSettings,
        retry: RetrySettings,
        report: Reporter,
        stop: threading.Event,
    ) -> None:
        self._what = what
        self._run = run
        self._retry = retry
        self._report = report
        self._stop = stop
        self._lock = threading.Lock()
        self._began_s: float | None = None
        self._next_try_s = 0.0
        self._tries = 0
        self._trier: int | None = None
        self._given_up = ""

    def admit(self) -> bool:
        """Waits while the outage lasts; False where the run was asked to stop meanwhile.

        Who is admitted during an outage is the one that tries, until it says `away`, `back` or `leave`.
        """
        while not self._stop.is_set():
            left_s = self._left_s()
            if left_s is None:
                return True
            self._stop.wait(min(max(left_s, 0.01), _POLL_S))
        return False

    def _left_s(self) -> float | None:
        """How long to wait before asking again; None for who may go on."""
        with self._lock:
            if self._given_up:
                raise GaveUpError(self._given_up)
            me = threading.get_ident()
            if self._began_s is None or self._trier == me:
                return None
            left_s = self._next_try_s - time.monotonic()
            if left_s > 0 or self._trier is not None:
                return left_s
            self._trier = me
            return None

    @property
    def trying(self) -> bool:
        """Whether this thread is the one that tries."""
        return self._trier == threading.get_ident()

    @property
    def keeps_waiting(self) -> bool:
        """Whether this thread has to ask for admission before it begins anything new."""
        return self._began_s is not None and not self.trying

    def away(self, error: TransientError) -> None:
        """What was asked did not answer: the outage begins or goes on. Only who tries makes the wait longer."""
        with self._lock:
            now_s = time.monotonic()
            self._what = f"the {error.part}" if error.part else self._what
            if self._began_s is None:
                self._began_s, self._tries = now_s, 0
            elif not self.trying:
                return
            self._trier = None
            grown_s = doubled_s(self._retry.wait_s, self._tries, self._retry.wait_max_s)
            backoff_s = min(grown_s * random.uniform(1, 1.25), self._retry.wait_max_s)  # noqa: S311 - jitter
            left_s = self._began_s + self._run.give_up_after_s - now_s
            asked_s = error.retry_after or 0.0
            wait_s = max(min(backoff_s, left_s), asked_s)
            self._tries += 1
            self._next_try_s = now_s + wait_s
            text = redact(str(error))
            if left_s <= 0 or asked_s > left_s:
                away_s = now_s - self._began_s
                self._given_up = (
                    f"{self._what} was away for {away_s:.0f} s, run.give_up_after is {self._run.give_up_after}: {text}"
                )
        self._report.tell("away", level=WARNING, of=self._what, wait_s=wait_s, gives_up_in_s=max(left_s, 0), error=text)

    def back(self) -> None:
        """What was asked answered: if this thread is the one that tries, the outage is over."""
        with self._lock:
            if not self.trying or self._began_s is None or self._stop.is_set():
                return
            seconds = time.monotonic() - self._began_s
            self._began_s = self._trier = None
        self._report.tell("back", level=WARNING, of=self._what, seconds=seconds)

    def leave(self) -> None:
        """This thread goes without having found out; another may try."""
        with self._lock:
            if self.trying:
                self._trier = None

    def outlast(self, function: Callable[[], T]) -> T:
        """What `function` returns, called again for as long as it raises TransientError and the outage is not given up.

        Raises Interrupted where the run is asked to stop meanwhile.
        """
        try:
            while True:
                try:
                    result = function()
                except TransientError as error:
                    if isinstance(error, GaveUpError):
                        raise
                    self.away(error)
                    if not self.admit():
                        raise Interrupted(f"asked to stop while {self._what} was away") from None
                else:
                    self.back()
                    return result
        finally:
            self.leave()


@frozen
class Outages:
    """What a run waits for: the store, and its sides (the stage is one of them)."""

    store: Outage
    sides: Outage
    stop: threading.Event

    @classmethod
    def watch(cls, config: Config, report: Reporter, stop: threading.Event) -> Outages:
        """None yet. Outside an attempt at a window, any TransientError is one: there is no window to try later."""
        of = partial(Outage, run=config.run, retry=config.retry, report=report, stop=stop)
        return cls(of("the store"), of("a side"), stop)
