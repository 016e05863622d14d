"""The `[stage]` section of `type = "objects"`: where the files go."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from attrs import field, frozen

from pipeline_core.contracts import Context, Stage
from pipeline_core.errors import ConfigError

_SUPPORTED = "expected a folder of this machine by its absolute path, as in url = 'file:///var/lib/stage'"


@frozen
class ObjectStageSettings:
    """Parquet files in a local folder.

    `url` is `file:///absolute/folder`; the folder is made when the first file is written.
    """

    url: str = field()

    @url.validator
    def _names_a_folder(self, _: Any, value: str) -> None:
        folder_of(value)

    @contextmanager
    def open(self, context: Context, /) -> Iterator[Stage]:
        """The stage. Holds nothing between two calls. `context` is not needed: every key names its pipeline."""
        from pipeline_objects.folder import Folder  # noqa: PLC0415 - with the stage, when it is needed
        from pipeline_objects.stage import ObjectStage  # noqa: PLC0415 - the Arrow library loads here

        yield ObjectStage(Folder(folder_of(self.url)))


def folder_of(url: str) -> Path:
    """The folder that a `file:///` URL names; `%20` and the like are decoded. Raises ConfigError for any other form.

    A URL that is no file's is not shown in the error, because it may hold a password.
    """
    scheme, colon, rest = url.partition(":")
    if colon and scheme.lower() != "file" and rest.startswith("//"):
        raise ConfigError(f"stage.url: {scheme}:// is not supported yet; {_SUPPORTED}")
    if scheme.lower() != "file" or not rest.startswith("///"):
        raise ConfigError(f"stage.url: found {_shown(url)}; {_SUPPORTED}")
    parts = urlsplit(url)
    path = Path(url2pathname(parts.path))
    if parts.query or parts.fragment or "\0" in str(path):
        raise ConfigError(f"stage.url: found {_shown(url)}; write ? as %3F and # as %23, and no %00; {_SUPPORTED}")
    if path == Path(path.anchor):
        raise ConfigError(f"stage.url: found {_shown(url)}, which names no folder below the root; {_SUPPORTED}")
    return path


def _shown(url: str) -> str:
    return "a URL with a user name in it" if "@" in url and not url.startswith("file:///") else repr(url)
