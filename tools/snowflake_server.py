"""The stand-in for Snowflake in tests and benchmarks: a process of its own on a private port of this machine.

fakesnow does not import beside 5.x of the connector, so each lives in an environment of its own, made once from its
pins in the cache outside the repository. docs/reference/snowflake.md lists what the stand-in cannot show.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SERVER = ROOT / "requirements/snowflake.txt"
CONNECTOR_5 = ROOT / "requirements/snowflake-5.txt"
STANDIN = Path(__file__).with_name("snowflake_standin.py")
PATIENCE_S = 60


class Unavailable(Exception):  # noqa: N818 - it says what is missing, and is no fault of the code
    """This machine cannot have the stand-in; the message says what it lacks."""


def environment(pins: Path = SERVER) -> Path:
    """A Python with what `pins` names, installed once for each state of them. Raises Unavailable where that fails."""
    digest = hashlib.sha256(pins.read_bytes() + sys.version.encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "windowed-pipeline" / "servers"
    folder = cache / f"snowflake-{digest}"
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        # A name of its own, so that two at once do not write into each other; no file in it says where it lies.
        part = cache / f"part-{os.getpid()}"
        venv.create(part, with_pip=True, clear=True)
        command = [part / "bin/python", "-m", "pip", "install", "--quiet", "--require-hashes", "-r", pins]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            shutil.rmtree(part)
            raise Unavailable(f"{pins.name} cannot be installed:\n{done.stdout}{done.stderr}")
        try:
            part.rename(folder)
        except OSError:  # another process was first
            shutil.rmtree(part)
    return folder / "bin/python"


class Server:
    """A stand-in, started. `owner` and `other` may sign in, with the passwords of `snowflake_standin.py`."""

    user = "owner"
    password = "geheim-owner"

    def __init__(self, folder: Path) -> None:
        self._python = environment()
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.start()

    def start(self) -> None:
        """Starts it with the tables it had, and waits until it answers."""
        with (self._folder / "log").open("ab") as log:
            # -E: what another Python is to find first, as in the tests of 5.x, is not for this one.
            command = [self._python, "-E", STANDIN, str(self.port), self._folder]
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, "TMPDIR": str(self._folder)}
            )
        deadline = time.monotonic() + PATIENCE_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the stand-in did not start:\n{(self._folder / 'log').read_text()}")
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            self.sessions()
        except OSError:
            return False
        return True

    def stop(self, sign: signal.Signals = signal.SIGTERM) -> None:
        """Stops it. SIGKILL drops everything at once but what is committed."""
        if self._process is not None:
            self._process.send_signal(sign)
            self._process.wait(PATIENCE_S)
            self._process = None

    def sent(self, since: int = 0) -> list[dict[str, Any]]:
        """The statements that it was sent, from the given place of the list on, each with session and transaction."""
        return self._asked(f"statements?since={since}")

    def sessions(self) -> list[str]:
        """The sessions that are open, with their temporary tables and the files in stages."""
        return self._asked("sessions")

    def hold(self, on: bool) -> None:
        """Lets no statement begin to go on without its session, or lets those go that wait."""
        self._asked("hold?on=1" if on else "hold")

    def _asked(self, what: str) -> list[Any]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/{what}", timeout=PATIENCE_S) as answer:
            return list(json.load(answer) or [])

    def options(self, database: str = "DB", schema: str = "PUBLIC") -> dict[str, Any]:
        """How to connect, in the connector's own words; database and schema are made with the first connection."""
        place = {"account": "fakesnow", "host": "127.0.0.1", "port": self.port, "protocol": "http"}
        return {**place, "user": self.user, "password": self.password, "database": database, "schema": schema}
