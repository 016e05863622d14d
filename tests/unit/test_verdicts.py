"""What a fault means for its window: try again, leave it to a person, or leave it as it was."""

from __future__ import annotations

import errno

import pytest

from pipeline_core import Claim, PermanentError, Record, SideError, Status, TransientError, Window
from pipeline_core.config import RunSettings
from pipeline_core.engine.runner import verdict_on
from pipeline_core.errors import AuditError, Interrupted

SETTINGS = RunSettings(max_attempts=3, backoff_s=10.0, backoff_max_s=15.0)


def claim(attempts: int = 0) -> Claim:
    """A claim on a window that has used so many attempts."""
    return Claim("c", Record("p", Window.from_us(0, 1), attempts=attempts), 1)


@pytest.mark.parametrize(
    ("error", "attempts", "status", "counts"),
    [
        (TransientError("away"), 0, Status.PENDING, True),
        (TransientError("away"), 1, Status.PENDING, True),
        (TransientError("away"), 2, Status.QUARANTINED, True),
        (AuditError("moved"), 0, Status.PENDING, True),
        (PermanentError("no"), 0, Status.QUARANTINED, True),
        (OSError(errno.EMFILE, "Too many open files"), 1, Status.PENDING, True),
        (OSError(errno.EMFILE, "Too many open files"), 2, Status.QUARANTINED, True),
        (OSError(errno.ENOENT, "No such file"), 0, Status.QUARANTINED, True),
        (RuntimeError("a plugin's bug"), 0, Status.QUARANTINED, True),
        (TransientError("down", side_down=True), 2, Status.PENDING, False),
        (SideError("password"), 2, Status.PENDING, False),
        (Interrupted("stop"), 2, Status.PENDING, False),
    ],
)
def test_verdicts(error: Exception, attempts: int, status: Status, counts: bool) -> None:
    """Bounded attempts for what the window is to blame for; none for a side or an interrupt."""
    verdict = verdict_on(error, claim(attempts), SETTINGS)
    assert (verdict.status, verdict.attempt) == (status, counts)
    assert str(error) in verdict.reason


def test_the_backoff_doubles_up_to_its_limit() -> None:
    """With a fifth of jitter either way."""
    waits = [verdict_on(TransientError("away"), claim(attempts), SETTINGS).wait_s for attempts in (0, 1)]
    assert 8 <= waits[0] <= 12
    assert 12 <= waits[1] <= 18


def test_the_backoff_keeps_its_limit_after_any_number_of_attempts() -> None:
    """More of them than a float has powers of two."""
    settings = RunSettings(max_attempts=5_000, backoff_s=10.0, backoff_max_s=15.0)
    verdict = verdict_on(TransientError("away"), claim(2_000), settings)
    assert (verdict.status, 12 <= verdict.wait_s <= 18) == (Status.PENDING, True)


@pytest.mark.parametrize("side_down", [True, False])
def test_nobody_claims_the_window_before_the_side_said(side_down: bool) -> None:
    """What it asked for in `retry_after` is waited, also by other hosts."""
    error = TransientError("too many requests", retry_after=120.0, side_down=side_down)
    assert verdict_on(error, claim(), SETTINGS).wait_s == 120
