"""The configuration: what it accepts, what it says of what it does not, and that it never shows a secret."""

from __future__ import annotations

import copy
import os
import pickle
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta, timezone
from enum import StrEnum
from types import ModuleType
from typing import Any, Literal

import jsonschema
import pytest
from attrs import Factory, field, frozen
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline_core import (
    Can,
    ConfigError,
    Context,
    ElapsedPolicy,
    PluginError,
    Provider,
    Secret,
    TimeError,
    WallClockPolicy,
    hookimpl,
)
from pipeline_core.config import Config, load, load_file, missing_check_fields
from pipeline_core.config.schema import json_schema
from pipeline_core.plugins import PluginManager
from pipeline_core.secrets import redact

CONTEXT = Context("flights")


class Mode(StrEnum):
    FAST = "fast"
    SAFE = "safe"


@frozen
class Tls:
    """How to trust the other side."""

    verify: bool = True
    ca: str | None = None


def _no_spaces(_: object, __: object, value: str) -> None:
    if " " in value:
        raise ValueError(f"url: found {value!r}, expected no spaces")


def _no_ports(_: object, __: object, value: Sequence[str]) -> None:
    if any(":" in host for host in value):
        raise ValueError("expected hosts without ports")


def _shout(text: str) -> str:
    if text.startswith("!"):
        raise ValueError(f"{text.upper()} is loud already")
    return text.upper()


@frozen
class FakeSettings:
    """A fake side.

    Takes a value of every type.
    """

    url: str = field(validator=_no_spaces, metadata={"help": "where it is"})
    password: Secret | None = None
    port: int = 1
    ratio: float = 1.0
    compress: bool = False
    mode: Mode = Mode.SAFE
    level: Literal["low", "high"] = "low"
    hosts: Sequence[str] = field(default=(), validator=_no_ports)
    tags: Mapping[str, str] = Factory(dict)
    keys: Mapping[str, Secret] = Factory(dict)
    tls: Tls = Factory(Tls)
    shouted: str = field(default="", converter=_shout)
    either: Secret | bool | None = None

    @contextmanager
    def open(self, context: Context, /) -> Iterator[tuple[Context, FakeSettings]]:
        yield context, self


@frozen
class Strict:
    """Refuses with all it knows, as a careless plugin would."""

    user: str
    password: Secret

    def __attrs_post_init__(self) -> None:
        raise ValueError(f"{self.user} and {self.password.reveal()} do not fit")

    def open(self, context: Context, /) -> Any:
        raise AssertionError


@frozen
class SqlStore:
    """A fake record store."""

    url: str

    @contextmanager
    def open(self, context: Context, /) -> Iterator[SqlStore]:
        yield self


