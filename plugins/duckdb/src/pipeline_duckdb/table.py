"""A table as DuckDB describes it."""

from __future__ import annotations

import string
from collections.abc import Sequence

import duckdb
from attrs import frozen
from duckdb.sqltypes import DuckDBPyType

from pipeline_duckdb.database import quoted

_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


@frozen
class Column:
    """A column. `required`: an insert must give it a value."""

    name: str
    type: DuckDBPyType
    required: bool = False
    generated: bool = False


@frozen
class Table:
    """A table or view. `sql` is its full name, quoted."""

    schema: str
    name: str
    sql: str
    columns: tuple[Column, ...]
    view: bool


def fold(name: str) -> str:
    """What two names have in common when DuckDB takes them for the same: it folds ASCII letters and no others."""
    return name.translate(_LOWER)


def split(name: str) -> tuple[str, str]:
    """`schema.table` or `table`, which is in `main`. Only the first dot parts."""
    first, dot, rest = name.partition(".")
    return (first, rest) if dot else ("main", first)


def qualified(connection: duckdb.DuckDBPyConnection, schema: str, name: str) -> str:
    """A name of the opened file, quoted: never one of a temporary table, or of a schema called like the file."""
    (catalog,) = connection.execute("SELECT current_database()").fetchall()[0]
    return ".".join(map(quoted, (catalog, schema, name)))


def find(connection: duckdb.DuckDBPyConnection, schema: str, name: str) -> Table | None:
    """The table or view of that name; None where there is none."""
    for found_schema, found, view in _listed(connection):
        if (fold(found_schema), fold(found)) == (fold(schema), fold(name)):
            sql = qualified(connection, found_schema, found)
            return Table(found_schema, found, sql, _columns(connection, sql, found_schema, found), view)
    return None


def names(connection: duckdb.DuckDBPyConnection, schema: str) -> list[str]:
    """Tables and views of a schema, for messages."""
    return [name for found, name, _ in _listed(connection) if fold(found) == fold(schema)]


def schemas(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """The schemas of the opened file."""
    query = "SELECT schema_name FROM duckdb_schemas() WHERE database_name = current_database()"
    return [name for (name,) in connection.execute(query).fetchall()]


def _listed(connection: duckdb.DuckDBPyConnection) -> list[tuple[str, str, bool]]:
    query = (
        "SELECT schema_name, table_name, false FROM duckdb_tables() WHERE database_name = current_database() "
        "UNION ALL SELECT schema_name, view_name, true FROM duckdb_views() "
        "WHERE database_name = current_database() AND NOT internal"
    )
    return connection.execute(query).fetchall()


def _columns(connection: duckdb.DuckDBPyConnection, sql: str, schema: str, name: str) -> tuple[Column, ...]:
    rows = connection.execute(
        "SELECT column_name, NOT is_nullable AND column_default IS NULL, coalesce(is_generated, false) "
        "FROM duckdb_columns() WHERE database_name = current_database() AND schema_name = ? AND table_name = ?",
        [schema, name],
    ).fetchall()
    known = {column: (required, generated) for column, required, generated in rows}
    described = connection.sql(f"SELECT * FROM {sql}")  # noqa: S608 - quoted
    return tuple(
        Column(column, kind, *known.get(column, (False, False)))
        for column, kind in zip(described.columns, described.types, strict=True)
    )


def column_of(name: str, columns: Sequence[Column]) -> Column | None:
    """The column of that name, by DuckDB's own case rule."""
    return next((each for each in columns if fold(each.name) == fold(name)), None)
