"""What a person does to windows: `retry`, `reload`, `skip` and `release`."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline_core.cli import views
from pipeline_core.cli.options import From, To, verb
from pipeline_core.cli.session import Session
from pipeline_core.reports import Exit, HandReport

One = Annotated[str | None, typer.Option("--window", metavar="TIME", help="The one window that holds this time.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; it is kept with who you are.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show which windows it would be.")]
AcceptShrink = Annotated[
    bool, typer.Option("--accept-shrink", help="Also where the source holds fewer rows than were verified.")
]


def add_to(app: typer.Typer) -> None:
    """Adds the commands."""
    for command in (retry, reload, skip, release):
        verb(app)(command)


def retry(
    session: Session, *, reason: Reason, start: From = None, end: To = None, window: One = None, dry_run: DryRun = False
) -> Exit:
    """Try quarantined windows again, from their first attempt on."""
    with session.pipeline() as pipeline:
        report = pipeline.retry(start=start, end=end, window=window, reason=reason, dry_run=dry_run)
    return _shown(session, report, pipeline.config.policy.timezone)


def reload(
    session: Session,
    *,
    reason: Reason,
    start: From = None,
    end: To = None,
    window: One = None,
    accept_shrink: AcceptShrink = False,
    dry_run: DryRun = False,
) -> Exit:
    """Move windows again with the next run, even though their counts agree."""
    with session.pipeline() as pipeline:
        report = pipeline.reload(
            start=start, end=end, window=window, reason=reason, accept_shrink=accept_shrink, dry_run=dry_run
        )
    return _shown(session, report, pipeline.config.policy.timezone)


def skip(
    session: Session, *, reason: Reason, start: From = None, end: To = None, window: One = None, dry_run: DryRun = False
) -> Exit:
    """Take pending and quarantined windows out: they count as done."""
    with session.pipeline() as pipeline:
        report = pipeline.skip(start=start, end=end, window=window, reason=reason, dry_run=dry_run)
    return _shown(session, report, pipeline.config.policy.timezone)


def release(
    session: Session, *, reason: Reason, start: From = None, end: To = None, window: One = None, dry_run: DryRun = False
) -> Exit:
    """Take running windows from whoever holds them."""
    with session.pipeline() as pipeline:
        report = pipeline.release(start=start, end=end, window=window, reason=reason, dry_run=dry_run)
    return _shown(session, report, pipeline.config.policy.timezone)


def _shown(session: Session, report: HandReport, zone: str) -> Exit:
    session.terminal.show(report.as_mapping(), views.hand_view(report, zone))
    return report.exit_code
