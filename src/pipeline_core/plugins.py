"""Plugins: found, loaded each by itself, and asked for by name.

The manager is an instance. A plugin is taken whole or not at all: what it yields is looked at before any of it counts.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from enum import StrEnum
from types import ModuleType
from typing import Any, cast

import attrs
import pluggy
from attrs import frozen

from pipeline_core import builtin, hookspecs
from pipeline_core.contracts import (
    Can,
    Connector,
    Observer,
    Provider,
    RecordStore,
    SecretResolver,
    Settings,
    Stage,
)
from pipeline_core.errors import ConfigError, PluginError
from pipeline_core.hookspecs import PROJECT
from pipeline_core.secrets import redact
from pipeline_core.timepolicy import TimePolicy

_CORE = "windowed-pipeline"
#: Which package brings a name that is not installed.
_PACKAGES = {name: f"{_CORE}-{name}" for name in ("sql", "elasticsearch", "objects", "duckdb", "snowflake")}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class Kind(StrEnum):
    """What a provider provides."""

    TIME_POLICY = "time policy"
    RECORD_STORE = "record store"
    CONNECTOR = "connector"
    STAGE = "stage"
    SECRET_RESOLVER = "secret resolver"  # noqa: S105 - a kind of plugin, no secret
    OBSERVER = "observer"


_HOOKS = {
    "pipeline_time_policies": Kind.TIME_POLICY,
    "pipeline_record_stores": Kind.RECORD_STORE,
    "pipeline_connectors": Kind.CONNECTOR,
    "pipeline_stages": Kind.STAGE,
    "pipeline_secret_resolvers": Kind.SECRET_RESOLVER,
    "pipeline_observers": Kind.OBSERVER,
}


@frozen
class Origin:
    """Where a plugin came from; the first two are empty for one that is not installed."""

    distribution: str
    version: str
    module: str

    def __str__(self) -> str:
        if not self.distribution:
            return f"{self.module} (not installed)"
        return f"{self.distribution} {self.version} ({self.module})"


@frozen
class Listed:
    """One provider as people see it. `problem` is empty unless the provider cannot be selected."""

    kind: Kind
    name: str
    summary: str
    distribution: str
    version: str
    module: str
    can: tuple[Can, ...]
    problem: str


@frozen
class _Registered:
    kind: Kind
    provider: Provider[Any]
    origin: Origin


class PluginManager:
    """The providers of the core, of every installed plugin, and of `plugins`: importable names, or modules.

    An installed plugin that cannot be loaded is set aside in `broken`; one of `plugins` raises PluginError.
    """

    def __init__(self, plugins: Iterable[str | ModuleType] = ()) -> None:
        self._providers: dict[tuple[Kind, str], list[_Registered]] = defaultdict(list)
        self._loaded: list[object] = []
        broken: list[PluginError] = []
        self._add(builtin, Origin(_CORE, _version(_CORE), builtin.__name__))
        for entry_point in _entry_points():
            origin = Origin(
                entry_point.dist.name if entry_point.dist else "",
                entry_point.dist.version if entry_point.dist else "",
                entry_point.value,
            )
            try:
                self._add(_imported(origin, entry_point.load), origin)
            except PluginError as error:
                broken.append(error)
        for plugin in plugins:
            self._add(*_asked_for(plugin))
        self.broken = tuple(broken)

    # --- one typed method a hook -------------------------------------------------------------------------------------
    # Each raises ConfigError for an unknown name, and PluginError for one that several plugins provide.

    def time_policy(self, name: str) -> Provider[TimePolicy]:
        """The time policy of that name."""
        return self._select(Kind.TIME_POLICY, name)

    def record_store(self, name: str) -> Provider[Settings[RecordStore]]:
        """The record store of that name."""
        return self._select(Kind.RECORD_STORE, name)

    def connector(self, name: str) -> Provider[Settings[Connector]]:
        """The connector of that name."""
        return self._select(Kind.CONNECTOR, name)

    def stage(self, name: str) -> Provider[Settings[Stage]]:
        """The stage of that name."""
        return self._select(Kind.STAGE, name)

    def secret_resolver(self, name: str) -> Provider[Settings[SecretResolver]]:
        """The secret resolver of that prefix."""
        return self._select(Kind.SECRET_RESOLVER, name)

    def observer(self, name: str) -> Provider[Settings[Observer]]:
        """The observer of that name."""
        return self._select(Kind.OBSERVER, name)

    def providers(self, kind: Kind) -> list[Provider[Any]]:
        """Every provider of the kind that can be selected, by name."""
        return [found[0].provider for (k, _), found in sorted(self._providers.items()) if k is kind and len(found) == 1]

    def listing(self) -> list[Listed]:
        """Every provider, by kind and name; those that share a name too, each with the problem."""
        return [_listed(one, found) for found in self._providers.values() for one in found]

    # --- within ------------------------------------------------------------------------------------------------------

    def _add(self, plugin: object, origin: Origin) -> None:
        # The same module may be installed, named in the configuration and handed over: it counts once.
        if any(plugin is loaded for loaded in self._loaded):
            return
        for registered in _registered(plugin, origin):
            self._providers[registered.kind, registered.provider.name].append(registered)
        self._loaded.append(plugin)

    def _select(self, kind: Kind, name: str) -> Provider[Any]:
        found = self._providers.get((kind, name), [])
        if len(found) > 1:
            raise PluginError(f"{kind} {name!r}: {_conflict(found)}")
        if not found:
            raise ConfigError(self._unknown(kind, name))
        return found[0].provider

    def _unknown(self, kind: Kind, name: str) -> str:
        installed = sorted(known for k, known in self._providers if k is kind)
        names = ", ".join(map(repr, installed)) or "none"
        text = f"found {name!r}, expected an installed {kind}: {names}"
        if near := difflib.get_close_matches(name, installed, n=1):
            text += f"; did you mean {near[0]!r}?"
        package = _PACKAGES.get(name)
        if package and not any(known == name for _, known in self._providers):
            text += f"; {name!r} comes with the package {package}: install it"
        if self.broken:
            text += "; these plugins are installed but could not be loaded: " + " | ".join(map(str, self.broken))
        return text


def _entry_points() -> Iterator[Any]:
    """The installed entry points of the group, each distribution's value once."""
    import importlib_metadata  # noqa: PLC0415 - a third of the core's import time

    seen = set()
    for entry_point in importlib_metadata.entry_points(group=PROJECT):
        key = (entry_point.dist and entry_point.dist.name, entry_point.value)
        if key not in seen:
            seen.add(key)
            yield entry_point


