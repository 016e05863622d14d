"""A table together with its timestamp column and its limits: what every verb of the connector starts from."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Any, Final

from attrs import frozen

from pipeline_core import SideError, Window
from pipeline_core.errors import nearest
from pipeline_core.ledger import Given
from pipeline_snowflake.names import quoted
from pipeline_snowflake.table import Column, Table, column_of
from pipeline_snowflake.timestamps import Clause, Timestamps

#: Which kinds of column may hold a value of a type: others would be converted before they are compared.
_HELD_BY: Final[dict[type, set[str]]] = {
    str: {"VARCHAR"},
    bool: {"BOOLEAN"},
    int: {"NUMBER", "FLOAT"},
    float: {"FLOAT"},
    date: {"DATE"},
}


@frozen
class Side:
    """The table as it is now. `rows`: the condition that a row is one of the side's."""

    table: Table
    timestamp: Column
    timestamps: Timestamps
    scope: Mapping[str, Any]
    rows: Clause

    def where(self, condition: Clause) -> Clause:
        """A condition, for rows of the side."""
        return f"{condition[0]} AND {self.rows[0]}", (*condition[1], *self.rows[1])

    def inside(self, window: Window) -> Clause:
        """The condition that a row is one of the side's and belongs to the window."""
        return self.where(self.timestamps.inside(window))


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
        if column.kind not in _HELD_BY[type(value)]:
            raise SideError(
                f"{place}: scope sets column {column.name!r} to {value!r}, but it is declared {column.declared}; "
                "write a value of that type, or name another column"
            )
        if column.collated:
            raise SideError(
                f"{place}: scope names column {column.name!r}, whose collation takes different texts for the same; "
                "name another column"
            )
        named[column.name] = value
    return named


def condition(scope: Mapping[str, Any], where: str | None) -> Clause:
    """What holds for the rows of the side and for no other; true where nothing limits it."""
    equal = [f"{quoted(name)} = {'TO_DATE(?)' if isinstance(value, date) else '?'}" for name, value in scope.items()]
    # The line's end closes a comment of the owner's.
    given = [] if where is None else [f"({where}\n)"]
    values = (value.isoformat() if isinstance(value, date) else value for value in scope.values())
    return " AND ".join(["TRUE", *equal, *given]), tuple(values)
