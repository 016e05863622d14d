"""Each how-to page is run as it stands: its files are written, its commands typed, what it shows is what appears.

In an empty folder, from top to bottom: a `toml` or `python` block that begins with `# NAME` becomes that file, a `sql`
block that begins with `-- FILE` is run on that SQLite file, any other `python` block is a program, and in a `console`
block what follows `$ ` is a command, the lines under it what it prints (`...` stands for anything). What a page needs
beforehand is folded away in such blocks; what only the test needs stands inside an HTML comment. Stage and store are
named by the environment.
"""

from __future__ import annotations

import os
import re
import shlex
import sqlite3
import subprocess
import sys
from contextlib import closing, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from pipeline_core.cli.app import run

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs/how-to").glob("*.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SUFFIXES = {"toml": ".toml", "python": ".py"}
CODE = '; echo "exit code $?"'


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_does_what_it_says(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block, in order."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("PIPELINE_CORE_STAGE_URL", (tmp_path / "stage").as_uri())
    monkeypatch.setenv("PIPELINE_CORE_STORE_URL", f"sqlite:///{tmp_path / 'records.db'}")
    commands = 0
    for language, text in BLOCK.findall(page.read_text()):
        name = text.partition("\n")[0].lstrip("#- ")
        if Path(name).suffix == SUFFIXES.get(language) and text.startswith("# "):
            Path(name).write_text(text)
        elif language == "sql" and text.startswith("-- "):
            with closing(sqlite3.connect(name)) as connection:
                connection.executescript(text)
        elif language == "python":
            subprocess.run([sys.executable, "-W", "error", "-c", text], check=True, capture_output=True)
        elif language == "console":
            for command, expected in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE):
                commands += 1
                shown = typed(command)
                assert re.fullmatch(pattern(expected), shown), f"{command}\n\nshows:\n{shown}\n\nthe page:\n{expected}"
    assert commands, "a how-to page has commands"


def typed(command: str) -> str:
    """What a command prints. Ours are run in this process, which saves their imports."""
    if not command.startswith("pipeline-core "):
        # `python` is the one that runs this test, as in an environment that was activated.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        done = subprocess.run(
            ["bash", "-c", command], check=False, capture_output=True, text=True, env={**os.environ, "PATH": path}
        )
        assert done.returncode == 0, f"{command}\n\nfails:\n{done.stdout}{done.stderr}"
        return done.stdout
    printed = StringIO()
    with redirect_stdout(printed), redirect_stderr(printed):
        code = run(shlex.split(command.removesuffix(CODE))[1:])
    return printed.getvalue() + (f"exit code {code}\n" if command.endswith(CODE) else "")


def pattern(expected: str) -> str:
    """What is printed may be, as a regular expression; the lines of a page are not the terminal's."""
    parts = [re.escape(" ".join(part.split())).replace(r"\ ", r"\s+") for part in expected.split("...")]
    return r"(?s)" + r".*?".join(f"\\s*{part}\\s*" for part in parts)
