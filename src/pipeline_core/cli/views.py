"""How the reports look to a person. Every time is local to the pipeline's zone, with the zone's short name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from shutil import get_terminal_size

from pendulum import DateTime
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pipeline_core.cli import picture
from pipeline_core.cli.terminal import UNLIMITED
from pipeline_core.engine import owner
from pipeline_core.plugins import Listed
from pipeline_core.record import Change, Record, Status
from pipeline_core.reports import (
    AdoptionReport,
    CheckReport,
    Finding,
    HandReport,
    MoveReport,
    PruneReport,
    RunReport,
    StatusReport,
)
from pipeline_core.secrets import redact
from pipeline_core.window import Window, from_us

_INSTEAD = {
    Status.PENDING: "the next `run` tries it, `skip` takes it out",
    Status.RUNNING: "`release` takes it from its holder",
    Status.DONE: "`reload` moves it again",
    Status.QUARANTINED: "`retry` tries it again, `skip` takes it out",
}
_MOST_ROWS = 20  # of a table; what is left out is counted, and `--json` holds all of it


def moment(at: DateTime, zone: str) -> str:
    """An instant on the clock of the zone, as `2013-11-03 01:00 EST`: the name tells a repeated hour's passes apart."""
    local = at.in_timezone(zone)
    return f"{local:%Y-%m-%d} {_time(local)}"


def window_name(window: Window, zone: str) -> str:
    """A window in words, as `2013-11-03 00:00 EDT to 02:00 EST`."""
    start, end = window.start.in_timezone(zone), window.end.in_timezone(zone)
    until = _time(end) if start.date() == end.date() else moment(end, zone)
    return f"{moment(start, zone)} to {until}"


def plan_view(change: Change, zone: str, *, dry_run: bool) -> RenderableType:
    """What planning changed, or would: neighbours with the same reason on one line."""
    notes = [Text(f"note: {note}") for note in change.notes]
    if not change:
        return Group(*notes, Text(f"{change.pipeline}: nothing to change, the records fit the configuration"))
    add, supersede = ("would add", "supersede") if dry_run else ("added", "superseded")
    head = Text(f"{change.pipeline}: {add} {len(change.add):,} windows, {supersede} {len(change.remove):,}")
    table = _table("", "windows", "from", "to", "why")
    lines = [("supersede", run) for run in _runs((r.start_us, r.end_us, r.reason) for r in change.remove)]
    lines += [("add", run) for run in _runs((a.start_us, a.end_us, _why_added(a.attempts)) for a in change.add)]
    for what, (start_us, end_us, why, count) in lines[:_MOST_ROWS]:
        table.add_row(what, f"{count:,}", moment(from_us(start_us), zone), moment(from_us(end_us), zone), Text(why))
    return Group(*notes, head, table, *_left_out(len(lines)))


def run_view(report: RunReport) -> RenderableType:
    """How a run went."""
    ends = ", ".join(f"{count:,} {end}" for end, count in sorted(report.windows.items())) or "no window was ready"
    lines = [Text(f"{report.pipeline}: {ends}; {report.rows:,} rows moved in {report.seconds:.1f} s")]
    if report.excluded:
        lines.append(Text(f"{report.excluded:,} source rows have no timestamp, and fall into no window", "bold yellow"))
    if report.quarantined:
        lines.append(Text(f"{report.quarantined:,} quarantined: `pipeline-core status` says why", "bold red"))
    if report.undone:
        lines.append(Text(f"ready work was left undone: {report.undone}", "bold yellow"))
    return Group(*lines)


def check_view(report: CheckReport, zone: str) -> RenderableType:
    """The windows that differ."""
    head = Text(f"{report.pipeline}: {report.checked:,} windows counted again, {len(report.differences):,} differ")
    if not report.differences:
        return head
    table = _table("window", "source", "target", "difference")
    for difference in report.differences[:_MOST_ROWS]:
        counts = difference.counts
        apart = counts.target - counts.source
        table.add_row(
            window_name(difference.window, zone), f"{counts.source:,}", f"{counts.target:,}", Text(f"{apart:+,}", "red")
        )
    tail = f"{report.reopened:,} reopened" if report.reopened else "`--reopen` makes them pending again"
    return Group(head, table, *_left_out(len(report.differences)), Text(tail))


