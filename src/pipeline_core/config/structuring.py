"""From tables to attrs classes, by cattrs: strict types, every finding at once, no secret in a finding.

Imported only when a configuration is loaded, because cattrs takes a while.
"""

from __future__ import annotations

import math
import re
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import date, datetime
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

import attrs
import cattrs

from pipeline_core.config import fieldtypes
from pipeline_core.config.fieldtypes import mentions_secret
from pipeline_core.config.findings import Finding, Refused, expected, kind, said, shown, unknown
from pipeline_core.config.references import Reference, Resolved, holds, pieces_in
from pipeline_core.secrets import Secret, hide

T = TypeVar("T")
Hook = Callable[[Any, Any], Any]


class Reading(NamedTuple):
    """A table read into a class: the values that fit, the keys that wait for a reference, and what is wrong."""

    values: dict[str, Any]
    waiting: set[str]
    findings: list[Finding]


def structured(cls: type[T], table: Mapping[str, Any]) -> T | None:
    """`table` as an instance of the attrs class, or None while a Reference stands for a value. Raises Refused.

    Whatever does not depend on a reference is checked in either case, the class's own converters and validators too.
    """
    reading = read(cls, table)
    if reading.findings:
        raise Refused(reading.findings)
    if reading.waiting:
        return None
    try:
        return cls(**reading.values)
    except Exception as error:  # noqa: BLE001 - a stranger's class may raise anything
        text = said(error)
        for piece in sorted(pieces_in(table), key=len, reverse=True):
            text = text.replace(piece, "***") if piece else text
        raise Refused(text) from None


def read(cls: type[Any], table: Mapping[str, Any], also: Collection[str] = ()) -> Reading:
    """`table` field by field; `also` are keys that are known but not read."""
    fields = fieldtypes.fields(cls)
    findings = [
        Finding((str(key),), unknown(str(key), [*fields, *also]))
        for key in table
        if key not in fields and key not in also
    ]
    values: dict[str, Any] = {}
    for key, attribute in fields.items():
        if key in table:
            try:
                values[key] = _structured_field(attribute, table[key])
            except Refused as refused:
                findings += refused.under(key)
        elif attribute.default is attrs.NOTHING:
            findings.append(Finding((key,), f"missing, expected {expected(fieldtypes.input_type(attribute))}"))
    waiting = {key for key in values if holds(table[key], Reference)}
    findings += _checked(cls, table, values, waiting)
    wrong = {finding.path[0] for finding in findings}
    return Reading({key: value for key, value in values.items() if key not in wrong}, waiting, findings)


# --- fields ----------------------------------------------------------------------------------------------------------


def _structured_field(attribute: attrs.Attribute[Any], value: Any) -> Any:
    type_ = fieldtypes.input_type(attribute)
    try:
        return _converter.get_structure_hook(type_)(value, type_)
    except Refused:
        raise
    except cattrs.StructureHandlerNotFoundError:
        raise Refused(f"has the type {type_}, which a configuration cannot hold; the plugin must change it") from None
    except Exception as error:  # noqa: BLE001 - cattrs' own hooks, for the types that have none here
        raise Refused(f"found {kind(value)}, expected {expected(type_)} ({type(error).__name__})") from None


def _checked(cls: type[Any], table: Mapping[str, Any], values: Mapping[str, Any], waiting: set[str]) -> list[Finding]:
    """What the class's own converters and validators say of each given value, on an instance that lacks what waits."""
    instance = object.__new__(cls)
    findings: list[Finding] = []
    ready = {key: field for key, field in fieldtypes.fields(cls).items() if key in values and key not in waiting}
    for key, field in fieldtypes.fields(cls).items():
        if key in ready:
            findings += _asked(key, field, table[key], partial(_fill, instance, field, values[key]))
        elif key not in table and field.default is not attrs.NOTHING and not _is_factory(field.default):
            object.__setattr__(instance, field.name, field.default)
    for key, field in ready.items():
        if field.validator is not None and hasattr(instance, field.name):
            validate = partial(field.validator, instance, field, getattr(instance, field.name))
            findings += _asked(key, field, table[key], validate)
    return findings


def _asked(key: str, field: attrs.Attribute[Any], raw: object, question: Callable[[], object]) -> list[Finding]:
    try:
        question()
    except AttributeError:
        return []  # it looked at a field that waits; the whole class is asked again when it is built
    except Exception as error:  # noqa: BLE001 - a stranger's converter or validator may raise anything
        if holds(raw, Resolved) or mentions_secret(field.type):
            text = f"refused ({type(error).__name__}); what was said is withheld, because the value is secret"
        else:
            text = re.sub(rf"^((\w+\.)*{re.escape(key)}: )+", "", said(error))
        return [Finding((key,), text)]
    return []


def _fill(instance: object, field: attrs.Attribute[Any], value: object) -> None:
    converter: Any = field.converter
    if isinstance(converter, attrs.Converter):
        value = converter(value, instance, field)  # type: ignore[operator]
    elif converter is not None:
        value = converter(value)
    object.__setattr__(instance, field.name, value)


def _is_factory(default: object) -> bool:
    return isinstance(default, attrs.Factory)  # type: ignore[arg-type]


# --- hooks -----------------------------------------------------------------------------------------------------------


def _text(value: Resolved) -> str:
    for piece in value.pieces:
        hide(piece)
    return value.text


def _matched(pattern: str, convert: Callable[[str], T]) -> Callable[[Resolved], T]:
    def parse(value: Resolved) -> T:
        if not re.fullmatch(pattern, value.text):
            raise ValueError
        return convert(value.text)

    return parse


