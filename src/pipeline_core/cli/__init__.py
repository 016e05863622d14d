"""The command line `pipeline-core`: a thin face over `pipeline_core.Pipeline`. Needs the extra `cli`."""

from __future__ import annotations

import io
import sys

_EXTRA = {"typer", "rich"}


def main() -> None:
    """The script `pipeline-core`. Exits 0, 1, 2 or 3: see `pipeline_core.reports.Exit`."""
    try:
        from pipeline_core.cli.app import run  # noqa: PLC0415 - the extra may not be installed
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        sys.stderr.write("pipeline-core: the command line is an extra: pip install 'windowed-pipeline[cli]'\n")
        sys.exit(2)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # an old terminal's encoding must not end a run
    sys.exit(run())
