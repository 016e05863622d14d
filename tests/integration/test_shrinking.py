"""A load never silently shrinks a window: what the target may be the last to hold stays, until somebody decides."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline_core import ConfigError, Event, ExtractRequest, Pipeline, ShrinkError, tasks
from pipeline_duckdb.connector import DuckDbConnector
from pipeline_snowflake.connector import SnowflakeConnector
from pipeline_sql.connector import SqlConnector
from shell import Shell
from worlds import DuckDbWorld, SnowflakeWorld

NOW = "2013-03-10T12:00"
FIRST = "ts >= '2013-03-10 05:00:00' and ts < '2013-03-10 07:00:00'"  # the first window, 00:00 to 03:00 in New York
HALF = f"{FIRST} and id % 2 = 0"


def purge(world: Any, which: str = FIRST) -> None:
    """Deletes source rows, as a retention job does."""
    world.query("source", f"delete from events where {which}")


def reopen(world: Any) -> int:
    """A recheck that makes pending what differs."""
    with world.pipeline() as pipeline:
        return pipeline.check(reopen=True).reopened


def quarantined(world: Any) -> Any:
    """The one record that is."""
    with world.pipeline() as pipeline:
        (record,) = pipeline.status().quarantined
    return record


@pytest.mark.parametrize(("which", "left"), [(FIRST, 0), (HALF, 9)])
def test_a_purged_source_leaves_the_target_as_it_was(any_world: Any, which: str, left: int) -> None:
    """All or some of the verified rows gone: quarantined with every count in reason and evidence, nothing replaced."""
    world = any_world
    world.run()
    before = world.rows("target")
    verified = 19
    purge(world, which)
    assert reopen(world) == 1
    steps = []

    class Listener:
        def notify(self, event: Event) -> None:
            steps.append(event.step)

    with world.pipeline() as pipeline, Pipeline(pipeline.config, observers=[Listener()]) as watched:
        assert watched.run(now=NOW).windows == {"quarantined": 1}
    assert "staged" not in steps  # the counts were enough: nothing was extracted for it
    assert world.rows("target") == before
    record = quarantined(world)
    assert f"source shrank: {record.window}: it gives {left} rows, {verified} were verified before" in record.reason
    assert f"the target holds {verified}" in record.reason
    assert "--accept-shrink" in record.reason
    assert record.evidence["shrank"] == {"source": left, "target": verified, "verified": verified}
    assert record.verified_rows == verified


def test_without_evidence_an_empty_source_empties_no_target(any_world: Any) -> None:
    """The records are lost and the source is purged: the target is all there is."""
    world = any_world
    world.run()
    before = world.rows("target")
    purge(world)
    world.query("records", "delete from pipeline_core_records")
    assert world.run()["windows"] == {"already processed": 5, "quarantined": 1}
    assert world.rows("target") == before
    record = quarantined(world)
    assert "none were ever verified" in record.reason
    assert record.evidence["shrank"] == {"source": 0, "target": 19, "verified": None}


def test_on_shrink_replace_says_that_the_source_is_right(any_world: Any) -> None:
    """The configuration decides for every window: the target follows."""
    world = any_world
    world.run()
    purge(world)
    reopen(world)
    assert world.run(on_shrink="replace")["windows"] == {"verified empty": 1}
    world.assert_whole()


def test_a_window_that_grew_is_loaded(any_world: Any) -> None:
    """More rows than were verified are late rows."""
    world = any_world
    world.run()
    world.insert([5], first_id=50_000)
    reopen(world)
    assert world.run()["windows"] == {"loaded": 1}
    world.assert_whole()


@pytest.mark.parametrize(("which", "lost"), [(FIRST, False), (HALF, False), (FIRST, True)])
def test_a_source_that_shrinks_after_the_count_is_noticed_before_the_rows_are_replaced(
    any_world: Any, which: str, lost: bool
) -> None:
    """What is staged is what would be published: fewer rows than verified, or none over some, roll everything back."""
    world = any_world
    world.run()
    world.query("target", "delete from events where id = 1")
    reopen(world)
    if lost:
        world.query("records", "delete from pipeline_core_records")
    before = world.rows("target")

    class Purger:
        def notify(self, event: Event) -> None:
            if event.step == "counted":
                purge(world, which)

    with world.pipeline() as pipeline, Pipeline(pipeline.config, observers=[Purger()]) as watched:
        assert watched.run(now=NOW, end="2013-03-10T01:00").windows == {"quarantined": 1}
    assert world.rows("target") == before
    assert quarantined(world).evidence["shrank"]["target"] == 18


def test_a_staged_window_is_held_against_the_evidence_too(any_world: Any) -> None:
    """Files that an earlier attempt left fit the source as it is now, and not what was verified."""
    world = any_world
    world.run()
    before = world.rows("target")
    purge(world, HALF)
    reopen(world)
    config = world.config()
    record = tasks.store_new_and_pass_valid_record(config, now=NOW)["record"]
    with pytest.raises(ShrinkError, match="it gives 9 rows, 19 were verified before"):
        tasks.extract_source_data(config, record)
    assert world.rows("target") == before


def test_tasks_count_as_they_must_and_quarantine_then(any_world: Any) -> None:
    """The decision is the required one; extracting quarantines, and goes on failing as an orchestrator repeats it."""
    world = any_world
    world.run()
    before = world.rows("target")
    purge(world)
    reopen(world)
    config = world.config()
    record = tasks.store_new_and_pass_valid_record(config, now=NOW)["record"]
    counts = tasks.pre_validate_counts(config, record)
    assert (counts["exit_dag"], counts["source_count"], counts["target_count"]) == (False, 0, 19)
    assert counts["reason"].startswith("Proceed with processing")
    for error in (ShrinkError, Exception):
        with pytest.raises(error, match="source shrank"):
            tasks.extract_source_data(config, record)
    assert world.rows("target") == before
    assert quarantined(world).verified_rows == 19


def test_the_task_that_loads_holds_the_staged_rows_against_the_evidence(
    any_world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source shrank between the count of the task that extracts and its extraction."""
    world = any_world
    world.run()
    world.query("target", "delete from events where id = 1")
    reopen(world)
    before = world.rows("target")
    others = {DuckDbWorld: DuckDbConnector, SnowflakeWorld: SnowflakeConnector}
    source: Any = others.get(type(world), SqlConnector)
    plain = source.extract

    def late(connector: Any, request: ExtractRequest) -> Any:
        purge(world, HALF)
        return plain(connector, request)

    monkeypatch.setattr(source, "extract", late)
    config = world.config()
    record = tasks.store_new_and_pass_valid_record(config, now=NOW)["record"]
    assert tasks.extract_source_data(config, record)["rows"] == 9
    with pytest.raises(ShrinkError, match="it gives 9 rows, 19 were verified before, the target holds 18"):
        tasks.load_staged_data(config, record)
    assert world.rows("target") == before


