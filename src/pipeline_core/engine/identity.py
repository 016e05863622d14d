"""Both sides in one comparable text, as records keep it: written here, and compared here. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

COLUMNS = "columns"  # beside what the source says of itself: what the configuration leaves out and renames


#: What an identity says of how a table is looked at, beside which table it is.
_VIEW = {
    COLUMNS,
    "lists",
    "query",
    "scope",
    "shape",
    "timestamp_column",
    "timestamp_field",
    "timestamp_timezone",
    "timestamp_unit",
    "where",
}


def text(source: Mapping[str, str], target: Mapping[str, str]) -> str:
    """The one text of two sides."""
    return json.dumps({"source": dict(source), "target": dict(target)}, sort_keys=True)


def place(side: Mapping[str, str]) -> dict[str, str]:
    """Which table a side is, whichever of its rows and columns are meant."""
    return {name: value for name, value in side.items() if name not in _VIEW}


def elsewhere(before: str, now: str) -> bool:
    """Whether both sides are other tables than they were; not where that is not known."""
    old, new = _sides(before), _sides(now)
    return bool(old) and all(place(old.get(side, {})) != place(new.get(side, {})) for side in ("source", "target"))


def difference(before: str, now: str) -> str:
    """What tells two of them apart, as `target.table: 'a', now 'b'`; what one of them lacks is `None`."""
    old, new = _flat(before), _flat(now)
    names = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    return "; ".join(f"{name}: {old.get(name)!r}, now {new.get(name)!r}" for name in names)


def _flat(identity: str) -> dict[str, Any]:
    return {f"{side}.{name}": value for side, named in _sides(identity).items() for name, value in named.items()}


def _sides(identity: str) -> dict[str, dict[str, Any]]:
    """The sides by name; none of them where nothing was verified, or somebody has edited the text."""
    try:
        sides = json.loads(identity)
    except ValueError:
        return {}
    return sides if isinstance(sides, dict) and all(isinstance(side, dict) for side in sides.values()) else {}
