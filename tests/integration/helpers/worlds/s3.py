"""SQLite, with a stage in a bucket of an S3 server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from worlds.sqlite import SqliteWorld


class S3StageWorld(SqliteWorld):
    """What is staged lies in a bucket of its own; only the stage has a server that can die."""

    server = "s3_server"

    def __init__(self, folder: Path, server: Any) -> None:
        self._server = server
        self._bucket = server.new_bucket()
        super().__init__(folder)

    @property
    def store(self) -> Any:
        """The bucket by obstore."""
        return self._server.store(self._bucket)

    def config(self, **changes: Any) -> dict[str, Any]:
        return super().config() | {"stage": self._server.settings(self._bucket)} | changes

    def staged(self) -> list[Path]:
        import obstore

        return sorted(Path(each["path"]) for each in obstore.list(self.store).collect())

    def unfinished(self) -> list[str]:
        """Uploads that were begun, and neither completed nor aborted."""
        return list(self._server.unfinished(self._bucket))

    def kill_server(self) -> None:
        self._server.stop()

    def start_server(self) -> None:
        self._server.start()