def _version(distribution: str) -> str:
    import importlib_metadata  # noqa: PLC0415 - a third of the core's import time

    try:
        return str(importlib_metadata.version(distribution))
    except importlib_metadata.PackageNotFoundError:
        return ""  # run from a source tree that is not installed


def _asked_for(plugin: str | ModuleType) -> tuple[object, Origin]:
    if not isinstance(plugin, str):
        return plugin, Origin("", "", getattr(plugin, "__name__", type(plugin).__name__))
    origin = Origin("", "", plugin)
    return _imported(origin, lambda: importlib.import_module(plugin)), origin


def _imported(origin: Origin, load: Any) -> object:
    try:
        return load()
    except (Exception, SystemExit) as error:  # whatever a stranger's module may do when it is imported
        hint = "" if origin.distribution else "; is its folder on PYTHONPATH?"
        raise PluginError(f"plugin {origin}: cannot be imported: {_said(error)}{hint}") from error


def _registered(plugin: object, origin: Origin) -> list[_Registered]:
    """Everything that the plugin yields, held against what its hooks promise. Raises PluginError.

    A pluggy manager of the plugin's own, so that nothing stays behind of one that is refused.
    """
    hooks = pluggy.PluginManager(PROJECT)
    hooks.add_hookspecs(hookspecs)
    try:
        hooks.register(plugin)
        hooks.check_pending()
    except Exception as error:
        known = ", ".join(_HOOKS)
        raise PluginError(f"plugin {origin}: {_said(error)}; the hooks are: {known}") from error
    found: list[_Registered] = []
    for hook, kind in _HOOKS.items():
        for implementation in getattr(hooks.hook, hook).get_hookimpls():
            found += [
                _Registered(kind, provider, origin)
                for provider in _yielded(hook, kind, implementation.function, origin)
            ]
    return found


def _yielded(hook: str, kind: Kind, function: Any, origin: Origin) -> list[Provider[Any]]:
    where = f"plugin {origin}: {hook}"
    try:
        results = list(function())
    except (Exception, SystemExit) as error:
        raise PluginError(f"{where}: {_said(error)}; expected it to yield Providers") from error
    names: set[str] = set()
    for provider in results:
        if not isinstance(provider, Provider):
            raise PluginError(f"{where}: found {type(provider).__name__}, expected a pipeline_core.Provider")
        if fault := _fault(provider, kind):
            raise PluginError(f"{where}: {provider.name!r}: {fault}")
        if provider.name in names:
            raise PluginError(f"{where}: {provider.name!r}: found twice, expected each name once")
        names.add(provider.name)
    return results


def _fault(provider: Provider[Any], kind: Kind) -> str:
    """What is wrong with a provider; empty where nothing is."""
    name: object = provider.name
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return "found a name that is none, expected letters, digits, '_', '.' and '-'"
    settings: object = provider.settings
    if fault := _settings_fault(settings, kind):
        return f"settings: found {_called(settings)}, {fault}"
    fields = {attribute.alias for attribute in attrs.fields(cast(type[Any], settings)) if attribute.init}
    if strangers := sorted(set(provider.aliases.values()) - fields):
        return f"aliases: found {', '.join(strangers)}, expected settings of {_called(settings)}"
    can: frozenset[object] = provider.can
    if strangers := sorted(str(verb) for verb in can if not isinstance(verb, Can)):
        return f"can: found {', '.join(strangers)}, expected members of pipeline_core.Can"
    return ""


def _settings_fault(settings: object, kind: Kind) -> str:
    if not isinstance(settings, type) or not attrs.has(settings):
        return "expected an attrs class"
    if kind is Kind.TIME_POLICY:
        if not issubclass(settings, TimePolicy) or inspect.isabstract(settings):
            return "expected a subclass of TimePolicy that says window_at"
    elif not callable(getattr(settings, "open", None)):
        return "which lacks open(context)"
    try:
        attrs.resolve_types(settings)
    except (NameError, TypeError, AttributeError) as error:
        return f"whose annotations cannot be resolved ({error}); import at run time what they name"
    return ""


def _listed(one: _Registered, found: list[_Registered]) -> Listed:
    lines = (one.provider.settings.__doc__ or "").strip().splitlines()
    return Listed(
        one.kind,
        one.provider.name,
        lines[0] if lines else "",
        one.origin.distribution,
        one.origin.version,
        one.origin.module,
        tuple(sorted(one.provider.can)),
        _conflict(found) if len(found) > 1 else "",
    )


def _conflict(found: list[_Registered]) -> str:
    return f"provided by {' and '.join(str(one.origin) for one in found)}, expected one; uninstall the others"


def _called(settings: object) -> str:
    return cast(str, getattr(settings, "__qualname__", type(settings).__name__))


def _said(error: BaseException) -> str:
    return redact(f"{type(error).__name__}: {error}")
