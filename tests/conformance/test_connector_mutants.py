"""Connectors that each break one promise, and the test of the suite that must notice."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from attrs import evolve, frozen

from pipeline_core import (
    Batches,
    Can,
    Claim,
    ExtractRequest,
    Load,
    PipelineError,
    Problem,
    Publication,
    SideError,
    Window,
)
from pipeline_core.ledger import Adoption, Entry, Scope
from pipeline_core.testing import BrokenPromiseError, ConnectorSuite, MemoryConnector, MemorySettings, MemoryTable
from pipeline_core.testing.memory_connector import MemoryPublication, Scratch

NUMBERS = count()
SECRET = "hunter2"


class Suite(ConnectorSuite):
    """The suite on one kind of connector."""

    can = frozenset(Can)
    secret = SECRET

    def __init__(self, kind: type[MemoryConnector]) -> None:
        self.kind = kind

    def fresh(self) -> MemorySettings:
        return MemorySettings(MemoryTable(f"t{next(NUMBERS)}", timeout_s=1), self.kind)

    def put(self, settings: MemorySettings, rows: Any) -> None:
        settings.table.put(rows)

    def scoped(self, settings: MemorySettings, scope: Scope) -> MemorySettings:
        return evolve(settings, scope=scope)

    @contextmanager
    def broken(self, settings: MemorySettings) -> Iterator[None]:
        settings.table.fault = SideError("the table is gone")
        yield
        settings.table.fault = None

    def leftovers(self, settings: MemorySettings) -> Sequence[str]:
        table = settings.table
        left = {"open sessions": table.sessions, "scratch": table.scratch, "a held lock": table.lock.locked()}
        return [what for what, number in left.items() if number]


def longer(window: Window) -> Window:
    return Window.from_us(window.start_us, window.end_us + 1)


# --- one boundary -----------------------------------------------------------------------------------------------------


class CountsTheEnd(MemoryConnector):
    """start <= t <= end."""

    def count(self, window: Window) -> int:
        return super().count(longer(window))


class CountsAfterTheStart(MemoryConnector):
    """start < t <= end."""

    def count(self, window: Window) -> int:
        return super().count(Window.from_us(window.start_us + 1, window.end_us + 1))


class CountsMilliseconds(MemoryConnector):
    """The bounds lose their microseconds."""

    def count(self, window: Window) -> int:
        start_us, end_us = window.start_us // 1000 * 1000, window.end_us // 1000 * 1000
        return super().count(Window.from_us(start_us, end_us)) if start_us < end_us else 0


class ExtractsTheEnd(MemoryConnector):
    """The row at the end is extracted twice."""

    def extract(self, request: ExtractRequest) -> Batches:
        return super().extract(evolve(request, window=longer(request.window)))


class DeletesTheEnd(MemoryConnector):
    """The first row of the next window goes."""

    class publication(MemoryPublication):  # noqa: N801 - named as the attribute it takes the place of
        """Deletes start <= t <= end."""

        def delete(self, window: Window) -> int:
            return super().delete(longer(window))


class CountsTheEndInside(MemoryConnector):
    """The check of a publication looks at another window than it replaces."""

    class publication(MemoryPublication):  # noqa: N801
        """Counts start <= t <= end."""

        def count(self, window: Window) -> int:
            return super().count(longer(window))


# --- unknown is not zero ----------------------------------------------------------------------------------------------


class ZeroForAFailedCount(MemoryConnector):
    """A side that cannot be reached looks empty."""

    def count(self, window: Window) -> int:
        try:
            return super().count(window)
        except PipelineError:
            return 0


class ZeroForAFailedBulkCount(MemoryConnector):
    """One by one it would have been an error."""

    def count_many(self, windows: Sequence[Window]) -> Sequence[int]:
        try:
            return super().count_many(windows)
        except PipelineError:
            return [0] * len(windows)


class RemembersItsCounts(MemoryConnector):
    """What was true once stays true."""

    def __init__(self, table: MemoryTable, scope: Scope) -> None:
        super().__init__(table, scope)
        self.counts: dict[Window, int] = {}

    def count(self, window: Window) -> int:
        if window not in self.counts:
            self.counts[window] = super().count(window)
        return self.counts[window]


class ExtractsNothingFromAFailure(MemoryConnector):
    """An error ends the rows as the last row does."""

    def extract(self, request: ExtractRequest) -> Batches:
        try:
            yield from super().extract(request)
        except PipelineError:
            yield pa.RecordBatch.from_pylist([], pa.schema([("at", pa.timestamp("us", "UTC"))]))


class CountsInItsOwnOrder(MemoryConnector):
    """The counts of many windows come in order of time."""

    def count_many(self, windows: Sequence[Window]) -> Sequence[int]:
        return super().count_many(sorted(windows))


class CountsEachWindowOnce(MemoryConnector):
    """A window asked for twice is answered once."""

    def count_many(self, windows: Sequence[Window]) -> Sequence[int]:
        return super().count_many(list(dict.fromkeys(windows)))


# --- NULLs, batches, columns ------------------------------------------------------------------------------------------


class HidesRowsWithoutATimestamp(MemoryConnector):
    """Nobody hears of them."""

    def excluded(self) -> int:
        return 0


class CountsRowsWithoutATimestamp(MemoryConnector):
    """They belong to every window."""

    def count(self, window: Window) -> int:
        return super().count(window) + super().excluded()


class DropsNulls(MemoryConnector):
    """A row that lacks a value is no row."""

    def extract(self, request: ExtractRequest) -> Batches:
        for batch in super().extract(request):
            yield batch.drop_null()


class NullIsEmptyText(MemoryConnector):
    """As one database has it."""

    def extract(self, request: ExtractRequest) -> Batches:
        for batch in super().extract(request):
            at = batch.column_names.index("text") if "text" in batch.column_names else None
            yield batch if at is None else batch.set_column(at, "text", pc.fill_null(batch.column(at), ""))


class OneBatchForAll(MemoryConnector):
    """However large the window."""

    def extract(self, request: ExtractRequest) -> Batches:
        return super().extract(evolve(request, batch_rows=10**9))


class LosesTheLastBatch(MemoryConnector):
    """The one that is not full."""

    def extract(self, request: ExtractRequest) -> Batches:
        batches = list(super().extract(request))
        yield from (batch for batch in batches if len(batch) == request.batch_rows or batch is batches[0])


class NoBatchForNoRow(MemoryConnector):
    """An empty window has no schema."""

    def extract(self, request: ExtractRequest) -> Batches:
        yield from (batch for batch in super().extract(request) if len(batch))


class AnotherSchemaForNoRow(MemoryConnector):
    """An empty window has one of its own."""

    def extract(self, request: ExtractRequest) -> Batches:
        for batch in super().extract(request):
            yield batch if len(batch) else batch.select([0])


class ExcludesNothing(MemoryConnector):
    """A column that nobody may see is staged."""

    def extract(self, request: ExtractRequest) -> Batches:
        return super().extract(evolve(request, exclude=frozenset()))


class ExcludesWhatItKnows(MemoryConnector):
    """A misspelt name excludes nothing."""

    def extract(self, request: ExtractRequest) -> Batches:
        names = self.table.rows.table.column_names
        return super().extract(evolve(request, exclude=request.exclude & {*names}))


class IgnoresTheNamesOfColumns(MemoryConnector):
    """The map from source to target is not looked at; what has no column is dropped."""

    def upload(self, load: Load) -> None:
        def read() -> Batches:
            return (batch.select([name for name in batch.column_names if name != "title"]) for batch in load.read())

        super().upload(evolve(load, read=read, columns={}))


# --- exactly once -----------------------------------------------------------------------------------------------------


class CommitsTheDelete(MemoryConnector):
    """Before the insert: a crash between the two leaves a hole."""

    class publication(MemoryPublication):  # noqa: N801
        """Deletes for good."""

        def delete(self, window: Window) -> int:
            gone = super().delete(window)
            self.table.rows = self.rows
            return gone


class CommitsTheInsert(MemoryConnector):
    """Before the count: what lands in the wrong window stays."""

    class publication(MemoryPublication):  # noqa: N801
        """Inserts for good."""

        def insert(self, load: Load) -> None:
            super().insert(load)
            self.table.rows = self.rows


class InsertsBesideTheOldRows(MemoryConnector):
    """Without a transaction: new rows come batch by batch, and the old ones were to go last."""

    class publication(MemoryPublication):  # noqa: N801
        """Inserts each batch for good."""

        def delete(self, window: Window) -> int:
            return len(self.guarded().inside(window, self.scope))

        def insert(self, load: Load) -> None:
            for batch in load.read():
                self.rows = self.table.rows = self.guarded().plus(self.table.fitted(pa.table(batch)))


class CommitsTheLedger(MemoryConnector):
    """With the guard: what was rolled back counts as published."""

    class publication(MemoryPublication):  # noqa: N801
        """Enters the fence for good."""

        def check(self, claim: Claim) -> None:
            super().check(claim)
            self.table.ledger = self.ledger


class CommitsOnAnyEnd(MemoryConnector):
    """An exception ends a transaction like any other end."""

    @contextmanager
    def transaction(self) -> Iterator[Publication]:
        publication = self.publication(self.table, self.scope, self.scratch)
        try:
            yield publication
        finally:
            publication.commit()
            publication.release()


class ChecksBeforeItLocks(MemoryConnector):
    """Two workers that find no entry both pass."""

    class publication(MemoryPublication):  # noqa: N801
        """Reads the ledger, then waits."""

        def guard(self, load: Load) -> None:
            self.check(load.claim)
            self.lock()
            self.rows = self.table.rows


class LocksNothing(MemoryConnector):
    """Two publications go on at once."""

    class publication(MemoryPublication):  # noqa: N801
        """Does not wait."""

        def lock(self) -> None:
            pass


class IgnoresTheFence(MemoryConnector):
    """Whoever comes last has published."""

    class publication(MemoryPublication):  # noqa: N801
        """Enters itself in place of all that overlap."""

        def check(self, claim: Claim) -> None:
            window, pipeline = claim.window, claim.record.pipeline
            others = [e for e in self.table.ledger if e.end_us <= window.start_us or e.start_us >= window.end_us]
            self.ledger = (*others, Entry(pipeline, window.start_us, window.end_us, claim.fence))


class FencesOfTheSameWindowOnly(MemoryConnector):
    """After a re-cut a late worker of the old window is not refused."""

    class publication(MemoryPublication):  # noqa: N801
        """Finds the entry by its bounds."""

        def check(self, claim: Claim) -> None:
            whole, window = self.table.ledger, claim.window
            same = [e for e in whole if (e.start_us, e.end_us) == (window.start_us, window.end_us)]
            self.table.ledger = tuple(same)
            try:
                super().check(claim)
            finally:
                self.table.ledger = whole
            self.ledger += tuple(e for e in whole if e not in same)


class ForgetsWhatSticksOut(MemoryConnector):
    """The rest of a clipped window loses its fence."""

    class publication(MemoryPublication):  # noqa: N801
        """Enters itself alone."""

        def check(self, claim: Claim) -> None:
            super().check(claim)
            kept = [e for e in self.ledger if e in self.table.ledger or e.fence == claim.fence]
            self.ledger = tuple(kept)


class TouchingIsOverlapping(MemoryConnector):
    """The next window is refused."""

    class publication(MemoryPublication):  # noqa: N801
        """Looks a microsecond too far to the left."""

        def check(self, claim: Claim) -> None:
            window = Window.from_us(claim.window.start_us - 1, claim.window.end_us)
            super().check(evolve(claim, record=evolve(claim.record, window=window)))


class IgnoresThePipeline(MemoryConnector):
    """Two pipelines replace each other's rows."""

    class publication(MemoryPublication):  # noqa: N801
        """Takes every entry for its own."""

        def check(self, claim: Claim) -> None:
            whole = self.table.ledger
            self.table.ledger = tuple(evolve(e, pipeline=claim.record.pipeline) for e in whole)
            try:
                super().check(claim)
            finally:
                self.table.ledger = whole


