"""The stage on real folders: round trips, crashes, damage, and what the operating system refuses."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline_core.contracts import Batch, Batches, Context, Stage, StageRequest
from pipeline_core.errors import ConfigError, PermanentError, SideError, TransientError
from pipeline_core.secrets import Secret
from pipeline_core.window import Window
from pipeline_objects import ObjectStageSettings, pipeline_stages
from pipeline_objects.folder import Folder
from pipeline_objects.stage import ObjectStage

WINDOW = Window.from_us(1_362_891_600_000_000, 1_362_898_800_000_000)
SPAN = "flights/1362891600000000_1362898800000000"
linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into Linux's own file systems")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder that does not exist yet, with a name that a URL must escape."""
    return tmp_path / "the stage #1 ü"


@pytest.fixture
def stage(root: Path) -> Iterator[Stage]:
    """The stage as a configuration opens it."""
    with ObjectStageSettings(root.as_uri()).open(Context("flights")) as stage:
        yield stage


def request(key: str = f"{SPAN}/17", fence: int = 17) -> StageRequest:
    return StageRequest(key, "flights", WINDOW, fence, {"technology": "sql", "table": "flights"})


def given_as(batches: Iterable[Batch]) -> Batches:
    yield from batches


def batch(*values: object, type_: pa.DataType | None = None, name: str = "n") -> pa.RecordBatch:
    return pa.record_batch([pa.array(values, type_)], names=[name])


def rows(batches: Iterable[Any]) -> list[dict[str, Any]]:
    return [row for found in batches for row in pa.table(found).to_pylist()]


def values(column: pa.ChunkedArray) -> list[Any]:
    return (column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column).to_pylist()


def files_below(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


# --- writing and reading ---------------------------------------------------------------------------------------------


def test_what_was_written_is_found_and_read(stage: Stage, root: Path) -> None:
    """The manifest that write returns is the one that find returns, in another process too, and read gives the rows."""
    staged = stage.write(request(), given_as([batch(1, 2), batch(3), batch(None, 0)]))
    assert (staged.rows, staged.schema, staged.pipeline, staged.window, staged.fence) == (
        5,
        "n: int64",
        "flights",
        WINDOW,
        17,
    )
    assert list(ObjectStage(Folder(root)).find(f"{SPAN}/")) == [staged]
    assert rows(stage.read(staged)) == [{"n": n} for n in (1, 2, 3, None, 0)]


def test_an_empty_window_keeps_its_schema(stage: Stage, root: Path) -> None:
    """No rows: one Parquet file, and one batch of no rows with every column."""
    schema = pa.schema([("t", pa.timestamp("us", "UTC")), ("d", pa.dictionary(pa.int8(), pa.string()))])
    staged = stage.write(request(), given_as([pa.RecordBatch.from_pylist([], schema)] * 2))
    (file,) = staged.files
    assert (staged.rows, file.rows) == (0, 0)
    assert pq.read_table(root / SPAN / "17" / "part-00000.parquet").schema.equals(schema)
    (found,) = stage.read(staged)
    assert (len(found), pa.table(found).schema) == (0, schema)


def test_a_source_without_a_batch_is_a_fault(stage: Stage) -> None:
    """Without a batch there is no schema, and nothing is staged."""
    with pytest.raises(PermanentError, match="at least one"):
        stage.write(request(), given_as([]))
    assert stage.keys("") == []


_TEXT = st.text(st.characters(codec="utf-8"))
_US = st.integers(-(10**15), 4 * 10**15)
_TYPES: Sequence[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.int8(), st.integers(-128, 127)),
    (pa.uint64(), st.integers(0, 2**64 - 1)),
    (pa.float64(), st.floats(allow_nan=False)),
    (pa.bool_(), st.booleans()),
    (pa.null(), st.none()),
    (pa.string(), _TEXT),
    (pa.large_string(), _TEXT),
    (pa.string_view(), _TEXT),
    (pa.binary(), st.binary()),
    (pa.binary(3), st.binary(min_size=3, max_size=3)),
    (pa.decimal128(38, 9), st.decimals(-(10**28), 10**28, places=9)),
    (pa.decimal256(60, 2), st.decimals(-(10**50), 10**50, places=2)),
    (pa.date32(), st.dates()),
    (pa.time64("us"), st.times()),
    (pa.timestamp("us"), st.datetimes()),
    (pa.timestamp("us", "UTC"), _US),
    (pa.timestamp("us", "America/New_York"), _US),
    (pa.timestamp("us", "+05:30"), _US),
    (pa.timestamp("ns"), st.integers(-(10**18), 10**18)),
    (pa.duration("us"), st.timedeltas(timedelta(-9999), timedelta(9999))),
    (pa.dictionary(pa.int32(), pa.string()), _TEXT),
    (pa.list_(pa.decimal128(5, 2)), st.lists(st.decimals(-999, 999, places=2))),
    (pa.struct([("a", pa.string()), ("b", pa.list_(pa.int64()))]), st.fixed_dictionaries({"a": _TEXT, "b": st.none()})),
    (pa.map_(pa.string(), pa.binary()), st.lists(st.tuples(_TEXT, st.binary()), max_size=3)),
]


