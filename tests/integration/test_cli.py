"""The command line, as a person or a script runs it: a process of its own, real files, exit codes and both streams."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline_core import secrets
from shell import COMMAND, ENVIRONMENT, Shell

PASSWORD = "hunter-and-gatherer"


# --- before anything else --------------------------------------------------------------------------------------------


def test_help_loads_no_driver() -> None:
    """`--help` answers at once: no plugin, no driver and no Arrow library is imported for it."""
    code = (
        "import sys\nfrom pipeline_core.cli.app import run\nassert run(['--help']) == run(['run', '--help']) == 0\n"
        "drivers = {'sqlalchemy', 'duckdb', 'pyarrow', 'cattrs', 'stamina'}\n"
        "drivers |= {'pipeline_sql', 'pipeline_objects', 'pipeline_duckdb'}\n"
        "sys.exit(str(drivers & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == "set()\n"


def test_help_names_every_command(shell: Shell) -> None:
    """Without arguments the help is shown, with every command."""
    shown = shell()
    assert shown.code == 0
    assert shown.out == shell("--help").out
    for command in ("init", "plan", "run", "check", "status", "plugins", "doctor", "config", "store"):
        assert f"\n  {command} " in shown.out


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra_one_line_says_what_to_install(missing: str) -> None:
    """The script of a bare core names the extra, and exits 2."""
    code = f"import sys\nsys.modules[{missing!r}] = None\nfrom pipeline_core.cli import main\nmain()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "pipeline-core: the command line is an extra: pip install 'windowed-pipeline[cli]'\n"


# --- the story of a pipeline -----------------------------------------------------------------------------------------


def test_a_pipeline_from_plan_to_done(shell: Shell) -> None:
    """Planning shows and then does; a run moves every window; status and check agree; nothing is left over."""
    dry = shell("plan", "--dry-run")
    assert (dry.code, shell.statuses()) == (0, [])
    assert "would add 6 windows, supersede 0" in dry.out
    assert "2013-03-10 00:00 EST  2013-03-10 12:00 EDT  missing" in dry.out

    assert "added 6 windows, superseded 0" in shell("plan").out
    assert shell.statuses() == ["pending"] * 6
    assert "nothing to change" in shell("plan").out

    done = shell("run")
    assert done.code == 0, done.err
    assert done.err == ""
    assert done.out.startswith("events: 6 loaded; 105 rows moved in ")
    shell.world.assert_whole()
    assert "6 windows counted again, 0 differ" in shell("check").out
    assert shell("run").out.startswith("events: no window was ready; 0 rows moved")


def test_a_difference_is_found_reopened_and_healed(shell: Shell) -> None:
    """Rows that change behind the pipeline's back: check exits 1 and shows both counts; `--reopen` and a run heal."""
    shell("run")
    shell.world.query("target", "delete from events where id = 0")
    found = shell("check")
    assert found.code == 1
    assert "1 differ" in found.out
    assert "2013-03-10 00:00 EST to 03:00 EDT  " in found.out
    assert shell("check", "--from", "2013-03-10T06:00").code == 0
    assert shell("check", "--to", "2013-03-10T04:00").code == 1

    reopened = shell("check", "--reopen", "--json")
    assert (reopened.code, reopened.json["reopened"]) == (1, 1)
    assert reopened.json["differences"][0]["target_count"] == reopened.json["differences"][0]["source_count"] - 1
    assert shell.statuses() == ["pending"] + ["done"] * 5
    assert shell("run").code == 0
    shell.world.assert_whole()


def test_limit_and_range_leave_the_rest_pending(shell: Shell) -> None:
    """`--from`, `--to` and `--limit` choose windows by local time; what was not asked for is no failure."""
    assert shell("run", "--from", "2013-03-10T06:00", "--to", "2013-03-10T10:00").code == 0
    assert shell.statuses() == ["pending"] * 3 + ["done"] * 2 + ["pending"]
    assert shell("run", "--limit", "1", "--workers", "2").code == 0
    assert shell.statuses().count("done") == 3


def test_upgrade_makes_the_tables_once(shell: Shell) -> None:
    """What was done, then that nothing was to do; for machines too."""
    first = shell("store", "upgrade")
    assert (first.code, first.out.partition(", at")[0]) == (0, "record store: made the tables")
    again = json.loads(shell("store", "upgrade", "--json").out)
    assert (again["pipeline"], again["exit_code"]) == ("events", 0)
    assert again["upgrade"].startswith("nothing to do")