class NothingIsPublished(MemoryConnector):
    """A lost reply to the commit means: again."""

    def published(self, load: Load) -> bool:
        return False


class AnyFenceIsPublished(MemoryConnector):
    """Another worker's publication passes for one's own."""

    def published(self, load: Load) -> bool:
        window = load.window
        return any((e.start_us, e.end_us) == (window.start_us, window.end_us) for e in self.table.ledger)


class GuardIsOptional(MemoryConnector):
    """A publication may begin anywhere."""

    class publication(MemoryPublication):  # noqa: N801
        """Needs no permission."""

        def guarded(self) -> Any:
            return self.table.rows if self.rows is None else self.rows


class UploadsOnTop(MemoryConnector):
    """Uploading again doubles the rows."""

    def upload(self, load: Load) -> None:
        before = self.scratch.get((load.claim.record.pipeline, load.window))
        super().upload(load)
        if before is not None:
            key = (load.claim.record.pipeline, load.window)
            self.scratch[key] = evolve(self.scratch[key], rows=before.rows.plus(self.scratch[key].rows))


class UploadsInPlace(MemoryConnector):
    """Scratch is the table itself."""

    def upload(self, load: Load) -> None:
        super().upload(load)
        self.table.rows = self.table.rows.plus(self.scratch[load.claim.record.pipeline, load.window].rows)