#: The scalar types: what may be written for each, and how it is made from what a reference resolved to.
_SCALARS: Final[Mapping[Any, tuple[tuple[type, ...], Callable[[Resolved], Any]]]] = {
    str: ((str,), _text),
    Secret: ((str, Secret), lambda value: Secret(value.text)),
    bool: ((bool,), _matched("true|false", lambda text: text == "true")),
    int: ((int,), _matched("[+-]?[0-9]+", int)),
    float: ((float, int), _matched(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?", float)),
    datetime: ((datetime,), lambda value: datetime.fromisoformat(value.text)),
    date: ((date,), lambda value: date.fromisoformat(value.text)),
}


def _is_strictly(type_: Any, value: Any) -> bool:
    """Python counts a bool as an integer, a datetime as a date, and infinity as a number; a configuration does not."""
    if isinstance(value, bool):
        return type_ is bool
    if isinstance(value, datetime):
        return type_ is datetime
    return type_ is not float or math.isfinite(value)


def _scalar_hook(type_: Any, converter: cattrs.Converter) -> Hook:
    written, parsed = _SCALARS[type_]

    def hook(value: Any, asked: Any) -> Any:
        if fieldtypes.is_choice(asked):  # cattrs sends a StrEnum here, because it is a str
            return _choice_hook(asked, converter)(value, asked)
        if isinstance(value, Reference):
            return value
        if isinstance(value, Resolved):
            try:
                return parsed(value)
            except ValueError:
                raise Refused(f"found {kind(value)}, expected {expected(type_)}") from None
        fits = isinstance(value, written) and _is_strictly(type_, value)
        if not fits:
            raise Refused(f"found {kind(value) if type_ is Secret else shown(value)}, expected {expected(type_)}")
        if type_ is Secret and isinstance(value, str):
            return Secret(value)
        return float(value) if type_ is float else value

    return hook


def _union_hook(type_: Any, converter: cattrs.Converter) -> Hook:
    members = [member for member in typing.get_args(type_) if member is not type(None)]
    hooks = [(member, converter.get_structure_hook(member)) for member in members]

    def hook(value: Any, _: Any) -> Any:
        if value is None and type(None) in typing.get_args(type_):
            return None
        refusals: list[Refused] = []
        for member, structure in hooks:
            try:
                return structure(value, member)
            except Refused as refused:
                refusals.append(refused)
        if len(refusals) == 1:
            raise refusals[0]
        found = kind(value) if mentions_secret(type_) else shown(value)
        raise Refused(f"found {found}, expected {expected(type_)}")

    return hook


def _choice_hook(type_: Any, _: cattrs.Converter) -> Hook:
    """A Literal, or an Enum by its values."""
    choices = fieldtypes.choices(type_)

    def hook(value: Any, _: Any) -> Any:
        if isinstance(value, Reference):
            return value
        for choice, member in choices.items():
            same = str(choice) == value.text if isinstance(value, Resolved) else choice == value
            if same and (isinstance(value, Resolved) or isinstance(value, bool) == isinstance(choice, bool)):
                return member
        raise Refused(f"found {shown(value)}, expected {expected(type_)}")

    return hook


def _sequence_hook(type_: Any, converter: cattrs.Converter) -> Hook:
    build = fieldtypes.SEQUENCES[typing.get_origin(type_) or type_]
    member = fieldtypes.member(type_)
    structure = converter.get_structure_hook(member)

    def hook(value: Any, _: Any) -> Any:
        if not isinstance(value, list | tuple | set | frozenset):
            raise Refused(f"found {kind(value)}, expected a list")
        return build(_every((index, partial(structure, item, member)) for index, item in enumerate(value)).values())

    return hook


def _mapping_hook(type_: Any, converter: cattrs.Converter) -> Hook:
    member = fieldtypes.member(type_)
    structure = converter.get_structure_hook(member)

    def hook(value: Any, _: Any) -> Any:
        _check_table(value)
        return _every((key, partial(structure, item, member)) for key, item in value.items())

    return hook


def _class_hook(type_: Any, _: cattrs.Converter) -> Hook:
    def hook(value: Any, _: Any) -> Any:
        _check_table(value)
        return structured(type_, value)

    return hook


def _check_table(value: object) -> None:
    if not isinstance(value, Mapping):
        raise Refused(f"found {kind(value)}, expected a table")
    if strangers := [key for key in value if not isinstance(key, str)]:
        raise Refused(f"found the key {shown(strangers[0])}, expected every key to be a string")


def _every(members: Iterable[tuple[Any, Callable[[], Any]]]) -> dict[Any, Any]:
    """Every member structured; raises all their findings together."""
    done, findings = {}, []
    for step, structure in members:
        try:
            done[step] = structure()
        except Refused as refused:
            findings += refused.under(step)
    if findings:
        raise Refused(findings)
    return done


def _anything(value: Any, _: Any) -> Any:
    if isinstance(value, Resolved):
        return _text(value)
    if isinstance(value, Mapping):
        return {key: _anything(item, Any) for key, item in value.items()}
    if isinstance(value, list):
        return [_anything(item, Any) for item in value]
    return value


def _make_converter() -> cattrs.Converter:
    converter = cattrs.Converter()
    # The last one registered is asked first.
    for predicate, factory in (
        (fieldtypes.is_class, _class_hook),
        (fieldtypes.is_mapping, _mapping_hook),
        (fieldtypes.is_sequence, _sequence_hook),
        (fieldtypes.is_choice, _choice_hook),
        (fieldtypes.is_union, _union_hook),
    ):
        converter.register_structure_hook_factory(predicate, factory)
    for scalar in _SCALARS:
        converter.register_structure_hook(scalar, _scalar_hook(scalar, converter))
    converter.register_structure_hook_func(lambda type_: type_ is Any or type_ is object, _anything)
    return converter


_converter = _make_converter()
