"""`pipeline-core store`: what is kept of a pipeline, and where."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from pipeline_core.cli import views
from pipeline_core.cli.options import takes_common_options, verb
from pipeline_core.cli.session import Session
from pipeline_core.reports import Exit

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
) -> Exit:
    """Take over what another pipeline has published into this table."""
    with session.pipeline() as pipeline:
        report = pipeline.adopt(from_pipeline, start=start, end=end)
    session.terminal.show(report.as_mapping(), views.adoption_view(report, pipeline.config.policy.timezone))
    return report.exit_code