@frozen
class VaultSettings:
    """A fake vault."""

    token: Secret = field(factory=lambda: Secret("none"))

    @contextmanager
    def open(self, context: Context, /) -> Iterator[VaultSettings]:
        yield self

    def resolve(self, name: str, /) -> str:
        return {"db": f"{self.token.reveal()}-for-db"}[name]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch, tmp_path) -> None:
    for name in list(os.environ):
        if name.startswith(("PIPELINE_CORE_", "ELASTICSEARCH_", "SNOWFLAKE_", "SOURCE_", "TARGET_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _only_fakes(monkeypatch) -> None:
    """No installed plugin takes part, whichever there are."""
    monkeypatch.setattr("pipeline_core.plugins._entry_points", lambda: iter(()))


def make_fakes() -> ModuleType:
    module = ModuleType("fakes")
    es = {"elasticsearch_host": "url", "source_index": "index_", "target_index": "index_"}

    @frozen
    class Es(FakeSettings):
        """A fake index."""

        index_: str = "none"

    @frozen
    class Snow:
        """A fake warehouse."""

        account: str
        user: str
        password: Secret
        table: str

        def open(self, context: Context, /) -> Any:
            raise AssertionError

    @hookimpl
    def pipeline_connectors():
        yield Provider("fake", FakeSettings, can=set(Can))
        yield Provider("strict", Strict)
        yield Provider("elasticsearch", Es, aliases=es)
        yield Provider(
            "snowflake",
            Snow,
            aliases={f"snowflake_{key}": key for key in ("account", "user", "password")} | {"target_table": "table"},
        )

    @hookimpl
    def pipeline_record_stores():
        yield Provider("sql", SqlStore)

    @hookimpl
    def pipeline_stages():
        yield Provider("objects", SqlStore)

    @hookimpl
    def pipeline_observers():
        yield Provider("fake", FakeSettings)

    @hookimpl
    def pipeline_secret_resolvers():
        yield Provider("vault", VaultSettings)

    for hook in list(locals().values()):
        if getattr(hook, "__name__", "").startswith("pipeline_"):
            setattr(module, hook.__name__, hook)
    return module


FAKES = make_fakes()

OWNERS = {
    "timezone": "America/Los_Angeles",
    "x_time_back": "1d",
    "granularity": "2h",
    "default_record": {"source_name": "elasticsearch", "target_name": "snowflake"},
    "check_fields": ["key_x", "key_y", "key_z"],
}
OWNERS_CONNECTIONS = {
    "elasticsearch_host": "http://es:9200",
    "source_index": "flights",
    "snowflake_user": "me",
    "snowflake_password": "hunter22",
    "snowflake_account": "acc",
    "target_table": "FLIGHTS",
}
FULL: dict[str, Any] = {
    "name": "flights",
    "timezone": "America/New_York",
    "x_time_back": "1d",
    "begin": "2013-01-01",
    "end": "2014-01-01",
    "plugins": [],
    "time": {"type": "wall", "granularity": "2h"},
    "source": {"type": "fake", "url": "here", "tls": {"verify": False}, "mode": "fast", "hosts": ["a"], "ratio": 2},
    "target": {"type": "fake", "url": "there", "password": "${env:PW}", "tags": {"a b": "c"}},
    "stage": {"type": "objects", "url": "file:///stage"},
    "store": {"type": "sql", "url": "sqlite:///x.db"},
    "observers": [{"type": "fake", "url": "one"}, {"type": "fake", "url": "two"}],
    "columns": {"@timestamp": "TIME_HOUR", "exclude": ["secret"]},
    "default_record": {"team": "ops", "nested": {"list": [1, None]}},
    "check_fields": ["team"],
    "run": {"workers": 2, "lease_s": 60},
    "retry": {"retries": 0},
    "secrets": {"vault": {"token": "${env:TOKEN}"}},
    "profiles": {"prod": {"target": {"url": "prod"}}},
}


def loaded(mapping: Mapping[str, Any], profile: str | None = None) -> Config:
    return load(mapping, profile=profile, plugins=[FAKES])


def problems(mapping: Mapping[str, Any], profile: str | None = None) -> list[str]:
    with pytest.raises(ConfigError) as error:
        loaded(mapping, profile)
    return error.value.problems


def full(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(FULL), **changes}


def several(pipelines: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """FULL as the top level of those pipelines, its target incomplete."""
    whole = full(pipelines=pipelines, target={"type": "fake"}, **changes)
    del whole["name"]
    return whole


def side(**changes: Any) -> dict[str, Any]:
    """FULL with other settings of the target."""
    return full(target={"type": "fake", "url": "there", **changes})


def opened(config: Config) -> FakeSettings:
    with config.target.open(CONTEXT) as (context, found):
        assert context is CONTEXT
        return found


# --- what is accepted ------------------------------------------------------------------------------------------------


def test_a_full_configuration() -> None:
    """Every key arrives where it belongs, with its type."""
    config = loaded(FULL)
    assert (config.name, config.profile, config.pipeline) == ("flights", None, "flights")
    assert config.policy == WallClockPolicy(granularity="2h", timezone="America/New_York", x_time_back="1d")
    assert config.begin_us == datetime(2013, 1, 1, 5, tzinfo=UTC).timestamp() * 1_000_000
    assert config.end_us == datetime(2014, 1, 1, 5, tzinfo=UTC).timestamp() * 1_000_000
    assert [part.path for part in (config.source, *config.observers)] == ["source", "observers[0]", "observers[1]"]
    assert (config.columns, config.exclude) == ({"@timestamp": "TIME_HOUR"}, frozenset({"secret"}))
    assert (config.run.workers, config.run.lease_s, config.run.batch_rows) == (2, 60.0, 50_000)
    assert (config.retry.retries, config.retry.wait_s) == (0, 5.0)
    assert config.default_record == FULL["default_record"]
    assert (config.check_fields, config.warnings) == (("team",), ())
    with config.source.open(CONTEXT) as (_, source):
        assert source == FakeSettings("here", tls=Tls(verify=False), mode=Mode.FAST, hosts=("a",), ratio=2.0)
        assert isinstance(source.ratio, float)


def test_the_defaults_of_run_and_retry() -> None:
    """What a configuration that says nothing runs with."""
    config = loaded({key: value for key, value in FULL.items() if key not in ("run", "retry")})
    run, retry = config.run, config.retry
    assert (run.workers, run.lease_s, run.max_attempts, run.max_crashes) == (1, 300.0, 5, 5)
    assert (run.backoff_s, run.backoff_max_s, run.crash_backoff_s) == (10.0, 600.0, 10.0)
    assert (run.give_up_after, run.max_running) == ("30min", None)
    assert (retry.retries, retry.wait_s, retry.wait_max_s) == (3, 5.0, 60.0)


def test_another_process_can_load_the_same() -> None:
    """`mapping` is what was handed in, unresolved, and travels; changing it afterwards changes nothing."""
    mine = full()
    config = loaded(mine, "prod")
    mine["name"] = "changed"
    again = loaded(pickle.loads(pickle.dumps(config.mapping)), config.profile)
    assert config.mapping["target"]["password"] == "${env:PW}"
    assert (again.pipeline, again.policy) == (config.pipeline, config.policy) == ("flights@prod", again.policy)


@pytest.mark.parametrize(
    ("begin", "expected"),
    [
        ("2013-03-10", datetime(2013, 3, 10, 5, tzinfo=UTC)),
        ("2013-03-10T06:30", datetime(2013, 3, 10, 10, 30, tzinfo=UTC)),
        ("2013-03-10 06:30:00+01:00", datetime(2013, 3, 10, 5, 30, tzinfo=UTC)),
        ("2013-03-10T06:30:00Z", datetime(2013, 3, 10, 6, 30, tzinfo=UTC)),
        (date(2013, 3, 10), datetime(2013, 3, 10, 5, tzinfo=UTC)),
        (datetime(2013, 3, 10, 6, 30), datetime(2013, 3, 10, 10, 30, tzinfo=UTC)),
        (datetime(2013, 3, 10, 6, tzinfo=timezone(timedelta(hours=1))), datetime(2013, 3, 10, 5, tzinfo=UTC)),
        ("2013-11-03T01:30", datetime(2013, 11, 3, 5, 30, tzinfo=UTC)),
    ],
)
def test_begin_is_local_unless_it_says_otherwise(begin: Any, expected: datetime) -> None:
    """A date or time without an offset is meant in the policy's zone, a repeated one for its first pass."""
    config = loaded(full(begin=begin))
    assert config.begin_us == expected.timestamp() * 1_000_000
    assert config.instant_us(begin) == config.begin_us


def test_instant_us_refuses_what_is_no_time() -> None:
    """The command line's times go the same way, and say what they expected."""
    with pytest.raises(TimeError, match=r"found 'soon', expected a time such as '2013-01-01'"):
        loaded(FULL).instant_us("soon")


def test_the_short_form_is_the_wall_policy() -> None:
    """timezone, granularity and x_time_back alone give `wall`; together with [time] each may stand on either side."""
    short = {key: value for key, value in FULL.items() if key != "time"} | {"granularity": "1d"}
    assert loaded(short).policy == WallClockPolicy(granularity="1d", timezone="America/New_York", x_time_back="1d")
    elapsed = loaded(full(time={"type": "elapsed", "granularity": "5h", "anchor": datetime(2013, 1, 1, tzinfo=UTC)}))
    assert elapsed.policy == ElapsedPolicy(
        granularity="5h", anchor="2013-01-01T00:00:00+00:00", timezone="America/New_York", x_time_back="1d"
    )
    assert problems(full(granularity="2h")) == [
        "granularity: found here and in [time], expected it once; remove one of the two"
    ]


# --- the owner's form ------------------------------------------------------------------------------------------------


def test_the_owners_form(tmp_path) -> None:
    """Sides by default_record, settings at the top level, a name made of both, and local defaults with a warning."""
    config = loaded(OWNERS | OWNERS_CONNECTIONS)
    assert (config.name, config.source.type, config.target.type) == (
        "elasticsearch-to-snowflake",
        "elasticsearch",
        "snowflake",
    )
    with config.source.open(CONTEXT) as (_, source):
        assert (source.url, source.index_) == ("http://es:9200", "flights")
    assert config.target.options == {"account": "acc", "user": "me", "password": "hunter22", "table": "FLIGHTS"}
    with config.store.open(CONTEXT) as store:
        assert store.url == f"sqlite:///{tmp_path}/.pipeline-core/records.db"
    with config.stage.open(CONTEXT) as stage:
        assert stage.url == f"file://{tmp_path}/.pipeline-core/stage"
    assert ["store" in text or "stage" in text for text in config.warnings] == [True, True]
    assert config.check_fields == ("key_x", "key_y", "key_z")


def test_the_environment_fills_what_the_mapping_leaves_out(monkeypatch) -> None:
    """Aliases in capitals are read late; the section beats the top level, and that the environment."""
    for name in ("ELASTICSEARCH_HOST", "SNOWFLAKE_ACCOUNT", "SNOWFLAKE_USER", "SNOWFLAKE_PASSWORD"):
        monkeypatch.setenv(name, f"from-{name}")
    monkeypatch.setenv("PIPELINE_CORE_STORE_URL", "postgresql://me:pass-word@db/x")
    monkeypatch.setenv("PIPELINE_CORE_STAGE_URL", "file:///elsewhere")
    config = loaded(
        OWNERS
        | {"target_table": "T", "snowflake_user": "top", "snowflake_account": "top"}
        | {"target": {"account": "section"}}
    )
    assert config.warnings == ()
    assert config.target.options == {
        "account": "section",
        "user": "top",
        "table": "T",
        "password": "${env:SNOWFLAKE_PASSWORD}",
    }
    with config.source.open(CONTEXT) as (_, source):
        assert source.url == "from-ELASTICSEARCH_HOST"
    with config.store.open(CONTEXT) as store, config.stage.open(CONTEXT) as stage:
        assert (store.url, stage.url) == ("postgresql://me:pass-word@db/x", "file:///elsewhere")
    assert "pass-word" not in repr(config) + repr(config.mapping) + repr(config.store.options)


def test_an_alias_of_one_side_never_fills_the_other() -> None:
    """source_index is the source's alone, even where one technology takes both sides."""
    both = OWNERS | {"default_record": {"source_name": "elasticsearch", "target_name": "elasticsearch"}}
    config = loaded(both | {"elasticsearch_host": "h", "source_index": "from", "target_index": "to"})
    assert (config.source.options["index_"], config.target.options["index_"]) == ("from", "to")
    assert "index_" not in loaded(both | {"elasticsearch_host": "h", "source_index": "from"}).target.options


def test_an_alias_is_named_as_it_was_written() -> None:
    """A problem with a setting from the top level names the key that the person wrote."""
    found = problems(OWNERS | OWNERS_CONNECTIONS | {"target_table": 5})
    assert found == ["target_table: found 5, expected a string"]


def test_missing_check_fields_needs_no_plugin() -> None:
    """The owner's configuration is answered as it stands, whatever is installed; 0 and False are values."""
    assert missing_check_fields(OWNERS) == ["key_x", "key_y", "key_z"]
    held = {"check_fields": ["a", "b", "c", "d"], "default_record": {"a": 0, "b": None, "c": False}}
    assert missing_check_fields(held) == ["b", "d"]
    assert missing_check_fields({}) == []
    with pytest.raises(ConfigError) as error:
        missing_check_fields({"check_fields": "abc", "default_record": 3})
    assert error.value.problems == [
        "check_fields: found a str, expected a list of strings",
        "default_record: found a int, expected a table",
    ]


def test_a_record_holds_our_keys_by_itself() -> None:
    """The window's times lack in no record, so that `check_fields` may name them and `default_record` may not."""
    ours = ["WINDOW_START_TIME", "WINDOW_END_TIME", "PIPELINE"]
    assert missing_check_fields({"check_fields": ours}) == []
    assert loaded(full(check_fields=ours, default_record={})).lacking == []
    for value in (None, "2024-01-01T00:00:00+00:00", {}):
        assert problems(full(check_fields=[], default_record=dict.fromkeys(ours, value))) == [
            f"default_record.{key}: found a key that every record holds by itself, expected one of your own; rename it"
            for key in ours
        ]


# --- profiles --------------------------------------------------------------------------------------------------------


def test_a_profile_overrides_deeply() -> None:
    """Tables merge, lists are replaced, and a section whose type changes is replaced whole."""
    prod = {
        "target": {"url": "prod", "tls": {"ca": "x"}},
        "check_fields": [],
        "default_record": {"type": "b", "source": {"type": "d"}},
        "source": {"type": "elasticsearch", "url": "es"},
        "store": {"type": "sql", "url": "prod-store"},
    }
    base = full(default_record={"type": "a", "source": {"type": "c", "of": 1}}, profiles={"prod": prod, "dev": {}})
    base["target"]["tls"] = {"verify": False}
    config = loaded(base, "prod")
    assert config.pipeline == "flights@prod"
    assert config.target.options == {
        "url": "prod",
        "password": "${env:PW}",
        "tags": {"a b": "c"},
        "tls": {"verify": False, "ca": "x"},
    }
    assert (config.source.type, config.source.options) == ("elasticsearch", {"url": "es"})
    assert (config.check_fields, config.default_record) == (
        (),
        {"type": "b", "source": {"type": "d", "of": 1}},
    )
    assert loaded(base).target.options["url"] == "there"


def test_the_mapping_may_name_its_profile() -> None:
    """As it names one of several pipelines, for a task that is handed it; what whoever loads it says comes first."""
    base = full(profiles={"prod": {"check_fields": ["key_q"]}, "dev": {}}, profile="prod")
    assert loaded(base).pipeline == "flights@prod"
    assert loaded(base, "dev").pipeline == "flights@dev"
    assert missing_check_fields(base) == ["key_q"]
    assert problems(base | {"profile": "prd"})[0].startswith("profile: found 'prd', expected one of [profiles]: 'prod'")
    assert problems(base | {"profile": ["prod"]}) == ["profile: found a list, expected the name of one of [profiles]"]
    nested = {"prod": {"profile": "dev"}, "dev": {}}
    assert problems(base | {"profiles": nested})[0].startswith("profiles.prod.profile: unknown key")


def test_an_unknown_profile_lists_the_known() -> None:
    """So does one where there is no [profiles] at all."""
    assert problems(FULL, "prd") == ["profile: found 'prd', expected one of [profiles]: 'prod'; did you mean 'prod'?"]
    assert "none is given" in problems(full(profiles={}), "prod")[0]


def test_a_problem_in_a_profile_is_found_there() -> None:
    """The path names the profile where the value was written there, and the section where not."""
    base = full(profiles={"prod": {"run": {"workers": 0}, "target": {"prot": 1}}})
    base["target"]["port"] = "x"
    assert sorted(problems(base, "prod")) == [
        "profiles.prod.run.workers: found 0, expected 1 or more",
        "profiles.prod.target.prot: unknown key; did you mean 'port'? expected one of: compress, either, hosts, keys, "
        "level, mode, password, port, ratio, shouted, tags, tls, url",
        "target.port: found 'x', expected an integer",
    ]


# --- what is refused -------------------------------------------------------------------------------------------------


def test_every_problem_is_told_at_once() -> None:
    """One error holds all findings, each with its path, what was found and what was expected."""
    found = problems(
        {
            "name": "no spaces",
            "timezone": "Mars",
            "granularty": "2h",
            "begin": "soon",
            "source": {"type": "fak", "url": 3},
            "target": "postgresql://me:hunter22@db/x",
            "observers": [{"type": "fake"}, {}],
            "columns": {"@t": 3, "a": "x", "b": "x", "exclude": "y"},
            "default_record": {"when": date(2013, 1, 1)},
            "check_fields": "abc",
            "run": {"workers": True, "batch_rows": 0, "lease": 1},
            "profiles": {"prod": 3},
        }
    )
    text = "\n".join(found)
    for line in (
        "name: found 'no spaces', expected letters",
        "timezone: found 'Mars', expected an IANA name",
        "granularty: unknown key; did you mean 'granularity'?",
        "granularity: missing, expected a string",
        "begin: found 'soon', expected a time",
        "source.type: found 'fak', expected an installed connector: 'elasticsearch', 'fake'",
        "target: found a string, expected a table",
        "observers[0].url: missing, expected a string",
        "observers[1].type: missing, expected an installed observer: 'fake'",
        'columns."@t": found 3, expected a string',
        "columns.b: found 'x', which is the name of 'a' already",
        "columns.exclude: found a string, expected a list of strings",
        "default_record.when: found a date, expected what JSON holds",
        "check_fields: found a string, expected a list",
        "run.workers: found true, expected an integer",
        "run.batch_rows: found 0, expected 1 or more",
        "run.lease: unknown key; did you mean 'lease_s'?",
        "profiles.prod: found an integer, expected a table",
    ):
        assert line in text
    assert len(found) == 18
    assert "hunter22" not in text


@pytest.mark.parametrize(("text", "seconds"), [("0s", 0), ("90s", 90), ("30min", 1800), ("3h", 10_800), ("1d", 86_400)])
def test_how_long_a_run_waits_for_a_side(text: str, seconds: int) -> None:
    """A duration of one length; a day is 24 hours of it."""
    assert loaded(full(run={"give_up_after": text})).run.give_up_after_s == seconds


@pytest.mark.parametrize("text", ["1mo", "30m", "soon", "-1s"])
def test_how_long_a_run_waits_is_refused_where_it_is_no_duration(text: str) -> None:
    """Months differ in length; anything else is none."""
    assert [
        each for each in problems(full(run={"give_up_after": text})) if "give_up_after: found" in each and text in each
    ]


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("url", 3, "found 3, expected a string"),
        ("url", "a b", "found 'a b', expected no spaces"),
        ("port", "1", "found '1', expected an integer"),
        ("port", True, "found true, expected an integer"),
        ("port", 1.0, "found 1.0, expected an integer"),
        ("ratio", "1.5", "found '1.5', expected a number"),
        ("ratio", float("nan"), "found nan, expected a number"),
        ("compress", 1, "found 1, expected true or false"),
        ("mode", "slow", "found 'slow', expected one of 'fast', 'safe'"),
        ("level", "mid", "found 'mid', expected one of 'low', 'high'"),
        ("hosts", "a", "found a string, expected a list"),
        ("tags", [], "found a list, expected a table"),
        ("tls", "yes", "found a string, expected a table"),
        ("tls", "${env:X}", "found the reference ${env:X}, which stands for a single value, expected a table"),
        ("password", 12345678, "found an integer, expected a string"),
        ("either", 12345678, "found an integer, expected a string or true or false"),
        ("password", ["12345678"], "found a list, expected a string"),
        ("url", "${HOME}", "found ${HOME}, expected a reference such as ${env:NAME}"),
        ("url", "${env:}", "found ${env:}, expected a reference such as ${env:NAME}"),
        (
            "url",
            "${vaul:x}",
            "found 'vaul', expected an installed secret resolver: 'env', 'vault'; did you mean 'vault'?",
        ),
    ],
)
def test_scalars_are_strict(setting: str, value: Any, said: str) -> None:
    """Nothing is coerced, and a value meant to be secret is not shown even where it does not fit."""
    assert problems(side(**{setting: value})) == [f"target.{setting}: {said}"]


def test_findings_inside_lists_and_tables_name_their_place() -> None:
    """An item is named by its index, a key by its name, quoted where TOML would quote it."""
    found = problems(side(hosts=["a", 1, "b", 2], tags={"a b": 1}, keys={"k": 1234567}, tls={"verify": "yes"}))
    assert found == [
        "target.hosts[1]: found 1, expected a string",
        "target.hosts[3]: found 2, expected a string",
        'target.tags."a b": found 1, expected a string',
        "target.keys.k: found an integer, expected a string",
        "target.tls.verify: found 'yes', expected true or false",
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"end": "2013-01-01"}, "end: found '2013-01-01', expected a time after begin, which is '2013-01-01'"),
        ({"begin": True}, "begin: found true, expected a string or a date or a date with a time"),
        ({"store": {"url": "x"}}, "store.type: missing, expected an installed record store: 'sql'"),
        ({"time": {"granularity": "2h"}}, "time.type: missing, expected an installed time policy: 'elapsed', 'wall'"),
        ({"timezone": "${env:TZ}"}, "timezone: found the reference ${env:TZ}, which only these resolve"),
        ({"plugins": "mine"}, "plugins: found a string, expected a list"),
        ({"default_record": {"x": float("inf")}}, "default_record.x: found a number, expected what JSON holds"),
        (
            {"secrets": {"vault": {"token": "${vault:x}"}}},
            "secrets.vault.token: found ${vault:x}, expected ${env:NAME}",
        ),
        ({"secrets": {"aws": {}}}, "secrets.aws: found 'aws', expected an installed secret resolver"),
    ],
)
def test_what_is_refused_elsewhere(changes: dict[str, Any], said: str) -> None:
    """Each mistake is named at its own key."""
    assert said in "\n".join(problems(full(**changes)))


