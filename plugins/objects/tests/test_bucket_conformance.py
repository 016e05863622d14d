"""The stage in a bucket of a real S3 server keeps what every stage promises."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

import obstore
import pytest

from pipeline_core import Secret
from pipeline_core.contracts import Context, Stage, Staged
from pipeline_core.testing import StageSuite
from pipeline_objects import ObjectStageSettings


class TestBucketStage(StageSuite):
    """Each stage in a bucket of its own."""

    @pytest.fixture(autouse=True)
    def _server(self, s3_server: Any) -> None:
        self.server = s3_server
        self.buckets: dict[Stage, str] = {}

    def _opened(self, bucket: str) -> AbstractContextManager[Stage]:
        section = self.server.settings(bucket)
        credentials = {name: Secret(value) for name, value in section.pop("credentials").items()}
        del section["type"]
        return ObjectStageSettings(**section, credentials=credentials).open(Context("flights"))

    @contextmanager
    def open_stage(self) -> Iterator[Stage]:
        bucket = self.server.new_bucket()
        with self._opened(bucket) as stage:
            self.buckets[stage] = bucket
            yield stage

    def open_again(self, stage: Stage) -> AbstractContextManager[Stage]:
        return self._opened(self.buckets[stage])

    def damage(self, stage: Stage, staged: Staged) -> None:
        store = self.server.store(self.buckets[stage])
        path = unquote(urlsplit(staged.files[0].url).path).lstrip("/")
        data = bytearray(obstore.get(store, path).bytes())
        data[len(data) // 2] ^= 1
        obstore.put(store, path, bytes(data))
