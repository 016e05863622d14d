"""Tables that change others: `[pipelines.NAME]` inherits the top level, `[profiles.NAME]` changes what came of it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from attrs import frozen

from pipeline_core.config.findings import kind
from pipeline_core.config.layout import NAME, SECTIONS
from pipeline_core.config.references import Place, shown_path
from pipeline_core.errors import ConfigError


@frozen
class Overlay:
    """A table that changes what it lies on, and where it stands."""

    place: Place
    table: Mapping[str, Any]

    def holds(self, place: Place) -> bool:
        """Whether the value at that place of the whole was written here."""
        at: Any = self.table
        for step in place:
            at = at.get(step) if isinstance(at, Mapping) else None
        return bool(place) and at is not None


def names(mapping: Mapping[str, Any]) -> list[str]:
    """The pipelines of the mapping, in its order; none where it is that of one alone. Raises ConfigError."""
    pipelines = mapping.get("pipelines", {})
    if not isinstance(pipelines, Mapping):
        raise ConfigError(f"pipelines: found {kind(pipelines)}, expected tables [pipelines.NAME]")
    problems = []
    for name, table in pipelines.items():
        place = shown_path(("pipelines", name))
        if not isinstance(name, str) or not NAME.fullmatch(name):
            problems.append(f"{place}: expected a name of letters, digits, '_', '.' and '-'")
        if not isinstance(table, Mapping):
            problems.append(f"{place}: found {kind(table)}, expected a table")
            continue
        if "name" in table:
            problems.append(f"{place}.name: unknown key; the name of the table is that of the pipeline")
        if "profile" in table:
            problems.append(f"{place}.profile: unknown key; the top level chooses the profile")
        if "pipelines" in table:
            problems.append(f"{place}.pipelines: unknown key; pipelines do not nest")
    if problems:
        raise ConfigError(problems)
    return list(pipelines)


def chosen(mapping: Mapping[str, Any], name: str | None) -> str | None:
    """Which of the pipelines is meant: `name`, else the top level's `name`, else the only one. Raises ConfigError."""
    known = names(mapping)
    if not known:
        if name is not None:
            raise ConfigError(f"pipelines: found no [pipelines.{name}], the configuration is that of one pipeline")
        return None
    wanted = mapping.get("name") if name is None else name
    if wanted is None and len(known) == 1:
        return known[0]
    listed = ", ".join(map(repr, known))
    if wanted is None:
        raise ConfigError(
            f"pipelines: found several, {listed}; choose one by its name (-p NAME), or all of them (--all)"
        )
    if wanted not in known:
        raise ConfigError(f"pipelines: found {wanted!r}, expected one of {listed}{_hint(str(wanted), known)}")
    return str(wanted)


def chosen_profile(mapping: Mapping[str, Any], profile: str | None) -> str | None:
    """Which of the profiles is meant: `profile`, else the top level's `profile`, else none. Raises ConfigError."""
    wanted = mapping.get("profile") if profile is None else profile
    if wanted is not None and not isinstance(wanted, str):
        raise ConfigError(f"profile: found {kind(wanted)}, expected the name of one of [profiles]")
    return wanted


def overlays(mapping: Mapping[str, Any], name: str | None, profile: str | None) -> list[Overlay]:
    """What lies on the top level, in order: the pipeline, the profile for all, the pipeline's own profile.

    Raises ConfigError.
    """
    found = []
    if name is not None:
        own = mapping["pipelines"][name]
        found.append(Overlay(("pipelines", name), {key: value for key, value in own.items() if key != "profiles"}))
    if profile is not None:
        places: list[Place] = [("profiles",)] if name is None else [("profiles",), ("pipelines", name, "profiles")]
        found += _profiles(mapping, places, profile)
    return found


def _profiles(mapping: Mapping[str, Any], places: Iterable[Place], profile: str) -> list[Overlay]:
    tables = {place: _at(mapping, place) for place in places}
    found = [Overlay((*place, profile), table[profile]) for place, table in tables.items() if profile in table]
    if not found or not NAME.fullmatch(profile) or not all(isinstance(each.table, Mapping) for each in found):
        known = list(dict.fromkeys(name for table in tables.values() for name in table))
        listed = ", ".join(map(repr, known)) or "none is given; add [profiles.NAME]"
        raise ConfigError(f"profile: found {profile!r}, expected one of [profiles]: {listed}{_hint(profile, known)}")
    for each in found:
        for key in ("profile", "profiles", "pipelines"):
            if key in each.table:
                raise ConfigError(
                    f"{shown_path((*each.place, key))}: unknown key; a profile changes one pipeline alone"
                )
    return found


def _at(mapping: Mapping[str, Any], place: Place) -> Mapping[str, Any]:
    at: Any = mapping
    for step in place:
        at = at.get(step, {}) if isinstance(at, Mapping) else {}
    return at if isinstance(at, Mapping) else {}


def _hint(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def merged(mapping: Mapping[str, Any], name: str | None, over: Sequence[Overlay]) -> dict[str, Any]:
    """The mapping of one pipeline, as the overlays leave it."""
    whole = dict(mapping)
    if name is not None:
        del whole["pipelines"]
        whole["name"] = name
    for each in over:
        whole = _merged(whole, each.table)
    return whole


def _merged(base: Mapping[str, Any], overlay: Mapping[str, Any], place: Place = ()) -> dict[str, Any]:
    """Tables merge, anything else is replaced; a section whose `type` changes is replaced whole."""
    merged = dict(base)
    for key, over in overlay.items():
        under = base.get(key)
        if isinstance(over, Mapping) and isinstance(under, Mapping) and not _changes_type(key, under, over, place):
            merged[key] = _merged(under, over, (*place, key))
        else:
            merged[key] = over
    return merged


def _changes_type(key: str, under: Mapping[str, Any], over: Mapping[str, Any], place: Place) -> bool:
    is_section = not place and key in {*SECTIONS, "time"}
    return is_section and "type" in under and "type" in over and bool(under["type"] != over["type"])


def shown(place: Place, text: str, over: Sequence[Overlay]) -> str:
    """A finding, at the place where its value was written."""
    written = next((each.place for each in reversed(over) if each.holds(place)), ())
    return f"{shown_path((*written, *place))}: {text}"
