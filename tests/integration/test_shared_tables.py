"""Several pipelines over one table, from Python and from the command line, on each kind of database."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline_core import ConfigError, Pipeline, SideError
from pipeline_core.cli.app import run
from shell import toml

NOW = "2013-03-10T12:00"
REGIONS = {"europe": "eu", "america": "us"}


@pytest.fixture
def shared(any_world: Any) -> Any:
    """A world whose source holds the events of two regions, and of none."""
    any_world.query("source", "alter table events add column region text")
    any_world.query("source", "update events set region = case id % 3 when 0 then 'eu' when 1 then 'us' end")
    return any_world


def config(world: Any, name: str, *, where: str | None = None, scope: dict[str, Any] | None = None) -> dict[str, Any]:
    """One of the pipelines over the table: of a region by its name, or of any part."""
    made = world.config(name=name, end=NOW)
    region = REGIONS.get(name)
    where = f"region = '{region}'" if region else where
    made["source"] = {**made["source"], **({"where": where} if where else {})}
    made["target"] = {**made["target"], "scope": {"region": region} if region else scope or {}}
    return made


def moved(world: Any, name: str, **more: Any) -> Any:
    with Pipeline.from_mapping(config(world, name, **more)) as pipeline:
        return pipeline.run(now=NOW)


def of_region(world: Any, database: str, name: str) -> list[Any]:
    return list(world.query(database, f"select id, value from events where region = '{REGIONS[name]}' order by id"))


def test_pipelines_share_a_table(shared: Any) -> None:
    """Each moves its own rows, leaves the other's alone, and names in its evidence what it was limited to."""
    for name in REGIONS:
        report = moved(shared, name)
        assert (report.windows, report.exit_code) == ({"loaded": 6}, 0)
        assert report.rows == len(of_region(shared, "source", name))
    for name in REGIONS:
        assert of_region(shared, "target", name) == of_region(shared, "source", name)
    shared.query("target", "delete from events where region = 'us'")
    with Pipeline.from_mapping(config(shared, "europe")) as europe:
        assert europe.check().exit_code == 0
        evidence = europe.store.records("europe")[0].evidence
        assert (evidence["source"]["where"], evidence["target"]["scope"]) == ("region = 'eu'", '{"region": "eu"}')
    with Pipeline.from_mapping(config(shared, "america")) as america:
        assert len(america.check(reopen=True).differences) == 6
        assert america.run(now=NOW).windows == {"loaded": 6}
    assert of_region(shared, "target", "europe") == of_region(shared, "source", "europe")


def test_an_overlapping_pipeline_is_refused_by_name(shared: Any) -> None:
    """The run stops; no window is quarantined, and the rows of the other stay."""
    moved(shared, "europe")
    before = of_region(shared, "target", "europe")
    with pytest.raises(SideError, match=r"pipeline 'europe' has published within \{\"region\": \"eu\"\}"):
        moved(shared, "whole")
    assert of_region(shared, "target", "europe") == before
    with Pipeline.from_mapping(config(shared, "whole")) as whole:
        assert whole.status().counts["quarantined"] == 0


def test_a_staged_row_outside_the_scope_is_quarantined(shared: Any) -> None:
    """The source gives more than the scope allows: nothing is published, and the reason names the column."""
    report = moved(shared, "too-much", where="region IS NOT NULL", scope={"region": "eu"})
    assert report.windows == {"quarantined": 6}
    assert shared.query("target", "select count(*) from events") == [(0,)]
    with Pipeline.from_mapping(config(shared, "too-much", where="region IS NOT NULL", scope={"region": "eu"})) as it:
        (reason, *_) = {record.reason for record in it.status().quarantined}
    assert "column 'region': found" in reason.replace('"', "'")
    assert "expected 'eu'" in reason


def test_another_scope_is_counted_again(shared: Any) -> None:
    """What was verified under one scope or condition is not taken for verified under another."""
    moved(shared, "some", where="region = 'eu'", scope={"region": "eu"})
    with Pipeline.from_mapping(config(shared, "some", where="region = 'us'", scope={"region": "us"})) as other:
        change = other.plan(dry_run=True)
        assert (len(change.remove), len(change.add)) == (6, 6)
        assert other.run(now=NOW).windows == {"loaded": 6}


def test_another_pipeline_takes_the_place(shared: Any) -> None:
    """The new pipeline finds all of it processed and loads on, as far as it has taken over; the old one is refused."""
    moved(shared, "whole")
    with (
        Pipeline.from_mapping(config(shared, "whole")) as whole,
        pytest.raises(ConfigError, match="this pipeline itself"),
    ):
        whole.adopt("whole")
    with Pipeline.from_mapping(config(shared, "heir")) as heir:
        assert heir.adopt("nobody").entries == 0
        assert (heir.adopt("whole", dry_run=True).entries, heir.adopt("whole", dry_run=True).dry_run) == (6, True)
        report = heir.adopt("whole", end="2013-03-10T04:00")
        assert (report.entries, [str(window) for window in report.windows]) == (
            2,
            ["2013-03-10T05:00:00Z/2013-03-10T08:00:00Z"],
        )
        assert heir.run(now=NOW).windows == {"already processed": 6}
        shared.query("target", "delete from events")
        assert len(heir.check(reopen=True).differences) == 6
        with pytest.raises(SideError, match="store adopt --from-pipeline whole"):
            heir.run(now=NOW)
        assert heir.adopt("whole").entries == 4
        assert heir.run(now=NOW).windows == {"loaded": 4}
        assert heir.check().differences == []
    shared.query("target", "delete from events")
    with Pipeline.from_mapping(config(shared, "whole")) as whole:
        whole.check(reopen=True)
        with pytest.raises(SideError, match="pipeline 'heir' has published"):
            whole.run(now=NOW)


def test_the_command_line_adopts(shared: Any, tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """What was taken over is shown, and an exit code tells when there was nothing."""
    moved(shared, "whole")
    file = tmp_path / "heir.toml"
    file.write_text(toml(config(shared, "heir")))
    adopt = ["store", "adopt", "-c", str(file), "--from-pipeline"]
    assert run([*adopt, "nobody"]) == 1
    assert "pipeline 'nobody' has published nothing here to take over" in capsys.readouterr().out
    assert run([*adopt, "whole", "--dry-run"]) == 0
    assert "heir: would take over 6 published windows of 'whole':" in capsys.readouterr().out
    assert run([*adopt, "whole", "--from", "2013-03-10T10:00", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer == {
        "pipeline": "heir",
        "from_pipeline": "whole",
        "entries": 1,
        "windows": [{"start": "2013-03-10T14:00:00+00:00", "end": "2013-03-10T16:00:00+00:00"}],
        "dry_run": False,
        "exit_code": 0,
    }
    assert run([*adopt, "whole"]) == 0
    shown = capsys.readouterr().out
    assert "heir: took over 5 published windows of 'whole':" in shown
    assert "2013-03-10 00:00 EST to 10:00 EDT" in shown


def test_the_command_line_shares_a_table(shared: Any, tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Two files, two runs, one table; the third, over all of it, is refused with exit code 2."""
    codes = []
    for name in (*REGIONS, "whole"):
        file = tmp_path / f"{name}.toml"
        file.write_text(toml(config(shared, name)))
        codes.append(run(["run", "--json", "-c", str(file)]))
        answer = json.loads(capsys.readouterr().out)
    assert codes == [0, 0, 2]
    assert "has published within" in answer["error"]
