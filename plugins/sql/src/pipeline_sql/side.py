"""A table together with its timestamp column: what every verb of the connector starts from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from attrs import field, frozen

from pipeline_core import Window
from pipeline_sql.tables import Column, Range, Table, named_column
from pipeline_sql.timestamps import Timestamps


@frozen
class Side:
    """The table as it is now, and which of its rows are the side's.

    `indexed`: a range of the timestamp column is found without reading the whole table. `scope`: the values that the
    rows hold, by column. `rows`: the condition that holds for them and for no other row of the table.
    """

    table: Table
    timestamp: Column
    timestamps: Timestamps
    indexed: bool
    scope: Mapping[str, Any] = field(factory=dict)
    rows: sa.ColumnElement[bool] = field(factory=sa.true)

    def ranges(self, window: Window) -> list[Range]:
        """The window as disjoint ranges of stored values."""
        return self.timestamps.ranges(window)

    def conditions(self, window: Window) -> list[sa.ColumnElement[bool]]:
        """The side's rows of the window, as conditions of which each row meets one at most: one for each range, or
        one for a whole scan.
        """
        value = named_column(self.timestamp.name)
        each = [sa.and_(value >= low, value < high) for low, high in self.ranges(window)]
        each = each if self.indexed or not each else [sa.or_(*each)]
        return [sa.and_(self.rows, one) for one in each]
