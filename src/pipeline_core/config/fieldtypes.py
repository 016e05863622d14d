"""The types that a settings class may give its fields: what structuring, findings and the JSON Schema tell apart."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping, Sequence
from collections.abc import Set as AbstractSet
from enum import EnumType
from typing import Any, Final, Literal

import attrs

from pipeline_core.secrets import Secret

#: What a list of the configuration becomes.
SEQUENCES: Final[Mapping[Any, Callable[[Iterable[Any]], Any]]] = {
    **dict.fromkeys((Sequence, Collection, Iterable, tuple), tuple),
    **dict.fromkeys((AbstractSet, frozenset), frozenset),
    list: list,
    set: set,
}


def fields(cls: type[Any]) -> dict[str, attrs.Attribute[Any]]:
    """The settings of an attrs class by the key that the configuration uses, with their annotations resolved."""
    return {field.alias or field.name: field for field in attrs.fields(attrs.resolve_types(cls)) if field.init}


def input_type(attribute: attrs.Attribute[Any]) -> Any:
    """What a field takes from the configuration: its own type, or what its converter says that it takes."""
    function: Any = attribute.converter
    if function is None:
        return attribute.type or Any
    if isinstance(function, attrs.Converter):
        function = function.converter  # type: ignore[attr-defined]
    try:
        hints = typing.get_type_hints(function)
    except (TypeError, NameError, AttributeError):
        return Any  # a class or a builtin: whatever it accepts
    taken = [hint for name, hint in hints.items() if name != "return"]
    return taken[0] if taken else Any


def is_class(type_: Any) -> bool:
    return type_ is not Secret and attrs.has(typing.get_origin(type_) or type_)


def is_union(type_: Any) -> bool:
    return typing.get_origin(type_) in (typing.Union, types.UnionType)


def is_choice(type_: Any) -> bool:
    return typing.get_origin(type_) is Literal or isinstance(type_, EnumType)


def choices(type_: Any) -> dict[Any, Any]:
    """What a Literal or an Enum offers: how the configuration says it, and what it means."""
    if isinstance(type_, EnumType):
        return {offered.value: offered for offered in type_}  # type: ignore[var-annotated]
    return {value: value for value in typing.get_args(type_)}


def is_sequence(type_: Any) -> bool:
    if (typing.get_origin(type_) or type_) is tuple:
        return typing.get_args(type_)[1:] in ((), (...,))
    return (typing.get_origin(type_) or type_) in SEQUENCES


def is_mapping(type_: Any) -> bool:
    return (typing.get_origin(type_) or type_) in (dict, Mapping, MutableMapping)


def member(type_: Any) -> Any:
    """The type of a sequence's items, or of a mapping's values."""
    arguments = typing.get_args(type_)
    return (arguments[1] if is_mapping(type_) else arguments[0]) if arguments else Any


def mentions_secret(type_: Any) -> bool:
    return type_ is Secret or any(mentions_secret(argument) for argument in typing.get_args(type_))
