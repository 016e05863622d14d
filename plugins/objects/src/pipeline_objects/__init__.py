"""A stage of Parquet files, as a plugin of pipeline_core. Importing it loads no Arrow library."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline_core.contracts import Provider, Settings, Stage
from pipeline_core.hookspecs import hookimpl
from pipeline_objects.settings import ObjectStageSettings

__all__ = ["ObjectStageSettings", "pipeline_stages"]


@hookimpl
def pipeline_stages() -> Iterable[Provider[Settings[Stage]]]:
    """The stage that `[stage] type = "objects"` selects."""
    yield Provider("objects", ObjectStageSettings)