@st.composite
def tables(draw: st.DrawFn) -> list[pa.RecordBatch]:
    """Some batches of one schema, of some types, with NULL anywhere and names in any script (Arrow's end at U+0000)."""
    letters = st.characters(codec="utf-8", exclude_characters="\0")
    names = draw(st.lists(st.text(letters, min_size=1), min_size=1, max_size=4, unique=True))
    columns = [draw(st.sampled_from(_TYPES)) for _ in names]
    schema = pa.schema([pa.field(name, type_) for name, (type_, _) in zip(names, columns, strict=True)])
    batches = []
    for size in draw(st.lists(st.integers(0, 4), min_size=1, max_size=4)):
        values = [draw(st.lists(st.none() | some, min_size=size, max_size=size)) for _, some in columns]
        arrays = [pa.array(value, type_) for value, (type_, _) in zip(values, columns, strict=True)]
        batches.append(pa.RecordBatch.from_arrays(arrays, schema=schema))
    return batches


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(batches=tables(), small=st.booleans())
def test_every_value_comes_back(batches: list[pa.RecordBatch], small: bool) -> None:
    """Any type that Parquet knows, any NULL, any script, in one file or in many: values and types come back."""
    with tempfile.TemporaryDirectory() as folder:
        stage = ObjectStage(Folder(Path(folder)), file_bytes=1 if small else 2**20)
        staged = stage.write(request(), given_as(batches))
        back = pa.Table.from_batches([pa.record_batch(found) for found in stage.read(staged)])
        there = pa.Table.from_batches(batches)
        assert back.schema.equals(there.schema)
        assert [values(column) for column in back.columns] == [values(column) for column in there.columns]
        assert staged.rows == there.num_rows == sum(file.rows for file in staged.files)
        assert list(stage.find("")) == [staged]


def test_an_instant_is_staged_to_the_microsecond(stage: Stage) -> None:
    """In a zone with both passes of a repeated hour, and at the last microsecond before the window's end."""
    zone = ZoneInfo("America/New_York")
    instants = [datetime(2013, 11, 3, 1, 30, fold=fold, tzinfo=zone) for fold in (0, 1)]
    instants.append(datetime(2013, 3, 10, 6, 59, 59, 999_999, tzinfo=UTC))
    column = pa.array([int(at.timestamp()) * 10**6 + at.microsecond for at in instants], pa.timestamp("us", str(zone)))
    staged = stage.write(request(), given_as([pa.record_batch([column], names=["t"])]))
    (found,) = stage.read(staged)
    assert pa.record_batch(found).column(0).equals(column)
    assert staged.schema == "t: timestamp[us, tz=America/New_York]"


def test_any_object_with_an_arrow_stream_is_a_batch(stage: Stage) -> None:
    """A batch may come from any Arrow library, and hold chunks of its own."""

    class Foreign:
        def __init__(self, table: pa.Table) -> None:
            self._table = table

        def __arrow_c_stream__(self, requested_schema: object = None) -> object:
            return self._table.__arrow_c_stream__(requested_schema)

        def __len__(self) -> int:
            return int(self._table.num_rows)

    table = pa.concat_tables([pa.table({"n": [1, 2]}), pa.table({"n": [3]})])
    staged = stage.write(request(), given_as([Foreign(table), Foreign(table)]))
    assert [row["n"] for row in rows(stage.read(staged))] == [1, 2, 3, 1, 2, 3]