class DeletesNothing(MemoryConnector):
    """A publication adds."""

    class publication(MemoryPublication):  # noqa: N801
        """Says that it deleted."""

        def delete(self, window: Window) -> int:
            return len(self.guarded().inside(window, self.scope))


class DeletesEverything(MemoryConnector):
    """A publication replaces the table."""

    class publication(MemoryPublication):  # noqa: N801
        """Keeps no row."""

        def delete(self, window: Window) -> int:
            gone = super().delete(window)
            self.rows = self.guarded().take([])
            return gone


class AnyScratchWillDo(MemoryConnector):
    """Rows of other staged files are published."""

    class publication(MemoryPublication):  # noqa: N801
        """Finds scratch by its window alone."""

        def find(self, load: Load) -> Scratch:
            return self.scratch[load.claim.record.pipeline, load.window]


class DiscardsHigherFences(MemoryConnector):
    """A late worker's cleaning takes its successor's rows."""

    def discard(self, claim: Claim) -> None:
        super().discard(evolve(claim, fence=2**62))


class DiscardsNothing(MemoryConnector):
    """Scratch stays for ever."""

    def discard(self, claim: Claim) -> None:
        pass


class LeavesHalfAnUpload(MemoryConnector):
    """What a failed one has brought stays until the connector is closed."""

    def upload(self, load: Load) -> None:
        try:
            super().upload(load)
        except OSError:
            self.table.scratch += 1
            raise


