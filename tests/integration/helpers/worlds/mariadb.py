"""MariaDB: three databases of one server."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

from worlds.base import World

_OTHERS = "from information_schema.processlist where db = database() and id <> connection_id()"


class MariaDbWorld(World):
    """A server notices that a client was killed when it next reads from it."""

    server = "mariadb_server"
    placeholder = "%s"
    columns = "id integer primary key, ts datetime(6) not null, value double, note longtext character set utf8mb4"

    def __init__(self, folder: Path, server: Any) -> None:
        self._server = server
        self._databases = {name: server.new_database() for name in ("source", "target", "records")}
        super().__init__(folder)

    def url(self, name: str) -> str:
        return str(self._server.url(self._databases[name]))

    def connection(self, name: str) -> Any:
        return self._server.connect(self._databases[name])

    def tables(self) -> set[str]:
        return {name for (name,) in self.query("target", "show tables")}

    def forget(self) -> None:
        self._databases["records"] = self._server.new_database()

    def quiet(self) -> None:
        for _ in range(600):
            if not self.query("target", f"select 1 {_OTHERS}"):
                return
            time.sleep(0.05)
        raise AssertionError("a killed worker's session never ended")

    def cut_off(self) -> None:
        in_transaction = (
            f"select id {_OTHERS} and id in (select trx_mysql_thread_id from information_schema.innodb_trx)"
        )
        ((stuck,),) = self.query("target", in_transaction)
        self.query("target", f"kill {stuck}")

    def kill_server(self) -> None:
        self._server.stop(signal.SIGKILL)

    def start_server(self) -> None:
        self._server.start()
