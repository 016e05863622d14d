"""What people see on the command line: the picture of coverage, windows in words, tables and bars, as plain text."""

from __future__ import annotations

import io
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from pipeline_core import Counts, Window
from pipeline_core.cli import picture, views
from pipeline_core.cli.progress import Bars
from pipeline_core.record import Addition, Change, Event, Record, Removal, Status
from pipeline_core.reports import CheckReport, Difference, StatusReport

HOUR = 3_600_000_000
START = 1_383_451_200_000_000  # 2013-11-03T04:00:00Z: midnight in New York, on the day its clocks go back
NEW_YORK = "America/New_York"


def hours(first: int, last: int) -> Window:
    """From so many elapsed hours after START until so many."""
    return Window.from_us(START + first * HOUR, START + last * HOUR)


def record(window: Window, reason: str = "", attempts: int = 0, crashes: int = 0) -> Record:
    """A record as a report holds it."""
    return Record("flights", window, reason=reason, attempts=attempts, crashes=crashes)


#: A running record: of which process, and until five minutes after its window's end.
HELD: dict[str, Any] = {
    "status": Status.RUNNING,
    "owner": "etl-1/0c4f/4026531836:4711:99",
    "lease_until_us": START + 20 * HOUR + HOUR // 12,
}


def report(**changes: object) -> StatusReport:
    """A day with everything in it: done, a gap, quarantined, running, pending."""
    parts: dict[str, object] = {
        "pipeline": "flights",
        "counts": {Status.DONE: 9, Status.PENDING: 2, Status.RUNNING: 1, Status.QUARANTINED: 1},
        "coverage": [hours(0, 10)],
        "gaps": [hours(10, 14)],
        "pending": [hours(20, 25)],
        "running": [evolve(record(hours(18, 20), "planned"), **HELD)],
        "failing": [record(hours(20, 22), "TransientError: no answer", attempts=2, crashes=1)],
        "quarantined": [record(hours(14, 18), "MismatchError: 3 rows were staged, but 2 fall into the window", 1)],
    }
    return StatusReport(**(parts | changes))  # type: ignore[arg-type]


def plain(view: RenderableType, width: int = 75, encoding: str = "utf-8") -> str:
    """A view as text without colour, as a file or a pipe gets it."""
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    Console(file=file, width=width, color_system=None).print(view)
    file.seek(0)
    return "\n".join(line.rstrip() for line in file.read().splitlines())


def test_the_status_picture() -> None:
    """A bar over time, its dates in the pipeline's zone, a legend, and the windows that want a look with reasons."""
    assert plain(views.status_view(report(), NEW_YORK)) == (
        "flights (America/New_York)\n"
        "██████████████████████████████············✗✗✗✗✗✗✗✗✗✗✗✗»»»»»»░░░░░░░░░░░░░░░\n"
        "2013-11-03 00:00 EDT                                   2013-11-04 00:00 EST\n"
        "█ 9 done   ░ 2 pending   » 1 running   · 1 gap   ✗ 1 quarantined\n"
        "\n"
        "quarantined:\n"
        "  2013-11-03 13:00 EST to 17:00 EST, attempts: 1\n"
        "    MismatchError: 3 rows were staged, but 2 fall into the window\n"
        "\n"
        "failing, to be tried again:\n"
        "  2013-11-03 19:00 EST to 21:00 EST, attempts: 2, crashes: 1\n"
        "    TransientError: no answer\n"
        "\n"
        "running:\n"
        "  2013-11-03 17:00 EST to 19:00 EST\n"
        "    held by process 4711 of etl-1, its lease ends 2013-11-03 19:05 EST"
    )


def test_a_claim_that_travels_is_named() -> None:
    """Between the tasks of an orchestrator no process holds it; `--json` says the same."""
    travelling = evolve(record(hours(18, 20)), **(HELD | {"owner": None, "claim_id": "c-1"}))
    found = report(running=[travelling, evolve(travelling, **HELD)])
    assert "    held by claim c-1, its lease ends 2013-11-03 19:05 EST" in plain(views.status_view(found, NEW_YORK))
    held = [(each["owner"], each["lease_until"]) for each in found.as_mapping()["running"]]
    assert held == [(None, "2013-11-04T00:05:00Z"), (HELD["owner"], "2013-11-04T00:05:00Z")]


def test_the_picture_in_ascii() -> None:
    """A terminal that knows ASCII only gets letters and signs, as distinct as the blocks."""
    shown = plain(views.status_view(report(), NEW_YORK), encoding="ascii").splitlines()
    assert shown[1] == "#" * 30 + "_" * 12 + "X" * 12 + ">" * 6 + "-" * 15
    assert shown[3] == "# 9 done   - 2 pending   > 1 running   _ 1 gap   X 1 quarantined"


def test_states_differ_without_colour() -> None:
    """No two states share a character, in either set."""
    assert len({shade.glyph for shade in picture.SHADES}) == len(picture.SHADES)
    assert len({shade.plain for shade in picture.SHADES}) == len(picture.SHADES)


def test_a_single_bad_window_shows_among_thousands() -> None:
    """One quarantined hour, and one missing hour, in ten years still have a character each."""
    years = 10 * 365 * 24
    bad = report(
        coverage=[hours(0, 40_000), hours(40_001, 70_000), hours(70_001, years)],
        pending=[],
        running=[],
        failing=[],
        quarantined=[record(hours(40_000, 40_001))],
    )
    shown = plain(views.status_view(bad, "UTC")).splitlines()[1]
    assert (len(shown), shown.count("✗"), shown.count("·"), shown.count("█")) == (75, 1, 1, 73)


