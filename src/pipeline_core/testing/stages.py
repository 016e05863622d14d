"""The conformance suite of stages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing
from datetime import UTC, date, datetime, time
from decimal import Decimal
from functools import partial
from typing import Any

import pyarrow as pa
import pytest

from pipeline_core.contracts import Batches, Stage, Staged, StageRequest
from pipeline_core.errors import PipelineError
from pipeline_core.testing.findings import expect, expect_error, report
from pipeline_core.window import Window

WINDOW = Window.from_us(1_362_891_600_000_000, 1_362_898_800_000_000)
SPAN = "flights/1362891600000000_1362898800000000"
KEY = f"{SPAN}/17"
IDENTITY = {"technology": "sql", "table": "flights"}
EVERY_TYPE = {
    "flag": pa.array([True, False, None]),
    "small": pa.array([-128, 127, None], pa.int8()),
    "big": pa.array([-(2**63), 2**63 - 1, None], pa.int64()),
    "double": pa.array([0.1, -0.0, None], pa.float64()),
    "price": pa.array([Decimal("1.10"), Decimal("-99999.99"), None], pa.decimal128(7, 2)),
    "text": pa.array(["Ελληνικά 漢字 🛫", "", None]),
    "raw": pa.array([b"\x00\xff", b"", None]),
    "day": pa.array([date(1, 1, 1), date(9999, 12, 31), None]),
    "clock": pa.array([time(0, 0), time(23, 59, 59, 999_999), None], pa.time64("us")),
    "at": pa.array(
        [datetime(2013, 3, 10, tzinfo=UTC), datetime(1, 1, 1, 0, 0, 0, 1, UTC), None], pa.timestamp("us", "UTC")
    ),
    "local": pa.array([-1, 2**50, None], pa.timestamp("us")),
    "many": pa.array([[1, None], [], None], pa.list_(pa.int64())),
}


class StageSuite(ABC):
    """What every stage promises. Subclass it in a test module, and say how to open a stage::

    class TestMyStage(StageSuite):
        def open_stage(self):
            return MyStageSettings(url=...).open(Context("p"))
    """

    @abstractmethod
    def open_stage(self) -> AbstractContextManager[Stage]:
        """A stage that holds nothing. Several may be open at once; each is on its own."""

    def open_again(self, stage: Stage) -> AbstractContextManager[Stage]:
        """A second object on the files of `stage`, as another process would open it."""
        pytest.skip(f"{type(self).__name__} does not say how to open a stage twice (open_again)")

    def damage(self, stage: Stage, staged: Staged) -> None:
        """Changes one byte, or more, of one of the staged files."""
        pytest.skip(f"{type(self).__name__} does not say how to damage a staged file (damage)")

    # --- writing and reading ------------------------------------------------------------------------------------------

    def test_what_was_written_is_found_and_read(self) -> None:
        """The manifest that write returns is the one that find returns; read gives the rows, in order."""
        with self.open_stage() as stage:
            staged = stage.write(request(), given([batch(1, 2), batch(3), batch(None, 0)]))
            found = (staged.key, staged.pipeline, staged.window, staged.fence, staged.rows, dict(staged.identity))
            expected = (KEY, "flights", WINDOW, 17, 5, IDENTITY)
            expect("the manifest says what was staged", stage, found, expected, window=WINDOW)
            expect("find gives the manifest", stage, list(stage.find(f"{SPAN}/")), [staged], window=WINDOW)
            expect("read gives the rows in order", stage, values(stage, staged), [1, 2, 3, None, 0], window=WINDOW)
            total = sum(file.rows for file in staged.files)
            expect("the rows of the files add up", stage, total, 5, window=WINDOW)
            digests = [(len(file.sha256), file.bytes > 0) for file in staged.files]
            expect("each file has its size and sha256", stage, set(digests), {(64, True)}, window=WINDOW)
            expect("the schema names every column", stage, "n" in staged.schema, True, window=WINDOW)

    def test_another_process_finds_it(self) -> None:
        """All that is needed lies with the files."""
        with self.open_stage() as stage:
            staged = stage.write(request(), given([batch(1, 2)]))
            with self.open_again(stage) as other:
                expect("find gives the manifest", other, list(other.find(SPAN)), [staged], window=WINDOW)
                expect("read gives the rows in order", other, values(other, staged), [1, 2], window=WINDOW)

    def test_types_and_nulls_stay_as_they_are(self) -> None:
        """Equal values of the same types come back."""
        rows = pa.table(EVERY_TYPE)
        with self.open_stage() as stage:
            staged = stage.write(request(), given(rows.to_batches(2)))
            got = read(stage, staged)
            found = {field.name: field.type for field in got.schema}
            expected = {field.name: field.type for field in rows.schema}
            expect("types stay as they are", stage, found, expected, window=WINDOW)
            for name in rows.column_names:
                column = (integers(got.column(name)), integers(rows.column(name)))
                expect(f"values stay as they are: {name}", stage, *column, window=WINDOW)

    def test_an_empty_window_keeps_its_schema(self) -> None:
        """No row: still complete, and at least one batch with every column."""
        schema = pa.schema([("t", pa.timestamp("us", "UTC")), ("n", pa.int64())])
        with self.open_stage() as stage:
            staged = stage.write(request(), given([pa.RecordBatch.from_pylist([], schema)] * 2))
            expect("an empty window is complete", stage, list(stage.find(SPAN)), [staged], window=WINDOW)
            got = read(stage, staged)
            expect(
                "an empty window has its schema", stage, (len(got), str(got.schema)), (0, str(schema)), window=WINDOW
            )

    def test_a_source_without_a_batch_is_a_fault(self) -> None:
        """Without a batch there is no schema, and nothing is complete."""
        with self.open_stage() as stage:
            act = partial(stage.write, request(), given([]))
            expect_error("no batch at all is an error", stage, act, PipelineError, window=WINDOW)
            expect("a failed write is not found", stage, list(stage.find("")), [], window=WINDOW)

    def test_a_failed_write_is_never_found(self) -> None:
        """Whatever ends it, an interrupt too, comes through with its type; what it left is replaced, or removed."""

        def failing(error: BaseException) -> Batches:
            yield batch(1)
            raise error

        for error in (ConnectionError("lost"), KeyboardInterrupt()):
            with self.open_stage() as stage:
                raised = raised_by(partial(stage.write, request(), failing(error)))
                expect("a fault keeps its type", stage, raised, type(error), window=WINDOW)
                expect("a failed write is not found", stage, list(stage.find("")), [], window=WINDOW)
                staged = stage.write(request(), given([batch(7)]))
                expect("a retry replaces what was left", stage, values(stage, staged), [7], window=WINDOW)
                stage.remove(KEY)
                expect("remove leaves nothing", stage, list(stage.keys("")), [], window=WINDOW)

    def test_what_is_being_written_is_not_found(self) -> None:
        """Until the last batch is written nobody finds anything: a writer that is killed leaves nothing that counts."""
        with self.open_stage() as stage, self.open_again(stage) as other:
            found: list[Staged] = []

            def watched() -> Batches:
                for number in range(3):
                    yield batch(number)
                    found.extend(other.find(""))

            stage.write(request(), watched())
            expect("what is being written is not found", stage, found, [], window=WINDOW)

    def test_writing_again_starts_afresh(self) -> None:
        """A retry under the same key leaves nothing of the first try."""
        with self.open_stage() as stage:
            stage.write(request(), given([batch(1, 2), batch(3)]))
            staged = stage.write(request(), given([batch(4)]))
            expect("write replaces its key", stage, list(stage.find("")), [staged], window=WINDOW)
            expect("write replaces its key", stage, values(stage, staged), [4], window=WINDOW)

    def test_a_damaged_file_is_an_error(self) -> None:
        """None of its rows is handed out as if it were whole."""
        with self.open_stage() as stage:
            staged = stage.write(request(), given([batch(*range(1000))]))
            self.damage(stage, staged)
            promise = "a file that differs from its sha256 is an error"
            expect_error(promise, stage, partial(read, stage, staged), PipelineError, window=WINDOW)

    def test_a_removed_file_is_an_error(self) -> None:
        """Reading what was removed meanwhile gives no rows, and not none."""
        with self.open_stage() as stage:
            staged = stage.write(request(), given([batch(1)]))
            stage.remove(KEY)
            act = partial(read, stage, staged)
            expect_error("a missing file is an error", stage, act, PipelineError, window=WINDOW)

    def test_a_read_closed_early_holds_nothing(self) -> None:
        """What was read in part can be read again, and removed."""
        with self.open_stage() as stage:
            staged = stage.write(request(), given([batch(1), batch(2)]))
            batches = stage.read(staged)
            next(batches)
            batches.close()
            expect("read starts from the beginning", stage, values(stage, staged), [1, 2], window=WINDOW)
            stage.remove(KEY)
            expect("remove leaves nothing", stage, list(stage.keys("")), [], window=WINDOW)

    # --- keys ---------------------------------------------------------------------------------------------------------

    def test_keys_and_find_take_a_prefix(self) -> None:
        """A prefix is the beginning of a key, wherever it ends."""
        keys = ["a/1_2/3", "a/1_2/34", "a/1_2/5", "a/1_20/3", "a/2_3/3", "ab/1_2/3", "b/1_2/3"]
        with self.open_stage() as stage:
            for key in keys:
                stage.write(request(key), given([batch(1)]))
            for prefix in ("", "a", "a/", "a/1_2", "a/1_2/", "a/1_2/3", "none/"):
                expected = [key for key in keys if key.startswith(prefix)]
                expect(f"keys({prefix!r})", stage, sorted(stage.keys(prefix)), expected)
                expect(f"find({prefix!r})", stage, sorted(each.key for each in stage.find(prefix)), expected)

    def test_remove_touches_its_own_key_alone(self) -> None:
        """Once more is harmless, and so is a key that never was."""
        with self.open_stage() as stage:
            for key in (KEY, f"{SPAN}/170", f"{SPAN}/1"):
                stage.write(request(key), given([batch(1)]))
            for _ in range(2):
                stage.remove(KEY)
                stage.remove("never/1_2/3")
                expect("remove leaves the neighbours", stage, sorted(stage.keys("")), [f"{SPAN}/1", f"{SPAN}/170"])
                expect("what was removed is not found", stage, list(stage.find(f"{KEY}/")), [])

    def test_any_name_is_a_key_and_no_path_leads_out(self) -> None:
        """Names of pipelines may hold blanks, `@`, `%`, `#`, any script; a key that climbs out is refused."""
        with self.open_stage() as stage:
            for key in ("Flüge 航班@prod %20#1/1_2/3", "a+b&c=d?e/1_2/3", "o'hare;--/1_2/3"):
                staged = stage.write(request(key), given([batch(1)]))
                expect("any name is a key", stage, [each.key for each in stage.find("")], [key])
                expect("any name is a key", stage, values(stage, staged), [1])
                stage.remove(key)
            for key in ("../x", "a/../../x", "/etc/x"):
                act = partial(stage.write, request(key), given([batch(1)]))
                expect_error(f"a key that leads out is refused: {key}", stage, act, PipelineError)
            expect("nothing is left", stage, list(stage.keys("")), [])

    def test_problems_come_with_a_remedy(self) -> None:
        """Whatever `doctor` would find."""
        with self.open_stage() as stage:
            found = [(bool(problem.what), bool(problem.remedy)) for problem in stage.problems()]
            expect("a problem says what to do", stage, found, [(True, True)] * len(found))

    def test_workers_do_not_disturb_each_other(self) -> None:
        """Four objects on the same files write, read and remove neighbouring windows at the same moment."""
        with self.open_stage() as stage, ExitStack() as opened:
            workers = [opened.enter_context(self.open_again(stage)) for _ in range(4)]

            def work(number: int) -> list[list[Any]]:
                worker, got = workers[number], []
                for turn in range(8):
                    staged = worker.write(request(f"{SPAN}/{number}{turn}"), given([batch(number, turn)]))
                    got.append(values(worker, staged))
                    worker.remove(staged.key)
                return got

            with ThreadPoolExecutor(4) as pool:
                for number, got in enumerate(pool.map(work, range(4))):
                    expected = [[number, turn] for turn in range(8)]
                    expect("workers do not disturb each other", stage, got, expected, window=WINDOW)
            expect("nothing is left", stage, list(stage.keys("")), [])


# --- what the tests share ---------------------------------------------------------------------------------------------


def raised_by(act: Callable[[], object]) -> type[BaseException] | None:
    """What kind of error comes of it, an interrupt too."""
    try:
        act()
    except BaseException as error:  # noqa: BLE001 - whatever a stage raises is what was asked for here
        return type(error)
    return None


def request(key: str = KEY) -> StageRequest:
    return StageRequest(key, "flights", WINDOW, 17, IDENTITY)


def given(batches: Iterable[Any]) -> Batches:
    yield from batches


def batch(*numbers: int | None) -> Any:
    return pa.record_batch([pa.array(numbers, pa.int64())], names=["n"])


def read(stage: Stage, staged: Staged) -> pa.Table:
    with closing(stage.read(staged)) as batches:
        found = [pa.table(each) for each in batches]
    if not found:
        raise report("read gives at least one batch", stage, staged.window, "one or more", "none")
    return pa.concat_tables(found)


def values(stage: Stage, staged: Staged) -> list[Any]:
    return integers(read(stage, staged).column("n"))


def integers(column: Any) -> list[Any]:
    """The values; of timestamps their numbers, since Python's own cannot hold all of them."""
    found: list[Any] = (column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column).to_pylist()
    return found
