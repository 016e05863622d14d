"""A plugin for tests: an observer that slows a run down, and asks its own process to stop at the first such moment."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from attrs import field, frozen

from pipeline_core import Context, Event, Observer, Provider, Settings, hookimpl


@frozen
class Brake:
    """At each `step` sleeps `seconds`; the first time it sends `signals` before, one a second.

    `aside` sends them to the thread that brakes, where they wake up nobody.
    """

    step: str
    signals: tuple[str, ...] = ()
    seconds: float = 0.5
    aside: bool = False
    _seen: list[Event] = field(factory=list, init=False)

    @contextmanager
    def open(self, context: Context, /) -> Iterator[Observer]:
        """Itself."""
        del context
        yield self

    def notify(self, event: Event, /) -> None:
        """Brakes."""
        if event.step != self.step:
            return
        self._seen.append(event)
        if len(self._seen) == 1:
            for name in self.signals:
                self._send(getattr(signal, name))
                time.sleep(1)
        time.sleep(self.seconds)

    def _send(self, number: int) -> None:
        if self.aside:
            signal.pthread_kill(threading.get_ident(), number)
        else:
            os.kill(os.getpid(), number)


@hookimpl
def pipeline_observers() -> Iterable[Provider[Settings[Observer]]]:
    """`type = "brake"`."""
    yield Provider("brake", Brake)
