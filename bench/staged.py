"""Windows of staged Parquet for the benchmarks of loading: a timestamp, a text and a double."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline_core import Context, Staged, StageRequest, Window
from pipeline_core.contracts import Batches
from pipeline_objects import ObjectStageSettings

BEGIN = datetime(2013, 1, 1, tzinfo=UTC)
BATCH_ROWS = 50_000


def batches(window: Window, rows: int) -> Batches:
    """Rows spread evenly over the window."""
    step = (window.end_us - window.start_us) // rows
    for at in range(0, rows, BATCH_ROWS):
        numbers = np.arange(at, min(at + BATCH_ROWS, rows))
        instants = pa.array(window.start_us + numbers * step, pa.timestamp("us", "UTC"))
        names = pa.array([f"row {number}" for number in (numbers % 1000).tolist()])
        yield pa.RecordBatch.from_arrays([instants, names, pa.array(numbers / 8)], ["ts", "name", "value"])


def stage(folder: str, windows: int, rows: int) -> list[Staged]:
    """Stages so many windows of so many rows."""
    with ObjectStageSettings(f"file://{folder}").open(Context("bench")) as opened:
        staged = []
        for number in range(windows):
            window = Window(BEGIN + timedelta(hours=number), BEGIN + timedelta(hours=number + 1))
            request = StageRequest(f"bench/{number}", "bench", window, 1, {})
            staged.append(opened.write(request, batches(window, rows)))
        return staged


def files(folder: str, staged: Staged) -> list[Path]:
    return sorted((Path(folder) / staged.key).glob("*.parquet"))