def adoption_view(report: AdoptionReport, zone: str) -> RenderableType:
    """What was handed over, or that there was nothing."""
    if not report.entries:
        return Text(f"{report.pipeline}: pipeline {report.from_pipeline!r} has published nothing here to take over")
    spans = [Text(f"  {window_name(window, zone)}") for window in report.windows]
    took = "would take over" if report.dry_run else "took over"
    head = Text(f"{report.pipeline}: {took} {report.entries:,} published windows of {report.from_pipeline!r}:")
    return Group(head, *spans[:_MOST_ROWS], *_left_out(len(spans)))


def move_view(report: MoveReport) -> RenderableType:
    """What a file took, or gave."""
    way = {"exported": "to", "imported": "from"}[report.action]
    kept = f"{report.records:,} records and {report.events:,} events"
    return Text(f"{report.pipeline}: {report.action} {kept} {way} {report.file}")


def prune_view(report: PruneReport, zone: str) -> RenderableType:
    """What was told in short, and what is gone."""
    pruned, before = report.pruned, moment(report.before, zone)
    if not pruned:
        return Text(f"{report.pipeline}: nothing to prune before {before}")
    would = "would prune" if report.dry_run else "pruned"
    what = f"{pruned.done:,} done windows, {pruned.superseded:,} superseded records and {pruned.events:,} events"
    return Text(f"{report.pipeline}: {would} {what} before {before}")


def hand_view(report: HandReport, zone: str) -> RenderableType:
    """The windows that a hand was laid on."""
    would = "would " if report.dry_run else ""
    lines = [Text(f"{report.pipeline}: {would}{report.action} {len(report.windows):,} windows: {report.reason}")]
    for touched in report.windows[:_MOST_ROWS]:
        lines.append(Text(f"  {window_name(touched.window, zone)}, was {touched.was}"))
    lines += _left_out(len(report.windows))
    if not report.windows:
        lines += [Text(f"  {count:,} {status}: {_INSTEAD[status]}") for status, count in report.left.items()]
    return Group(*lines)


def status_view(report: StatusReport, zone: str) -> RenderableType:
    """Where the pipeline stands: the picture, then the windows that want a look."""
    parts: list[RenderableType] = [_Picture(report, zone)]
    for title, records in (
        ("quarantined", report.quarantined),
        ("failing, to be tried again", report.failing),
        ("running", report.running),
        ("skipped by hand", report.skipped),
    ):
        if records:
            parts += [Text(), Text(f"{title}:", "bold"), *_records(records, zone), *_left_out(len(records))]
    return Group(*parts)


def status_line(report: StatusReport, zone: str) -> RenderableType:
    """Where one of several pipelines stands: how many windows are in which state, and until when time is covered."""
    counts = ", ".join(f"{count:,} {status}" for status, count in report.counts.items() if count) or "no window yet"
    until = f"; done until {moment(report.coverage[-1].end, zone)}" if report.coverage else ""
    return Text(f"{report.pipeline}: {counts}{until}", "bold red" if report.quarantined else "")


def plugins_view(listing: Sequence[Listed], broken: Sequence[str]) -> RenderableType:
    """What can be selected, and what could not be loaded."""
    table = _table("kind", "type", "")
    for one in listing:
        origin = f"{one.distribution} {one.version}" if one.distribution else one.module
        said = Group(
            Text(one.summary),
            Text("; ".join([origin, *one.can]), "dim"),
            *([Text(one.problem, "red")] if one.problem else []),
        )
        table.add_row(str(one.kind), Text(one.name), said)
    return Group(table, *(Text(f"broken: {problem}", "red") for problem in broken))


