"""The main job, from Python: run, run again, damage, check, heal."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from types import ModuleType

import pytest

from pipeline_core import (
    Claim,
    ConfigError,
    Event,
    PermanentError,
    Pipeline,
    Provider,
    SideError,
    Status,
    TransientError,
    hookimpl,
    tasks,
)
from pipeline_sql.connector import SqlConnector
from pipeline_sql.settings import SqlSettings

NOW = "2013-03-10T12:00"


def test_a_run_moves_everything_and_a_second_one_nothing(world) -> None:
    """Six windows loaded; then none is left."""
    first = world.run()
    assert first["windows"] == {"loaded": 6}
    assert first["rows"] == len(world.rows("source"))
    assert first["exit_code"] == 0
    world.assert_whole()
    assert world.run()["windows"] == {}


def test_a_lost_store_finds_everything_already_processed(world) -> None:
    """Counts decide, not memory."""
    world.run()
    (world.folder / "records.db").unlink()
    assert world.run()["windows"] == {"already processed": 6}
    world.assert_whole()


def test_check_names_the_damaged_windows_and_reopening_heals_them(world) -> None:
    """Rows deleted, rows doubled, rows late: three windows differ, exactly those, and a run mends them."""
    world.run()
    world.query("target", "delete from events where id in (1, 2)")
    world.query(
        "target",
        "insert into events select id + 90000, ts, value, note from events where ts >= '2013-03-10 10:00:00' "
        "and ts < '2013-03-10 12:00:00'",
    )
    world.insert([431], first_id=20_000)
    with world.pipeline() as pipeline:
        report = pipeline.check()
        assert [(d.window.start.format("HH:mm"), d.counts.source - d.counts.target) for d in report.differences] == [
            ("05:00", 2),
            ("10:00", -19),
            ("12:00", 1),
        ]
        assert (report.checked, report.reopened, report.exit_code) == (6, 0, 1)
        assert pipeline.check(reopen=True).reopened == 3
        assert pipeline.run(now=NOW).windows == {"loaded": 3}
        assert pipeline.check().exit_code == 0
    world.assert_whole()


def test_an_empty_window_is_verified_once(world) -> None:
    """Zero on both sides is work until it is audited, and done from then on."""
    world.query("source", "delete from events where ts >= '2013-03-10 12:00:00' and ts < '2013-03-10 14:00:00'")
    assert world.run()["windows"] == {"loaded": 5, "verified empty": 1}
    assert world.run()["windows"] == {}
    world.assert_whole()


def test_many_workers_share_the_work(world) -> None:
    """Threads of one run never take the same window."""
    with world.pipeline() as pipeline:
        assert pipeline.run(workers=4, now=NOW).windows == {"loaded": 6}
    world.assert_whole()


def test_no_more_windows_run_than_the_configuration_allows(world) -> None:
    """However many workers there are, the other ones wait for room."""
    running = []

    class Listener:
        def notify(self, event: Event) -> None:
            if event.step == "counted":
                running.append(len(pipeline.store.records("events", Status.RUNNING)))

    run = world.config()["run"] | {"max_running": 2}
    with world.pipeline(run=run) as plain, Pipeline(plain.config, observers=[Listener()]) as pipeline:
        assert pipeline.run(workers=6, now=NOW).windows == {"loaded": 6}
    assert max(running) == 2
    world.assert_whole()


def test_workers_on_any_executor(world) -> None:
    """Processes, here; each opens its own parts."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context) as executor, world.pipeline() as pipeline:
        assert pipeline.run(workers=2, executor=executor, now=NOW).windows == {"loaded": 6}
    world.assert_whole()


def test_workers_that_have_not_begun_never_do_once_the_run_ends(world) -> None:
    """An interrupt, or a worker that fails, cancels what waits in the executor."""
    futures: list[Future] = []

    class Queue(Executor):
        def submit(self, *_: object) -> Future:
            futures.append(Future())
            if len(futures) == 3:
                futures[0].set_exception(KeyboardInterrupt())
            return futures[-1]

    with world.pipeline() as pipeline, pytest.raises(KeyboardInterrupt):
        pipeline.run(workers=3, executor=Queue(), now=NOW)
    assert [future.cancelled() for future in futures] == [False, True, True]


