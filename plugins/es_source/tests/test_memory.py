"""What a process takes to stage a window, however many documents the window holds; in the longer profile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(
    "PIPELINE_LONG" not in os.environ, reason="PIPELINE_LONG=1 indexes two million documents"
)

AT_MS = 1_362_873_600_000
SMALL, LARGE = 200_000, 2_000_000
CHUNK = 20_000
MAPPING = {
    "at": {"type": "date"},
    "n": {"type": "long"},
    "name": {"type": "keyword"},
    "ratio": {"type": "double"},
    "text": {"type": "keyword", "index": False, "doc_values": False},
}
#: Stages one window in a process of its own, and tells its rows and its peak of memory in bytes.
STAGE = """
import json, re, sys
from contextlib import closing
from pathlib import Path
from pipeline_core import Context, ExtractRequest, Secret, StageRequest, Window
from pipeline_elasticsearch import ElasticsearchSettings
from pipeline_objects import ObjectStageSettings

url, index, start_us, end_us, folder = sys.argv[1:]
window, context = Window.from_us(int(start_us), int(end_us)), Context("flights")
source = ElasticsearchSettings(index, Secret(url), timestamp_field="at")
with source.open(context) as side, ObjectStageSettings(Path(folder).as_uri()).open(context) as stage:
    with closing(side.extract(ExtractRequest(window))) as batches:
        rows = stage.write(StageRequest("flights/1", "flights", window, 1, {}), batches).rows
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
print(json.dumps({"rows": rows, "peak": peak}))
"""


def chunks() -> Iterator[bytes]:
    """Requests of a bulk, a document a millisecond; most of each is a text that does not compress away."""
    for first in range(0, LARGE, CHUNK):
        documents = (
            {"at": AT_MS + n, "n": n, "name": f"name {n % 1000}", "ratio": n / 8, "text": f"{n * 2654435761:x}" * 8}
            for n in range(first, first + CHUNK)
        )
        yield "".join(f'{{"index":{{}}}}\n{json.dumps(document)}\n' for document in documents).encode()


def staged(cluster: Any, index: str, rows: int, folder: Path) -> int:
    """The peak of memory, in bytes, of a process that stages so many documents as one window."""
    arguments = [cluster.url, index, str(AT_MS * 1000), str((AT_MS + rows) * 1000), str(folder)]
    done = subprocess.run([sys.executable, "-c", STAGE, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["rows"] == rows
    return int(found["peak"])


@pytest.mark.timeout(1800)
def test_memory_does_not_grow_with_the_window(cluster: Any, tmp_path: Path) -> None:
    """Ten times the documents in one window take no quarter more of it."""
    index = cluster.index(MAPPING)
    try:
        for chunk in chunks():
            answer = cluster.client.bulk(index=index, operations=chunk.splitlines(), filter_path="errors")
            assert not answer["errors"]
        cluster.client.indices.refresh(index=index)
        small, large = (staged(cluster, index, rows, tmp_path / str(rows)) for rows in (SMALL, LARGE))
    finally:
        cluster.client.indices.delete(index=index)
    print(f"peak of memory: {small / 1e6:.0f} MB for {SMALL:,} documents, {large / 1e6:.0f} MB for {LARGE:,}")
    assert large < 1.25 * small
