"""The hooks, all of one shape: each yields providers, and the configuration selects one by name.

A plugin implements the hooks it wants as plain functions marked with `hookimpl`, in the module that its entry point
in the group `pipeline_core` names. That module imports no driver: a driver loads when a provider's settings are opened.
Nothing takes effect by being installed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from pipeline_core.contracts import (
        Connector,
        Observer,
        Provider,
        RecordStore,
        SecretResolver,
        Settings,
        Stage,
    )
    from pipeline_core.timepolicy import TimePolicy

PROJECT = "pipeline_core"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def pipeline_time_policies() -> Iterable[Provider[TimePolicy]]:  # type: ignore[empty-body]
    """Time policies. The settings class is the policy: subclass `TimePolicy` and say `window_at`.

    Called once, when the plugin is loaded. `[time] type = "name"` selects one::

        @hookimpl
        def pipeline_time_policies():
            yield Provider("business-day", BusinessDayPolicy)
    """


@hookspec
def pipeline_record_stores() -> Iterable[Provider[Settings[RecordStore]]]:  # type: ignore[empty-body]
    """Record stores: count-free storage of records. `[store] type = "name"` selects one.

    Called once, when the plugin is loaded::

        @hookimpl
        def pipeline_record_stores():
            yield Provider("sql", SqlStoreSettings)
    """


@hookspec
def pipeline_connectors() -> Iterable[Provider[Settings[Connector]]]:  # type: ignore[empty-body]
    """Connectors: every one counts; one that declares EXTRACT is a `Source`, one that declares LOAD a `Target`.

    Called once, when the plugin is loaded. `[source] type = "name"` or `[target] type = "name"` selects one::

        @hookimpl
        def pipeline_connectors():
            yield Provider("sql", SqlSettings, can={Can.EXTRACT, Can.LOAD, Can.ATOMIC})
    """


@hookspec
def pipeline_stages() -> Iterable[Provider[Settings[Stage]]]:  # type: ignore[empty-body]
    """Stages. `[stage] type = "name"` selects one. Called once, when the plugin is loaded::

    @hookimpl
    def pipeline_stages():
        yield Provider("objects", ObjectStageSettings)
    """


@hookspec
def pipeline_secret_resolvers() -> Iterable[Provider[Settings[SecretResolver]]]:  # type: ignore[empty-body]
    """Resolvers of `${prefix:name}`; the provider's name is the prefix, `[secrets.prefix]` its settings.

    Called once, when the plugin is loaded::

        @hookimpl
        def pipeline_secret_resolvers():
            yield Provider("vault", VaultSettings)
    """


@hookspec
def pipeline_observers() -> Iterable[Provider[Settings[Observer]]]:  # type: ignore[empty-body]
    """Observers. Each `[[observers]] type = "name"` adds one. Called once, when the plugin is loaded::

    @hookimpl
    def pipeline_observers():
        yield Provider("metrics", MetricsSettings)
    """
