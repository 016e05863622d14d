"""One boundary for every stored form of a timestamp, against a plain Python oracle."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_core import ExtractRequest, PermanentError, SideError, Window
from pipeline_core.zones import instant_of_naive, zone

EPOCH = datetime(1970, 1, 1)
BASE = (datetime(2013, 3, 10, 9, 59, 59) - EPOCH) // timedelta(microseconds=1)
SECOND, HOUR, DAY = 1_000_000, 3_600_000_000, 86_400_000_000
NEW_YORK = "America/New_York"


def database(path: Path, values: list[Any], declared: str = "TIMESTAMP", index: bool = True) -> Path:
    """A table `rows(at, n)` that holds the values."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"CREATE TABLE rows (at {declared}, n INTEGER)")
        connection.executemany("INSERT INTO rows VALUES (?, ?)", [(value, n) for n, value in enumerate(values)])
        if index:
            connection.execute("CREATE INDEX by_time ON rows (at)")
    return path


def text(us: int, separator: str, digits: int, suffix: str) -> str:
    """An instant as text, with at least `digits` digits of fraction, more where it needs them."""
    whole = EPOCH + timedelta(microseconds=us)
    fraction = f"{us % SECOND:06d}".rstrip("0").ljust(digits, "0")
    return f"{whole:%Y-%m-%d}{separator}{whole:%H:%M:%S}{'.' + fraction if fraction else ''}{suffix}"


def local(us: int) -> str:
    """A naive local text, given as microseconds of the local clock."""
    return text(us, " ", 0, "")


def extracted(connector: Any, window: Window, batch_rows: int = 50_000) -> pa.Table:
    with closing(connector.extract(ExtractRequest(window, batch_rows=batch_rows))) as batches:
        return pa.Table.from_batches(list(batches))


