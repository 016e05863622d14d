"""A table together with its timestamp column: what every verb of the connector starts from."""

from __future__ import annotations

import sqlalchemy as sa
from attrs import frozen

from pipeline_core import Window
from pipeline_sql.tables import Column, Range, Table, named_column
from pipeline_sql.timestamps import Timestamps


@frozen
class Side:
    """The table as it is now. `indexed`: a range of the timestamp column is found without reading the whole table."""

    table: Table
    timestamp: Column
    timestamps: Timestamps
    indexed: bool

    def ranges(self, window: Window) -> list[Range]:
        """The window as disjoint ranges of stored values."""
        return self.timestamps.ranges(window)

    def conditions(self, window: Window) -> list[sa.ColumnElement[bool]]:
        """The window as conditions of which each row meets one at most: one for each range, or one for a whole scan."""
        value = named_column(self.timestamp.name)
        each = [sa.and_(value >= low, value < high) for low, high in self.ranges(window)]
        return each if self.indexed or not each else [sa.or_(*each)]