def test_evidence_fits_its_span_across_a_new_granularity(any_world: Any) -> None:
    """A reopened window is not cut again: what was verified of it stays comparable."""
    world = any_world
    world.run()
    before = world.rows("target")
    purge(world)
    reopen(world)
    assert world.run(granularity="1h")["windows"] == {"quarantined": 1}
    assert world.run(granularity="3h")["windows"] == {}
    assert world.rows("target") == before
    assert quarantined(world).window.start.hour == 5


def test_evidence_outlives_a_begin_that_moved_into_its_window(any_world: Any) -> None:
    """A reopened window across the new begin is held against what was verified of it, whole."""
    world = any_world
    world.run()
    before = world.rows("target")
    purge(world, HALF)
    assert reopen(world) == 1
    assert world.run(begin="2013-03-10T01:00")["windows"] == {"quarantined": 1}
    assert world.rows("target") == before


def test_other_columns_are_no_other_source(any_world: Any) -> None:
    """A column list changed after a purge: every window is to be done again, none is emptied."""
    world = any_world
    world.run()
    before = world.rows("target")
    purge(world, HALF)
    assert world.run(columns={"exclude": ["note"]})["windows"] == {"already processed": 5, "quarantined": 1}
    assert world.rows("target") == before


def test_what_was_verified_of_another_source_is_evidence_too(any_world: Any) -> None:
    """The source under another name, with fewer rows: nothing is replaced before a person accepts what there is."""
    world = any_world
    world.run()
    before = world.rows("target")
    world.query("source", f"create table fewer as select * from events where not ({FIRST}) and id <> 90")
    moved = {"source": world.config()["source"] | {"table": "fewer"}}
    assert world.run(**moved)["windows"] == {"already processed": 4, "quarantined": 2}
    assert world.rows("target") == before
    with world.pipeline(**moved) as pipeline:
        empty, fewer = pipeline.status().quarantined
        for record in (empty, fewer):
            rows = record.evidence["shrank"]
            assert rows["source"] < rows["verified"] == rows["target"] == record.verified_rows
            assert f"{rows['verified']} were verified before under another identity" in record.reason
            assert "source.table: 'events', now 'fewer'" in record.reason
        pipeline.reload(window=fewer.window, reason="checked", accept_shrink=True)
    assert world.run(**moved)["windows"] == {"loaded": 1}
    assert len(world.rows("target")) == len(before) - 1


