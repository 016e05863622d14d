"""The functions that orchestrators call: each step in a process of its own, the claim travelling in the record."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from pipeline_core import ConfigError, Load, PermanentError, RecordError, SideError, TransientError, tasks
from pipeline_sql.connector import SqlConnector

NOW = "2013-03-10T12:00"
OWNERS = {
    "timezone": "America/Los_Angeles",
    "x_time_back": "1d",
    "granularity": "2h",
    "default_record": {"source_name": "elasticsearch", "target_name": "snowflake"},
    "check_fields": ["key_x", "key_y", "key_z"],
}
STEP = """
import json, sys
from pipeline_core import tasks
name, *arguments = (json.loads(argument) for argument in sys.argv[1:])
options = arguments.pop()
print(json.dumps(getattr(tasks, name)(*arguments, **options)))
"""


def elsewhere(name: str, *arguments: Any, **options: Any) -> Any:
    """A task in a process of its own: JSON in, JSON out."""
    words = [json.dumps(word) for word in (name, *arguments, options)]
    done = subprocess.run([sys.executable, "-c", STEP, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def owners(world, **changes: Any) -> dict[str, Any]:
    """The owner's form, with SQLite on both sides and its check fields given values."""
    config = world.config()
    filled = {"source_name": "sql", "target_name": "sql", "key_x": 0, "key_y": "y", "key_z": False}
    sides = {side: {k: v for k, v in config[side].items() if k != "type"} for side in ("source", "target")}
    own = {**OWNERS, "timezone": "America/New_York", "default_record": filled}
    own |= {"begin": "2013-03-10", "end": NOW}
    return {**own, **sides, **{k: config[k] for k in ("store", "stage", "run", "retry")}, **changes}


def claimed(world) -> tuple[dict[str, Any], dict[str, Any]]:
    """A configuration, and the record of its oldest window."""
    config = owners(world)
    return config, tasks.store_new_and_pass_valid_record(config, now="2013-03-12")["record"]


def test_a_task_of_one_of_several_pipelines(world) -> None:
    """The key `name` of the mapping says which; without it the tasks say what there is."""
    several = world.config(pipelines={"events": {}, "others": {"source": {"table": "nowhere"}}}, name="events")
    alone = tasks.store_new_and_pass_valid_record(world.config(), now=NOW)["record"]
    assert tasks.get_source_count(several, alone) == tasks.get_source_count(world.config(), alone) > 0
    claimed = tasks.store_new_and_pass_valid_record(several, now=NOW)["record"]
    assert claimed["WINDOW_START_TIME"] > alone["WINDOW_START_TIME"]
    del several["name"]
    with pytest.raises(ConfigError, match="found several, 'events', 'others'"):
        tasks.get_source_count(several, alone)


