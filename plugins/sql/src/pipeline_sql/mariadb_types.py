"""MariaDB's types. The database keeps each value in its column's own type, so that only the way there is checked.

Both ways the values are text on the wire: extraction parses what the server writes, and an upload writes the lines of
`LOAD DATA`. The server is strict, yet some things it changes without a word: a fraction of a second that is too fine,
spaces at the end of a text, an enumeration's case. They are refused here, by the column's name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final, Literal
from uuid import UUID

import pyarrow as pa
import pyarrow.compute as pc
from attrs import frozen

from pipeline_sql.kinds import as_json, check_fraction, decimal, exact, read_bool, read_text_form, read_time, unpacked
from pipeline_sql.kinds import kind as kind_of
from pipeline_sql.kinds import plain as plain_of
from pipeline_sql.tables import Column
from pipeline_sql.timestamps import INSTANT, Moments, Timestamps, native

_NAIVE: Final = pa.timestamp("us")
_TIME: Final = pa.time64("us")
_INTEGERS = {
    "tinyint": pa.int8(),
    "smallint": pa.int16(),
    "mediumint": pa.int32(),
    "int": pa.int32(),
    "bigint": pa.int64(),
    "tinyint unsigned": pa.uint8(),
    "smallint unsigned": pa.uint16(),
    "mediumint unsigned": pa.uint32(),
    "int unsigned": pa.uint32(),
    "bigint unsigned": pa.uint64(),
    "year": pa.int16(),
}
_FLOATS = {"float": pa.float32(), "double": pa.float64()}
_TEXTS = ("char", "varchar", "tinytext", "text", "mediumtext", "longtext")
_BINARIES = ("binary", "varbinary", "tinyblob", "blob", "mediumblob", "longblob")
_PLAIN: Final[dict[str, pa.DataType]] = {
    "boolean": pa.bool_(),
    **_INTEGERS,
    **_FLOATS,
    **dict.fromkeys(_TEXTS, pa.string()),
    "enum": pa.string(),
    "json": pa.string(),
    "uuid": pa.string(),
    **dict.fromkeys(_BINARIES, pa.binary()),
    "date": pa.date32(),
    "time": _TIME,
    "datetime": _NAIVE,
    "timestamp": INSTANT,
}
_WIDEST, _FINEST_SCALE = 65, 38  # digits of a decimal, all of them and those behind the point
_FINEST = 6  # digits of a second's fraction
_HOLDS: Final[dict[str, Literal["numbers", "local times", "instants"]]] = {
    **dict.fromkeys(("int", "int unsigned", "bigint", "bigint unsigned"), "numbers"),
    "datetime": "local times",
    "timestamp": "instants",
}
_DECLARATIONS: Final = {
    pa.bool_(): "boolean",
    pa.int8(): "tinyint",
    pa.uint8(): "tinyint unsigned",
    pa.int16(): "smallint",
    pa.uint16(): "smallint unsigned",
    pa.int32(): "int",
    pa.uint32(): "int unsigned",
    pa.int64(): "bigint",
    pa.uint64(): "bigint unsigned",
    pa.float16(): "float",
    pa.float32(): "float",
    pa.float64(): "double",
}
# A timestamp without NULL would fill itself with the time of day. A database's own character set may hold few letters.
_INSTANT = "timestamp(6) null"
_BY_KIND: Final = {
    "text": "longtext character set utf8mb4",
    "binary": "longblob",
    "date": "date",
    "time": "time(6)",
    "naive": "datetime(6)",
    "instant": _INSTANT,
    "nested": "json",
}
_TAKES: Final[dict[str, set[str]]] = {
    "boolean": {"bool"},
    "decimal": {"int", "decimal"},
    "json": {"text", "nested"},
    **{key: {"int"} for key in _INTEGERS},
    **{key: {"int", "float"} for key in _FLOATS},
    **{key: {"text"} for key in (*_TEXTS, "enum", "uuid")},
    **{key: {"binary"} for key in _BINARIES},
    "date": {"date"},
    "time": {"time"},
    "datetime": {"naive"},
    "timestamp": {"instant"},
}


@frozen
class MariaDbColumn(Column):
    """A column, with its type's short name. `length` is in characters, or in bytes of a binary type.

    `digits`: precision and scale of a decimal. `fraction`: the digits of a second's fraction. `counts_up`: NULL stands
    for the next number.
    """

    type: str = ""
    length: int | None = None
    digits: tuple[int, int] | None = None
    fraction: int = _FINEST
    counts_up: bool = False


class MariaDbTypes:
    """MariaDB's types, by the names of its own catalog."""

    def column(  # noqa: PLR0917 - one argument a column of the catalog
        self,
        name: str,
        declared: str,
        extra: str,
        required: int,
        length: int | None,
        precision_: int | None,
        scale: int | None,
        fraction: int | None,
        checks: Collection[str],
    ) -> MariaDbColumn:
        """A column as the catalog describes it; `checks` are the table's, of which one tells what holds JSON."""
        quoted = "`" + name.replace("`", "``") + "`"
        counts_up = "auto_increment" in extra
        generated = "GENERATED" in extra
        return MariaDbColumn(
            name,
            declared,
            required=bool(required) and not counts_up and not generated,
            generated=generated,
            type="json" if f"json_valid({quoted})" in checks else _type_name(declared),
            length=length,
            digits=None if precision_ is None or scale is None else (precision_, scale),
            fraction=_FINEST if fraction is None else fraction,
            counts_up=counts_up,
        )

    def is_single(self, column: Column) -> bool:
        """Whether it holds numbers of single precision."""
        return _of(column).type == "float"

    def scratch_type(self, column: Column) -> str:
        """A type as wide as the column's, or wider: what does not fit is refused where it is inserted."""
        of = _of(column)
        kind = kind_of(_PLAIN.get(of.type, pa.null()))
        return _BY_KIND[kind] if kind in ("text", "binary", "naive", "instant") else of.declared

    def timestamps(self, place: str, column: Column, timezone: str | None, unit: str | None) -> Timestamps:
        holds = _HOLDS.get(_of(column).type)
        return native(place, column.declared, holds, timezone=timezone, unit=unit, moments=_Texts)

    def needs_sample(self, column: Column) -> bool:
        del column
        return False

    def arrow(self, column: Column, sample: object) -> pa.DataType | None:
        del sample
        of = _of(column)
        return decimal(*of.digits) if of.type == "decimal" and of.digits else _PLAIN.get(of.type)

    def read(self, values: Sequence[Any], arrow: pa.DataType) -> pa.Array:
        return _READERS.get(kind_of(arrow), pa.array)(values, arrow)

    def timestamp_declaration(self, timezone: str | None, unit: str | None) -> str:
        if unit is not None:
            return "bigint"
        return _INSTANT if timezone is None else "datetime(6)"

    def declaration(self, arrow: pa.DataType) -> str | None:
        arrow = plain_of(arrow)
        kind = kind_of(arrow)
        if kind == "decimal":
            fits = arrow.precision <= _WIDEST and 0 <= arrow.scale <= _FINEST_SCALE
            return f"decimal({arrow.precision},{arrow.scale})" if fits else None
        return _DECLARATIONS.get(arrow) or _BY_KIND.get(kind)

    def accepts(self, column: Column, arrow: pa.DataType) -> bool:
        takes = _TAKES.get(_of(column).type)
        kind = kind_of(plain_of(arrow))
        return takes is not None and (kind == "null" or kind in takes)

    def write(self, array: pa.Array, column: Column) -> Any:
        """The values as an Arrow array of the column's own type."""
        of, array = _of(column), unpacked(array)
        target = self.arrow(column, None)
        if of.counts_up and array.null_count:
            raise ValueError("a NULL, which the column would replace by its next number")
        if kind_of(array.type) == "null":
            return array.cast(target)
        if of.type == "json" and kind_of(array.type) == "nested":
            array = as_json(array)
        if of.type == "uuid":
            array = pa.array([None if text is None else str(UUID(text)) for text in array.to_pylist()], pa.string())
        written = exact(array, target)
        _check(written, of)
        return written