def test_a_plugin_that_was_asked_for_and_is_broken_raises() -> None:
    """`plugins = [...]` in the mapping is no finding among others: nothing can be said without it."""
    with pytest.raises(PluginError, match="no_such_plugin"):
        loaded(full(plugins=["no_such_plugin"]))


def test_a_side_whose_plugin_is_missing_explains_its_strange_keys() -> None:
    """Without the plugin its aliases are unknown; the message says why."""
    with pytest.raises(ConfigError) as error:
        load(OWNERS | {"elasticsearch_host": "h"})
    text = str(error.value)
    assert "default_record.source_name: found 'elasticsearch', expected an installed connector" in text
    assert "windowed-pipeline-elasticsearch" in text
    assert "elasticsearch_host: unknown key" in text
    assert "plugin that it is meant for is not installed" in text


def test_a_setting_that_is_missing_names_its_variable(monkeypatch) -> None:
    """Where an alias gives it too; the other side's aliases do not."""
    for name in ("SNOWFLAKE_ACCOUNT", "SNOWFLAKE_USER", "SNOWFLAKE_PASSWORD", "TARGET_TABLE"):
        monkeypatch.delenv(name, raising=False)
    missing = "missing, expected a string"
    found = problems(full(target={"type": "snowflake"}))
    assert f"target.account: {missing}; or set the environment variable SNOWFLAKE_ACCOUNT" in found
    assert f"target.table: {missing}; or set the environment variable TARGET_TABLE" in found
    assert f"source.table: {missing}" in problems(full(source={"type": "snowflake"}))


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_file_with_toml_times(tmp_path) -> None:
    """A TOML file loads like the mapping it holds; its dates and times are understood."""
    path = tmp_path / "pipeline.toml"
    path.write_text(
        'granularity = "2h"\ntimezone = "America/New_York"\nbegin = 2013-01-01\nend = 2014-01-01T00:00:00-05:00\n'
        '[source]\ntype = "fake"\nurl = "a"\n[target]\ntype = "fake"\nurl = "b"\n[columns]\n"@timestamp" = "T"\n'
    )
    config = load_file(path, plugins=[FAKES])
    assert (config.name, config.columns) == ("fake-to-fake", {"@timestamp": "T"})
    assert config.end_us == datetime(2014, 1, 1, 5, tzinfo=UTC).timestamp() * 1_000_000


