"""The same tests through the connector's older line: that of the stand-in's own environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent
SAME = ["test_connector.py", "test_connector_conformance.py::TestSnowflake"]


@pytest.mark.timeout(900)
def test_connector_4_keeps_the_promises(servers: ModuleType, server: Any) -> None:
    """Suite and statements, in a process of their own that finds 4.x before the installed 5.x."""
    del server  # where there is none, the test is skipped with its reason
    where = [servers.environment(), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    folder = subprocess.run(where, capture_output=True, text=True, check=True).stdout.strip()
    place = {**os.environ, "PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"}
    which = [sys.executable, "-c", "import snowflake.connector; print(snowflake.connector.__version__)"]
    found = subprocess.run(which, capture_output=True, text=True, check=True, env=place).stdout
    assert found.startswith("4."), found
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:xdist",
        "--tb=short",
        *(str(HERE / each) for each in SAME),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=place)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout
