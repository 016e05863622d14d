"""What the SQL record store costs on SQLite, at growing numbers of records: `python bench/store.py [records …]`."""

from __future__ import annotations

import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline_core import Addition, Change, ClaimRequest, Outcome, Secret, Status, Verdict
from pipeline_sql.engines import open_engine
from pipeline_sql.store import SqlRecordStore, opened

CLAIMS = 2_000
DONE = Verdict(Status.DONE, "loaded", Outcome.LOADED, {"source": 3, "target": 3}, "a to b")


def timed(act: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.perf_counter()
    result = act()
    return time.perf_counter() - begun, result


def measure(records: int, path: Path) -> None:
    with opened(open_engine(Secret(f"sqlite:///{path}"), timeout_s=30)) as store:
        change = Change("p", add=[Addition(at, at + 10, 0) for at in range(0, records * 10, 10)], fields={"key": "x"})
        applying, _ = timed(lambda: store.apply(change))
        spanning, _ = timed(lambda: store.spans("p"))
        request = ClaimRequest("p", 10**15, 600)
        claiming, claims = timed(lambda: [store.claim(request)[0] for _ in range(CLAIMS)])
        settling, _ = timed(lambda: [store.settle(claim, DONE) for claim in claims])
        batching, _ = timed(lambda: [settle_all(store, ClaimRequest("p", 10**15, 600, limit=10)) for _ in range(100)])
    print(
        f"{records:>9,} records: apply {applying:6.2f} s  spans {spanning:5.2f} s  claims/s {CLAIMS / claiming:7,.0f}  "
        f"settles/s {CLAIMS / settling:7,.0f}  claimed by ten and settled/s {1_000 / batching:7,.0f}"
    )


def settle_all(store: SqlRecordStore, request: ClaimRequest) -> None:
    for claim in store.claim(request):
        store.settle(claim, DONE)


def raw_claims(path: Path) -> float:
    """The same statements by the driver alone: what SQLite itself takes for a claim."""
    said: list[str] = []
    engine = open_engine(Secret(f"sqlite:///{path}"), timeout_s=30)
    with opened(engine) as store:
        with engine.sa.connect() as connection:
            traced: Any = connection.connection.driver_connection
        traced.set_trace_callback(said.append)
        store.claim(ClaimRequest("p", 10**15, 600))
    driver = sqlite3.connect(path, isolation_level=None)
    driver.execute("PRAGMA synchronous = NORMAL")
    statements = [text for text in said if not text.startswith("PRAGMA")]
    seconds, _ = timed(lambda: [driver.execute(text).fetchall() for _ in range(CLAIMS) for text in statements])
    driver.close()
    return CLAIMS / seconds


def main() -> None:
    for records in [int(text) for text in sys.argv[1:]] or [10_000, 100_000, 1_000_000]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "records.db"
            measure(records, path)
            print(f"{'':>9}  the driver alone: claims/s {raw_claims(path):,.0f}")


if __name__ == "__main__":
    main()
