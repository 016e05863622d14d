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
from attrs import evolve

from pipeline_core.cli.interrupt import interruptible
from pipeline_core.cli.session import Common, LogFormat, LogLevel, Session
from pipeline_core.cli.terminal import LogLines, Terminal
from pipeline_core.config import names_in_file
from pipeline_core.errors import ConfigError
from pipeline_core.log import LOGGER, JsonFormatter, TextFormatter
from pipeline_core.reports import Exit

Command = Callable[..., Exit]
From = Annotated[str | None, typer.Option("--from", metavar="TIME", help="Windows that start here or later; local.")]
To = Annotated[str | None, typer.Option("--to", metavar="TIME", help="Windows that start before this; local.")]


def given(
    *,
    config: Annotated[Path | None, typer.Option("--config", "-c", help="The configuration (pipeline.toml).")] = None,
    pipeline: Annotated[str | None, typer.Option("--pipeline", "-p", metavar="NAME", help="One of several.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Each pipeline of the configuration in turn.")] = False,
    profile: Annotated[str | None, typer.Option(help="A profile of the configuration, such as prod.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
    log_level: Annotated[LogLevel | None, typer.Option(help="How much is logged on stderr (warning).")] = None,
    log_format: Annotated[LogFormat | None, typer.Option(help="How log lines look (text).")] = None,
) -> Mapping[str, Any]:
    """Those of the common options that were given. Its parameters are their one definition."""
    values = {"config": config, "pipeline": pipeline, "every": every or None, "profile": profile, "json": json or None}
    values |= {"log_level": log_level, "log_format": log_format}
    return {name: value for name, value in values.items() if value is not None}


_COMMON = inspect.signature(given, eval_str=True).parameters


def takes_common_options(app: typer.Typer) -> None:
    """Lets the app take the common options before the command's name; its commands find them in `context.obj`."""

    def before(context: typer.Context, **values: Any) -> None:
        context.obj = {**(context.obj or {}), **given(**values)}

    app.callback()(_with_parameters(before, []))


def verb(
    app: typer.Typer, name: str | None = None, *, each: bool = True, together: bool = False
) -> Callable[[Command], Command]:
    """Makes a command of a function that takes a Session and options of its own, and returns the exit code.

    `each`: with `--all` it is called for every pipeline of the configuration; `together`: once for all of them.
    """

    def register(function: Command) -> Command:
        _, *own = inspect.signature(function, eval_str=True).parameters.values()

        @functools.wraps(function)
        def command(context: typer.Context, **values: Any) -> int:
            after = given(**{option: values.pop(option) for option in _COMMON})
            common = Common(**{**context.obj, **after})
            return int(_ended(common, functools.partial(function, **values), each=each, together=together))

        app.command(name)(_with_parameters(command, own))
        return function

    return register


def _with_parameters(function: Callable[..., Any], own: list[Parameter]) -> Callable[..., Any]:
    """The function as typer sees it: with parameters of its own, then the common options."""
    parameters = [Parameter("context", Parameter.KEYWORD_ONLY, annotation=typer.Context)]
    parameters += [each.replace(kind=Parameter.KEYWORD_ONLY) for each in (*own, *_COMMON.values())]
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return function


def _ended(common: Common, act: Command, *, each: bool, together: bool) -> Exit:
    terminal = Terminal(common.json, debug=common.log_level is LogLevel.DEBUG)
    try:
        with interruptible(terminal.say), _logging(terminal, common):
            _check(common)
            if common.every and not together:
                return _each(common, terminal, act, each=each)
            return _once(common, terminal, act)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - where the program ends: a message and a code
        return terminal.fail(error)


def _check(common: Common) -> None:
    if common.every and common.pipeline is not None:
        raise ConfigError("--all: found -p too, expected one of the two")


def _once(common: Common, terminal: Terminal, act: Command) -> Exit:
    return act(Session(common, terminal))


def _each(common: Common, terminal: Terminal, act: Command, *, each: bool) -> Exit:
    """The command for every pipeline in turn, which ends with the highest code; one that fails stops no other."""
    if not each:
        raise ConfigError("--all: this command is of no pipeline; leave it out")
    codes, documents = [Exit.OK], []
    names: list[str | None] = [*names_in_file(common.config)]
    for name in names or [None]:
        part = terminal.of(name or "")
        try:
            codes.append(_once(evolve(common, pipeline=name), part, act))
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - where a pipeline ends: a message and a code
            codes.append(part.fail(error))
            if isinstance(error, KeyboardInterrupt):
                break
        finally:
            documents += [{"pipeline": name, **document} for document in part.collected or ()]
    if common.json:
        terminal.document({"pipelines": documents, "exit_code": int(max(codes))})
    return max(codes)


@contextmanager
def _logging(terminal: Terminal, common: Common) -> Iterator[None]:
    """Log lines on stderr: ours from the level asked for, those of other libraries from WARNING."""
    from stamina.instrumentation import set_on_retry_hooks  # noqa: PLC0415 - `--help` does without

    set_on_retry_hooks([])  # they say less of a retry than we do; where structlog is installed on stdout, amid the JSON
    handler = LogLines(terminal, JsonFormatter() if common.log_format is LogFormat.JSON else TextFormatter())
    root, level = logging.getLogger(), LOGGER.level
    root.addHandler(handler)
    LOGGER.setLevel(common.log_level.upper())
    try:
        yield
    finally:
        root.removeHandler(handler)
        LOGGER.setLevel(level)
