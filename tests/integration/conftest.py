"""Worlds to move data in, each fresh. What they are is in `helpers/worlds`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from shell import HELPERS, Shell
from worlds import WORLDS, SqliteWorld, World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[SqliteWorld]:
    """A fresh world on SQLite."""
    with closing(SqliteWorld(tmp_path)) as fresh:
        yield fresh


LONG = os.environ.get("PIPELINE_LONG") == "1"
EVERYWHERE = [name for name, kind in WORLDS.items() if kind.everywhere or LONG]


@pytest.fixture(params=EVERYWHERE)
def any_world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """A fresh world on each kind of database in turn, or on those that the test names by `parametrize(indirect=)`."""
    kind = WORLDS[request.param]
    server = () if kind.server is None else (request.getfixturevalue(kind.server),)
    with closing(kind(tmp_path, *server)) as fresh:
        yield fresh


@pytest.fixture
def shell(world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    """A shell in a fresh world; the modules in `helpers` can be named as plugins."""
    monkeypatch.chdir(world.folder)
    monkeypatch.syspath_prepend(str(HELPERS))
    monkeypatch.setenv("COLUMNS", "80")
    return Shell(world, capsys)


@pytest.fixture
def any_shell(any_world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    """A shell in a fresh world on each kind of database in turn."""
    monkeypatch.chdir(any_world.folder)
    monkeypatch.setenv("COLUMNS", "80")
    return Shell(any_world, capsys)
