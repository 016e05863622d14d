"""Where things are written: results on stdout, everything else on stderr; with `--json` one document on stdout."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Mapping
from functools import partial
from typing import Any

from attrs import evolve, field, frozen
from rich.console import Console, RenderableType
from rich.text import Text

from pipeline_core.errors import (
    ClaimLostError,
    ConfigError,
    Interrupted,
    PipelineError,
    PluginError,
    RecordError,
    SideError,
    TimeError,
    TransientError,
)
from pipeline_core.log import cleaned
from pipeline_core.reports import Exit
from pipeline_core.secrets import redact

_USAGE = (ConfigError, PluginError, RecordError, SideError, TimeError)
_UNDONE = (ClaimLostError, Interrupted, KeyboardInterrupt, TransientError)


#: Columns of what is no terminal: tables are laid out for some width.
UNLIMITED = 100_000


def _results() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=UNLIMITED)


@frozen
class Terminal:
    """The two streams. `debug` shows the traceback of a failure.

    One of several pipelines has its failures told with its name, `about`, and its documents `collected` into one.
    """

    json: bool = False
    debug: bool = False
    out: Console = field(factory=_results)
    err: Console = field(factory=partial(Console, stderr=True, highlight=False))
    about: str = ""
    collected: list[Mapping[str, Any]] | None = None

    def of(self, name: str) -> Terminal:
        """The same streams, for one of several pipelines."""
        return evolve(self, about=f"{name}: " if name else "", collected=[])

    def show(self, mapping: Mapping[str, Any], *rendered: RenderableType) -> None:
        """A result: the mapping for machines, the rest for people. Plain text is never wrapped: it is to be copied; and
        nothing is where no terminal shows it: it is to be searched.
        """
        if self.json:
            self.document(mapping)
        else:
            for part in rendered:
                if isinstance(part, str):
                    self.out.out(part, highlight=False)
                else:
                    self.out.print(part)

    def say(self, text: str, style: str = "") -> None:
        """A line on stderr, above the bars where there are any; never wrapped, so that it can be searched."""
        self.err.print(Text(redact(text), style), soft_wrap=True)

    def fail(self, error: BaseException) -> Exit:
        """Says what went wrong, and returns the exit code that it means. Without traceback, unless debugging."""
        code, problems = exit_code(error), problems_of(error)
        if self.json:
            self.document({"error": "\n".join(problems), "problems": problems, "exit_code": int(code)})
        for problem in problems:
            self.say(f"pipeline-core: {self.about}{problem}", "red")
        if self.debug:
            self.say("".join(traceback.format_exception(error)).rstrip())
        return code

    def document(self, mapping: Mapping[str, Any]) -> None:
        """One JSON document on stdout, or a part of one. Its texts are cleaned of secrets; a number stays a number."""
        if self.collected is not None:
            self.collected.append(mapping)
            return
        self.out.out(json.dumps(cleaned(mapping), indent=2), highlight=False)


class LogLines(logging.Handler):
    """Writes log lines to stderr by way of the terminal, so that they pass above the bars."""

    def __init__(self, terminal: Terminal, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self._terminal = terminal

    def emit(self, record: logging.LogRecord) -> None:
        """One line a record."""
        self._terminal.say(self.format(record))


def exit_code(error: BaseException) -> Exit:
    """What a failure means to whoever called: 2 a person must change something, 3 try again, 1 anything else."""
    if isinstance(error, _USAGE):
        return Exit.USAGE
    return Exit.UNDONE if isinstance(error, _UNDONE) else Exit.ATTENTION


def problems_of(error: BaseException) -> list[str]:
    """What to say of a failure, one line a finding, without secrets."""
    if isinstance(error, KeyboardInterrupt):
        return ["interrupted: no window is left half done; the next run goes on from here"]
    if isinstance(error, ConfigError):
        return [redact(problem) for problem in error.problems]
    if isinstance(error, PipelineError):
        return [redact(str(error))]
    text = f"unexpected {type(error).__name__}: {error}; this is a fault of the program or of a plugin"
    return [redact(f"{text}: run again with --log-level debug to see where")]
