"""Rows of a query as Arrow batches, each value checked against its column's type."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from attrs import frozen

from pipeline_core import PermanentError, Window
from pipeline_sql.tables import Column
from pipeline_sql.timestamps import INSTANT, Timestamps, described
from pipeline_sql.types import MISFIT, Types

#: The next rows of a query, as many as asked for, or fewer at its end.
Fetch = Callable[[int], Sequence[Sequence[Any]]]
# Python objects are many times as large as the same values in Arrow: only few rows are both at one time.
_FETCHED_ROWS = 2_000
Decode = Callable[[Sequence[Any]], pa.Array]


@frozen
class Extraction:
    """What of a table is extracted: its columns in order, and the Arrow type of each but the timestamp column."""

    place: str
    columns: Sequence[Column]
    timestamp: Column
    timestamps: Timestamps
    types: Types
    arrow: Mapping[str, pa.DataType]

    @property
    def schema(self) -> pa.Schema:
        fields = [(c.name, INSTANT if c == self.timestamp else self.arrow[c.name]) for c in self.columns]
        return pa.schema(fields)

    def batches(self, fetches: Iterable[Fetch], window: Window, batch_rows: int) -> Iterator[pa.RecordBatch]:
        """All rows that each of `fetches` gives, as batches of `batch_rows`; at least one, if only for the schema."""
        none = pa.RecordBatch.from_pylist([], schema=self.schema)
        whole = False
        waiting = [none]
        missing = batch_rows
        for fetch in fetches:
            while rows := fetch(min(missing, _FETCHED_ROWS)):
                waiting.append(self._batch(rows, window))
                missing -= len(rows)
                if not missing:
                    yield pa.concat_batches(waiting)
                    whole, waiting, missing = True, [none], batch_rows
        if missing < batch_rows or not whole:
            yield pa.concat_batches(waiting)

    def _batch(self, rows: Sequence[Sequence[Any]], window: Window) -> pa.RecordBatch:
        values = list(zip(*rows, strict=True))
        at = self.columns.index(self.timestamp)
        instants = self._instants(values[at], window)
        arrays = [
            instants if index == at else self._array(column, values[index], instants)
            for index, column in enumerate(self.columns)
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def _instants(self, values: Sequence[Any], window: Window) -> pa.Array:
        try:
            instants = self.timestamps.decode(values)
        except MISFIT:
            bad = next(value for value in values if _misfits(self.timestamps.decode, value))
            raise PermanentError(
                f"{self.place}, column {self.timestamp.name!r}: found {described(bad)}, which is no date and "
                "time of the calendar; correct the row"
            ) from None
        return checked(instants, window, f"{self.place}, column {self.timestamp.name!r}")

    def _array(self, column: Column, values: Sequence[Any], instants: pa.Array) -> pa.Array:
        arrow = self.arrow[column.name]

        def read(some: Sequence[Any]) -> pa.Array:
            return self.types.read(some, arrow)

        try:
            return read(values)
        except MISFIT:
            row = next(index for index, value in enumerate(values) if _misfits(read, value))
            declared = f"declared {column.declared}" if column.declared else "by its first value"
            raise PermanentError(
                f"{self.place}, column {column.name!r}, row at {instants[row]}: found {described(values[row])}, "
                f"expected {arrow} ({declared}); correct the row, or exclude the column"
            ) from None


def checked(instants: pa.Array, window: Window, place: str) -> pa.Array:
    """The instants, if none is null or outside the window; PermanentError otherwise."""
    if instants.null_count:
        raise PermanentError(
            f"{place}: found {instants.null_count} rows of window {window} without a timestamp; fill it"
        )
    raw = instants.cast(pa.int64())
    for us in (pc.min(raw).as_py(), pc.max(raw).as_py()):
        if us is not None and not window.start_us <= us < window.end_us:
            raise PermanentError(
                f"{place}: found a row at {us} us since 1970, outside window {window}; "
                "a value that is not well formed sorts where it does not belong: correct the row"
            )
    return instants


def _misfits(read: Decode, value: Any) -> bool:
    try:
        read([value])
    except MISFIT:
        return True
    return False
