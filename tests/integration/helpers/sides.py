"""A plugin for tests: a source that fails in ways that no real one can be made to, with a password of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from attrs import field, frozen

from pipeline_core import (
    Batches,
    Can,
    Context,
    ExtractRequest,
    PermanentError,
    Problem,
    Provider,
    Secret,
    Source,
    TransientError,
    Window,
    hookimpl,
)


@frozen
class FaultySettings:
    """A source that counts `answer`, or fails with what `fault` names."""

    password: Secret
    fault: str = ""
    answer: int = 0
    many: list[int] = field(factory=list)

    @contextmanager
    def open(self, context: Context) -> Iterator[FaultySource]:
        del context
        if self.fault == "unheard of":
            raise RuntimeError(f"nobody expected {self.password.reveal()}")
        yield FaultySource(self)


class FaultySource(Source):
    """Counts as told. Its messages give the password away, as some drivers do."""

    def __init__(self, settings: FaultySettings) -> None:
        self.settings = settings

    @property
    def identity(self) -> Mapping[str, str]:
        return {"technology": "faulty"}

    def count(self, window: Window) -> int:
        message = f"cannot log in with {self.settings.password.reveal()}"
        match self.settings.fault:
            case "transient":
                raise TransientError(message)
            case "side down":
                raise TransientError(message, side_down=True)
            case "permanent":
                raise PermanentError(message)
            case "driver":
                raise ConnectionResetError(message)
            case "none":
                return None  # type: ignore[return-value]
            case "float":
                return 1.0  # type: ignore[return-value]
        return self.settings.answer

    def count_many(self, windows: object) -> list[int]:
        return self.settings.many

    def problems(self) -> Iterator[Problem]:
        yield Problem(f"refuses {self.settings.password.reveal()}", "be kind")

    def extract(self, request: ExtractRequest) -> Batches:
        raise PermanentError("there is nothing to extract")
        yield


@hookimpl
def pipeline_connectors() -> Iterator[Provider[FaultySettings]]:
    """The faulty source."""
    yield Provider("faulty", FaultySettings, can={Can.EXTRACT})
