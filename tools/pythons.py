"""Runs the unit and property tests on every Python from 3.11 that this machine has, each in its own environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
VERSIONS = ["3.11", "3.12", "3.13", "3.14"]
TESTS = ["tests/unit", "tests/properties", "tests/plugins"]


def main() -> int:
    """0 if the tests passed on all of them."""
    failed = []
    for version in VERSIONS:
        python = find(version)
        if python is None:
            print(f"== Python {version}: not on this machine", flush=True)
            continue
        print(f"== Python {version}: {python}", flush=True)
        environment = prepare(version, python)
        command = [environment, "-m", "pytest", "-n", "2", "-q", *TESTS]
        if subprocess.run(command, cwd=ROOT, check=False).returncode:
            failed.append(version)
    print(f"failed on: {', '.join(failed)}" if failed else "passed on every Python found")
    return bool(failed)


def find(version: str) -> Path | None:
    """An interpreter of that version: on the path, or among pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [shutil.which(f"python{version}"), *sorted(pyenv.glob(f"{version}.*/bin/python"))]
    return next((Path(c) for c in candidates if c and answers(c, version)), None)


def answers(python: str | Path, version: str) -> bool:
    """A version manager's placeholder stands on the path and fails when called."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return done.returncode == 0 and done.stdout.strip() == version


def prepare(version: str, python: Path) -> Path:
    """The environment's interpreter, with what the tests need."""
    environment = ROOT / f".venv-{version}"
    inside = environment / "bin/python"
    ready = environment / ".ready"
    pins = ROOT / "requirements/dev.txt"
    if ready.exists() and ready.stat().st_mtime > pins.stat().st_mtime:
        return inside
    packages = [ROOT, *sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))]
    pip = [inside, "-m", "pip", "install", "--quiet"]
    subprocess.run([python, "-m", "venv", "--clear", environment], check=True)
    subprocess.run([*pip, "--require-hashes", "-r", pins], check=True)
    editable = [word for package in packages for word in ("-e", str(package))]
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", *editable], check=True)
    ready.touch()
    return inside


if __name__ == "__main__":
    sys.exit(main())
