"""The keys of a configuration's top level, and the names that more than one module must agree on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date, datetime
from typing import Any, Final, Literal

import attrs
from attrs import field, frozen

from pipeline_core.config import RetrySettings, RunSettings
from pipeline_core.plugins import Kind
from pipeline_core.timepolicy import ago_us

#: The sections that a pipeline has exactly one of, and what each of them selects.
SECTIONS: Final = {
    "source": Kind.CONNECTOR,
    "target": Kind.CONNECTOR,
    "stage": Kind.STAGE,
    "store": Kind.RECORD_STORE,
}
#: The short form of `[time]`.
POLICY_KEYS: Final = ("timezone", "granularity", "x_time_back")
#: The key of `[columns]` that is no column.
EXCLUDE: Final = "exclude"
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def _check_name(_: object, __: attrs.Attribute[Any], value: str | None) -> None:
    if value is not None and not NAME.fullmatch(value):
        raise ValueError(f"found {value!r}, expected letters, digits, '_', '.' and '-', the first a letter or digit")


def _check_duration(_: object, __: attrs.Attribute[Any], value: str | None) -> None:
    if value is not None:
        ago_us(0, value, "UTC")


def _help(text: str) -> dict[str, str]:
    return {"help": text}


@frozen
class Layout:
    """A pipeline's configuration."""

    name: str | None = field(
        default=None, validator=_check_name, metadata=_help("the pipeline's name; without one: source-to-target")
    )
    timezone: str | None = field(default=None, metadata=_help("the IANA zone of the windows, of `begin` and of `end`"))
    granularity: str | None = field(
        default=None, metadata=_help("the length of a window, such as 15min, 2h, 1d, 1w, 1mo")
    )
    x_time_back: str | None = field(default=None, metadata=_help("how far back time is stable, such as 1d"))
    time: Mapping[str, Any] = field(factory=dict, metadata=_help("another time policy than `wall`"))
    begin: str | date | datetime | None = field(
        default=None, metadata=_help("the first instant; local where it has no offset")
    )
    end: str | date | datetime | None = field(
        default=None, metadata=_help("the instant after the last; local where it has no offset")
    )
    plugins: tuple[str, ...] = field(default=(), metadata=_help("modules of your own that provide something, by name"))
    source: Mapping[str, Any] = field(factory=dict, metadata=_help("where rows come from"))
    target: Mapping[str, Any] = field(factory=dict, metadata=_help("where rows go"))
    stage: Mapping[str, Any] = field(factory=dict, metadata=_help("where rows rest in between"))
    store: Mapping[str, Any] = field(factory=dict, metadata=_help("where the records of windows live"))
    observers: tuple[Mapping[str, Any], ...] = field(default=(), metadata=_help("who is told every event"))
    columns: Mapping[str, Any] = field(
        factory=dict, metadata=_help("target names of source columns; `exclude` lists those to leave out")
    )
    default_record: Mapping[str, Any] = field(factory=dict, metadata=_help("the fields of every new record"))
    check_fields: tuple[str, ...] = field(
        default=(), metadata=_help("the fields that a record must hold, and not as null")
    )
    run: RunSettings = field(factory=RunSettings, metadata=_help("how windows are worked through"))
    retry: RetrySettings = field(factory=RetrySettings, metadata=_help("how a call is retried"))
    on_shrink: Literal["quarantine", "replace"] = field(
        default="quarantine",
        metadata=_help("what becomes of a window whose source holds fewer rows than were verified"),
    )
    source_keeps: str | None = field(
        default=None,
        validator=_check_duration,
        metadata=_help(
            "how long the source keeps its rows, such as 30d: done windows that started before stay as they are"
        ),
    )
    recheck: str | None = field(
        default=None,
        validator=_check_duration,
        metadata=_help(
            "how far back each run first counts done windows again, such as 7d, from what is stable: rows come late"
        ),
    )
    secrets: Mapping[str, Mapping[str, Any]] = field(
        factory=dict, metadata=_help("the settings of secret resolvers, by prefix")
    )
    pipelines: Mapping[str, Mapping[str, Any]] = field(
        factory=dict, metadata=_help("several pipelines, by name: what each adds to the top level, or changes of it")
    )
    profile: str | None = field(
        default=None, metadata=_help("which of `profiles` is meant, where whoever loads it names none")
    )
    profiles: Mapping[str, Mapping[str, Any]] = field(
        factory=dict, metadata=_help("what changes, by the name of the profile")
    )
