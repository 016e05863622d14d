"""Owners: the death of a worker on this host is seen at once."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pipeline_core.engine import owner

CODE = "from pipeline_core.engine import owner; print(owner.this_process(), flush=True); input()"
pytestmark = pytest.mark.skipif(owner.this_process() is None, reason="this system has no /proc to tell processes apart")


def test_a_living_process_is_not_dead_and_a_dead_one_is() -> None:
    """By process id and start time."""
    with subprocess.Popen([sys.executable, "-c", CODE], stdin=-1, stdout=-1, text=True) as child:
        assert child.stdout is not None
        name = child.stdout.readline().strip()
        assert owner.dead([name, owner.this_process(), None]) == frozenset()
        child.kill()
    assert owner.dead([name, owner.this_process(), None]) == {name}


def test_another_host_is_never_declared_dead() -> None:
    """Only its lease can say so."""
    assert owner.dead(["elsewhere/boot/1:1:1"]) == frozenset()


def test_a_reused_process_id_is_another_process() -> None:
    """The start time tells them apart."""
    me = owner.this_process()
    assert me is not None
    assert owner.dead([me.rsplit(":", 1)[0] + ":0"]) != frozenset()
