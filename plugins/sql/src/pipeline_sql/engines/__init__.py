"""What differs between database engines. The store and the connector ask an `Engine` and never which one it is."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from pipeline_core import ConfigError, Secret
from pipeline_core.errors import nearest
from pipeline_core.secrets import redact
from pipeline_sql.engines.default import Engine
from pipeline_sql.engines.mariadb import MariaDbEngine
from pipeline_sql.engines.postgresql import PostgresEngine
from pipeline_sql.engines.sqlite import SqliteEngine

_ENGINES: dict[str, type[Engine]] = {
    "mariadb": MariaDbEngine,
    "mysql": MariaDbEngine,
    "postgresql": PostgresEngine,
    "sqlite": SqliteEngine,
}
_URLS = ["mariadb+pymysql://", "postgresql+psycopg://", "sqlite:///"]


def open_engine(url: Secret, *, timeout_s: float) -> Engine:
    """The engine of a database URL. Nothing is connected yet. Raises ConfigError for a URL that cannot be used."""
    try:
        parsed = sa.make_url(url.reveal())
    except ArgumentError:
        raise ConfigError(
            "url: not a database URL; expected dialect+driver://user:password@host/database, or sqlite:///file.db"
        ) from None
    except ValueError:  # whose text may quote a part of the password
        raise ConfigError("url: found a port that is no number; correct it") from None
    if "@" in (parsed.host or ""):
        raise ConfigError("url: found a second '@' before the host; write one in the user or password as %40")
    try:
        return _ENGINES.get(parsed.get_backend_name(), Engine)(parsed, timeout_s=timeout_s)
    except NoSuchModuleError:
        raise ConfigError(
            f"url: found {parsed.drivername}://, which SQLAlchemy does not know ({nearest(parsed.drivername, _URLS)}); "
            "correct it, or install the database's dialect"
        ) from None
    except ConfigError:
        raise
    except (ArgumentError, ValueError) as error:
        raise ConfigError(f"url: {redact(str(error))}") from None
    except ModuleNotFoundError as error:
        raise ConfigError(f"url: {parsed.drivername!r} needs the module {error.name!r}; install it") from None
