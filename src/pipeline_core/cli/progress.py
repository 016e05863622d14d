"""What a run is doing right now: a bar for each running window, fed by the pipeline's own events."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from pipeline_core.record import Event
from pipeline_core.window import Window

_MOVING = {"extracting", "uploading"}
_OVER = {"settled", "claim lost"}


class Bars:
    """An observer that draws. Called from every worker's thread; `name` says a window in words."""

    def __init__(self, console: Console, name: Callable[[Window], str]) -> None:
        self._name = name
        self._progress = Progress(
            SpinnerColumn("line"),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[said]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._lock = threading.Lock()
        self._ended: Counter[str] = Counter()
        self._windows: dict[Window, TaskID] = {}
        self._all = self._progress.add_task("windows", total=None, said="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __rich__(self) -> RenderableType:
        """The bars as they stand."""
        return self._progress.get_renderable()

    def notify(self, event: Event, /) -> None:
        """Moves the bar of the event's window."""
        if event.window is None:
            return
        with self._lock:
            if event.step in _OVER:
                self._end(event.window, event)
            else:
                self._move(event.window, event)

    def _move(self, window: Window, event: Event) -> None:
        if window not in self._windows:
            self._windows[window] = self._progress.add_task(self._name(window), total=None, said="")
        if event.step in _MOVING:
            rows, of = event.fields["rows"], event.fields["of"]
            said = f"{event.step} {rows:,} of {of:,} rows"
            self._progress.update(self._windows[window], completed=rows, total=of or None, said=said)
        else:
            self._progress.update(self._windows[window], said=_said(event))

    def _end(self, window: Window, event: Event) -> None:
        if window in self._windows:
            self._progress.remove_task(self._windows.pop(window))
        self._ended[str(event.fields.get("outcome") or event.fields.get("status") or event.step)] += 1
        said = ", ".join(f"{count} {end}" for end, count in sorted(self._ended.items()))
        self._progress.update(self._all, said=said)


def _said(event: Event) -> str:
    fields = event.fields
    if event.step == "counted":
        return f"counted {fields['source']:,} at the source, {fields['target']:,} at the target"
    if event.step == "retrying":
        return f"retrying {fields['of']} in {fields['wait_s']:.0f} s: {fields['error']}"
    return event.step
