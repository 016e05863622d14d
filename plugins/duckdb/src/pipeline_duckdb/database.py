"""The database file: who may open it when, and what DuckDB's errors mean.

DuckDB lets one process at a time open a file. So it is opened for a step and closed after it: processes take turns, and
one that was stopped between two steps is in nobody's way. To open it is to attach it to an instance of DuckDB that the
process keeps for it, because making an instance would take longer than most steps.
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
    "different configuration": "close this process's other connection to it, or open that one without options",
    "read-only mode": "give this user the right to write the file",
}


class _File:
    """A file in this process: open while anybody uses it, its instance of DuckDB kept while any side is open."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.publishing = threading.Lock()
        self.sides = 0
        self.users = 0
        self.instance: duckdb.DuckDBPyConnection | None = None
        self.opened: duckdb.DuckDBPyConnection | None = None
        self.name: str | None = None  # of the database in the instance; None where it is the instance's own

    def open(self, path: Path) -> None:
        """Attaches the file. Where this process has it open already, shares that instance of it."""
        if self.instance is None:
            self.instance = duckdb.connect(config={"temp_directory": f"{path}.tmp"})
        try:
            self.instance.execute(f"ATTACH {text(str(path))}")
        except (duckdb.ResourceInUseException, duckdb.BinderException):
            # By a connection of somebody else's; or its name is taken, which in an instance of its own it is not.
            self.opened, self.name = duckdb.connect(str(path)), None
            return
        found = "SELECT database_name FROM duckdb_databases() WHERE NOT internal AND path IS NOT NULL"
        ((self.name,),) = self.instance.execute(found).fetchall()
        self.opened = self.instance

    def session(self) -> duckdb.DuckDBPyConnection:
        """A connection to the open file."""
        if self.opened is None:
            raise RuntimeError("a session was asked for before the file was opened")
        session = self.opened.cursor()
        if self.name is not None:
            session.execute(f"USE {quoted(self.name)}")
        return session

    def close(self) -> None:
        """Closes the file, once nobody uses it; and the instance, once no side is open."""
        if self.users:
            return
        opened, self.opened = self.opened, None
        if opened is not None and opened is not self.instance:
            opened.close()
        elif opened is not None and self.name is not None:
            try:
                opened.execute(f"DETACH {quoted(self.name)}")
            except duckdb.Error:
                # An instance that has failed for good lets nothing go but by its own end.
                self._end_instance()
                raise
        if not self.sides:
            self._end_instance()

    def _end_instance(self) -> None:
        instance, self.instance = self.instance, None
        if instance is not None:
            instance.close()


_files: dict[str, _File] = {}
_files_lock = threading.Lock()


def _file(path: str) -> _File:
    with _files_lock:
        return _files.setdefault(path, _File())


class Database:
    """A DuckDB file. `create` lets connecting make a file that is not there."""

    def __init__(self, path: str, *, timeout_s: float, create: bool) -> None:
        # Absolute, so that DuckDB takes no prefix of it for the name of a service.
        self.path = Path(path).absolute()
        self.place = f"duckdb {path}"
        self._timeout_s = timeout_s
        self._create = create
        self._file = _file(str(self.path))
        with self._file.lock:
            self._file.sides += 1

    def close(self) -> None:
        """Lets go of what is kept for the file. Called once."""
        with self._file.lock:
            self._file.sides -= 1
            self._file.close()

    @contextmanager
    def connected(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection whose session is in UTC. Leaving rolls back what is not committed. Errors are translated."""
        with self.translated(), self._opened():
            connection = self._file.session()
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
        if not self._file.publishing.acquire(timeout=self._timeout_s):
            raise TransientError(
                f"{self.place}: waited {self._timeout_s:g} s for another publication of this process; "
                "see what keeps its transaction open, or raise timeout_s"
            )
        try:
            yield
        finally:
            self._file.publishing.release()

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
    def _opened(self) -> Iterator[None]:
        file = self._file
        if not file.lock.acquire(timeout=self._timeout_s):
            raise TransientError(
                f"{self.place}: waited {self._timeout_s:g} s while another thread opens or closes the file"
            )
        try:
            if file.opened is None:
                self._open()
            file.users += 1
        finally:
            file.lock.release()
        try:
            yield
        finally:
            with file.lock:
                file.users -= 1
                file.close()

    def _open(self) -> None:
        """Opens the file, waiting up to the timeout while another process holds it."""
        if not self._create and not self.path.exists():
            raise SideError(f"{self.place}: found no such file; correct the path, or put the database there")
        started = time.monotonic()
        told = False
        while True:
            try:
                self._file.open(self.path)
                return  # noqa: TRY300 - the end of a loop, not of a try
            except (duckdb.IOException, duckdb.ResourceInUseException) as error:
                found = str(error)
                if not any(words in found for words in _LOCKED):
                    raise
            waited = time.monotonic() - started
            if waited >= self._timeout_s:
                raise TransientError(f"{self._locked(found)}; waited {self._timeout_s:g} s") from None
            if waited > _PATIENCE_S and not told:
                told = True
                _log.warning("%s; waiting up to %g s", self._locked(found), self._timeout_s)
            time.sleep(random.uniform(0.001, 0.02))  # noqa: S311 - no secret depends on it

    def _locked(self, found: str) -> str:
        holder = _HOLDER.search(found)
        who = holder[1] if holder else "another process"
        return (
            f"{self.place}: {who} holds the file's lock, and DuckDB lets one process at a time have a file open: "
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
