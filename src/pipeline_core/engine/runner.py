"""Claims windows, turns faults into verdicts, settles. The steps themselves are in `window.py`."""

from __future__ import annotations

import errno
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from logging import WARNING

from attrs import evolve, field, frozen

from pipeline_core.config import Config, RunSettings
from pipeline_core.contracts import ClaimRequest, RecordStore
from pipeline_core.engine import counting, owner
from pipeline_core.engine.auditing import clean_up
from pipeline_core.engine.outage import GaveUpError, Outages
from pipeline_core.engine.parts import Parts, blaming
from pipeline_core.engine.window import run_window
from pipeline_core.errors import ClaimLostError, Interrupted, ShrinkError, SideError, TransientError
from pipeline_core.log import timed
from pipeline_core.record import Claim, Status, Verdict
from pipeline_core.retry import doubled_s
from pipeline_core.secrets import redact
from pipeline_core.window import Window

_SCARCE = {errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM}
_POLL_S = 0.5  # how long an idle worker sleeps at most, so that a stop or a freed window is soon seen


@frozen
class Order:
    """What a worker is asked to do. `within` limits it to windows that start there, `limit` to so many windows.

    `now_us` (microseconds UTC) stands for the store's clock in deciding what is stable, in tests and replays.
    """

    within: Window | None = None
    limit: int | None = None
    now_us: int | None = None


@frozen
class Tally:
    """What became of the windows a worker took. Tallies add up. `undone`: ready work was left, and why."""

    verdicts: Counter[str] = field(factory=Counter)
    rows: int = 0
    undone: str = ""

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.verdicts + other.verdicts, self.rows + other.rows, self.undone or other.undone)


class Turns:
    """How many windows may still be taken, shared between the workers of a run."""

    def __init__(self, limit: int | None) -> None:
        self._left = limit
        self._lock = threading.Lock()

    def take(self) -> bool:
        with self._lock:
            if self._left is None:
                return True
            if self._left <= 0:
                return False
            self._left -= 1
            return True

    def give_back(self) -> None:
        with self._lock:
            if self._left is not None:
                self._left += 1


def work(
    open_parts: Callable[[], AbstractContextManager[Parts]], order: Order, turns: Turns, outages: Outages
) -> Tally:
    """Takes window after window until none is ready, leased to another worker, or soon to be ready again.

    While a side is away nothing is claimed; then the parts are opened anew, since what was connected may be dead. What
    is left when an outage is given up is told in `undone`. Raises SideError where a side refuses until a person acts;
    the window is pending again by then.
    """
    tally = Tally()
    try:
        while outages.sides.admit():
            try:
                with open_parts() as parts:
                    if outages.sides.trying:
                        counting.probe(parts)
                    for each in _attempts(parts, order, turns, outages):
                        tally += each
                        outages.sides.back()
                if not outages.sides.keeps_waiting:
                    break
            except TransientError as error:
                if isinstance(error, GaveUpError):
                    raise
                outages.sides.away(error)
    except GaveUpError as error:
        tally += Tally(undone=str(error))
    except Interrupted:
        pass  # who asked the run to stop knows why
    finally:
        outages.sides.leave()
    return tally


def _attempts(parts: Parts, order: Order, turns: Turns, outages: Outages) -> Iterator[Tally]:
    """One attempt after the other, at whichever window is the oldest then, for as long as no side is away."""
    dead = outages.store.outlast(partial(_dead_owners, parts))
    while not (outages.stop.is_set() or outages.sides.keeps_waiting) and turns.take():
        claims = outages.store.outlast(partial(_claim, parts, order, dead))
        if claims:
            try:
                yield attempt(parts, claims[0], outages)
            except TransientError:
                turns.give_back()
                raise
            continue
        turns.give_back()
        if not outages.store.outlast(partial(_wait, parts, order, dead, outages.stop)):
            break
        dead = outages.store.outlast(partial(_dead_owners, parts))


def _claim(parts: Parts, order: Order, dead: frozenset[str]) -> Sequence[Claim]:
    return parts.store.claim(claim_request(parts.config, parts.store, order, owner.this_process(), dead))


def claim_request(
    config: Config, store: RecordStore, order: Order, holder: str | None = None, dead: frozenset[str] = frozenset()
) -> ClaimRequest:
    """The oldest stable window. `holder` is the process whose death frees it at once; None where it is to travel on."""
    settings = config.run
    now_us = store.now_us() if order.now_us is None else order.now_us
    return ClaimRequest(
        config.pipeline,
        stable_until_us=config.policy.stable_until_us(now_us),
        lease_s=settings.lease_s,
        within=order.within,
        owner=holder,
        dead_owners=dead,
        max_crashes=settings.max_crashes,
        crash_backoff_s=settings.crash_backoff_s,
        max_running=settings.max_running,
    )