def test_a_limit_and_a_range(world) -> None:
    """So many windows, or only those that start in a span."""
    with world.pipeline() as pipeline:
        assert pipeline.run(limit=2, now=NOW).windows == {"loaded": 2}
        assert pipeline.run(start="2013-03-10T08:00", end="2013-03-10T10:00", now=NOW).windows == {"loaded": 1}
        assert pipeline.run(now=NOW).windows == {"loaded": 3}
    world.assert_whole()


def test_a_dry_run_says_what_would_change_and_changes_nothing(world) -> None:
    """Nothing is written."""
    with world.pipeline() as pipeline:
        change = pipeline.plan(dry_run=True, now=NOW)
        assert len(change.add) == 6
        assert pipeline.status().counts["pending"] == 0


def test_a_new_granularity_keeps_what_is_done(world) -> None:
    """Three windows done in 2 h; the rest is re-cut to 3 h, the seam clipped."""
    with world.pipeline() as pipeline:
        pipeline.run(limit=3, now=NOW)
    assert world.run(granularity="3h")["windows"] == {"loaded": 2}
    world.assert_whole()
    with world.pipeline(granularity="3h") as pipeline:
        assert len(pipeline.status().coverage) == 1


def test_another_target_table_is_counted_again(world) -> None:
    """Work done under another identity is no coverage."""
    world.run()
    target = world.config()["target"] | {"table": "elsewhere"}
    assert world.run(target=target)["windows"] == {"loaded": 6}
    assert world.run(target=target)["windows"] == {}


def test_evidence_is_kept_for_every_window(world) -> None:
    """Counts before and after, what was staged, the fence, both sides by name."""
    world.run()
    with world.pipeline() as pipeline:
        record = pipeline.store.records("events")[0]
    assert record.evidence["before"]["target"] == 0
    assert record.evidence["before"]["source"] == record.evidence["staged"]["rows"]
    assert record.evidence["after"] == {
        "source": record.evidence["staged"]["rows"],
        "target": record.evidence["staged"]["rows"],
    }
    assert record.evidence["fence"] == record.fence
    assert record.evidence["source"]["table"] == "events"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"source": {"table": "nowhere"}}, SideError, "nowhere"),
        ({"source": {"timestamp_column": "when"}}, SideError, "when"),
        ({"source": {"url": "sqlite:////no/such/folder/source.db"}}, SideError, "/no/such/folder"),
        ({"target": {"create": False}}, SideError, "target.db: found no such file"),
        ({"begin": "2099-01-01"}, ConfigError, "lies in the future"),
    ],
)
def test_faults_of_a_side_or_the_configuration_leave_everything_pending(world, changes, error, message) -> None:
    """The run raises; no window is quarantined, no attempt is used."""
    config = world.config()
    changes = {k: config[k] | v if isinstance(v, dict) else v for k, v in changes.items()}
    with world.pipeline(**changes) as pipeline:
        with pytest.raises(error, match=message):
            pipeline.run(now=NOW)
        status = pipeline.status()
    assert status.counts["quarantined"] == 0
    assert not status.failing
    world.run()
    world.assert_whole()


def test_a_bad_window_is_quarantined_and_the_others_go_on(world) -> None:
    """A value that does not fit its column stops its window alone; mended and made pending again it loads."""
    world.query("source", "update events set value = 'many' where id = 3")
    report = world.run()
    assert report["windows"] == {"loaded": 5, "quarantined": 1}
    assert report["exit_code"] == 1
    with world.pipeline() as pipeline:
        (record,) = pipeline.status().quarantined
    assert "value" in record.reason


