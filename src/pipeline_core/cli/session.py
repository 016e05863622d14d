"""What one command works with: the common options as given, the two streams, and the pipeline that they name."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from pathlib import Path

from attrs import evolve, frozen

from pipeline_core.cli.progress import Bars
from pipeline_core.cli.terminal import Terminal
from pipeline_core.cli.views import window_name
from pipeline_core.config import Config, load_file, names_in_file
from pipeline_core.errors import ConfigError, PluginError
from pipeline_core.pipeline import Pipeline
from pipeline_core.plugins import PluginManager


class LogLevel(StrEnum):
    """How much is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """How log lines look."""

    TEXT = "text"
    JSON = "json"


@frozen
class Common:
    """The common options, with their defaults."""

    config: Path = Path("pipeline.toml")
    pipeline: str | None = None
    every: bool = False
    profile: str | None = None
    json: bool = False
    log_level: LogLevel = LogLevel.WARNING
    log_format: LogFormat = LogFormat.TEXT


@frozen
class Session:
    """One command's run."""

    common: Common
    terminal: Terminal

    def config(self) -> Config:
        """The configuration; what it wants people to know is said on stderr."""
        config = self._load()
        for warning in config.warnings:
            self.terminal.say(f"warning: {warning}", "yellow")
        return config

    @contextmanager
    def pipeline(self, *, bars: bool = False) -> Iterator[Pipeline]:
        """The pipeline; with `bars` its progress is drawn, where stderr is a terminal and no machine reads it."""
        config = self.config()
        zone = config.policy.timezone
        if bars and self.terminal.err.is_terminal and self.common.log_format is LogFormat.TEXT:
            drawn = Bars(self.terminal.err, lambda window: window_name(window, zone))
            with Pipeline(config, [drawn]) as pipeline, drawn:
                yield pipeline
        else:
            with Pipeline(config) as pipeline:
                yield pipeline

    @contextmanager
    def pipelines(self) -> Iterator[list[Pipeline]]:
        """The pipeline; with `--all` every one of the configuration."""
        names: list[str | None] = [*names_in_file(self.common.config)] if self.common.every else []
        with ExitStack() as stack:
            each = [evolve(self, common=evolve(self.common, pipeline=name)) for name in names] or [self]
            yield [stack.enter_context(session.pipeline()) for session in each]

    def manager(self) -> PluginManager:
        """Every installed plugin; with those that the configuration names, where there is one that can be used."""
        try:
            return self._load().manager
        except (ConfigError, PluginError) as error:
            if self.common.config.exists():
                self.terminal.say(f"warning: only installed plugins are shown, because {self.common.config}: {error}")
            return PluginManager()

    def _load(self) -> Config:
        # Modules that `plugins = [...]` names may lie beside the file, as a script finds those beside itself.
        sys.path.insert(0, str(self.common.config.resolve().parent))
        return load_file(self.common.config, profile=self.common.profile, name=self.common.pipeline)
