"""Brings a database's tables to the version that this code works with."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from pipeline_core.errors import SideError
from pipeline_sql.engines.default import Engine
from pipeline_sql.schema import HEAD, VERSION_TABLE

if TYPE_CHECKING:
    from alembic.config import Config

_ALEMBIC = threading.Lock()  # Alembic keeps the migration that runs in module globals
_NOTHING = f"nothing to do: the tables are at version {HEAD}"


def migrate(engine: Engine) -> str:
    """Makes or updates the tables, one process at a time; says what was done.

    Raises SideError where they are newer than this code, or where this user may not change them and it is needed.
    """
    with engine.reading() as connection:
        found = _version(connection)
    if found == HEAD:
        return _NOTHING
    config, known = _alembic()
    try:
        with engine.migrating() as connection:
            found = _version(connection)  # another process may have been faster
            if found != HEAD and found in known:
                _upgrade(connection, config)
    except SideError as error:
        stand = "are not there" if found is None else f"are at version {found}"
        raise SideError(
            f"{error}. The tables of the record store {stand}, this code works with version {HEAD}: run "
            "`pipeline-core store upgrade` once as a user who may make and change tables"
        ) from None
    if found not in known:
        raise SideError(
            f"{engine.place}: its record store has schema version {found!r}, this code knows up to {HEAD!r}; "
            "upgrade windowed-pipeline-sql"
        )
    if found == HEAD:
        return _NOTHING
    return f"made the tables, at version {HEAD}" if found is None else f"updated the tables from {found} to {HEAD}"


def _version(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    version: str | None = connection.execute(
        sa.select(sa.column("version_num")).select_from(sa.table(VERSION_TABLE))
    ).scalar()
    return version


def _alembic() -> tuple[Config, set[str | None]]:
    """How Alembic finds the migrations, and the versions that they begin from; None: there are no tables yet."""
    # It takes a seventh of a second to import, and almost every opening finds nothing to do.
    from alembic.config import Config  # noqa: PLC0415
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config, {None, *(script.revision for script in ScriptDirectory.from_config(config).walk_revisions())}


def _upgrade(connection: sa.Connection, config: Config) -> None:
    from alembic import command  # noqa: PLC0415

    config.attributes.update(connection=connection, version_table=VERSION_TABLE)
    with _ALEMBIC:
        command.upgrade(config, HEAD)