def test_a_window_that_another_worker_publishes_meanwhile_is_a_skip(world, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the ledger refuses is no failure where the store knows who has taken over."""
    config = world.config()
    record = tasks.store_new_and_pass_valid_record(config, now=NOW)["record"]
    record = tasks.extract_source_data(config, record)["record"]
    plain = SqlConnector.upload

    def overtaken(connector: SqlConnector, load: Load) -> str | None:
        monkeypatch.undo()
        token = plain(connector, load)
        with world.pipeline() as pipeline:
            pipeline.release(window=load.window, reason="it seems to hang")
            assert pipeline.run(now=NOW).windows == {"loaded": 6}
        return token

    monkeypatch.setattr(SqlConnector, "upload", overtaken)
    answer = tasks.load_staged_data(config, record)
    assert (answer["exit_dag"], answer["record"]) == (True, None)
    assert answer["reason"].startswith("claimed elsewhere: ")
    world.assert_whole()


def test_a_task_of_a_profile(world) -> None:
    """The key `profile` of the mapping says which, to every task that it is handed to."""
    config = world.config(profiles={"prod": {"source": {"table": "nowhere"}}, "dev": {}}, profile="dev")
    record = elsewhere("store_new_and_pass_valid_record", config, now=NOW)["record"]
    assert record["PIPELINE"]["name"] == "events@dev"
    assert elsewhere("extract_source_data", config, record)["rows"] == tasks.get_source_count(config, record) > 0
    plain = {key: record[key] for key in ("WINDOW_START_TIME", "WINDOW_END_TIME")}
    with pytest.raises(SideError, match="nowhere"):
        tasks.get_source_count(config | {"profile": "prod"}, plain)


def test_the_owners_configuration_as_it_stands_is_answered() -> None:
    """Its default record lacks the check fields: nothing is generated, the fields are named."""
    answer = elsewhere("store_new_and_pass_valid_record", OWNERS)
    assert answer["exit_dag"] is True
    assert answer["record"] is None
    assert all(name in answer["reason"] for name in ("key_x", "key_y", "key_z"))


def test_a_default_record_that_lacks_check_fields_is_logged_as_an_error(caplog: pytest.LogCaptureFixture) -> None:
    """A skip alone would look as if there were no work."""
    reason = tasks.store_new_and_pass_valid_record(OWNERS)["reason"]
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [("ERROR", reason)]


def test_every_step_in_a_process_of_its_own(world) -> None:
    """Six windows, task by task, until none is ready; the end is whole."""
    config = owners(world)
    for _ in range(6):
        answer = elsewhere("store_new_and_pass_valid_record", config, now="2013-03-11T12:00")
        assert answer["exit_dag"] is False
        record = answer["record"]
        assert (record["key_x"], record["key_z"]) == (0, False)
        counts = elsewhere("pre_validate_counts", config, record)
        assert counts.keys() == {"exit_dag", "reason", "source_count", "target_count"}
        assert counts["exit_dag"] is False
        assert counts["reason"].startswith("Proceed with processing")
        extracted = elsewhere("extract_source_data", config, record)
        loaded = elsewhere("load_staged_data", config, extracted["record"])
        assert loaded["rows"] == extracted["rows"] == counts["source_count"]
        audited = elsewhere("audit_and_clean_up", config, loaded["record"])
        assert (audited["outcome"], audited["target_count"]) == ("loaded", counts["source_count"])
    last = elsewhere("store_new_and_pass_valid_record", config, now="2013-03-11T12:00")
    assert last["exit_dag"] is True
    assert last["reason"].startswith("No window is ready")
    world.assert_whole()


@pytest.mark.parametrize("config", [None, 3, b"pipeline.toml"])
def test_a_configuration_that_is_none(config: Any) -> None:
    """Such as a variable that was never set: the error says what was expected."""
    with pytest.raises(ConfigError, match=r"config: found a .*, expected a mapping or the path of a TOML file"):
        tasks.pre_validate_counts(config, {})


def test_already_processed_ends_the_window(world) -> None:
    """With a claim the record is finished; a plain mapping is only counted."""
    world.run()
    (world.folder / "records.db").unlink()
    config, record = claimed(world)
    plain = {key: record[key] for key in ("WINDOW_START_TIME", "WINDOW_END_TIME")}
    for given in (plain, record, record):
        answer = tasks.pre_validate_counts(config, given)
        assert answer["exit_dag"] is True
        assert answer["source_count"] == answer["target_count"] > 0
        assert answer["reason"].startswith("Already processed")
    assert tasks.extract_source_data(config, record)["exit_dag"] is True


def test_counts_are_numbers_of_one_window(world) -> None:
    """Count-only queries for a plain mapping."""
    config, record = claimed(world)
    assert tasks.get_source_count(config, record) > 0
    assert tasks.get_target_count(config, record) == 0


def test_tasks_may_be_run_again(world) -> None:
    """An orchestrator repeats tasks at will: the result stays the same, before and after the window is done."""
    config, record = claimed(world)
    for _ in range(2):
        rows = tasks.extract_source_data(config, record)["rows"]
    for _ in range(2):
        assert tasks.load_staged_data(config, record)["rows"] == rows
    first = tasks.audit_and_clean_up(config, record)
    assert tasks.audit_and_clean_up(config, record) == first
    assert first["source_count"] == rows
    assert tasks.load_staged_data(config, record)["exit_dag"] is True


def test_a_claim_lost_to_another_is_a_skip(world) -> None:
    """Released and claimed anew elsewhere: the old task says so, and does nothing."""
    config, old = claimed(world)
    assert tasks.release_record(config, old)["status"] == "pending"
    for task in (
        tasks.pre_validate_counts,
        tasks.extract_source_data,
        tasks.load_staged_data,
        tasks.audit_and_clean_up,
    ):
        answer = task(config, old)
        assert answer["exit_dag"] is True
        assert answer["reason"].startswith("claimed elsewhere")


def test_a_released_record_uses_up_an_attempt(world) -> None:
    """And is quarantined at the last one."""
    config = owners(world, run={"max_attempts": 2, "backoff_s": 0.0})
    statuses = []
    for _ in range(2):
        record = tasks.store_new_and_pass_valid_record(config, now="2013-03-12")["record"]
        statuses.append(tasks.release_record(config, record, "the task failed")["status"])
    assert statuses == ["pending", "quarantined"]


def test_a_fault_of_the_window_quarantines_it_and_fails_the_task_every_time(world) -> None:
    """An orchestrator's retry must not turn it into a skip."""
    world.query("source", "update events set value = 'many' where id = 3")
    config, record = claimed(world)
    for _ in range(2):
        with pytest.raises(PermanentError, match="value"):
            tasks.extract_source_data(config, record)


def test_a_source_that_moved_sends_the_window_back(world) -> None:
    """Rows that arrive between extraction and audit: pending again, and the error says so."""
    config, record = claimed(world)
    tasks.extract_source_data(config, record)
    tasks.load_staged_data(config, record)
    world.insert([5], first_id=50_000)
    with pytest.raises(TransientError, match="the source moved"):
        tasks.audit_and_clean_up(config, record)
    assert tasks.audit_and_clean_up(config, record)["reason"].startswith("claimed elsewhere")
    world.run(name="sql-to-sql")
    assert world.rows("target") == world.rows("source")


def test_what_is_loaded_is_what_the_last_extraction_gave(world) -> None:
    """A source that grew and shrank again between attempts: of the files that these left, no other ones are loaded."""
    config = owners(world, run={"backoff_s": 0.0})
    rows = []
    for change in ([], [5], []):
        world.query("source", "delete from events where id >= 50000")
        world.insert(change, first_id=50_000)
        record = tasks.store_new_and_pass_valid_record(config, now="2013-03-12")["record"]
        rows.append(tasks.extract_source_data(config, record)["rows"])
        if len(rows) < 3:
            tasks.release_record(config, record)
    assert rows[0] == rows[2] == rows[1] - 1
    assert tasks.load_staged_data(config, record)["rows"] == rows[2]
    assert tasks.audit_and_clean_up(config, record)["outcome"] == "loaded"


def test_loading_what_was_never_staged_is_an_error(world) -> None:
    """With the task to call named."""
    config, record = claimed(world)
    with pytest.raises(TransientError, match="extract_source_data"):
        tasks.load_staged_data(config, record)


def test_a_range_limits_what_is_claimed(world) -> None:
    """start and end: an orchestrator's own window, never the oldest."""
    record = tasks.store_new_and_pass_valid_record(
        owners(world), now="2013-03-12", start="2013-03-10T08:00", end="2013-03-10T10:00"
    )["record"]
    assert record["WINDOW_START_TIME"] == "2013-03-10T08:00:00-04:00"


def test_a_record_without_claim_cannot_be_worked_on(world) -> None:
    """Two times are enough to count, not to load."""
    config, record = claimed(world)
    del record["PIPELINE"]
    with pytest.raises(RecordError, match="no claim"):
        tasks.extract_source_data(config, record)


def test_a_broken_record_is_rebuilt_before_it_is_passed_on(world) -> None:
    """Fields nulled or garbled in the store come back from default_record, with the window's attempts."""
    config = owners(world)
    first = tasks.store_new_and_pass_valid_record(config, now="2013-03-12")["record"]
    tasks.release_record(config, first)
    world.query(
        "records", "update pipeline_core_records set fields = '{\"key_x\": null}', due_us = 0 where status = 'pending'"
    )
    again = tasks.store_new_and_pass_valid_record(config, now="2013-03-12")["record"]
    assert again["WINDOW_START_TIME"] == first["WINDOW_START_TIME"]
    assert again["key_y"] == "y"
    assert again["PIPELINE"]["attempts"] == 1


def test_a_window_is_settled_though_something_cannot_be_cleaned(
    world, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It was verified; that scratch could not be dropped is told, and no staged file is left for it."""
    config, record = claimed(world)
    tasks.extract_source_data(config, record)
    tasks.load_staged_data(config, record)

    def away(*given: object) -> None:
        raise TransientError("the target is away")

    monkeypatch.setattr(SqlConnector, "discard", away)
    assert tasks.audit_and_clean_up(config, record)["outcome"] == "loaded"
    told = [each for each in caplog.records if "cleanup failed" in each.getMessage()]
    assert ["the target is away" in each.getMessage() for each in told] == [True]
    assert world.staged() == []