def test_a_column_can_be_renamed_and_another_left_out(world) -> None:
    """[columns] maps source names to target names; exclude leaves out."""
    world.run(columns={"note": "remark", "exclude": ["value"]})
    assert world.query("target", "select name from pragma_table_info('events') order by cid") == [
        ("id",),
        ("ts",),
        ("remark",),
    ]


def test_rows_without_a_timestamp_are_counted_and_told(world) -> None:
    """They fall into no window: the run says how many there are."""
    world.query("source", "create table bare (id integer, ts timestamp, value real, note text)")
    world.query("source", "insert into bare select * from events")
    world.query("source", "insert into bare values (1, null, 1, 'when?'), (2, null, 2, 'when?')")
    report = world.run(source=world.config()["source"] | {"table": "bare"})
    assert report["excluded"] == 2
    assert report["rows"] == len(world.rows("source"))


def test_a_window_that_inherits_attempts_is_failing_too(world) -> None:
    """The status shows what a new cut has made of a window that failed, before anybody has claimed it."""
    tasks.release_record(world.config(), tasks.store_new_and_pass_valid_record(world.config(), now=NOW)["record"])
    with world.pipeline(granularity="1h") as pipeline:
        pipeline.plan(now=NOW)
        assert [record.attempts for record in pipeline.status().failing] == [1, 1]


@pytest.mark.parametrize("error", [TransientError("query timed out"), PermanentError("too expensive a query")])
def test_rows_without_a_timestamp_that_cannot_be_counted_keep_no_window_back(
    world, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How many there are is then unknown, not none, and named as left undone; what a whole side refuses is raised."""

    def excluded(connector: SqlConnector) -> int:
        raise error

    monkeypatch.setattr(SqlConnector, "excluded", excluded)
    report = world.run(retry={"retries": 1, "wait_s": 0.01})
    assert (report["windows"], report["excluded"], report["exit_code"]) == ({"loaded": 6}, None, 3)
    assert report["undone"].startswith(f"excluded: {type(error).__name__}: {error}")
    error = SideError("no right to read")
    with pytest.raises(SideError):
        world.run()


def test_a_side_that_only_counts_cannot_be_moved(world) -> None:
    """The configuration is refused before anything is claimed."""
    module = ModuleType("counters")
    module.pipeline_connectors = hookimpl(
        lambda: iter([Provider("counter", SqlSettings)]), specname="pipeline_connectors"
    )
    with (
        Pipeline.from_mapping(
            world.config(source=world.config()["source"] | {"type": "counter"}), plugins=[module]
        ) as pipeline,
        pytest.raises(ConfigError, match="source: type 'counter' cannot extract"),
    ):
        pipeline.run(now=NOW)


def test_rows_that_land_elsewhere_roll_the_publication_back(world) -> None:
    """A target that shifts its timestamps: the count inside the transaction sees it, and the old rows stay."""
    world.run(end="2013-03-10T03:00")
    world.query(
        "target",
        "create trigger shift after insert on events begin "
        "update events set ts = datetime(ts, '+1 day') where id = new.id; end",
    )
    before = world.rows("target")
    report = world.run(end="2013-03-10T06:00")
    assert report["windows"] == {"quarantined": 2}
    assert world.rows("target") == before
    with world.pipeline() as pipeline:
        assert "nothing was published" in pipeline.status().quarantined[0].reason


def test_scratch_and_staged_files_are_gone_whichever_way_a_window_ended(world, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loaded, quarantined or pending again: the target's scratch is discarded, staged files go when it is finished."""
    discarded = []
    plain = SqlConnector.discard

    def listening(connector: SqlConnector, claim: Claim) -> None:
        discarded.append(claim.fence)
        plain(connector, claim)

    monkeypatch.setattr(SqlConnector, "discard", listening)
    world.query("source", "update events set value = 'many' where id = 3")
    assert world.run()["windows"] == {"loaded": 5, "quarantined": 1}
    with world.pipeline() as pipeline:
        assert {record.fence for record in pipeline.store.records("events")} <= set(discarded)
    assert world.staged() == []