def test_that_other_sides_held_none_is_no_evidence(any_world: Any) -> None:
    """A window verified as empty, then the source under another name: rows that somebody put there meanwhile stay."""
    world = any_world
    purge(world)
    world.run()
    world.query("target", "insert into events (id, ts) values (77777, '2013-03-10 05:30:00')")
    world.query("source", "create table same as select * from events")
    moved = world.config()["source"] | {"table": "same"}
    assert world.run(source=moved)["windows"] == {"already processed": 5, "quarantined": 1}
    assert (77777,) in world.query("target", "select id from events")
    assert quarantined(world).evidence["shrank"] == {"source": 0, "target": 1, "verified": 0}


def test_one_table_on_both_sides_is_refused(any_world: Any) -> None:
    """A load would delete the source's rows, whichever of them either side means: nothing is planned, doctor tells."""
    world = any_world
    before = world.rows("source")
    one = world.config()["source"]
    config = world.config(source=one | {"where": "id > 5"}, target=one, columns={"exclude": ["note"]})
    with Pipeline.from_mapping(config) as pipeline:
        for verb in (pipeline.check, pipeline.run, lambda: tasks.store_new_and_pass_valid_record(config)):
            with pytest.raises(ConfigError, match=r"source and target are one table .*events"):
                verb()
        assert pipeline.store.spans("events") == []
        assert any("source and target are one table" in finding.problem for finding in pipeline.doctor())
    assert world.rows("source") == before


def test_sealed_windows_stay_as_they_are(any_world: Any) -> None:
    """Older than the source keeps its rows: neither counted again nor outdated by another identity."""
    world = any_world
    world.run()
    purge(world)
    with world.pipeline(source_keeps="5h", columns={"exclude": ["note"]}) as pipeline:
        change = pipeline.plan(now=NOW, dry_run=True)
        assert [removal.start_us for removal in change.remove] == [
            record.window.start_us for record in pipeline.store.records("events") if record.window.start.hour >= 11
        ]
    with world.pipeline(source_keeps="30d") as pipeline:
        assert pipeline.check(reopen=True).checked == 0
    with world.pipeline(source_keeps="90y") as pipeline:
        assert len(pipeline.check().differences) == 1


def test_the_window_across_the_limit_is_sealed(any_world: Any) -> None:
    """Its first rows are gone at the source, as they are to be: no recheck reopens it, to end in quarantine."""
    world = any_world
    world.run()
    purge(world, "ts < '2013-03-10 11:00:00'")  # five hours before now, inside the window from 10 to 12
    assert world.run(source_keeps="5h", recheck="12h")["windows"] == {}


def test_sealed_windows_from_the_command_line(any_shell: Shell) -> None:
    """A check counts none of them, whatever the source has lost; unsealed, it finds the one that differs."""
    shell = any_shell
    assert shell("run").code == 0
    purge(shell.world)
    shell.configure(source_keeps="30d")
    sealed = shell("check", "--reopen", "--json")
    assert (sealed.code, sealed.json["checked"], sealed.json["reopened"]) == (0, 0, 0)
    assert shell("run", "--json").json["windows"] == {}
    shell.configure(source_keeps="90y")
    found = shell("check", "--json")
    assert (found.code, found.json["checked"], len(found.json["differences"])) == (1, 6, 1)