# Instants that crowd the few places where order is delicate: seconds, fractions of them, days.
offsets = st.builds(
    lambda days, seconds, us: days * DAY + seconds * SECOND + us,
    st.integers(-1, 1),
    st.integers(-1, 2),
    st.sampled_from([0, 0, 1, 4, 5, 40, 45, 123_456, 400_000, 450_000, 500_000, 500_001, 900_000, 999_999]),
)
forms = st.tuples(st.sampled_from(" T"), st.integers(0, 8), st.sampled_from(["Z", "+00:00"]))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(offsets, forms), max_size=25),
    cuts=st.lists(offsets, min_size=2, max_size=6, unique=True),
    index=st.booleans(),
)
def test_utc_text_in_any_mix_of_forms(side: Callable[..., Any], rows: list[Any], cuts: list[int], index: bool) -> None:
    """Count, bulk count and extraction of each tile hold exactly the oracle's rows, and the tiles make up the whole."""
    cuts.sort()
    windows = [Window.from_us(BASE + a, BASE + b) for a, b in pairwise(cuts)]
    windows.append(Window.from_us(BASE + cuts[0], BASE + cuts[-1]))
    stored = [text(BASE + us, *form) for us, form in rows]
    expected = [sorted(BASE + us for us, _ in rows if w.start_us <= BASE + us < w.end_us) for w in windows]
    with TemporaryDirectory() as folder:
        path = database(Path(folder) / "side.db", stored, index=index)
        with side(path, "rows") as connector:
            assert list(connector.count_many(windows)) == [len(each) for each in expected]
            assert connector.count(windows[0]) == len(expected[0])
            found = [sorted(extracted(connector, w)["at"].cast(pa.int64()).to_pylist()) for w in windows]
            assert found == expected
            assert connector.excluded() == 0


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(offsets, max_size=20),
    cuts=st.lists(offsets, min_size=2, max_size=5, unique=True),
    unit=st.sampled_from(["s", "ms", "us"]),
    index=st.booleans(),
)
def test_epoch_numbers(side: Callable[..., Any], rows: list[int], cuts: list[int], unit: str, index: bool) -> None:
    """Numbers of any unit are cut at the same boundary, also where a bound lies between two of them."""
    cuts.sort()
    size = {"s": SECOND, "ms": 1000, "us": 1}[unit]
    stored = [(BASE + us) // size for us in rows]
    windows = [Window.from_us(BASE + a, BASE + b) for a, b in pairwise(cuts)]
    expected = [sum(w.start_us <= value * size < w.end_us for value in stored) for w in windows]
    with TemporaryDirectory() as folder:
        path = database(Path(folder) / "side.db", stored, "INTEGER", index)
        with side(path, "rows", timestamp_unit=unit) as connector:
            assert list(connector.count_many(windows)) == expected
            assert [len(extracted(connector, w)) for w in windows] == expected


@pytest.mark.parametrize("change", [datetime(2013, 3, 10, 7), datetime(2013, 11, 3, 6)])
@pytest.mark.parametrize("index", [True, False])
def test_local_text_across_a_clock_change(
    side: Callable[..., Any], tmp_path: Path, change: datetime, index: bool
) -> None:
    """Each naive value stands for one instant, a repeated one for its first pass and a skipped one for the jump."""
    around = (change - timedelta(hours=5) - EPOCH) // timedelta(microseconds=1)
    stored = [around + quarter * HOUR // 4 + us for quarter in range(-12, 13) for us in (0, 1, 500_000)]
    instants = [instant_of_naive(EPOCH + timedelta(microseconds=us), zone(NEW_YORK)) for us in stored]
    middle = (change - EPOCH) // timedelta(microseconds=1)
    cuts = [middle + part * HOUR // 2 for part in range(-10, 11)]
    windows = [Window.from_us(a, b) for a, b in pairwise(cuts)]
    path = database(tmp_path / "side.db", [local(us) for us in stored], index=index)
    with side(path, "rows", timestamp_timezone=NEW_YORK) as connector:
        expected = [sorted(us for us in instants if w.start_us <= us < w.end_us) for w in windows]
        assert list(connector.count_many(windows)) == [len(each) for each in expected]
        found = [sorted(extracted(connector, w)["at"].cast(pa.int64()).to_pylist()) for w in windows]
        assert found == expected
        assert sum(map(len, found)) == len(stored)
        assert connector.naive_timezone == NEW_YORK


def test_finer_than_a_microsecond_is_truncated(side: Callable[..., Any], tmp_path: Path) -> None:
    """A nanosecond before the bound stays before it, and comes out as the microsecond it lies in."""
    path = database(tmp_path / "side.db", ["2013-03-10 09:59:59.999999999Z", "2013-03-10T10:00:00.0000009Z"])
    with side(path, "rows") as connector:
        before = extracted(connector, Window.from_us(BASE, BASE + SECOND))["at"].cast(pa.int64()).to_pylist()
        after = (
            extracted(connector, Window.from_us(BASE + SECOND, BASE + 2 * SECOND))["at"].cast(pa.int64()).to_pylist()
        )
    assert before == [BASE + 999_999]
    assert after == [BASE + SECOND]


@pytest.mark.parametrize("value", ["2013-03-10 10:00:00", "2013-03-10 10:00:00-05:00", "2013-03-10T10:00:00.5z"])
@pytest.mark.parametrize("index", [True, False])
def test_text_that_is_not_utc_needs_its_zone(side: Callable[..., Any], tmp_path: Path, value: str, index: bool) -> None:
    """Bare or offset text is never taken for UTC: counting and extracting name the setting."""
    window = Window.from_us(BASE - HOUR, BASE + HOUR)
    with side(database(tmp_path / "side.db", [value], index=index), "rows") as connector:
        with pytest.raises(SideError, match="timestamp_timezone"):
            connector.count(window)
        with pytest.raises(SideError, match="timestamp_timezone"):
            extracted(connector, window)


def test_one_bare_text_among_many_is_met_at_extraction(side: Callable[..., Any], tmp_path: Path) -> None:
    """Text of another form that hides between well-formed ends stops its own window."""
    values = ["2013-03-10 09:00:00Z", "2013-03-10 10:00:00", "2013-03-10 11:00:00Z"]
    with side(database(tmp_path / "side.db", values), "rows") as connector:
        assert connector.count(Window.from_us(BASE - 2 * HOUR, BASE)) == 1
        with pytest.raises(SideError, match="timestamp_timezone"):
            extracted(connector, Window.from_us(BASE, BASE + HOUR))


def test_text_with_a_zone_in_a_local_column(side: Callable[..., Any], tmp_path: Path) -> None:
    """A UTC text under timestamp_timezone is refused, not read as local time."""
    with (
        side(
            database(tmp_path / "side.db", ["2013-03-10 10:00:00Z"]), "rows", timestamp_timezone=NEW_YORK
        ) as connector,
        pytest.raises(SideError, match="carries a zone"),
    ):
        connector.count(Window.from_us(BASE, BASE + DAY))


@pytest.mark.parametrize("index", [True, False])
def test_rows_of_no_window_are_reported(side: Callable[..., Any], tmp_path: Path, index: bool) -> None:
    """NULL, numbers, blobs and texts that are no timestamp are excluded rows, and doctor names them."""
    values = [None, None, "2013-03-10 10:00:00Z", "13/03/2013", "n/a", 5, b"x"]
    path = database(tmp_path / "side.db", values, index=index)
    with side(path, "rows") as connector:
        assert connector.excluded() == 6
        found = [problem.what for problem in connector.problems()]
        with closing(sqlite3.connect(path)) as other, other:
            other.execute("DELETE FROM rows WHERE at = '13/03/2013'")
        assert connector.excluded() == 5  # between well-formed ends, found without looking at each row's form
    assert any("2 rows have no 'at'" in what for what in found)
    assert any("4 rows hold a 'at'" in what for what in found)


@pytest.mark.parametrize("value", ["2013-04-11", "2013-04-11 10:00", "2013-04-11 24:00:00Z", "2013-02-30 10:00:00Z"])
def test_text_that_is_no_time_is_named_by_its_form(side: Callable[..., Any], tmp_path: Path, value: str) -> None:
    """A malformed text falls into some window, whose extraction names column and form, not the value."""
    good = ["2013-01-01 00:00:00Z", "2014-01-01 00:00:00Z"]
    window = Window(datetime(2013, 1, 1, tzinfo=UTC), datetime(2014, 1, 1, tzinfo=UTC))
    with side(database(tmp_path / "side.db", [*good, value]), "rows") as connector:
        assert connector.count(window) == 2
        with pytest.raises(PermanentError, match="column 'at'") as error:
            extracted(connector, window)
    assert value not in str(error.value)
    assert "0000-00-00" in str(error.value)


def test_a_fraction_in_a_column_of_whole_numbers(side: Callable[..., Any], tmp_path: Path) -> None:
    """A number that is no whole one is refused, not rounded into a window."""
    with (
        side(database(tmp_path / "side.db", [1.5], "INTEGER"), "rows", timestamp_unit="s") as connector,
        pytest.raises(PermanentError, match="a REAL"),
    ):
        extracted(connector, Window.from_us(0, 10 * SECOND))


@pytest.mark.parametrize(
    ("declared", "settings_", "message"),
    [
        ("INTEGER", {}, "set timestamp_unit"),
        ("REAL", {}, "cannot hold microseconds"),
        ("TEXT", {"timestamp_unit": "s"}, "declare the column INTEGER"),
        ("INTEGER", {"timestamp_unit": "s", "timestamp_timezone": NEW_YORK}, "leave out timestamp_timezone"),
    ],
)
def test_settings_that_do_not_fit_the_declared_type(
    side: Callable[..., Any], tmp_path: Path, declared: str, settings_: dict[str, str], message: str
) -> None:
    """What a column's numbers or texts mean is never guessed."""
    with (
        side(database(tmp_path / "side.db", [], declared), "rows", **settings_) as connector,
        pytest.raises(SideError, match=message),
    ):
        connector.count(Window.from_us(BASE, BASE + DAY))
