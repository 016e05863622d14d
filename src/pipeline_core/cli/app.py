"""The commands. Each parses, calls one verb of `Pipeline`, prints what it answers, and ends with its exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from pipeline_core.cli import hands, starter, views
from pipeline_core.cli.options import From, To, takes_common_options, verb
from pipeline_core.cli.session import Session
from pipeline_core.cli.store import store_app
from pipeline_core.cli.terminal import Terminal
from pipeline_core.errors import ConfigError
from pipeline_core.pipeline import Pipeline
from pipeline_core.reports import Exit, window_mapping
from pipeline_core.window import Window

NAME = "pipeline-core"
# Where typer's usage errors begin: in older releases the class is click's, in newer ones typer's own.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    help="Moves time-windowed data between systems, one window at a time, and keeps the evidence.",
    add_completion=False,
    rich_markup_mode=None,
)
config_app = typer.Typer(help="The configuration: check it, or get its JSON Schema.", rich_markup_mode=None)
app.add_typer(config_app, name="config")
app.add_typer(store_app, name="store")
takes_common_options(app)
takes_common_options(config_app)


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line, that of the process unless given; returns the exit code."""
    given = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
    try:
        return int(app(given, prog_name=NAME, standalone_mode=False) or Exit.OK)
    except _UsageError as error:
        # The options are not parsed, so nobody else knows yet that JSON is wanted.
        message = error.format_message()  # type: ignore[attr-defined]
        return Terminal(json="--json" in given).fail(ConfigError(f"{message.rstrip('.')}; see `{NAME} --help`"))


@verb(app, each=False)
def init(
    session: Session,
    file: Annotated[Path | None, typer.Argument(help="Where to write it (that of -c).")] = None,
    *,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> Exit:
    """Write a commented configuration to start from."""
    path = file or session.common.config
    starter.write(path, force=force)
    mapping = {"file": str(path), "exit_code": int(Exit.OK)}
    session.terminal.show(mapping, Text(f"{path}: written; change it, then try `{NAME} doctor`"))
    return Exit.OK


@verb(app)
def plan(
    session: Session,
    *,
    start: From = None,
    end: To = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would change, and why.")] = False,
    ddl: Annotated[bool, typer.Option("--ddl", help="Only print the statements that the target lacks.")] = False,
) -> Exit:
    """Bring the records of windows in line with the configuration."""
    with session.pipeline() as pipeline:
        if ddl:
            return _show_ddl(session, pipeline)
        change = pipeline.plan(start=start, end=end, dry_run=dry_run)
    mapping = {
        "pipeline": change.pipeline,
        "dry_run": dry_run,
        "add": [{**_span(a.start_us, a.end_us), "attempts": a.attempts} for a in change.add],
        "supersede": [{**_span(r.start_us, r.end_us), "reason": r.reason} for r in change.remove],
        "notes": list(change.notes),
        "exit_code": int(Exit.OK),
    }
    session.terminal.show(mapping, views.plan_view(change, pipeline.config.policy.timezone, dry_run=dry_run))
    return Exit.OK


def _show_ddl(session: Session, pipeline: Pipeline) -> Exit:
    name, statements = pipeline.config.pipeline, pipeline.ddl()
    mapping = {"pipeline": name, "statements": statements, "exit_code": int(Exit.OK)}
    session.terminal.show(mapping, *(statements or [f"-- {name}: the target lacks nothing"]))
    return Exit.OK


@verb(app, "run")
def run_windows(
    session: Session,
    *,
    workers: Annotated[int | None, typer.Option(min=1, help="Windows worked on at once (run.workers).")] = None,
    limit: Annotated[int | None, typer.Option(min=0, help="So many windows at most.")] = None,
    start: From = None,
    end: To = None,
) -> Exit:
    """Plan, then work until no window is ready."""
    with session.pipeline(bars=True) as pipeline:
        report = pipeline.run(workers=workers, limit=limit, start=start, end=end)
    session.terminal.show(report.as_mapping(), views.run_view(report))
    return report.exit_code


@verb(app)
def check(
    session: Session,
    *,
    start: From = None,
    end: To = None,
    reopen: Annotated[bool, typer.Option("--reopen", help="Make pending again what differs.")] = False,
) -> Exit:
    """Count the done windows again, on both sides."""
    with session.pipeline() as pipeline:
        report = pipeline.check(start=start, end=end, reopen=reopen)
    session.terminal.show(report.as_mapping(), views.check_view(report, pipeline.config.policy.timezone))
    return report.exit_code


@verb(app)
def status(session: Session) -> Exit:
    """Show where the pipeline stands."""
    with session.pipeline() as pipeline:
        report = pipeline.status()
    view = views.status_line if session.common.every else views.status_view
    session.terminal.show(report.as_mapping(), view(report, pipeline.config.policy.timezone))
    return report.exit_code


hands.add_to(app)


@verb(app, each=False)
def plugins(session: Session) -> Exit:
    """List the types that can be selected."""
    manager = session.manager()
    listing, broken = manager.listing(), [str(error) for error in manager.broken]
    code = Exit.ATTENTION if broken or any(one.problem for one in listing) else Exit.OK
    mapping = {
        "providers": [
            {
                "kind": str(one.kind),
                "type": one.name,
                "summary": one.summary,
                "distribution": one.distribution,
                "version": one.version,
                "module": one.module,
                "can": [str(verb) for verb in one.can],
                "problem": one.problem,
            }
            for one in listing
        ],
        "broken": broken,
        "exit_code": int(code),
    }
    session.terminal.show(mapping, views.plugins_view(listing, broken))
    return code


@verb(app)
def doctor(session: Session) -> Exit:
    """Try each part, and name the remedy of each problem."""
    with session.pipeline() as pipeline:
        findings = pipeline.doctor()
    code = Exit.ATTENTION if any(finding.severity == "problem" for finding in findings) else Exit.OK
    found = [finding.as_mapping() for finding in findings]
    mapping = {"pipeline": pipeline.config.pipeline, "findings": found, "exit_code": int(code)}
    session.terminal.show(mapping, views.doctor_view(findings, session.terminal.about))
    return code


@verb(config_app)
def validate(session: Session) -> Exit:
    """Check the configuration without opening anything."""
    config = session.config()
    code = Exit.ATTENTION if config.lacking else Exit.OK
    found = f"default_record lacks check fields: {', '.join(config.lacking)}" if config.lacking else "ok"
    mapping = {
        "pipeline": config.pipeline,
        "warnings": list(config.warnings),
        "lacking": config.lacking,
        "exit_code": int(code),
    }
    sides = f"{config.source.type} to {config.target.type}"
    session.terminal.show(mapping, Text(f"{session.common.config}: {found}: {config.pipeline}, {sides}"))
    return code


@verb(config_app, each=False)
def schema(session: Session) -> Exit:
    """Print the JSON Schema of the configuration, with every installed plugin's settings."""
    from pipeline_core.config.schema import json_schema  # noqa: PLC0415 - cattrs loads here

    session.terminal.document(json_schema(session.manager()))
    return Exit.OK


def _span(start_us: int, end_us: int) -> dict[str, str]:
    return window_mapping(Window.from_us(start_us, end_us))