# --- machines --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "keys"),
    [
        (("plan", "--dry-run"), {"pipeline", "dry_run", "add", "supersede", "notes", "exit_code"}),
        (("plan",), {"pipeline", "dry_run", "add", "supersede", "notes", "exit_code"}),
        (("run",), {"pipeline", "windows", "rows", "excluded", "quarantined", "undone", "seconds", "exit_code"}),
        (("check",), {"pipeline", "checked", "differences", "reopened", "exit_code"}),
        (
            ("status",),
            {"pipeline", "counts", "coverage", "gaps", "pending", "running", "failing", "quarantined"}
            | {"skipped", "exit_code"},
        ),
        (("plugins",), {"providers", "broken", "exit_code"}),
        (("doctor",), {"pipeline", "findings", "exit_code"}),
        (("config", "validate"), {"pipeline", "warnings", "lacking", "exit_code"}),
        (("init", "another.toml"), {"file", "exit_code"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_json_is_one_document_before_or_after_the_command(
    shell: Shell, arguments: tuple[str, ...], keys: set[str]
) -> None:
    """Every result is one JSON document on stdout, with its exit code in it, wherever `--json` stands."""
    before = shell("--json", *arguments)
    assert before.json.keys() == keys
    assert before.json["exit_code"] == before.code == 0, before.err
    after = shell(*arguments, "--json", *(["--force"] if "init" in arguments else []))
    assert after.json.keys() == keys


def test_the_options_after_the_command_win(shell: Shell) -> None:
    """`-c` and `--profile` are taken before and after the command; the later one counts."""
    shell.configure("other.toml", name="other", profiles={"prod": {"name": "changed"}})
    assert shell("-c", "other.toml", "config", "validate", "--json").json["pipeline"] == "other"
    assert shell("config", "validate", "-c", "other.toml", "--json").json["pipeline"] == "other"
    assert shell("-c", "none.toml", "config", "validate", "--config=other.toml", "--json").json["pipeline"] == "other"
    assert shell("--profile", "prod", "-c", "other.toml", "--json", "config", "validate").json["pipeline"] == (
        "changed@prod"
    )


# --- several pipelines -----------------------------------------------------------------------------------------------


@pytest.fixture
def several(shell: Shell) -> Shell:
    """Three pipelines of one file: `all` takes every row, `late` the later ones, `lost` has no source table."""
    target = shell.world.config()["target"]
    pipelines = {
        "all": {"target": {"table": "everything"}},
        "lost": {"source": {"table": "nowhere"}, "target": {"table": "nothing"}},
        "late": {"begin": "2013-03-10T06:00", "target": {"table": "late"}},
    }
    shell.configure(pipelines=pipelines, name=None, target={k: v for k, v in target.items() if k != "table"})
    return shell


def test_one_of_several_pipelines_is_chosen(several: Shell) -> None:
    """By `-p`; without it the answer lists them."""
    assert several("run", "-p", "late", "--json").json["pipeline"] == "late"
    assert several("-p", "late", "status", "--json").json["counts"]["done"] == 3
    assert several("-p", "all", "status", "--json").json["counts"]["done"] == 0
    for command in ("run", "status", "plan"):
        ended = several(command)
        assert ended.code == 2
        assert (
            "found several, 'all', 'lost', 'late'; choose one by its name (-p NAME), or all of them (--all)"
            in ended.err
        )


def test_all_of_several_pipelines_run_and_one_that_fails_stops_no_other(several: Shell) -> None:
    """Each has its answer, with its name; the exit code is the highest."""
    ended = several("run", "--all")
    assert ended.code == 2
    assert [line.partition(":")[0] for line in ended.out.splitlines()] == ["all", "late"]
    assert "pipeline-core: lost: " in ended.err
    assert "nowhere" in ended.err
    assert len(several.world.query("target", "select * from everything")) == len(several.world.rows("source"))
    again = several("run", "--all", "--json")
    assert [(one["pipeline"], one["exit_code"]) for one in again.json["pipelines"]] == [
        ("all", 0),
        ("lost", 2),
        ("late", 0),
    ]
    assert again.json["exit_code"] == again.code == 2
    assert several("check", "--all", "--json").json["pipelines"][0]["checked"] == 6


def test_the_status_of_all_reads_the_store_alone(several: Shell) -> None:
    """One line a pipeline; a side that cannot be opened is not missed."""
    several("run", "--all")
    (several.folder / "source.db").unlink()
    (several.folder / "target.db").unlink()
    ended = several("status", "--all")
    assert ended.code == 0
    assert ended.out.splitlines() == [
        "all: 6 done; done until 2013-03-10 12:00 EDT",
        "lost: 6 pending",
        "late: 3 done; done until 2013-03-10 12:00 EDT",
    ]
    counts = [one["counts"]["done"] for one in several("status", "--all", "--json").json["pipelines"]]
    assert counts == [6, 0, 3]


def test_all_of_one_pipeline_is_that_one(shell: Shell) -> None:
    """So a script need not know how many a file holds."""
    (one,) = shell("run", "--all", "--json").json["pipelines"]
    assert (one["pipeline"], one["exit_code"]) == ("events", 0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "--all", "-p", "late"), "--all: found -p too"),
        (("run", "-p", "latte"), "did you mean 'late'?"),
        (("plugins", "--all"), "--all: this command is of no pipeline"),
    ],
)
def test_a_choice_that_is_none(several: Shell, arguments: tuple[str, ...], said: str) -> None:
    """Says what is wrong with it, and exits 2."""
    ended = several(*arguments)
    assert ended.code == 2
    assert said in ended.err


