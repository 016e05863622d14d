"""Stages that each break one promise, and the test of the suite that must notice."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from io import BufferedIOBase
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest
from attrs import evolve, frozen

from pipeline_core import Batches, Problem, Staged, StagedFile, StageRequest, Window
from pipeline_core.errors import PipelineError
from pipeline_core.testing import BrokenPromiseError, StageSuite
from pipeline_objects.folder import Folder
from pipeline_objects.stage import ObjectStage

MANIFEST = "manifest.json"
WINDOW = Window.from_us(0, 1)


class Stage(ObjectStage):
    """Files in a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        super().__init__(Folder(root))


class Suite(StageSuite):
    """The suite on one kind of stage."""

    def __init__(self, kind: type[Stage]) -> None:
        self.kind = kind

    @contextmanager
    def open_stage(self) -> Iterator[Stage]:
        with tempfile.TemporaryDirectory() as folder:
            yield self.kind(Path(folder) / "stage")

    def open_again(self, stage: Stage) -> AbstractContextManager[Stage]:
        return nullcontext(self.kind(stage.root))

    def damage(self, stage: Stage, staged: Staged) -> None:
        path = stage.root / staged.key / Path(staged.files[0].url).name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


def given(batches: Iterable[Any]) -> Batches:
    yield from batches


# --- the manifest makes it complete -----------------------------------------------------------------------------------


class ManifestFirst(Stage):
    """It counts from the first batch on."""

    def write(self, request: StageRequest, batches: Batches) -> Staged:
        seen: list[Any] = []

        def watched() -> Batches:
            for batch in batches:
                seen.append(batch)
                super(ManifestFirst, self).write(request, given(seen))
                yield batch

        return super().write(request, given([*watched()]))


class ManifestBesideTheFirstFile(Stage):
    """A failure behind it leaves a window that looks whole."""

    def write(self, request: StageRequest, batches: Batches) -> Staged:
        first = next(batches)
        super().write(request, given([first]))
        rest = [*batches]
        return super().write(request, given([first, *rest]))


class FaultsAreEnds(Stage):
    """A source that breaks off has no more rows."""

    def write(self, request: StageRequest, batches: Batches) -> Staged:
        def until_the_fault() -> Batches:
            with suppress(Exception):
                yield from batches

        return super().write(request, until_the_fault())


class FaultsLoseTheirType(Stage):
    """Whatever ends it."""

    def write(self, request: StageRequest, batches: Batches) -> Staged:
        try:
            return super().write(request, batches)
        except ConnectionError as error:
            raise ValueError(str(error)) from None


class FindsFilesWithoutAManifest(Stage):
    """Any key will do."""

    def _clear_away(self, key: str) -> None:
        self._place.put(f"{key}/part-00000.parquet", b"half of it")

    def find(self, prefix: str) -> Sequence[Staged]:
        return [Staged(key, "flights", WINDOW, 17, 0, [], "", {}) for key in self.keys(prefix)]


