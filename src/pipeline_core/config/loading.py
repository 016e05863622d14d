"""How a mapping becomes a `Config`: pipeline and profile, then who provides what, then every section against its class.

Imported only when a configuration is loaded: cattrs and the plugins come with it.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from attrs import define, field, frozen

from pipeline_core.config import Config, instant_us, local_url
from pipeline_core.config.findings import Refused, kind, shown
from pipeline_core.config.layout import EXCLUDE, POLICY_KEYS, SECTIONS, Layout
from pipeline_core.config.overlays import chosen, chosen_profile, merged, overlays
from pipeline_core.config.overlays import shown as shown_where
from pipeline_core.config.references import Name, Place, names_in
from pipeline_core.config.sections import Part, aliases_of
from pipeline_core.config.structuring import read, structured
from pipeline_core.contracts import Provider
from pipeline_core.errors import ConfigError, PluginError, TimeError
from pipeline_core.plugins import Kind, PluginManager
from pipeline_core.record import OWN_KEYS
from pipeline_core.timepolicy import TimePolicy

#: The sections that may be left out: type, the environment's name for the URL, and what is kept there.
DEFAULTS = {
    "store": ("sql", "PIPELINE_CORE_STORE_URL", "records are kept in"),
    "stage": ("objects", "PIPELINE_CORE_STAGE_URL", "rows rest in"),
}
_WITH_REFERENCES = {*SECTIONS, "observers", "secrets"}


def load(
    mapping: Mapping[str, Any],
    profile: str | None,
    plugins: Iterable[str | ModuleType],
    name: str | None,
    folder: Path,
) -> Config:
    """See `pipeline_core.config.load`."""
    name, profile = chosen(mapping, name), chosen_profile(mapping, profile)
    over = overlays(mapping, name, profile)
    whole = merged(mapping, name, over)
    named = whole.get("plugins", ())
    names = [each for each in named if isinstance(each, str)] if isinstance(named, list | tuple) else []
    loading = _Loading(whole, PluginManager([*names, *plugins]), folder)
    # Another process that loads this chooses the same pipeline.
    handed_on = copy.deepcopy(dict(mapping) if name is None else {**mapping, "name": name})
    config = loading.config(handed_on, profile)
    if config is None:
        raise ConfigError(list(dict.fromkeys(shown_where(place, text, over) for place, text in loading.found())))
    return config


# --- the whole -------------------------------------------------------------------------------------------------------


@frozen
class _Chosen:
    """A section with its provider, and the settings that it, the flat form and the environment give."""

    place: Place
    type: str
    provider: Provider[Any]
    options: dict[str, Any]


@define
class _Loading:
    """One loading: what was found wrong so far, and where values that moved had been written.

    `folder` is where a store and a stage lie that nobody names.
    """

    whole: Mapping[str, Any]
    manager: PluginManager
    folder: Path
    findings: list[tuple[Place, str]] = field(factory=list)
    moved: dict[Place, Place] = field(factory=dict)
    aliases: set[str] = field(factory=set)
    warnings: list[str] = field(factory=list)
    defaults: dict[str, Mapping[str, Any]] = field(factory=dict)

    def config(self, mapping: Mapping[str, Any], profile: str | None) -> Config | None:
        """The configuration, or None where anything was found wrong."""
        chosen = {key: self.chosen(key) for key in SECTIONS}
        layout = self.layout(unresolved=None in chosen.values())
        observers = [self.observer(index, table) for index, table in enumerate(layout.observers)]
        resolvers = self.resolvers(layout, [*chosen.values(), *observers])
        parts = {key: self.part(section, resolvers) for key, section in chosen.items()}
        watching = [self.part(section, resolvers) for section in observers]
        policy = self.policy()
        begin_us, end_us = self.span(layout, policy)
        self.check_columns(layout.columns)
        self.check_default_record(layout.default_record)
        self.check_no_reference()
        if self.findings:
            return None
        return Config(
            name=layout.name or f"{parts['source'].type}-to-{parts['target'].type}",
            named=layout.name is not None,
            profile=profile,
            policy=cast(TimePolicy, policy),
            begin_us=begin_us,
            end_us=end_us,
            **parts,
            observers=tuple(watching),
            columns={key: value for key, value in layout.columns.items() if key != EXCLUDE},
            exclude=frozenset(layout.columns.get(EXCLUDE, ())),
            default_record=layout.default_record,
            check_fields=layout.check_fields,
            run=layout.run,
            retry=layout.retry,
            on_shrink=layout.on_shrink,
            source_keeps=layout.source_keeps,
            recheck=layout.recheck,
            warnings=tuple(self.warnings),
            mapping={**mapping, **self.defaults},  # another process may have other ones
            manager=self.manager,
        )

    def found(self) -> Iterator[tuple[Place, str]]:
        """Every finding, at the place where the value was written rather than where it went."""
        for place, text in self.findings:
            origin = self.moved.get(place[:2])
            yield ((*origin, *place[2:]) if origin else place), text

    def layout(self, *, unresolved: bool) -> Layout:
        reading = read(Layout, self.whole, self.aliases)
        for place, text in reading.findings:
            stranger = unresolved and len(place) == 1 and text.startswith("unknown key")
            note = "; or the plugin that it is meant for is not installed, see the type that is not found"
            self.findings.append((place, text + note if stranger else text))
        return Layout(**reading.values)

    # --- who provides what -------------------------------------------------------------------------------------------

    def chosen(self, key: str) -> _Chosen | None:
        """The section, its type from itself or from `default_record`, its settings filled from the flat form."""
        if key in self.whole and not isinstance(self.whole[key], Mapping):
            return None  # the layout says so
        if key in DEFAULTS and key not in self.whole:
            self.defaults[key] = self.default(key)
        options = dict(self.defaults.get(key) or _table(self.whole, key))
        place: Place = (key, "type")
        type_ = options.pop("type", None)
        if type_ is None and f"{key}_name" in _table(self.whole, "default_record"):
            place = ("default_record", f"{key}_name")
            type_ = _table(self.whole, "default_record")[f"{key}_name"]
        provider = self.provider(SECTIONS[key], type_, place)
        if provider is None:
            return None
        self.fill(key, provider, options)
        return _Chosen((key,), cast(str, type_), provider, options)

    def default(self, key: str) -> Mapping[str, Any]:
        """The section of a configuration that names no store, or no stage: the same from every working directory."""
        type_, variable, what = DEFAULTS[key]
        if os.environ.get(variable):
            return {"type": type_, "url": f"${{env:{variable}}}"}
        url = local_url(key, self.folder)
        self.warnings.append(f"{key}: none is given, so {what} {url}; add [{key}], or set {variable}")
        return {"type": type_, "url": url}

    def provider(self, sort: Kind, type_: object, place: Place) -> Provider[Any] | None:
        selects: dict[Kind, Callable[[str], Provider[Any]]] = {
            Kind.TIME_POLICY: self.manager.time_policy,
            Kind.CONNECTOR: self.manager.connector,
            Kind.STAGE: self.manager.stage,
            Kind.RECORD_STORE: self.manager.record_store,
            Kind.OBSERVER: self.manager.observer,
            Kind.SECRET_RESOLVER: self.manager.secret_resolver,
        }
        if not isinstance(type_, str):
            installed = ", ".join(repr(provider.name) for provider in self.manager.providers(sort)) or "none"
            found = "missing" if type_ is None else f"found {shown(type_)}"
            self.findings.append((place, f"{found}, expected an installed {sort}: {installed}"))
            return None
        try:
            return selects[sort](type_)
        except (ConfigError, PluginError) as error:
            self.findings.append((place, str(error)))
            return None

    def fill(self, key: str, provider: Provider[Any], options: dict[str, Any]) -> None:
        """Settings that the section leaves out, by their aliases: from the top level, else from the environment."""
        aliases = aliases_of(provider, key)
        self.aliases |= aliases.keys()
        for alias, setting in aliases.items():
            if alias in self.whole and setting not in options:
                options[setting] = self.whole[alias]
                self.moved[key, setting] = (alias,)
        for alias, setting in aliases.items():
            if os.environ.get(alias.upper()) and setting not in options:
                options[setting] = f"${{env:{alias.upper()}}}"

    def observer(self, index: int, table: Mapping[str, Any]) -> _Chosen | None:
        options = dict(table)
        type_ = options.pop("type", None)
        provider = self.provider(Kind.OBSERVER, type_, ("observers", index, "type"))
        return None if provider is None else _Chosen(("observers", index), cast(str, type_), provider, options)

    # --- parts -------------------------------------------------------------------------------------------------------

    def resolvers(self, layout: Layout, sections: Iterable[_Chosen | None]) -> dict[str, Part[Any]]:
        """A part for every prefix that is used or configured. A resolver's own settings may refer to `env` alone."""
        used: dict[str, Place] = {"env": ("secrets", "env")}
        for section in filter(None, sections):
            for path, name in names_in(section.options):
                place = (*section.place, *path)
                if self.is_whole(name, place):
                    used.setdefault(name.prefix, place)
        for prefix, table in layout.secrets.items():
            used[prefix] = ("secrets", prefix)
            for path, name in names_in(table):
                place = ("secrets", prefix, *path)
                if self.is_whole(name, place) and (name.prefix != "env" or prefix == "env"):
                    self.findings.append(
                        (place, f"found {name}, expected ${{env:NAME}}: resolvers do not build on others")
                    )
        parts: dict[str, Part[Any]] = {}
        for prefix, place in used.items():
            provider = self.provider(Kind.SECRET_RESOLVER, prefix, place)
            if provider is not None:
                options = dict(layout.secrets.get(prefix, {}))
                parts[prefix] = self.part(_Chosen(("secrets", prefix), prefix, provider, options), parts)
        return parts

    def is_whole(self, name: Name, place: Place) -> bool:
        if name.prefix and name.name:
            return True
        self.findings.append((place, f"found {name}, expected a reference such as ${{env:NAME}}"))
        return False

    def part(self, chosen: _Chosen | None, resolvers: Mapping[str, Part[Any]]) -> Any:
        if chosen is None:
            return None
        part: Part[Any] = Part(chosen.place, chosen.type, chosen.provider, chosen.options, resolvers)
        self.findings += part.findings()
        return part

    # --- time --------------------------------------------------------------------------------------------------------

    def policy(self) -> TimePolicy | None:
        """From `[time]` and its short form: `timezone`, `granularity`, `x_time_back` at the top level."""
        section = dict(_table(self.whole, "time"))
        short = {key: self.whole[key] for key in POLICY_KEYS if self.whole.get(key) is not None}
        for key in short.keys() & section.keys():
            self.findings.append(((key,), "found here and in [time], expected it once; remove one of the two"))
        self.moved |= {("time", key): (key,) for key in (short if "time" in self.whole else POLICY_KEYS)}
        type_ = section.pop("type", None) if "time" in self.whole else "wall"
        provider = self.provider(Kind.TIME_POLICY, type_, ("time", "type"))
        if provider is None:
            return None
        try:
            return structured(cast(type[TimePolicy], provider.settings), {**short, **section})
        except Refused as refused:
            self.findings += [(("time", *place), text) for place, text in refused.findings]
            return None

    def span(self, layout: Layout, policy: TimePolicy | None) -> tuple[int | None, int | None]:
        # Without a policy there is no zone yet, but a time that is none can be told at once.
        timezone = policy.timezone if policy else "UTC"
        begin_us = self.instant("begin", layout.begin, timezone)
        end_us = self.instant("end", layout.end, timezone)
        if policy and begin_us is not None and end_us is not None and end_us <= begin_us:
            text = f"found {shown(layout.end)}, expected a time after begin, which is {shown(layout.begin)}"
            self.findings.append((("end",), text))
        return begin_us, end_us

    def instant(self, key: str, when: str | date | None, timezone: str) -> int | None:
        if when is None:
            return None
        try:
            return instant_us(when, timezone)
        except TimeError as error:
            self.findings.append(((key,), str(error)))
            return None

    # --- the rest ----------------------------------------------------------------------------------------------------

    def check_columns(self, columns: Mapping[str, Any]) -> None:
        taken: dict[str, str] = {}
        for name, value in columns.items():
            place = ("columns", name)
            if name == EXCLUDE:
                if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
                    self.findings.append((place, f"found {kind(value)}, expected a list of strings"))
            elif not isinstance(value, str):
                self.findings.append((place, f"found {shown(value)}, expected a string"))
            elif value in taken:
                self.findings.append((place, f"found {value!r}, which is the name of {taken[value]!r} already"))
            else:
                taken[value] = name

    def check_default_record(self, fields: Mapping[str, Any]) -> None:
        for key in OWN_KEYS:
            if key in fields:
                text = "found a key that every record holds by itself, expected one of your own; rename it"
                self.findings.append((("default_record", key), text))
        self.check_json(fields, ("default_record",))

    def check_json(self, value: object, place: Place) -> None:
        """A record is stored as JSON."""
        if isinstance(value, Mapping):
            for key, item in value.items():
                self.check_json(item, (*place, str(key)))
        elif isinstance(value, list | tuple):
            for index, item in enumerate(value):
                self.check_json(item, (*place, index))
        elif not (value is None or isinstance(value, str | bool | int) or _is_finite(value)):
            self.findings.append((place, f"found {kind(value)}, expected what JSON holds; write it as a string"))

    def check_no_reference(self) -> None:
        free = {"default_record", "profiles", "plugins", *_WITH_REFERENCES, *self.aliases}
        for place, name in names_in({key: value for key, value in self.whole.items() if key not in free}):
            where = ", ".join(sorted(_WITH_REFERENCES))
            self.findings.append((place, f"found the reference {name}, which only these resolve: {where}"))


def _table(whole: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The table of that key; empty where there is none, or something else (the layout says so)."""
    table = whole.get(key)
    return table if isinstance(table, Mapping) else {}


def _is_finite(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value)
