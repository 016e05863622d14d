"""The bucket below a stage, through obstore: on S3 and whatever speaks its protocol, GCS and Azure."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import timedelta
from functools import cache
from io import BufferedIOBase
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final
from urllib.parse import quote
from uuid import uuid4

import obstore
from attrs import frozen
from obstore.exceptions import AlreadyExistsError

from pipeline_core.contracts import Problem
from pipeline_core.errors import ClaimLostError, PipelineError, SideError
from pipeline_objects import folder
from pipeline_objects.faults import is_absent, translated
from pipeline_objects.place import parts_of

if TYPE_CHECKING:
    from obstore.store import ObjectStore, RetryConfig

#: One request that fails is sent again before the step is given up: a window takes thousands of them, and a service of
#: this kind refuses one now and then. Whoever is away for longer is the core's to wait for.
RETRIES: Final[RetryConfig] = {
    "max_retries": 3,
    "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=2), "base": 2},
    "retry_timeout": timedelta(seconds=20),
}
#: What is in memory of a file on its way: so many parts of so many bytes. S3 takes 10,000 parts a file.
_PART_BYTES = 8 * 2**20
_PARTS_AT_ONCE = 4
_CHUNK_BYTES = 2**20


@frozen
class Bucket:
    """Objects below `root`, a Place: `store` is obstore's, with the prefix of `root` inside.

    A file is whole or not there. Both ways it passes through a temporary file of this machine: no upload is begun
    before the file is complete, and no row is used before its checksum is known.
    """

    store: ObjectStore
    root: str

    def make(self, key: str) -> None:
        """Nothing to do but to look at the name: a bucket has no folders."""
        self._path(key)

    def create(self, name: str) -> _NewObject:
        """A new file, uploaded when it is finished."""
        self._path(name)
        return _NewObject(self, name)

    def upload(self, name: str, file: IO[bytes]) -> None:
        """Puts the content of a file there, in parts where it is large. An upload that fails is aborted."""
        with self._asking(name):
            obstore.put(self.store, self._path(name), file, chunk_size=_PART_BYTES, max_concurrency=_PARTS_AT_ONCE)

    def put(self, name: str, data: bytes) -> None:
        """Puts a whole file where there is none yet. Raises ClaimLostError where another writer was first."""
        # One that is there may be our own, if the first answer was lost and the request sent again.
        if not self._created(name, data) and self.get(name) != data:
            raise ClaimLostError(
                f"stage {self._place(name)}: another writer has completed it meanwhile; that one stays"
            )

    def get(self, name: str) -> bytes | None:
        """The content of a file, None where there is none."""
        with self._asking(name):
            try:
                return bytes(obstore.get(self.store, self._path(name)).bytes())
            except FileNotFoundError as error:
                if is_absent(error):
                    return None
                raise

    @contextmanager
    def reading(self, name: str) -> Iterator[BufferedIOBase | None]:
        """A copy of the file on this machine, None where there is none."""
        with _on_this_machine(), tempfile.TemporaryFile() as file:
            yield file if self._downloaded(name, file) else None

    def url(self, name: str) -> str:
        """The URL of a file, as its service writes it: `s3://`, `gs://` or `az://`."""
        return f"{self.root}/{quote(self._path(name))}"

    def keys(self, prefix: str) -> Sequence[str]:
        """The keys that begin with `prefix` and hold any file, in order."""
        above = prefix.rpartition("/")[0]
        found: set[str] = set()
        with self._asking(above):
            for page in obstore.list(self.store, self._path(above) if above else None):
                keys = (each["path"].rpartition("/")[0] for each in page)
                found.update(key for key in keys if key and key.startswith(prefix))
        return sorted(found)

    def remove(self, key: str, first: str) -> None:
        """Removes the files of a key, `first` before the others."""
        self.discard(f"{key}/{first}")
        with self._asking(key):
            others = [each["path"] for page in obstore.list(self.store, self._path(key)) for each in page]
            if others:
                obstore.delete(self.store, others)

    def discard(self, name: str) -> None:
        """Removes one file; harmless where there is none."""
        with self._asking(name):
            try:
                obstore.delete(self.store, self._path(name))
            except FileNotFoundError as error:
                if not is_absent(error):
                    raise

    def problems(self) -> Iterable[Problem]:
        """Whether a file can be written, listed, read and removed, and whether one that is there stays as it is."""
        name = f".doctor-{uuid4().hex}"
        try:
            self.put(name, b"1")
            try:
                self.get(name)
                self.keys("")
                keeps = self._keeps(name)
            finally:
                self.discard(name)
        except PipelineError as error:
            found, _, remedy = str(error).partition("; ")
            yield Problem(found, remedy)
            return
        if not keeps:
            yield Problem(
                f"stage {self.root}: the service passes over `if-none-match`, so that of two writers of one window "
                "the last one wins",
                "use a service that knows conditional writes",
            )

    def _keeps(self, name: str) -> bool:
        try:
            self.put(name, b"2")
        except ClaimLostError:
            return True
        return False

    def _created(self, name: str, data: bytes) -> bool:
        with self._asking(name):
            try:
                obstore.put(self.store, self._path(name), data, mode="create")
            except AlreadyExistsError:
                return False
        return True

    def _downloaded(self, name: str, file: BufferedIOBase) -> bool:
        with self._asking(name):
            try:
                found = obstore.get(self.store, self._path(name))
            except FileNotFoundError as error:
                if is_absent(error):
                    return False
                raise
            for chunk in found.stream(_CHUNK_BYTES):
                file.write(chunk)
        file.seek(0)
        return True

    @contextmanager
    def _asking(self, name: str) -> Iterator[None]:
        _refuse_in_a_fork(self.root)
        with translated(self._place(name)):
            yield

    def _place(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _path(self, name: str) -> str:
        return "/".join(parts_of(name, self.root))


class _NewObject:
    """A file while it is written, on this machine; it is uploaded once it is complete.

    So an attempt that ends in the midst of the rows leaves nothing in the bucket, and no upload is open while a slow
    source is read.
    """

    def __init__(self, bucket: Bucket, name: str) -> None:
        self._bucket = bucket
        self._name = name
        with _on_this_machine():
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed when it is finished or abandoned

    def write(self, data: Any) -> None:
        with _on_this_machine():
            self._file.write(data)

    def finish(self) -> None:
        with _on_this_machine(), self._file:
            self._file.seek(0)
            self._bucket.upload(self._name, self._file)

    def abandon(self) -> None:
        with suppress(OSError):  # closing flushes, and a full disk refuses once more: that has been reported
            self._file.close()


@cache
def _first_user() -> int:
    """The process that used obstore first: this one, or one that it was forked from."""
    return os.getpid()


def _refuse_in_a_fork(root: str) -> None:
    if _first_user() != os.getpid():
        raise SideError(
            f"stage {root}: this process was forked from one that had used the stage, and lacks the threads that do "
            "its work: it would wait for ever; start workers by spawn or forkserver, as in "
            "ProcessPoolExecutor(mp_context=multiprocessing.get_context('spawn'))"
        )


def _on_this_machine() -> AbstractContextManager[None]:
    return folder.translated(Path(tempfile.gettempdir()))
