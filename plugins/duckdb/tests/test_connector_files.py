"""The files of a DuckDB target: the database that one process at a time may open, and the uploaded Parquet."""

from __future__ import annotations

import hashlib
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline_core import PermanentError, StagedFile, TransientError, Window

NOON_US = 1_362_916_800_000_000  # 2013-03-10T12:00:00Z
NOON = Window.from_us(NOON_US, NOON_US + 3_600_000_000)
HOLD = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('open', flush=True); sys.stdin.readline()"


def rows(*offsets: int) -> pa.Table:
    return pa.table({"ts": pa.array([NOON_US + us for us in offsets], pa.timestamp("us", "UTC"))})


def staged_file(path: Path, table: pa.Table) -> StagedFile:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    content = path.read_bytes()
    return StagedFile(path.as_uri(), len(table), len(content), hashlib.sha256(content).hexdigest())


def unread() -> Iterator[Any]:
    raise AssertionError("the stage was read, although its files are here")
    yield


@contextmanager
def held(path: Path) -> Iterator[subprocess.Popen[str]]:
    """As long as it lasts, another process has the file open."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdin=-1, stdout=-1, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == "open\n"
        yield process
        process.stdin.close()


def scratch(path: Path) -> list[str]:
    return [each.name for each in path.parent.iterdir() if "scratch" in each.name]


# --- the database -----------------------------------------------------------------------------------------------------


def test_a_file_that_another_process_holds_is_a_lock_wait_that_names_it(side, sql, path) -> None:
    """It can heal, and says which process and what to do."""
    sql("CREATE TABLE t (ts TIMESTAMPTZ)")
    with side(timeout_s=0.3) as source, held(path) as holder:
        with pytest.raises(TransientError, match=rf"PID {holder.pid}.*one process at a time.*waited 0\.3 s") as caught:
            source.count(NOON)
        assert not caught.value.side_down


def test_a_wait_ends_when_the_other_process_closes_the_file(side, sql, path, caplog) -> None:
    """A long one is told as it begins."""
    sql("CREATE TABLE t (ts TIMESTAMPTZ)")
    told = threading.Event()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.set()

    logger, listener = logging.getLogger("pipeline_duckdb.database"), Listener()
    logger.addHandler(listener)
    found: list[int] = []
    try:
        with side(timeout_s=60) as source:
            thread = threading.Thread(target=lambda: found.append(source.count(NOON)))
            with held(path) as holder:
                thread.start()
                assert told.wait(30)
            thread.join(30)
    finally:
        logger.removeHandler(listener)
    assert found == [0]
    assert f"PID {holder.pid}" in caplog.text


def test_the_file_is_free_between_two_steps(side, path, load, publish) -> None:
    """An open side with uploaded rows is in no other process's way."""
    staged = load(NOON, rows(0))
    with side(create=True) as target:
        target.upload(staged)
        with held(path):
            pass
        assert publish(target, staged) == 1
        with held(path):
            pass


def test_inside_a_transaction_the_file_is_taken(side, path, load) -> None:
    """A worker that hangs there is named to whoever waits."""
    staged = load(NOON, rows(0))
    with side(create=True) as target:
        target.upload(staged)
        with target.transaction() as verbs:
            verbs.guard(staged)
            done = subprocess.run([sys.executable, "-c", HOLD, str(path)], capture_output=True, text=True, check=False)
            assert "Could not set lock on file" in done.stderr


# --- the uploaded rows ------------------------------------------------------------------------------------------------


def test_staged_files_of_this_machine_are_read_where_they_lie(side, sql, path, load, publish) -> None:
    """Several of them, in folders whose names look like patterns and partitions to DuckDB; no copy is made."""
    folder = path.parent / "stage" / "a=1" / "[b]*?" / "it's %"
    files = [staged_file(folder / f"part-{n}.parquet", rows(n, n + 10)) for n in range(2)]
    (folder / "part-x.parquet").write_text("no part of the load")
    staged = load(NOON, files=files, read=unread)
    with side(create=True) as target:
        target.upload(staged)
        assert scratch(path) == []
        assert publish(target, staged) == 4
    assert sql("DESCRIBE t")[0][0] == "ts"
    assert len(sql("DESCRIBE t")) == 1


