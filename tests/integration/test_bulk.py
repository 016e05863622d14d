"""What a run finds out in bulk before its workers begin: late rows, and windows that are processed already."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from pipeline_core import PermanentError
from pipeline_duckdb.connector import DuckDbConnector
from pipeline_snowflake.connector import SnowflakeConnector
from pipeline_sql.connector import SqlConnector

NOW = "2013-03-10T12:00"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the sides are asked to count one window, and many."""
    counted: Counter[str] = Counter()

    def listen(kind: type, name: str) -> None:
        plain = getattr(kind, name)

        def listening(connector: object, given: Any) -> Any:
            counted[name] += 1
            return plain(connector, given)

        monkeypatch.setattr(kind, name, listening)

    for kind in (SqlConnector, DuckDbConnector, SnowflakeConnector):
        listen(kind, "count")
        listen(kind, "count_many")
    return counted


def test_each_run_first_counts_young_windows_again(any_world: Any, calls: Counter[str]) -> None:
    """Rows that came late to a young window are found by one bulk count a side, and moved; older ones are left."""
    world = any_world
    world.run()
    calls.clear()
    assert world.run(recheck="8h")["windows"] == {}
    assert calls == {"count_many": 2}
    world.insert([5, 6 * 60 + 5], first_id=50_000)
    assert world.run(recheck="8h")["windows"] == {"loaded": 1}
    missing = set(world.rows("source")) - set(world.rows("target"))
    assert [row[0] for row in missing] == [50_000]
    with world.pipeline(recheck="13h") as pipeline:
        assert pipeline.run(now=NOW, start="2013-03-10T06:00").windows == {}  # late rows, but not of this range
    assert world.run(recheck="13h")["windows"] == {"loaded": 1}
    world.assert_whole()


@pytest.mark.parametrize(("x_time_back", "late", "older"), [("0s", 7 * 60 + 5, 3 * 60 + 5), ("4h", 3 * 60 + 5, 5)])
def test_a_recheck_reaches_back_from_what_is_stable(world: Any, x_time_back: str, late: int, older: int) -> None:
    """The window that holds the instant so far back is counted too, and no older one, however late they get stable."""
    young = {"granularity": "4h", "x_time_back": x_time_back, "recheck": "1h"}
    world.run(**young)
    world.insert([late, older], first_id=50_000)
    assert world.run(**young)["windows"] == {"loaded": 1}
    assert world.query("target", "select id from events where id >= 50000") == [(50_000,)]


def test_a_recheck_never_shrinks_a_window(any_world: Any) -> None:
    """A young window whose source was purged is reopened, and then quarantined instead of emptied."""
    world = any_world
    world.run()
    before = world.rows("target")
    world.query("source", "delete from events where ts >= '2013-03-10 12:00:00'")
    assert world.run(recheck="8h")["windows"] == {"quarantined": 2}
    assert world.run(recheck="8h")["windows"] == {}
    assert world.rows("target") == before


def test_a_lost_store_is_rebuilt_by_bulk_counts(any_world: Any, calls: Counter[str]) -> None:
    """Nothing is moved and no window is counted by itself; what differs is left to the workers."""
    world = any_world
    world.run()
    world.query("records", "delete from pipeline_core_records")
    calls.clear()
    report = world.run()
    assert (report["windows"], report["rows"]) == ({"already processed": 6}, 0)
    assert calls == {"count_many": 2}
    with world.pipeline() as pipeline:
        for record in pipeline.store.records("events"):
            assert record.verified_rows == record.evidence["before"]["source"]
    world.query("records", "delete from pipeline_core_records")
    world.query("target", "delete from events where id in (1, 60)")
    assert world.run()["windows"] == {"already processed": 4, "loaded": 2}
    world.assert_whole()


def test_a_limit_holds_for_what_is_settled_in_bulk_too(any_world: Any) -> None:
    """So many windows at most, however they end."""
    world = any_world
    world.run()
    world.query("records", "delete from pipeline_core_records")
    world.query("target", "delete from events where id = 1")
    with world.pipeline() as pipeline:
        assert pipeline.run(now=NOW, limit=3).windows == {"already processed": 2, "loaded": 1}
        assert pipeline.run(now=NOW, limit=2, start="2013-03-10T08:00").windows == {"already processed": 2}
        assert pipeline.status().counts["pending"] == 1


