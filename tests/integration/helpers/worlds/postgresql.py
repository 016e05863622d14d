"""PostgreSQL: three databases of one server."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any, ClassVar

from worlds.base import World

_OTHERS = "from pg_stat_activity where application_name = 'pipeline-core' and datname = current_database()"


class PostgresWorld(World):
    """A server notices that a client was killed when it next reads from it."""

    server = "postgres_server"
    placeholder = "%s"

    _emptied: ClassVar[list[str]] = []  # of the one server of these tests; making a database takes longer than emptying

    def __init__(self, folder: Path, server: Any) -> None:
        self._server = server
        self._databases = {name: self._empty_database() for name in ("source", "target", "records")}
        super().__init__(folder)

    def _empty_database(self) -> str:
        return self._emptied.pop() if self._emptied else str(self._server.new_database())

    def close(self) -> None:
        super().close()
        for name, database in self._databases.items():
            self.query(name, f"select pg_terminate_backend(pid) {_OTHERS}")
            self.query(name, "drop schema public cascade; create schema public")
            self._emptied.append(database)

    def url(self, name: str) -> str:
        return str(self._server.url(self._databases[name]))

    def connection(self, name: str) -> Any:
        import psycopg

        return psycopg.connect(self._server.dsn(self._databases[name]), autocommit=True)

    def tables(self) -> set[str]:
        # Temporary tables end with their session; those of a server that was killed, when it next tidies up.
        listed = (
            "select relname from pg_class where relkind = 'r' and relpersistence = 'p' "
            "and relnamespace = 'public'::regnamespace"
        )
        return {name for (name,) in self.query("target", listed)}

    def forget(self) -> None:
        self._databases["records"] = self._empty_database()

    def quiet(self) -> None:
        for _ in range(600):
            if not self.query("target", f"select 1 {_OTHERS}"):
                return
            time.sleep(0.05)
        raise AssertionError("a killed worker's session never ended")

    def cut_off(self) -> None:
        stuck = f"select pg_terminate_backend(pid) {_OTHERS} and state = 'idle in transaction'"
        assert self.query("target", stuck) == [(True,)]

    def kill_server(self) -> None:
        self._server.stop(signal.SIGQUIT)

    def start_server(self) -> None:
        self._server.start()
