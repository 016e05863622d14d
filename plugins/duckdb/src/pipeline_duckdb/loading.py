"""What becomes of each staged column in the target: its name, its type, and whether its values survive."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import duckdb
import pyarrow as pa
from attrs import frozen
from duckdb.sqltypes import DuckDBPyType

from pipeline_core import PermanentError, SideError, Window
from pipeline_core.contracts import target_names
from pipeline_core.errors import nearest
from pipeline_duckdb import types
from pipeline_duckdb.database import quoted
from pipeline_duckdb.side import Side, equals
from pipeline_duckdb.table import Column, Table, column_of, fold
from pipeline_duckdb.timestamps import INSTANTS, floored, ticks


@frozen
class StagedColumn:
    """A staged column: what the source and the target call it, what DuckDB does, and as what DuckDB reads it."""

    source: str
    name: str
    read_as: str
    type: DuckDBPyType

    @property
    def sql(self) -> str:
        return quoted(self.read_as)

    @property
    def instant_us(self) -> str:
        """Its instants in microseconds UTC, finer ones truncated, in SQL."""
        scale = INSTANTS[self.type.id]
        return floored(ticks(self.sql, scale), scale)


def staged_columns(
    connection: duckdb.DuckDBPyConnection, schema: pa.Schema, relation: str, renames: Mapping[str, str], place: str
) -> list[StagedColumn]:
    """The staged columns, in order. Raises PermanentError for a rename of nothing, or a clash of names."""
    names = target_names(schema.names, renames, place, fold)
    read = connection.sql(f"SELECT * FROM {relation}")  # noqa: S608 - quoted
    return [
        StagedColumn(source, name, read_as, kind)
        for source, name, read_as, kind in zip(schema.names, names, read.columns, read.types, strict=True)
    ]


def declarations(columns: Sequence[StagedColumn], timestamp: str, timezone: str | None, place: str) -> list[str]:
    """The columns of a table to be made for staged ones, in SQL; the timestamp column as the settings say."""
    _check_has_timestamp(timestamp, columns, place)
    found = []
    for column in columns:
        if fold(column.name) == fold(timestamp):
            found.append(f"{quoted(column.name)} {'TIMESTAMPTZ' if timezone is None else 'TIMESTAMP'}")
        else:
            found.append(declared(column, place))
    return found


def declared(column: StagedColumn, place: str) -> str:
    """A column to be made for a staged one, in SQL. Raises PermanentError where no type keeps what it means."""
    if types.kind(column.type) in ("null", "unknown"):
        raise PermanentError(
            f"{place}: column {column.name!r}: no type of the target keeps what the staged {column.type} means; "
            "exclude it at the source, or make the column yourself"
        )
    return f"{quoted(column.name)} {column.type}"


@frozen
class Loading:
    """How staged rows become rows of the target: each column, and the staged one that fills it."""

    place: str
    side: Side
    pairs: Sequence[tuple[Column, StagedColumn]]

    def insert(self, relation: str, window: Window) -> str:
        """The statement that inserts every row."""
        into = ", ".join(quoted(column.name) for column, _ in self.pairs)
        values = ", ".join(self._value(column, staged, window) for column, staged in self.pairs)
        return f"INSERT INTO {self.side.table.sql} ({into}) SELECT {values} FROM {relation}"  # noqa: S608 - quoted

    def _value(self, column: Column, staged: StagedColumn, window: Window) -> str:
        if column == self.side.timestamp:
            return self.side.timestamps.stored(staged.instant_us, window)
        return staged.sql if str(column.type) == str(staged.type) else f"CAST({staged.sql} AS {column.type})"

    def check(self, connection: duckdb.DuckDBPyConnection, relation: str, window: Window) -> None:
        """Looks at every staged value that could be lost. Raises PermanentError for one that would be."""
        (us,) = (staged.instant_us for column, staged in self.pairs if column == self.side.timestamp)
        risky = [
            (column, staged, condition)
            for column, staged in self.pairs
            if column != self.side.timestamp and (condition := types.lost(staged.sql, column.type, staged.type))
        ]
        asked = [
            f"count(*) - count({us})",
            f"min({us})",
            f"max({us})",
            _times(f"{us} % {self.side.timestamps.step_us} <> 0"),
        ]
        limits = [(staged.sql, self.side.scope[c.name]) for c, staged in self.pairs if c.name in self.side.scope]
        strangers = [f"({equals(sql, value)}) IS NOT TRUE" for sql, value in limits]
        asked += [_times(each) for each in strangers]
        asked += [_times(condition) for _, _, condition in risky]
        asked += [f"any_value({sql}) FILTER (WHERE {each})" for (sql, _), each in zip(limits, strangers, strict=True)]
        ((missing, least, most, between, *others),) = connection.execute(
            f"SELECT {', '.join(asked)} FROM {relation}"  # noqa: S608 - quoted
        ).fetchall()
        self._check_instants(window, missing, [us for us in (least, most) if us is not None], between)
        counted, damaged = others[: len(limits)], others[len(limits) : len(limits) + len(risky)]
        self._check_scope(limits, counted, others[len(limits) + len(risky) :])
        for (column, staged, _), rows in zip(risky, damaged, strict=True):
            if rows:
                raise PermanentError(
                    f"{self.place}, column {column.name!r}: {rows} staged values of type {staged.type} do not survive "
                    f"in a column declared {column.type}; declare the column wider, or exclude it at the source"
                )

    def _check_scope(
        self, limits: Sequence[tuple[str, object]], counted: Sequence[int], found: Sequence[object]
    ) -> None:
        for (sql, value), rows, stranger in zip(limits, counted, found, strict=True):
            if rows:
                raise PermanentError(
                    f"{self.place}, column {sql}: found {rows} staged rows outside the scope, such as one of "
                    f"{_shown(stranger)}, expected {value!r}, to which scope limits this pipeline; leave such rows "
                    "out at the source, or correct the scope"
                )

    def _check_instants(self, window: Window, missing: int, ends: Sequence[int], between: int) -> None:
        place = f"{self.place}, column {self.side.timestamp.name!r}"
        if missing:
            raise PermanentError(f"{place}: found {missing} rows of window {window} without a timestamp; fill it")
        for us in ends:
            if not window.start_us <= us < window.end_us:
                raise PermanentError(
                    f"{place}: found a row at {us} us since 1970, outside window {window}; correct the row"
                )
        if between:
            raise PermanentError(
                f"{place}: found {between} timestamps finer than its type {self.side.timestamp.type}, which would be "
                "changed by it; declare the column TIMESTAMP, or truncate at the source"
            )


def plan(columns: Sequence[StagedColumn], side: Side, place: str, *, ignore: bool = False) -> Loading:
    """Matches staged columns with a table's; where `ignore` is set, what has no place is left out.

    Raises PermanentError for one that has no place, or cannot be held, SideError where the timestamp column or one of
    the scope gets none.
    """
    table, timestamp = side.table, side.timestamp
    _check_has_timestamp(timestamp.name, columns, place)
    check_named(side.scope, columns, place)
    placed = [staged for staged in columns if not ignore or column_of(staged.name, table.columns)]
    pairs = [(_matched(staged, table, place), staged) for staged in placed]
    filled = [column for column, _ in pairs]
    unfilled = [column.name for column in table.columns if column.required and column not in filled]
    if unfilled:
        raise PermanentError(
            f"{place}: the columns {unfilled} are NOT NULL without a default, and no staged column fills them; "
            "rename one under [columns], give them a default, or allow NULL"
        )
    for column, staged in pairs:
        if column == timestamp:
            _check_timestamp(staged, column, place)
        elif not types.accepts(column.type, staged.type):
            raise PermanentError(
                f"{place}: column {column.name!r} is declared {column.type} and cannot hold the staged {staged.type}; "
                "change the column's type, or exclude it at the source"
            )
    return Loading(place, side, pairs)


def check_named(scope: Iterable[str], columns: Sequence[StagedColumn], place: str) -> None:
    """Raises SideError for columns of the scope that no staged column becomes."""
    staged = {fold(column.name) for column in columns}
    unsaid = sorted(name for name in scope if fold(name) not in staged)
    if unsaid:
        raise SideError(
            f"{place}: scope limits this pipeline by the columns {unsaid}, which no staged column becomes "
            f"({nearest(unsaid[0], [column.name for column in columns])}); extract them, or rename one under [columns]"
        )


def _matched(staged: StagedColumn, table: Table, place: str) -> Column:
    column = column_of(staged.name, table.columns)
    if column is None:
        raise PermanentError(
            f"{place}: it has no column for the staged {staged.name!r} "
            f"({nearest(staged.name, [each.name for each in table.columns])}); "
            "add the column, rename it under [columns], exclude it at the source, or set new_columns on the target"
        )
    if column.generated:
        raise PermanentError(
            f"{place}: column {column.name!r} is generated; exclude {staged.name!r} at the source, or rename it"
        )
    return column


def _check_timestamp(staged: StagedColumn, column: Column, place: str) -> None:
    if staged.type.id not in INSTANTS:
        raise PermanentError(
            f"{place}: column {column.name!r} is the timestamp column, and the staged {staged.source!r} is "
            f"{staged.type}; expected a timestamp with a zone: rename the source's timestamp column to it under "
            "[columns]"
        )


def _check_has_timestamp(name: str, columns: Sequence[StagedColumn], place: str) -> None:
    if not any(fold(column.name) == fold(name) for column in columns):
        raise SideError(
            f"{place}: no staged column becomes its timestamp column {name!r} "
            f"({nearest(name, [column.name for column in columns])}); rename one under [columns], or correct "
            "timestamp_column"
        )


def _times(condition: str) -> str:
    return f"count(*) FILTER (WHERE {condition})"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