class FindsWhatItWroteItself(Stage):
    """Another process begins anew."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.mine: set[str] = set()

    def write(self, request: StageRequest, batches: Batches) -> Staged:
        self.mine.add(request.key)
        return super().write(request, batches)

    def find(self, prefix: str) -> Sequence[Staged]:
        return [staged for staged in super().find(prefix) if staged.key in self.mine]


class FilesAreOfThisObject(FindsWhatItWroteItself):
    """Another process finds them, and cannot read them."""

    def find(self, prefix: str) -> Sequence[Staged]:
        return Stage.find(self, prefix)

    def read(self, staged: Staged) -> Batches:
        if staged.key not in self.mine:
            raise PipelineError(f"{staged.key} is not mine")
        return super().read(staged)


# --- rows -------------------------------------------------------------------------------------------------------------


class LosesTheLastBatch(Stage):
    """The writer is not closed."""

    def write(self, request: StageRequest, batches: Batches) -> Staged:
        found = [*batches]
        return super().write(request, given(found[:-1] or found))


class CountsTheFirstFile(Stage):
    """The manifest says less than there is."""

    def write(self, request: StageRequest, batches: Batches) -> Staged:
        staged = super().write(request, batches)
        return evolve(staged, rows=staged.rows - 1)


class ReadsBackwards(Stage):
    """The last row first."""

    def read(self, staged: Staged) -> Batches:
        table = pa.Table.from_batches([*super().read(staged)])
        yield from table.take(list(range(len(table)))[::-1]).to_batches()


class NullsAreZero(Stage):
    """What is not known becomes a number."""

    def read(self, staged: Staged) -> Batches:
        for batch in super().read(staged):
            columns = [c.fill_null(0) if pa.types.is_integer(c.type) else c for c in batch.columns]
            yield pa.record_batch(columns, names=batch.schema.names)


class NumbersAreWide(Stage):
    """A type becomes its neighbour."""

    def read(self, staged: Staged) -> Batches:
        for batch in super().read(staged):
            columns = [c.cast(pa.int64()) if pa.types.is_integer(c.type) else c for c in batch.columns]
            yield pa.record_batch(columns, names=batch.schema.names)


class NoRowsNoBatch(Stage):
    """An empty window has no schema."""

    def read(self, staged: Staged) -> Batches:
        return super().read(staged) if staged.rows else given([])


class EmptyIsIncomplete(Stage):
    """A window without rows is extracted for ever."""

    def find(self, prefix: str) -> Sequence[Staged]:
        return [staged for staged in super().find(prefix) if staged.rows]


class NoBatchIsNoRow(Stage):
    """A source that said nothing is taken for an empty one."""

    def write(self, request: StageRequest, batches: Batches) -> Staged:
        found = [*batches]
        return super().write(request, given(found or [pa.record_batch({"n": pa.array([], pa.int64())})]))


class NoBatchIsFoundLater(Stage):
    """It fails, and leaves a manifest behind."""

    def _clear_away(self, key: str) -> None:
        window = {"start_us": 0, "end_us": 1}
        file = {"name": "none", "rows": 0, "bytes": 0, "sha256": ""}
        manifest = {"format": 1, "pipeline": "flights", "window": window, "fence": 17, "rows": 0, "files": [file]}
        self._place.put(f"{key}/{MANIFEST}", json.dumps(manifest | {"schema": "", "identity": {}}).encode())


class WritingAgainAdds(Stage):
    """The first try is still there."""

    def write(self, request: StageRequest, batches: Batches) -> Staged:
        before = [batch for staged in self.find(f"{request.key}") for batch in self.read(staged)]
        return super().write(request, given([*before, *batches]))


class WritingAgainDoesNothing(Stage):
    """What is there is there."""

    def write(self, request: StageRequest, batches: Batches) -> Staged:
        return next(iter(self.find(request.key)), None) or super().write(request, batches)


# --- files that are not what they were --------------------------------------------------------------------------------


class ChecksumNotVerified(Stage):
    """The bytes are taken as they are."""

    def _verify(self, staged: Staged, file: StagedFile, handle: BufferedIOBase) -> None:
        pass


class OnlyTheSizeIsVerified(Stage):
    """As long as there are as many bytes."""

    def _verify(self, staged: Staged, file: StagedFile, handle: BufferedIOBase) -> None:
        assert handle.seek(0, 2) == file.bytes
        handle.seek(0)


class MissingIsEmpty(Stage):
    """What was removed had no rows."""

    def read(self, staged: Staged) -> Batches:
        if not self.keys(staged.key):
            return given([pa.record_batch({"n": pa.array([], pa.int64())})])
        return super().read(staged)


class RemembersWhatWasRemoved(Stage):
    """Rows that are gone are read all the same."""

    def write(self, request: StageRequest, batches: Batches) -> Staged:
        self.rows = [*batches]
        return super().write(request, given(self.rows))

    def read(self, staged: Staged) -> Batches:
        return given(self.rows)


class ReadsOnlyOnce(Stage):
    """What was handed out is gone."""

    def read(self, staged: Staged) -> Batches:
        batches = [*super().read(staged)]
        self.remove(staged.key)
        return given(batches)


class ReadsOn(Stage):
    """A second reading goes on where the first was left."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.readings: dict[str, list[Any]] = {}

    def read(self, staged: Staged) -> Batches:
        left = self.readings.setdefault(staged.key, [row for b in super().read(staged) for row in b.to_pylist()])
        while left:
            yield pa.RecordBatch.from_pylist([left.pop(0)])


