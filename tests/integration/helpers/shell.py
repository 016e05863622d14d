"""The command line, as a test runs it: on a world's configuration, with its exit code and both streams."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen

from pipeline_core.cli.app import run

HELPERS = Path(__file__).parent
COMMAND = (sys.executable, "-W", "error", "-c", "from pipeline_core.cli import main; main()")
PATH = os.pathsep.join([str(HELPERS), *filter(None, [os.environ.get("PYTHONPATH")])])
ENVIRONMENT = {**os.environ, "PYTHONPATH": PATH, "COLUMNS": "80", "TERM": "xterm"}
END = "2013-03-10T12:00"


@frozen
class Ended:
    """A command that ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its stdout, which must be one JSON document."""
        return json.loads(self.out)


class Shell:
    """Runs `pipeline-core` in the world's folder, on a `pipeline.toml` written from the world's mapping."""

    def __init__(self, world: Any, capsys: pytest.CaptureFixture[str]) -> None:
        self.world = world
        self.folder: Path = world.folder
        self._capsys = capsys
        self.configure()

    def configure(self, file: str = "pipeline.toml", **changes: Any) -> None:
        """Writes the configuration anew."""
        config = {key: value for key, value in self.world.config(end=END, **changes).items() if value is not None}
        (self.folder / file).write_text(toml(config), encoding="utf-8")

    def __call__(self, *arguments: str) -> Ended:
        """Runs one command line in this process, which saves the imports."""
        code = run(arguments)
        return Ended(code, *self._capsys.readouterr())

    def spawn(self, *arguments: str) -> Ended:
        """Runs one command line in a process of its own."""
        done = subprocess.run(
            [*COMMAND, *arguments], cwd=self.folder, env=ENVIRONMENT, capture_output=True, text=True, check=False
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    def statuses(self) -> list[str]:
        """The status of every live record, in order of time, read past the library."""
        found = self.world.query("records", "select status from pipeline_core_records where live = 1 order by start_us")
        return [status for (status,) in found]


def toml(config: Mapping[str, Any]) -> str:
    """A mapping as TOML, every table in one line."""
    return "".join(f"{key} = {_toml_value(value)}\n" for key, value in config.items())


def _toml_value(value: object) -> str:
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{json.dumps(key)} = {_toml_value(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml_value, value))}]"
    return json.dumps(value)  # strings, numbers and truth look the same in JSON
