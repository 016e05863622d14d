"""The snippets of docs/reference/testing.md adopt the suites as they say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/reference/testing.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: re.findall(r"class (\w+)", snippet)[-1])
def test_a_snippet_runs_its_suite(snippet: str, tmp_path: Path) -> None:
    """Saved as a test module of its own, each passes, and skips nothing but what has no processes."""
    (tmp_path / "test_snippet.py").write_text(snippet)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "test_snippet.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    skipped = ", 1 skipped" if "MemoryRecordStore" in snippet else ""
    assert re.search(rf"\d+ passed{skipped} in", done.stdout), done.stdout


def test_every_public_name_is_described() -> None:
    """What the package exports has a place on the page."""
    from pipeline_core import testing

    assert [name for name in testing.__all__ if name not in PAGE] == []
