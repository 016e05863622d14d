"""From the source to the stage, and from the stage into the target's scratch."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from logging import DEBUG, WARNING

from pipeline_core.contracts import Batch, Batches, DeferredTarget, ExtractRequest, Load, Staged, StageRequest
from pipeline_core.engine.parts import Parts, blaming
from pipeline_core.errors import MismatchError, PermanentError, SideError, TransientError
from pipeline_core.log import timed
from pipeline_core.record import Claim, Status
from pipeline_core.window import Window

_POLL_S = 0.1  # how soon a request to stop ends a wait
_KEY = re.compile(r"[^/]+/(?P<start>-?\d+)_(?P<end>-?\d+)/(?P<fence>\d+)")


def prefix(pipeline: str, window: Window) -> str:
    """Where the staged files of a window lie, under whichever fence."""
    return f"{pipeline}/{window.start_us}_{window.end_us}/"


def _window_and_fence(key: str) -> tuple[Window, int] | None:
    """What the files of a key are of; None where somebody else has put them there."""
    named = _KEY.fullmatch(key)
    if named is None or int(named["start"]) >= int(named["end"]):
        return None
    return Window.from_us(int(named["start"]), int(named["end"])), int(named["fence"])


def reuse(parts: Parts, claim: Claim, source_rows: int) -> Staged | None:
    """The newest files that an earlier attempt left, if they still hold what the source counts now.

    None where a person asked for the window again: what that is about may be the values, which no count sees.
    """
    staged = latest(parts, claim)
    if staged is None or staged.rows != source_rows or dict(staged.identity) != parts.source_identity():
        return None
    if claim.record.asked is not None:
        return None
    parts.report.tell("staged", claim.window, rows=staged.rows, reused=True)
    return staged


@blaming("stage")
def latest(parts: Parts, claim: Claim) -> Staged | None:
    """The newest complete files of the window."""
    return max(parts.stage.find(prefix(parts.pipeline, claim.window)), key=lambda s: s.fence, default=None)


def extract(parts: Parts, claim: Claim, expected: int) -> Staged:
    """Reads the window into the stage, manifest last. `expected` rows are what progress is told against."""
    window = claim.window
    request = StageRequest(
        f"{prefix(parts.pipeline, window)}{claim.fence}", parts.pipeline, window, claim.fence, parts.source_identity()
    )
    rate = parts.config.run.rows_per_second
    batch_rows = parts.config.run.batch_rows if rate is None else min(parts.config.run.batch_rows, rate)
    asked = ExtractRequest(window, parts.config.exclude, batch_rows)

    @blaming("stage")
    def attempt() -> Staged:
        with closing(parts.source.extract(asked)) as batches:
            seen = Watched(parts, window, "extracting", expected, rate)
            with closing(seen.through(_blamed("source", batches))) as watched:
                staged = parts.stage.write(request, watched)
        if staged.rows != seen.rows:
            raise MismatchError(f"stage: {window}: {seen.rows} rows were handed over, {staged.rows} are staged")
        return staged

    parts.retried("find room in the stage", window, partial(_check_room, parts, window))
    with timed() as watch:
        staged = parts.retried("extract", window, attempt)
    _check_size(parts, staged)
    parts.report.tell("staged", window, rows=staged.rows, files=len(staged.files), seconds=watch.seconds)
    return staged


def sample(parts: Parts, window: Window) -> Batch:
    """The first rows of the window, perhaps none: what tells their columns, and no more than that is read."""
    asked = ExtractRequest(window, parts.config.exclude, parts.config.run.batch_rows)

    @blaming("source")
    def attempt() -> Batch:
        with closing(parts.source.extract(asked)) as batches:
            for batch in batches:
                return batch
        raise PermanentError(f"source: {window}: found no batch at all, expected at least an empty one")

    return parts.retried("extract", window, attempt)


@blaming("stage")
def _check_room(parts: Parts, window: Window) -> None:
    """Raises where the stage is full. Files of this very window do not count: it is about to replace them."""
    limit = parts.config.run.stage_max_bytes
    if limit is None:
        return
    found = [staged for staged in parts.stage.find(f"{parts.pipeline}/") if staged.window != window]
    used = sum(map(_bytes, found))
    if used >= limit:
        raise TransientError(
            f"stage: full: {used:,} bytes of {len(found)} other windows are staged, run.stage_max_bytes is {limit:,}; "
            "they go when their windows are done",
            side_down=True,
        )


def _check_size(parts: Parts, staged: Staged) -> None:
    limit = parts.config.run.stage_max_bytes
    if limit is not None and _bytes(staged) > limit:
        raise PermanentError(
            f"stage: {staged.window}: this window alone takes {_bytes(staged):,} bytes, run.stage_max_bytes is "
            f"{limit:,}; raise it, or cut finer windows (granularity)"
        )


def _bytes(staged: Staged) -> int:
    return sum(file.bytes for file in staged.files)


def load_of(parts: Parts, claim: Claim, staged: Staged, token: str | None = None) -> Load:
    """What the target is asked to load; `token` names the rows where they were submitted."""
    read = _reader(parts, claim.window, staged)
    return Load(claim, staged, read, parts.config.columns, token)


def upload(parts: Parts, load: Load) -> None:
    """Puts the staged rows into the target's scratch, which nobody else sees; what was submitted is there already."""
    if load.token is not None:
        if not uploaded(parts, load.window, load.token):
            raise TransientError(
                f"target: {load.window}: the upload goes on; publish it when poll_submitted_data says 'uploaded'"
            )
        return
    with timed() as watch:
        parts.retried("upload", load.window, blaming("target")(partial(parts.target.upload, load)))
    parts.report.tell("uploaded", load.window, rows=load.staged.rows, seconds=watch.seconds)