def test_what_a_file_does_not_name_lies_beside_it(tmp_path, monkeypatch) -> None:
    """Store and stage are the same ones from every working directory, through a link, and in another process."""
    (tmp_path / "home").mkdir()
    (tmp_path / "link.toml").symlink_to(tmp_path / "home/pipeline.toml")
    (tmp_path / "home/pipeline.toml").write_text(
        'granularity = "2h"\ntimezone = "UTC"\n[source]\ntype = "fake"\nurl = "a"\n[target]\ntype = "fake"\nurl = "b"\n'
    )
    configs = [load_file(path, plugins=[FAKES]) for path in ("home/pipeline.toml", "link.toml")]
    monkeypatch.chdir("home")
    configs += [load_file("pipeline.toml", plugins=[FAKES]), loaded(pickle.loads(pickle.dumps(configs[0].mapping)))]
    monkeypatch.chdir("/")
    for config in configs:
        with config.store.open(CONTEXT) as store, config.stage.open(CONTEXT) as stage:
            assert store.url == f"sqlite:///{tmp_path}/home/.pipeline-core/records.db"
            assert stage.url == f"file://{tmp_path}/home/.pipeline-core/stage"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such file; write one with `pipeline-core init`"),
        (b"name = \n", "is not TOML: Invalid value (at line 1, column 8); `pipeline-core init` writes an example"),
        (b"name = '\xff'", "is no UTF-8 text"),
    ],
)
def test_a_file_that_is_none(tmp_path, content: bytes | None, said: str) -> None:
    """The error names the file and the next step."""
    path = tmp_path / "pipeline.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        load_file(path)
    assert str(error.value).startswith(f"{path}: ")
    assert said in str(error.value)


