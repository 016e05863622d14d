"""Every error of the library: one root, and messages that say where, what was found, what was expected, what next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class PipelineError(Exception):
    """The root of every error raised by the core and by well-behaved plugins."""


class TimeError(PipelineError, ValueError):
    """A time, a zone, a granularity or a window that cannot be used."""


class ConfigError(PipelineError, ValueError):
    """The configuration cannot be used. `problems` holds every finding, one line each."""

    def __init__(self, problems: str | list[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class PluginError(PipelineError):
    """A plugin cannot be loaded, or provides something that does not fit. Names the distribution it came from."""


class RecordError(PipelineError, ValueError):
    """A record, or a mapping that stands for one, is not well formed; or a transition the table does not allow."""


class TransientError(PipelineError):
    """What can heal by itself: connectivity, throttling, a lock wait. Raised by plugins, retried by the core alone.

    `retry_after` is the wait in seconds that the other side asked for, if it did. `side_down` says that the whole
    side is unreachable or throttles, so that no other window would fare better: the run then stops claiming, and the
    window's attempts are left alone. The core notes in `part` whose it is: `source`, `stage`, `target`,
    `store` or `host`.
    """

    part: str | None = None

    def __init__(self, message: str, *, retry_after: float | None = None, side_down: bool = False) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.side_down = side_down


class AuditError(TransientError):
    """After the load a side held something else than was staged: the window has to be done again, from the count on."""


class PermanentError(PipelineError):
    """What waiting cannot heal: a value that does not fit its column, a query that is refused."""


class SideError(PermanentError):
    """A whole side refuses until a person acts: a wrong password, a missing table or column, no right to write.

    No other window would fare better, so the run stops, the window goes back to pending and no attempt is used.
    """


class MismatchError(PermanentError):
    """The window does not hold the rows it should: nothing was published."""


class ShrinkError(PermanentError):
    """The source holds fewer rows than it must for a load to lose none: nothing was replaced. `counts` holds them."""

    def __init__(self, message: str, counts: Mapping[str, int | None]) -> None:
        super().__init__(message)
        self.counts = counts


class ClaimLostError(PipelineError):
    """A later fence holds the window: its worker stops at once and writes nothing."""


class Interrupted(PipelineError):  # noqa: N818 - a request to stop is no error, but must travel like one
    """The run was asked to stop: the window goes back to pending, with its attempts as they were."""


def nearest(name: str, known: Sequence[str]) -> str:
    """Words for the end of a message: the known names nearest to `name`, of a column or a table for instance."""
    from difflib import get_close_matches  # noqa: PLC0415 - for a mistake only

    if not known:
        return "there is none"
    spelled = {each.casefold(): each for each in known}
    near = get_close_matches(name.casefold(), spelled, n=3, cutoff=0.5) or sorted(spelled)[:3]
    return "nearest: " + ", ".join(repr(spelled[each]) for each in near)
