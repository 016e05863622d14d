"""DuckDB: source and target are files of it, the store is a SQLite file; all in the world's folder."""

from __future__ import annotations

import sqlite3
from typing import Any

from worlds.base import World


class DuckDbWorld(World):
    """One process at a time has a file open: for a step, and to its end where it is stopped inside one."""

    one_writer = True
    processes = 3  # each waits while another has the file
    untold = frozenset({"uploading"})  # it reads the staged files by itself

    def url(self, name: str) -> str:
        assert name == "records", "a DuckDB side has a path"
        return f"sqlite:///{self.folder / 'records.db'}"

    def connection(self, name: str) -> Any:
        import duckdb

        if name == "records":
            return sqlite3.connect(self.folder / "records.db", isolation_level=None)
        return duckdb.connect(str(self.folder / f"{name}.duckdb"))

    def side(self, name: str) -> dict[str, Any]:
        section = {"type": "duckdb", "table": "events", "timestamp_column": "ts", "timestamp_timezone": "UTC"}
        path = str(self.folder / f"{name}.duckdb")
        return {**section, "path": path, **({"create": True} if name == "target" else {})}

    def tables(self) -> set[str]:
        return {name for (name,) in self.query("target", "select table_name from duckdb_tables()")}

    def forget(self) -> None:
        (self.folder / "records.db").unlink()

    def assert_whole(self) -> None:
        super().assert_whole()
        assert list(self.folder.glob("*.scratch-*")) == []
