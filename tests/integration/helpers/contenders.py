"""Many processes that all want the same record store: what each of them gets."""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.synchronize import Barrier
from typing import Any, NamedTuple

from pipeline_core import ClaimRequest, Context, Outcome, RecordStore, Settings, Status, Verdict

_DONE = Verdict(Status.DONE, "loaded", Outcome.LOADED)
_forking = multiprocessing.get_context("forkserver")
_forking.set_forkserver_preload(["pipeline_sql.store"])


class Share(NamedTuple):
    """What one process got: windows, and the seconds that it waited for the slowest of them."""

    windows: int
    longest_s: float


def contend(settings: Settings[RecordStore], pipeline: str, processes: int) -> list[Share]:
    """Claims and settles every window of the pipeline by so many processes, which begin at the same moment."""
    barrier, told = _forking.Barrier(processes), _forking.SimpleQueue()
    crew = [_forking.Process(target=_work, args=(settings, pipeline, barrier, told)) for _ in range(processes)]
    for process in crew:
        process.start()
    shares = [Share(*told.get()) for _ in crew]
    for process in crew:
        process.join()
    return shares


def _work(settings: Settings[RecordStore], pipeline: str, barrier: Barrier, told: Any) -> None:
    windows, longest_s = 0, 0.0
    request = ClaimRequest(pipeline, 10**15, 600)
    with settings.open(Context(pipeline)) as store:
        barrier.wait()
        while True:
            begun = time.monotonic()
            claims = store.claim(request)
            if not claims:
                break
            store.settle(claims[0], _DONE)
            windows += 1
            longest_s = max(longest_s, time.monotonic() - begun)
    told.put((windows, longest_s))