def test_an_empty_pipeline_says_so() -> None:
    """Without a record there is nothing to draw, and the next step is named."""
    empty = report(
        counts=dict.fromkeys(Status, 0), coverage=[], gaps=[], pending=[], running=[], failing=[], quarantined=[]
    )
    assert plain(views.status_view(empty, "UTC")) == "flights: no window yet; `pipeline-core plan` makes them"


@given(
    st.lists(
        st.tuples(st.sampled_from(["done", "pending", "running", "quarantined", "gap"]), st.integers(1, 50)), min_size=1
    ),
    st.integers(1, 200),
)
def test_the_bar_hides_nothing(stretches: list[tuple[str, int]], width: int) -> None:
    """Whatever the windows: the bar has its width, the worst state shows, and with room enough every state does."""
    found: dict[str, list[Window]] = {}
    at = 0
    for state, length in stretches:
        found.setdefault(state, []).append(hours(at, at + length))
        at += length
    drawn = report(
        coverage=found.get("done", []),
        gaps=found.get("gap", []),
        pending=found.get("pending", []),
        running=[record(window) for window in found.get("running", [])],
        quarantined=[record(window) for window in found.get("quarantined", [])],
    )
    painted = picture.layers(drawn)
    over = picture.extent(painted)
    if over is None:
        return
    states = [shade.state for shade in picture.bar(painted, over, width)]
    assert len(states) == width
    assert set(states) <= {state for state, spans in painted.items() if spans}
    worst = next(shade.state for shade in reversed(picture.SHADES) if painted[shade.state])
    assert worst in states
    if (
        width >= 2 * (over.end_us - over.start_us) // HOUR
    ):  # then each hour holds a whole cell, wherever the cells begin
        assert set(states) == {state for state, spans in painted.items() if spans}


@pytest.mark.parametrize(
    ("window", "name"),
    [
        (hours(0, 3), "2013-11-03 00:00 EDT to 02:00 EST"),
        (hours(1, 2), "2013-11-03 01:00 EDT to 01:00 EST"),
        (hours(24, 26), "2013-11-03 23:00 EST to 2013-11-04 01:00 EST"),
        (Window.from_us(START, START + 30_000_000), "2013-11-03 00:00 EDT to 00:00:30 EDT"),
    ],
)
def test_a_window_in_words(window: Window, name: str) -> None:
    """Local times with the zone's short name, which tells the two passes of a repeated hour apart."""
    assert views.window_name(window, NEW_YORK) == name


def test_a_plan_joins_neighbours_with_the_same_reason() -> None:
    """A thousand windows that are missing for one reason are one line; what supersedes, what adds, and the notes."""
    change = Change(
        "flights",
        [Removal(START, START + HOUR, 7, "outdated: off the cut")],
        [Addition(START + n * HOUR, START + (n + 1) * HOUR, 3 if n == 5 else 0) for n in range(1000)],
        notes=["a note"],
    )
    shown = plain(views.plan_view(change, "UTC", dry_run=True), width=110).splitlines()
    assert [" ".join(line.split()) for line in shown] == [
        "note: a note",
        "flights: would add 1,000 windows, supersede 1",
        "windows from to why",
        "supersede 1 2013-11-03 04:00 UTC 2013-11-03 05:00 UTC outdated: off the cut",
        "add 5 2013-11-03 04:00 UTC 2013-11-03 09:00 UTC missing",
        "add 1 2013-11-03 09:00 UTC 2013-11-03 10:00 UTC missing; inherits 3 used attempts",
        "add 994 2013-11-03 10:00 UTC 2013-12-14 20:00 UTC missing",
    ]


def test_a_long_table_says_what_it_leaves_out() -> None:
    """Of many differences the first twenty are shown, the rest is counted."""
    many = CheckReport("flights", 100, [Difference(hours(n, n + 1), Counts(n, n - 5)) for n in range(33)], 0)
    shown = plain(views.check_view(many, "UTC"))
    assert shown.count(" UTC to ") == 20
    assert "... and 13 more: `--json` holds all" in shown
    assert "-5" in shown


def test_text_from_elsewhere_is_no_markup() -> None:
    """Square brackets in a reason are shown as they are."""
    shown = plain(views.status_view(report(quarantined=[record(hours(14, 18), "[red]found[/red] [0]")]), "UTC"))
    assert "    [red]found[/red] [0]\n" in shown


def test_bars_follow_the_events_of_a_window() -> None:
    """A bar from claim to settlement with rows, retries and counts in words; ended windows are added up."""
    console = Console(file=io.StringIO(), force_terminal=True, width=150, color_system=None)
    bars = Bars(console, lambda window: views.window_name(window, "UTC"))
    window = hours(0, 2)

    def drawn(step: str, **fields: object) -> str:
        bars.notify(Event(0, "flights", window, step, fields))
        with console.capture() as capture:
            console.print(bars)
        return capture.get()

    assert "2013-11-03 04:00 UTC to 06:00 UTC" in drawn("claimed", fence=1)
    assert "counted 1,200 at the source, 0 at the target" in drawn("counted", source=1200, target=0)
    assert "extracting 600 of 1,200 rows" in drawn("extracting", rows=600, of=1200)
    assert "retrying upload in 5 s: no answer" in drawn("retrying", of="upload", wait_s=5.2, error="no answer")
    assert "extracting 0 of 0 rows" in drawn("extracting", rows=0, of=0)
    assert "published" in drawn("published", rows=1200)
    ended = drawn("settled", status="done", outcome="loaded")
    assert "04:00 UTC" not in ended
    assert "1 loaded" in ended
    assert "1 loaded, 1 pending" in drawn("settled", status="pending", outcome=None)
    bars.notify(Event(0, "flights", None, "run ended", {}))
