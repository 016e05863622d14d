"""Small worlds to move data in, one for each kind of database. Another engine is another class, and a line here."""

from worlds.base import World
from worlds.child import Child, harry
from worlds.duckdb import DuckDbWorld
from worlds.mariadb import MariaDbWorld
from worlds.postgresql import PostgresWorld
from worlds.s3 import S3StageWorld
from worlds.sqlite import SqliteWorld

WORLDS: dict[str, type[World]] = {
    "sqlite": SqliteWorld,
    "postgresql": PostgresWorld,
    "mariadb": MariaDbWorld,
    "duckdb": DuckDbWorld,
}

__all__ = [
    "WORLDS",
    "Child",
    "DuckDbWorld",
    "MariaDbWorld",
    "PostgresWorld",
    "S3StageWorld",
    "SqliteWorld",
    "World",
    "harry",
]
