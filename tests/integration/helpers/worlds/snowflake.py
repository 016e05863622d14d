"""Snowflake, which the stand-in plays: source and target are schemas of a database, the store is a SQLite file."""

from __future__ import annotations

import signal
import sqlite3
from itertools import count
from pathlib import Path
from typing import Any

from worlds.base import World

_NUMBERS = count()


class SnowflakeWorld(World):
    """A server that never notices that a client was killed, but ends its transaction once it is in others' way."""

    server = "snowflake_server"
    processes = 3  # publications queue for the ledger
    keeps_records = False
    everywhere = False  # a process takes seconds to load the connector and to sign in
    kills = 1
    columns = "id number(18, 0), ts timestamp_ntz not null, value float, note varchar"

    def __init__(self, folder: Path, server: Any) -> None:
        self._server = server
        self._database = f"WORLD{next(_NUMBERS)}"
        super().__init__(folder)

    def url(self, name: str) -> str:
        assert name == "records", "a Snowflake side has an account"
        return f"sqlite:///{self.folder / 'records.db'}"

    def connection(self, name: str) -> Any:
        import snowflake.connector

        if name == "records":
            return sqlite3.connect(self.folder / "records.db", isolation_level=None)
        return snowflake.connector.connect(
            **self._server.options(self._database, name.upper()),
            paramstyle="qmark",
            autocommit=True,
            enable_server_session_keep_alive_auto_detection=False,
        )

    def fill(self) -> None:
        self.query("source", f"create table events ({self.columns})")
        self.insert(range(0, 11 * 60, 7))
        self.insert(range(60, 11 * 60, 60), first_id=10_000)

    def side(self, name: str) -> dict[str, Any]:
        section = {"type": "snowflake", "table": "events", "timestamp_column": "ts", "timestamp_timezone": "UTC"}
        options = self._server.options(self._database, name.upper())
        patience = {"timeout_s": 30, "login_timeout_s": 10}
        return {**section, **options, **patience, **({"create": True} if name == "target" else {})}

    def tables(self) -> set[str]:
        listed = "select table_name from information_schema.tables where table_schema = 'TARGET'"
        return {name.lower() for (name,) in self.query("target", listed)}

    def forget(self) -> None:
        (self.folder / "records.db").unlink()

    def cut_off(self) -> None:
        pass  # it does so itself, as soon as another worker waits

    def kill_server(self) -> None:
        self._server.stop(signal.SIGKILL)

    def start_server(self) -> None:
        self._server.start()