@pytest.mark.parametrize("harm", ["changed", "gone", "elsewhere", "not parquet"])
def test_any_other_file_is_left_to_the_stage(side, path, load, publish, harm: str) -> None:
    """What is not as the manifest says is for the stage's own reading to judge: nothing unverified is loaded."""
    place = path.parent / "part-0.parquet"
    file = staged_file(place, rows(0, 1))
    if harm == "changed":
        pq.write_table(rows(0, 2), place)
    elif harm == "gone":
        place.unlink()
    elif harm == "elsewhere":
        file = StagedFile("s3://bucket/part-0.parquet", file.rows, file.bytes, file.sha256)
    else:
        file = StagedFile(place.rename(place.with_suffix(".csv")).as_uri(), file.rows, file.bytes, file.sha256)

    def read() -> Iterator[Any]:
        if harm in ("changed", "gone"):
            raise TransientError("the stage says so")
        yield rows(0, 1)

    staged = load(NOON, files=[file], read=read)
    with side(create=True) as target:
        if harm in ("changed", "gone"):
            with pytest.raises(TransientError, match="the stage says so"):
                target.upload(staged)
        else:
            target.upload(staged)
            assert publish(target, staged) == 2


def test_a_staged_file_that_vanishes_before_the_publication_can_heal(side, sql, path, load, publish) -> None:
    """The old rows stay."""
    sql("CREATE TABLE t (ts TIMESTAMPTZ)", f"INSERT INTO t VALUES (make_timestamptz({NOON_US}))")
    place = path.parent / "part-0.parquet"
    staged = load(NOON, files=[staged_file(place, rows(0, 1))], read=unread)
    with side() as target:
        target.upload(staged)
        place.unlink()
        with pytest.raises(TransientError, match="is gone"):
            publish(target, staged)
        assert target.count(NOON) == 1


def test_rows_of_another_stage_pass_through_a_file_that_goes(side, path, load, publish) -> None:
    """Discarding drops it, and those that a killed worker left under a lower fence, but no higher one."""
    first, second, third = (load(NOON, rows(0, 1), fence=fence) for fence in (1, 2, 3))
    dead, late = side(create=True), side(create=True)
    with dead as target, late as other:
        other.upload(third)
        (newest,) = scratch(path)
        target.upload(first)
        assert len(scratch(path)) == 2
        target.discard(second.claim)
        assert scratch(path) == [newest]
        assert publish(other, third) == 2
    assert scratch(path) == []


def test_batches_of_two_schemas_are_refused(side, path, load) -> None:
    """And nothing of the half-written file is left."""
    other = pa.table({"ts": rows(1).column("ts"), "n": [1]})
    with side(create=True) as target, pytest.raises(PermanentError, match="one schema a window"):
        target.upload(load(NOON, rows(0), other))
    assert scratch(path) == []


def test_a_target_that_cannot_take_the_rows_says_so(side, sql, load) -> None:
    """A view, a generated column, a column that has to be filled, one that is missing; a row outside the window."""
    sql(
        "CREATE TABLE g (ts TIMESTAMPTZ, n INTEGER GENERATED ALWAYS AS (1))",
        "CREATE TABLE r (ts TIMESTAMPTZ, n INTEGER NOT NULL)",
        "CREATE VIEW v AS FROM r",
    )
    numbered = pa.table({"ts": rows(0).column("ts"), "n": [1]})
    for name, table, said in [
        ("v", numbered, "it is a view"),
        ("g", numbered, "column 'n' is generated"),
        ("r", rows(0), r"\['n'\] are NOT NULL without a default"),
        ("r", numbered.rename_columns(["ts", "m"]), "no column for the staged 'm'"),
        ("r", numbered.rename_columns(["at", "n"]), "no staged column becomes its timestamp column 'ts'"),
        ("g", rows(-1), "outside window"),
        ("g", pa.table({"ts": pa.array([None], pa.timestamp("us", "UTC"))}), "without a timestamp"),
        ("g", pa.table({"ts": pa.array([NOON_US], pa.timestamp("us"))}), "expected a timestamp with a zone"),
    ]:
        with side(name) as target, pytest.raises(Exception, match=said):
            target.upload(load(NOON, table))
