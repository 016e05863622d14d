"""What the core itself provides, through the same hooks as any plugin."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from attrs import frozen

from pipeline_core.contracts import Context, Provider, SecretResolver, Settings
from pipeline_core.hookspecs import hookimpl
from pipeline_core.timepolicy import ElapsedPolicy, TimePolicy, WallClockPolicy


@frozen
class EnvironmentSettings:
    """Environment variables, as in `${env:NAME}`."""

    @contextmanager
    def open(self, context: Context, /) -> Iterator[SecretResolver]:
        """The environment of this process. `context` is not needed: it is the same for every pipeline."""
        yield _Environment()


class _Environment:
    def resolve(self, name: str, /) -> str:
        return os.environ[name]


@hookimpl
def pipeline_time_policies() -> Iterable[Provider[TimePolicy]]:
    """`wall`, which a configuration without `[time]` gets, and `elapsed`."""
    yield Provider("wall", WallClockPolicy)
    yield Provider("elapsed", ElapsedPolicy)


@hookimpl
def pipeline_secret_resolvers() -> Iterable[Provider[Settings[SecretResolver]]]:
    """`${env:NAME}`."""
    yield Provider("env", EnvironmentSettings)