def attempt(parts: Parts, claim: Claim, outages: Outages) -> Tally:
    """One attempt at one window, to its verdict. A claim lost on the way is no failure: another worker has it.

    A fault of a whole side is raised once the window is pending again.
    """
    window = claim.window
    parts.report.tell("claimed", window, fence=claim.fence, attempts=claim.record.attempts)
    with ExitStack() as beating:
        try:
            lost = beating.enter_context(heartbeat(parts, claim))
        except TransientError as unable:  # nothing was begun
            settle(parts, claim, verdict_on(unable, claim, parts.config.run), outages)
            raise
        mine = evolve(parts, stopping=lambda: outages.stop.is_set() or lost.is_set())
        with timed() as watch:
            verdict, error = _judged(mine, claim)
        if lost.is_set() or isinstance(error, ClaimLostError):
            return _told_lost(parts, claim, error)
        clean_up(parts, claim, finished=verdict.status is not Status.PENDING)
        try:
            settle(parts, claim, verdict, outages)
        except ClaimLostError as late:
            return _told_lost(parts, claim, late)
    parts.report.tell(
        "settled", window, status=verdict.status, outcome=verdict.outcome, reason=verdict.reason, seconds=watch.seconds
    )
    if error is not None and of_a_side(error):
        raise error
    rows = verdict.evidence.get("staged", {}).get("rows", 0)
    return Tally(Counter([verdict.outcome or verdict.status]), rows)


def settle(parts: Parts, claim: Claim, verdict: Verdict, outages: Outages) -> None:
    """Ends the claim, however often the store is away meanwhile; or raises ClaimLostError.

    Where only the answer was lost, the next try finds the claim at its end: then the record tells by what verdict.
    """
    try:
        outages.store.outlast(partial(parts.store.settle, claim, verdict))
    except ClaimLostError:
        window = claim.window
        within = Window.from_us(window.start_us, window.start_us + 1)
        found = outages.store.outlast(partial(parts.store.records, parts.pipeline, verdict.status, within=within))
        if (claim.fence, verdict.reason) not in {(record.fence, record.reason) for record in found}:
            raise


def verdict_on(error: Exception, claim: Claim, settings: RunSettings) -> Verdict:
    """What a fault means for the window: try again, or leave it to a person."""
    reason = redact(f"{type(error).__name__}: {error}")
    asked_s = error.retry_after or 0.0 if isinstance(error, TransientError) else 0.0
    if isinstance(error, Interrupted) or of_a_side(error):
        return Verdict(Status.PENDING, reason, wait_s=asked_s)
    if not isinstance(error, TransientError) and not _of_this_host(error):
        evidence = {"shrank": dict(error.counts)} if isinstance(error, ShrinkError) else {}
        return Verdict(Status.QUARANTINED, reason, evidence=evidence, attempt=True)
    used = claim.record.attempts + 1
    if used >= settings.max_attempts:
        return Verdict(Status.QUARANTINED, f"{reason} (attempt {used} of {settings.max_attempts})", attempt=True)
    wait_s = doubled_s(settings.backoff_s, used - 1, settings.backoff_max_s)
    wait_s = max(wait_s * random.uniform(0.8, 1.2), asked_s)  # noqa: S311 - jitter
    return Verdict(Status.PENDING, reason, attempt=True, wait_s=wait_s)


def of_a_side(error: Exception) -> bool:
    """Whether no other window would fare better."""
    return isinstance(error, SideError) or (isinstance(error, TransientError) and error.side_down)


def _of_this_host(error: Exception) -> bool:
    """Whether the host had too little of something at that moment, whichever window it was."""
    return isinstance(error, OSError) and error.errno in _SCARCE


def _judged(parts: Parts, claim: Claim) -> tuple[Verdict, Exception | None]:
    try:
        return run_window(parts, claim), None
    except Exception as error:  # noqa: BLE001 - every fault of a plugin becomes a verdict, and is told
        return verdict_on(error, claim, parts.config.run), error


def _told_lost(parts: Parts, claim: Claim, error: Exception | None) -> Tally:
    clean_up(parts, claim, finished=False)
    parts.report.tell("claim lost", claim.window, reason=str(error or "another worker has taken over"))
    return Tally(Counter(["claim lost"]))


def _dead_owners(parts: Parts) -> frozenset[str]:
    return owner.dead(record.owner for record in parts.store.records(parts.pipeline, Status.RUNNING))


def _wait(parts: Parts, order: Order, dead: frozenset[str], stop: threading.Event) -> bool:
    """Sleeps until a window may be ready; False where none is left to wait for."""
    at_us = parts.store.next_claim_us(claim_request(parts.config, parts.store, order, dead=dead))
    if at_us is None:
        return False
    stop.wait(min(max((at_us - parts.store.now_us()) / 1e6, 0.01), _POLL_S))
    return True


@contextmanager
def heartbeat(parts: Parts, claim: Claim) -> Iterator[threading.Event]:
    """Renews the lease while the block runs; the event is set once another worker holds the window.

    Raises TransientError, as of a side that is down, where this host has no thread for it.
    """
    lost, over = threading.Event(), threading.Event()
    lease_s = parts.config.run.lease_s

    def beat() -> None:
        while not over.wait(lease_s / 3):
            try:
                parts.store.renew(claim, lease_s)
            except ClaimLostError:
                lost.set()
                return
            except Exception as error:  # noqa: BLE001 - a store that is away for a beat is asked again at the next
                parts.report.tell("renewal failed", claim.window, level=WARNING, error=str(error))

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    with blaming("host"):
        _start(thread)
    try:
        yield lost
    finally:
        over.set()
        thread.join()


def _start(thread: threading.Thread) -> None:
    try:
        thread.start()
    except RuntimeError as error:
        raise TransientError(
            f"this host: {error}; let it have more of them (ulimit -u, the pids limit of a container), or lower "
            "run.workers",
            side_down=True,
        ) from error
