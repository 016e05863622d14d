"""A plugin for tests: a side whose every count fails, in a way that the configuration chooses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from attrs import frozen

from pipeline_core import (
    Batches,
    Can,
    Connector,
    Context,
    ExtractRequest,
    PermanentError,
    Problem,
    Provider,
    Secret,
    Settings,
    Source,
    TransientError,
    Window,
    hookimpl,
)


@frozen
class Moody:
    """Fails as `mood` says: "away", "refused" or "odd"; each time with its password in the text."""

    mood: str
    password: Secret

    @contextmanager
    def open(self, context: Context, /) -> Iterator[MoodySource]:
        """The side."""
        del context
        if self.mood == "odd":
            raise RuntimeError(f"nobody expected {self.password.reveal()}")
        yield MoodySource(self)


class MoodySource(Source):
    """The side."""

    def __init__(self, settings: Moody) -> None:
        self._settings = settings

    @property
    def identity(self) -> Mapping[str, str]:
        return {"technology": "moody"}

    def count(self, window: Window) -> int:
        text = f"no answer for {self._settings.password.reveal()}"
        if self._settings.mood == "away":
            raise TransientError(text, side_down=True)
        raise PermanentError(text)

    def problems(self) -> Iterable[Problem]:
        yield Problem(f"refuses {self._settings.password.reveal()}", "be kind")

    def extract(self, request: ExtractRequest) -> Batches:
        raise NotImplementedError
        yield


@hookimpl
def pipeline_connectors() -> Iterable[Provider[Settings[Connector]]]:
    """`type = "moody"`."""
    yield Provider("moody", Moody, can=frozenset({Can.EXTRACT}))