class SwallowsTheStagesError(MemoryConnector):
    """Half of the rows pass for all of them."""

    def upload(self, load: Load) -> None:
        def read() -> Batches:
            try:
                yield from load.read()
            except OSError:
                return

        super().upload(evolve(load, read=read))


# --- submitted loads --------------------------------------------------------------------------------------------------


class SubmitsForItself(MemoryConnector):
    """What was submitted ends with its connector, as temporary tables do."""

    def close(self) -> None:
        for token in list(self.table.submitted):
            self.cancel(token)
        super().close()


class SubmitsInPlace(MemoryConnector):
    """Scratch is the table itself."""

    def submit(self, load: Load) -> str:
        token = super().submit(load)
        self.table.rows = self.table.rows.plus(self.table.submitted[token].scratch.rows)
        return token


class EverythingIsUploaded(MemoryConnector):
    """What is not there, too."""

    def uploaded(self, token: str) -> bool:
        return True


class SubmitsNoEmptyLoad(MemoryConnector):
    """No row, no scratch."""

    def submit(self, load: Load) -> str:
        token = super().submit(load)
        if not load.staged.rows:
            self.cancel(token)
        return token


class SubmitsBeside(MemoryConnector):
    """Each task that is run again leaves what the former had submitted."""

    def submit(self, load: Load) -> str:
        before = dict(self.table.submitted)
        token = super().submit(load)
        self.table.scratch += len(before.keys() - self.table.submitted.keys())
        self.table.submitted |= before
        return token


class CancelsNothing(MemoryConnector):
    """It goes on."""

    def cancel(self, token: str) -> None:
        pass


class CancelsOnce(MemoryConnector):
    """What is gone is an error."""

    def cancel(self, token: str) -> None:
        self.uploaded(token)
        super().cancel(token)


class DiscardsHigherSubmissions(MemoryConnector):
    """A late worker's cleaning takes what its successor has submitted."""

    def withdraw(self, claim: Claim) -> None:
        super().withdraw(evolve(claim, fence=2**62))


class DiscardsItsOwnAlone(MemoryConnector):
    """What another process has submitted stays for ever."""

    def discard(self, claim: Claim) -> None:
        self.drop(claim)


class DiscardsEveryWindow(MemoryConnector):
    """What was submitted of another window goes too."""

    def withdraw(self, claim: Claim) -> None:
        for each in [each.window for each in self.table.submitted.values()]:
            super().withdraw(evolve(claim, record=evolve(claim.record, window=each)))


class AnyTokenWillDo(MemoryConnector):
    """Whatever files it was submitted for."""

    class publication(MemoryPublication):  # noqa: N801
        """Finds scratch by its token alone."""

        def find(self, load: Load) -> Scratch:
            return self.table.submitted[load.token].scratch if load.token else super().find(load)


