"""The built wheels, installed into a clean environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = {f"windowed-pipeline{plugin}" for plugin in ("", "-sql", "-objects", "-elasticsearch", "-duckdb", "-snowflake")}
#: What the core states as its dependencies, and what only plugins, the command line or the tests need.
STATED = {"attrs", "cattrs", "importlib-metadata", "pendulum", "pluggy", "stamina"}
OTHERS = {"alembic", "duckdb", "hypothesis", "obstore", "pyarrow", "pytest", "rich", "sqlalchemy", "typer"}


def run(*command: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    """A command in an environment that knows nothing of this checkout."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=clean, **options)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every distribution, built."""
    folder = tmp_path_factory.mktemp("wheels")
    for source in [ROOT, *sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))]:
        done = run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory, wheels: Path) -> Path:
    """A new environment's bin folder, with the core's wheel and what it states as dependencies."""
    folder = tmp_path_factory.mktemp("clean")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    install(folder / "bin", wheels, "windowed-pipeline")
    return folder / "bin"


def install(binaries: Path, wheels: Path, *packages: str) -> None:
    """Installs by name, our own from the built wheels."""
    done = run(binaries / "python", "-m", "pip", "install", "--quiet", "--find-links", wheels, *packages)
    assert done.returncode == 0, done.stderr


def installed(binaries: Path) -> set[str]:
    """The distributions there."""
    done = run(binaries / "python", "-m", "pip", "list", "--format", "json")
    names = {row["name"].lower().replace("_", "-") for row in json.loads(done.stdout)}
    return names - {"pip", "setuptools", "wheel"}


@pytest.mark.xdist_group("wheels")
def test_the_core_comes_alone(clean: Path, tmp_path: Path) -> None:
    """Nothing but the stated dependencies; it imports, and ships its types."""
    assert installed(clean) >= STATED
    assert not installed(clean) & (OTHERS | OURS - {"windowed-pipeline"})
    code = "import pipeline_core, pathlib; print(pathlib.Path(pipeline_core.__file__).with_name('py.typed').exists())"
    done = run(clean / "python", "-W", "error", "-c", code, cwd=tmp_path)
    assert (done.stdout.strip(), done.stderr) == ("True", "")


@pytest.mark.xdist_group("wheels")
def test_the_command_line_without_its_extra_says_what_to_install(clean: Path, tmp_path: Path) -> None:
    """One line, exit code 2."""
    done = run(clean / "pipeline-core", "plugins", cwd=tmp_path)
    assert done.returncode == 2
    assert "windowed-pipeline[cli]" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.xdist_group("wheels")
def test_the_plugins_are_found_once_installed(clean: Path, wheels: Path, tmp_path: Path) -> None:
    """The entry points of the wheels work, migrations and all: a pipeline runs from the wheels alone."""
    install(clean, wheels, "windowed-pipeline[cli,sql,objects,elasticsearch,duckdb,snowflake]")
    listing = run(clean / "pipeline-core", "--json", "plugins", cwd=tmp_path)
    assert listing.returncode == 0, listing.stderr
    assert OURS - {"windowed-pipeline"} <= set(listing.stdout.replace('"', " ").split())
    assert installed(clean) >= OURS
    assert run(clean / "pipeline-core", "init", cwd=tmp_path).returncode == 0
    status = run(clean / "pipeline-core", "--json", "status", cwd=tmp_path)
    assert status.returncode == 0, status.stderr
