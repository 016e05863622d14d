"""How a function becomes a command: the common options, taken before its name as well as after, and how it ends."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline_core.cli.interrupt import interruptible
from pipeline_core.cli.session import Common, LogFormat, LogLevel, Session
from pipeline_core.cli.terminal import LogLines, Terminal
from pipeline_core.log import LOGGER, JsonFormatter, TextFormatter
from pipeline_core.reports import Exit

Command = Callable[..., Exit]
From = Annotated[str | None, typer.Option("--from", metavar="TIME", help="Windows that start here or later; local.")]
To = Annotated[str | None, typer.Option("--to", metavar="TIME", help="Windows that start before this; local.")]


def given(
    config: Annotated[Path | None, typer.Option("--config", "-c", help="The configuration (pipeline.toml).")] = None,
    profile: Annotated[str | None, typer.Option(help="A profile of the configuration, such as prod.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
    log_level: Annotated[LogLevel | None, typer.Option(help="How much is logged on stderr (warning).")] = None,
    log_format: Annotated[LogFormat | None, typer.Option(help="How log lines look (text).")] = None,
) -> Mapping[str, Any]:
    """Those of the common options that were given. Its parameters are their one definition."""
    values = {"config": config, "profile": profile, "json": json or None}
    values |= {"log_level": log_level, "log_format": log_format}
    return {name: value for name, value in values.items() if value is not None}


_COMMON = inspect.signature(given, eval_str=True).parameters


def takes_common_options(app: typer.Typer) -> None:
    """Lets the app take the common options before the command's name; its commands find them in `context.obj`."""

    def before(context: typer.Context, **values: Any) -> None:
        context.obj = {**(context.obj or {}), **given(**values)}

    app.callback()(_with_parameters(before, []))


def verb(app: typer.Typer, name: str | None = None) -> Callable[[Command], Command]:
    """Makes a command of a function that takes a Session and options of its own, and returns the exit code."""

    def register(function: Command) -> Command:
        _, *own = inspect.signature(function, eval_str=True).parameters.values()

        @functools.wraps(function)
        def command(context: typer.Context, **values: Any) -> int:
            after = given(**{option: values.pop(option) for option in _COMMON})
            return int(_ended(Common(**{**context.obj, **after}), function, values))

        app.command(name)(_with_parameters(command, own))
        return function

    return register


def _with_parameters(function: Callable[..., Any], own: list[Parameter]) -> Callable[..., Any]:
    """The function as typer sees it: with parameters of its own, then the common options."""
    parameters = [Parameter("context", Parameter.KEYWORD_ONLY, annotation=typer.Context)]
    parameters += [each.replace(kind=Parameter.KEYWORD_ONLY) for each in (*own, *_COMMON.values())]
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return function


def _ended(common: Common, function: Command, values: Mapping[str, Any]) -> Exit:
    terminal = Terminal(common.json, debug=common.log_level is LogLevel.DEBUG)
    try:
        with interruptible(terminal.say), _logging(terminal, common):
            return function(Session(common, terminal), **values)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - where the program ends: a message and a code
        return terminal.fail(error)


@contextmanager
def _logging(terminal: Terminal, common: Common) -> Iterator[None]:
    """Log lines on stderr: ours from the level asked for, those of other libraries from WARNING."""
    handler = LogLines(terminal, JsonFormatter() if common.log_format is LogFormat.JSON else TextFormatter())
    root, level = logging.getLogger(), LOGGER.level
    root.addHandler(handler)
    LOGGER.setLevel(common.log_level.upper())
    try:
        yield
    finally:
        root.removeHandler(handler)
        LOGGER.setLevel(level)