def _type_name(declared: str) -> str:
    """The short name of a declared type: without a display width, so that `tinyint(1)` is a boolean."""
    if declared == "tinyint(1)":
        return "boolean"
    if re.match(r"(float|double)\(", declared):
        return declared  # rounds to a number of digits behind the point
    name = re.sub(r"\(.*\)", "", declared, flags=re.DOTALL).removesuffix(" zerofill")
    return name if name in _INTEGERS else name.removesuffix(" unsigned")


def _of(column: Column) -> MariaDbColumn:
    if not isinstance(column, MariaDbColumn):
        raise TypeError(f"{column!r} does not come from MariaDB's catalog")
    return column


def _check(array: pa.Array, of: MariaDbColumn) -> None:
    """Raises ValueError for what the column would change without a word."""
    kind = kind_of(array.type)
    if kind == "float" and _any(pc.invert(pc.is_finite(array))):
        raise ValueError("an infinite number, or none, which MariaDB cannot store")
    if kind in ("time", "naive", "instant") and of.fraction < _FINEST:
        check_fraction(array, of.fraction)
    if of.type == "enum" and set(pc.unique(array).to_pylist()) - {*_labels(of.declared), None}:
        raise ValueError("a text that is none of the enumeration's, letter by letter")
    if of.type in ("char", "varchar") and _any(pc.greater(pc.utf8_length(array), of.length)):
        raise ValueError(f"a text of more than {of.length} characters")
    if of.type == "char" and _any(pc.ends_with(array, " ")):
        raise ValueError("a text with a space at its end, which char(n) would lose")
    if of.type == "binary" and _any(pc.not_equal(pc.binary_length(array), of.length)):
        raise ValueError("a value of another length, which binary(n) would fill up")


