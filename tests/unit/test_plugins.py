"""The plugin manager: what it takes, what it refuses, what it says; plugins here are modules handed over."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest
from attrs import define, field, frozen

from pipeline_core import Can, ConfigError, PluginError, Provider, TimePolicy, WallClockPolicy, hookimpl
from pipeline_core.plugins import Kind, PluginManager


@frozen
class Settings:
    """Does nothing.

    At length.
    """

    url: str = "nowhere"

    def open(self, context, /):
        raise NotImplementedError


@define
class Unopenable:
    """Lacks open."""


class NotAttrs:
    """Is no attrs class."""

    def open(self, context, /):
        raise NotImplementedError


@frozen
class Unresolvable:
    """Names a type that is not there."""

    url: Nowhere = field(default=None)  # noqa: F821

    def open(self, context, /):
        raise NotImplementedError


@frozen
class Abstract(TimePolicy):
    """Says no window_at."""


def plugin(name: str = "fake_plugin", **hooks) -> ModuleType:
    """A module with a hook for each keyword: what it yields, or a function."""
    module = ModuleType(name)
    for hook, result in hooks.items():

        def function(result=result):
            if callable(result):
                yield from result()
            else:
                yield from result

        def call(function=function):
            return function()

        call.__name__ = hook
        setattr(module, hook, hookimpl(call))
    return module


def test_the_core_provides_its_own_through_the_same_hooks() -> None:
    """Without any plugin there are the two policies and the environment."""
    manager = PluginManager()
    assert manager.time_policy("wall").settings is WallClockPolicy
    assert manager.time_policy("elapsed").name == "elapsed"
    assert manager.secret_resolver("env").name == "env"
    core = [row for row in manager.listing() if row.module == "pipeline_core.builtin"]
    assert {(row.kind, row.name) for row in core} == {
        (Kind.TIME_POLICY, "wall"),
        (Kind.TIME_POLICY, "elapsed"),
        (Kind.SECRET_RESOLVER, "env"),
    }
    assert all(row.summary and row.distribution == "windowed-pipeline" and row.version for row in core)


def test_each_hook_has_its_typed_method() -> None:
    """What a hook yields is found by its name under its kind, and under no other."""
    module = plugin(
        pipeline_record_stores=[Provider("a", Settings)],
        pipeline_connectors=[Provider("b", Settings, can={Can.EXTRACT})],
        pipeline_stages=[Provider("c", Settings)],
        pipeline_observers=[Provider("d", Settings)],
        pipeline_secret_resolvers=[Provider("e", Settings)],
    )
    manager = PluginManager([module])
    found = (
        manager.record_store("a"),
        manager.connector("b"),
        manager.stage("c"),
        manager.observer("d"),
        manager.secret_resolver("e"),
    )
    assert [provider.name for provider in found] == list("abcde")
    with pytest.raises(ConfigError):
        manager.stage("a")
    row = next(row for row in manager.listing() if row.name == "b")
    assert (row.summary, row.can, row.module, row.distribution) == (
        "Does nothing.",
        (Can.EXTRACT,),
        "fake_plugin",
        "",
    )


def test_a_manager_is_an_instance() -> None:
    """What one manager was given, another does not know."""
    PluginManager([plugin(pipeline_stages=[Provider("mine", Settings)])]).stage("mine")
    with pytest.raises(ConfigError):
        PluginManager().stage("mine")


def test_a_module_counts_once_however_it_comes() -> None:
    """The same module named and handed over is no duplicate."""
    module = plugin(pipeline_stages=[Provider("mine", Settings)])
    assert PluginManager([module, module]).stage("mine").name == "mine"


def test_an_unknown_name_is_told_with_the_nearest_and_what_there_is() -> None:
    """The message lists what is installed and guesses what was meant."""
    manager = PluginManager([plugin(pipeline_connectors=[Provider("teapot", Settings), Provider("kettle", Settings)])])
    with pytest.raises(
        ConfigError, match=r"found 'teapto', expected an installed connector: .*'kettle'.*'teapot'"
    ) as e:
        manager.connector("teapto")
    assert "did you mean 'teapot'?" in str(e.value)


def test_a_known_name_tells_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that one of our packages brings says which, where that one is not installed."""
    monkeypatch.setattr("importlib_metadata.entry_points", lambda **_: [])
    with pytest.raises(ConfigError, match="'duckdb' comes with the package windowed-pipeline-duckdb"):
        PluginManager().connector("duckdb")


