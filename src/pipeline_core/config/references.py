"""`${prefix:name}` in a section's settings: found when the configuration is loaded, resolved when its part is opened.

Until then a `Reference` stands in for the text, afterwards a `Resolved`, so that a value which came from a resolver can
be told from one that was written down, and kept out of every message.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from attrs import field, frozen

Place = tuple[str | int, ...]

_REFERENCE = re.compile(r"\$\{([^}]*)\}")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


@frozen
class Name:
    """One `${prefix:name}`. The prefix is empty where there is none."""

    prefix: str
    name: str

    def __str__(self) -> str:
        return f"${{{self.prefix}:{self.name}}}" if self.prefix else f"${{{self.name}}}"


@frozen
class Reference:
    """Text that holds references, as it stands in the configuration."""

    text: str


@frozen(repr=False)
class Resolved:
    """Text whose references are resolved. `pieces` are the values that were put in."""

    text: str
    pieces: tuple[str, ...] = field()


def names(text: str) -> list[Name]:
    """The references of a text, in order."""
    return [Name(prefix, name) for prefix, _, name in map(_halves, _REFERENCE.findall(text))]


def names_in(value: object, path: Place = ()) -> Iterator[tuple[Place, Name]]:
    """Every reference in a tree of tables and lists, with where it stands."""
    if isinstance(value, str):
        yield from ((path, name) for name in names(value))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from names_in(item, (*path, str(key)))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from names_in(item, (*path, index))


def marked(value: Any) -> Any:
    """The tree with a Reference for each text that holds one."""
    return _each_text(value, lambda text: Reference(text) if names(text) else text)


def resolved(value: Any, answers: Mapping[Name, str]) -> Any:
    """The tree with a Resolved for each text that holds references."""

    def answer(text: str) -> Any:
        found = names(text)
        if not found:
            return text
        filled = _REFERENCE.sub(lambda match: answers[names(match[0])[0]], text)
        return Resolved(filled, tuple(answers[name] for name in found))

    return _each_text(value, answer)


def holds(value: object, kind: type[Reference] | type[Resolved]) -> bool:
    """Whether any text of the tree is a Reference (or a Resolved)."""
    return any(True for _ in _marks(value, kind))


def pieces_in(value: object) -> set[str]:
    """Every resolved value in the tree."""
    return {piece for mark in _marks(value, Resolved) for piece in (mark.text, *mark.pieces)}


def shown_path(path: Place) -> str:
    """A path as TOML writes it: `columns."@timestamp"`, `observers[0].url`."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            key = step if _BARE_KEY.fullmatch(step) else '"' + step.replace("\\", "\\\\").replace('"', '\\"') + '"'
            text += f".{key}" if text else key
    return text


def _halves(inside: str) -> tuple[str, str, str]:
    prefix, colon, name = inside.partition(":")
    return (prefix, colon, name) if colon else ("", "", inside)


def _each_text(value: Any, change: Callable[[str], Any]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _each_text(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_each_text(item, change) for item in value]
    return value


def _marks(value: object, kind: type[Any]) -> Iterator[Any]:
    if isinstance(value, kind):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _marks(item, kind)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _marks(item, kind)