def test_small_batches_share_a_row_group(stage: Stage, root: Path) -> None:
    """A thousand batches of one row are one row group, not a thousand."""
    stage.write(request(), given_as(batch(n) for n in range(1000)))
    assert pq.ParquetFile(root / SPAN / "17" / "part-00000.parquet").metadata.num_row_groups == 1


def test_wide_rows_do_not_pile_up(stage: Stage, root: Path) -> None:
    """A row group ends at its size too, long before it has its rows: memory stays bounded."""
    wide = pa.array([bytes(17 * 2**20)])
    stage.write(request(), given_as(pa.record_batch([wide], names=["document"]) for _ in range(8)))
    assert pq.ParquetFile(root / SPAN / "17" / "part-00000.parquet").metadata.num_row_groups == 2


def test_a_new_file_begins_at_the_limit(root: Path) -> None:
    """The files come back in order; each has its own rows, size and sha256."""
    stage = ObjectStage(Folder(root), file_bytes=1)
    big = [batch(*range(at, at + 100_000)) for at in range(0, 300_000, 100_000)]
    staged = stage.write(request(), given_as(big))
    assert [file.rows for file in staged.files] == [100_000] * 3
    assert [file.url.rpartition("/")[2] for file in staged.files] == [f"part-0000{n}.parquet" for n in range(3)]
    assert [file.bytes for file in staged.files] == [
        (root / SPAN / "17" / f"part-0000{n}.parquet").stat().st_size for n in range(3)
    ]
    numbers = [n for found in stage.read(staged) for n in pa.record_batch(found).column(0).to_pylist()]
    assert numbers == list(range(300_000))


def test_the_manifest_says_what_lies_there(stage: Stage, root: Path) -> None:
    """For people and other programs: counts, the window in both forms, the fence, the identity, a format version."""
    staged = stage.write(request(), given_as([batch(1)]))
    found = json.loads((root / SPAN / "17" / "manifest.json").read_text())
    assert found == {
        "format": 1,
        "pipeline": "flights",
        "window": {
            "start": "2013-03-10T05:00:00Z",
            "end": "2013-03-10T07:00:00Z",
            "start_us": WINDOW.start_us,
            "end_us": WINDOW.end_us,
        },
        "fence": 17,
        "rows": 1,
        "files": [
            {
                "name": "part-00000.parquet",
                "rows": 1,
                "bytes": staged.files[0].bytes,
                "sha256": staged.files[0].sha256,
            }
        ],
        "schema": "n: int64",
        "identity": {"technology": "sql", "table": "flights"},
    }


def test_a_folder_may_be_seen_under_another_path(stage: Stage, root: Path) -> None:
    """Another machine mounts the folder elsewhere: what it finds has URLs that it can open."""
    stage.write(request(), given_as([batch(1)]))
    elsewhere = root.rename(root.with_name("elsewhere"))
    other = ObjectStage(Folder(elsewhere))
    (found,) = other.find("")
    assert found.files[0].url.startswith(elsewhere.as_uri())
    assert rows(other.read(found)) == [{"n": 1}]


# --- schemas that do not fit -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("later", "words"),
    [
        (batch("1"), ["'n'", "int64", "string"]),
        (batch(1, type_=pa.int32()), ["'n'", "int32", "int64"]),
        (batch(1, name="m"), ["'n'", "'m'"]),
        (pa.record_batch([pa.array([1]), pa.array([2])], names=["n", "m"]), ["new ['m']"]),
        (pa.record_batch([pa.array([1])], schema=pa.schema([pa.field("n", pa.int64(), nullable=False)])), ["not null"]),
        (pa.record_batch([pa.array([1]), pa.array([2])], names=["n", "n"]), ["2 columns"]),
    ],
)
def test_a_batch_of_another_schema_is_a_fault(stage: Stage, later: pa.RecordBatch, words: list[str]) -> None:
    """The error names the column and both types; nothing of the window stays behind."""
    with pytest.raises(PermanentError) as raised:
        stage.write(request(), given_as([batch(1), later]))
    assert all(word in str(raised.value) for word in words), str(raised.value)
    assert stage.keys("") == []


def test_metadata_is_no_part_of_the_schema(stage: Stage) -> None:
    """Batches that differ only in what their library notes beside the schema are the same."""
    noted = batch(2).replace_schema_metadata({"library": "x"})
    staged = stage.write(request(), given_as([batch(1), noted]))
    assert rows(stage.read(staged)) == [{"n": 1}, {"n": 2}]


