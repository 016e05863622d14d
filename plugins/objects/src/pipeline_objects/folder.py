"""The local folder below a stage, and what an error of the operating system means for the run."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BufferedIOBase, BufferedReader
from pathlib import Path, PurePosixPath
from tempfile import TemporaryFile
from typing import Any

from attrs import frozen

from pipeline_core.contracts import Problem
from pipeline_core.errors import PermanentError, PipelineError, SideError, TransientError
from pipeline_objects.place import parts_of

_FULL = {errno.ENOSPC, errno.EDQUOT}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP}
_AWAY = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENXIO}
_BUSY = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EBUSY, errno.EINTR}
_LITTLE_SPACE = 2**30
_MAKE_TRIES = 1000  # each lost race needs another worker to empty the folder in the same instant


@frozen
class Folder:
    """Files below `root`: a Place of this machine, or on a share."""

    root: Path

    def make(self, key: str) -> None:
        """Makes the folder of a key, once: files come into it only while nobody has removed the key."""
        path = self._path(key)
        with translated(path):
            _make_folder(path)

    def create(self, name: str) -> _LocalFile:
        """A new file, open for writing."""
        return _LocalFile(self._path(name))

    def put(self, name: str, data: bytes) -> None:
        """Puts a whole file where it can be seen, or none: it is complete and on the disk before it has its name.

        The folder itself is not synced: a name lost in a power cut only costs another extraction.
        """
        path = self._path(name)
        half = path.with_name(f"{path.name}.tmp")
        with translated(path):
            with half.open("wb") as file:
                file.write(data)
                sync(file)
            half.replace(path)

    def get(self, name: str) -> bytes | None:
        """The content of a file, None where there is none."""
        path = self._path(name)
        with translated(path):
            try:
                return path.read_bytes()
            except FileNotFoundError:
                return None

    @contextmanager
    def reading(self, name: str) -> Iterator[BufferedReader | None]:
        """A file to read from, None where there is none."""
        path = self._path(name)
        with translated(path):
            file = _opened(path)
            if file is None:
                yield None
                return
            with file:
                yield file

    def url(self, name: str) -> str:
        """The `file:///` URL of a file."""
        return self._path(name).as_uri()

    def keys(self, prefix: str) -> Sequence[str]:
        """The keys that begin with `prefix` and hold any file, in order. Files in the root itself belong to none."""
        base = self._path(prefix.rpartition("/")[0]) if "/" in prefix else self.root
        found = []
        with translated(base):
            for folder, _, files in os.walk(base, onerror=_unless_gone):
                key = PurePosixPath(Path(folder).relative_to(self.root)).as_posix()
                if files and key != "." and key.startswith(prefix):
                    found.append(key)
        return sorted(found)

    def remove(self, key: str, first: str) -> None:
        """Removes the files of a key, `first` before the others, and every folder that this leaves empty.

        A folder in which another worker puts a file at this moment stays: the system removes none that holds anything.
        """
        path = self._path(key)
        with translated(path):
            try:
                names = sorted(os.listdir(path), key=lambda name: name != first)
            except FileNotFoundError:
                return
            for name in names:
                if not (path / name).is_dir():
                    (path / name).unlink(missing_ok=True)
            for folder in [path, *path.parents]:
                if folder == self.root or not _removed_empty(folder):
                    return

    def discard(self, name: str) -> None:
        """Removes one file; harmless where there is none."""
        path = self._path(name)
        with translated(path):
            path.unlink(missing_ok=True)

    def problems(self) -> Iterable[Problem]:
        """Whether the folder can be written, and whether there is space for a window or two."""
        try:
            place = self._try_writing()
        except PipelineError as error:
            found, _, remedy = str(error).partition("; ")
            yield Problem(found, remedy)
            return
        with translated(place):
            free = shutil.disk_usage(place).free
        if free < _LITTLE_SPACE:
            yield Problem(
                f"stage {place}: {free // 2**20} MiB are free, less than {_LITTLE_SPACE // 2**20}",
                "free space there, or give the stage a larger folder",
            )

    def _try_writing(self) -> Path:
        """Writes a byte into the root, or into the folder in which it will be made; returns that folder."""
        place = next(p for p in [self.root, *self.root.parents] if p.exists())
        with translated(place), TemporaryFile(dir=place) as file:
            file.write(b"\0")
            sync(file)
        return place

    def _path(self, name: str) -> Path:
        return self.root.joinpath(*parts_of(name, self.root))


class _LocalFile:
    """A file while it is written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with translated(path):
            self._file = path.open("wb")

    def write(self, data: Any) -> None:
        with translated(self._path):
            self._file.write(data)

    def finish(self) -> None:
        """On the disk before the manifest says that it is there."""
        with translated(self._path), self._file:
            sync(self._file)

    def abandon(self) -> None:
        with suppress(OSError):  # closing flushes, and a full disk refuses once more: that has been reported
            self._file.close()


def sync(file: BufferedIOBase) -> None:
    """Waits until the file is on the disk."""
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def translated(place: Path) -> Iterator[None]:
    """Turns an OSError into what it means: can it heal, does a person have to act. The one place that judges errno."""
    try:
        yield
    except OSError as error:
        raise _meaning(error, place) from None


def _meaning(error: OSError, place: Path) -> PipelineError:
    name = errno.errorcode.get(error.errno or 0, type(error).__name__)
    found = f"stage {place}: {error.strerror or error} ({name})"
    if error.errno in _FULL:
        return TransientError(f"{found}; free space there, or name a larger folder (stage.url, TMPDIR)", side_down=True)
    if error.errno in _AWAY:
        return TransientError(f"{found}; check that the disk or the share answers", side_down=True)
    if error.errno in _BUSY:
        return TransientError(f"{found}; lower the number of workers, or raise the limit, if this stays")
    if error.errno == errno.ENOENT:
        return TransientError(f"{found}; somebody removed it meanwhile; the window will be extracted again")
    if error.errno in _REFUSED:
        return SideError(f"{found}; give this process a folder in which it may write, or correct stage.url")
    return PermanentError(f"{found}; expected to read and write there; check stage.url and the file system")


def _opened(path: Path) -> BufferedReader | None:
    try:
        return path.open("rb")
    except FileNotFoundError:
        return None


def _make_folder(folder: Path) -> None:
    for _ in range(_MAKE_TRIES):
        # Another worker that cleans up may remove an empty parent between two levels; it cannot once ours is inside.
        with suppress(FileNotFoundError):
            folder.mkdir(parents=True, exist_ok=True)
            return
    folder.mkdir(parents=True, exist_ok=True)


def _removed_empty(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno in {errno.ENOTEMPTY, errno.EEXIST}:
            return False
        raise
    return True


def _unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
