"""Which of a table's rows are a side's: those that hold the values of `scope`, and for which `where` is true."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa

from pipeline_core import PermanentError, SideError
from pipeline_core.errors import nearest
from pipeline_core.ledger import Given
from pipeline_sql.engines.default import Engine
from pipeline_sql.kinds import kind, unpacked
from pipeline_sql.tables import Table

#: Which kinds of column may hold a value of a type: others would compare in ways that differ between databases.
_HELD_BY: Final[dict[type, set[str]]] = {
    str: {"text"},
    bool: {"bool"},
    int: {"int", "float"},
    float: {"float"},
    date: {"date"},
}
_ANYTHING = "null"  # a column of SQLite without a type


def resolved(scope: Given, table: Table, engine: Engine, place: str) -> dict[str, Any]:
    """The scope by the table's own names. Raises SideError for a column that is not there, or of another type."""
    known = {engine.fold(column.name): column for column in table.columns}
    found = {}
    for name, value in scope.items():
        column = known.get(engine.fold(name))
        if column is None:
            raise SideError(
                f"{place}: scope names no column of it: {name!r} ({nearest(name, [c.name for c in table.columns])}); "
                "correct the name, or add the column"
            )
        arrow = engine.types.arrow(column, None)
        if arrow is None or kind(arrow) not in _HELD_BY[type(value)] | {_ANYTHING}:
            raise SideError(
                f"{place}: scope sets column {column.name!r} to {value!r}, but it is declared "
                f"{column.declared or 'without a type'}; write a value of that type, or name another column"
            )
        found[column.name] = value
    return found


def condition(scope: Mapping[str, Any], where: str | None, engine: Engine) -> sa.ColumnElement[bool]:
    """What holds for the rows of the side and for no other; true where nothing limits it."""
    given = [] if where is None else [written(where)]
    return sa.and_(sa.true(), *(engine.equals(name, value) for name, value in scope.items()), *given)


def written(where: str) -> sa.ColumnElement[bool]:
    """A condition as its owner wrote it, in brackets; the line's end closes a comment."""
    return sa.literal_column(f"({where}\n)")


def check_named(scope: Iterable[str], names: Sequence[str], engine: Engine, place: str) -> None:
    """Raises SideError for columns of the scope that none of the staged columns, as the target calls them, becomes."""
    staged = set(map(engine.fold, names))
    unsaid = sorted(name for name in scope if engine.fold(name) not in staged)
    if unsaid:
        raise SideError(
            f"{place}: scope limits this pipeline by the columns {unsaid}, which no staged column becomes "
            f"({nearest(unsaid[0], names)}); extract them, or rename one under [columns]"
        )


def check_staged(array: pa.Array, value: object, place: str) -> None:
    """Raises PermanentError for a staged value that is not the one of the scope."""
    strangers = [found for found in pc.unique(unpacked(array)).to_pylist() if found != value]
    if strangers:
        raise PermanentError(
            f"{place}: found the staged value {_shown(strangers[0])}, expected {value!r}, to which scope limits "
            "this pipeline; leave such rows out at the source, or correct the scope"
        )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
