"""A MariaDB server for a benchmark: of its own, with its default settings, on a private port."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PATIENCE_S = 60


@contextmanager
def mariadb() -> Iterator[str | None]:
    """The URL of an empty database on a new server; None where the system has no MariaDB."""
    # Debian keeps servers out of the path of ordinary users.
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    install, program = (shutil.which(name, path=path) for name in ("mariadb-install-db", "mariadbd"))
    if install is None or program is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="bench-my-") as name, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        folder, user = Path(name), []
        if os.geteuid() == 0:
            shutil.chown(folder, "mysql")
            user = ["--user=mysql"]
        probe.close()
        common = ["--no-defaults", *user, f"--datadir={folder / 'data'}"]
        made = [install, *common, "--skip-test-db", "--auth-root-authentication-method=normal"]
        subprocess.run(made, check=True, capture_output=True, cwd="/")
        places = [f"--socket={folder / 'socket'}", f"--pid-file={folder / 'pid'}", f"--port={port}"]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                [program, *common, *places, "--bind-address=127.0.0.1"], stdout=log, stderr=log, cwd="/"
            )
        try:
            _make_database(folder / "socket")
            yield f"mariadb+pymysql://bench:bench@127.0.0.1:{port}/bench"
        finally:
            server.terminate()
            server.wait(PATIENCE_S)


def _make_database(path: Path) -> None:
    import pymysql

    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            connection = pymysql.connect(unix_socket=str(path), user="root", autocommit=True)
            break
        except pymysql.err.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
    with connection, connection.cursor() as cursor:
        cursor.execute("CREATE DATABASE bench")
        cursor.execute("GRANT ALL ON *.* TO bench@'%' IDENTIFIED BY 'bench'")
