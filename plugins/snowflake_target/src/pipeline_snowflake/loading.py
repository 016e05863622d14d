"""What becomes of each staged column in the target: its name, its type, its values. No statement runs here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from attrs import frozen

from pipeline_core import PermanentError, SideError, Window
from pipeline_core.errors import nearest
from pipeline_snowflake.extraction import checked
from pipeline_snowflake.names import fold, quoted
from pipeline_snowflake.side import Side
from pipeline_snowflake.table import Column, column_of
from pipeline_snowflake.types import MISFIT, Writing, declaration, fraction, kind, microseconds, unpacked, writing


def declared(field: pa.Field, name: str, place: str) -> str:
    """The column to be made for a staged one, in SQL. Raises PermanentError where no type keeps what it means."""
    made = declaration(field.type)
    if made is None:
        raise PermanentError(
            f"{place}: column {name!r}: no type of the target keeps what the staged {field.type} means; "
            "exclude it at the source, or make the column yourself"
        )
    return f"{quoted(fold(name))} {made}"


def declarations(schema: pa.Schema, names: Sequence[str], timestamp: str, *, naive: bool, place: str) -> list[str]:
    """The columns of a table to be made, in SQL; the timestamp column as the settings say."""
    if fold(timestamp) not in map(fold, names):
        raise _no_timestamp(timestamp, names, place)
    instant = f"{quoted(fold(timestamp))} {'TIMESTAMP_NTZ' if naive else 'TIMESTAMP_LTZ'}"
    return [
        instant if fold(name) == fold(timestamp) else declared(field, name, place)
        for field, name in zip(schema, names, strict=True)
    ]


@frozen
class Filled:
    """A column of the target, the place of the staged column that fills it, and how."""

    column: Column
    at: int
    how: Writing


@frozen
class Loading:
    """How staged batches become rows of the target. Scratch has a column `C0`, `C1` … for each that is filled."""

    place: str
    schema: pa.Schema
    side: Side
    filled: Sequence[Filled]

    @property
    def scratch(self) -> list[str]:
        """The columns of scratch, in SQL."""
        return [f"{quoted(f'C{n}')} {each.how.scratch}" for n, each in enumerate(self.filled)]

    @property
    def scratch_schema(self) -> pa.Schema:
        """The columns of scratch, in Arrow."""
        return pa.schema([(f"C{n}", each.how.arrow) for n, each in enumerate(self.filled)])

    @property
    def layout(self) -> str:
        """A digest, equal for loadings that make the same scratch and insert it in the same way."""
        said = [
            [each.column.name, each.column.declared, each.at, each.how.scratch, each.how.insert] for each in self.filled
        ]
        return sha256(json.dumps(said).encode()).hexdigest()

    def insert(self, scratch: str) -> str:
        """The statement that inserts every row of a scratch table, given quoted."""
        into = ", ".join(each.column.sql for each in self.filled)
        values = ", ".join(each.how.insert.format(quoted(f"C{n}")) for n, each in enumerate(self.filled))
        return f"INSERT INTO {self.side.table.sql} ({into}) SELECT {values} FROM {scratch}"  # noqa: S608 - quoted

    def rows(self, batch: pa.RecordBatch, window: Window) -> pa.RecordBatch:
        """A staged batch as rows of scratch. Raises PermanentError for a value that would not survive."""
        if batch.schema.names != self.schema.names or batch.schema.types != self.schema.types:
            raise PermanentError(
                f"{self.place}: found a staged batch whose columns differ from the first one's; expected one schema a "
                "window: extract it again"
            )
        columns = [self._values(each, batch.column(each.at), window) for each in self.filled]
        return pa.RecordBatch.from_arrays(columns, schema=self.scratch_schema)

    def _values(self, filled: Filled, staged: pa.Array, window: Window) -> pa.Array:
        column, place = filled.column, f"{self.place}, column {filled.column.name!r}"
        if column.name in self.side.scope:
            _check_scope(staged, self.side.scope[column.name], place)
        try:
            if column == self.side.timestamp:
                instants = checked(microseconds(unpacked(staged)), window, place)
                timestamps = self.side.timestamps
                return timestamps.stored(fraction(instants, timestamps.digits), window)
            return filled.how.values(staged)
        except MISFIT as error:
            raise PermanentError(
                f"{place}: a staged value of type {staged.type} does not survive in a column declared "
                f"{column.declared} ({type(error).__name__}: {_cause(error)}); "
                "declare the column wider, or exclude it at the source"
            ) from None


def plan(schema: pa.Schema, names: Sequence[str], side: Side, place: str, *, ignore: bool = False) -> Loading:
    """Matches staged columns with a table's; where `ignore` is set, what has no place is left out.

    Raises PermanentError for one that has no place, or cannot be held, SideError where the timestamp column or one of
    the scope gets none.
    """
    known = side.table.columns
    matched = [(at, name, column_of(name, known)) for at, name in enumerate(names)]
    _check_named(side, [column.name for _, _, column in matched if column], names, place)
    placed = [(at, _required(name, column, known, place)) for at, name, column in matched if column or not ignore]
    columns = [column for _, column in placed]
    unfilled = [column.name for column in known if column.required and column not in columns]
    if unfilled:
        raise PermanentError(
            f"{place}: the columns {unfilled} are NOT NULL without a default, and no staged column fills them; "
            "rename one under [columns], give them a default, or allow NULL"
        )
    return Loading(place, schema, side, [_filled(schema.field(at), at, column, side, place) for at, column in placed])


def _check_named(side: Side, filled: Sequence[str], names: Sequence[str], place: str) -> None:
    if side.timestamp.name not in filled:
        raise _no_timestamp(side.timestamp.name, names, place)
    unsaid = sorted(side.scope.keys() - set(filled))
    if unsaid:
        raise SideError(
            f"{place}: scope limits this pipeline by the columns {unsaid}, which no staged column becomes "
            f"({nearest(unsaid[0], list(names))}); extract them, or rename one under [columns]"
        )


def _required(name: str, column: Column | None, known: Sequence[Column], place: str) -> Column:
    if column is None:
        raise PermanentError(
            f"{place}: it has no column for the staged {name!r} ({nearest(name, [each.name for each in known])}); "
            "add the column, rename it under [columns], exclude it at the source, or set new_columns on the target"
        )
    return column


def _filled(field: pa.Field, at: int, column: Column, side: Side, place: str) -> Filled:
    if column == side.timestamp:
        if kind(field.type) != "instant":
            raise PermanentError(
                f"{place}: column {column.name!r} is the timestamp column, and the staged {field.name!r} is "
                f"{field.type}; expected a timestamp with a zone: rename the source's timestamp column to it under "
                "[columns]"
            )
        how = Writing("NUMBER(19, 0)", pa.int64(), f"TO_{column.kind}({{}}, 6)", microseconds)
        return Filled(column, at, how)
    found = writing(column, field.type)
    if found is None:
        raise PermanentError(
            f"{place}: column {column.name!r} is declared {column.declared} and cannot hold the staged {field.type}; "
            "change the column's type, or exclude it at the source"
        )
    return Filled(column, at, found)


def _no_timestamp(name: str, names: Sequence[str], place: str) -> SideError:
    return SideError(
        f"{place}: no staged column becomes its timestamp column {name!r} ({nearest(name, list(names))}); "
        "rename one under [columns]"
    )


def _check_scope(staged: pa.Array, value: Any, place: str) -> None:
    strangers = [found for found in pc.unique(unpacked(staged)).to_pylist() if found != value]
    if strangers:
        raise PermanentError(
            f"{place}: found the staged value {_shown(strangers[0])}, expected {value!r}, to which scope limits "
            "this pipeline; leave such rows out at the source, or correct the scope"
        )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _cause(error: BaseException) -> str:
    # Arrow's messages quote the value.
    return str(error) if type(error) is ValueError else "out of range"