def doctor_view(findings: Sequence[Finding], about: str = "") -> RenderableType:
    """Each part: ok, or what is wrong or advised and what to do; `about` says of which pipeline of several."""
    table = _table("part", "")
    for finding in findings:
        said = f"advice: {finding.problem}" if finding.advice else finding.problem
        wrong = Group(
            Text(redact(said), "yellow" if finding.advice else "red"), Text(f"remedy: {redact(finding.remedy)}")
        )
        table.add_row(finding.part, wrong if finding.problem else Text("ok", "green"))
    return Group(Text(about, "bold"), table) if about else table


class _Picture:
    """The bar over time with its dates and legend, as wide as the terminal."""

    def __init__(self, report: StatusReport, zone: str) -> None:
        self._report = report
        self._zone = zone

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        painted = picture.layers(self._report)
        over = picture.extent(painted)
        if over is None:
            yield Text(f"{self._report.pipeline}: no window yet; `pipeline-core plan` makes them")
            return
        width = options.max_width if options.max_width < UNLIMITED else get_terminal_size().columns
        draw: Callable[[picture.Shade], str] = (lambda s: s.plain) if options.ascii_only else (lambda s: s.glyph)
        first, last = moment(over.start, self._zone), moment(over.end, self._zone)
        yield Text(f"{self._report.pipeline} ({self._zone})", "bold")
        yield Text.assemble(*((draw(shade), shade.style) for shade in picture.bar(painted, over, width)))
        yield Text(first + last.rjust(width - len(first)))
        yield self._legend(draw, len(painted[picture.GAP]))

    def _legend(self, draw: Callable[[picture.Shade], str], gaps: int) -> Text:
        counts = {str(status): count for status, count in self._report.counts.items()} | {picture.GAP: gaps}
        legend = Text()
        for shade in picture.SHADES:
            legend.append(draw(shade), shade.style).append(f" {counts[shade.state]:,} {shade.state}   ")
        legend.rstrip()
        return legend


def _records(records: Sequence[Record], zone: str) -> Iterator[RenderableType]:
    for record in records[:_MOST_ROWS]:
        used = [f"attempts: {record.attempts}"] if record.attempts else []
        used += [f"crashes: {record.crashes}"] if record.crashes else []
        yield Text("  " + ", ".join([window_name(record.window, zone), *used]))
        if record.status is Status.RUNNING:
            yield Text(f"    {_held(record, zone)}")
        elif record.reason:
            yield Padding(Text(record.reason), (0, 0, 0, 4), expand=False)


def _held(record: Record, zone: str) -> str:
    """Who has a running window, and until when; a claim that travels between tasks is no process's."""
    holder = f"claim {record.claim_id}" if record.owner is None else owner.shown(record.owner)
    until = "" if record.lease_until_us is None else f", its lease ends {moment(from_us(record.lease_until_us), zone)}"
    return f"held by {holder}{until}"


def _table(*headers: str) -> Table:
    table = Table(box=None, pad_edge=False, show_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for header in headers:
        table.add_column(header, no_wrap=header != headers[-1], overflow="fold")
    return table


def _runs(spans: Iterable[tuple[int, int, str]]) -> Iterator[tuple[int, int, str, int]]:
    """Spans that touch and share a reason, joined: start, end, reason and how many they were."""
    run: tuple[int, int, str, int] | None = None
    for start_us, end_us, reason in spans:
        if run and run[1] == start_us and run[2] == reason:
            run = (run[0], end_us, reason, run[3] + 1)
            continue
        if run:
            yield run
        run = (start_us, end_us, reason, 1)
    if run:
        yield run


def _why_added(attempts: int) -> str:
    return f"missing; inherits {attempts} used attempts" if attempts else "missing"


def _left_out(rows: int) -> list[Text]:
    return [Text(f"... and {rows - _MOST_ROWS:,} more: `--json` holds all")] if rows > _MOST_ROWS else []


def _time(local: DateTime) -> str:
    return f"{local:%H:%M:%S %Z}" if local.second else f"{local:%H:%M %Z}"
