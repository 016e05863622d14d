"""A plugin for tests: an observer that fails on the way in or out, as one does whose collector is away."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from attrs import frozen

from pipeline_core import ConfigError, Context, Event, Observer, Provider, Secret, Settings, hookimpl


@frozen
class Moody:
    """Fails when it is `opened`, `closed` or `configured`; says of the last event of a run that it was told."""

    fails: str = ""
    password: Secret | None = None

    @contextmanager
    def open(self, context: Context, /) -> Iterator[Observer]:
        """Itself."""
        del context
        if self.fails == "configured":
            raise ConfigError("fails: found configured, expected another mood")
        self._fail("opened")
        yield self
        self._fail("closed")

    def _fail(self, when: str) -> None:
        if self.fails == when:
            raise ConnectionError(f"refused {self.password.reveal() if self.password else ''}")

    def notify(self, event: Event, /) -> None:
        """Says so."""
        if event.step == "run ended":
            logging.getLogger("moody").warning("told the other: %s", event.step)


@hookimpl
def pipeline_observers() -> Iterable[Provider[Settings[Observer]]]:
    """`type = "moody"`."""
    yield Provider("moody", Moody)
