"""A table as the database describes it, and names that pass through SQL unharmed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from attrs import field, frozen
from sqlalchemy.sql import quoted_name

#: Stored values, half-open: `low <= value < high`.
Range = tuple[Any, Any]
#: Driver values, row by row.
Rows = Sequence[Sequence[Any]]


@frozen
class Column:
    """A column. `declared` is its type as the database spells it; `required`: an insert must give it a value."""

    name: str
    declared: str
    required: bool = False
    generated: bool = False


@frozen
class TypedColumn(Column):
    """A column with its type as SQLAlchemy found it."""

    type: sa.types.TypeEngine[Any] = field(factory=sa.types.NullType, eq=False, repr=False)


@frozen
class Table:
    """A table or view, its names spelled as the database spells them."""

    schema: str | None
    name: str
    columns: tuple[Column, ...]
    view: bool = False

    def clause(self) -> sa.TableClause:
        """The table for use in a statement, without types: values pass as the driver gives and takes them."""
        return named(self.schema, self.name)


def named(schema: str | None, name: str, *columns: str) -> sa.TableClause:
    """A table of that exact name, with columns of those exact names, quoted whatever they hold."""
    within = None if schema is None else quoted_name(schema, quote=True)
    return sa.table(quoted_name(name, quote=True), *map(named_column, columns), schema=within)


def named_column(name: str) -> sa.ColumnClause[Any]:
    """A column of that exact name, quoted whatever it holds."""
    return sa.column(quoted_name(name, quote=True))


def split(name: str) -> tuple[str | None, str]:
    """`schema.table` or `table`. Only the first dot parts, so a name that holds one itself needs its schema."""
    first, dot, rest = name.partition(".")
    return (first, rest) if dot else (None, first)