def test_a_folder_is_no_file(tmp_path) -> None:
    """What cannot be read says why."""
    with pytest.raises(ConfigError, match="cannot be read"):
        load_file(tmp_path)


# --- references ------------------------------------------------------------------------------------------------------


def test_references_resolve_late_and_each_time(monkeypatch) -> None:
    """Nothing is read when the configuration is loaded; each opening reads anew; text around a reference stays."""
    monkeypatch.delenv("PW", raising=False)
    config = loaded(side(url="db://${env:U}:${env:PW}@host", password="${env:PW}"))
    for value in ("first-value", "second-value"):
        monkeypatch.setenv("U", "user-name")
        monkeypatch.setenv("PW", value)
        found = opened(config)
        assert found.url == f"db://user-name:{value}@host"
        assert found.password is not None
        assert found.password.reveal() == value
        assert redact(f"login {value}") == "login ***"


def test_a_reference_stands_for_any_scalar(monkeypatch) -> None:
    """What it resolves to is converted strictly, only when the part is opened."""
    written = {"port": "9200", "ratio": "1.5", "compress": "true", "mode": "fast", "level": "high"}
    config = loaded(side(**{key: f"${{env:{key.upper()}}}" for key in written}, hosts=["${env:HOST}", "b"]))
    for key, value in written.items():
        monkeypatch.setenv(key.upper(), value)
    monkeypatch.setenv("HOST", "h1")
    found = opened(config)
    assert (found.port, found.ratio, found.compress, found.mode, found.level) == (9200, 1.5, True, Mode.FAST, "high")
    assert found.hosts == ("h1", "b")