def test_a_type_that_parquet_lacks_is_named(stage: Stage) -> None:
    """The column at fault, its type and the way out are in the error."""
    odd = pa.record_batch([pa.array([1]), pa.array([None], pa.month_day_nano_interval())], names=["n", "span"])
    with pytest.raises(PermanentError, match=r"'span' \(month_day_nano_interval\).*exclude"):
        stage.write(request(), given_as([odd]))
    assert stage.keys("") == []


def test_rows_without_a_column_are_refused(stage: Stage) -> None:
    """Parquet would forget how many there were."""
    with pytest.raises(PermanentError, match="without any column"):
        stage.write(request(), given_as([batch(1).select([])]))


def test_the_sources_own_error_keeps_its_type(stage: Stage, root: Path) -> None:
    """A lost connection while extracting is the source's fault, even though it is an OSError like a full disk."""

    def lost() -> Batches:
        yield batch(*range(100_000))
        raise ConnectionResetError(104, "reset by peer")

    with pytest.raises(ConnectionResetError):
        stage.write(request(), lost())
    assert files_below(root) == []


# --- keys ------------------------------------------------------------------------------------------------------------


def test_keys_and_find_take_a_prefix(stage: Stage) -> None:
    """A prefix is the beginning of a key, wherever it ends; what has no manifest shows in the keys only."""
    for key in ("a/1_2/3", "a/1_2/34", "a/1_20/3", "ab/1_2/3"):
        stage.write(request(key), given_as([batch(1)]))
    assert stage.keys("a/1_2/") == ["a/1_2/3", "a/1_2/34"]
    assert stage.keys("a/1_2/3") == ["a/1_2/3", "a/1_2/34"]
    assert stage.keys("a/1_2") == ["a/1_2/3", "a/1_2/34", "a/1_20/3"]
    assert stage.keys("a") == ["a/1_2/3", "a/1_2/34", "a/1_20/3", "ab/1_2/3"]
    assert [staged.key for staged in stage.find("a/")] == ["a/1_2/3", "a/1_2/34", "a/1_20/3"]
    assert stage.keys("none/") == stage.find("none") == []


def test_a_strangers_file_is_no_window(stage: Stage, root: Path) -> None:
    """What lies in the root itself has no key, and nobody removes it."""
    stage.write(request(), given_as([batch(1)]))
    (root / ".DS_Store").touch()
    assert stage.keys("") == [request().key]
    assert len(stage.find("")) == 1
    stage.remove(request().key)
    assert files_below(root) == [".DS_Store"]


@pytest.mark.parametrize("key", ["../x", "a/../../x", "/etc/x", "a//b", "a/./b", "", "a/", "a\\b", "a\0b", ".."])
def test_a_key_stays_below_the_root(stage: Stage, root: Path, key: str) -> None:
    """Nothing is written or removed outside the folder, and nothing at all under a key that is no plain path."""
    outside = root.parent / "x"
    outside.mkdir()
    (outside / "file").touch()
    with pytest.raises(PermanentError, match="relative path"):
        stage.write(request(key), given_as([batch(1)]))
    with pytest.raises(PermanentError, match="relative path"):
        stage.remove(key)
    assert (outside / "file").exists()
    assert not root.exists()


def test_a_prefix_stays_below_the_root(stage: Stage) -> None:
    """Looking around outside the folder is refused too."""
    with pytest.raises(PermanentError, match="relative path"):
        stage.keys("../")


def test_a_name_in_any_script_is_a_key(stage: Stage) -> None:
    """A pipeline's name may hold blanks, `@`, `%`, `#` and letters of any script."""
    key = "Flüge 航班@prod %20#1/1_2/3"
    staged = stage.write(request(key), given_as([batch(1)]))
    assert list(stage.find("Flüge")) == [staged]
    assert rows(stage.read(staged)) == [{"n": 1}]
    stage.remove(key)
    assert stage.keys("") == []


# --- removing --------------------------------------------------------------------------------------------------------


def test_remove_leaves_nothing_behind(stage: Stage, root: Path) -> None:
    """The files and the folders that they leave empty go, the root and the neighbours stay; once more is harmless."""
    stage.write(request("a/1_2/3"), given_as([batch(1)]))
    stage.write(request("a/1_2/4"), given_as([batch(1)]))
    stage.remove("a/1_2/3")
    assert stage.keys("") == ["a/1_2/4"]
    stage.remove("a/1_2/4")
    stage.remove("a/1_2/4")
    assert list(root.iterdir()) == []


