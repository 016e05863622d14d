"""The stage on a local folder keeps what every stage promises."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from pipeline_core.contracts import Context, Stage, Staged
from pipeline_core.testing import StageSuite
from pipeline_objects import ObjectStageSettings


class TestObjectStage(StageSuite):
    """Each stage in a folder of its own, which is made when it is needed."""

    def setup_method(self) -> None:
        self.urls: dict[Stage, str] = {}

    @contextmanager
    def open_stage(self) -> Iterator[Stage]:
        with tempfile.TemporaryDirectory() as folder:
            url = (Path(folder) / "stage").as_uri()
            with ObjectStageSettings(url).open(Context("flights")) as stage:
                self.urls[stage] = url
                yield stage

    def open_again(self, stage: Stage) -> AbstractContextManager[Stage]:
        return ObjectStageSettings(self.urls[stage]).open(Context("flights"))

    def damage(self, stage: Stage, staged: Staged) -> None:
        path = Path(url2pathname(urlsplit(staged.files[0].url).path))
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
