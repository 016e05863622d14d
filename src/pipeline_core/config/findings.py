"""Findings: what is wrong with a value, where, and in which words; nothing of a secret."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Collection, Mapping, Sequence
from datetime import date, datetime
from typing import Any, Final, NamedTuple

from pipeline_core.config import fieldtypes
from pipeline_core.config.references import Place, Reference, Resolved
from pipeline_core.secrets import Secret, redact

WORDS: Final[Mapping[Any, str]] = {
    str: "a string",
    Secret: "a string",
    bool: "true or false",
    int: "an integer",
    float: "a number",
    datetime: "a date with a time",
    date: "a date",
}
_LONGEST = 60


class Finding(NamedTuple):
    """Something wrong in a configuration, and where."""

    path: Place
    text: str


class Refused(Exception):  # noqa: N818 - never leaves this module's callers
    """A value that does not fit: every finding, with paths relative to it."""

    def __init__(self, findings: str | list[Finding]) -> None:
        self.findings = [Finding((), findings)] if isinstance(findings, str) else findings
        super().__init__(self.findings)

    def under(self, step: str | int) -> list[Finding]:
        return [Finding((step, *path), text) for path, text in self.findings]


def unknown(key: str, known: Collection[str]) -> str:
    """What to say of an unknown key."""
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown key; {hint}expected one of: {', '.join(sorted(known)) or 'none'}"


def expected(type_: Any) -> str:
    """A type in words."""
    if fieldtypes.is_union(type_):
        members = (member for member in typing.get_args(type_) if member is not type(None))
        return " or ".join(dict.fromkeys(map(expected, members)))
    if fieldtypes.is_choice(type_):
        return "one of " + ", ".join(map(repr, fieldtypes.choices(type_)))
    if fieldtypes.is_sequence(type_):
        return "a list"
    if fieldtypes.is_mapping(type_) or fieldtypes.is_class(type_):
        return "a table"
    if type_ is Any or type_ is object:
        return "a value"
    return WORDS.get(type_) or str(getattr(type_, "__name__", type_))


def shown(value: object) -> str:
    """What was found, in words; nothing of a secret."""
    if isinstance(value, str):
        text = redact(value)
        return repr(text if len(text) <= _LONGEST else text[:_LONGEST] + "…")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float | date):
        return str(value)
    return kind(value)


def kind(value: object) -> str:
    """What sort of value was found, and nothing of the value."""
    if isinstance(value, Reference):
        return f"the reference {value.text}, which stands for a single value"
    if isinstance(value, Resolved):
        return "what its reference resolved to"
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "a list"
    return WORDS.get(type(value), f"a {type(value).__name__}")


def said(error: Exception) -> str:
    """What an exception says, cleaned of secrets."""
    # attrs' own validators put the whole attribute behind their message.
    first = error.args[0] if error.args else ""
    return redact(first if isinstance(first, str) and first else f"{type(error).__name__}: {error}")
