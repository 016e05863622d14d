"""The public face: one pipeline, from a file or a mapping. Opens each part on first use; holds no step."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Executor, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from datetime import datetime
from functools import cached_property, partial
from logging import WARNING
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Self, TypeVar, cast

from attrs import asdict, evolve

from pipeline_core import coverage
from pipeline_core.config import Config, load, load_file
from pipeline_core.config.sections import Part
from pipeline_core.contracts import Batch, Can, Context, Observer, RecordStore
from pipeline_core.engine import auditing, counting, hands, moving, planning, runner, survey, transfer
from pipeline_core.engine.outage import GaveUpError, Outages
from pipeline_core.engine.parts import Parts, blaming, never
from pipeline_core.errors import ConfigError, Interrupted, PipelineError, TimeError
from pipeline_core.ledger import Adoption
from pipeline_core.log import Reporter, opened, timed
from pipeline_core.record import Asked, Change, Hand, Pruning, Span, Status
from pipeline_core.reports import (
    AdoptionReport,
    CheckReport,
    Difference,
    Finding,
    HandReport,
    MoveReport,
    PruneReport,
    RunReport,
    StatusReport,
    Touched,
    status_of,
)
from pipeline_core.secrets import redact
from pipeline_core.timepolicy import ago_us
from pipeline_core.window import MIN_US, Window, from_us, iso, to_us

T = TypeVar("T")
When = datetime | str | None
Chosen = Window | When
Plugins = Sequence[str | ModuleType]

_AWAKE_S = 0.2  # how long the main thread sleeps at most, so that it soon handles a signal that did not wake it


class Pipeline:
    """One pipeline: `plan`, `run`, `check`, `status`, `doctor`; by hand `retry`, `reload`, `skip`, `release`.

    A context manager: leaving it closes the record store and the observers. Times are aware datetimes, or text that is
    local to the pipeline's zone (`"2013-03-10"`, `"2013-03-10T02:00"`); `now=` stands for the store's clock in
    deciding what is stable, in tests and replays. Raises ConfigError for a configuration that cannot be used,
    SideError where a side refuses until a person acts, TransientError where a fault outlasted the retries.
    `observers` of this process are told every event, beside the configured ones.
    """

    def __init__(self, config: Config, observers: Sequence[Observer] = ()) -> None:
        self.config = config
        self._observers = observers
        self._open = ExitStack()
        self._ahead_us = 0  # the store's clock before this host's

    @classmethod
    def from_file(
        cls, path: str | Path, profile: str | None = None, *, plugins: Plugins = (), name: str | None = None
    ) -> Self:
        """The pipeline of a TOML file; `name` chooses one of several `[pipelines.NAME]`."""
        return cls(load_file(path, profile=profile, plugins=plugins, name=name))

    @classmethod
    def from_mapping(
        cls,
        mapping: Mapping[str, Any],
        profile: str | None = None,
        *,
        plugins: Plugins = (),
        name: str | None = None,
    ) -> Self:
        """The pipeline of one mapping: the same keys as a file's, or the flat form with `default_record`."""
        return cls(load(mapping, profile=profile, plugins=plugins, name=name))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes everything that was opened."""
        self._open.close()

    # --- the verbs ---------------------------------------------------------------------------------------------------

    def plan(self, *, start: When = None, end: When = None, dry_run: bool = False, now: When = None) -> Change:
        """Brings the records in line with the policy; returns what changed, or with `dry_run` what would.

        `start`, `end`: only records and windows that start there; the rest is left to the next plan, and so is what a
        new cut lays across an end of the range.
        """
        with self.parts() as parts:
            return self._plan(parts, self.instant_us(now), within=self.within(start, end), dry_run=dry_run)

    def ddl(self) -> list[str]:
        """The statements that make what the target lacks for the source's rows, none of which is run.

        The columns are those of the rows that the source extracts of one window, the first one of `begin`.
        """
        self.require(Can.EXTRACT, Can.LOAD)
        with self.parts() as parts:
            return self._ddl(parts, self._sample(parts))

    def require(self, *abilities: Can) -> None:
        """Raises ConfigError where the source cannot extract, or the target cannot load, what is about to be moved."""
        sides: dict[Can, Part[Any]] = {Can.EXTRACT: self.config.source, Can.LOAD: self.config.target}
        unable = [
            f"{part.path}: type {part.type!r} cannot {ability}, it only counts; choose another type"
            for ability, part in sides.items()
            if ability in abilities and ability not in part.provider.can
        ]
        if unable:
            raise ConfigError(unable)

    def run(
        self,
        *,
        workers: int | None = None,
        limit: int | None = None,
        start: When = None,
        end: When = None,
        executor: Executor | None = None,
        now: When = None,
    ) -> RunReport:
        """Plans, then works until no window is ready, with `workers` threads or on any `executor`.

        `start`, `end`: only windows that start there. `limit`: so many windows at most (not across an executor). On an
        interrupt every thread brings its window back to pending before the exception goes on. On an executor workers
        that have not begun are cancelled then; those that have go on by themselves, until no window is ready.
        """
        self.require(Can.EXTRACT, Can.LOAD)
        outages = Outages.watch(self.config, self.report, threading.Event())
        outages.store.outlast(lambda: self.store)
        within = outages.store.outlast(lambda: self.within(start, end))
        order = runner.Order(within, limit, self.instant_us(now))
        with timed() as watch:
            excluded, ahead = outages.sides.outlast(lambda: self._begin(order))
            surveyed = outages.sides.outlast(lambda: self._survey(order, outages))
            if limit is not None:
                order = evolve(order, limit=limit - surveyed.verdicts.total())
            count = workers or self.config.run.workers
            tally = self._run_here(order, count, outages) if executor is None else self._run_on(executor, order, count)
        tally += surveyed + ahead
        in_status = partial(self.store.records, self.config.pipeline, within=order.within)
        quarantined = outages.store.outlast(lambda: len(in_status(Status.QUARANTINED)))
        undone = tally.undone
        if undone:
            undone += f"; {outages.store.outlast(lambda: len(in_status(Status.PENDING)))} windows are pending"
        report = RunReport(
            self.config.pipeline, tally.verdicts, tally.rows, excluded, quarantined, undone, watch.seconds
        )
        told = report.as_mapping()
        del told["pipeline"]
        self.report.tell("run ended", **told)
        return report

    def check(self, *, start: When = None, end: When = None, reopen: bool = False) -> CheckReport:
        """Recounts the done windows that start in `[start, end)`, in bulk; `reopen` makes pending what differs."""
        with self.parts() as parts:
            checked, differing = auditing.recheck(parts, self.within(start, end), self.store.now_us())
            reopened = auditing.reopen(parts, [span for span, _ in differing]) if reopen else 0
        differences = [Difference(Window.from_us(span.start_us, span.end_us), count) for span, count in differing]
        return CheckReport(self.config.pipeline, checked, differences, reopened)

    def retry(
        self, *, start: When = None, end: When = None, window: Chosen = None, reason: str, dry_run: bool = False
    ) -> HandReport:
        """Makes quarantined windows pending again, with their attempts and crashes forgotten.

        As for every verb by hand: `start`, `end` choose windows that start there, `window` the one that holds that
        instant (or is that Window); `reason` is kept, with who gave it; `dry_run` only says which windows it would be.
        Raises ConfigError where none or both were chosen, and where no record holds the window.
        """
        return self._by_hand(Hand.RETRY, "retry", self._chosen(start, end, window), reason, dry_run=dry_run)

    def release(
        self, *, start: When = None, end: When = None, window: Chosen = None, reason: str, dry_run: bool = False
    ) -> HandReport:
        """Takes running windows from whoever holds them, and makes them pending; otherwise like `retry`.

        The holder can neither publish after the next claim nor settle.
        """
        return self._by_hand(Hand.RELEASE, "release", self._chosen(start, end, window), reason, dry_run=dry_run)

    def skip(
        self, *, start: When = None, end: When = None, window: Chosen = None, reason: str, dry_run: bool = False
    ) -> HandReport:
        """Takes pending and quarantined windows out: done, with the outcome skipped; otherwise like `retry`."""
        return self._by_hand(Hand.SKIP, "skip", self._chosen(start, end, window), reason, dry_run=dry_run)

    def reload(
        self,
        *,
        start: When = None,
        end: When = None,
        window: Chosen = None,
        reason: str,
        accept_shrink: bool = False,
        dry_run: bool = False,
    ) -> HandReport:
        """Makes done, pending and quarantined windows pending, to be moved even though their counts agree.

        `accept_shrink`: also where the source holds fewer rows than were verified. Otherwise like `retry`.
        """
        within, known = self._chosen(start, end, window), self._spans()
        spans = hands.chosen(known, hands.RELOADABLE, within)
        if not dry_run:
            asked = Asked.ACCEPT_SHRINK if accept_shrink else Asked.RELOAD
            spans = hands.reload(self.store, self.config, spans, asked, reason)
        return self._touched("reload", spans, hands.chosen(known, set(Status), within), reason, dry_run=dry_run)

    def adopt(
        self, from_pipeline: str, *, start: When = None, end: When = None, dry_run: bool = False
    ) -> AdoptionReport:
        """Takes over what another pipeline has published into the target, within this one's scope and `[start, end)`.

        From then on this pipeline may replace those rows, and the other is refused there. Rows and records stay as they
        are: the next run counts the windows, and loads those that differ. `dry_run` only says what it would be.
        """
        if from_pipeline == self.config.pipeline:
            raise ConfigError(f"--from-pipeline: found {from_pipeline!r}, this pipeline itself; name the other one")
        self.require(Can.LOAD)
        adoption = Adoption(self.config.pipeline, from_pipeline, self.within(start, end), dry_run)
        with self.parts() as parts:
            entries = parts.retried("adopt", None, lambda: parts.target.adopt(adoption))
        windows = [Window.from_us(*span) for span in coverage.merge(sorted((e.start_us, e.end_us) for e in entries))]
        if not dry_run:
            self.report.tell("adopted", entries=len(entries), from_pipeline=from_pipeline)
        return AdoptionReport(self.config.pipeline, from_pipeline, len(entries), windows, dry_run)

    def export_store(self, file: str | Path) -> MoveReport:
        """Writes all that the store keeps of this pipeline to a file: records, evidence, fences and events.

        Raises ConfigError where the file is there already, RecordError where nothing is kept or a window is running.
        """
        (report,) = export_stores([self], file)
        return report

    def import_store(self, file: str | Path) -> MoveReport:
        """Takes such a file into this store, which must keep nothing of this pipeline yet; all of it or nothing.

        Every later fence of the store is above those taken in. Raises ConfigError where the file is of another
        pipeline or format, RecordError where it is torn or the store keeps something of the pipeline already.
        """
        numbers = moving.take_in(self.store, self.config.pipeline, Path(file))
        return self._moved("imported", file, numbers)

    def prune_store(self, *, before: datetime | str, dry_run: bool = False) -> PruneReport:
        """Tells old windows in short: the done ones that end by `before` keep their counts, and give up evidence.

        Superseded records and events as old go too. What is pending, running, quarantined or skipped keeps everything,
        and planning, checks, reloads and the guard against a source that shrank find all that they go by. Other workers
        may go on meanwhile. `dry_run` only counts.
        """
        before_us = cast(int, self.instant_us(before, "before (--before)"))
        pruning = Pruning(self.config.pipeline, before_us, dry_run=dry_run)
        pruned = self.store.prune(pruning)
        if not dry_run:
            while step := self.store.prune(pruning):
                pruned += step
            self.report.tell("pruned", before=iso(before_us), **asdict(pruned))
        return PruneReport(self.config.pipeline, from_us(before_us), pruned, dry_run)

    def _moved(self, action: str, file: str | Path, numbers: moving.Numbers) -> MoveReport:
        self.report.tell(action, file=str(file), records=numbers["record"], events=numbers["event"])
        return MoveReport(self.config.pipeline, action, str(file), numbers["record"], numbers["event"])

    def status(self) -> StatusReport:
        """Where the pipeline stands, from its records alone."""
        return status_of(self.store, self.config.pipeline)

    def doctor(self) -> list[Finding]:
        """Tries each part, then whether the source's rows fit the target, and what planning says of it all.

        Of each part at least one finding; of the plan only what keeps a run from beginning.
        """
        found = [finding for name in ("store", "source", "target", "stage") for finding in self._examine(name)]
        if lacking := self.config.lacking:
            what = f"lacks check fields, so that no window is generated: {', '.join(lacking)}"
            found.append(Finding("default_record", what, "add them to default_record"))
        if any(finding.severity == "problem" for finding in found):
            return found
        misfits = self._misfits()
        ill = {misfit.part for misfit in misfits}
        return [each for each in found if each.severity != "ok" or each.part not in ill] + misfits

    # --- parts -------------------------------------------------------------------------------------------------------

    @cached_property
    def store(self) -> RecordStore:
        """The record store, opened on first use and closed with the pipeline."""
        with ExitStack() as opening:
            store = opening.enter_context(self.config.store.open(self._context))
            self._ahead_us = store.now_us() - _host_us()
            self._open.push(opening.pop_all())
        return store

    @cached_property
    def report(self) -> Reporter:
        """Tells every event to the log and the observers.

        The store's clock is read once, when the store is opened: an event costs no query, and can tell that the store
        is away. Before that it is this host's.
        """
        observers = list(self._observers)
        for part in self.config.observers:
            observer = self._open.enter_context(opened(part.path, part.open(self._context)))
            if observer is not None:
                observers.append(observer)
        return Reporter(self.config.pipeline, lambda: _host_us() + self._ahead_us, observers)

    @contextmanager
    def parts(self, stopping: Callable[[], bool] = never) -> Iterator[Parts]:
        """Source, stage and target of one worker's own, with the shared store; closed on the way out."""
        config = self.config
        with (
            config.source.open(self._context) as source,
            config.stage.open(self._context) as stage,
            config.target.open(self._context) as target,
        ):
            yield Parts(config, self.store, source, stage, target, self.report, stopping)

    @property
    def _context(self) -> Context:
        return Context(self.config.pipeline, self.config.run.lease_s)

    # --- within the verbs --------------------------------------------------------------------------------------------

    def _plan(self, parts: Parts, now_us: int | None, *, within: Window | None = None, dry_run: bool) -> Change:
        config = self.config
        now_us = self.store.now_us() if now_us is None else now_us
        with blaming("target"):
            target_zone = parts.target.naive_timezone
        request = planning.Request(
            pipeline=config.pipeline,
            policy=config.policy,
            now_us=now_us,
            identity=parts.identity(),
            made_name=None if config.named else config.name,
            begin_us=config.begin_us,
            end_us=config.end_us,
            target_zone=target_zone,
            sealed_us=config.sealed_us(now_us),
            default_record=config.default_record,
            check_fields=config.check_fields,
        )
        change = planning.limited(planning.plan(request, self.store.spans(config.pipeline)), within)
        if dry_run:
            return change
        for note in change.notes:
            self.report.tell("noted", level=WARNING, note=note)
        if change:
            change = self.store.apply(change)
        self.report.tell("planned", added=len(change.add), superseded=len(change.remove))
        transfer.sweep(parts)
        return change

    def _by_hand(self, hand: Hand, action: str, within: Window, reason: str, *, dry_run: bool) -> HandReport:
        known = self._spans()
        spans = hands.chosen(known, hand.fits, within)
        if not dry_run:
            spans = hands.lay(self.store, self.config.pipeline, hand, spans, reason)
        return self._touched(action, spans, hands.chosen(known, set(Status), within), reason, dry_run=dry_run)

    def _touched(
        self, action: str, spans: Sequence[Span], named: Sequence[Span], reason: str, *, dry_run: bool
    ) -> HandReport:
        if not dry_run:
            self.report.tell(action, windows=len(spans), reason=reason)
        windows = [Touched(Window.from_us(span.start_us, span.end_us), span.status) for span in spans]
        left = Counter(span.status for span in named) - Counter(span.status for span in spans)
        return HandReport(self.config.pipeline, action, reason, windows, dry_run, left)

    def _chosen(self, start: When, end: When, window: Chosen) -> Window:
        """What a person laid a hand on: windows that start in the answer."""
        within = self.within(start, end)
        if (within is None) == (window is None):
            found = "none of them" if window is None else "a window and a range"
            raise ConfigError(
                f"window (--window), start (--from), end (--to): found {found}, expected one or the other"
            )
        if within is not None:
            return within
        if isinstance(window, Window):
            return Window.from_us(window.start_us, window.start_us + 1)
        at_us = cast(int, self.instant_us(window, "window (--window)"))
        for span in self._spans():
            if span.start_us <= at_us < span.end_us:
                return Window.from_us(span.start_us, span.end_us)
        raise ConfigError(
            f"window (--window): no record holds {from_us(at_us).isoformat()}; plan first, or name a time that is"
        )

    def _spans(self) -> Sequence[Span]:
        return self.store.spans(self.config.pipeline)

    def _begin(self, order: runner.Order) -> tuple[int | None, runner.Tally]:
        """Plans, reopens what came late, and counts the source's rows that fall into no window; None: not known."""
        with self.parts() as parts, blaming("store"):  # the rest is known as somebody's further in
            self._plan(parts, order.now_us, dry_run=False)
            _, not_rechecked = self._aside("recheck", lambda: self._reopen_late(parts, order))
            excluded, not_counted = self._aside("excluded", lambda: counting.excluded(parts))
            undone = "; ".join(filter(None, (not_rechecked, not_counted)))
            return excluded, runner.Tally(undone=undone)

    def _aside(self, what: str, count: Callable[[], T]) -> tuple[T | None, str]:
        """What was counted beside the windows; where that failed, nothing and why.

        A fault that concerns these counts alone does not keep the windows from being done.
        """
        try:
            return count(), ""
        except Exception as error:
            if runner.of_a_side(error):
                raise
            told = f"{type(error).__name__}: {error}"
            self.report.tell("not counted", level=WARNING, of=what, error=told)
            return None, redact(f"{what}: {told}")

    def _reopen_late(self, parts: Parts, order: runner.Order) -> None:
        """Counts the young done windows again, and makes those pending that differ.

        Young is what ended no longer than `recheck` before the end of what is stable: nothing later is done.
        """
        if self.config.recheck is None:
            return
        now_us = self.store.now_us() if order.now_us is None else order.now_us
        policy = self.config.policy
        since_us = ago_us(policy.stable_until_us(now_us), self.config.recheck, policy.timezone)
        _, differing = auditing.recheck(parts, order.within or Window.from_us(MIN_US, now_us), now_us, since_us)
        if differing:
            auditing.reopen(parts, [span for span, _ in differing])

    def _survey(self, order: runner.Order, outages: Outages) -> runner.Tally:
        """What was done in bulk; where the counts in bulk fail, the workers count window by window."""
        try:
            with self.parts(outages.stop.is_set) as parts, blaming("store"):
                return survey.survey(parts, order, outages)
        except Exception as error:
            if runner.of_a_side(error) or isinstance(error, Interrupted | GaveUpError):
                raise
            self.report.tell("not surveyed", level=WARNING, error=f"{type(error).__name__}: {error}")
            return runner.Tally()

    def _run_here(self, order: runner.Order, count: int, outages: Outages) -> runner.Tally:
        turns, open_parts = runner.Turns(order.limit), partial(self.parts, outages.stop.is_set)
        with ThreadPoolExecutor(count, thread_name_prefix="worker") as pool:
            try:
                return _gather([pool.submit(runner.work, open_parts, order, turns, outages) for _ in range(count)])
            except BaseException:
                outages.stop.set()
                raise

    def _run_on(self, executor: Executor, order: runner.Order, count: int) -> runner.Tally:
        if order.limit is not None:
            raise ValueError("limit: workers on an executor cannot share it; leave out the limit or the executor")
        config = self.config
        futures = [executor.submit(_work_elsewhere, config.mapping, config.profile, order) for _ in range(count)]
        try:
            return _gather(futures)
        except BaseException:
            for future in futures:
                future.cancel()  # which leaves alone what has begun: nothing reaches it there
            raise

    def _examine(self, name: str) -> list[Finding]:
        try:
            with ExitStack() as stack:
                settings = getattr(self.config, name)
                part = self.store if name == "store" else stack.enter_context(settings.open(self._context))
                found = [
                    Finding(name, redact(problem.what or problem.remedy), redact(problem.remedy), advice=problem.advice)
                    for problem in part.problems()
                ]
                return found or [Finding(name)]
        except Exception as error:  # noqa: BLE001 - whatever a plugin raises is what was asked for here
            return _findings_of(name, error)

    def _misfits(self) -> list[Finding]:
        """Why no run can begin, or load a row, by its columns; none where all fits. Nothing is planned or made."""
        part = "source"
        try:
            self.require(Can.EXTRACT)
            with self.parts() as parts:
                rows = self._sample(parts)
                part = "target"
                self.require(Can.LOAD)
                self._ddl(parts, rows)
                part = "plan"
                self._plan(parts, None, dry_run=True)
        except Exception as error:  # noqa: BLE001 - as above
            return _findings_of(part, error)
        return []

    def _sample(self, parts: Parts) -> Batch:
        """The first rows of the first window of `begin`, for their columns."""
        first_us = self.store.now_us() if self.config.begin_us is None else self.config.begin_us
        return transfer.sample(parts, self.config.policy.window_at_us(first_us))

    def _ddl(self, parts: Parts, rows: Batch) -> list[str]:
        return list(parts.retried("ddl", None, lambda: parts.target.ddl(rows, self.config.columns)))

    def within(self, start: When, end: When) -> Window | None:
        """The span that `start` and `end` limit to; open ends reach from `begin` to now. None without either."""
        if start is None and end is None:
            return None
        start_us, end_us = self.instant_us(start, "start (--from)"), self.instant_us(end, "end (--to)")
        if start_us is None:
            start_us = MIN_US if self.config.begin_us is None else self.config.begin_us
        if end_us is None:
            end_us = self.store.now_us()
        if start_us >= end_us:
            raise TimeError(
                f"start (--from), end (--to): found {iso(start_us)} to {iso(end_us)}, expected the start before "
                "the end; without a start the range begins at begin, without an end it ends now"
            )
        return Window.from_us(start_us, end_us)

    def instant_us(self, when: When, place: str = "now") -> int | None:
        """A time as given by a person: aware, or text local to the pipeline's zone. Microseconds UTC.

        Raises TimeError, which begins with `place`.
        """
        try:
            return self.config.instant_us(when) if isinstance(when, str) else None if when is None else to_us(when)
        except TimeError as error:
            raise TimeError(f"{place}: {error}") from None