def test_every_other_mistake_is_found_before_references_resolve() -> None:
    """A section that waits for a reference is checked in all that does not depend on it."""
    assert problems(side(url="${env:U}", port="x", prot=1, tls={"verify": "${env:V}", "ca": 3})) == [
        "target.prot: unknown key; did you mean 'port'? expected one of: compress, either, hosts, keys, level, mode, "
        "password, port, ratio, shouted, tags, tls, url",
        "target.port: found 'x', expected an integer",
        "target.tls.ca: found 3, expected a string",
    ]
    assert problems(side(url="a b", password="${env:PW}")) == ["target.url: found 'a b', expected no spaces"]


def test_an_unset_variable_names_path_and_name(monkeypatch) -> None:
    """Each missing reference is told with what to do; those that are set are not shown."""
    monkeypatch.setenv("SET", "set-value")
    for name in ("UNSET_A", "UNSET_B"):
        monkeypatch.delenv(name, raising=False)
    config = loaded(side(url="${env:UNSET_A}/${env:SET}", keys={"a": "${env:UNSET_B}"}))
    with pytest.raises(ConfigError) as error:
        config.target.open(CONTEXT)
    assert error.value.problems == [
        "target.url: ${env:UNSET_A} has no value; set the environment variable UNSET_A",
        "target.keys.a: ${env:UNSET_B} has no value; set the environment variable UNSET_B",
    ]


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("url: found too little", "target.url: found too little"),
        ("the fake is not to be had", "target: the fake is not to be had"),
        ("target.port: found 9", "target.port: found 9"),
    ],
)
def test_what_opening_refuses_is_told_with_its_section(monkeypatch, said: str, shown: str) -> None:
    """A plugin does not know which section it is of; what is raised later, by its user, stays as it is."""

    @contextmanager
    def refused(self: FakeSettings, context: Context) -> Iterator[None]:
        raise ConfigError(said)
        yield

    config = loaded(side(url="u"))
    with pytest.raises(ConfigError) as error, config.target.open(CONTEXT):
        raise ConfigError("url: not of the opening")
    assert error.value.problems == ["url: not of the opening"]
    monkeypatch.setattr(FakeSettings, "open", refused)
    with pytest.raises(ConfigError) as error, config.target.open(CONTEXT):
        pass
    assert error.value.problems == [shown]


def test_a_resolver_with_settings_of_its_own(monkeypatch) -> None:
    """[secrets.vault] configures ${vault:…}, and may itself refer to the environment."""
    monkeypatch.setenv("TOKEN", "vault-token")
    config = loaded(side(url="u", password="${vault:db}"))
    found = opened(config).password
    assert found is not None
    assert found.reveal() == "vault-token-for-db"
    with pytest.raises(ConfigError, match=r"target.password: \$\{vault:other\} has no value; add 'other'"):
        loaded(side(url="u", password="${vault:other}")).target.open(CONTEXT)


REFERRED = ["url", "password", "port", "ratio", "compress", "mode", "level", "hosts", "tags", "keys", "tls", "shouted"]