# --- keys -------------------------------------------------------------------------------------------------------------


class PrefixesAreFolders(Stage):
    """A prefix ends where a folder does."""

    def keys(self, prefix: str) -> Sequence[str]:
        folder = prefix.rstrip("/")
        return [key for key in super().keys("") if not folder or key == folder or key.startswith(f"{folder}/")]


class PrefixesAreCutToFolders(Stage):
    """What stands behind the last `/` of a prefix is passed over."""

    def keys(self, prefix: str) -> Sequence[str]:
        return super().keys(prefix[: prefix.rfind("/") + 1])


class FindsEverything(Stage):
    """Whatever was asked for."""

    def find(self, prefix: str) -> Sequence[Staged]:
        return super().find("")


class RemovesNeighbours(Stage):
    """Whatever begins like it."""

    def remove(self, key: str) -> None:
        for each in self.keys(key):
            super().remove(each)


class RemoveForgetsTheManifest(Stage):
    """The window still counts as complete."""

    def remove(self, key: str) -> None:
        kept = self._place.get(f"{key}/{MANIFEST}") if self.keys(key) else None
        super().remove(key)
        if kept is not None:
            self._place.make(key)
            self._place.put(f"{key}/{MANIFEST}", kept)


class RemoveWantsSomethingToRemove(Stage):
    """The second time it fails."""

    def remove(self, key: str) -> None:
        if not self.keys(key) and "never" in key:
            raise PipelineError(f"there is no {key}")
        super().remove(key)


class AnyPath(Folder):
    """Wherever it leads."""

    def _path(self, name: str) -> Path:
        return self.root / name.lstrip("/")


