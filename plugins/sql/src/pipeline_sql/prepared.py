"""Statements of SQLAlchemy Core, compiled once and run on the driver's own cursor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import sqlalchemy as sa

Row = dict[str, Any]  # by column


class Direct(NamedTuple):
    """A pooled connection of the driver's own, of which SQLAlchemy keeps no transaction."""

    dialect: sa.Dialect
    connection: sa.PoolProxiedConnection


Connected = sa.Connection | Direct


def scalar(connection: Connected, sql: str) -> Any:
    """The one value of a query without parameters, in the database's own SQL."""
    with closing(connection.connection.cursor()) as cursor:
        cursor.execute(sql)
        ((value,),) = cursor.fetchall()
        return value


class Prepared:
    """One statement. SQLAlchemy writes the SQL of each dialect; the driver runs it.

    A claim is seven short statements, and SQLAlchemy's way to run one costs several times what the database takes for
    it. Only for plain integers and text, which every driver passes as they are, and inside a transaction of `Engine`.
    """

    def __init__(self, statement: sa.ClauseElement) -> None:
        self._statement = statement
        self._compiled: dict[tuple[str, ...], _Compiled] = {}

    def rows(self, connection: Connected, values: Mapping[str, Any]) -> list[Row]:
        """Runs it; the rows found."""
        compiled = self._for(connection, values)
        cursor = connection.connection.cursor()
        try:
            cursor.execute(compiled.sql, compiled.parameters(values))
            if compiled.names is None:
                compiled.names = [column[0] for column in cursor.description]
            return [dict(zip(compiled.names, row, strict=True)) for row in cursor.fetchall()]
        finally:
            cursor.close()

    def run(self, connection: Connected, many: Sequence[Mapping[str, Any]]) -> None:
        """Runs it once for each of `many`, which all have the same keys: an update sets the columns among them."""
        compiled = self._for(connection, many[0])
        cursor = connection.connection.cursor()
        try:
            if len(many) == 1:
                cursor.execute(compiled.sql, compiled.parameters(many[0]))
            else:
                cursor.executemany(compiled.sql, [compiled.parameters(values) for values in many])
        finally:
            cursor.close()

    def _for(self, connection: Connected, values: Mapping[str, Any]) -> _Compiled:
        key = (connection.dialect.name, connection.dialect.driver, *values)
        compiled = self._compiled.get(key)
        if compiled is None:
            # Only for what writes by itself: an update inside a WITH would set every column that shares a name.
            columns = list(values) if isinstance(self._statement, sa.Insert | sa.Update) else None
            compiled = self._compiled[key] = _Compiled(
                self._statement.compile(dialect=connection.dialect, column_keys=columns)
            )
        return compiled


class _Compiled:
    def __init__(self, compiled: sa.Compiled) -> None:
        self.sql = str(compiled)
        self.names: list[str] | None = None  # of the columns found: psycopg takes long to tell
        self._constants = {name: value for name, value in compiled.params.items() if value is not None}
        order = getattr(compiled, "positiontup", None)
        self._order = None if order is None else tuple(order)

    def parameters(self, values: Mapping[str, Any]) -> Any:
        """What the driver takes: a tuple in the order of the SQL, or a mapping, as the dialect's style is."""
        all_values = {**self._constants, **values}
        return all_values if self._order is None else tuple(map(all_values.__getitem__, self._order))
