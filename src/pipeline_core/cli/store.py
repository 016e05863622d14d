"""`pipeline-core store`: what is kept of a pipeline, and where."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from pipeline_core.cli import views
from pipeline_core.cli.options import takes_common_options, verb
from pipeline_core.cli.session import Session
from pipeline_core.pipeline import export_stores
from pipeline_core.reports import Exit, MoveReport

store_app = typer.Typer(help="What is kept: the records, and the ledger of the target.", rich_markup_mode=None)
takes_common_options(store_app)


@verb(store_app)
def upgrade(session: Session) -> Exit:
    """Make or update what the records are kept in, so that workers need no right to."""
    with session.pipeline() as pipeline:
        done = pipeline.store.upgrade()
        name = pipeline.config.pipeline
    session.terminal.show({"pipeline": name, "upgrade": done, "exit_code": int(Exit.OK)}, Text(f"record store: {done}"))
    return Exit.OK


@verb(store_app)
def adopt(
    session: Session,
    *,
    from_pipeline: Annotated[
        str, typer.Option("--from-pipeline", metavar="NAME", help="The pipeline whose place this one takes.")
    ],
    start: Annotated[str | None, typer.Option("--from", metavar="TIME", help="Only from here on; local.")] = None,
    end: Annotated[str | None, typer.Option("--to", metavar="TIME", help="Only before this; local.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what it would be.")] = False,
) -> Exit:
    """Take over what another pipeline has published into this table."""
    with session.pipeline() as pipeline:
        report = pipeline.adopt(from_pipeline, start=start, end=end, dry_run=dry_run)
    session.terminal.show(report.as_mapping(), views.adoption_view(report, pipeline.config.policy.timezone))
    return report.exit_code


@verb(store_app, together=True)
def export(
    session: Session, file: Annotated[Path, typer.Argument(help="Where to write it; it must not be there yet.")]
) -> Exit:
    """Write all that the store keeps of the pipeline to a file, or with --all of every pipeline to one."""
    with session.pipelines() as pipelines:
        reports = export_stores(pipelines, file)
    if not session.common.every:
        return _shown(session, reports[0])
    documents = [report.as_mapping() for report in reports]
    lines = [views.move_view(report) for report in reports]
    session.terminal.show({"pipelines": documents, "exit_code": int(Exit.OK)}, *lines)
    return Exit.OK


@verb(store_app, "import")
def import_(session: Session, file: Annotated[Path, typer.Argument(help="What `store export` has written.")]) -> Exit:
    """Take such a file into a store that keeps nothing of the pipeline yet."""
    with session.pipeline() as pipeline:
        return _shown(session, pipeline.import_store(file))


@verb(store_app)
def prune(
    session: Session,
    *,
    before: Annotated[str, typer.Option("--before", metavar="TIME", help="Windows that end by then; local.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what would go.")] = False,
) -> Exit:
    """Tell old done windows in short: their counts stay, their evidence and events go."""
    with session.pipeline() as pipeline:
        report = pipeline.prune_store(before=before, dry_run=dry_run)
    session.terminal.show(report.as_mapping(), views.prune_view(report, pipeline.config.policy.timezone))
    return report.exit_code


def _shown(session: Session, report: MoveReport) -> Exit:
    session.terminal.show(report.as_mapping(), views.move_view(report))
    return report.exit_code
