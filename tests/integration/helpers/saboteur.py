"""A plugin for tests: observers that do something drastic to their own process at a named step."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from attrs import frozen

from pipeline_core import Context, Event, Provider, hookimpl


@frozen
class Saboteur:
    """Sends a signal to its own process when it is told `step` for the `nth` time."""

    step: str
    signal: str = "SIGKILL"
    nth: int = 1

    @contextmanager
    def open(self, context: Context) -> Iterator[Watcher]:
        del context
        yield Watcher(self)


class Watcher:
    """Counts how often the step was told."""

    def __init__(self, settings: Saboteur) -> None:
        self.settings = settings
        self.seen = 0

    def notify(self, event: Event) -> None:
        if event.step == self.settings.step:
            self.seen += 1
            if self.seen == self.settings.nth:
                if self.settings.signal == "SIGINT":
                    os.kill(os.getpid(), signal.SIGINT)  # as a terminal sends it
                else:
                    # To this thread: a signal to the process may reach another one first, while this one runs on.
                    signal.pthread_kill(threading.get_ident(), getattr(signal, self.settings.signal))


@hookimpl
def pipeline_observers() -> Iterator[Provider[Saboteur]]:
    """The saboteur."""
    yield Provider("saboteur", Saboteur)
