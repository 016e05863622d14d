"""What a database's own error codes mean to the core."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from attrs import frozen

from pipeline_core import PipelineError, SideError, TransientError


@frozen
class Codes:
    """Codes by how they begin, with what a person should do about each: what heals by itself, what heals for every
    window of the side alike, and what waits for a person. The first that fits counts.
    """

    heals: Mapping[str, str]
    heals_for_all: Mapping[str, str]
    needs_a_person: Mapping[str, str]

    def error(self, code: str, said: str) -> PipelineError | None:
        """The error of the core for a code, whose message begins with `said`; None for a code that is not listed."""
        kinds: tuple[tuple[Mapping[str, str], Callable[[str], PipelineError]], ...] = (
            (self.heals, TransientError),
            (self.heals_for_all, partial(TransientError, side_down=True)),
            (self.needs_a_person, SideError),
        )
        for listed, kind in kinds:
            for begin, advice in listed.items():
                if code.startswith(begin):
                    return kind(f"{said}; {advice}")
        return None
