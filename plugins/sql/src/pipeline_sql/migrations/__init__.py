"""Brings a database's tables to the version that this code works with."""

from __future__ import annotations

import threading
from pathlib import Path

import sqlalchemy as sa

from pipeline_core.errors import SideError
from pipeline_sql.engines.default import Engine
from pipeline_sql.schema import HEAD, VERSION_TABLE

_ALEMBIC = threading.Lock()  # Alembic keeps the migration that runs in module globals


def migrate(engine: Engine) -> None:
    """Makes or updates the tables, one process at a time. Raises SideError where they are newer than this code."""
    with engine.reading() as connection:
        if _version(connection) == HEAD:
            return
    with engine.migrating() as connection:
        if _version(connection) != HEAD:  # another process may have been faster
            _upgrade(connection, engine.place)


def _version(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    version: str | None = connection.execute(
        sa.select(sa.column("version_num")).select_from(sa.table(VERSION_TABLE))
    ).scalar()
    return version


def _upgrade(connection: sa.Connection, place: str) -> None:
    # Alembic takes a seventh of a second to import, and almost every opening finds nothing to do.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes.update(connection=connection, version_table=VERSION_TABLE)
    found = _version(connection)
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if found is not None and found not in known:
        raise SideError(
            f"{place}: its record store has schema version {found!r}, this code knows up to {HEAD!r}; "
            "upgrade windowed-pipeline-sql"
        )
    with _ALEMBIC:
        command.upgrade(config, HEAD)
