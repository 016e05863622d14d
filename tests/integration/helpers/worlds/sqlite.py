"""SQLite: three files in the world's folder."""

from __future__ import annotations

import sqlite3
from datetime import datetime
from typing import Any

from worlds.base import World


class SqliteWorld(World):
    """Whoever writes has the file's only lock."""

    one_writer = True

    def url(self, name: str) -> str:
        return f"sqlite:///{self.folder / name}.db"

    def connection(self, name: str) -> sqlite3.Connection:
        return sqlite3.connect(self.folder / f"{name}.db", isolation_level=None)

    def rows(self, name: str) -> list[tuple[Any, ...]]:
        return [(a, datetime.fromisoformat(b).replace(tzinfo=None), c, d) for a, b, c, d in super().rows(name)]

    def tables(self) -> set[str]:
        return {name for (name,) in self.query("target", "select name from sqlite_master where type = 'table'")}

    def forget(self) -> None:
        (self.folder / "records.db").unlink()
