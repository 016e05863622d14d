"""The conformance suite of connectors: counting for all, extracting and loading for those that declare it."""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from functools import partial
from itertools import pairwise
from threading import Event, Thread
from typing import Any, ClassVar, cast

import pyarrow as pa
import pytest
from attrs import evolve

from pipeline_core.contracts import (
    Can,
    Connector,
    Context,
    DeferredTarget,
    ExtractRequest,
    Load,
    Publication,
    Settings,
    Source,
    Staged,
    Target,
)
from pipeline_core.errors import ClaimLostError, PipelineError, TransientError
from pipeline_core.ledger import Adoption, Entry, Given
from pipeline_core.record import Claim, Record
from pipeline_core.testing.findings import expect, expect_error, report
from pipeline_core.testing.together import healed
from pipeline_core.window import SECOND_US, Window

PIPELINE = "flights"
HOUR_US = 3600 * SECOND_US
START_US = 1_362_873_600 * SECOND_US  # 2013-03-10T00:00:00Z
DAY = Window.from_us(START_US, START_US + 24 * HOUR_US)
NOON = Window.from_us(START_US + 12 * HOUR_US, START_US + 13 * HOUR_US)
EMPTY = Window.from_us(START_US - 48 * HOUR_US, START_US - 47 * HOUR_US)
#: One row at each, around the two bounds of NOON.
EDGES = [bound + us for bound in (NOON.start_us, NOON.end_us) for us in (-1, 0, 1)]
HOSTILE = ["", "O'Hare", '"', "a\\b", "100%", ":x ?", "-- ; DROP TABLE t", "line\nbreak\ttab", "漢字 🛫", "NULL"]
HALVES = ["eu", "us"]
WAIT_S = 30
TRIES = 50

Step = Callable[[], object]