def test_a_duplicate_name_lists_every_provider_when_it_is_selected() -> None:
    """Two plugins may share a name until someone asks for it; the listing shows the conflict before."""
    manager = PluginManager(
        [
            plugin("one", pipeline_stages=[Provider("twice", Settings), Provider("fine", Settings)]),
            plugin("two", pipeline_stages=[Provider("twice", Settings)]),
        ]
    )
    assert manager.stage("fine").name == "fine"
    with pytest.raises(PluginError, match=r"stage 'twice': provided by one \(not installed\) and two"):
        manager.stage("twice")
    assert [bool(row.problem) for row in manager.listing() if row.kind is Kind.STAGE and row.name == "twice"] == [
        True,
        True,
    ]
    assert "twice" not in [provider.name for provider in manager.providers(Kind.STAGE)]


def half_way():
    yield Provider("first", Settings)
    raise ZeroDivisionError("half-way")


@pytest.mark.parametrize(
    ("hooks", "said"),
    [
        ({"pipeline_stagse": []}, "unknown hook 'pipeline_stagse'"),
        ({"pipeline_stages": half_way}, "pipeline_stages: ZeroDivisionError: half-way"),
        ({"pipeline_stages": ["objects"]}, "pipeline_stages: found str, expected a pipeline_core.Provider"),
        ({"pipeline_stages": [Provider("x", NotAttrs)]}, "'x': settings: found NotAttrs, expected an attrs class"),
        ({"pipeline_stages": [Provider("x", lambda: None)]}, "expected an attrs class"),
        ({"pipeline_stages": [Provider("x", Unopenable)]}, "settings: found Unopenable, which lacks open"),
        ({"pipeline_stages": [Provider("x", Unresolvable)]}, "annotations cannot be resolved"),
        ({"pipeline_stages": [Provider("x", Settings, aliases={"a": "uri"})]}, "aliases: found uri"),
        ({"pipeline_stages": [Provider("x", Settings, can={"extract "})]}, "can: found extract "),
        ({"pipeline_stages": [Provider("no name", Settings)]}, "'no name': found a name that is none"),
        ({"pipeline_stages": [Provider("x", Settings), Provider("x", Settings)]}, "'x': found twice"),
        ({"pipeline_time_policies": [Provider("x", Settings)]}, "found Settings, expected a subclass of TimePolicy"),
        ({"pipeline_time_policies": [Provider("x", Abstract)]}, "found Abstract, expected a subclass of TimePolicy"),
    ],
)
def test_a_broken_plugin_that_was_asked_for_raises(hooks, said) -> None:
    """Every way of being broken is told with the module, the hook and what was expected."""
    with pytest.raises(PluginError) as error:
        PluginManager([plugin("my_broken", **hooks)])
    assert said in str(error.value)
    assert "plugin my_broken (not installed)" in str(error.value)


def test_a_hook_that_returns_nothing_is_told() -> None:
    """A hook that forgot to yield is no plugin without providers."""
    module = ModuleType("forgetful")

    @hookimpl
    def pipeline_stages():
        Provider("lost", Settings)

    module.pipeline_stages = pipeline_stages
    with pytest.raises(PluginError, match="pipeline_stages: TypeError"):
        PluginManager([module])


def test_a_module_by_name_is_imported(monkeypatch, tmp_path) -> None:
    """`plugins = ["my.module"]` needs no installation."""
    (tmp_path / "named_plugin.py").write_text(
        "from attrs import frozen\n"
        "from pipeline_core import Provider, hookimpl\n"
        "@frozen\n"
        "class S:\n"
        "    def open(self, context): ...\n"
        "@hookimpl\n"
        "def pipeline_stages():\n"
        "    yield Provider('named', S)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "named_plugin", raising=False)
    try:
        assert PluginManager(["named_plugin"]).stage("named").name == "named"
    finally:
        sys.modules.pop("named_plugin", None)


def test_a_name_that_cannot_be_imported_is_told() -> None:
    """A misspelt module says which, and where Python looks."""
    with pytest.raises(PluginError, match=r"plugin no_such_module \(not installed\): cannot be imported.*PYTHONPATH"):
        PluginManager(["no_such_module"])


def test_importing_the_library_loads_no_plugin_machinery() -> None:
    """`import pipeline_core` and its configuration stay light; the heavy parts come with `load`."""
    script = (
        "import sys, pipeline_core, pipeline_core.config\n"
        "late = {'cattrs', 'importlib_metadata', 'stamina', 'tomllib', 'pipeline_core.plugins'} & set(sys.modules)\n"
        "assert not late, late\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
