"""The statements that make what a target lacks, as text: an upload runs them, `plan --ddl` prints them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from hashlib import sha256
from itertools import chain, count
from typing import Any

import sqlalchemy as sa
from sqlalchemy.sql import quoted_name

from pipeline_sql.tables import Column, named


def create(table: sa.Table, dialect: sa.Dialect) -> str:
    """A table of ours, on one line."""
    return re.sub(r"\s*\n\s*", " ", str(sa.schema.CreateTable(table).compile(dialect=dialect)).strip())


def create_table(schema: str | None, name: str, columns: Sequence[Column], dialect: sa.Dialect) -> str:
    """A new table of columns with declared types."""
    listed = ", ".join(_declared(column, dialect) for column in columns)
    return f"CREATE TABLE {_quoted(schema, name, dialect)} ({listed})"


def add_column(schema: str | None, name: str, column: Column, dialect: sa.Dialect) -> str:
    """A new column of a table that is there."""
    return f"ALTER TABLE {_quoted(schema, name, dialect)} ADD COLUMN {_declared(column, dialect)}"


def create_index(schema: str | None, name: str, column: str, dialect: sa.Dialect, taken: Callable[[str], bool]) -> str:
    """An index that begins with the column, under the first of its names that is not `taken`."""
    value: sa.Column[Any] = sa.Column(quoted_name(column, quote=True))
    within = None if schema is None else quoted_name(schema, quote=True)
    sa.Table(quoted_name(name, quote=True), sa.MetaData(schema=within), value)
    longest = dialect.max_index_name_length or dialect.max_identifier_length
    names = (_within(longest, f"ix_{name}_{column}{again}") for again in chain([""], map("_{}".format, count(2))))
    index = sa.Index(quoted_name(next(each for each in names if not taken(each)), quote=True), value)
    return str(sa.schema.CreateIndex(index).compile(dialect=dialect)).strip()


def printed(statement: str, dialect: sa.Dialect) -> str:
    """A statement as a person would type it: without the doubled percent signs that some drivers want."""
    return (statement.replace("%%", "%") if dialect.paramstyle in ("format", "pyformat") else statement) + ";"


def _within(longest: int, name: str) -> str:
    """The name; one that is too long ends in a hash of itself. Some databases count bytes, none fewer characters."""
    whole = name.encode()
    if len(whole) <= longest:
        return name
    end = f"_{sha256(whole).hexdigest()[:8]}"
    return whole[: longest - len(end)].decode(errors="ignore") + end


def _quoted(schema: str | None, name: str, dialect: sa.Dialect) -> str:
    return str(dialect.identifier_preparer.format_table(named(schema, name)))


def _declared(column: Column, dialect: sa.Dialect) -> str:
    return f"{dialect.identifier_preparer.quote_identifier(column.name)} {column.declared}"