def submit(parts: Parts, load: Load) -> str | None:
    """Begins an upload that the target's server ends by itself; its token, or None where the target cannot do so."""
    if not isinstance(parts.target, DeferredTarget):
        return None
    with timed() as watch:
        token = parts.retried("submit", load.window, partial(parts.target.submit, load))
    parts.report.tell("submitted", load.window, rows=load.staged.rows, seconds=watch.seconds)
    return token


def uploaded(parts: Parts, window: Window, token: str) -> bool:
    """Whether the server has every row of what was submitted."""
    done = parts.retried("poll", window, partial(_deferred(parts).uploaded, token))
    parts.report.tell("polled", window, uploaded=done)
    return done


def cancel(parts: Parts, window: Window, token: str) -> None:
    """Ends what was submitted, and drops its scratch. What cannot be reached now expires; it is told, not hidden."""
    try:
        parts.retried("cancel", window, lambda: _deferred(parts).cancel(token))
    except Exception as error:  # noqa: BLE001 - whatever a plugin raises, nobody waits for this upload any more
        parts.report.tell("cleanup failed", window, level=WARNING, error=f"{type(error).__name__}: {error}")
    else:
        parts.report.tell("cancelled", window)


def _deferred(parts: Parts) -> DeferredTarget:
    if not isinstance(parts.target, DeferredTarget):
        raise SideError(
            f"target: an upload was submitted, and {type(parts.target).__name__} cannot go on with one; "
            "put the target back to what it was then, or release the record"
        )
    return parts.target


@blaming("stage")
def remove_staged(parts: Parts, claim: Claim) -> None:
    """Removes the window's staged files of this and every lower fence, complete or not."""
    for key in parts.stage.keys(prefix(parts.pipeline, claim.window)):
        found = _window_and_fence(key)
        if found is not None and found[1] <= claim.fence:
            parts.stage.remove(key)


def _reader(parts: Parts, window: Window, staged: Staged) -> Callable[[], Batches]:
    def read() -> Batches:
        with closing(parts.stage.read(staged)) as batches:
            yield from Watched(parts, window, "uploading", staged.rows).through(_blamed("stage", batches))

    return read


@blaming("stage")
def sweep(parts: Parts) -> None:
    """Removes staged files of windows that are no longer open: superseded ones, and what a late worker left behind."""
    # Listed before the records are read: what is staged after that is no business of ours, whatever is reopened.
    keys = parts.stage.keys(f"{parts.pipeline}/")
    with blaming("store"):
        open_windows = {record.window for record in parts.store.records(parts.pipeline, Status.PENDING, Status.RUNNING)}
    for key in keys:
        found = _window_and_fence(key)
        if found is not None and found[0] not in open_windows:
            parts.stage.remove(key)


def _blamed(part: str, batches: Batches) -> Batches:
    with blaming(part):
        yield from batches


class Watched:
    """Batches on their way: counted, told, and ended where the run was asked to stop; at most `rate` rows a second."""

    def __init__(self, parts: Parts, window: Window, step: str, expected: int, rate: int | None = None) -> None:
        self.rows = 0
        self._rate = rate
        self._began_s = time.monotonic()
        self._parts = parts
        self._window = window
        self._step = step
        self._expected = expected

    def through(self, batches: Batches) -> Batches:
        for batch in batches:
            self._parts.check_stop()
            yield batch
            self.rows += len(batch)
            self._parts.report.tell(self._step, self._window, level=DEBUG, rows=self.rows, of=self._expected)
            if self._rate is not None:
                self._wait_until(self._began_s + self.rows / self._rate)

    def _wait_until(self, at_s: float) -> None:
        while (left_s := at_s - time.monotonic()) > 0:
            self._parts.check_stop()
            time.sleep(min(left_s, _POLL_S))
