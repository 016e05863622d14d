"""Installed plugins, good and broken: fake distributions on the path of a fresh interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

GOOD = """
from attrs import frozen
from pipeline_core import Can, Provider, hookimpl

@frozen
class Settings:
    '''A fake side.'''
    url: str

    def open(self, context):
        raise NotImplementedError

@hookimpl
def {hook}():
    yield Provider("{name}", Settings)
    {after}
"""


class Site:
    """A folder of fake distributions."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(self, name: str, source: str, version: str = "1.0", values: tuple[str, ...] = ()) -> None:
        module = name.replace("-", "_")
        (self.folder / f"{module}.py").write_text(source)
        info = self.folder / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        lines = "".join(f"e{index} = {value}\n" for index, value in enumerate(values or (module,)))
        (info / "entry_points.txt").write_text(f"[pipeline_core]\n{lines}")

    def run(self, script: str) -> object:
        """What a fresh interpreter that sees the folder prints, as JSON."""
        path = os.pathsep.join([str(self.folder), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path}
        start = (
            "import json, sys\nfrom pipeline_core.errors import *\nfrom pipeline_core.plugins import PluginManager\n"
        )
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", start + script],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def stage(name: str, hook: str = "pipeline_stages", after: str = "") -> str:
    return GOOD.format(name=name, hook=hook, after=after)


BROKEN = {
    "fails-to-import": ("raise RuntimeError('at import')", "cannot be imported: RuntimeError: at import"),
    "exits": ("import sys; sys.exit('bye')", "cannot be imported: SystemExit: bye"),
    "misspelt": (stage("misspelt", "pipeline_stagse"), "unknown hook 'pipeline_stagse'"),
    "half-way": (stage("half-way", after="raise RuntimeError('half')"), "pipeline_stages: RuntimeError: half"),
    "no-provider": (stage("no-provider", after="yield 'objects'"), "pipeline_stages: found str, expected a"),
}


def test_a_good_one_is_found_and_listed(site: Site) -> None:
    """An installed plugin is there by its entry point alone, with its distribution and version."""
    site.install("fake-good", stage("fake"), "2.3")
    rows = site.run(
        "print(json.dumps([[r.name, r.summary, r.distribution, r.version] for r in PluginManager().listing()]))"
    )
    assert ["fake", "A fake side.", "fake-good", "2.3"] in rows


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_one_is_set_aside_and_takes_nothing_with_it(site: Site, name: str) -> None:
    """It is in `broken` with distribution, version and module, leaves nothing registered, and the good one works."""
    source, said = BROKEN[name]
    site.install(name, source, "0.9")
    site.install("fake-good", stage("fake"))
    found = site.run(
        "m = PluginManager()\n"
        "try: m.stage('unheard-of')\n"
        "except ConfigError as e: unknown = str(e)\n"
        "broken = [str(e) for e in m.broken if 'fake-' in str(e) or '0.9' in str(e)]\n"
        "print(json.dumps([m.stage('fake').name, broken, [r.name for r in m.listing()], unknown]))"
    )
    good, broken, names, unknown = found
    assert good == "fake"
    assert len(broken) == 1
    assert f"plugin {name} 0.9 ({name.replace('-', '_')})" in broken[0]
    assert said in broken[0]
    assert name not in names
    assert broken[0] in unknown


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_one_that_was_asked_for_raises(site: Site, name: str) -> None:
    """The same module named in `plugins=[...]` raises at once."""
    source, said = BROKEN[name]
    (site.folder / "asked_for.py").write_text(source)
    message = site.run("try: PluginManager(['asked_for'])\nexcept PluginError as e: print(json.dumps(str(e)))")
    assert "plugin asked_for (not installed)" in message
    assert said in message


def test_a_duplicate_name_lists_both_versions_when_selected(site: Site) -> None:
    """Two distributions with one name harm nobody until it is selected."""
    site.install("fake-one", stage("fake"), "1.1")
    site.install("fake-two", stage("fake"), "2.2")
    message = site.run("try: PluginManager().stage('fake')\nexcept PluginError as e: print(json.dumps(str(e)))")
    assert "fake-one 1.1 (fake_one)" in message
    assert "fake-two 2.2 (fake_two)" in message


def test_one_value_under_two_entry_points_counts_once(site: Site) -> None:
    """Entry points are deduped by distribution and value; naming the module as well changes nothing."""
    site.install("fake-good", stage("fake"), values=("fake_good", "fake_good"))
    assert site.run("print(json.dumps(PluginManager(['fake_good']).stage('fake').name))") == "fake"


def test_a_broken_value_under_two_entry_points_is_told_once(site: Site) -> None:
    """The same fault is not listed twice."""
    site.install("fake-bad", "raise RuntimeError('bad')", values=("fake_bad", "fake_bad"))
    assert site.run("print(json.dumps(len([e for e in PluginManager().broken if 'fake-bad' in str(e)])))") == 1