def test_each_of_several_has_its_findings(several: Shell) -> None:
    """`doctor` and `config validate` name the pipeline."""
    assert [one["pipeline"] for one in several("doctor", "--all", "--json").json["pipelines"]] == [
        "all",
        "lost",
        "late",
    ]
    assert "late: " in several("doctor", "--all").out
    assert "late, sql to sql" in several("config", "validate", "--all").out


def test_the_schema_describes_every_section(shell: Shell) -> None:
    """`config schema` is a JSON Schema that knows the installed plugins."""
    schema = shell("config", "schema").json
    assert schema["$schema"].startswith("https://json-schema.org/")
    of_one = schema["else"]["properties"]
    assert {"source", "target", "stage", "store", "run", "retry"} <= of_one.keys()
    assert '"sql"' in json.dumps(of_one["source"])
    assert schema["then"]["properties"]["source"] == {"type": "object"}


def test_logs_go_to_stderr_as_json_lines(shell: Shell) -> None:
    """With `--log-format json` each line of stderr is an object, and stdout still holds the result alone."""
    done = shell("run", "--json", "--log-level", "info", "--log-format", "json")
    assert done.json["exit_code"] == 0
    lines = [json.loads(line) for line in done.err.splitlines()]
    assert [line["step"] for line in lines].count("settled") == 6
    assert {line["level"] for line in lines} == {"INFO"}


# --- failures --------------------------------------------------------------------------------------------------------


def side(shell: Shell, name: str, **changes: Any) -> dict[str, Any]:
    """One of the world's sides, changed."""
    return {name: {**shell.world.config()[name], **changes}}


