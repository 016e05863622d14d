"""What a database's types mean in Arrow, both ways. Each engine brings its own; SQLite's are in `sqlite_types`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol

import pyarrow as pa

from pipeline_sql.tables import Column
from pipeline_sql.timestamps import Timestamps

#: What Arrow and Python raise for a value that does not fit a type.
MISFIT: Final = (pa.ArrowException, ValueError, TypeError, ArithmeticError)


class Types(Protocol):
    """An engine's types."""

    def timestamps(self, place: str, column: Column, timezone: str | None, unit: str | None) -> Timestamps:
        """How the timestamp column stores instants. Raises SideError where the settings do not fit its type."""
        ...

    def needs_sample(self, column: Column) -> bool:
        """Whether the declared type leaves open what the column holds, so that a first value must tell."""
        ...

    def arrow(self, column: Column, sample: object) -> pa.DataType | None:
        """The Arrow type of a column; None where the declared type is unknown. `sample` is None without a value."""
        ...

    def read(self, values: Sequence[Any], arrow: pa.DataType) -> pa.Array:
        """Stored values in Arrow. Raises one of MISFIT where a value is not of the type."""
        ...

    def timestamp_declaration(self, timezone: str | None, unit: str | None) -> str:
        """The type to declare for a timestamp column of these settings."""
        ...

    def declaration(self, arrow: pa.DataType) -> str | None:
        """The type to declare for a staged column; None where there is none that keeps its meaning."""
        ...

    def accepts(self, column: Column, arrow: pa.DataType) -> bool:
        """Whether a column can hold values of a staged type at all."""
        ...

    def write(self, array: pa.Array, column: Column) -> Any:
        """Staged values as the engine's upload takes them: a list, or an Arrow array.

        Raises one of MISFIT where a value would not survive.
        """
        ...
