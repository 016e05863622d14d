"""A table together with its timestamp column and its limits: what every verb of the connector starts from."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Any, Final

from attrs import frozen

from pipeline_core import SideError, Window
from pipeline_core.errors import nearest
from pipeline_core.ledger import Given
from pipeline_duckdb import types
from pipeline_duckdb.database import quoted, text
from pipeline_duckdb.table import Column, Table, column_of
from pipeline_duckdb.timestamps import Timestamps

#: Which kinds of column may hold a value of a type: others would be converted before they are compared.
_HELD_BY: Final[dict[type, set[str]]] = {
    str: {"text"},
    bool: {"bool"},
    int: {"int", "huge", "float"},
    float: {"float"},
    date: {"date"},
}


@frozen
class Side:
    """The table as it is now. `rows`: the condition, in SQL, that a row is one of the side's."""

    table: Table
    timestamp: Column
    timestamps: Timestamps
    scope: Mapping[str, Any]
    rows: str

    def inside(self, window: Window) -> str:
        """The condition that a row is one of the side's and belongs to the window, in SQL."""
        return f"{self.timestamps.inside(window)} AND {self.rows}"


def resolved(scope: Given, found: Table, place: str) -> dict[str, Any]:
    """The scope by the table's own names. Raises SideError for a column that is not there, or of another type."""
    named = {}
    for name, value in scope.items():
        column = column_of(name, found.columns)
        if column is None:
            raise SideError(
                f"{place}: scope names no column of it: {name!r} ({nearest(name, [c.name for c in found.columns])}); "
                "correct the name, or add the column"
            )
        if types.kind(column.type) not in _HELD_BY[type(value)]:
            raise SideError(
                f"{place}: scope sets column {column.name!r} to {value!r}, but it is declared {column.type}; "
                "write a value of that type, or name another column"
            )
        named[column.name] = value
    return named


def condition(scope: Mapping[str, Any], where: str | None) -> str:
    """What holds for the rows of the side and for no other, in SQL; true where nothing limits it."""
    # The line's end closes a comment of the owner's.
    given = [] if where is None else [f"({where}\n)"]
    return " AND ".join(["true", *(equals(quoted(name), value) for name, value in scope.items()), *given])


def equals(column: str, value: object) -> str:
    """The condition that a column, given quoted, holds exactly a value of the configuration, in SQL."""
    if isinstance(value, str):
        # To the letter, whatever the column's collation; the first half is what passes over row groups.
        return f"({column} = {text(value)} AND encode({column}) = encode({text(value)}))"
    return f"{column} = {f'DATE {text(str(value))}' if isinstance(value, date) else value}"