def _any(found: pa.Array) -> bool:
    return bool(pc.any(found).as_py())


def _labels(declared: str) -> list[str]:
    """The values of an enumeration, as the catalog declares it."""
    return [label.replace("''", "'") for label in re.findall(r"'((?:[^']|'')*)'", declared)]


# --- from MariaDB -----------------------------------------------------------------------------------------------------


def _read_instant(values: Sequence[Any], arrow: pa.DataType) -> pa.Array:
    return read_text_form(values, _NAIVE).cast(arrow)


_READERS: Final[dict[str, Callable[[Sequence[Any], pa.DataType], pa.Array]]] = {
    "bool": read_bool,
    "decimal": read_text_form,
    "date": read_text_form,
    "time": read_time,
    "naive": read_text_form,
    "instant": _read_instant,
}


class _Texts(Moments):
    """Dates and times as the server writes them, in UTC: parsed by Arrow, which is many times as fast as the driver."""

    aware = False

    def check(self, value: object) -> bool:
        return isinstance(value, str)

    def decode(self, values: Sequence[Any]) -> pa.Array:
        if self._zone is None:
            return _read_instant(values, INSTANT)
        return self._meant(read_text_form(values, _NAIVE), self._zone)


# --- to MariaDB -------------------------------------------------------------------------------------------------------


def lines(arrays: Sequence[pa.Array]) -> pa.Buffer:
    """Rows as `LOAD DATA` reads them: a tab between fields, a line end behind each row, `\\N` for NULL."""
    *first, last = map(_field, arrays)
    ended = pc.binary_join_element_wise(last, _bytes(b"\n"), _bytes(b""))
    joined = pc.binary_join_element_wise(*first, ended, _bytes(b"\t"))
    return joined.buffers()[2].slice(0, pc.sum(pc.binary_length(joined)).as_py())


def _field(array: pa.Array) -> pa.Array:
    kind = kind_of(array.type)
    if kind == "bool":
        array = array.cast(pa.int8())
    elif kind == "instant":
        array = pc.local_timestamp(array)
    if kind not in ("text", "binary"):
        return pc.fill_null(array.cast(pa.string()).cast(pa.large_binary()), b"\\N")
    array = array.cast(pa.large_binary())
    for special, escaped in ((b"\\", b"\\\\"), (b"\t", b"\\t"), (b"\n", b"\\n")):
        array = pc.replace_substring(array, special, escaped)
    return pc.fill_null(array, b"\\N")


def _bytes(value: bytes) -> pa.Scalar:
    return pa.scalar(value, pa.large_binary())
