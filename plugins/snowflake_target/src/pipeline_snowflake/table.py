"""A table as Snowflake describes it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from attrs import frozen

from pipeline_core import SideError
from pipeline_core.errors import nearest
from pipeline_snowflake.names import fold, quoted
from pipeline_snowflake.session import Session

_TYPE: Final = re.compile(r"([A-Z_ ]*[A-Z_])\s*(?:\((\d+)(?:\s*,\s*(\d+))?\))?(.*)", re.DOTALL)
_SAME: Final = {
    **dict.fromkeys(("DECIMAL", "NUMERIC", "FIXED"), "NUMBER"),
    **dict.fromkeys(("DOUBLE", "REAL"), "FLOAT"),
    **dict.fromkeys(("TEXT", "STRING", "CHAR"), "VARCHAR"),
    "VARBINARY": "BINARY",
    "DATETIME": "TIMESTAMP_NTZ",
}


@frozen
class Column:
    """A column. `kind` is the word of its type, `sizes` the numbers after it. `required`: an insert must fill it."""

    name: str
    declared: str
    kind: str
    sizes: tuple[int, ...] = ()
    collated: bool = False
    required: bool = False

    @property
    def sql(self) -> str:
        """Its name, quoted."""
        return quoted(self.name)


@frozen
class Table:
    """A table or view. `path` is its database, schema and name."""

    path: tuple[str, str, str]
    columns: tuple[Column, ...]

    @property
    def sql(self) -> str:
        """Its full name, quoted."""
        return quoted(*self.path)


def find(session: Session, path: tuple[str, str, str]) -> Table | None:
    """The table or view of that name; None where there is none that the role can see."""
    found = session.described(quoted(*path))
    return None if found is None else Table(path, tuple(map(_column, found)))


def nearest_table(session: Session, path: tuple[str, str, str]) -> str:
    """Words for the end of a message: the schema's tables nearest to a name."""
    return nearest(path[2], _names(session, path))


def _names(session: Session, path: tuple[str, str, str]) -> list[str]:
    database, schema, _ = path
    listed = f"SELECT TABLE_NAME FROM {quoted(database)}.INFORMATION_SCHEMA.TABLES WHERE TABLE_SCHEMA = ?"  # noqa: S608 - quoted
    return [str(name) for (name,) in session.rows(listed, schema)]


def _column(row: tuple[object, ...]) -> Column:
    name, declared, _, nullable, default, *_ = map(str, row)
    match = _TYPE.fullmatch(declared)
    if match is None:
        raise SideError(f"column {name!r}: its type {declared!r} cannot be read; exclude the column")
    word, first, second, rest = match.groups()
    sizes = tuple(int(each) for each in (first, second) if each is not None)
    required = nullable == "N" and default in ("None", "")
    return Column(name, declared, _SAME.get(word, word), sizes, "COLLATE" in rest, required)


def column_of(name: str, columns: Iterable[Column]) -> Column | None:
    """The column of exactly that name; else the one that Snowflake means by it without quotes."""
    known = {each.name: each for each in columns}
    return known.get(name) or known.get(fold(name))
