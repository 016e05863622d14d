"""Uploads that the server ends by itself: a transient table each, whose name says whose it is and when it expires.

The files lie in the table's own stage, so that nothing is left where the table is dropped.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from hashlib import sha256
from typing import Final, Self
from uuid import UUID

import pyarrow as pa
from attrs import frozen

from pipeline_core import Claim, Load, PermanentError, PipelineError, SideError, TransientError
from pipeline_snowflake.loading import Loading
from pipeline_snowflake.names import quoted
from pipeline_snowflake.session import Session
from pipeline_snowflake.uploading import copying, put

# For how long an upload waits to be published, after the longest that its COPY may take.
_KEPT_S: Final = 24 * 60 * 60
_NAME: Final = re.compile(r"PIPELINE_UPLOAD_([0-9A-F]{16})_([0-9A-F]{16})_(\d+)_(\d+)")


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:16].upper()


@frozen
class Name:
    """The table of an upload: digests of pipeline and window, the fence, the second since 1970 at which it expires.

    It needs no quotes. The clock is the server's.
    """

    pipeline: str
    window: str
    fence: int
    expires_s: int

    @classmethod
    def of(cls, claim: Claim, expires_s: int) -> Self:
        window = claim.window
        return cls(
            _digest(claim.record.pipeline), _digest(f"{window.start_us}_{window.end_us}"), claim.fence, expires_s
        )

    @classmethod
    def read(cls, text: str) -> Self | None:
        """None where it is the name of something else."""
        found = _NAME.fullmatch(text)
        return None if found is None else cls(found[1], found[2], int(found[3]), int(found[4]))

    def __str__(self) -> str:
        return f"PIPELINE_UPLOAD_{self.pipeline}_{self.window}_{self.fence}_{self.expires_s}"

    def replaced_by(self, claim: Claim) -> bool:
        """Whether it is of the claim's window, under its fence or a lower one."""
        mine = Name.of(claim, self.expires_s)
        return (self.pipeline, self.window) == (mine.pipeline, mine.window) and self.fence <= mine.fence


@frozen
class Upload:
    """What a token says: the table, the id of the COPY (None for no row), its rows, the staged files and their schema.

    `layout` is that of the table when the rows were made to fit it.
    """

    name: Name
    query: str | None
    rows: int
    staged_key: str
    schema: pa.Schema
    layout: str

    def token(self) -> str:
        said = {"table": str(self.name), "query": self.query, "rows": self.rows, "staged": self.staged_key}
        schema = base64.b64encode(self.schema.serialize()).decode()
        return json.dumps({**said, "schema": schema, "layout": self.layout})


class Uploads:
    """The submitted uploads of one pipeline beside its table, in the schema given as database and name.

    They are looked up once a side, and what has expired is dropped then.
    """

    def __init__(self, session: Session, pipeline: str, schema: Sequence[str], timeout_s: float) -> None:
        self._session = session
        self._pipeline = _digest(pipeline)
        self._schema = schema
        self._lives_s = _KEPT_S + int(timeout_s)
        self._found: set[Name] | None = None

    def table(self, name: Name) -> str:
        """The table of an upload, quoted."""
        return quoted(*self._schema, str(name))

    def submit(self, load: Load, loading: Loading, batches: Iterator[pa.RecordBatch]) -> str:
        """Puts the rows into the stage of a new table, and has the server copy them; the token."""
        name = Name.of(load.claim, self._now_s() + self._lives_s)
        table, stage = self.table(name), quoted(*self._schema, f"%{name}")
        self._standing().add(name)
        try:
            self._session.rows(
                f"CREATE TRANSIENT TABLE {table} ({', '.join(loading.scratch)}) DATA_RETENTION_TIME_IN_DAYS = 0"
            )
            rows = put(self._session, stage, loading, batches, load.window)
            query = self._session.begin(copying(table, stage)) if rows else None
        except BaseException:
            with suppress(PipelineError):  # what failed before is worth telling; the table expires
                self._drop(name)
            raise
        return Upload(name, query, rows, load.staged.key, loading.schema, loading.layout).token()

    def read(self, token: str) -> Upload:
        """The upload of a token. Raises SideError for one of another pipeline, or of another kind of target."""
        try:
            said = json.loads(token)
            name = Name.read(said["table"])
            schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(said["schema"])))
            query = None if said["query"] is None else str(UUID(str(said["query"])))
            if name is not None and name.pipeline == self._pipeline:
                return Upload(name, query, int(said["rows"]), str(said["staged"]), schema, str(said["layout"]))
        except (ValueError, TypeError, KeyError, OSError):
            pass  # as much a stranger's as one that can be read
        raise SideError(
            f"{self._session.place}: the record carries an upload that was not submitted here by this pipeline; "
            "put the target back to what it was then, or release the record"
        )

    def uploaded(self, upload: Upload) -> bool:
        """Whether the table holds every row; raises what the COPY failed with."""
        table = self.table(upload.name)
        if self._session.described(table) is None:
            raise self._gone()
        going_on = upload.query is not None and self._session.goes_on(upload.query)
        if going_on:
            return False
        rows = self._session.count(f"SELECT COUNT(*) FROM {table}")  # noqa: S608 - quoted
        if rows == upload.rows:
            return True
        if going_on is None and self._now_s() < upload.name.expires_s:  # the server does not tell of it yet
            return False
        if going_on is None:
            raise self._gone()
        raise PermanentError(
            f"{self._session.place}: {upload.rows} rows were submitted, but {rows} copied; nothing was published"
        )

    def _gone(self) -> TransientError:
        return TransientError(
            f"{self._session.place}: what was submitted is there no more: it was cancelled, submitted again, or has "
            "expired; submit it again"
        )

    def cancel(self, upload: Upload) -> None:
        """Ends the COPY, and drops the table."""
        if upload.query is not None:
            self._session.abort(upload.query)
        self._drop(upload.name)

    def discard(self, claim: Claim) -> None:
        """Drops what was submitted of the claim's window under its fence and lower ones."""
        for name in [name for name in self._standing() if name.replaced_by(claim)]:
            self._drop(name)

    def _standing(self) -> set[Name]:
        if self._found is None:
            self._found = self._listed()
            if self._found:
                now_s = self._now_s()
                for name in [name for name in self._found if name.expires_s <= now_s]:
                    self._drop(name)
        return self._found

    def _listed(self) -> set[Name]:
        database, schema = self._schema
        listed = self._session.rows(
            f"SELECT TABLE_NAME FROM {quoted(database)}.INFORMATION_SCHEMA.TABLES "  # noqa: S608 - quoted
            "WHERE TABLE_SCHEMA = ? AND STARTSWITH(TABLE_NAME, ?)",
            schema,
            f"PIPELINE_UPLOAD_{self._pipeline}_",
        )
        return {name for (text,) in listed if (name := Name.read(str(text))) is not None}

    def _drop(self, name: Name) -> None:
        self._session.rows(f"DROP TABLE IF EXISTS {self.table(name)}")
        if self._found is not None:
            self._found.discard(name)

    def _now_s(self) -> int:
        return self._session.count("SELECT DATE_PART(EPOCH_SECOND, CURRENT_TIMESTAMP())")
