"""Moves time-windowed data between systems, one window at a time, and keeps the evidence.

Everything that a plugin or a program needs is here; the modules below `pipeline_core.engine` are private.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pipeline_core.contracts import (
    Batch,
    Batches,
    Can,
    ClaimRequest,
    Connector,
    Context,
    DeferredTarget,
    ExtractRequest,
    Load,
    Observer,
    Problem,
    Provider,
    Publication,
    RecordStore,
    SecretResolver,
    Settings,
    Source,
    Stage,
    Staged,
    StagedFile,
    StageRequest,
    Target,
)
from pipeline_core.decision import Counts, Decision
from pipeline_core.errors import (
    AuditError,
    ClaimLostError,
    ConfigError,
    MismatchError,
    PermanentError,
    PipelineError,
    PluginError,
    RecordError,
    ShrinkError,
    SideError,
    TimeError,
    TransientError,
)
from pipeline_core.hookspecs import hookimpl
from pipeline_core.record import (
    Addition,
    Asked,
    Change,
    Claim,
    Event,
    Hand,
    Intervention,
    Outcome,
    Pruned,
    Pruning,
    Record,
    Removal,
    Span,
    Status,
    Verdict,
)
from pipeline_core.secrets import Secret
from pipeline_core.window import Window

if TYPE_CHECKING:
    from pipeline_core.pipeline import Pipeline
    from pipeline_core.timepolicy import ElapsedPolicy, TimePolicy, WallClockPolicy

__all__ = [
    "Addition",
    "Asked",
    "AuditError",
    "Batch",
    "Batches",
    "Can",
    "Change",
    "Claim",
    "ClaimLostError",
    "ClaimRequest",
    "ConfigError",
    "Connector",
    "Context",
    "Counts",
    "Decision",
    "DeferredTarget",
    "ElapsedPolicy",
    "Event",
    "ExtractRequest",
    "Hand",
    "Intervention",
    "Load",
    "MismatchError",
    "Observer",
    "Outcome",
    "PermanentError",
    "Pipeline",
    "PipelineError",
    "PluginError",
    "Problem",
    "Provider",
    "Pruned",
    "Pruning",
    "Publication",
    "Record",
    "RecordError",
    "RecordStore",
    "Removal",
    "Secret",
    "SecretResolver",
    "Settings",
    "ShrinkError",
    "SideError",
    "Source",
    "Span",
    "Stage",
    "StageRequest",
    "Staged",
    "StagedFile",
    "Status",
    "Target",
    "TimeError",
    "TimePolicy",
    "TransientError",
    "Verdict",
    "WallClockPolicy",
    "Window",
    "hookimpl",
]


# A connector or a store needs the contract, not the engine nor the policies: those load at their first use.
_LATER = {
    "ElapsedPolicy": "pipeline_core.timepolicy",
    "Pipeline": "pipeline_core.pipeline",
    "TimePolicy": "pipeline_core.timepolicy",
    "WallClockPolicy": "pipeline_core.timepolicy",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)
