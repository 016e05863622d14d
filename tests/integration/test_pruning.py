"""What a prune leaves is all that planning, status, checks, reloads and the guards go by; and workers do not notice."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from datetime import datetime
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline_core import (
    Context,
    Outcome,
    Pruned,
    Pruning,
    Record,
    RecordStore,
    Secret,
    Status,
    WallClockPolicy,
    Window,
)
from pipeline_core.engine.planning import Request, plan
from pipeline_core.reports import status_of
from pipeline_core.testing import MemoryRecordStore
from pipeline_core.window import to_us
from pipeline_core.zones import zone
from pipeline_sql import SqlStoreSettings
from shell import Shell

NOW = "2013-03-10T12:00"
LATER = "2100-01-01"  # whatever is done is older
NY = "America/New_York"
BEGIN = to_us(datetime(2013, 3, 8, tzinfo=zone(NY)))
END = to_us(datetime(2013, 3, 12, 13, 30, tzinfo=zone(NY)))
HOUR = 3_600_000_000
NUMBERS = count()

policies = st.builds(
    WallClockPolicy, granularity=st.sampled_from(["1h", "2h", "1d"]), timezone=st.sampled_from([NY, "UTC"])
)


@pytest.fixture(scope="module", params=["memory", "sqlite", "postgres", "mariadb"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RecordStore]:
    """A store of each kind in turn."""
    if request.param == "memory":
        yield MemoryRecordStore()
        return
    url = f"sqlite:///{tmp_path_factory.mktemp('store') / 'records.db'}"
    if request.param != "sqlite":
        server = request.getfixturevalue(f"{request.param}_server")
        url = server.url(server.new_database())
    with SqlStoreSettings(url=Secret(url)).open(Context("p")) as opened:
        yield opened


@st.composite
def kept_records(draw: st.DrawFn) -> list[Record]:
    """Live records that do not overlap, in any state but running, on no cut in particular; some replaced others."""
    cuts = sorted(draw(st.sets(st.integers(0, (END - BEGIN) // HOUR), min_size=2, max_size=14)))
    found = []
    for start, end in pairwise(cuts):
        status = draw(st.sampled_from([Status.DONE] * 6 + [Status.PENDING, Status.QUARANTINED, None]))
        if status is None:
            continue
        skipped = status is Status.DONE and draw(st.integers(0, 5)) == 0
        record = Record(
            "p",
            Window.from_us(BEGIN + start * HOUR, BEGIN + end * HOUR),
            draw(st.sampled_from([{"key": 1}, {}])),
            status,
            Outcome.SKIPPED if skipped else Outcome.LOADED if status is Status.DONE else None,
            "because",
            attempts=draw(st.integers(0, 2)),
            fence=draw(st.integers(1, 10**15)),
            identity=draw(st.sampled_from(["sides", "sides", "others"])),
            verified_rows=None if skipped else draw(st.sampled_from([0, 7])),
            evidence={"rows": 7},
            updated_us=END,
        )
        if draw(st.booleans()):
            found.append(evolve(record, status=Status.SUPERSEDED))
        found.append(record)
    return found


@given(policies, kept_records(), st.integers(0, (END - BEGIN) // HOUR))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_pruned_store_plans_as_the_other(
    store: RecordStore, policy: WallClockPolicy, kept: list[Record], hour: int
) -> None:
    """Whatever is kept, and at whatever time: the plan, the status and what comes of both are the same."""
    whole, pruned = (f"{name}-{next(NUMBERS)}" for name in ("whole", "pruned"))
    for name in (whole, pruned):
        store.restore(name, [evolve(record, pipeline=name) for record in kept])
    pruning = Pruning(pruned, BEGIN + hour * HOUR, most=5)
    gone = Pruned()
    while step := store.prune(pruning):
        gone += step
    old = [record for record in kept if record.window.end_us <= pruning.before_us]
    assert gone.superseded == sum(record.status is Status.SUPERSEDED for record in old)
    assert gone.done == sum((r.status, r.outcome) == (Status.DONE, Outcome.LOADED) for r in old)
    assert shown(store, pruned) == shown(store, whole)
    request = Request("", policy, END, "sides", BEGIN, default_record={"key": 0}, check_fields=("key",))
    changes = [evolve(plan(request, store.spans(name)), pipeline=name) for name in (whole, pruned)]
    assert evolve(changes[0], pipeline=pruned) == changes[1]
    one, other = (store.apply(change) for change in changes)
    assert evolve(one, pipeline=pruned) == other
    assert shown(store, pruned) == shown(store, whole)


def shown(store: RecordStore, name: str) -> tuple[Any, ...]:
    """What planning, checks and people go by."""
    status = status_of(store, name).as_mapping()
    del status["pipeline"]
    return list(store.spans(name)), status


def test_a_pruned_pipeline_behaves_as_before(any_world: Any) -> None:
    """Nothing to plan, the same status, the same check; what comes late is found, and a reload is of its window."""
    world = any_world
    world.run()
    with world.pipeline() as pipeline:
        status, check = pipeline.status().as_mapping(), pipeline.check().as_mapping()
        assert check["checked"] == 6
        told = pipeline.prune_store(before=LATER, dry_run=True)
        assert (told.pruned.done, told.pruned.superseded, told.dry_run) == (6, 0, True)
        assert pipeline.prune_store(before="2013-03-10T07:00").pruned.done == 3
        assert pipeline.prune_store(before=LATER).pruned.done == 3
        assert not pipeline.prune_store(before=LATER).pruned
        assert (pipeline.status().as_mapping(), pipeline.check().as_mapping()) == (status, check)
        assert not pipeline.plan(now=NOW)
        assert pipeline.run(now=NOW).windows == {}
        assert [record.evidence for record in pipeline.store.records("events")] == [{}] * 6
        (touched,) = pipeline.reload(window="2013-03-10T03:30", reason="look again").windows
        assert touched.window.start_us == pipeline.instant_us("2013-03-10T03:00")
        world.insert([601], first_id=50_000)
        assert [d.window.start_us for d in pipeline.check(reopen=True).differences] == [
            pipeline.instant_us("2013-03-10T10:00")
        ]
        assert pipeline.run(now=NOW).windows == {"loaded": 2}
        assert pipeline.status().as_mapping() == status
    assert world.rows("target") == world.rows("source")


def test_a_pruned_window_does_not_shrink(any_world: Any) -> None:
    """What was verified of it is still known, when the source has lost some of it."""
    world = any_world
    world.run()
    with world.pipeline() as pipeline:
        pipeline.prune_store(before=LATER)
        held = world.rows("target")
        world.query("source", "delete from events where ts < '2013-03-10 07:00:00' and id % 2 = 0")
        assert pipeline.check(reopen=True).reopened == 1
        assert pipeline.run(now=NOW).windows == {"quarantined": 1}
        (record,) = pipeline.status().quarantined
        assert record.evidence["shrank"] == {"source": 9, "target": 19, "verified": 19}
        pipeline.prune_store(before=LATER)
        assert pipeline.status().quarantined == [record]
        steps = [event.step for event in pipeline.store.events("events", window=record.window)]
        assert "settled" in steps
    assert world.rows("target") == held


def test_a_pruned_pipeline_knows_when_it_is_repointed(any_world: Any) -> None:
    """Another side makes all windows unverified, each by itself: they are counted again, and found done."""
    world = any_world
    world.run()
    with world.pipeline() as pipeline:
        pipeline.prune_store(before=LATER)
    with world.pipeline(columns={"exclude": ["note"]}) as pipeline:
        change = pipeline.plan(dry_run=True, now=NOW)
        assert (len(change.remove), len(change.add)) == (6, 6)
        assert "6 done windows are unverified now" in change.notes[0]
        assert pipeline.run(now=NOW).windows == {"already processed": 6}


@pytest.mark.parametrize("any_world", ["sqlite", "postgresql", "mariadb"], indirect=True)
def test_a_prune_under_a_running_fleet_harms_nothing(any_world: Any) -> None:
    """Four workers on small windows, while another process's prune goes on: all done, once, and the rows are equal."""
    world = any_world
    with ExitStack() as stack, ThreadPoolExecutor(1) as pool:
        fleet, other = (stack.enter_context(world.pipeline(granularity="15min")) for _ in range(2))
        other.plan(now=NOW)
        run = pool.submit(fleet.run, workers=4, now=NOW)
        pruned = Pruned()
        while not run.done():
            pruned += other.prune_store(before=LATER).pruned
        pruned += other.prune_store(before=LATER).pruned
        report = run.result()
        assert (report.windows, report.exit_code) == ({"loaded": 44}, 0)
        assert pruned.done == 44
        assert fleet.status().counts["done"] == 44
        assert fleet.run(now=NOW).windows == {}
    assert world.rows("target") == world.rows("source")


