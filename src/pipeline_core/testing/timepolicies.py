"""The conformance suite of time policies."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from functools import partial
from itertools import islice, pairwise
from typing import Final

from pipeline_core.errors import TimeError
from pipeline_core.testing.findings import expect, expect_error
from pipeline_core.timepolicy import TimePolicy
from pipeline_core.window import DAY_US, SECOND_US, Window, from_us, to_us
from pipeline_core.zones import clock, zone

EARLIEST: Final = to_us(datetime(1990, 1, 1, tzinfo=UTC))
LATEST: Final = to_us(datetime(2035, 1, 1, tzinfo=UTC))
_STEPS = (0, 1, -1, SECOND_US, -SECOND_US, 1800 * SECOND_US, -1800 * SECOND_US, 3600 * SECOND_US, DAY_US, -DAY_US)

# Where a limit may move back it does so within a day of a change of the clock, mostly of half an hour or an hour.
_A_DAY_ON = range(-3600 * SECOND_US, 26 * 3600 * SECOND_US, 1799 * SECOND_US)


class TimePolicySuite(ABC):
    """What every time policy promises. Subclass it in a test module, and name policies to try::

        class TestBusinessDays(TimePolicySuite):
            def policies(self):
                return [BusinessDayPolicy(timezone="America/New_York"), BusinessDayPolicy(timezone="Asia/Tokyo")]

    Each is asked around some changes of its zone's clock and at random instants: `instants` of them, from 1990 to 2035,
    and `length` windows on from each.
    """

    instants = 40
    length = 12

    @abstractmethod
    def policies(self) -> Iterable[TimePolicy]:
        """The policies to try; zones whose clocks change are worth more than others."""

    def test_the_window_of_an_instant_holds_it(self) -> None:
        """Start included, end not, to the microsecond; the instants just outside have the neighbouring windows."""
        for policy, us in self._moments():
            window = policy.window_at_us(us)
            held = window.start_us <= us < window.end_us
            expect(f"window_at({from_us(us)}) holds that instant", policy, held, True, window=window)
            before, after = policy.window_at_us(window.start_us - 1), policy.window_at_us(window.end_us)
            met = before.end_us, after.start_us
            expect(
                "windows leave no gap and do not overlap", policy, met, (window.start_us, window.end_us), window=window
            )

    def test_every_instant_of_a_window_has_that_window(self) -> None:
        """Its first, a middle and its last microsecond; asked twice, and as a datetime of any zone."""
        for policy, us in self._moments():
            window = policy.window_at_us(us)
            middle_us = (window.start_us + window.end_us) // 2
            for inside_us in (window.start_us, middle_us, window.end_us - 1):
                promise = f"window_at({from_us(inside_us)}) is the window that holds it"
                expect(promise, policy, policy.window_at_us(inside_us), window, window=window)
                expect(promise, policy, policy.window_at(from_us(inside_us)), window, window=window)
                local = from_us(inside_us).in_timezone(policy.timezone)
                expect(promise, policy, policy.window_at(local), window, window=window)

    def test_windows_tile_time(self) -> None:
        """The windows that start in a span: no gap, no overlap, in order, the same that window_at gives."""
        for policy, us in self._moments():
            expected = list(islice(walk(policy, us), self.length))
            start_us, end_us = expected[0].start_us, expected[-1].end_us
            span = Window.from_us(start_us, end_us)
            expect(
                "windows() agrees with window_at",
                policy,
                list(policy.windows_us(start_us, end_us)),
                expected,
                window=span,
            )
            found = list(policy.windows(from_us(start_us + 1), from_us(end_us - 1)))
            promise = "windows(a, b) are those that start in [a, b)"
            expect(promise, policy, found, expected[1:], window=span)
            for before, after in pairwise(found):
                expect("windows leave no gap", policy, after.start_us, before.end_us, window=before)

    def test_a_span_may_be_cut_in_two(self) -> None:
        """Planning in pieces loses nothing and repeats nothing, wherever the span is cut."""
        for policy, us in self._moments():
            windows = list(islice(walk(policy, us), self.length))
            start_us, end_us = windows[0].start_us, windows[-1].end_us
            for middle_us in (us, windows[-1].start_us, windows[len(windows) // 2].end_us - 1):
                halves = [*policy.windows_us(start_us, middle_us), *policy.windows_us(middle_us, end_us)]
                span = Window.from_us(start_us, end_us)
                expect(f"cut in two at {from_us(middle_us)}", policy, halves, windows, window=span)

    def test_windows_can_be_asked_without_being_made(self) -> None:
        """Length, index, slice, membership and edges are those of the list; an empty span has none."""
        for policy, us in self._moments():
            listed = list(islice(walk(policy, us), self.length))
            span = Window.from_us(listed[0].start_us, listed[-1].end_us)
            windows = policy.windows_us(span.start_us, span.end_us)
            expect("length", policy, len(windows), len(listed), window=span)
            expect(
                "index", policy, [windows[0], windows[-1], windows[3]], [listed[0], listed[-1], listed[3]], window=span
            )
            expect("slice", policy, list(windows[2:-1]), listed[2:-1], window=span)
            expect("membership", policy, [each in windows for each in listed], [True] * len(listed), window=span)
            bounds = [*(each.start_us for each in listed), listed[-1].end_us]
            expect("edges", policy, windows.edges(), bounds, window=span)
            expect("an empty span has no window", policy, len(policy.windows_us(us, us)), 0)

    def test_the_stable_limit_never_moves_back(self) -> None:
        """As now grows, it stays or grows; and it never lies in the future."""
        for policy in self.policies():
            moments = sorted(us + step for us in self._around(policy) for step in _A_DAY_ON)
            limits = [policy.stable_until_us(us) for us in moments]
            for us, limit in zip(moments, limits, strict=True):
                expect(f"stable_until({from_us(us)}) is not in the future", policy, limit <= us, True)
                expect(
                    "stable_until agrees with stable_until_us", policy, to_us(policy.stable_until(from_us(us))), limit
                )
            for (before_us, before), (us, after) in pairwise(zip(moments, limits, strict=True)):
                promise = f"stable_until never moves back: from {from_us(before_us)} to {from_us(us)}"
                expect(promise, policy, after >= before, True)

    def test_naive_times_are_refused(self) -> None:
        """A time without a zone is no instant."""
        naive, aware = datetime(2025, 3, 9), datetime(2025, 3, 9, tzinfo=UTC)  # noqa: DTZ001 - that is the point
        for policy in self.policies():
            asked: dict[str, Callable[[], object]] = {
                "window_at": partial(policy.window_at, naive),
                "windows": partial(policy.windows, naive, aware),
                "stable_until": partial(policy.stable_until, naive),
            }
            for name, ask in asked.items():
                expect_error(f"{name} refuses a naive datetime", policy, ask, TimeError)

    def test_policies_of_the_same_settings_are_equal(self) -> None:
        """A policy is a value: planning compares it with what it was."""
        for one, other in zip(self.policies(), self.policies(), strict=True):
            expect("equal settings, equal policies", one, (one, hash(one)), (other, hash(other)))

    def _moments(self) -> Iterator[tuple[TimePolicy, int]]:
        return ((policy, us) for policy in self.policies() for us in self._around(policy))

    def _around(self, policy: TimePolicy) -> list[int]:
        """Instants near changes of the zone's clock, where mistakes live, and some anywhere. The same in every run."""
        chance = random.Random(policy.timezone)  # noqa: S311 - to be the same in every run
        changes = [us for us in clock(zone(policy.timezone), LATEST).starts if EARLIEST < us < LATEST]
        found = []
        for number in range(self.instants):
            anywhere = chance.randrange(EARLIEST, LATEST)
            near = chance.choice(changes) + chance.choice(_STEPS) if changes else anywhere
            found.append(near if number % 4 else anywhere)
        return found


def walk(policy: TimePolicy, us: int) -> Iterator[Window]:
    """Window after window, from the one that holds the instant, by window_at alone."""
    while True:
        window = policy.window_at_us(us)
        yield window
        us = window.end_us
