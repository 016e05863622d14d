"""The main job on each kind of database: as source, target and store at once, and each side on another one."""

from __future__ import annotations

import pytest

from worlds import WORLDS, World

NOW = "2013-03-10T12:00"

beside_sqlite = pytest.mark.parametrize("any_world", [name for name in WORLDS if name != "sqlite"], indirect=True)


def test_the_main_job(any_world: World) -> None:
    """Run, run again, damage, check, heal, and lose the store."""
    world = any_world
    first = world.run()
    assert (first["windows"], first["rows"], first["exit_code"]) == ({"loaded": 6}, len(world.rows("source")), 0)
    world.assert_whole()
    assert world.run()["windows"] == {}
    world.query("target", "delete from events where id in (1, 2)")
    world.insert([431], first_id=20_000)
    with world.pipeline() as pipeline:
        report = pipeline.check()
        assert [(d.window.start.format("HH:mm"), d.counts.source - d.counts.target) for d in report.differences] == [
            ("05:00", 2),
            ("12:00", 1),
        ]
        assert pipeline.check(reopen=True).reopened == 2
        assert pipeline.run(now=NOW).windows == {"loaded": 2}
    world.assert_whole()
    world.forget()
    assert world.run()["windows"] == {"already processed": 6}
    world.assert_whole()


@beside_sqlite
def test_each_side_may_be_another_engine(any_world: World, world: World) -> None:
    """From SQLite to there, and from there back into another SQLite table."""
    there = world.config() | {"target": any_world.side("target"), "store": any_world.config()["store"]}
    assert world.run(**there)["windows"] == {"loaded": 6}
    assert any_world.rows("target") == world.rows("source")
    back = {"source": any_world.side("target") | {"create": False}}
    assert world.run(**back)["windows"] == {"loaded": 6}
    world.assert_whole()


def test_processes_share_the_work(any_world: World) -> None:
    """All start at once on empty databases: each window, of eleven hours, is loaded once, and none fails."""
    world = any_world
    for code, said in [child.end() for child in [world.start(granularity="30min") for _ in range(world.processes)]]:
        assert code == 0, said
        assert '"exit_code": 0' in said
    claims = world.query(
        "records", "select start_us, count(*) from pipeline_core_events where step = 'claimed' group by start_us"
    )
    assert len(claims) == 22
    assert {count for _, count in claims} == {1}
    world.assert_whole()
