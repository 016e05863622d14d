"""Names and literals as Snowflake writes them: the only place where text becomes part of a statement."""

from __future__ import annotations

import re
from typing import Final

_PLAIN: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_$]*")
_PART: Final = re.compile(r'"((?:[^"]|"")+)"|([^".]+)')


def quoted(*names: str) -> str:
    """An identifier, or a path of them, that stands for exactly these names."""
    return ".".join('"' + name.replace('"', '""') + '"' for name in names)


def literal(value: str) -> str:
    """A string literal that stands for exactly this text: for the few statements that take no bound value."""
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"


def fold(name: str) -> str:
    """The name that Snowflake takes this for when it stands without quotes; one that needs them is kept as it is."""
    return name.upper() if _PLAIN.fullmatch(name) else name


def parts(path: str) -> tuple[str, ...] | None:
    """The names of `table`, `schema.table` or `database.schema.table`; None where it is none of these.

    What stands in double quotes is kept, all else is folded.
    """
    found: list[str] = []
    at = 0
    while at <= len(path) and (match := _PART.match(path, at)) is not None:
        found.append(match[1].replace('""', '"') if match[1] is not None else fold(match[2]))
        at = match.end()
        if at == len(path):
            return tuple(found) if len(found) <= 3 else None
        if path[at] != ".":
            return None
        at += 1
    return None