def referring(setting: str, text: str) -> Any:
    return {"hosts": [text], "tags": {"k": text}, "keys": {"k": text}, "tls": {"ca": text}}.get(setting, text)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    settings_=st.lists(st.sampled_from(REFERRED), min_size=1, unique=True),
    value=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).map(
        lambda text: f"q7Z {text} Z7q"
    ),
)
@example(settings_=REFERRED, value="q7Z a b Z7q")
@example(settings_=["port"], value="q7Z Z7q")
def test_a_resolved_secret_is_never_shown(monkeypatch, settings_: list[str], value: str) -> None:
    """Whatever field it lands in, and whether it fits or not: no repr, str, error or traceback shows it."""
    monkeypatch.setenv("HIDDEN", value)
    changes = {"url": "u"} | {setting: referring(setting, "${env:HIDDEN}") for setting in settings_}
    config = loaded(side(**changes))
    shown = [repr(config), str(config), repr(config.target), repr(config.target.options), repr(config.mapping)]
    try:
        found = opened(config)
    except ConfigError as error:
        shown += [str(error), repr(error), *error.problems, *traceback.format_exception(error)]
    else:
        shown += [redact(repr(found)), repr(found.password), repr(found.keys)]
    for text in shown:
        assert value not in text
        assert "q7Z" not in text


def test_a_secret_written_down_is_not_shown() -> None:
    """A literal secret, which a file should not hold but may, stays out of repr and errors as well."""
    config = loaded(side(password="written-down", keys={"a": "written-too"}))
    assert "written-" not in repr(config) + repr(config.target) + str(config.manager.listing())
    assert "written-" not in repr(opened(config))
    found = problems(side(password="written-down", port="x"))
    assert "written-" not in "\n".join(found)


def test_a_careless_plugin_gives_nothing_away(monkeypatch) -> None:
    """What a settings class says when it refuses is cleaned of resolved values, short ones too."""
    monkeypatch.setenv("SHORT", "zQ")
    monkeypatch.setenv("LONG", "long-secret-value")
    config = loaded(full(target={"type": "strict", "user": "${env:SHORT}", "password": "${env:LONG}"}))
    with pytest.raises(ConfigError) as error:
        config.target.open(CONTEXT)
    assert str(error.value) == "target: *** and *** do not fit"
    assert "long-secret-value" not in "".join(traceback.format_exception(error.value))
    monkeypatch.setenv("LOUD", "!secret")
    config = loaded(side(url="u", shouted="${env:LOUD}"))
    with pytest.raises(ConfigError, match=r"^target.shouted: refused \(ValueError\); what was said is withheld"):
        config.target.open(CONTEXT)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("port", " 5"),
        ("port", "1_000"),
        ("port", "٣"),
        ("ratio", "nan"),
        ("ratio", "1e"),
        ("compress", "1"),
        ("level", "x"),
    ],
)
def test_what_a_reference_resolves_to_is_converted_strictly(monkeypatch, setting: str, value: str) -> None:
    """Text that Python would accept as a number is still refused, and not shown."""
    monkeypatch.setenv("VALUE", value)
    with pytest.raises(ConfigError, match=rf"^target.{setting}: found what its reference resolved to, expected"):
        loaded(side(**{setting: "${env:VALUE}"})).target.open(CONTEXT)


# --- unknown keys, anywhere ------------------------------------------------------------------------------------------

TABLES: list[tuple[Any, ...]] = [
    (),
    ("time",),
    ("source",),
    ("source", "tls"),
    ("target",),
    ("stage",),
    ("store",),
    ("observers", 0),
    ("observers", 1),
    ("run",),
    ("retry",),
    ("secrets", "vault"),
]
LETTERS = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=12)


@settings(max_examples=100, deadline=None)
@given(place=st.sampled_from(TABLES), key=LETTERS, value=st.sampled_from([1, "x", None, {}, []]))
def test_any_unknown_key_anywhere_is_reported_with_its_path(place: tuple[Any, ...], key: str, value: Any) -> None:
    """Exactly one finding, at the key's own path."""
    mapping = full()
    table: Any = mapping
    for step in place:
        table = table[step]
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in (*place, key)).lstrip(".")
    known = {*FULL, "granularity", "url", "type", "token"} | {f.name for f in FakeSettings.__attrs_attrs__}
    if key in known or key in table or key.endswith("_s") or key in ("ca", "workers"):
        return
    loaded(mapping)
    table[key] = value
    found = problems(mapping)
    assert len(found) == 1
    assert found[0].startswith(f"{path}: unknown key")


# --- several pipelines -----------------------------------------------------------------------------------------------

TWO = {
    "one": {"target": {"url": "there"}, "begin": "2013-06-01T00:00:00Z"},
    "two": {"target": {"url": "elsewhere"}, "profiles": {"prod": {"run": {"workers": 7}}}},
}


def of(name: str | None, mapping: Mapping[str, Any], profile: str | None = None) -> Config:
    return load(mapping, profile=profile, plugins=[FAKES], name=name)


def test_a_pipeline_inherits_the_top_level_deeply() -> None:
    """What its table says is merged over it; its key is its name; its neighbour sees nothing of it."""
    one, two = (of(name, several(TWO)) for name in ("one", "two"))
    assert (one.pipeline, two.pipeline) == ("one", "two")
    assert one.begin_us == one.instant_us("2013-06-01T00:00:00Z")
    assert two.begin_us == two.instant_us("2013-01-01")
    with one.target.open(CONTEXT) as (_, settings):
        assert settings.url == "there"
    assert one.source.options == two.source.options


def test_profiles_apply_to_each_pipeline() -> None:
    """The one for all first, then the pipeline's own of the same name."""
    mapping = several(TWO, profiles={"prod": {"run": {"workers": 5, "batch_rows": 9}}})
    runs = [of(name, mapping, "prod").run for name in ("one", "two")]
    assert [(run.workers, run.batch_rows) for run in runs] == [(5, 9), (7, 9)]
    assert of("two", mapping, "prod").pipeline == "two@prod"


