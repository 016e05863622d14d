"""Coverage as a picture: a bar over time, one character for each stretch, readable without colour. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import frozen

from pipeline_core import coverage
from pipeline_core.reports import StatusReport
from pipeline_core.window import Window

GAP = "gap"


@frozen
class Shade:
    """How a state is drawn; `plain` on a terminal that knows ASCII only."""

    state: str
    glyph: str
    plain: str
    style: str


#: In the order in which they are painted. One character may stand for many windows: it shows the one that most wants
#: a look, so that nothing bad hides behind its neighbours.
SHADES = (
    Shade("done", "█", "#", "green"),
    Shade("pending", "░", "-", "cyan"),
    Shade("running", "»", ">", "bold blue"),
    Shade(GAP, "·", "_", "bold yellow"),
    Shade("quarantined", "✗", "X", "bold red"),
)


Layers = Mapping[str, Sequence[coverage.Span]]


def layers(report: StatusReport) -> Layers:
    """The stretches of each state, in microseconds UTC. A gap is time without any record between the first and last."""
    return {
        "done": _spans(report.coverage),
        "pending": _spans(report.pending),
        "running": _spans([record.window for record in report.running]),
        "quarantined": _spans([record.window for record in report.quarantined]),
        GAP: _spans(report.gaps),
    }


def extent(painted: Layers) -> Window | None:
    """From the first record to the last; None where there is none."""
    every = [span for spans in painted.values() for span in spans]
    return Window.from_us(min(start for start, _ in every), max(end for _, end in every)) if every else None


def bar(painted: Layers, over: Window, width: int) -> list[Shade]:
    """`width` characters that stand for equal stretches of `over`, each showing the last of SHADES that it touches."""
    cells = [SHADES[0]] * width
    length = over.end_us - over.start_us
    for shade in SHADES:
        for start_us, end_us in painted[shade.state]:
            first = (start_us - over.start_us) * width // length
            last = ((end_us - over.start_us) * width - 1) // length
            cells[first : last + 1] = [shade] * (last + 1 - first)
    return cells


def _spans(windows: Sequence[Window]) -> list[coverage.Span]:
    return [(window.start_us, window.end_us) for window in windows]
