"""The policies of the core, and one that says `window_at` alone, keep what every time policy promises."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

import attrs
import pendulum

from pipeline_core import ElapsedPolicy, TimePolicy, WallClockPolicy, Window
from pipeline_core.testing import TimePolicySuite

# Changes of an hour and of half an hour, at midnight, and a day that was skipped.
ZONES = ["America/New_York", "Australia/Lord_Howe", "America/Asuncion", "Pacific/Apia", "UTC"]


class TestWallClockPolicy(TimePolicySuite):
    """Below a day and from a day on, with limits in hours, days and months."""

    instants = 20

    def policies(self) -> Iterable[TimePolicy]:
        cuts = [("15min", "0s"), ("2h", "1d"), ("1d", "36h"), ("1w", "1w"), ("1mo", "1mo")]
        return [WallClockPolicy(granularity=g, x_time_back=b, timezone=zone) for zone in ZONES for g, b in cuts]


class TestElapsedPolicy(TimePolicySuite):
    """Equal spans, whatever the clock shows."""

    def policies(self) -> Iterable[TimePolicy]:
        cuts = [("5h", "2013-03-10T01:00:00"), ("36h", "1970-01-01T00:00:00Z")]
        return [
            ElapsedPolicy(granularity=g, anchor=a, timezone=zone, x_time_back="1d") for zone in ZONES for g, a in cuts
        ]


@attrs.frozen
class BusinessDays(TimePolicy):
    """Days of the local calendar, the weekend part of Friday's: a third party's policy that says one thing only."""

    def window_at(self, instant: datetime) -> Window:
        Window(instant, pendulum.datetime(9999, 1, 1))  # raises where the instant has no zone
        day = pendulum.instance(instant).in_timezone(self.timezone).start_of("day")
        start = day.subtract(days=max(day.isoweekday() - 5, 0))
        return Window(start, start.add(days=3 if start.isoweekday() == 5 else 1))


class TestWindowAtAlone(TimePolicySuite):
    """Everything but `window_at` is the contract's own default."""

    def policies(self) -> Iterable[TimePolicy]:
        return [BusinessDays(timezone=zone, x_time_back="1d") for zone in ("America/New_York", "Asia/Tokyo")]
