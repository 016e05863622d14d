"""Counting both sides at once, one window or many. A count that is not sure is an error, never a number."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from logging import WARNING
from typing import TypeVar

from attrs import evolve

from pipeline_core.contracts import Connector
from pipeline_core.decision import Counts, Decision, decide
from pipeline_core.engine.parts import Parts, blaming
from pipeline_core.errors import PermanentError
from pipeline_core.log import timed
from pipeline_core.window import Window

T = TypeVar("T")
CHUNK = 1_000  # windows a bulk count asks for at once: what the slowest known engine still answers in one request


def check_counts(parts: Parts, window: Window, *, reload: bool = False) -> Decision:
    """Counts both sides in the window and decides; `reload`: the rows are to move whatever the counts say."""
    with timed() as watch:
        decision = decide(count_both(parts, window), reload=reload)
    parts.report.tell(
        "counted",
        window,
        source=decision.counts.source,
        target=decision.counts.target,
        reason=decision.reason,
        seconds=watch.seconds,
    )
    return decision


def count_both(parts: Parts, window: Window) -> Counts:
    """The rows of one window on both sides."""
    return Counts(*_at_once(parts, lambda mine: count_source(mine, window), lambda mine: count_target(mine, window)))


def count_source(parts: Parts, window: Window) -> int:
    """The rows of one window at the source; retried while the fault can heal."""
    return parts.retried("count source", window, lambda: _sure("source", parts.source, [window])[0])


def count_target(parts: Parts, window: Window) -> int:
    """The rows of one window at the target; retried while the fault can heal."""
    return parts.retried("count target", window, lambda: _sure("target", parts.target, [window])[0])


def probe(parts: Parts) -> None:
    """Asks both sides something cheap, once, and raises what keeps one of them from answering."""
    moment = Window.from_us(0, 1)
    _at_once(
        parts,
        lambda mine: _sure("source", mine.source, [moment]),
        lambda mine: _sure("target", mine.target, [moment]),
    )


def excluded(parts: Parts) -> int:
    """The source's rows that fall into no window, told where there are any: nothing is lost in silence."""
    rows = parts.retried("count excluded", None, blaming("source")(parts.source.excluded))
    if rows:
        parts.report.tell("excluded", level=WARNING, rows=rows, reason="their timestamp is null, or no timestamp")
    return rows


def count_many(parts: Parts, windows: Sequence[Window]) -> list[Counts]:
    """The rows of many windows, in bulk, in the order given."""
    counts: list[Counts] = []
    for first in range(0, len(windows), CHUNK):
        parts.check_stop()
        counts += _count_chunk(parts, windows[first : first + CHUNK])
    return counts


def _count_chunk(parts: Parts, windows: Sequence[Window]) -> list[Counts]:
    source, target = _at_once(
        parts,
        lambda mine: mine.retried("count source", None, lambda: _sure("source", mine.source, windows)),
        lambda mine: mine.retried("count target", None, lambda: _sure("target", mine.target, windows)),
    )
    return [Counts(*pair) for pair in zip(source, target, strict=True)]


def _sure(side: str, connector: Connector, windows: Sequence[Window]) -> Sequence[int]:
    """The connector's counts, once they are known to be counts: one each, whole, not negative."""
    with blaming(side):
        counts = [connector.count(windows[0])] if len(windows) == 1 else connector.count_many(windows)
    if len(counts) != len(windows):
        raise PermanentError(f"{side}: asked for the counts of {len(windows)} windows, got {len(counts)}")
    for window, count in zip(windows, counts, strict=True):
        if type(count) is not int or count < 0:
            raise PermanentError(f"{side}: the count of {window} is {count!r}; expected a whole number, 0 or more")
    return counts


def _at_once(parts: Parts, source: Callable[[Parts], T], target: Callable[[Parts], T]) -> tuple[T, T]:
    """Both answers. Where the target's fails, or is interrupted, nobody waits for the source's to be tried again."""
    over = threading.Event()
    mine = evolve(parts, stopping=lambda: parts.stopping() or over.is_set())
    with ThreadPoolExecutor(1, thread_name_prefix="count") as pool:
        try:
            future = pool.submit(source, mine)
        except RuntimeError:  # this host has no thread left: one after the other, then
            return source(parts), target(parts)
        try:
            there = target(parts)
            return future.result(), there
        finally:
            over.set()
