"""Many workers on one SQLite file, whose lock only one can have at a time."""

from __future__ import annotations

from pathlib import Path

from contenders import contend
from pipeline_core import Addition, Change, Context, Secret
from pipeline_sql.settings import SqlStoreSettings

WORKERS = 16
WINDOWS = 200 * WORKERS


def test_no_worker_starves(tmp_path: Path) -> None:
    """Each of sixteen gets a tenth of an even share at least; by SQLite's own waiting the last gets next to nothing."""
    settings = SqlStoreSettings(Secret(f"sqlite:///{tmp_path / 'records.db'}"))
    with settings.open(Context("p")) as store:
        store.apply(Change("p", add=[Addition(number * 10, number * 10 + 10, 0) for number in range(WINDOWS)]))
        shares = contend(settings, "p", WORKERS)
    windows = sorted(share.windows for share in shares)
    assert sum(windows) == WINDOWS
    assert windows[0] >= WINDOWS / WORKERS / 10, shares
