"""A whole run in a process of its own, forked from one that has everything imported: so a start costs next to nothing.

Each is a process in its own right, with its own connections: only the code is shared.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline_core.pipeline import Pipeline

_PRELOADED = [
    "pytest",  # what a child of this process imports in any case
    "pipeline_core.pipeline",
    "pipeline_sql.connector",
    "pipeline_sql.store",
    "pipeline_sql.sqlite_types",
    "pipeline_sql.postgresql_types",
    "pipeline_sql.mariadb_types",
    "pipeline_objects.stage",
    "pipeline_duckdb.connector",
    "psycopg",
    "pymysql",
    "cattrs",
    "stamina",
]
_PATIENCE_S = 120
_WHOLE_JOB_S = 3600
_forking = multiprocessing.get_context("forkserver")
_forking.set_forkserver_preload(_PRELOADED)


class Child:
    """The process: `pid`, and what may be done to it."""

    def __init__(self, config: dict[str, Any], now: str | None) -> None:
        handle, name = tempfile.mkstemp(prefix="pipeline-child-")
        os.close(handle)
        self._log = Path(name)
        self._process = _forking.Process(target=_run, args=(config, now, name))
        self._process.start()

    @property
    def pid(self) -> int:
        """Its number."""
        assert self._process.pid is not None
        return self._process.pid

    def send(self, sign: signal.Signals) -> None:
        """Sends it a signal."""
        os.kill(self.pid, sign)

    def wait_until_stopped(self) -> None:
        """Until it has stopped itself."""
        deadline = time.monotonic() + _PATIENCE_S
        while Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            assert time.monotonic() < deadline, "the process never stopped"
            time.sleep(0.02)

    def end(self, patience_s: float = _PATIENCE_S) -> tuple[int, str]:
        """Waits for it: its exit code, negative for a signal, and all that it printed."""
        self._process.join(patience_s)
        code = self._process.exitcode
        said = self.abandon()
        assert code is not None, f"the process did not end:\n{said}"
        return code, said

    def abandon(self) -> str:
        """Kills it if it still runs; what it printed, the first time."""
        if not self._log.exists():
            return ""
        self._process.kill()
        self._process.join()
        self._process.close()
        said = self._log.read_text()
        self._log.unlink()
        return said


def harry(start: Callable[[], Child], *, workers: int, kills: int, done: Callable[[], int], windows: int) -> int:
    """Keeps so many workers busy until all windows are done, and kills some of them: how many deaths there were.

    Each kill comes at a random point of the progress, hits a random worker, and another takes its place. Asserts that
    every other worker ended well.
    """
    crew = [start() for _ in range(workers)]
    killed = 0
    for point in sorted(random.randrange(windows) for _ in range(kills)):
        while done() < point:
            time.sleep(random.uniform(0, 0.05))
        victim = crew.pop(random.randrange(workers))
        with suppress(ProcessLookupError):  # it may have ended; how, is looked at next
            victim.send(signal.SIGKILL)
        code, said = victim.end()
        assert code in (-signal.SIGKILL, 0), said
        killed += code != 0
        crew.append(start())
    for code, said in [worker.end(_WHOLE_JOB_S) for worker in crew]:
        assert code == 0, said
    return killed


def _run(config: dict[str, Any], now: str | None, log: str) -> None:
    written = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(written, 1)
    os.dup2(written, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with Pipeline.from_mapping(config) as pipeline:
        print(json.dumps(pipeline.run(now=now).as_mapping()))