class LeadsOut(Stage):
    """A key may name any file of the machine."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._place = AnyPath(root / "deep" / "down")


class SimpleNamesOnly(Stage):
    """Letters, digits, and no more."""

    def write(self, request: StageRequest, batches: Batches) -> Staged:
        key = "".join(letter if letter.isascii() and letter.isprintable() else "_" for letter in request.key)
        return super().write(evolve(request, key=key), batches)


class ComplainsInOneWord(Stage):
    """And says nothing of what to do."""

    def problems(self) -> Iterable[Problem]:
        return [Problem("full", "")]


class ComplainsOfNothing(Stage):
    """It says what to do, and not why."""

    def problems(self) -> Iterable[Problem]:
        return [Problem("", "free some space")]


class OneBufferForAll(Stage):
    """Two that write at once mix their rows."""

    buffer: ClassVar[list[Any]] = []

    def write(self, request: StageRequest, batches: Batches) -> Staged:
        self.buffer[:] = [*batches]
        time.sleep(0.005)
        return super().write(request, given([*self.buffer]))


class TidiesUpForAll(Stage):
    """What others write goes with what it removes."""

    def remove(self, key: str) -> None:
        for each in self.keys(key.rpartition("/")[0]):
            super().remove(each)


@frozen
class Mutant:
    """A broken stage, and the test that notices."""

    promise: str
    kind: type[Stage]
    noticed_by: str


TABLE = [
    Mutant("the manifest is written last", ManifestFirst, "test_what_is_being_written_is_not_found"),
    Mutant("the manifest is written last", ManifestBesideTheFirstFile, "test_a_failed_write_is_never_found"),
    Mutant("a failed write", FaultsAreEnds, "test_a_failed_write_is_never_found"),
    Mutant("a failed write", FaultsLoseTheirType, "test_a_failed_write_is_never_found"),
    Mutant("a failed write", FindsFilesWithoutAManifest, "test_a_failed_write_is_never_found"),
    Mutant("all lies with the files", FindsWhatItWroteItself, "test_another_process_finds_it"),
    Mutant("all lies with the files", FilesAreOfThisObject, "test_another_process_finds_it"),
    Mutant("every row, in order", LosesTheLastBatch, "test_what_was_written_is_found_and_read"),
    Mutant("every row, in order", CountsTheFirstFile, "test_what_was_written_is_found_and_read"),
    Mutant("every row, in order", ReadsBackwards, "test_what_was_written_is_found_and_read"),
    Mutant("values stay as they are", NullsAreZero, "test_types_and_nulls_stay_as_they_are"),
    Mutant("values stay as they are", NumbersAreWide, "test_types_and_nulls_stay_as_they_are"),
    Mutant("an empty window", NoRowsNoBatch, "test_an_empty_window_keeps_its_schema"),
    Mutant("an empty window", EmptyIsIncomplete, "test_an_empty_window_keeps_its_schema"),
    Mutant("no batch is no window", NoBatchIsNoRow, "test_a_source_without_a_batch_is_a_fault"),
    Mutant("no batch is no window", NoBatchIsFoundLater, "test_a_source_without_a_batch_is_a_fault"),
    Mutant("writing again replaces", WritingAgainAdds, "test_writing_again_starts_afresh"),
    Mutant("writing again replaces", WritingAgainDoesNothing, "test_writing_again_starts_afresh"),
    Mutant("checked before it is read", ChecksumNotVerified, "test_a_damaged_file_is_an_error"),
    Mutant("checked before it is read", OnlyTheSizeIsVerified, "test_a_damaged_file_is_an_error"),
    Mutant("missing is not empty", MissingIsEmpty, "test_a_removed_file_is_an_error"),
    Mutant("missing is not empty", RemembersWhatWasRemoved, "test_a_removed_file_is_an_error"),
    Mutant("reading changes nothing", ReadsOnlyOnce, "test_a_read_closed_early_holds_nothing"),
    Mutant("reading changes nothing", ReadsOn, "test_a_read_closed_early_holds_nothing"),
    Mutant("prefixes", PrefixesAreFolders, "test_keys_and_find_take_a_prefix"),
    Mutant("prefixes", PrefixesAreCutToFolders, "test_keys_and_find_take_a_prefix"),
    Mutant("prefixes", FindsEverything, "test_keys_and_find_take_a_prefix"),
    Mutant("remove", RemovesNeighbours, "test_remove_touches_its_own_key_alone"),
    Mutant("remove", RemoveForgetsTheManifest, "test_remove_touches_its_own_key_alone"),
    Mutant("remove", RemoveWantsSomethingToRemove, "test_remove_touches_its_own_key_alone"),
    Mutant("any name, and none leads out", LeadsOut, "test_any_name_is_a_key_and_no_path_leads_out"),
    Mutant("any name, and none leads out", SimpleNamesOnly, "test_any_name_is_a_key_and_no_path_leads_out"),
    Mutant("a problem has a remedy", ComplainsInOneWord, "test_problems_come_with_a_remedy"),
    Mutant("a problem has a remedy", ComplainsOfNothing, "test_problems_come_with_a_remedy"),
    Mutant("many at once", OneBufferForAll, "test_workers_do_not_disturb_each_other"),
    Mutant("many at once", TidiesUpForAll, "test_workers_do_not_disturb_each_other"),
]


@pytest.mark.parametrize("mutant", TABLE, ids=lambda mutant: f"{mutant.kind.__name__}-{mutant.noticed_by}")
def test_the_suite_notices(mutant: Mutant) -> None:
    """The named test passes on a sound stage, and fails on the broken one."""
    getattr(Suite(Stage), mutant.noticed_by)()
    with pytest.raises((BrokenPromiseError, PipelineError)):
        getattr(Suite(mutant.kind), mutant.noticed_by)()


def test_every_test_of_the_suite_has_a_mutant() -> None:
    """A test that no broken stage fails would hold nothing."""
    assert {name for name in dir(Suite) if name.startswith("test_")} == {mutant.noticed_by for mutant in TABLE}


def test_every_promise_has_two() -> None:
    """One may be noticed for another reason than the promise."""
    promises = [mutant.promise for mutant in TABLE]
    assert {promise for promise in promises if promises.count(promise) < 2} == set()
