"""Reading a window: one point in time, several slices of it at once, each page after the last one's position."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from attrs import evolve, frozen

from pipeline_core import PermanentError, PipelineError, TransientError, Window
from pipeline_elasticsearch.catalog import STRICT
from pipeline_elasticsearch.client import Client, path
from pipeline_elasticsearch.counting import WHOLE
from pipeline_elasticsearch.faults import NoMemoryError
from pipeline_elasticsearch.pages import Page, Shape

_KEEP_ALIVE = "5m"  # between two requests; each one begins it anew
_FIRST_ROWS = 100  # of a page, before anything is known of how large documents are
_PAGE_BYTES = 16_000_000  # of an answer, about: the server holds it in memory as a whole, and several times over


@frozen
class _Slice:
    """How far one slice has come, and how many documents its next page may hold."""

    number: int
    pit_id: str
    page_rows: int
    after: Sequence[int] | None = None
    read: int = 0
    total: int | None = None


@frozen
class Extraction:
    """The documents of `index` that `query` holds, as `shape` reads them, in `slices` parts, `page_rows` a page.

    A page of large documents holds fewer, since a server would not have the memory for an answer of so many.
    """

    client: Client
    index: str
    query: Mapping[str, Any]
    shape: Shape
    slices: int
    page_rows: int

    def pages(self) -> Generator[pa.RecordBatch, None, None]:
        """Every document once, in no order; at least one batch. A page of each slice is in memory, and no more.

        Raises TransientError where the server lost the point in time, or where a slice gave another number of
        documents than it holds: positions mean nothing in another one, so the window has to be read from its start.
        """
        pit_ids = {self._open()}
        try:
            yield pa.RecordBatch.from_pylist([], self.shape.schema)
            yield from self._read(pit_ids)
        finally:
            for pit_id in pit_ids:
                # It ends by itself soon; the error that may be on its way says more than one about this.
                with suppress(PipelineError):
                    self.client.ask("DELETE", "/_pit", None, {"id": pit_id})

    def _read(self, pit_ids: set[str]) -> Generator[pa.RecordBatch, None, None]:
        (pit_id,) = pit_ids
        # Leaving the pool waits for the pages that are being read, so that none is asked of a closed point in time.
        with ThreadPoolExecutor(self.slices, thread_name_prefix="elasticsearch") as pool:
            first = min(_FIRST_ROWS, self.page_rows)
            waiting = {pool.submit(self._turn, _Slice(number, pit_id, first)) for number in range(self.slices)}
            try:
                while waiting:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    for future in done:
                        page, now = future.result()
                        pit_ids.add(page.pit_id)
                        if now is not None:
                            waiting.add(pool.submit(self._turn, now))
                        if len(page.rows):
                            yield page.rows
            finally:
                _cancel(waiting)

    def _open(self) -> str:
        asked = {**STRICT, **WHOLE, "keep_alive": _KEEP_ALIVE}
        return str(self.client.ask_for(dict[str, Any], "POST", path(self.index, "_pit"), asked)["id"])

    def _turn(self, part: _Slice) -> tuple[Page, _Slice | None]:
        """A page of the slice, and how far it has come then; None at its end."""
        body = {
            "pit": {"id": part.pit_id, "keep_alive": _KEEP_ALIVE},
            "query": self.query,
            "sort": [{"_shard_doc": "asc"}],
            "size": part.page_rows,
            "track_total_hits": part.after is None,
            "timeout": f"{round(self.client.timeout_s * 1000)}ms",
            **self.shape.asks,
        }
        if self.slices > 1:
            body["slice"] = {"id": part.number, "max": self.slices}
        if part.after is not None:
            body["search_after"] = part.after
        try:
            answer = self.client.ask("POST", "/_search", WHOLE, body)
        except NoMemoryError:
            if part.page_rows <= _FIRST_ROWS:
                raise
            return self._turn(evolve(part, page_rows=_FIRST_ROWS))
        page = self.shape.read(answer)
        now = _Slice(
            part.number,
            page.pit_id,
            self._next_rows(len(page.rows), len(answer)),
            page.after,
            part.read + len(page.rows),
            page.total if part.after is None else part.total,
        )
        if len(page.rows) == part.page_rows:
            return page, now
        if now.read != now.total:
            raise TransientError(
                f"{self.client.place}: slice {part.number} of {self.slices} gave {now.read} documents, but holds "
                f"{now.total}; the window is read from its start"
            )
        return page, None

    def _next_rows(self, rows: int, size: int) -> int:
        """How many documents the next page may hold, if they are as large as these, which took `size` bytes."""
        return max(1, min(self.page_rows, rows * _PAGE_BYTES // size))


def _cancel(futures: set[Future[Any]]) -> None:
    for future in futures:
        future.cancel()


def check_inside(rows: pa.RecordBatch, timestamp_field: str, window: Window, place: str) -> None:
    """Raises PermanentError for a row outside the window: its document says another time than the index holds."""
    instants = rows.column(timestamp_field)
    where = f"{place}, field {timestamp_field!r}"
    if instants.null_count:
        raise PermanentError(
            f"{where}: {instants.null_count} documents of window {window} have no such value in _source, although the "
            "index holds one; a pipeline of the server, or copy_to, may have put it there"
        )
    if not len(rows):
        return
    raw = instants.cast(pa.int64())
    for us in (pc.min(raw).as_py(), pc.max(raw).as_py()):
        if not window.start_us <= us < window.end_us:
            raise PermanentError(
                f"{where}: found a document at {us} us since 1970 in window {window}; a field of type date keeps whole "
                "milliseconds, so cut windows at those, or map it as date_nanos"
            )
