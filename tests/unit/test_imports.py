"""The shape of the tree: imports run one way, and importing the core stays light."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_imports_run_one_way() -> None:
    """Faces import the engine, the engine imports contracts, contracts import pure state; plugins import no engine."""
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("module", ["cattrs", "stamina", "importlib_metadata", "sqlalchemy", "pyarrow", "asyncio"])
def test_importing_the_core_leaves_the_rest_for_first_use(module: str) -> None:
    """What only some programs need is loaded when they need it."""
    code = f"import pipeline_core, sys; sys.exit({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
