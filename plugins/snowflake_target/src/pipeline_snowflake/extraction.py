"""The rows of a window as Arrow batches."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
from attrs import frozen

from pipeline_core import PermanentError, SideError, Window
from pipeline_core.errors import nearest
from pipeline_snowflake.session import Session
from pipeline_snowflake.side import Side
from pipeline_snowflake.table import Column, column_of
from pipeline_snowflake.timestamps import as_integer
from pipeline_snowflake.types import MISFIT, Reading, reading

_INSTANT = pa.timestamp("us", "UTC")


@frozen
class Extraction:
    """The columns that are read, in order, and how."""

    place: str
    side: Side
    columns: Sequence[Column]
    readings: Sequence[Reading]

    @property
    def schema(self) -> pa.Schema:
        """What every batch has; the timestamp column in instants."""
        pairs = zip(self.columns, self.readings, strict=True)
        return pa.schema([(c.name, _INSTANT if c == self.side.timestamp else r.arrow) for c, r in pairs])

    def batches(self, session: Session, window: Window, batch_rows: int) -> Generator[pa.RecordBatch, None, None]:
        """The rows of the window; at least one batch."""
        # Named by number, so that no name of a column meets another in the answer.
        listed = ", ".join(f"{each.sql} AS C{at}" for at, each in enumerate(self.readings))
        condition, values = self.side.inside(window)
        query = f"SELECT {listed} FROM {self.side.table.sql} WHERE {condition}"  # noqa: S608 - quoted
        found = False
        for table in session.tables(query, values):
            for batch in self._converted(table, window).to_batches(max_chunksize=batch_rows):
                found = True
                yield batch
        if not found:
            yield pa.RecordBatch.from_pylist([], schema=self.schema)

    def _converted(self, table: pa.Table, window: Window) -> pa.Table:
        columns = []
        for at, (column, how) in enumerate(zip(self.columns, self.readings, strict=True)):
            values = table.column(at).combine_chunks()
            try:
                if column == self.side.timestamp:
                    columns.append(self.side.timestamps.instants(values.cast(pa.int64()), window).cast(_INSTANT))
                else:
                    columns.append(how.read(values))
            except MISFIT as error:
                # Arrow's own message quotes the value.
                raise PermanentError(
                    f"{self.place}, column {column.name!r}: a value of type {values.type} is none of its type "
                    f"{column.declared} ({type(error).__name__}); correct the row, or exclude the column"
                ) from None
        return pa.Table.from_arrays(columns, schema=self.schema)


def extraction(side: Side, exclude: frozenset[str], place: str) -> Extraction:
    """How a side's rows are read. Raises SideError for an exclusion of nothing, or a type without a counterpart."""
    known = side.table.columns
    excluded = set()
    for name in sorted(exclude):
        column = column_of(name, known)
        if column is None:
            near = nearest(name, [each.name for each in known])
            raise SideError(f"{place}: exclude names no column of it: {name!r} ({near})")
        if column == side.timestamp:
            raise SideError(f"{place}: exclude names the timestamp column {name!r}, which every row needs")
        excluded.add(column.name)
    columns = [column for column in known if column.name not in excluded]
    return Extraction(place, side, columns, [_reading(column, side, place) for column in columns])


def _reading(column: Column, side: Side, place: str) -> Reading:
    if column == side.timestamp:
        return Reading(as_integer(column.sql), pa.int64())
    found = reading(column)
    if found is None:
        raise SideError(
            f"{place}, column {column.name!r}: its type {column.declared} has no counterpart elsewhere; "
            "exclude the column, or read it through a view that converts it"
        )
    return found


def checked(instants: pa.Array, window: Window, place: str) -> pa.Array:
    """Staged instants as microseconds. Raises PermanentError for one that is missing or outside the window."""
    if instants.null_count:
        raise PermanentError(
            f"{place}: found {instants.null_count} rows of window {window} without a timestamp; fill it"
        )
    for us in (pc.min(instants).as_py(), pc.max(instants).as_py()):
        if us is not None and not window.start_us <= us < window.end_us:
            raise PermanentError(
                f"{place}: found a row at {us} us since 1970, outside window {window}; correct the row"
            )
    return instants
