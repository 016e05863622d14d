"""The configuration as JSON Schema (draft 2020-12), for editors: the core's keys, and what every plugin adds.

Wherever a provider's settings take a single value, a reference such as `${env:NAME}` is accepted too.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterable, Mapping
from datetime import date, datetime
from typing import Any, Final

import attrs
from attrs import NOTHING

from pipeline_core.config import fieldtypes
from pipeline_core.config.layout import EXCLUDE, NAME, POLICY_KEYS, SECTIONS, Layout
from pipeline_core.contracts import Provider
from pipeline_core.plugins import Kind, PluginManager
from pipeline_core.secrets import Secret

Schema = dict[str, Any]

_TYPES: Final[Mapping[Any, Schema]] = {
    str: {"type": "string"},
    Secret: {"type": "string", "writeOnly": True},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    date: {"type": "string", "format": "date"},
    datetime: {"type": "string", "format": "date-time"},
    type(None): {"type": "null"},
}
_REFERENCE: Final[Schema] = {"type": "string", "pattern": r"\$\{[^:}]+:[^}]+\}"}
_STRINGS: Final[Schema] = {"type": "array", "items": {"type": "string"}}


def json_schema(manager: PluginManager) -> Schema:
    """What a configuration may hold with the plugins of `manager`. A settings field's `help` metadata describes it."""
    top = _table(Layout, references=False)
    top["properties"] |= _sections(manager)
    top["properties"] |= _aliases(manager)
    # A profile holds the same keys, but any part of them: what it leaves out, the rest of the file gives.
    tables: Schema = {"type": "object", "additionalProperties": {"type": "object"}}
    for key in ("profiles", "pipelines"):
        top["properties"][key] = {**tables, **_described(attrs.fields_dict(Layout)[key])}
    several = {**top, "properties": {**top["properties"], **{key: {"type": "object"} for key in SECTIONS}}}
    # Of several pipelines each completes what the top level has begun.
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "if": {"required": ["pipelines"]},
        "then": several,
        "else": top,
    }


def _sections(manager: PluginManager) -> Schema:
    sections: Schema = {}
    for key, kind in SECTIONS.items():
        # Its type may stand in `default_record`, and its settings at the top level.
        flat = {"type": "object", "not": {"required": ["type"]}} if kind is Kind.CONNECTOR else None
        sections[key] = _one_of(manager.providers(kind), also=flat)
    sections["time"] = _one_of(manager.providers(Kind.TIME_POLICY), elsewhere=POLICY_KEYS, references=False)
    sections["observers"] = {"type": "array", "items": _one_of(manager.providers(Kind.OBSERVER))}
    resolvers = manager.providers(Kind.SECRET_RESOLVER)
    sections["secrets"] = _closed({provider.name: _table(_settings(provider)) for provider in resolvers})
    sections["columns"] = {
        "type": "object",
        "properties": {EXCLUDE: _STRINGS},
        "additionalProperties": {"type": "string"},
    }
    sections["name"] = {"type": "string", "pattern": f"^{NAME.pattern}$"}
    return {key: {**schema, **_described(attrs.fields_dict(Layout)[key])} for key, schema in sections.items()}


def _aliases(manager: PluginManager) -> Schema:
    """The flat form: settings of a section at the top level, under the names that its provider gives them."""
    found: Schema = {}
    for kind in dict.fromkeys(SECTIONS.values()):
        for provider in manager.providers(kind):
            settings = fieldtypes.fields(_settings(provider))
            for alias, setting in provider.aliases.items():
                found.setdefault(alias, {"anyOf": []})["anyOf"].append(_field(settings[setting], references=True))
    return found


def _one_of(
    providers: Iterable[Provider[Any]],
    *,
    also: Schema | None = None,
    elsewhere: Iterable[str] = (),
    references: bool = True,
) -> Schema:
    """A section: one of the providers by its `type`. Fields that may stand `elsewhere` are not required here."""
    options = []
    for provider in providers:
        table = _table(_settings(provider), references=references)
        table["properties"] = {"type": {"const": provider.name}, **table["properties"]}
        given_elsewhere = {*elsewhere, *provider.aliases.values()}
        table["required"] = ["type", *(key for key in table["required"] if key not in given_elsewhere)]
        options.append(table)
    return {"oneOf": [*options, also] if also else options}


def _table(cls: type[Any], *, references: bool = True) -> Schema:
    fields = fieldtypes.fields(cls)
    properties = {key: _field(field, references=references) for key, field in fields.items()}
    table = _closed(properties)
    table["required"] = [key for key, field in fields.items() if field.default is NOTHING]
    if cls.__doc__:
        table["description"] = inspect.cleandoc(cls.__doc__)
    return table


def _closed(properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _field(field: attrs.Attribute[Any], *, references: bool) -> Schema:
    schema = {**_type(fieldtypes.input_type(field), references=references), **_described(field)}
    if isinstance(field.default, str | int | float) and not fieldtypes.mentions_secret(field.type):
        schema["default"] = field.default
    return schema


def _described(field: attrs.Attribute[Any]) -> Schema:
    return {"description": field.metadata["help"]} if "help" in field.metadata else {}


def _type(type_: Any, *, references: bool) -> Schema:
    if fieldtypes.is_union(type_):
        return {"anyOf": [_type(argument, references=references) for argument in typing.get_args(type_)]}
    if fieldtypes.is_sequence(type_):
        return {"type": "array", "items": _type(fieldtypes.member(type_), references=references)}
    if fieldtypes.is_mapping(type_):
        return {"type": "object", "additionalProperties": _type(fieldtypes.member(type_), references=references)}
    if fieldtypes.is_class(type_):
        return _table(typing.get_origin(type_) or type_, references=references)
    if fieldtypes.is_choice(type_):
        scalar: Schema = {"enum": list(fieldtypes.choices(type_))}
    else:
        scalar = dict(_TYPES.get(type_, {}))
    takes_text = not scalar or scalar.get("type") in ("string", "null")
    return scalar if takes_text or not references else {"anyOf": [scalar, _REFERENCE]}


def _settings(provider: Provider[Any]) -> type[Any]:
    return typing.cast(type[Any], provider.settings)