def test_a_removed_manifest_goes_first(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A removal that dies half-way leaves an incomplete window, never a complete one that lacks a file."""
    stage.write(request(), given_as([batch(1)]))
    unlinked: list[str] = []

    def unlink(path: Path, missing_ok: bool = False) -> None:
        unlinked.append(path.name)
        raise PermissionError(13, "denied")

    monkeypatch.setattr(os, "listdir", lambda _: ["part-00000.parquet", "manifest.json"])
    monkeypatch.setattr(Path, "unlink", unlink)
    with pytest.raises(SideError):
        stage.remove(request().key)
    assert unlinked == ["manifest.json"]


def test_writing_again_starts_afresh(stage: Stage, root: Path) -> None:
    """A retry under the same key replaces what the first try left, whatever it left."""
    small = ObjectStage(Folder(root), file_bytes=1)
    small.write(request(), given_as([batch(*range(100_000)), batch(*range(100_000))]))
    staged = stage.write(request(), given_as([batch(7)]))
    assert files_below(root) == [f"{SPAN}/17/manifest.json", f"{SPAN}/17/part-00000.parquet"]
    assert rows(stage.read(staged)) == [{"n": 7}]


def test_workers_do_not_disturb_each_other(root: Path) -> None:
    """Writers and removers of neighbouring windows make and remove the same parent folders all the time."""
    failures: list[BaseException] = []

    def work(key: str) -> None:
        stage = ObjectStage(Folder(root))
        try:
            for number in range(150):
                staged = stage.write(request(key), given_as([batch(number)]))
                assert rows(stage.read(staged)) == [{"n": number}]
                stage.remove(key)
        except BaseException as error:  # noqa: BLE001 - handed to the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(f"a/1_2/{n}",)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert list(root.iterdir()) == []


def test_a_parent_that_vanishes_is_made_again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another worker removes the empty parent each time before the folder is made in it."""
    mkdir = Path.mkdir
    vanished: list[Path] = []

    def race(path: Path, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        if path.name == "17" and len(vanished) < 3:
            vanished.append(path)
            raise FileNotFoundError(2, "gone")
        mkdir(path, mode, parents, exist_ok)

    monkeypatch.setattr(Path, "mkdir", race)
    stage.write(request(), given_as([batch(2)]))
    assert (len(vanished), len(stage.find(""))) == (3, 1)


# --- damage ----------------------------------------------------------------------------------------------------------


def damaged(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(("harm", "word"), [(Path.unlink, "missing"), (damaged, "sha256"), (truncated, "bytes")])
def test_a_changed_file_hands_out_no_row(root: Path, harm: Any, word: str) -> None:
    """One bit, the end, or the whole file: an error that can heal, and from then on the window is not found."""
    stage = ObjectStage(Folder(root), file_bytes=1)
    staged = stage.write(request(), given_as([batch(*range(100_000)), batch(*range(5))]))
    harm(root / SPAN / "17" / "part-00001.parquet")
    handed_out = []
    with pytest.raises(TransientError, match=rf"part-00001.*{word}.*extracted again"):
        handed_out.extend(len(found) for found in stage.read(staged))
    assert sum(handed_out) == 100_000
    assert stage.find("") == []
    assert stage.keys("") == [request().key]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"rows": 1', b'"rows": 2'),
        (b'"format": 1', b'"format": 2'),
        (b'"fence": 17', b'"fence": null'),
        (b'"files": [', b'"files": [], "x": ['),
        (b"part-00000", b"../../part"),
        (b'"start_us": ', b'"start_us": 9'),
        (b'"pipeline"', b'"pipe'),
        (None, b""),
        (None, b"[]"),
        (None, b"null"),
        (None, b"\xff\xfe"),
    ],
)
def test_a_corrupt_manifest_is_not_found(stage: Stage, root: Path, old: bytes | None, new: bytes, caplog: Any) -> None:
    """The window counts as incomplete: it is not found, said in the log, still among the keys, and can be removed."""
    stage.write(request(), given_as([batch(1)]))
    path = root / SPAN / "17" / "manifest.json"
    path.write_bytes(new if old is None else path.read_bytes().replace(old, new, 1))
    assert stage.find("") == []
    assert stage.keys("") == [request().key]
    assert "manifest" in caplog.text
    stage.remove(request().key)
    assert stage.keys("") == []


CHILD = """
import os, signal, sys, pyarrow as pa
from pathlib import Path
from pipeline_core.contracts import StageRequest
from pipeline_core.window import Window
from pipeline_objects.folder import Folder
from pipeline_objects.stage import ObjectStage

where, root = sys.argv[1], Path(sys.argv[2])

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def batches():
    for number in range(3):
        yield pa.record_batch([pa.array(range(100_000))], names=["n"])
    if where == "batches":
        die()

if where == "manifest":
    Path.replace = die
ObjectStage(Folder(root), file_bytes=1).write(
    StageRequest("flights/1362891600000000_1362898800000000/17", "flights", Window.from_us(0, 1), 17, {}), batches()
)
"""


@pytest.mark.parametrize("where", ["batches", "manifest"])
def test_a_killed_writer_leaves_nothing_complete(stage: Stage, root: Path, where: str) -> None:
    """SIGKILL after some files, and just before the manifest has its name: files lie there, and count for nothing."""
    done = subprocess.run([sys.executable, "-c", CHILD, where, str(root)], capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    assert f"{SPAN}/17/part-00001.parquet" in files_below(root)
    assert stage.find("") == []
    assert stage.keys(f"{SPAN}/") == [f"{SPAN}/17"]
    staged = stage.write(request(f"{SPAN}/18", 18), given_as([batch(1)]))
    stage.remove(f"{SPAN}/17")
    assert list(stage.find("")) == [staged]
    assert stage.keys("") == [f"{SPAN}/18"]


def test_a_removed_key_is_not_completed(stage: Stage) -> None:
    """A late writer whose window was cleaned away meanwhile brings nothing back."""

    def late() -> Batches:
        yield batch(*range(100_000))
        stage.remove(request().key)
        yield batch(1)

    with pytest.raises(TransientError, match="extracted again"):
        stage.write(request(), late())
    assert stage.keys("") == []


# --- resources -------------------------------------------------------------------------------------------------------


def open_below(root: Path) -> list[str]:
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{number}"))
        except FileNotFoundError:
            continue
    return [path for path in found if path.startswith(str(root))]


@linux
def test_closing_a_read_early_releases_the_file(root: Path) -> None:
    """A loader that stops after the first batch leaves nothing open; while it reads, one file is."""
    stage = ObjectStage(Folder(root), file_bytes=1)
    staged = stage.write(request(), given_as([batch(*range(100_000)), batch(*range(100_000))]))
    batches = stage.read(staged)
    first = next(batches)
    assert len(open_below(root)) == 1
    batches.close()
    assert open_below(root) == []
    assert len(first) > 0
    stage.remove(staged.key)


@linux
def test_a_failed_write_releases_its_file(stage: Stage, root: Path) -> None:
    """Whatever ends it, an interrupt too: nothing is open and nothing lies there."""

    def interrupted() -> Batches:
        yield batch(*range(200_000))
        assert len(open_below(root)) == 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage.write(request(), interrupted())
    assert open_below(root) == []
    assert files_below(root) == []


@linux
def test_a_full_disk_can_heal(stage: Stage, root: Path) -> None:
    """No space left: the whole side is down, the error says what to do, and the half-written file is gone."""

    def onto_a_full_disk() -> Batches:
        (root / SPAN / "17" / "part-00000.parquet").symlink_to("/dev/full")
        yield batch(*range(400_000))

    with pytest.raises(TransientError, match=r"ENOSPC.*free space") as raised:
        stage.write(request(), onto_a_full_disk())
    assert raised.value.side_down
    assert stage.keys("") == []


@linux
def test_a_folder_that_refuses_needs_a_person() -> None:
    """No right to write: the side refuses, and trying again would not help."""
    with pytest.raises(SideError, match="may write"):
        ObjectStage(Folder(Path("/sys/stage"))).write(request(), given_as([batch(1)]))


def test_a_file_in_the_way_needs_a_person(root: Path) -> None:
    """The URL names a file, not a folder."""
    root.write_text("")
    with pytest.raises(SideError, match=r"stage\.url"):
        ObjectStage(Folder(root)).write(request(), given_as([batch(1)]))


# --- doctor and settings ---------------------------------------------------------------------------------------------


def test_a_sound_folder_has_no_problem(stage: Stage, root: Path) -> None:
    """Also before it exists; and looking makes nothing."""
    assert list(stage.problems()) == []
    assert not root.exists()


@linux
def test_a_folder_that_cannot_be_written_is_a_problem() -> None:
    """With what was found and what to do about it."""
    (problem,) = ObjectStage(Folder(Path("/sys/stage"))).problems()
    assert "/sys" in problem.what
    assert "may write" in problem.remedy


def test_little_space_is_a_problem(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Less than a GiB is too little for a window or two."""
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 5 * 2**20}))
    (problem,) = stage.problems()
    assert "5 MiB" in problem.what
    assert "larger" in problem.remedy


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://host/stage", "ftp:// is not supported"),
        ("file:stage", "file:stage"),
        ("file://stage", "file://stage"),
        ("file://host/stage", "file://host/stage"),
        ("stage", "'stage'"),
        ("/var/stage", "'/var/stage'"),
        ("", "''"),
        ("file:///", "no folder"),
        ("file:///a?b", "%3F"),
        ("file:///a#b", "%23"),
        ("file:///a%00b", "%00"),
    ],
)
def test_only_a_folder_or_a_bucket_is_a_url(url: str, words: str) -> None:
    """Every other form is refused with what was found and the forms that are supported."""
    with pytest.raises(ConfigError) as raised:
        ObjectStageSettings(url)
    assert words in str(raised.value)
    assert "file:///var/lib/stage" in str(raised.value)
    assert "s3://bucket/stage" in str(raised.value)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://", "expected a bucket"),
        ("s3:///stage", "expected a bucket"),
        ("s3://bucket/a/../b", "expected a bucket"),
        ("s3://bucket/a//b", "expected a bucket"),
        ("s3://bucket/a?b", "%3F"),
        ("gs://bucket/a#b", "%23"),
    ],
)
def test_a_bucket_is_named_by_its_url(url: str, words: str) -> None:
    """A prefix is a relative path."""
    with pytest.raises(ConfigError, match=re.escape(words)):
        ObjectStageSettings(url)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"url": "file:///a", "region": "eu-central-1"}, "stage.region: means nothing for file://"),
        ({"url": "file:///a", "credentials": {"access_key_id": Secret("hush")}}, "stage.credentials"),
        ({"url": "gs://a", "endpoint": "https://host"}, "stage.endpoint: means nothing for gs://"),
        ({"url": "az://a", "encryption": "AES256"}, "stage.encryption"),
        ({"url": "s3://a", "endpoint": "http://host"}, "allow_http"),
        ({"url": "s3://a", "endpoint": "host:9000"}, "https://host"),
        ({"url": "s3://a", "endpoint": "https://key:hush@host"}, "without a user name"),
        ({"url": "s3://a", "kms_key_id": "key"}, "aws:kms"),
        ({"url": "s3://a", "kms_key_id": "key", "encryption": "AES256"}, "aws:kms"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], words: str) -> None:
    """A setting that would be passed over in silence is an error, and shows no secret."""
    with pytest.raises(ConfigError, match=re.escape(words)) as raised:
        ObjectStageSettings(**settings)
    assert "hush" not in str(raised.value)


@pytest.mark.parametrize(
    "url", ["s3://key:hush@bucket/x", "//key:hush@host/x", "key:hush@host", "file://key:hush@h/x", "s3://b/x?key=hush"]
)
def test_a_refused_url_keeps_its_password(url: str) -> None:
    """Nobody can tell what stands before an @."""
    with pytest.raises(ConfigError) as raised:
        ObjectStageSettings(url)
    assert "hush" not in str(raised.value)


def test_the_hook_offers_the_stage() -> None:
    """Its name is the one in the configuration, its settings open a stage."""
    (provider,) = pipeline_stages()
    assert (provider.name, provider.settings) == ("objects", ObjectStageSettings)


def test_importing_the_plugin_loads_no_library() -> None:
    """A program that never opens the stage does not wait for Arrow; one that stages in a folder not for obstore."""
    code = """
import sys
from pipeline_objects import ObjectStageSettings
with_arrow = 'pyarrow' in sys.modules
with ObjectStageSettings('file:///stage').open(None):
    sys.exit(with_arrow or 'obstore' in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
