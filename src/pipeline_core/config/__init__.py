"""The configuration: one TOML file or one mapping in, a frozen `Config` out, or every problem at once.

Importing this module imports no TOML reader, no cattrs and no plugin; loading a configuration does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date, datetime
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import attrs
from attrs import field, frozen

from pipeline_core.config.sections import Part
from pipeline_core.contracts import Observer, RecordStore, Source, Stage, Target
from pipeline_core.errors import ConfigError, TimeError
from pipeline_core.record import missing_fields
from pipeline_core.timepolicy import TimePolicy, ago_us, elapsed_s
from pipeline_core.window import MIN_US, to_us
from pipeline_core.zones import instant_of_naive, zone

if TYPE_CHECKING:
    from pipeline_core.plugins import PluginManager

__all__ = [
    "Config",
    "Part",
    "RetrySettings",
    "RunSettings",
    "load",
    "load_file",
    "local_url",
    "missing_check_fields",
    "names_in_file",
]


def _at_least(least: float) -> Any:
    def check(_: object, __: attrs.Attribute[Any], value: float) -> None:
        if value < least:
            raise ValueError(f"found {value}, expected {least} or more")

    return check


def _above_zero(_: object, __: attrs.Attribute[Any], value: float) -> None:
    if value <= 0:
        raise ValueError(f"found {value}, expected more than 0")


def _is_duration(_: object, attribute: attrs.Attribute[Any], value: str) -> None:
    elapsed_s(value, attribute.name)


def _number(default: float, check: Any, text: str) -> Any:
    return field(default=default, validator=check, metadata={"help": text})


def _limit(text: str) -> Any:
    return field(default=None, validator=attrs.validators.optional(_at_least(1)), metadata={"help": text})


@frozen
class RunSettings:
    """How a run works through its windows. Times are in seconds, where they are no text such as `30min`."""

    workers: int = _number(1, _at_least(1), "how many windows are worked on at once")
    lease_s: float = _number(300.0, _above_zero, "how long a claim holds without a sign of life")
    max_attempts: int = _number(5, _at_least(1), "how many attempts a window has before it is quarantined")
    max_crashes: int = _number(5, _at_least(1), "how many workers a window may kill before it is quarantined")
    backoff_s: float = _number(10.0, _at_least(0), "the wait after a window's first failed attempt; it doubles")
    backoff_max_s: float = _number(600.0, _at_least(0), "the longest wait of a window")
    crash_backoff_s: float = _number(10.0, _at_least(0), "the wait after the second crash of a window; it doubles")
    batch_rows: int = _number(50_000, _at_least(1), "how many rows are extracted at a time")
    max_running: int | None = _limit("how many windows of the pipeline are worked on at once, on all hosts together")
    rows_per_second: int | None = _limit("how many rows a second each worker extracts at most")
    stage_max_bytes: int | None = _limit("no window is extracted while the pipeline's staged files hold so many bytes")
    give_up_after: str = field(
        default="30min",
        validator=_is_duration,
        metadata={"help": "how long a run waits for a side or the store that is away, such as 30min; 0s: not at all"},
    )

    @property
    def give_up_after_s(self) -> int:
        return elapsed_s(self.give_up_after, "give_up_after")


@frozen
class RetrySettings:
    """How one call to a side is retried while its fault can heal. Times are in seconds."""

    retries: int = _number(3, _at_least(0), "how often a call is tried again")
    wait_s: float = _number(5.0, _at_least(0), "the first wait; it doubles, with jitter")
    wait_max_s: float = _number(60.0, _at_least(0), "the longest wait")


@frozen(eq=False)
class Config:
    """One pipeline's configuration, checked. `load` and `load_file` make it.

    `named`: whether the configuration gives the name, which is made of both types otherwise. `begin_us` and `end_us`
    are microseconds UTC. `mapping` is what was handed in, references unresolved and before the profile, with the chosen
    pipeline as its `name` and the store and the stage that it leaves out, so that another process can load the same.
    `warnings` are for people: the defaults that a trial may live with. The repr shows nothing of the settings.
    """

    name: str
    named: bool
    profile: str | None
    policy: TimePolicy
    begin_us: int | None
    end_us: int | None
    source: Part[Source]
    target: Part[Target]
    stage: Part[Stage]
    store: Part[RecordStore]
    observers: tuple[Part[Observer], ...]
    columns: Mapping[str, str]
    exclude: frozenset[str]
    default_record: Mapping[str, Any] = field(repr=False)
    check_fields: tuple[str, ...]
    run: RunSettings
    retry: RetrySettings
    on_shrink: str
    source_keeps: str | None
    recheck: str | None
    warnings: tuple[str, ...]
    mapping: Mapping[str, Any] = field(repr=False)
    manager: PluginManager = field(repr=False)

    @property
    def pipeline(self) -> str:
        """What records carry: the name, and the profile where there is one."""
        return self.name if self.profile is None else f"{self.name}@{self.profile}"

    @property
    def lacking(self) -> list[str]:
        """The check fields that `default_record` lacks or holds as null: no window is generated without them."""
        return missing_fields(self.default_record, self.check_fields)

    def sealed_us(self, now_us: int) -> int:
        """Windows that start before it are sealed at `now_us`, both microseconds UTC: see `source_keeps`."""
        return MIN_US if self.source_keeps is None else ago_us(now_us, self.source_keeps, self.policy.timezone)

    def instant_us(self, when: str | date) -> int:
        """A time as a person gives it, in microseconds UTC; without an offset it is local to the policy's zone.

        Text is ISO 8601, a date alone stands for its midnight. Raises TimeError.
        """
        return instant_us(when, self.policy.timezone)


def instant_us(when: str | date, timezone: str) -> int:
    """`when` in microseconds UTC: ISO 8601 text, a datetime, or a date (its midnight); local where it has no offset."""
    moment: object = when
    if isinstance(moment, str):
        try:
            moment = datetime.fromisoformat(moment)
        except ValueError:
            moment = None
    elif isinstance(moment, date) and not isinstance(moment, datetime):
        moment = datetime(moment.year, moment.month, moment.day)  # noqa: DTZ001 - local by meaning
    if not isinstance(moment, datetime):
        raise TimeError(f"found {when!r}, expected a time such as '2013-01-01' or '2013-01-01T06:00:00-05:00'")
    return to_us(moment) if moment.utcoffset() is not None else instant_of_naive(moment, zone(timezone))


def load(
    mapping: Mapping[str, Any],
    *,
    profile: str | None = None,
    plugins: Iterable[str | ModuleType] = (),
    name: str | None = None,
    folder: Path | None = None,
) -> Config:
    """The configuration of a mapping: the keys of a file, or the flat form that names its sides in `default_record`.

    `name` chooses one of several `[pipelines.NAME]`, `profile` one of `[profiles.NAME]`; without them the mapping's own
    keys of these names do. In `folder`, else in the working directory, lie the store and the stage of a mapping that
    names none.
    `plugins` are modules (or their names) beside those that `plugins = [...]` in the mapping names. Raises ConfigError
    with every problem, and PluginError where one of the plugins asked for cannot be loaded.
    """
    from pipeline_core.config import loading  # noqa: PLC0415 - cattrs and the plugins load here

    if not isinstance(mapping, Mapping):
        raise ConfigError(
            f"configuration: found a {type(mapping).__name__}, expected a mapping; load_file reads a file"
        )
    return loading.load(mapping, profile, plugins, name, folder or Path.cwd())


def load_file(
    path: str | Path,
    *,
    profile: str | None = None,
    plugins: Iterable[str | ModuleType] = (),
    name: str | None = None,
) -> Config:
    """The configuration of a TOML file; otherwise like `load`, with the file's own folder for what it does not name.

    Raises ConfigError also for a file that is none.
    """
    mapping = _toml(path)
    try:
        return load(mapping, profile=profile, plugins=plugins, name=name, folder=Path(path).resolve().parent)
    except ConfigError as error:
        raise ConfigError([f"{path}: {problem}" for problem in error.problems]) from None


def local_url(key: str, folder: Path) -> str:
    """Where the `store` or the `stage` of a configuration in `folder` lies by default, escaped as a URL."""
    lies = folder / ".pipeline-core"
    return f"sqlite:///{quote(str(lies / 'records.db'))}" if key == "store" else (lies / key).as_uri()


def names_in_file(path: str | Path) -> list[str]:
    """The pipelines of a TOML file, in its order; none where it is that of one alone. Raises ConfigError."""
    from pipeline_core.config.overlays import names  # noqa: PLC0415 - the plugin manager loads here

    mapping = _toml(path)
    try:
        return names(mapping)
    except ConfigError as error:
        raise ConfigError([f"{path}: {problem}" for problem in error.problems]) from None


def _toml(path: str | Path) -> dict[str, Any]:
    import tomllib  # noqa: PLC0415 - a mapping needs none

    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file; write one with `pipeline-core init`, or name another with -c"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); make it a file that this user may read"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: is no UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is not TOML: {error}; `pipeline-core init` writes an example") from None


def missing_check_fields(mapping: Mapping[str, Any]) -> list[str]:
    """The `check_fields` that `default_record` lacks or holds as null. Loads no plugin. Raises ConfigError."""
    from pipeline_core.config import overlays  # noqa: PLC0415 - the plugin manager loads here

    name, profile = overlays.chosen(mapping, None), overlays.chosen_profile(mapping, None)
    mapping = overlays.merged(mapping, name, overlays.overlays(mapping, name, profile))
    check_fields, default_record = mapping.get("check_fields", ()), mapping.get("default_record", {})
    problems = []
    if not isinstance(check_fields, list | tuple) or not all(isinstance(name, str) for name in check_fields):
        problems.append(f"check_fields: found a {type(check_fields).__name__}, expected a list of strings")
    if not isinstance(default_record, Mapping):
        problems.append(f"default_record: found a {type(default_record).__name__}, expected a table")
    if problems:
        raise ConfigError(problems)
    return missing_fields(default_record, check_fields)
