"""The opened parts that the steps of a window work with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from attrs import field, frozen

from pipeline_core import retry
from pipeline_core.config import Config
from pipeline_core.contracts import RecordStore, Source, Stage, Target
from pipeline_core.engine import identity
from pipeline_core.errors import ConfigError, Interrupted, TransientError
from pipeline_core.log import Reporter
from pipeline_core.window import Window

T = TypeVar("T")


def never() -> bool:
    return False


@contextmanager
def blaming(part: str) -> Iterator[None]:
    """Notes whose a TransientError is, unless that was noted further in: it says itself only what could not be reached.

    Serves as a decorator too, of a function that is no generator.
    """
    try:
        yield
    except TransientError as error:
        error.part = error.part or part
        raise


@frozen
class Parts:
    """Everything opened for one worker: the store is shared, source, stage and target are the worker's own.

    `stopping` says that the run was asked to end; the steps look at it between batches.
    """

    config: Config
    store: RecordStore
    source: Source
    stage: Stage
    target: Target
    report: Reporter
    stopping: Callable[[], bool] = field(default=never)

    def __attrs_post_init__(self) -> None:
        """Raises ConfigError where both sides are one table: a load would delete what it is about to read again."""
        place = identity.place(self.source.identity)
        if place == identity.place(self.target.identity):
            named = ", ".join(f"{name} {value!r}" for name, value in place.items())
            raise ConfigError(f"source and target are one table ({named}); name another one for the target")

    @property
    def pipeline(self) -> str:
        return self.config.pipeline

    def identities(self) -> dict[str, Any]:
        """Both sides as evidence names them: what was read, through which columns, and where it went."""
        return {"source": self.source_identity(), "target": dict(self.target.identity)}

    def source_identity(self) -> dict[str, str]:
        """The source, and what the configuration leaves out or renames of it: staged rows fit only the same again."""
        columns = {"exclude": sorted(self.config.exclude), "rename": dict(sorted(self.config.columns.items()))}
        return {**self.source.identity, identity.COLUMNS: json.dumps(columns, sort_keys=True)}

    def identity(self) -> str:
        """Both sides in one comparable text."""
        return identity.text(self.source_identity(), self.target.identity)

    def retried(self, step: str, window: Window | None, function: Callable[[], T]) -> T:
        """Calls `function` until it does not fail in a way that can heal, as often as the configuration allows."""
        settings = self.config.retry

        def on_retry(attempt: int, wait_s: float, error: TransientError) -> None:
            self.report.tell("retrying", window, of=step, attempt=attempt, wait_s=wait_s, error=str(error))

        return retry.call(
            function,
            retries=settings.retries,
            wait_s=settings.wait_s,
            wait_max_s=settings.wait_max_s,
            on_retry=on_retry,
            stopping=self.stopping,
        )

    def check_stop(self) -> None:
        """Raises Interrupted where the run was asked to end."""
        if self.stopping():
            raise Interrupted("the run was asked to stop")