class SubmitsHalf(MemoryConnector):
    """What came before the stage's error passes for all."""

    def submit(self, load: Load) -> str:
        def read() -> Batches:
            try:
                yield from load.read()
            except OSError:
                return

        return super().submit(evolve(load, read=read))


# --- shared tables ----------------------------------------------------------------------------------------------------


class CountsPastItsScope(MemoryConnector):
    """The rows of the others are counted too."""

    def count(self, window: Window) -> int:
        return len(self.table.rows.inside(window, {}))


class ExcludesPastItsScope(MemoryConnector):
    """The others' rows without a timestamp are told as one's own."""

    def excluded(self) -> int:
        return self.table.rows.instants.count(None)


class ExtractsPastItsScope(MemoryConnector):
    """The rows of the others are staged."""

    def extract(self, request: ExtractRequest) -> Batches:
        self.scope = {}
        return super().extract(request)


class DeletesPastItsScope(MemoryConnector):
    """The rows of the others go."""

    class publication(MemoryPublication):  # noqa: N801
        """Deletes the whole window."""

        def delete(self, window: Window) -> int:
            mine = super().delete(window)
            self.rows = self.guarded().without(self.guarded().inside(window, {}))
            return mine


class CountsPastItsScopeInside(MemoryConnector):
    """Every load into a shared window is rolled back."""

    class publication(MemoryPublication):  # noqa: N801
        """Counts the whole window."""

        def count(self, window: Window) -> int:
            return len(self.guarded().inside(window, {}))


class OneLedgerForAllScopes(MemoryConnector):
    """Whoever shares the table is refused."""

    class publication(MemoryPublication):  # noqa: N801
        """Enters the whole table."""

        def check(self, claim: Claim) -> None:
            self.scope = {}
            super().check(claim)


class ALedgerForEachScope(MemoryConnector):
    """Only an equal scope is looked at."""

    class publication(MemoryPublication):  # noqa: N801
        """Does not see that two scopes overlap."""

        def check(self, claim: Claim) -> None:
            whole = self.table.ledger
            self.table.ledger = tuple(e for e in whole if e.scope == self.scope)
            try:
                super().check(claim)
            finally:
                self.table.ledger = whole


class TakesRowsOutsideItsScope(MemoryConnector):
    """They are lost to its own counts."""

    def upload(self, load: Load) -> None:
        self.scope, mine = {}, self.scope
        try:
            super().upload(load)
        finally:
            self.scope = mine


class AdoptsWithoutTheFence(MemoryConnector):
    """A late worker passes."""

    def adopt(self, adoption: Adoption) -> Sequence[Entry]:
        found = super().adopt(adoption)
        self.table.ledger = tuple(evolve(e, fence=0) if e in found else e for e in self.table.ledger)
        return found


class AdoptsPastItsSpan(MemoryConnector):
    """All that the other has published."""

    def adopt(self, adoption: Adoption) -> Sequence[Entry]:
        super().adopt(evolve(adoption, within=None))
        within = adoption.within
        return [Entry(adoption.pipeline, within.start_us, within.end_us, 10)] if self.table.ledger and within else []


class AdoptsFromAnyone(MemoryConnector):
    """Whoever was named."""

    def adopt(self, adoption: Adoption) -> Sequence[Entry]:
        return super().adopt(evolve(adoption, from_pipeline="flights"))


class AdoptsNothing(MemoryConnector):
    """And says that it did."""

    def adopt(self, adoption: Adoption) -> Sequence[Entry]:
        whole = self.table.ledger
        found = super().adopt(adoption)
        self.table.ledger = whole
        return found


class AdoptsInEarnest(MemoryConnector):
    """Whoever only wanted to look has taken over."""

    def adopt(self, adoption: Adoption) -> Sequence[Entry]:
        return super().adopt(evolve(adoption, dry_run=False))


class AdoptsPastItsScope(MemoryConnector):
    """The whole table is taken over."""

    def adopt(self, adoption: Adoption) -> Sequence[Entry]:
        self.scope, mine = {}, self.scope
        try:
            return super().adopt(adoption)
        finally:
            self.scope = mine


# --- clean exits, no secret -------------------------------------------------------------------------------------------


class LeavesScratch(MemoryConnector):
    """On the way out."""

    def close(self) -> None:
        self.table.sessions -= 1


class LeavesItsSession(MemoryConnector):
    """Whatever ends it."""

    def close(self) -> None:
        super().close()
        self.table.sessions += 1


