"""A source whose columns change, from Python and from the command line, on each kind of database."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from pipeline_core import Pipeline
from pipeline_core.cli.app import run
from shell import toml
from worlds import DuckDbWorld, SnowflakeWorld

NOW = "2013-03-10T12:00"


def config(world: Any, **target: Any) -> dict[str, Any]:
    made = world.config(end=NOW)
    return {**made, "target": {**made["target"], **target}}


def gates(world: Any) -> list[Any]:
    """The column that came later, at the target."""
    return [gate for (gate,) in world.query("target", "select gate from events where gate is not null")]


@pytest.fixture
def grown(any_world: Any) -> Any:
    """A world that was loaded; since then its source has a column more, and the target has lost rows."""
    any_world.run(end=NOW)
    any_world.query("source", "alter table events add column gate varchar(9)")
    any_world.query("source", "update events set gate = 'A1' where id < 20")
    any_world.query("target", "delete from events where id < 20")
    return any_world


def reloaded(world: Any, **target: Any) -> Any:
    """A run over what was reopened, as a mapping, and the reasons of what it quarantined."""
    with Pipeline.from_mapping(config(world, **target)) as pipeline:
        assert pipeline.check(reopen=True).reopened == 2
        report = pipeline.run(now=NOW)
        return dict(report.windows), {record.reason for record in pipeline.status().quarantined}


def test_a_new_column_is_refused_by_name(grown: Any) -> None:
    """Unless something else was asked for, a person decides; the windows are quarantined."""
    windows, reasons = reloaded(grown)
    assert windows == {"quarantined": 2}
    assert all("it has no column for the staged 'gate'" in reason.lower() for reason in reasons)


def test_a_new_column_is_added(grown: Any) -> None:
    """The target's table grows with the source's."""
    assert reloaded(grown, new_columns="add") == ({"loaded": 2}, set())
    assert gates(grown) == ["A1"] * 20
    grown.assert_whole()


def test_a_new_column_is_left_out(grown: Any) -> None:
    """The target's table stays as it is."""
    assert reloaded(grown, new_columns="ignore") == ({"loaded": 2}, set())
    grown.assert_whole()


@pytest.mark.parametrize("new_columns", ["error", "add", "ignore"])
def test_a_changed_type_is_quarantined(any_world: Any, new_columns: str) -> None:
    """Whatever is set: the reason names the column and both types."""
    any_world.run(end=NOW)
    any_world.query("target", "alter table events drop column note")
    any_world.query("target", "alter table events add column note integer")
    any_world.query("target", "delete from events where id < 20")
    windows, reasons = reloaded(any_world, new_columns=new_columns)
    assert windows == {"quarantined": 2}
    for reason in reasons:
        assert re.search("column 'note' is declared (int|number)", reason.lower())
        assert re.search("cannot hold the staged (string|VARCHAR)", reason)


def test_the_statements_are_printed_and_not_run(any_world: Any, tmp_path: Any, capsys: Any) -> None:
    """`plan --ddl`, and `Pipeline.ddl()`: table, index and ledger, where it was put; nothing is planned or made."""
    made = config(any_world, ledger="published")
    file = tmp_path / "pipeline.toml"
    file.write_text(toml(made))
    assert run(["plan", "--ddl", "-c", str(file), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    with Pipeline.from_mapping(made) as pipeline:
        assert pipeline.ddl() == answer["statements"]
        assert pipeline.status().counts["pending"] == 0
    assert any_world.tables() == set()
    shown = "\n".join(answer["statements"])
    plain = re.sub(r'"(target|world\d+)"\."(main|target)"\.', "", shown.lower()).replace('"', "")
    plain = plain.replace("if not exists ", "")
    index = () if isinstance(any_world, DuckDbWorld | SnowflakeWorld) else ("ix_events_ts",)
    for expected in ("create table published ", "create table published_head ", "events", *index, "note"):
        assert expected in plain
    assert run(["plan", "--ddl", "-c", str(file)]) == 0
    assert capsys.readouterr().out.rstrip("\n") == shown
    for statement in answer["statements"]:
        any_world.query("target", statement)
    with Pipeline.from_mapping({**made, "target": {**made["target"], "create": False}}) as pipeline:
        assert pipeline.ddl() == []
        assert pipeline.run(now=NOW).windows == {"loaded": 6}
    assert any_world.tables() == {"events", "published", "published_head"}
    assert run(["plan", "--ddl", "-c", str(file)]) == 0
    assert capsys.readouterr().out == "-- events: the target lacks nothing\n"
