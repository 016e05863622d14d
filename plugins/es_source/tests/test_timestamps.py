"""Instants as the server reads them, without a server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline_core import Window
from pipeline_core.window import iso
from pipeline_elasticsearch.timestamps import Resolution, micros, readable

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SOME_US = st.integers(-60_000_000_000_000_000, 250_000_000_000_000_000)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2013", "2013-01-01T00:00:00Z"),
        (2013, "2013-01-01T00:00:00Z"),
        ("2013-03", "2013-03-01T00:00:00Z"),
        ("2013-03-10", "2013-03-10T00:00:00Z"),
        ("2013-03-10T05", "2013-03-10T05:00:00Z"),
        ("2013-03-10T05:06", "2013-03-10T05:06:00Z"),
        ("2013-03-10T05:06:07", "2013-03-10T05:06:07Z"),
        ("2013-03-10T05:06:07Z", "2013-03-10T05:06:07Z"),
        ("2013-03-10T05:06:07.1+02:00", "2013-03-10T03:06:07.1Z"),
        ("2013-03-10T05:06:07,123456999-0530", "2013-03-10T10:36:07.123456Z"),
        ("1969-12-31T23:59:59.999999999Z", "1969-12-31T23:59:59.999999Z"),
        (1_362_891_967_123, "2013-03-10T05:06:07.123Z"),
        ("1362891967123", "2013-03-10T05:06:07.123Z"),
        ("1362891967123.4567", "2013-03-10T05:06:07.123456Z"),
        (-1, "1969-12-31T23:59:59.999Z"),
        (0, "1970-01-01T00:00:00Z"),
        ("20130310", "1970-01-01T05:35:30.310Z"),
    ],
)
def test_values_of_a_date_field(value: object, expected: str) -> None:
    """Four digits are a year, more are milliseconds; no zone means UTC; what is finer is cut off, never rounded."""
    assert micros(value) == (datetime.fromisoformat(expected) - EPOCH) // timedelta(microseconds=1)


@pytest.mark.parametrize(
    "value", [True, "", "soon", -2013, "+2013", "2013-3-1", "2013-13-01", "2013-02-30", "NaN", [], None, "Infinity"]
)
def test_what_is_no_date(value: object) -> None:
    """A ValueError, whatever it is."""
    with pytest.raises(ValueError):  # noqa: PT011 - who asks says the place
        micros(value)


@given(SOME_US)
def test_an_instant_as_text_reads_back(us: int) -> None:
    """To the microsecond, before 1970 too."""
    assert micros(iso(us)) == us


@given(SOME_US, st.integers(1, 3_000), st.integers(-3_000_000, 6_000_000))
def test_bounds_in_milliseconds_hold_exactly_the_window(start_us: int, length_us: int, offset_us: int) -> None:
    """Of whole milliseconds, those with `start <= t < end`, wherever between two of them the bounds lie."""
    window = Window.from_us(start_us, start_us + length_us)
    bounds = Resolution(millis=True, nanos=False).bounds(window)
    millis = (start_us + offset_us) // 1000
    assert (bounds["gte"] <= millis < bounds["lt"]) == (window.start_us <= millis * 1000 < window.end_us)


def test_formats_that_are_left_to_the_server() -> None:
    """Whatever `micros` would read otherwise than the server."""
    assert readable(None)
    assert readable("strict_date_optional_time||epoch_millis")
    assert not readable("epoch_second")
    assert not readable("epoch_millis||strict_date_optional_time")
    assert not readable("strict_date_optional_time||epoch_second")
    assert not readable("dd/MM/yyyy")