class HoldsTheLockAfterAFailure(MemoryConnector):
    """Only a commit frees it."""

    @contextmanager
    def transaction(self) -> Iterator[Publication]:
        publication = self.publication(self.table, self.scope, self.scratch)
        yield publication
        publication.commit()
        publication.release()


class ExtractionsStayOpen(MemoryConnector):
    """Unless they are read to the end."""

    def extract(self, request: ExtractRequest) -> Batches:
        self.table.sessions += 1
        yield from super().extract(request)
        self.table.sessions -= 1


class IdentityWithASecret(MemoryConnector):
    """Where everybody can read it."""

    @property
    def identity(self) -> Mapping[str, str]:
        return {**super().identity, "url": f"memory://user:{SECRET}@host"}


class ErrorWithASecret(MemoryConnector):
    """The driver quoted the URL."""

    def count(self, window: Window) -> int:
        try:
            return super().count(window)
        except SideError:
            raise SideError(f"memory://user:{SECRET}@host cannot be reached") from None


class AnotherIdentityEachTime(MemoryConnector):
    """All that was verified is counted again."""

    @property
    def identity(self) -> Mapping[str, str]:
        return {**super().identity, "session": uuid4().hex}


class OneIdentityForAll(MemoryConnector):
    """What was verified elsewhere passes for verified here."""

    @property
    def identity(self) -> Mapping[str, str]:
        return {"technology": "memory"}


# --- the rest ---------------------------------------------------------------------------------------------------------


class UploadsInPart(MemoryConnector):
    """The last batch is lost."""

    def upload(self, load: Load) -> None:
        super().upload(evolve(load, read=lambda: (batch for batch in list(load.read())[:-1])))


class OneWindowForAll(MemoryConnector):
    """What is counted is shared between the sides of all threads."""

    asked: Window

    def count(self, window: Window) -> int:
        OneWindowForAll.asked = window
        time.sleep(random.random() / 100)
        return super().count(OneWindowForAll.asked)


class CommitsWhatItRead(LocksNothing):
    """The rows of a neighbour that committed meanwhile are gone."""

    class publication(LocksNothing.publication):  # noqa: N801
        """Takes its time."""

        def insert(self, load: Load) -> None:
            super().insert(load)
            time.sleep(0.005)


class ProblemsWithoutARemedy(MemoryConnector):
    """Something is wrong, and that is all."""

    def problems(self) -> Sequence[Problem]:
        return [Problem("no index", "")]


@frozen
class Mutant:
    """A broken connector, and the test that notices."""

    promise: str
    kind: type[MemoryConnector]
    noticed_by: str


