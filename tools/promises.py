"""Breaks each promise of docs/explanation/promises.md in a copy of the code, and looks whether its test fails.

`python tools/promises.py` takes some minutes; `python tools/promises.py 5` breaks one promise only. A break that the
tests do not notice makes it exit with 1.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Break(NamedTuple):
    """What is broken: `text` in `file` becomes `broken`, and one of `tests` has to fail."""

    promise: int
    what: str
    file: str
    text: str
    broken: str
    tests: list[str]


def main() -> int:
    """0 if every break was noticed."""
    wanted = {int(word) for word in sys.argv[1:]}
    table = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())
    breaks = [Break(**row) for row in table["break"]]
    for row in breaks:
        if (found := (ROOT / row.file).read_text().count(row.text)) != 1:
            raise SystemExit(f"{row.file}: found {found} times, expected once: {row.text!r}")
    unnoticed = [found for found in breaks if (not wanted or found.promise in wanted) and not noticed(found)]
    for found in unnoticed:
        print(f"NOT NOTICED: {found.promise}. {found.what} ({found.file})")
    return bool(unnoticed)


def noticed(broken: Break) -> bool:
    """Whether a test fails in a copy of the tree with that one break."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        skip = shutil.ignore_patterns(".git", ".venv*", "__pycache__", ".mypy_cache", ".hypothesis", "demo")
        shutil.copytree(ROOT, copy, ignore=skip)
        place = copy / broken.file
        place.write_text(place.read_text().replace(broken.text, broken.broken))
        sources = [copy / "src", *sorted(copy.glob("plugins/*/src"))]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, sources))}
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "2", *broken.tests]
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    failed = next((line for line in done.stdout.splitlines() if line.startswith("FAILED")), None)
    print(f"{broken.promise:2}. {broken.what}: {failed or 'NOT NOTICED'}", flush=True)
    return failed is not None


if __name__ == "__main__":
    sys.exit(main())