def export_stores(pipelines: Sequence[Pipeline], file: str | Path) -> list[MoveReport]:
    """Writes all that is kept of each to one file, from which each takes its own part; see `Pipeline.export_store`.

    Of some there may be nothing yet; each is as of an instant of its own.
    """
    numbers = moving.export([(each.store, each.config.pipeline) for each in pipelines], Path(file))
    return [each._moved("exported", file, part) for each, part in zip(pipelines, numbers, strict=True)]


def _findings_of(part: str, error: Exception) -> list[Finding]:
    if not isinstance(error, PipelineError):
        return [Finding(part, redact(f"{type(error).__name__}: {error}"), "see the message")]
    texts = error.problems if isinstance(error, ConfigError) else [str(error)]
    found = [redact(text).rpartition("; ") for text in texts]
    return [Finding(part, what or said, said if what else "see the message") for what, _, said in found]


def _host_us() -> int:
    return time.time_ns() // 1000


def _gather(futures: Sequence[Future[runner.Tally]]) -> runner.Tally:
    """The sum of what the workers did; raises as soon as one of them failed."""
    tally, waiting = runner.Tally(), set(futures)
    while waiting:
        ended, waiting = wait(waiting, timeout=_AWAKE_S, return_when=FIRST_EXCEPTION)
        tally = sum((future.result() for future in ended), tally)
    return tally


def _work_elsewhere(mapping: Mapping[str, Any], profile: str | None, order: runner.Order) -> runner.Tally:
    """One worker in another process, perhaps on another host, with the plugins that the mapping names."""
    with Pipeline.from_mapping(mapping, profile) as pipeline:
        outages = Outages.watch(pipeline.config, pipeline.report, threading.Event())
        outages.store.outlast(lambda: pipeline.store)
        return pipeline._run_here(order, 1, outages)
