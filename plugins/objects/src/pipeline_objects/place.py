"""What a stage rests on, a folder or a bucket: names, bytes, and errors that say what they mean for the run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from io import BufferedIOBase
from typing import Any, Protocol

from pipeline_core.contracts import Problem
from pipeline_core.errors import PermanentError


class NewFile(Protocol):
    """A file while it is written. It does not count before `finish`."""

    def write(self, data: Any, /) -> None:
        """Takes the next bytes, of any object that lends its buffer."""

    def finish(self) -> None:
        """Returns once the whole file is kept."""

    def abandon(self) -> None:
        """Lets go of the file, whatever is there of it; raises nothing."""


class Place(Protocol):
    """Files by name. A name is `key/file`, a key a relative path with `/`; neither leaves the place.

    Raises PermanentError for a name that would; TransientError, SideError or PermanentError for what goes wrong.
    """

    def make(self, key: str) -> None:
        """Prepares a key for its files."""

    def create(self, name: str) -> NewFile:
        """A new file, to be written."""

    def put(self, name: str, data: bytes) -> None:
        """Puts a whole file where it can be seen, or none."""

    def get(self, name: str) -> bytes | None:
        """The content of a file, None where there is none."""

    def reading(self, name: str) -> AbstractContextManager[BufferedIOBase | None]:
        """A file to read and to seek in, None where there is none."""

    def url(self, name: str) -> str:
        """Where the file is, for whoever reads it without the stage. Holds no secret."""

    def keys(self, prefix: str) -> Sequence[str]:
        """The keys that begin with `prefix` and hold any file, in order. Files in the root itself belong to none."""

    def remove(self, key: str, first: str) -> None:
        """Removes the files of a key, `first` before the others. Harmless where there is none."""

    def discard(self, name: str) -> None:
        """Removes one file. Harmless where there is none."""

    def problems(self) -> Iterable[Problem]:
        """For `doctor`."""


def parts_of(name: str, place: object) -> list[str]:
    """The parts of a name. Raises PermanentError for one that could lead out of the place."""
    parts = name.split("/")
    if any(part in {"", ".", ".."} or {"\\", "\0"} & set(part) for part in parts):
        raise PermanentError(
            f"stage {place}: found the key {name!r}, expected a relative path without '..', '\\' or an empty "
            "part, as in 'flights/0-3600000000/17'; give the pipeline a name without these"
        )
    return parts