def test_a_prune_from_the_command_line(shell: Shell) -> None:
    """With --dry-run, with --json and without; the time is local, and one that is none is told."""
    assert shell("run").code == 0
    told = shell("store", "prune", "--before", "2013-03-10T07:00", "--dry-run", "--json")
    assert (told.code, told.json["before"], told.json["done"]) == (0, "2013-03-10T11:00:00+00:00", 3)
    assert told.json["dry_run"]
    shown = shell("store", "prune", "--before", "2013-03-10T07:00", "--dry-run").out
    assert " ".join(shown.split()).startswith("events: would prune 3 done windows, 0 superseded records and 6 events")
    assert " ".join(shown.split()).endswith("before 2013-03-10 07:00 EDT")
    done = shell("store", "prune", "--before", "2013-03-10T07:00", "--json").json
    assert done == {**told.json, "dry_run": False}
    assert "nothing to prune" in shell("store", "prune", "--before", "2013-03-10T07:00").out
    assert shell("store", "prune", "--before", "soon").code == 2
    assert shell("check", "--json").json["checked"] == 6


def test_a_prune_a_day_leaves_few_rows(tmp_path: Path) -> None:
    """What was told in short before is gone on with: a year of days, pruned day by day, is one row."""
    url = f"sqlite:///{tmp_path / 'records.db'}"
    day = 24 * HOUR
    with SqlStoreSettings(url=Secret(url)).open(Context("p")) as store:
        done = [
            Record("p", Window.from_us(n * day, n * day + day), status=Status.DONE, outcome=Outcome.LOADED, fence=n + 1)
            for n in range(365)
        ]
        store.restore("p", done)
        for n in range(365):
            assert store.prune(Pruning("p", n * day + day)).done == 1
        assert [span.fence for span in store.spans("p")] == [*range(1, 366)]
    with closing(sqlite3.connect(tmp_path / "records.db")) as connection:
        assert connection.execute("select count(*) from pipeline_core_records").fetchone() == (1,)
