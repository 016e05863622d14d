"""The database file: who may open it when, and what DuckDB's errors mean.

DuckDB lets one process at a time open a file, and every connection of that process shares one instance of it. So the
file is opened for a step and closed after it: processes take turns, and one that was stopped between two steps is in
nobody's way.
"""

from __future__ import annotations

import logging
import random
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

from pipeline_core import PermanentError, PipelineError, SideError, TransientError
from pipeline_core.secrets import redact

_log = logging.getLogger(__name__)

_PATIENCE_S = 2.0  # a wait for another process that is longer than a step of it is told
_LOCKED = ("Could not set lock on file", "being used by another process", "already attached by database")
_HOLDER = re.compile(r"Conflicting lock is held in (.+?\(PID \d+\)(?: by user \S+?)?)\.?(?:\s|$)")

# What DuckDB's errors mean to the core, by their class or by words of theirs, and what a person should do.
_HEALS: dict[type[duckdb.Error], str] = {
    duckdb.TransactionException: "another transaction was in the way",
    duckdb.SerializationException: "another transaction was in the way",
    duckdb.OutOfMemoryException: "raise DuckDB's memory_limit, or cut smaller windows",
    duckdb.FatalException: "the file is opened anew",
}
_HEALS_FOR_ALL = {
    "No space left on device": "free some space on its disk",
    "Input/output error": "check the disk, or the network drive, that holds it",
}
_NEEDS_A_PERSON = {
    "Catalog Error": "create it, or correct its name",
    "Binder Error": "create it, or correct its name",
    "Permission denied": "give this user the right to read and write the file and its folder",
    "No such file or directory": "make its folder, or correct the path",
    "Is a directory": "name a file",
    "not a valid DuckDB database file": "correct the path, or move the file away",
    "was created with": "open it with the DuckDB that wrote it, or a newer one",
    "newer version": "install a newer DuckDB",
    "read-only mode": "give this user the right to write the file",
}


class _Shared:
    """The one instance of a file in this process: open while anybody uses it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.publishing = threading.Lock()
        self.users = 0
        self.root: duckdb.DuckDBPyConnection | None = None


_files: dict[str, _Shared] = {}
_files_lock = threading.Lock()


def _shared(path: str) -> _Shared:
    with _files_lock:
        return _files.setdefault(path, _Shared())


class Database:
    """A DuckDB file. `create` lets connecting make a file that is not there."""

    def __init__(self, path: str, *, timeout_s: float, create: bool) -> None:
        # Absolute, so that DuckDB takes no prefix of it for the name of a service.
        self.path = Path(path).absolute()
        self.place = f"duckdb {path}"
        self._timeout_s = timeout_s
        self._create = create
        self._shared = _shared(str(self.path))

    @contextmanager
    def connected(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection whose session is in UTC. Leaving rolls back what is not committed. Errors are translated."""
        with self.translated(), self._opened() as root:
            connection = root.cursor()
            try:
                connection.execute("SET TimeZone = 'UTC'")
                yield connection
            finally:
                connection.close()

    @contextmanager
    def publishing(self) -> Iterator[None]:
        """Lets one thread of this process at a time change the file's tables; other processes are kept out anyway.

        DuckDB itself would let both write, and abort the one that comes second.
        """
        if not self._shared.publishing.acquire(timeout=self._timeout_s):
            raise TransientError(
                f"{self.place}: waited {self._timeout_s:g} s for another publication of this process; "
                "see what keeps its transaction open, or raise timeout_s"
            )
        try:
            yield
        finally:
            self._shared.publishing.release()

    @contextmanager
    def limited(self, connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
        """Ends a query that takes longer than the timeout, with a TransientError."""
        timer = threading.Timer(self._timeout_s, connection.interrupt)
        timer.start()
        try:
            yield
        except duckdb.InterruptException:
            raise TransientError(
                f"{self.place}: a query took longer than timeout_s = {self._timeout_s:g}; raise timeout_s"
            ) from None
        finally:
            timer.cancel()
            timer.join()

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turns DuckDB's errors into TransientError, SideError or PermanentError, without values or secrets."""
        try:
            yield
        except duckdb.Error as error:
            # Not "from error": DuckDB's own error quotes the statement, and values.
            raise self.meaning(error) from None

    @contextmanager
    def _opened(self) -> Iterator[duckdb.DuckDBPyConnection]:
        shared = self._shared
        if not shared.lock.acquire(timeout=self._timeout_s):
            raise TransientError(
                f"{self.place}: waited {self._timeout_s:g} s while another thread opens or closes the file"
            )
        try:
            if shared.root is None:
                shared.root = self._open()
            root = shared.root
            shared.users += 1
        finally:
            shared.lock.release()
        try:
            yield root
        finally:
            with shared.lock:
                shared.users -= 1
                if not shared.users:
                    shared.root = None
                    root.close()

    def _open(self) -> duckdb.DuckDBPyConnection:
        """Opens the file, waiting up to the timeout while another process holds it."""
        if not self._create and not self.path.exists():
            raise SideError(f"{self.place}: found no such file; correct the path, or put the database there")
        started = time.monotonic()
        told = False
        while True:
            try:
                return duckdb.connect(str(self.path))
            except (duckdb.IOException, duckdb.ResourceInUseException) as error:
                text = str(error)
                if not any(words in text for words in _LOCKED):
                    raise
            waited = time.monotonic() - started
            if waited >= self._timeout_s:
                raise TransientError(f"{self._locked(text)}; waited {self._timeout_s:g} s") from None
            if waited > _PATIENCE_S and not told:
                told = True
                _log.warning("%s; waiting up to %g s", self._locked(text), self._timeout_s)
            time.sleep(random.uniform(0.001, 0.02))  # noqa: S311 - no secret depends on it

    def _locked(self, text: str) -> str:
        holder = _HOLDER.search(text)
        who = holder[1] if holder else "another process"
        return (
            f"{self.place}: {who} has the file open, and DuckDB lets one process at a time do so: "
            "close it there, or end that process"
        )

    def meaning(self, error: duckdb.Error) -> PipelineError:
        """What an error of DuckDB means to the core."""
        text = _plain(str(error))
        if isinstance(error, duckdb.DataError | duckdb.IntegrityError):
            return PermanentError(f"{self.place}: {_without_values(text)}")
        for kind, advice in _HEALS.items():
            if isinstance(error, kind):
                return TransientError(f"{self.place}: {text}; {advice}")
        for words, advice in _HEALS_FOR_ALL.items():
            if words in text:
                return TransientError(f"{self.place}: {text}; {advice}", side_down=True)
        for words, advice in _NEEDS_A_PERSON.items():
            if words in text:
                return SideError(f"{self.place}: {text}; {advice}")
        return PermanentError(f"{self.place}: {text}")


def quoted(name: str) -> str:
    """An identifier that stands for exactly this name."""
    return '"' + name.replace('"', '""') + '"'


def text(value: str) -> str:
    """A literal that stands for exactly this text."""
    return "'" + value.replace("'", "''") + "'"


def _plain(message: str) -> str:
    """The first line: after it DuckDB quotes the statement, or lists what else there is."""
    return redact(message.partition("\n")[0].strip())


def _without_values(text: str) -> str:
    """A message about data without what it quotes of them."""
    kind = text.partition(":")[0]
    found = re.search(r"NOT NULL constraint failed|(?:primary key|unique|CHECK|foreign key) constraint", text, re.I)
    return f"{kind}: {found[0]}" if found else f"{kind}: a value does not fit its column"