@pytest.mark.parametrize(
    ("command", "configure", "said"),
    [
        (["status", "-c", "none.toml"], lambda shell: {}, ["none.toml: no such file", "pipeline-core init"]),
        (["run"], lambda shell: {"granularty": "2h"}, ["granularty", "did you mean 'granularity'"]),
        (["run"], lambda shell: side(shell, "source", tabel="x"), ["source.tabel", "did you mean 'table'"]),
        (["run"], lambda shell: side(shell, "source", type="sqll"), ["source.type", "'sqll'", "did you mean 'sql'"]),
        (["run"], lambda shell: side(shell, "source", table="nothing"), ["nothing"]),
        (
            ["run"],
            lambda shell: side(shell, "source", url="sqlite:////no/such/folder/x.db"),
            ["sqlite /no/such/folder/x.db: found no such file"],
        ),
        (
            ["run"],
            lambda shell: side(shell, "source", url="postgres://me@127.0.0.1/x"),
            ["source.url: found postgres://", "nearest: 'postgresql+psycopg://'"],
        ),
        (["run"], lambda shell: side(shell, "target", url="bare-name.db"), ["target.url: not a database URL"]),
        (["run"], lambda shell: {"store": {"type": "sql", "url": "oracle://h/x"}}, ["store.url: 'oracle' needs"]),
        (["run", "--from", "yesterday"], lambda shell: {}, ["start (--from): found 'yesterday'", "2013-01-01"]),
        (["run", "--to", "yesterday"], lambda shell: {}, ["end (--to): found 'yesterday'"]),
        (
            ["check", "--from", "2013-03-11", "--to", "2013-03-10"],
            lambda shell: {},
            ["start (--from), end (--to): found 2013-03-11T"],
        ),
        (["retry", "--window", "noon", "--reason", "x"], lambda shell: {}, ["window (--window): found 'noon'"]),
        (["skip", "--reason", "x"], lambda shell: {}, ["window (--window), start (--from), end (--to): found none"]),
        (["store", "prune", "--before", "noon"], lambda shell: {}, ["before (--before): found 'noon'"]),
        (["run", "--workers", "0"], lambda shell: {}, ["--workers"]),
        (["run", "--profile", "prd"], lambda shell: {"profiles": {"prod": {}}}, ["profile", "did you mean 'prod'"]),
        (["run", "--nonsense"], lambda shell: {}, ["--nonsense"]),
        (["rnu"], lambda shell: {}, ["rnu"]),
        (["config"], lambda shell: {}, ["Missing command"]),
        (["run"], lambda shell: {"plugins": ["no_such_module"]}, ["no_such_module", "PYTHONPATH"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_usage_and_configuration_exit_2(shell: Shell, command: list[str], configure: Any, said: list[str]) -> None:
    """What a person must change is said where it stands, without a traceback; as JSON too, and nothing was moved."""
    shell.configure(**configure(shell))
    failed = shell(*command)
    assert (failed.code, failed.out) == (2, "")
    assert failed.err.startswith("pipeline-core: ")
    assert "Traceback" not in failed.err
    for words in said:
        assert words in failed.err
    as_json = shell(*command, "--json").json
    assert as_json.keys() == {"error", "problems", "exit_code"}
    assert as_json["exit_code"] == 2
    for words in said:
        assert words in as_json["error"]
    assert not (shell.folder / "target.db").exists() or shell.world.query("target", "select * from sqlite_master") == []


def test_every_problem_of_a_configuration_is_said_at_once(shell: Shell) -> None:
    """Two mistakes make two lines, and two problems in JSON."""
    shell.configure(granularty="2h", **side(shell, "source", tabel="x"))
    assert len(shell("run").err.splitlines()) == 2
    assert len(shell("run", "--json").json["problems"]) == 2


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        ("side down", 3, "ready work was left undone: the source was away for"),
        ("permanent", 1, "quarantined"),
        ("unheard of", 1, "unexpected RuntimeError"),
    ],
)
def test_what_a_side_does_shows_in_the_exit_code_and_never_its_secret(
    shell: Shell, fault: str, code: int, said: str
) -> None:
    """A side that is away exits 3, a window it refuses 1, a fault of a plugin 1; its password shows nowhere."""
    password = f"{PASSWORD}-{fault}"
    source = {"type": "faulty", "fault": fault, "password": password}
    shell.configure(plugins=["sides"], source=source, retry={"retries": 0}, run={"give_up_after": "0s"})
    shown = [
        shell("run"),
        shell("run", "--json"),
        shell("run", "--log-level", "debug"),
        shell("status"),
        shell("doctor"),
        shell("doctor", "--json"),
    ]
    assert [each.code for each in shown[:3]] == [code] * 3
    assert said in shown[0].out + shown[0].err
    assert "Traceback" not in shown[0].err
    assert shown[1].json["exit_code"] == code
    for each in shown:
        assert PASSWORD not in each.out + each.err
    assert "***" in "".join(each.out + each.err for each in shown)
    if fault == "unheard of":
        assert "Traceback" in shown[2].err
        assert "sides.py" in shown[2].err


def test_a_retry_is_told_by_us_alone(shell: Shell) -> None:
    """The library that decides on retries says of each that there is one, and not of what; its lines are left out."""
    source = {"type": "faulty", "fault": "transient", "password": PASSWORD}
    shell.configure(plugins=["sides"], source=source, retry={"retries": 1, "wait_s": 0.01}, run={"max_attempts": 1})
    for form in ("text", "json"):
        said = shell("run", "--limit", "1", "--log-level", "info", "--log-format", form).err
        assert "retrying" in said
        assert "stamina" not in said


def test_a_number_is_no_secret(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reference with digits is blotted out of texts; the document stays JSON, and its numbers true."""
    monkeypatch.setenv("SHARD", "1105")
    shell.world.insert([61] * 1000, first_id=20_000)
    shell.configure(**side(shell, "target", table="events_${env:SHARD}"))
    try:
        assert shell("run", "--json").json["rows"] == 1105
    finally:
        secrets._revealed.clear()  # the only way to forget it


def test_structlog_does_not_tell_of_a_retry_either(shell: Shell) -> None:
    """Where it is installed that library would print each retry to stdout, with the error, amid the JSON."""
    loud = "def get_logger(_):\n    print('a retry')\n    return get_logger\nget_logger.warning = print\n"
    (shell.folder / "structlog.py").write_text(loud, encoding="utf-8")
    source = {"type": "faulty", "fault": "transient", "password": PASSWORD}
    shell.configure(plugins=["sides"], source=source, retry={"retries": 1, "wait_s": 0.01}, run={"max_attempts": 1})
    done = shell.spawn("run", "--limit", "1", "--json", "--log-level", "info")
    assert "retrying" in done.err
    assert done.json["quarantined"] == 1
    assert PASSWORD not in done.out + done.err


def test_quarantine_shows_in_status(shell: Shell) -> None:
    """A quarantined window stands in the picture and below it, with its reason; run and status both exit 1."""
    shell.configure(plugins=["sides"], source={"type": "faulty", "fault": "permanent", "password": PASSWORD})
    assert shell("run", "--limit", "1").code == 1
    status = shell("status")
    assert status.code == 1
    assert "✗ 1 quarantined" in status.out
    assert "2013-03-10 00:00 EST to 03:00 EDT, attempts: 1\n    PermanentError: cannot log in with ***" in status.out


def test_what_no_terminal_shows_is_not_wrapped(shell: Shell) -> None:
    """A line stays one, so that it can be searched: of a table, a reason, a sentence. None is filled up with blanks."""
    shell.configure(**side(shell, "target", table="a_table_of_a_long_name" * 4))
    assert shell("run").code == 0
    pruned = shell("store", "prune", "--before", "2013-03-11", "--dry-run").out
    assert len(pruned) > 80
    assert pruned.count("\n") == 1
    assert max(map(len, shell("status").out.splitlines())) <= 80, "the picture is as wide as it was"
    shell.configure(**side(shell, "target", table="a_table_of_a_long_name" * 4, timestamp_column="moved_at"))
    (problem,) = [line for line in shell("doctor").out.splitlines() if "no timestamp column" in line]
    assert "'moved_at'" in problem
    assert len(problem) > 120


def test_doctor_names_the_part_and_the_remedy(shell: Shell) -> None:
    """Each part is ok, or has a problem and what to do about it; then the exit code is 1."""
    healthy = shell("doctor", "--json").json
    assert [(each["part"], each["problem"]) for each in healthy["findings"]] == [
        (part, "") for part in ("store", "source", "target", "stage")
    ]
    shell.configure(**side(shell, "source", table="nothing"))
    ill = shell("doctor")
    assert ill.code == 1
    assert "nothing" in ill.out
    assert "remedy: " in ill.out
    problems = {each["part"] for each in shell("doctor", "--json").json["findings"] if each["problem"]}
    assert problems == {"source"}


def test_doctor_advises_the_whole_path_of_a_store(shell: Shell) -> None:
    """A path that begins in the working directory is another store in another one; a run goes well with it."""
    shell.configure(store={"type": "sql", "url": "sqlite:///here.db"})
    told = shell("doctor", "--json")
    assert told.code == 0
    (store,) = (each for each in told.json["findings"] if each["part"] == "store")
    assert (store["severity"], "working directory" in store["problem"]) == ("advice", True)
    assert store["remedy"] == f"give its whole path: sqlite:///{shell.folder}/here.db"


@pytest.mark.parametrize(
    ("part", "changes", "said"),
    [
        ("target", {"timestamp_column": "moved_at"}, "no staged column becomes its timestamp column 'moved_at'"),
        ("source", {"exclude": ["amuont"]}, "exclude names no column of it: 'amuont'"),
        ("source", {"exclude": ["ts"]}, "exclude names the timestamp column 'ts'"),
        ("target", {"scope": {"region": "eu"}}, "scope limits this pipeline by the columns ['region']"),
        ("target", {"where": "1 = 1"}, "where limits a source only"),
    ],
)
def test_doctor_finds_what_would_stop_a_run(shell: Shell, part: str, changes: dict[str, Any], said: str) -> None:
    """Also where each part alone is well: the rows do not fit the table. The run stops, and quarantines no window."""
    exclude = changes.pop("exclude", [])
    shell.configure(columns={"exclude": exclude}, **side(shell, "target", **changes))
    ill = shell("doctor", "--json")
    assert ill.code == ill.json["exit_code"] == 1
    found = {each["part"]: each for each in ill.json["findings"]}
    assert {each["part"] for each in ill.json["findings"] if each["severity"] != "ok"} == {part}
    assert said in found[part]["problem"]
    assert found[part]["remedy"] not in {"", "see the message"}
    assert len(ill.json["findings"]) == 4
    assert shell("status", "--json").json["counts"]["pending"] == 0, "nothing was planned"
    stopped = shell("run")
    assert (stopped.code, said in stopped.err) == (2, True)
    assert {*shell.statuses()} == {"pending"}


def test_doctor_finds_what_planning_refuses(shell: Shell) -> None:
    """Each part is well, and no run can begin."""
    shell.configure(begin="2999-01-01")
    file = shell.folder / "pipeline.toml"
    file.write_text(file.read_text(encoding="utf-8").replace('end = "2013-', 'end = "3013-'), encoding="utf-8")
    ill = shell("doctor", "--json")
    assert ill.code == 1
    assert [each["part"] for each in ill.json["findings"] if each["severity"] != "ok"] == ["plan"]
    assert "begin: 2999-01-01" in ill.json["findings"][-1]["problem"]
    assert (shell("run").code, shell.statuses()) == (2, [])


def test_doctor_passes_what_is_only_advised(shell: Shell) -> None:
    """A run goes well without an index: the exit code is 0, and the finding says what it is."""
    shell.world.query("source", "drop index if exists events_ts")
    advised = shell("doctor", "--json")
    assert (advised.code, advised.json["exit_code"]) == (0, 0)
    severities = {each["part"]: each["severity"] for each in advised.json["findings"]}
    assert severities == {"store": "ok", "source": "advice", "target": "ok", "stage": "ok"}
    assert "advice: " in shell("doctor").out
    assert shell("run").code == 0


def test_doctor_splits_an_error_at_its_remedy(shell: Shell) -> None:
    """What a part says when it is opened, its place, and what to do, without the error's class."""
    shell.configure(**side(shell, "source", url="postgres://me@127.0.0.1/x"))
    (found,) = [each for each in shell("doctor", "--json").json["findings"] if each["part"] == "source"]
    assert found["problem"].startswith("source.url: found postgres://")
    assert found["remedy"] == "correct it, or install the database's dialect"


def test_doctor_shows_an_error_without_a_remedy(shell: Shell) -> None:
    """A database that is no database is no part that is well."""
    (shell.folder / "broken.db").write_text("no database at all, but a text that is long enough to look like one" * 20)
    shell.configure(**side(shell, "source", url=f"sqlite:///{shell.folder / 'broken.db'}"))
    ill = shell("doctor", "--json")
    assert ill.code == 1
    assert [each["part"] for each in ill.json["findings"] if each["severity"] == "problem"] == ["source"]


def test_a_broken_plugin_is_listed(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed plugin that cannot be imported is named with its distribution; the others are listed; exit 1."""
    monkeypatch.syspath_prepend(str(shell.folder))
    info = shell.folder / "shaky-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shaky\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[pipeline_core]\nshaky = no_such_module\n")
    listed = shell("plugins")
    assert listed.code == 1
    assert "broken: plugin shaky 1.2 (no_such_module)" in listed.out.replace("\n", " ")
    assert "wall" in listed.out
    shown = shell("plugins", "--json").json
    assert {"kind": "stage", "type": "objects"}.items() <= next(
        p for p in shown["providers"] if p["type"] == "objects"
    ).items()


def test_plugins_needs_no_configuration(shell: Shell) -> None:
    """Without a configuration the installed plugins are listed; with one that is broken too, and that is said."""
    (shell.folder / "pipeline.toml").unlink()
    assert shell("plugins").code == 0
    shell.configure(granularty="2h")
    assert "only installed plugins are shown" in shell("plugins").err


def test_a_run_from_elsewhere_finds_the_same_records(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """As cron does it: what was verified is known, nothing is counted anew, and no store is made where it started."""
    shell.configure(store=None, stage=None)
    assert shell("run").code == 0
    before = shell.world.rows("target")
    shell.world.query("source", "delete from events where id % 2 = 0")
    elsewhere = shell.folder / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert shell("-c", "../pipeline.toml", "run", "--json").json["windows"] == {}
    assert shell("-c", "../pipeline.toml", "status", "--json").json["counts"]["done"] == 6
    assert shell.world.rows("target") == before
    assert list(elsewhere.iterdir()) == []


def test_a_default_record_that_lacks_check_fields_is_told_beforehand(shell: Shell) -> None:
    """Nothing could be generated from it: `config validate` and `doctor` name the fields; 0 is a value."""
    shell.configure(check_fields=["key_x", "key_y"], default_record={"key_x": 0})
    found = shell("config", "validate", "--json")
    assert (found.code, found.json["lacking"]) == (1, ["key_y"])
    assert "lacks check fields: key_y" in shell("config", "validate").out
    ill = shell("doctor", "--json")
    assert ill.code == 1
    assert [finding["part"] for finding in ill.json["findings"] if finding["severity"] == "problem"] == [
        "default_record"
    ]
    shell.configure(check_fields=["key_x"], default_record={"key_x": 0})
    assert (shell("config", "validate").code, shell("doctor").code) == (0, 0)


def test_two_files_without_a_name_in_one_folder(shell: Shell) -> None:
    """The second one is told that the first has the name; given one of its own it works, and harms no record."""
    shell.world.query("source", "create table visits as select * from events where id > 5")
    shell.world.query("source", "create index visits_ts on visits (ts)")
    visits = {side: shell.world.config()[side] | {"table": "visits"} for side in ("source", "target")}
    shell.configure(name=None, store=None)
    shell.configure("visits.toml", name=None, store=None, **visits)
    assert shell("run").code == 0
    refused = shell("-c", "visits.toml", "run")
    assert (refused.code, "another pipeline seems to use this name" in " ".join(refused.err.split())) == (2, True)
    shell.configure("visits.toml", name="visits", store=None, **visits)
    assert shell("-c", "visits.toml", "run").code == 0
    assert shell("run", "--json").json["windows"] == {}


# --- init ------------------------------------------------------------------------------------------------------------


def test_init_writes_a_configuration_that_runs(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file it writes is valid, explained line by line, and moves rows once there is a table to move.

    Its records are found from any working directory.
    """
    (shell.folder / "pipeline.toml").unlink()
    assert shell("init").code == 0
    assert shell("config", "validate").code == 0
    text = (shell.folder / "pipeline.toml").read_text(encoding="utf-8")
    keys = [line for line in text.splitlines() if " = " in line and not line.startswith("#")]
    told = {line.split(" = ")[0] for line in keys if "  # " in line}
    assert {line.split(" = ")[0] for line in keys} == told, "a key that no line explains"

    (shell.folder / "pipeline.toml").write_text(text.replace('begin = "', 'end = "2024-01-03"\nbegin = "'))
    with shell.world.connection("source") as connection:
        connection.execute("drop table events")
        connection.execute("create table events (id integer, at timestamp)")
        connection.execute("insert into events values (1, '2024-01-01 12:00:00'), (2, '2024-01-02 00:00:00')")
    connection.close()
    assert shell("run", "--json").json["windows"] == {"loaded": 2}
    assert shell.world.query("target", "select id from events order by id") == [(1,), (2,)]
    monkeypatch.chdir("/")
    assert shell("-c", str(shell.folder / "pipeline.toml"), "status", "--json").json["counts"]["done"] == 2


@pytest.mark.parametrize("name", ["a%2Fb", "a?b=1", 'a "b"', "a\\b", "${env:HOME}", "ä b"])
@pytest.mark.parametrize("written", [True, False])
def test_records_lie_beside_the_file_whatever_its_folder_is_called(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, name: str, written: bool
) -> None:
    """What means something in a URL, in TOML or to us is part of a name: in what `init` writes, and by default."""
    folder = shell.folder / "jobs" / name
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    assert shell("init").code == 0
    if not written:
        text = Path("pipeline.toml").read_text(encoding="utf-8")
        Path("pipeline.toml").write_text(text.partition("[stage]")[0], encoding="utf-8")
    assert shell("status").code == 0
    assert [path.relative_to(shell.folder) for path in shell.folder.rglob("records.db")] == [
        Path("jobs", name, ".pipeline-core", "records.db")
    ]


def test_init_never_overwrites_without_force(shell: Shell) -> None:
    """A file that is there stays as it is, unless asked; a name and a folder of its own are taken."""
    before = (shell.folder / "pipeline.toml").read_text()
    refused = shell("init")
    assert refused.code == 2
    assert "--force" in refused.err
    assert (shell.folder / "pipeline.toml").read_text() == before
    assert shell("init", "--force").code == 0
    assert (shell.folder / "pipeline.toml").read_text() != before
    assert shell("init", "missing/folder.toml").code == 2
    assert shell("-c", "mine.toml", "init").code == 0
    assert shell("config", "validate", "-c", "mine.toml").code == 0


@pytest.mark.parametrize("fails", ["opened", "closed"])
def test_an_observer_that_cannot_be_opened_or_closed_harms_no_run(shell: Shell, fails: str) -> None:
    """A collector that is away is told in the log, with no secret; the run answers as it would without."""
    loud = {"type": "moody", "fails": fails, "password": PASSWORD}
    shell.configure(plugins=["moody"], observers=[loud, {"type": "moody"}])
    done = shell("run", "--json")
    assert (done.code, done.json["windows"]) == (0, {"loaded": 6})
    assert f"observers[0] {'could not be opened' if fails == 'opened' else 'failed when it was closed'}" in done.err
    assert "ConnectionError: refused ***" in done.err
    assert PASSWORD not in done.err
    assert "told the other: run ended" in done.err


def test_an_observer_that_lacks_what_it_needs_is_a_fault_of_the_configuration(shell: Shell) -> None:
    """A reference without a value, and what it refuses itself when it is opened."""
    for lacking in ({"password": "${env:NOWHERE}"}, {"fails": "configured"}):
        shell.configure(plugins=["moody"], observers=[{"type": "moody", **lacking}])
        done = shell("run")
        assert (done.code, done.out) == (2, "")
        assert "observers[0]" in done.err


# --- interrupts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("aside", [False, True])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interrupt_leaves_everything_consistent(shell: Shell, name: str, aside: bool) -> None:
    """Asked to stop amid extracting, a run says so, puts its windows back and exits 3; the next run ends equal."""
    brake = {"type": "brake", "step": "extracting", "signals": [name], "aside": aside}
    shell.configure(plugins=["brake"], observers=[brake], run={"batch_rows": 5, "workers": 2})
    stopped = shell.spawn("run")
    assert stopped.code == 3
    assert stopped.out == ""
    assert "stopping: " in stopped.err
    assert "pipeline-core: interrupted: " in stopped.err
    assert "Traceback" not in stopped.err
    assert "pending" in shell.statuses()
    assert set(shell.statuses()) <= {"pending", "done"}
    assert shell.world.staged() == []
    assert shell("status", "--json").json["failing"] == []  # being stopped uses no attempt

    shell.configure()
    assert shell("run").code == 0
    shell.world.assert_whole()


def test_an_interrupt_is_one_document_too(shell: Shell) -> None:
    """With `--json` an interrupted run still answers with a document, and exits 3."""
    brake = {"type": "brake", "step": "extracting", "signals": ["SIGINT"]}
    shell.configure(plugins=["brake"], observers=[brake])
    stopped = shell.spawn("run", "--json")
    assert stopped.code == stopped.json["exit_code"] == 3
    assert "interrupted" in stopped.json["error"]


def test_a_second_interrupt_leaves_at_once(shell: Shell) -> None:
    """Who cannot wait asks twice: the window stays claimed by a dead process, and the next run takes it over."""
    brake = {"type": "brake", "step": "extracting", "signals": ["SIGINT", "SIGINT"], "seconds": 60}
    shell.configure(plugins=["brake"], observers=[brake])
    assert shell.spawn("run").code == 3
    assert "running" in shell.statuses()
    shell.configure()
    assert shell("run").code == 0
    shell.world.assert_whole()


# --- the terminal ----------------------------------------------------------------------------------------------------


def test_a_terminal_shows_progress_and_the_result_stays_alone_on_stdout(shell: Shell) -> None:
    """On a terminal stderr draws the running windows, in words; stdout holds the result without a trace of it."""
    shell.configure(plugins=["brake"], observers=[{"type": "brake", "step": "extracting", "seconds": 0.3}])
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, "run", "--limit", "1"],
        cwd=shell.folder,
        env=ENVIRONMENT,
        stdout=-1,
        stderr=theirs,
        text=True,
    ) as process:
        os.close(theirs)
        drawn = b""
        while chunk := _read(ours):
            drawn += chunk
        out, _ = process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == 0
    assert out.startswith("events: 1 loaded; ")
    assert "\x1b" not in out
    text = drawn.decode()
    assert "2013-03-10 00:00 EST to 03:00 EDT" in text
    assert "extracting 10 of " in text


def _read(terminal: int) -> bytes:
    """What comes next; empty once the other end is closed, which Linux reports as an error."""
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""


def test_a_reader_that_leaves_ends_the_command_quietly(shell: Shell) -> None:
    """Piped into a program that reads no further, there is no traceback."""
    command = " ".join(
        [f"'{sys.executable}'", "-c", "'from pipeline_core.cli import main; main()'", "config", "schema"]
    )
    done = subprocess.run(
        ["bash", "-c", f"{command} | true"],
        cwd=shell.folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""


def test_a_plugin_may_lie_beside_the_file(shell: Shell, tmp_path_factory: pytest.TempPathFactory) -> None:
    """`plugins = ["…"]` finds a module beside the configuration, from wherever the command is called."""
    module = "from pipeline_core import Provider, WallClockPolicy, hookimpl\n\n\n@hookimpl\n"
    module += 'def pipeline_time_policies():\n    yield Provider("ours", WallClockPolicy)\n'
    (shell.folder / "beside_the_file.py").write_text(module)
    shell.configure(plugins=["beside_the_file"])
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    command = [*COMMAND, "plugins", "-c", str(shell.folder / "pipeline.toml")]
    done = subprocess.run(command, cwd=elsewhere, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "ours" in done.stdout
