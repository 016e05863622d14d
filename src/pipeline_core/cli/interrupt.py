"""Ctrl-C and SIGTERM: the first asks for a clean end, the second leaves at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from pipeline_core.reports import Exit

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_STOPPING = "stopping: every worker puts its window back and releases what it holds; once more to leave at once"


@contextmanager
def interruptible(say: Callable[[str], None]) -> Iterator[None]:
    """Within the block the first signal says so and raises KeyboardInterrupt; the second ends the process.

    Ending it is harmless: the next run sees that the owner of the windows is gone, and takes them over.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # an embedding program's own signals stay its own
        return
    asked = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        del number, frame
        if asked.is_set():
            os._exit(Exit.UNDONE)
        asked.set()
        # In a thread of its own, because the code that was interrupted may hold the terminal's lock.
        threading.Thread(target=say, args=(_STOPPING,), daemon=True).start()
        raise KeyboardInterrupt

    before = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