class ConnectorSuite(ABC):
    """What every connector promises, as far as it declares it. Subclass it in a test module::

        class TestMyTable(ConnectorSuite):
            can = {Can.EXTRACT, Can.LOAD, Can.ATOMIC}

            def fresh(self):
                return MySettings(url=..., table=f"t_{uuid4().hex}", timestamp_column="at")

            def put(self, settings, rows): ...
            def broken(self, settings): ...

    The rows have the columns `at` (timestamp[us, UTC]; another name by `timestamp`), `n` (int64), `text` (string) and
    `ratio` (float64), the latter two with NULLs. A test that asks for what is not declared is skipped, with the reason.
    `secret` is a text that the settings hold and nothing may show.
    """

    can: ClassVar[Iterable[Can]]
    timestamp: ClassVar[str] = "at"
    secret: ClassVar[str | None] = None

    @abstractmethod
    def fresh(self) -> Settings[Connector]:
        """Settings of a side without any row. Each call gives another one."""

    @abstractmethod
    def put(self, settings: Settings[Connector], rows: pa.Table) -> None:
        """Adds rows to the side, past the connector. Called first of all, perhaps with no row: makes the table."""

    def broken(self, settings: Settings[Connector]) -> AbstractContextManager[None]:
        """As long as it lasts, whoever asks the side fails: a table renamed, a server stopped, a network cut."""
        pytest.skip(f"{type(self).__name__} does not say how to break its side (broken)")

    def leftovers(self, settings: Settings[Connector]) -> Sequence[str]:
        """What lies about in the side that no reader expects: scratch tables, open sessions, locks. None by default."""
        return ()

    def scoped(self, settings: Settings[Connector], scope: Given) -> Settings[Connector]:
        """The same side, limited to the rows whose columns hold these values."""
        pytest.skip(f"{type(self).__name__} does not say how to limit its side to a scope (scoped)")

    # --- counting -----------------------------------------------------------------------------------------------------

    def test_a_window_holds_its_start_and_not_its_end(self) -> None:
        """To the microsecond: the row at the end is counted in the next window."""
        with self._side(EDGES) as side:
            self._count(side, NOON, 3)
            self._count(side, Window.from_us(NOON.start_us - HOUR_US, NOON.start_us), 1)
            self._count(side, Window.from_us(NOON.end_us, NOON.end_us + HOUR_US), 2)
            for us in EDGES:
                self._count(side, Window.from_us(us, us + 1), 1)

    def test_counts_of_tiles_add_up(self) -> None:
        """However time is cut, each row is counted exactly once."""
        chance = random.Random(7)  # noqa: S311 - the same rows in each run
        rows = [chance.randrange(DAY.start_us, DAY.end_us) for _ in range(200)]
        cuts = sorted({*chance.sample(rows, 30), *(us + 1 for us in chance.sample(rows, 30))})
        bounds = [DAY.start_us, *[us for us in cuts if DAY.start_us < us < DAY.end_us], DAY.end_us]
        tiles = [Window.from_us(*pair) for pair in pairwise(bounds)]
        with self._side(rows) as side:
            self._count(side, DAY, len(rows))
            counts = [side.count(tile) for tile in tiles]
            for tile, count in zip(tiles, counts, strict=True):
                expected = sum(tile.start_us <= us < tile.end_us for us in rows)
                expect("count: each row belongs to one tile", side, count, expected, window=tile)
            expect("count_many agrees with count", side, list(side.count_many(tiles)), counts, window=DAY)

    def test_count_many_answers_in_the_order_given(self) -> None:
        """Windows may come in any order, overlap, repeat, hold nothing; and there may be none."""
        windows = [NOON, EMPTY, DAY, NOON, Window.from_us(NOON.start_us + 1, NOON.end_us + 1)]
        with self._side(EDGES) as side:
            found = list(side.count_many(windows))
            expect("count_many agrees with count, in order", side, found, [3, 0, 6, 3, 3])
            expect("count_many of no window", side, list(side.count_many([])), [])

    def test_rows_without_a_timestamp_are_in_no_window_and_not_hidden(self) -> None:
        """They are counted by excluded() alone."""
        with self._side([None, None, NOON.start_us]) as side:
            whole = Window.from_us(0, 4 * START_US)
            self._count(side, whole, 1)
            expect("excluded() counts the rows without a timestamp", side, side.excluded(), 2)

    def test_a_side_that_fails_is_never_counted_as_empty(self) -> None:
        """A fault below the connector is an error of count, count_many, excluded and extract, and shows no secret."""
        settings = self._filled(EDGES)
        with self.broken(settings), self._open(settings) as side:
            asked: dict[str, Step] = {
                "count": lambda: side.count(NOON),
                "count_many": lambda: list(side.count_many([NOON, DAY])),
                "excluded": side.excluded,
            }
            if Can.EXTRACT in self.can:
                asked["extract"] = lambda: self._extract(side, NOON)
            for verb, ask in asked.items():
                error = expect_error(f"{verb}: unknown is not zero", side, ask, window=NOON)
                self._shows_no_secret(side, str(error))
        with self._open(settings) as side:
            self._count(side, NOON, 3)

    def test_a_fault_between_two_counts_is_noticed(self) -> None:
        """An open side that has counted before remembers nothing."""
        settings = self._filled(EDGES)
        with self._open(settings) as side:
            self._count(side, NOON, 3)
            with self.broken(settings):
                expect_error("count: unknown is not zero", side, lambda: side.count(NOON), window=NOON)

    def test_rows_that_come_later_are_counted(self) -> None:
        """An open side that has counted before counts again."""
        settings = self._filled(EDGES)
        with self._open(settings) as side:
            self._count(side, NOON, 3)
            self.put(settings, self._rows([NOON.start_us + 5]))
            self._count(side, NOON, 4)

    def test_identity_is_stable_and_without_a_secret(self) -> None:
        """The same side has the same identity each time it is opened; another has another."""
        settings, other = self._filled([]), self._filled([])
        with self._open(settings) as side, self._open(settings) as again, self._open(other) as elsewhere:
            identity = dict(side.identity)
            pairs = [(type(key), type(value)) for key, value in identity.items()]
            expect("identity maps text to text", side, set(pairs), {(str, str)})
            expect("identity is stable", side, dict(again.identity), identity)
            expect("identity tells sides apart", side, dict(elsewhere.identity) == identity, False)
            self._shows_no_secret(side, repr(identity), repr(side), repr(settings))

    def test_problems_come_with_a_remedy(self) -> None:
        """Whatever `doctor` would find."""
        with self._side(EDGES) as side:
            found = [(bool(problem.what), bool(problem.remedy)) for problem in side.problems()]
            expect("a problem says what to do", side, found, [(True, True)] * len(found))

    def test_threads_each_with_a_side_of_its_own(self) -> None:
        """Eight at once count, and extract where they can, what is there."""
        settings = self._filled(EDGES)

        def work(_: int) -> list[int]:
            with self._open(settings) as side:
                found = [side.count(NOON), *side.count_many([DAY, EMPTY])]
                return [*found, len(self._extract(side, NOON))] if Can.EXTRACT in self.can else [*found, 3]

        for found in at_once(work, range(8)):
            expect("many threads, each with its own side", settings, found, [3, 6, 0, 3], window=NOON)
        self._nothing_left(settings)

    # --- extraction ---------------------------------------------------------------------------------------------------

    def test_what_is_extracted_is_what_was_put(self) -> None:
        """Every value of the window, NULL and hostile text among them; the row at the end is left to the next one."""
        settings = self._filled(EDGES, HOSTILE)
        with self._source(settings) as side:
            for window, count in [(NOON, 3), (Window.from_us(NOON.end_us, DAY.end_us), 2), (DAY, 6)]:
                got = self._extract(side, window)
                expect("extract agrees with count", side, (len(got), side.count(window)), (count, count), window=window)
                expected = self._inside(self._rows(EDGES, HOSTILE), window)
                expect("extract gives the rows of the window", side, content(got), content(expected), window=window)
            hostile = self._rows([NOON.start_us + n for n in range(100, 100 + len(HOSTILE))], HOSTILE)
            self.put(settings, hostile)
            window = Window.from_us(NOON.start_us + 100, NOON.end_us - 1)
            expect("text stays as it is", side, content(self._extract(side, window)), content(hostile), window=window)

    def test_an_empty_window_has_a_schema(self) -> None:
        """At least one batch, with the columns and types that any other window has."""
        with self._source(self._filled(EDGES)) as side:
            got = self._extract(side, EMPTY)
            expect("extract of an empty window gives no row", side, len(got), 0, window=EMPTY)
            schema = {field.name: str(field.type) for field in self._extract(side, NOON).schema}
            found = {field.name: str(field.type) for field in got.schema}
            expect("an empty window has the schema of any other", side, found, schema, window=EMPTY)

    def test_batches_are_as_small_as_asked(self) -> None:
        """Rows come in batches of `batch_rows` at most, all of one schema, none lost between two."""
        times = [NOON.start_us + n for n in range(10)]
        with self._source(self._filled(times)) as side:
            for batch_rows in (1, 3, 10, 11):
                with closing(side.extract(ExtractRequest(NOON, batch_rows=batch_rows))) as batches:
                    found = [pa.table(batch) for batch in batches]
                sizes = [len(batch) for batch in found]
                expect("a batch has batch_rows rows at most", side, max(sizes) <= batch_rows, True, window=NOON)
                expect("no row is lost between two batches", side, sum(sizes), 10, window=NOON)
                expect("all batches have one schema", side, len({str(batch.schema) for batch in found}), 1, window=NOON)

    def test_excluded_columns_are_left_out(self) -> None:
        """Those, and no others; one that does not exist is an error."""
        with self._source(self._filled(EDGES)) as side:
            got = self._extract(side, NOON, exclude=frozenset({"text", "ratio"}))
            expect("excluded columns are left out", side, sorted(got.column_names), sorted([self.timestamp, "n"]))
            strange = frozenset({"no such column"})
            promise = "excluding a column that does not exist is an error"
            expect_error(promise, side, lambda: self._extract(side, NOON, exclude=strange), window=NOON)

    def test_an_extraction_closed_early_leaves_nothing_behind(self) -> None:
        """The side can be asked and written to at once."""
        settings = self._filled([NOON.start_us + n for n in range(10)])
        with self._source(settings) as side:
            batches = side.extract(ExtractRequest(NOON, batch_rows=2))
            next(batches)
            batches.close()
            self.put(settings, self._rows([NOON.start_us + 10]))
            self._count(side, NOON, 11)
        self._nothing_left(settings)

    # --- loading ------------------------------------------------------------------------------------------------------

    def test_a_load_lands(self) -> None:
        """Uploaded and published: counted inside the transaction and after it, value for value."""
        times = [NOON.start_us, NOON.start_us + 1, NOON.end_us - 1, *range(NOON.start_us + 10, NOON.start_us + 17)]
        load = self._load(NOON, times, texts=HOSTILE)
        with self._target(self._filled([])) as side:
            side.upload(load)
            expect("publish: the window holds what was uploaded", side, publish(side, load), 10, window=NOON)
            self._count(side, NOON, 10)
            self._count(side, DAY, 10)
            self._holds(side, NOON, load)

    def test_uploading_and_publishing_again_changes_nothing(self) -> None:
        """Each may be repeated, alone or with the other, by the same side or a new one."""
        load = self._load(NOON, [NOON.start_us, NOON.start_us + 7])
        settings = self._filled([])
        for _ in range(2):
            with self._target(settings) as side:
                side.upload(load)
                side.upload(load)
                publish(side, load)
                side.upload(load)
                publish(side, load)
                self._count(side, NOON, 2)
                self._holds(side, NOON, load)

    def test_a_publication_replaces_its_window_alone(self) -> None:
        """Deleting obeys the boundary: the row at the start goes, the rows at the end and before the start stay."""
        load = self._load(NOON, [NOON.start_us + 7])
        with self._target(self._filled(EDGES)) as side:
            side.upload(load)
            with side.transaction() as verbs:
                verbs.guard(load)
                expect("delete says how many rows went", side, verbs.delete(NOON), 3, window=NOON)
                verbs.insert(load)
                expect("the transaction sees its own rows", side, verbs.count(NOON), 1, window=NOON)
                after = Window.from_us(NOON.end_us, NOON.end_us + 2)
                expect("the transaction counts start <= t < end", side, verbs.count(after), 2, window=after)
            self._count(side, NOON, 1)
            self._count(side, Window.from_us(NOON.start_us - 1, NOON.start_us), 1)
            self._count(side, Window.from_us(NOON.end_us, NOON.end_us + 1), 1)
            self._count(side, DAY, 4)

    def test_a_load_without_a_row_empties_its_window(self) -> None:
        """Zero is a number of rows like any other."""
        load = self._load(NOON, [])
        with self._target(self._filled(EDGES)) as side:
            side.upload(load)
            expect("publish: the window holds what was uploaded", side, publish(side, load), 0, window=NOON)
            self._count(side, DAY, 3)
            expect("published(): the ledger holds the load", side, side.published(load), True, window=NOON)

    def test_scratch_is_seen_by_nobody(self) -> None:
        """Before its publication a load shows in no count, of this side or another's."""
        settings = self._filled(EDGES)
        with self._target(settings) as side, self._open(settings) as other:
            side.upload(self._load(NOON, [NOON.start_us + 7]))
            self._count(side, DAY, 6)
            self._count(other, DAY, 6)

    def test_columns_are_renamed_as_the_load_says(self) -> None:
        """The map goes from source to target; the rest keep their names."""
        load = self._load(NOON, [NOON.start_us], columns={"title": "text"}, rename={"text": "title"})
        with self._target(self._filled([])) as side:
            side.upload(load)
            publish(side, load)
            if Can.EXTRACT in self.can:
                got = self._extract(cast(Source, side), NOON)
                expect("a renamed column arrives", side, got.column("text").to_pylist(), ["0"], window=NOON)

    def test_a_failing_stage_keeps_its_error(self) -> None:
        """An error of the rows comes through as it is, they are closed, no scratch is left, and the old rows stay."""
        closed = []

        def read() -> Iterator[pa.Table]:
            try:
                yield self._rows([NOON.start_us])
                raise OSError("the stage is gone")
            finally:
                closed.append(True)

        load = self._load(NOON, [NOON.start_us], read=read)
        settings = self._filled(EDGES)
        with self._target(settings) as side:
            expect_error("upload: the stage's own error", side, lambda: side.upload(load), OSError, window=NOON)
            expect("upload closes the staged rows", side, closed, [True], window=NOON)
            side.discard(load.claim)
            self._nothing_left(settings, session=True)
            self._count(side, DAY, 6)
            again = self._load(NOON, [NOON.start_us])
            side.upload(again)
            expect("an upload after a failed one", side, publish(side, again), 1, window=NOON)
        self._nothing_left(settings)

    def test_a_publication_begins_with_its_guard(self) -> None:
        """Any other verb before it is refused, and changes nothing."""
        load = self._load(NOON, [NOON.start_us + 7])
        for verb in ("delete", "insert", "count"):
            with self._target(self._filled(EDGES)) as side:
                side.upload(load)
                promise = f"{verb} before guard is refused"
                expect_error(promise, side, partial(transact, side, load, [verb]), window=NOON)
                self._count(side, DAY, 6)
                expect("published(): nothing was published", side, side.published(load), False, window=NOON)

    def test_a_stale_fence_writes_nothing(self) -> None:
        """A worker that lost its window is refused by the guard, over any span that overlaps what was published."""
        newer = self._load(NOON, [NOON.start_us, NOON.start_us + 1], fence=10)
        half = Window.from_us(NOON.start_us + HOUR_US // 2, NOON.end_us + HOUR_US)
        before = Window.from_us(NOON.start_us - HOUR_US, NOON.start_us + 1)
        settings = self._filled([])
        with self._target(settings) as side, self._target(settings) as late:
            side.upload(newer)
            publish(side, newer)
            for window in (NOON, half, before, DAY):
                stale = self._load(window, [window.start_us], fence=9)
                late.upload(stale)
                promise = "guard: a lower fence is refused"
                expect_error(promise, late, partial(guarded, late, stale), ClaimLostError, window=window)
                self._count(side, DAY, 2)
                expect("published(): a refused load is not", late, late.published(stale), False, window=window)
            self._holds(side, NOON, newer)

    def test_a_clipped_window_still_refuses_its_late_worker(self) -> None:
        """After a re-cut, what is left of the old window keeps its fence."""
        whole = self._load(DAY, [DAY.start_us], fence=10)
        noon = self._load(NOON, [NOON.start_us], fence=20)
        late = self._load(Window.from_us(NOON.end_us, DAY.end_us), [NOON.end_us], fence=5)
        with self._target(self._filled([])) as side:
            for load in (whole, noon):
                side.upload(load)
                publish(side, load)
            side.upload(late)
            promise = "guard: a lower fence is refused beside a newer window too"
            expect_error(promise, side, lambda: guarded(side, late), ClaimLostError, window=late.window)

    def test_touching_windows_do_not_refuse_each_other(self) -> None:
        """The window that ends where a published one starts is free, whatever its fence."""
        next_ = Window.from_us(NOON.end_us, NOON.end_us + HOUR_US)
        first, second = self._load(NOON, [NOON.start_us], fence=10), self._load(next_, [next_.start_us], fence=5)
        with self._target(self._filled([])) as side:
            for load in (first, second):
                side.upload(load)
                publish(side, load)
            self._count(side, DAY, 2)
            expect("published(): each window on its own", side, side.published(first), True, window=NOON)

    def test_rows_of_another_pipeline_are_not_replaced(self) -> None:
        """Two pipelines over one span of one table are refused, whatever the fence."""
        mine = self._load(NOON, [NOON.start_us, NOON.start_us + 1], fence=10)
        other = self._load(NOON, [NOON.start_us], fence=99, pipeline="weather")
        settings = self._filled([])
        with self._target(settings) as side, self._target(settings, "weather") as stranger:
            side.upload(mine)
            publish(side, mine)
            stranger.upload(other)
            promise = "guard: another pipeline's rows are not replaced"
            expect_error(promise, stranger, lambda: guarded(stranger, other), PipelineError, window=NOON)
            self._count(side, NOON, 2)

    def test_a_failure_after_any_verb_leaves_the_old_rows(self) -> None:
        """Rows and ledger are as before, for every other reader too, and the same load can publish then."""
        self._needs(Can.ATOMIC)
        steps = ["guard", "delete", "insert", "count"]
        load = self._load(NOON, [NOON.start_us + 7], fence=11)
        for last in range(len(steps)):
            settings = self._filled(EDGES)
            with self._target(settings) as side, self._open(settings) as other:
                side.upload(load)
                for interrupt in (KeyboardInterrupt, RuntimeError):
                    with pytest.raises(interrupt):
                        transact(side, load, steps[: last + 1], interrupt)
                    for reader in (side, other):
                        got = reader.count(DAY), reader.count(NOON)
                        expect(f"{interrupt.__name__} after {steps[last]} rolls back", reader, got, (6, 3), window=NOON)
                    promise = "published(): what was rolled back is not"
                    expect(promise, side, side.published(load), False, window=NOON)
                expect("a load rolled back can publish", side, publish(side, load), 1, window=NOON)
                self._count(other, DAY, 4)

    def test_a_publication_is_seen_whole_or_not_at_all(self) -> None:
        """Until the commit every other reader counts the old rows, or waits; never the gap after the delete."""
        self._needs(Can.ATOMIC)
        settings = self._filled(EDGES)
        load = self._load(NOON, [NOON.start_us + 7], fence=11)
        with self._target(settings) as side, self._open(settings) as other:
            side.upload(load)
            with side.transaction() as verbs:
                for verb in ("guard", "delete", "insert"):
                    do(verbs, load, verb)
                    # A reader that waits for the lock would wait for this thread; its error is no number either.
                    try:
                        got = other.count(NOON)
                    except TransientError:
                        continue
                    expect(f"after {verb} others count the old rows", other, got, 3, window=NOON)
            self._count(other, NOON, 1)

    def test_half_a_load_does_not_count_as_whole(self) -> None:
        """Its first rows and the old ones together, which are as many, would pass for a window that is done."""
        times = [NOON.start_us + n for n in range(4)]
        gone: list[bool] = []

        def read() -> Iterator[pa.Table]:
            yield self._rows(times[:2])
            if gone:
                raise OSError("the stage is gone")
            yield self._rows(times[2:])

        load = self._load(NOON, times, fence=11, read=read)
        with self._target(self._filled([NOON.end_us - 2, NOON.end_us - 1])) as side:
            side.upload(load)
            gone.append(True)  # for a target that reads the rows again; another one publishes what it has
            with suppress(OSError):
                publish(side, load)
            promise = "a load counts as whole once it is published"
            expect(promise, side, side.count(NOON) == len(times), side.published(load), window=NOON)

    def test_published_tells_what_the_ledger_holds(self) -> None:
        """Of this very window, pipeline and fence; before, after, and from another side."""
        settings = self._filled([])
        load = self._load(NOON, [NOON.start_us], fence=10)
        others = {
            "another fence": self._load(NOON, [NOON.start_us], fence=11),
            "a lower fence": self._load(NOON, [NOON.start_us], fence=9),
            "another window": self._load(DAY, [NOON.start_us], fence=10),
        }
        with self._target(settings) as side:
            expect("published(): not before", side, side.published(load), False, window=NOON)
            side.upload(load)
            expect("published(): an upload is no publication", side, side.published(load), False, window=NOON)
            publish(side, load)
            for what, other in others.items():
                expect(f"published(): {what} is not", side, side.published(other), False, window=other.window)
        with self._target(settings) as side:
            expect("published(): another side sees it", side, side.published(load), True, window=NOON)

    def test_discard_drops_scratch_of_its_fence_and_lower_ones(self) -> None:
        """A higher one stays; where there is none it is harmless; what was discarded cannot be published."""
        settings = self._filled(EDGES)
        load = self._load(NOON, [NOON.start_us + 7], fence=11)
        with self._target(settings) as side:
            side.discard(load.claim)
            side.upload(load)
            side.discard(self._load(NOON, [], fence=10).claim)
            expect("discard of a lower fence leaves it", side, publish(side, load), 1, window=NOON)
            side.upload(load)
            side.discard(self._load(NOON, [], fence=12).claim)
            side.discard(load.claim)
            promise = "what was discarded cannot be published"
            expect_error(promise, side, lambda: publish(side, load), PipelineError, window=NOON)
            self._count(side, NOON, 1)
            self._nothing_left(settings, session=True)

    def test_only_what_was_uploaded_is_published(self) -> None:
        """Scratch of other staged files does not stand in for these."""
        with self._target(self._filled(EDGES)) as side:
            side.upload(self._load(NOON, [NOON.start_us], fence=11, key="old"))
            load = self._load(NOON, [NOON.start_us], fence=12, key="new")
            promise = "only what was uploaded is published"
            expect_error(promise, side, lambda: publish(side, load), PipelineError, window=NOON)
            self._count(side, DAY, 6)

    def test_leaving_the_side_releases_everything(self) -> None:
        """With scratch still there, a transaction interrupted and an extraction half-read."""
        settings = self._filled(EDGES)
        load = self._load(NOON, [NOON.start_us + 7], fence=11)

        def interrupted() -> None:
            with self._target(settings) as side:
                side.upload(load)
                if Can.EXTRACT in self.can:
                    next(cast(Source, side).extract(ExtractRequest(NOON, batch_rows=1)))
                transact(side, load, ["guard", "delete"], KeyboardInterrupt)

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        self._nothing_left(settings)
        with self._target(settings) as side:
            self._count(side, DAY, 6)
            side.upload(load)
            publish(side, load)
        self._nothing_left(settings)

    # --- submitted loads ----------------------------------------------------------------------------------------------

    def test_a_submitted_load_is_published_by_another_side(self) -> None:
        """Under a higher fence, the first side being closed: until then nobody sees a row, then nothing is left."""
        settings = self._filled(EDGES)
        times = [NOON.start_us, NOON.end_us - 1, *range(NOON.start_us + 10, NOON.start_us + 18)]
        load = self._load(NOON, times, texts=HOSTILE, fence=5)
        with self._deferred(settings) as side:
            token = side.submit(load)
        with self._deferred(settings) as other:
            self._wait_for(other, token)
            self._count(other, DAY, 6)
            later = under(load, token, fence=9)
            for _ in range(2):
                expect("publish: the window holds what was submitted", other, publish(other, later), 10, window=NOON)
                self._holds(other, NOON, load)
            expect("published(): the ledger holds the load", other, other.published(later), True, window=NOON)
            expect("uploaded: asked late", other, other.uploaded(token), True, window=NOON)
        with self._deferred(settings) as last:
            last.discard(later.claim)
            promise = "uploaded: what is gone is not there"
            expect_error(promise, last, lambda: last.uploaded(token), TransientError, window=NOON)
        self._nothing_left(settings)

    def test_a_submitted_load_without_a_row_empties_its_window(self) -> None:
        """Zero is a number of rows like any other."""
        load = self._load(NOON, [])
        with self._deferred(self._filled(EDGES)) as side:
            token = side.submit(load)
            self._wait_for(side, token)
            expect("publish: nothing was submitted", side, publish(side, under(load, token)), 0, window=NOON)
            self._count(side, DAY, 3)

    def test_submitting_again_takes_the_place_of_the_former(self) -> None:
        """As a task does that is run twice: one of them is published, and nothing is left of the other."""
        settings = self._filled([])
        load = self._load(NOON, [NOON.start_us, NOON.start_us + 7], fence=5)
        with self._deferred(settings) as side, self._deferred(settings) as again:
            former = side.submit(load)
            token = again.submit(under(load, None, fence=6))
            promise = "submitting again takes the place of the former"
            expect_error(promise, side, lambda: side.uploaded(former), TransientError, window=NOON)
            self._wait_for(side, token)
            later = under(load, token, fence=7)
            expect("publish: the window holds what was submitted", side, publish(side, later), 2, window=NOON)
            again.discard(later.claim)
            self._nothing_left(settings, session=True)

    def test_cancel_ends_what_was_submitted(self) -> None:
        """From any side, at once or late, once or twice: nothing of it is left, and nothing can be published."""
        settings = self._filled(EDGES)
        load = self._load(NOON, [NOON.start_us + 7], fence=5)
        for late in (False, True):
            with self._deferred(settings) as side:
                token = side.submit(load)
                if late:
                    self._wait_for(side, token)
            with self._deferred(settings) as other:
                for _ in range(2):
                    other.cancel(token)
                promise = "what was cancelled cannot be published"
                expect_error(promise, other, partial(publish, other, under(load, token)), PipelineError, window=NOON)
                self._count(other, DAY, 6)
            self._nothing_left(settings)

    def test_discard_drops_what_was_submitted_under_its_fence_and_lower_ones(self) -> None:
        """Of this very window; a higher one stays, and so does another window's."""
        settings = self._filled(EDGES)
        load, beside = self._load(NOON, [NOON.start_us + 7], fence=11), self._load(EMPTY, [EMPTY.start_us], fence=11)
        with self._deferred(settings) as side:
            tokens = [side.submit(each) for each in (load, beside)]
        with self._deferred(settings) as other:
            other.discard(self._load(NOON, [], fence=10).claim)
            self._wait_for(other, tokens[0])
            promise = "discard of a lower fence leaves what was submitted"
            expect(promise, other, publish(other, under(load, tokens[0])), 1, window=NOON)
        with self._deferred(settings) as last:
            last.discard(self._load(NOON, [], fence=12).claim)
            promise = "what was discarded cannot be published"
            expect_error(promise, last, partial(publish, last, under(load, tokens[0], 13)), PipelineError, window=NOON)
            self._wait_for(last, tokens[1])
            expect("discard leaves other windows", last, publish(last, under(beside, tokens[1])), 1, window=EMPTY)
            last.discard(beside.claim)
        self._nothing_left(settings)

    def test_only_what_was_submitted_is_published(self) -> None:
        """A token of other staged files does not stand in for these."""
        with self._deferred(self._filled(EDGES)) as side:
            token = side.submit(self._load(NOON, [NOON.start_us], fence=11, key="old"))
            self._wait_for(side, token)
            load = under(self._load(NOON, [NOON.start_us], fence=12, key="new"), token)
            promise = "only what was submitted is published"
            expect_error(promise, side, lambda: publish(side, load), PipelineError, window=NOON)
            self._count(side, DAY, 6)

    def test_a_failing_stage_submits_nothing(self) -> None:
        """Its error comes through as it is, and no scratch is left."""

        def read() -> Iterator[pa.Table]:
            yield self._rows([NOON.start_us])
            raise OSError("the stage is gone")

        settings = self._filled(EDGES)
        with self._deferred(settings) as side:
            load = self._load(NOON, [NOON.start_us], read=read)
            expect_error("submit: the stage's own error", side, lambda: side.submit(load), OSError, window=NOON)
        self._nothing_left(settings)

    # --- publications at once -----------------------------------------------------------------------------------------

    def test_overlapping_publications_queue_at_the_guard(self) -> None:
        """The later one waits until the first has committed, and then sees its entry: both cannot pass."""
        self._needs(Can.ATOMIC)
        settings = self._filled([])
        first = self._load(DAY, [DAY.start_us, DAY.start_us + 1], fence=2)
        late = self._load(NOON, [NOON.start_us], fence=1)
        uploaded, guarded_, over, found = Event(), Event(), Event(), list[str]()

        def come_late() -> None:
            with self._target(settings) as side:
                side.upload(late)
                uploaded.set()
                guarded_.wait(WAIT_S)
                try:
                    healed(lambda: guarded(side, late), TRIES)
                    found.append("passed")
                except ClaimLostError:
                    found.append("refused")
                finally:
                    over.set()

        thread = Thread(target=come_late)
        thread.start()
        with self._target(settings) as side:
            uploaded.wait(WAIT_S)
            side.upload(first)
            with side.transaction() as verbs:
                verbs.guard(first)
                guarded_.set()
                over.wait(0.3)
                expect("guard waits for who publishes the span", side, found, [], window=NOON)
                verbs.delete(DAY)
                verbs.insert(first)
            thread.join(WAIT_S)
            promise = "guard locks before it reads the ledger"
            expect(promise, side, found, ["refused"], window=NOON)
            self._count(side, DAY, 2)

    def test_neighbouring_windows_at_once(self) -> None:
        """Four threads, each with a side of its own: every window lands once, whatever waits for whom."""
        settings = self._filled([])
        windows = [Window.from_us(START_US + n * HOUR_US, START_US + (n + 1) * HOUR_US) for n in range(12)]

        def work(part: Sequence[Window]) -> None:
            with self._target(settings) as side:
                for window in part:
                    load = self._load(window, [window.start_us, window.end_us - 1], fence=START_US + window.start_us)
                    healed(partial(side.upload, load), TRIES)
                    healed(partial(publish, side, load), TRIES)
                    side.discard(load.claim)

        at_once(work, [windows[n::4] for n in range(4)])
        with self._open(settings) as side:
            for window, count in zip(windows, side.count_many(windows), strict=True):
                expect("a window lands once", side, count, 2, window=window)
        self._nothing_left(settings)

    # --- shared tables ------------------------------------------------------------------------------------------------

    def test_a_scope_limits_what_is_counted_and_extracted(self) -> None:
        """Text or number; a row whose column is NULL is in no scope, one without a timestamp in its own."""
        settings = self._filled([None, None, *EDGES], HALVES)
        with self._open(self.scoped(settings, {"text": "us"})) as side:
            expect("count_many within the scope", side, list(side.count_many([NOON, EMPTY, DAY])), [1, 0, 2])
            self._count(side, NOON, 1)
            expect("excluded() within the scope", side, side.excluded(), 1)
            if Can.EXTRACT in self.can:
                found = self._extract(side, DAY).column("text").to_pylist()
                expect("extract within the scope", side, found, ["us", "us"], window=DAY)
        with self._open(self.scoped(settings, {"n": 6, "text": "eu"})) as side:
            self._count(side, DAY, 1)

    def test_a_publication_replaces_its_scope_alone(self) -> None:
        """The rows of the window that are not in the scope stay, and are not counted inside the transaction."""
        settings = self._filled(EDGES, HALVES)
        load = self._load(NOON, [NOON.start_us + 7], texts=["us"])
        with self._target(self.scoped(settings, {"text": "us"})) as side, self._open(settings) as whole:
            side.upload(load)
            with side.transaction() as verbs:
                verbs.guard(load)
                expect("delete within the scope", side, verbs.delete(NOON), 2, window=NOON)
                verbs.insert(load)
                expect("count within the scope, inside", side, verbs.count(NOON), 1, window=NOON)
            self._count(side, DAY, 1)
            self._count(whole, NOON, 2)
            self._count(whole, DAY, 5)

    def test_scopes_apart_share_a_span(self) -> None:
        """Two pipelines publish one window, whatever their fences; each is fenced against its own late worker."""
        settings = self._filled([])
        eu, us = (self.scoped(settings, {"text": half}) for half in HALVES)
        first = self._load(NOON, [NOON.start_us], texts=["eu"], fence=10)
        second = self._load(NOON, [NOON.start_us, NOON.start_us + 1], texts=["us"], fence=5, pipeline="weather")
        late = self._load(NOON, [], fence=4, pipeline="weather")
        with self._target(eu) as side, self._target(us, "weather") as other:
            for each, load in ((side, first), (other, second), (side, first)):
                each.upload(load)
                publish(each, load)
                expect("published(): each scope on its own", each, each.published(load), True, window=NOON)
            self._count(side, NOON, 1)
            self._count(other, NOON, 2)
            other.discard(second.claim)
            other.upload(late)
            promise = "guard: a lower fence is refused within its scope"
            expect_error(promise, other, lambda: guarded(other, late), ClaimLostError, window=NOON)

    def test_overlapping_scopes_are_refused_by_name(self) -> None:
        """Where a row could be in both, one pipeline does not replace what another has published."""
        settings = self._filled([])
        mine = self._load(NOON, [NOON.start_us], texts=["us"], fence=10)
        other = self._load(NOON, [], fence=99, pipeline="weather")
        with self._target(self.scoped(settings, {"text": "us"})) as side:
            side.upload(mine)
            publish(side, mine)
        overlapping: list[Given] = [{}, {"n": 0}, {"text": "us", "n": 1}]
        for scope, count in zip(overlapping, (1, 1, 0), strict=True):
            with self._target(self.scoped(settings, scope), "weather") as stranger:
                stranger.upload(other)
                promise = f"guard: {scope} overlaps another pipeline's scope"
                error = expect_error(promise, stranger, partial(guarded, stranger, other), PipelineError, window=NOON)
                expect("the refusal names the pipeline", stranger, PIPELINE in str(error), True, window=NOON)
                self._count(stranger, NOON, count)

    def test_a_staged_row_outside_the_scope_is_refused(self) -> None:
        """Before anything is published, by column, with what was expected."""
        settings = self._filled(EDGES, HALVES)
        for texts in (HALVES, ["eu"]):
            load = self._load(NOON, [NOON.start_us, NOON.start_us + 1], texts=texts)
            with self._target(self.scoped(settings, {"text": "us"})) as side, self._open(settings) as whole:
                promise = "upload: a row outside the scope is refused"
                error = expect_error(promise, side, partial(side.upload, load), PipelineError, window=NOON)
                named = ["text" in str(error), "us" in str(error)]
                expect("the refusal names column and value", side, named, [True, True], window=NOON)
                self._count(whole, DAY, 6)

    def test_an_adoption_hands_the_ledger_over(self) -> None:
        """Of the span asked for: there the adopter publishes, the other is refused, and fences are kept."""
        settings = self._filled([])
        after = Window.from_us(NOON.end_us, NOON.end_us + HOUR_US)
        half = Window.from_us(NOON.start_us + HOUR_US // 2, NOON.end_us)
        with self._target(settings) as old, self._target(settings, "weather") as new:
            for window in (NOON, after):
                load = self._load(window, [window.start_us, window.end_us - 1], fence=10)
                old.upload(load)
                publish(old, load)
            promise = "adopt returns what was handed over"
            strangers = new.adopt(Adoption("weather", "nobody"))
            expect(promise, new, list(strangers), [], window=half)
            entries = [Entry("weather", half.start_us, half.end_us, 10)]
            for dry_run in (True, True, False):  # were a dry run in earnest, nothing would be left to hand over
                found = new.adopt(Adoption("weather", PIPELINE, half, dry_run))
                expect(promise, new, list(found), entries, window=half)
            self._count(new, DAY, 4)
            self._refused(new, self._load(half, [], fence=9, pipeline="weather"), ClaimLostError, "keeps the fence")
            self._refused(old, self._load(half, [], fence=99), PipelineError, "refuses who was there before")
            rest = Window.from_us(NOON.start_us, half.start_us)
            for window in (rest, after):
                stranger = self._load(window, [], fence=99, pipeline="weather")
                self._refused(new, stranger, PipelineError, "leaves what was not asked for")
            for side, load in (
                (new, self._load(half, [half.start_us], fence=11, pipeline="weather")),
                (old, self._load(rest, [rest.start_us], fence=12)),
            ):
                side.upload(load)
                publish(side, load)
            self._count(new, DAY, 4)

    def _refused(self, side: Target, load: Load, kind: type[Exception], what: str) -> None:
        side.upload(load)
        expect_error(f"adopt: {what}", side, partial(guarded, side, load), kind, window=load.window)
        side.discard(load.claim)

    def test_an_adoption_keeps_to_its_scope(self) -> None:
        """Entries of another scope stay; of a wider one only what both have in common is taken."""
        settings = self._filled([])
        before = self._load(NOON, [NOON.start_us], texts=["us"], fence=10)
        with self._target(settings) as whole, self._target(self.scoped(settings, {"text": "us"}), "weather") as half:
            whole.upload(before)
            publish(whole, before)
            found = half.adopt(Adoption("weather", PIPELINE))
            entries = [Entry("weather", NOON.start_us, NOON.end_us, 10, {"text": "us"})]
            expect("adopt narrows a wider scope", half, list(found), entries, window=NOON)
            self._refused(whole, self._load(NOON, [], fence=99), PipelineError, "refuses who was there before")
            mine = self._load(NOON, [NOON.start_us, NOON.start_us + 1], texts=["us"], fence=11, pipeline="weather")
            half.upload(mine)
            expect("adopt lets the adopter publish", half, publish(half, mine), 2, window=NOON)
        with self._target(self.scoped(settings, {"text": "eu"}), "tides") as other:
            found = other.adopt(Adoption("tides", "weather"))
            expect("adopt leaves a scope apart", other, list(found), [], window=NOON)

    def test_identity_tells_scopes_apart(self) -> None:
        """What was verified in one scope is not verified in another."""
        settings = self._filled([])
        scopes: list[Given] = [{}, {"text": "us"}, {"text": "eu"}, {"n": 1}]
        found = []
        for scope in scopes:
            with self._open(self.scoped(settings, scope)) as side:
                found.append(dict(side.identity))
        same = [one for at, one in enumerate(found) if one in found[:at]]
        expect("identity tells scopes apart", settings, same, [])

    # --- what the tests share -----------------------------------------------------------------------------------------

    def _needs(self, *abilities: Can) -> None:
        for each in abilities:
            if each not in self.can:
                pytest.skip(f"{type(self).__name__} does not declare {each.name}")

    def _rows(self, times: Iterable[int | None], texts: Sequence[str] = ()) -> pa.Table:
        """A row at each time. Every third has no text, every second no ratio."""
        stamps = list(times)
        given = [texts[n % len(texts)] if texts else str(n) for n in range(len(stamps))]
        return pa.table(
            {
                self.timestamp: pa.array(stamps, pa.timestamp("us", "UTC")),
                "n": pa.array(range(len(stamps)), pa.int64()),
                "text": pa.array([None if n % 3 == 2 else text for n, text in enumerate(given)], pa.string()),
                "ratio": pa.array([None if n % 2 else n / 4 for n in range(len(stamps))], pa.float64()),
            }
        )

    def _inside(self, rows: pa.Table, window: Window) -> pa.Table:
        stamps = rows.column(self.timestamp).cast(pa.int64()).to_pylist()
        return rows.filter(pa.array([window.start_us <= us < window.end_us for us in stamps]))

    def _load(
        self,
        window: Window,
        times: Iterable[int],
        *,
        fence: int = 1,
        texts: Sequence[str] = (),
        columns: Mapping[str, str] | None = None,
        rename: Mapping[str, str] | None = None,
        pipeline: str = PIPELINE,
        key: str | None = None,
        read: Callable[[], Any] | None = None,
    ) -> Load:
        rows = self._rows(times, texts)
        rows = rows.rename_columns([(rename or {}).get(name, name) for name in rows.column_names])
        batches = rows.to_batches(2) or [pa.RecordBatch.from_pylist([], rows.schema)]
        staged = Staged(key or f"{pipeline}/{fence}", pipeline, window, fence, len(rows), (), "", {})
        claim = Claim("claim", Record(pipeline, window), fence)
        return Load(claim, staged, read or (lambda: (batch for batch in batches)), columns or {})

    def _filled(self, times: Iterable[int | None], texts: Sequence[str] = ()) -> Settings[Connector]:
        settings = self.fresh()
        self.put(settings, self._rows(times, texts))
        return settings

    def _open(self, settings: Settings[Connector], pipeline: str = PIPELINE) -> AbstractContextManager[Connector]:
        return settings.open(Context(pipeline))

    @contextmanager
    def _side(self, times: Iterable[int | None]) -> Iterator[Connector]:
        with self._open(self._filled(times)) as side:
            yield side

    def _source(self, settings: Settings[Connector]) -> AbstractContextManager[Source]:
        self._needs(Can.EXTRACT)
        return cast(AbstractContextManager[Source], self._open(settings))

    def _target(self, settings: Settings[Connector], pipeline: str = PIPELINE) -> AbstractContextManager[Target]:
        self._needs(Can.LOAD)
        return cast(AbstractContextManager[Target], self._open(settings, pipeline))

    def _deferred(self, settings: Settings[Connector]) -> AbstractContextManager[DeferredTarget]:
        self._needs(Can.DEFER)
        return cast(AbstractContextManager[DeferredTarget], self._target(settings))

    def _wait_for(self, side: DeferredTarget, token: str) -> None:
        deadline = time.monotonic() + WAIT_S
        while not side.uploaded(token):
            if time.monotonic() > deadline:
                raise report("uploaded: it ends", side, None, "True", f"False for {WAIT_S} s")
            time.sleep(0.02)

    def _extract(self, side: Connector, window: Window, **more: Any) -> pa.Table:
        with closing(cast(Source, side).extract(ExtractRequest(window, **more))) as batches:
            found = [pa.table(batch) for batch in batches]
        if not found:
            raise report("extract gives at least one batch", side, window, "one or more", "none")
        return pa.concat_tables(found)

    def _count(self, side: Connector, window: Window, expected: int) -> None:
        expect("count: start <= t < end", side, side.count(window), expected, window=window)

    def _holds(self, side: Connector, window: Window, load: Load) -> None:
        """Value for value, where the side can be read."""
        if Can.EXTRACT in self.can:
            staged = pa.concat_tables([pa.table(batch) for batch in load.read()])
            got = content(self._extract(side, window))
            expect("what was loaded is what was staged", side, got, content(staged), window=window)

    def _nothing_left(self, settings: Settings[Connector], *, session: bool = False) -> None:
        left = [each for each in self.leftovers(settings) if not (session and "session" in each)]
        expect("everything opened is released", settings, left, [])

    def _shows_no_secret(self, side: Connector, *texts: str) -> None:
        if self.secret is not None:
            shown = [text.replace(self.secret, "<the secret>") for text in texts if self.secret in text]
            expect("no secret is ever shown", side, shown, [])


def content(rows: pa.Table) -> Counter[Any]:
    """The rows in any order: each as its columns by name, instants as microseconds."""
    names = sorted(rows.column_names)
    columns = [rows.column(name) for name in names]
    values = [
        (column.cast(pa.timestamp("us", "UTC")).cast(pa.int64()) if pa.types.is_timestamp(column.type) else column)
        for column in columns
    ]
    return Counter(
        zip(
            *([(name, value) for value in each.to_pylist()] for name, each in zip(names, values, strict=True)),
            strict=True,
        )
    )


def under(load: Load, token: str | None, fence: int | None = None) -> Load:
    """The load as a later task has it: with the token of what was submitted, and a claim that was resumed."""
    claim = load.claim if fence is None else evolve(load.claim, fence=fence)
    return evolve(load, claim=claim, token=token)


def do(verbs: Publication, load: Load, verb: str) -> object:
    """One verb of a publication, by name."""
    steps: dict[str, Step] = {
        "guard": lambda: verbs.guard(load),
        "delete": lambda: verbs.delete(load.window),
        "insert": lambda: verbs.insert(load),
        "count": lambda: verbs.count(load.window),
    }
    return steps[verb]()


def transact(side: Target, load: Load, steps: Sequence[str], end: type[BaseException] | None = None) -> None:
    """One transaction of these verbs, ended by an exception where one is given."""
    with side.transaction() as verbs:
        for step in steps:
            do(verbs, load, step)
        if end is not None:
            raise end


def guarded(side: Target, load: Load) -> None:
    """A transaction that asks the guard and then goes on as a publication does."""
    transact(side, load, ["guard", "delete", "insert"])


def publish(side: Target, load: Load) -> int:
    """Publishes an uploaded load in the order of the core; returns the rows that the window then holds."""
    with side.transaction() as verbs:
        for step in ("guard", "delete", "insert"):
            do(verbs, load, step)
        return verbs.count(load.window)


def at_once(act: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    with ThreadPoolExecutor(len(items)) as pool:
        return list(pool.map(act, items))