def test_an_only_pipeline_and_one_named_by_the_mapping_need_no_choice() -> None:
    """The top level's own `name` chooses, as for a task that is handed a mapping."""
    assert of(None, several({"one": TWO["one"]})).pipeline == "one"
    assert of(None, several(TWO) | {"name": "two"}).pipeline == "two"
    assert of("one", several(TWO) | {"name": "two"}).pipeline == "one"


def test_another_process_loads_the_same_of_several() -> None:
    """The mapping that it is handed chooses too."""
    config = of("two", several(TWO))
    assert loaded(pickle.loads(pickle.dumps(config.mapping))).pipeline == "two"


@pytest.mark.parametrize(
    ("name", "mapping", "found"),
    [
        (
            None,
            several(TWO),
            "pipelines: found several, 'one', 'two'; choose one by its name (-p NAME), or all of them",
        ),
        ("too", several(TWO), "pipelines: found 'too', expected one of 'one', 'two'; did you mean 'two'?"),
        ("one", FULL, "pipelines: found no [pipelines.one], the configuration is that of one pipeline"),
        ("one", several({"one": 3}), "pipelines.one: found an integer, expected a table"),
        ("one", full(pipelines=3), "pipelines: found an integer, expected tables [pipelines.NAME]"),
        ("one", several({1: {}}), "pipelines[1]: expected a name of letters, digits"),
        ("one", several({"one": {"profile": "x"}}), "pipelines.one.profile: unknown key; the top level chooses"),
        ("a b", several({"a b": {}}), 'pipelines."a b": expected a name of letters, digits'),
        ("one", several({"one": {"name": "x"}}), "pipelines.one.name: unknown key; the name of the table"),
        ("one", several({"one": {"pipelines": {}}}), "pipelines.one.pipelines: unknown key; pipelines do not nest"),
        ("one", several({"one": {"target": {"prot": 1}}}), "pipelines.one.target.prot: unknown key"),
        ("one", several({"one": {}}), "target.url: missing"),
    ],
)
def test_what_is_wrong_with_several_is_found_where_it_stands(name: Any, mapping: dict[str, Any], found: str) -> None:
    """A missing choice lists what there is; a finding names the table that it was written in."""
    with pytest.raises(ConfigError) as error:
        of(name, mapping)
    assert [problem for problem in error.value.problems if problem.startswith(found)], error.value.problems


def test_a_problem_in_a_pipelines_profile_is_found_there() -> None:
    """The innermost table that holds the value."""
    two = TWO["two"] | {"profiles": {"prod": {"run": {"workers": 0}}}}
    with pytest.raises(ConfigError, match=r"^pipelines.two.profiles.prod.run.workers: found 0, expected 1 or more$"):
        of("two", several({"two": two}), "prod")
    with pytest.raises(ConfigError, match=r"expected one of .profiles.: 'prod'; did you mean 'prod'"):
        of("two", several({"two": two}, profiles={}), "prd")
    with pytest.raises(ConfigError, match=r"profiles.prod.pipelines: unknown key"):
        of("one", several(TWO, profiles={"prod": {"pipelines": {}}}), "prod")


def test_check_fields_of_several() -> None:
    """Read from the pipeline that the mapping's name chooses."""
    mapping = several({"one": {"check_fields": ["key_q"]}}) | {"name": "one"}
    assert missing_check_fields(mapping) == ["key_q"]


# --- JSON Schema -----------------------------------------------------------------------------------------------------


def schema_errors(mapping: Mapping[str, Any]) -> list[str]:
    schema = json_schema(PluginManager([FAKES]))
    jsonschema.Draft202012Validator.check_schema(schema)
    return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(mapping)]


@pytest.mark.parametrize(
    "mapping",
    [
        FULL,
        OWNERS | OWNERS_CONNECTIONS,
        OWNERS | {"source": {"url": "u"}, "target": {"table": "T"}} | OWNERS_CONNECTIONS,
        side(port="${env:P}", hosts=["${env:H}"], tls={"verify": "${env:V}"}, mode="${env:M}", level="low"),
        full(time={"type": "elapsed", "granularity": "5h", "anchor": "2013-01-01T00:00:00Z"}),
        full(source={"type": "elasticsearch"}, elasticsearch_host="h", source_index="i"),
        several({"one": {"target": {"url": "there"}}}),
    ],
)
def test_the_schema_accepts_what_load_accepts(mapping: dict[str, Any]) -> None:
    """The sample configurations of these tests are valid by both."""
    loaded(mapping)
    assert schema_errors(mapping) == []


@pytest.mark.parametrize(
    "mapping",
    [
        side(port="1"),
        side(prot=1),
        side(mode="slow"),
        side(tls={"verify": 3}),
        full(unknown=1),
        full(run={"workers": "2"}),
        full(observers=[{"type": "nobody"}]),
        full(target={"type": "fake"}),
        several({"one": 3}),
        several({"one": {"target": {"url": "there"}}}, unknown=1),
    ],
)
def test_the_schema_refuses_what_load_refuses(mapping: dict[str, Any]) -> None:
    """Types, unknown keys, unknown providers and missing settings are wrong by both."""
    assert problems(mapping)
    assert schema_errors(mapping)


def test_the_schema_describes_sections_and_fields() -> None:
    """Docstrings and `help` reach the editor, by provider."""
    whole = json_schema(PluginManager([FAKES]))
    assert whole["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    schema = whole["else"]
    fake = next(
        option
        for option in schema["properties"]["target"]["oneOf"]
        if option.get("properties", {}).get("type") == {"const": "fake"}
    )
    assert fake["description"] == "A fake side.\n\nTakes a value of every type."
    assert fake["properties"]["url"]["description"] == "where it is"
    assert fake["required"] == ["type", "url"]
    assert fake["properties"]["port"]["default"] == 1
    assert schema["properties"]["run"]["properties"]["workers"]["description"]
    assert {"snowflake_password", "elasticsearch_host"} <= schema["properties"].keys()
