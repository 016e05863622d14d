"""Time policies that each break one promise, and the test of the suite that must notice."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from itertools import count

import attrs
import pendulum
import pytest

from pipeline_core import ElapsedPolicy, TimeError, TimePolicy, Window
from pipeline_core.testing import BrokenPromiseError, TimePolicySuite

HOUR_US = 3_600_000_000
NUMBERS = count()


@attrs.frozen
class Sound(TimePolicy):
    """Hours."""

    def window_at(self, instant: datetime) -> Window:
        return ElapsedPolicy(granularity="1h").window_at(instant)


@attrs.frozen
class EndsTooLate(Sound):
    """The end belongs to the window."""

    def window_at(self, instant: datetime) -> Window:
        window = super().window_at(instant)
        return Window.from_us(window.start_us, window.end_us + 1)


@attrs.frozen
class LeavesAHole(Sound):
    """The last second of each hour is in no window."""

    def window_at(self, instant: datetime) -> Window:
        window = super().window_at(instant)
        return Window.from_us(window.start_us, window.end_us - 1_000_000)


@attrs.frozen
class BeginsWhereItIsAsked(TimePolicy):
    """An hour from any instant."""

    def window_at(self, instant: datetime) -> Window:
        start = pendulum.instance(instant) if instant.tzinfo else Window(instant, instant).start
        return Window(start, start.add(hours=1))


@attrs.frozen
class TakesNaiveTimes(Sound):
    """A time without a zone is UTC."""

    def window_at(self, instant: datetime) -> Window:
        return super().window_at(instant if instant.tzinfo else instant.replace(tzinfo=UTC))


@attrs.frozen
class StableInTheFuture(Sound):
    """Rows still arrive."""

    def stable_until_us(self, now_us: int) -> int:
        return now_us + HOUR_US


@attrs.frozen
class StableMovesBack(Sound):
    """In the second half of each hour."""

    def stable_until_us(self, now_us: int) -> int:
        return now_us - 10 * HOUR_US * (now_us % HOUR_US >= HOUR_US // 2)


@attrs.frozen
class EachIsAnother(Sound):
    """The same settings are never the same policy."""

    number: int = attrs.field(factory=lambda: next(NUMBERS))


class Suite(TimePolicySuite):
    """The suite on one kind of policy."""

    def __init__(self, kind: type[TimePolicy]) -> None:
        self.kind = kind

    def policies(self) -> Iterable[TimePolicy]:
        return [self.kind(timezone="America/New_York")]


@pytest.mark.parametrize(
    ("kind", "noticed_by"),
    [
        (EndsTooLate, "test_the_window_of_an_instant_holds_it"),
        (EndsTooLate, "test_windows_tile_time"),
        (EndsTooLate, "test_a_span_may_be_cut_in_two"),
        (LeavesAHole, "test_the_window_of_an_instant_holds_it"),
        (BeginsWhereItIsAsked, "test_every_instant_of_a_window_has_that_window"),
        (TakesNaiveTimes, "test_naive_times_are_refused"),
        (StableInTheFuture, "test_the_stable_limit_never_moves_back"),
        (StableMovesBack, "test_the_stable_limit_never_moves_back"),
        (EachIsAnother, "test_policies_of_the_same_settings_are_equal"),
    ],
)
def test_the_suite_notices(kind: type[TimePolicy], noticed_by: str) -> None:
    """The named test passes on the sound policy, and fails on the broken one."""
    getattr(Suite(Sound), noticed_by)()
    with pytest.raises((BrokenPromiseError, TimeError)):
        getattr(Suite(kind), noticed_by)()
