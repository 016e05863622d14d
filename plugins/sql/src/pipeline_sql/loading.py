"""What becomes of each staged column in the target: its name, its type, its values. No statement runs here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
from attrs import frozen
from pyarrow import types as pt

from pipeline_core import PermanentError, SideError, Window
from pipeline_core.errors import nearest
from pipeline_sql.engines.default import Engine
from pipeline_sql.extraction import checked
from pipeline_sql.scope import check_named, check_staged
from pipeline_sql.side import Side
from pipeline_sql.tables import Column, Rows, Table
from pipeline_sql.timestamps import Timestamps, truncated
from pipeline_sql.types import MISFIT, Types

# Python objects are many times as large as the same values in Arrow: only few rows are both at one time.
_WRITTEN_ROWS = 2_000


def declared(field: pa.Field, name: str, engine: Engine, place: str) -> Column:
    """The column to be made for a staged one. Raises PermanentError where no type keeps what it means."""
    declaration = engine.types.declaration(field.type)
    if declaration is None:
        raise PermanentError(
            f"{place}: column {name!r}: no type of the target keeps what the staged {field.type} means; "
            "exclude it at the source, or make the column yourself"
        )
    return Column(name, declaration)


@frozen
class Loading:
    """How staged batches become rows of the target: `columns[i]` takes the staged column at `places[i]`."""

    place: str
    schema: pa.Schema
    columns: Sequence[Column]
    places: Sequence[int]
    timestamp: Column
    timestamps: Timestamps
    types: Types
    scope: Mapping[str, Any]

    def rows(self, batch: pa.RecordBatch, window: Window) -> Iterator[Rows]:
        """Driver values, a few rows at a time. Raises PermanentError for a value that would not survive."""
        for at in range(0, len(batch), _WRITTEN_ROWS):
            yield list(zip(*self.values(batch.slice(at, _WRITTEN_ROWS), window), strict=True))

    def values(self, batch: pa.RecordBatch, window: Window) -> list[Any]:
        """Driver values, column by column. Raises PermanentError for a value that would not survive."""
        if batch.schema.names != self.schema.names or batch.schema.types != self.schema.types:
            raise PermanentError(
                f"{self.place}: found a staged batch whose columns differ from the first one's; expected one schema a "
                "window: extract it again"
            )
        placed = zip(self.places, self.columns, strict=True)
        return [self._values(batch.column(at), column, window) for at, column in placed]

    def _values(self, array: pa.Array, column: Column, window: Window) -> Any:
        place = f"{self.place}, column {column.name!r}"
        if column.name in self.scope:
            check_staged(array, self.scope[column.name], place)
        if column == self.timestamp:
            return self.timestamps.encode(checked(truncated(array), window, place))
        try:
            return self.types.write(array, column)
        except MISFIT as error:
            raise PermanentError(
                f"{place}: a staged value of type {array.type} does not survive in a column declared "
                f"{column.declared or 'without a type'} ({type(error).__name__}: {_cause(error)}); "
                "declare the column wider, or exclude it at the source"
            ) from None


def plan(
    schema: pa.Schema, names: Sequence[str], side: Side, engine: Engine, place: str, *, ignore: bool = False
) -> Loading:
    """Matches staged columns with a table's; where `ignore` is set, what has no place is left out.

    Raises PermanentError for one that has no place, or cannot be held, SideError where the timestamp column or one of
    the scope gets none.
    """
    table, timestamp = side.table, side.timestamp
    timestamp_of(names, timestamp.name, engine, place)
    check_named(side.scope, names, engine, place)
    known = {engine.fold(column.name): column for column in table.columns}
    places = [at for at, name in enumerate(names) if not ignore or engine.fold(name) in known]
    columns = [_matched(names[at], known.get(engine.fold(names[at])), table, place) for at in places]
    unfilled = [column.name for column in table.columns if column.required and column not in columns]
    if unfilled:
        raise PermanentError(
            f"{place}: the columns {unfilled} are NOT NULL without a default, and no staged column fills them; "
            "rename one under [columns], give them a default, or allow NULL"
        )
    for at, column in zip(places, columns, strict=True):
        field = schema.field(at)
        if column == timestamp:
            _check_timestamp(field, column, place)
        elif not engine.types.accepts(column, field.type):
            raise PermanentError(
                f"{place}: column {column.name!r} is declared {column.declared or 'without a type'} and cannot hold "
                f"the staged {field.type}; change the column's type, or exclude it at the source"
            )
    return Loading(place, schema, columns, places, timestamp, side.timestamps, engine.types, side.scope)


def timestamp_of(names: Sequence[str], wanted: str, engine: Engine, place: str) -> str:
    """The one of the staged columns, as the target calls them, that becomes the timestamp column; SideError without."""
    found = next((name for name in names if engine.fold(name) == engine.fold(wanted)), None)
    if found is None:
        raise SideError(
            f"{place}: no staged column becomes its timestamp column {wanted!r} ({nearest(wanted, list(names))}); "
            "rename one under [columns], or correct timestamp_column"
        )
    return found


def _matched(name: str, column: Column | None, table: Table, place: str) -> Column:
    if column is None:
        raise PermanentError(
            f"{place}: it has no column for the staged {name!r} ({nearest(name, [c.name for c in table.columns])}); "
            "add the column, rename it under [columns], exclude it at the source, or set new_columns on the target"
        )
    if column.generated:
        raise PermanentError(
            f"{place}: column {column.name!r} is generated; exclude {name!r} at the source, or rename it"
        )
    return column


def _check_timestamp(field: pa.Field, column: Column, place: str) -> None:
    if not (pt.is_timestamp(field.type) and field.type.tz):
        raise PermanentError(
            f"{place}: column {column.name!r} is the timestamp column, and the staged {field.name!r} is {field.type}; "
            "expected a timestamp with a zone: rename the source's timestamp column to it under [columns]"
        )


def _cause(error: BaseException) -> str:
    # Arrow's messages quote the value.
    return str(error) if type(error) is ValueError else "out of range"