BOUNDARY = "test_a_window_holds_its_start_and_not_its_end"
FAILS = "test_a_side_that_fails_is_never_counted_as_empty"
ROLLBACK = "test_a_failure_after_any_verb_leaves_the_old_rows"
STALE = "test_a_stale_fence_writes_nothing"
ALONE = "test_a_publication_replaces_its_window_alone"
VALUES = "test_what_is_extracted_is_what_was_put"
IDENTITY = "test_identity_is_stable_and_without_a_secret"
SCOPED = "test_a_scope_limits_what_is_counted_and_extracted"
ADOPTION = "test_an_adoption_hands_the_ledger_over"
SUBMITTED = "test_a_submitted_load_is_published_by_another_side"
DISCARDS_SUBMITTED = "test_discard_drops_what_was_submitted_under_its_fence_and_lower_ones"
TABLE = [
    Mutant("one boundary", CountsTheEnd, BOUNDARY),
    Mutant("one boundary", CountsTheEnd, "test_counts_of_tiles_add_up"),
    Mutant("one boundary", CountsAfterTheStart, BOUNDARY),
    Mutant("one boundary", CountsAfterTheStart, "test_counts_of_tiles_add_up"),
    Mutant("one boundary", CountsMilliseconds, BOUNDARY),
    Mutant("one boundary", ExtractsTheEnd, VALUES),
    Mutant("one boundary", DeletesTheEnd, ALONE),
    Mutant("one boundary", CountsTheEndInside, ALONE),
    Mutant("unknown is not zero", ZeroForAFailedCount, FAILS),
    Mutant("unknown is not zero", ZeroForAFailedCount, "test_a_fault_between_two_counts_is_noticed"),
    Mutant("unknown is not zero", ZeroForAFailedBulkCount, FAILS),
    Mutant("unknown is not zero", HidesRowsWithoutATimestamp, FAILS),
    Mutant("unknown is not zero", ExtractsNothingFromAFailure, FAILS),
    Mutant("unknown is not zero", RemembersItsCounts, "test_a_fault_between_two_counts_is_noticed"),
    Mutant("unknown is not zero", RemembersItsCounts, "test_rows_that_come_later_are_counted"),
    Mutant("count_many agrees", CountsInItsOwnOrder, "test_count_many_answers_in_the_order_given"),
    Mutant("count_many agrees", CountsEachWindowOnce, "test_count_many_answers_in_the_order_given"),
    Mutant("NULLs", HidesRowsWithoutATimestamp, "test_rows_without_a_timestamp_are_in_no_window_and_not_hidden"),
    Mutant("NULLs", CountsRowsWithoutATimestamp, "test_rows_without_a_timestamp_are_in_no_window_and_not_hidden"),
    Mutant("NULLs", DropsNulls, VALUES),
    Mutant("NULLs", NullIsEmptyText, VALUES),
    Mutant("batches", OneBatchForAll, "test_batches_are_as_small_as_asked"),
    Mutant("batches", LosesTheLastBatch, "test_batches_are_as_small_as_asked"),
    Mutant("empty windows", NoBatchForNoRow, "test_an_empty_window_has_a_schema"),
    Mutant("empty windows", AnotherSchemaForNoRow, "test_an_empty_window_has_a_schema"),
    Mutant("columns", ExcludesNothing, "test_excluded_columns_are_left_out"),
    Mutant("columns", ExcludesWhatItKnows, "test_excluded_columns_are_left_out"),
    Mutant("columns", IgnoresTheNamesOfColumns, "test_columns_are_renamed_as_the_load_says"),
    Mutant("whole or not at all", CommitsTheDelete, ROLLBACK),
    Mutant("whole or not at all", CommitsTheDelete, "test_a_publication_is_seen_whole_or_not_at_all"),
    Mutant("whole or not at all", CommitsTheInsert, ROLLBACK),
    Mutant("whole or not at all", InsertsBesideTheOldRows, "test_half_a_load_does_not_count_as_whole"),
    Mutant("whole or not at all", CommitsTheLedger, ROLLBACK),
    Mutant("whole or not at all", CommitsOnAnyEnd, ROLLBACK),
    Mutant("fenced", ChecksBeforeItLocks, "test_overlapping_publications_queue_at_the_guard"),
    Mutant("fenced", LocksNothing, "test_overlapping_publications_queue_at_the_guard"),
    Mutant("fenced", IgnoresTheFence, STALE),
    Mutant("fenced", FencesOfTheSameWindowOnly, STALE),
    Mutant("fenced", ForgetsWhatSticksOut, "test_a_clipped_window_still_refuses_its_late_worker"),
    Mutant("fenced", TouchingIsOverlapping, "test_touching_windows_do_not_refuse_each_other"),
    Mutant("fenced", IgnoresThePipeline, "test_rows_of_another_pipeline_are_not_replaced"),
    Mutant("fenced", GuardIsOptional, "test_a_publication_begins_with_its_guard"),
    Mutant("the ledger decides", NothingIsPublished, "test_published_tells_what_the_ledger_holds"),
    Mutant("the ledger decides", AnyFenceIsPublished, "test_published_tells_what_the_ledger_holds"),
    Mutant("repeating is harmless", UploadsOnTop, "test_uploading_and_publishing_again_changes_nothing"),
    Mutant("repeating is harmless", DeletesNothing, "test_uploading_and_publishing_again_changes_nothing"),
    Mutant("its window alone", DeletesEverything, ALONE),
    Mutant("its window alone", DeletesNothing, "test_a_load_without_a_row_empties_its_window"),
    Mutant("scratch", UploadsInPlace, "test_scratch_is_seen_by_nobody"),
    Mutant("scratch", AnyScratchWillDo, "test_only_what_was_uploaded_is_published"),
    Mutant("scratch", DiscardsHigherFences, "test_discard_drops_scratch_of_its_fence_and_lower_ones"),
    Mutant("scratch", DiscardsNothing, "test_discard_drops_scratch_of_its_fence_and_lower_ones"),
    Mutant("scratch", SwallowsTheStagesError, "test_a_failing_stage_keeps_its_error"),
    Mutant("scratch", LeavesHalfAnUpload, "test_a_failing_stage_keeps_its_error"),
    Mutant("submitted loads", SubmitsForItself, SUBMITTED),
    Mutant("submitted loads", SubmitsInPlace, SUBMITTED),
    Mutant("submitted loads", EverythingIsUploaded, SUBMITTED),
    Mutant("submitted loads", DiscardsItsOwnAlone, SUBMITTED),
    Mutant("submitted loads", SubmitsNoEmptyLoad, "test_a_submitted_load_without_a_row_empties_its_window"),
    Mutant("submitted loads", SubmitsBeside, "test_submitting_again_takes_the_place_of_the_former"),
    Mutant("submitted loads", CancelsNothing, "test_cancel_ends_what_was_submitted"),
    Mutant("submitted loads", CancelsOnce, "test_cancel_ends_what_was_submitted"),
    Mutant("submitted loads", DiscardsHigherSubmissions, DISCARDS_SUBMITTED),
    Mutant("submitted loads", DiscardsItsOwnAlone, DISCARDS_SUBMITTED),
    Mutant("submitted loads", DiscardsEveryWindow, DISCARDS_SUBMITTED),
    Mutant("submitted loads", AnyTokenWillDo, "test_only_what_was_submitted_is_published"),
    Mutant("submitted loads", SubmitsHalf, "test_a_failing_stage_submits_nothing"),
    Mutant("clean exits", LeavesScratch, "test_leaving_the_side_releases_everything"),
    Mutant("clean exits", LeavesItsSession, "test_leaving_the_side_releases_everything"),
    Mutant("clean exits", HoldsTheLockAfterAFailure, "test_leaving_the_side_releases_everything"),
    Mutant("clean exits", ExtractionsStayOpen, "test_an_extraction_closed_early_leaves_nothing_behind"),
    Mutant("a load lands", UploadsInPart, "test_a_load_lands"),
    Mutant("many threads", OneWindowForAll, "test_threads_each_with_a_side_of_its_own"),
    Mutant("many threads", CommitsWhatItRead, "test_neighbouring_windows_at_once"),
    Mutant("remedies", ProblemsWithoutARemedy, "test_problems_come_with_a_remedy"),
    Mutant("no secret", IdentityWithASecret, IDENTITY),
    Mutant("no secret", ErrorWithASecret, FAILS),
    Mutant("shared tables", CountsPastItsScope, SCOPED),
    Mutant("shared tables", ExcludesPastItsScope, SCOPED),
    Mutant("shared tables", ExtractsPastItsScope, SCOPED),
    Mutant("shared tables", DeletesPastItsScope, "test_a_publication_replaces_its_scope_alone"),
    Mutant("shared tables", CountsPastItsScopeInside, "test_a_publication_replaces_its_scope_alone"),
    Mutant("shared tables", OneLedgerForAllScopes, "test_scopes_apart_share_a_span"),
    Mutant("shared tables", ALedgerForEachScope, "test_overlapping_scopes_are_refused_by_name"),
    Mutant("shared tables", TakesRowsOutsideItsScope, "test_a_staged_row_outside_the_scope_is_refused"),
    Mutant("adoption", AdoptsWithoutTheFence, ADOPTION),
    Mutant("adoption", AdoptsPastItsSpan, ADOPTION),
    Mutant("adoption", AdoptsFromAnyone, ADOPTION),
    Mutant("adoption", AdoptsNothing, ADOPTION),
    Mutant("adoption", AdoptsInEarnest, ADOPTION),
    Mutant("adoption", AdoptsPastItsScope, "test_an_adoption_keeps_to_its_scope"),
    Mutant("identity", OneIdentityForAll, "test_identity_tells_scopes_apart"),
    Mutant("identity", AnotherIdentityEachTime, IDENTITY),
    Mutant("identity", OneIdentityForAll, IDENTITY),
]


@pytest.mark.parametrize("mutant", TABLE, ids=lambda mutant: f"{mutant.kind.__name__}-{mutant.noticed_by}")
def test_the_suite_notices(mutant: Mutant) -> None:
    """The named test passes on the sound connector, and fails on the broken one."""
    getattr(Suite(MemoryConnector), mutant.noticed_by)()
    with pytest.raises((BrokenPromiseError, PipelineError)):
        getattr(Suite(mutant.kind), mutant.noticed_by)()


def test_every_test_of_the_suite_has_a_mutant() -> None:
    """A test that no broken connector fails would hold nothing."""
    tests = {name for name in dir(Suite) if name.startswith("test_")}
    assert tests == {mutant.noticed_by for mutant in TABLE}