def test_repointed_sides_are_counted_again_in_bulk(any_world: Any, calls: Counter[str]) -> None:
    """The plan says how many windows are unverified and why; the next run loads only those that differ."""
    world = any_world
    world.run()
    world.query("target", "create table elsewhere as select * from events where id <> 1")
    target = world.config()["target"] | {"table": "elsewhere"}
    with world.pipeline(target=target) as pipeline:
        change = pipeline.plan(dry_run=True, now=NOW)
        assert list(change.notes) == [
            "6 done windows are unverified now, and counted again by the next run: "
            "target.table: 'events', now 'elsewhere'"
        ]
        calls.clear()
        assert pipeline.run(now=NOW).windows == {"already processed": 5, "loaded": 1}
        one_by_one = 4  # of the window that differs: both sides, before and after; this side counts one as many, too
        assert calls == {"count": one_by_one, "count_many": 2 + one_by_one}
        assert list(pipeline.plan(dry_run=True, now=NOW).notes) == []
    assert len(world.query("target", "select id from elsewhere")) == len(world.rows("source"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"columns": {"exclude": ["note"]}}, "source.columns"),
        ({"columns": {"note": "remark"}}, "source.columns"),
    ],
    ids=["exclude", "rename"],
)
def test_other_columns_leave_nothing_verified(world: Any, changes: dict[str, Any], named: str) -> None:
    """What moves is part of what was verified."""
    world.run()
    with world.pipeline(**changes) as pipeline:
        (note,) = pipeline.plan(dry_run=True, now=NOW).notes
    assert note.startswith("6 done windows are unverified now")
    assert named in note


def test_another_filter_leaves_nothing_verified(world: Any) -> None:
    """Other rows were verified than are asked for now."""
    world.run()
    with world.pipeline(source=world.config()["source"] | {"where": "id > 5"}) as pipeline:
        (note,) = pipeline.plan(dry_run=True, now=NOW).notes
    assert "source.where: None, now 'id > 5'" in note


def test_another_login_is_no_other_side(postgres_server: Any, world: Any) -> None:
    """Who logs in is not what a side is: changing the user outdates nothing."""
    from pipeline_core import Context, Secret
    from pipeline_sql import SqlSettings

    database = postgres_server.new_database()
    identities = []
    for user in ("owner", "guest"):
        url = Secret(postgres_server.url(database, user))
        with SqlSettings(url, table="events", timestamp_column="ts").open(Context("p")) as side:
            identities.append(dict(side.identity))
    assert identities[0] == identities[1]
    assert "owner" not in str(identities)


def test_profiles_share_a_store_but_no_record(any_world: Any) -> None:
    """From dev to prod on one store: what dev has verified says nothing about prod."""
    from pipeline_core import Pipeline

    world = any_world
    config = world.config(profiles={"prod": {"target": {"table": "prod_events"}}})
    for profile in (None, "prod", None, "prod"):
        with Pipeline.from_mapping(config, profile) as pipeline:
            first = not pipeline.store.spans(pipeline.config.pipeline)
            assert pipeline.run(now=NOW).windows == ({"loaded": 6} if first else {})
    assert len(world.query("target", "select id from prod_events")) == len(world.rows("target"))


def test_where_bulk_counts_fail_the_windows_are_counted_one_by_one(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The survey is only a short cut; a recheck that failed was ready work, and is named as left undone."""
    world.run()
    world.query("records", "delete from pipeline_core_records")

    plain = SqlConnector.count_many

    def failing(connector: SqlConnector, windows: Any) -> Any:
        if len(windows) > 1:
            raise PermanentError("too many windows for this side")
        return plain(connector, windows)

    monkeypatch.setattr(SqlConnector, "count_many", failing)
    assert world.run()["windows"] == {"already processed": 6}
    report = world.run(recheck="8h")
    assert (report["windows"], report["exit_code"]) == ({}, 3)
    assert "recheck: PermanentError: too many windows for this side" in report["undone"]


def test_a_plan_of_a_range(any_world: Any) -> None:
    """Only records and windows that start there; the next plan does the rest."""
    with any_world.pipeline() as pipeline:
        change = pipeline.plan(start="2013-03-10T03:00", end="2013-03-10T06:00", now=NOW)
        assert len(change.add) == len(pipeline.store.spans("events")) == 2
        assert len(pipeline.plan(now=NOW).add) == 4


def test_ranges_and_rechecks_on_the_command_line(any_shell: Any) -> None:
    """`plan`, `run` and `check` take a range; `check` exits 1 where something differs; `recheck` is a key."""
    shell = any_shell
    span = ["--from", "2013-03-10T03:00", "--to", "2013-03-10T06:00"]
    assert len(shell("plan", "--dry-run", "--json", *span).json["add"]) == 2
    assert shell("run", "--json", *span).json["windows"] == {"loaded": 2}
    assert shell("run", "--json").json["windows"] == {"loaded": 4}
    shell.world.insert([6 * 60 + 5], first_id=50_000)
    assert (shell("check", *span).code, shell("check").code) == (0, 1)
    shell.configure(recheck="50y")
    assert shell("run", "--json").json["windows"] == {"loaded": 1}
    assert shell("check", "--json").json["differences"] == []
    shell.configure(columns={"exclude": ["note"]})
    assert "6 done windows are unverified now" in shell("plan", "--dry-run").out.replace("\n", " ")
