"""The owner's pipeline: a year of flights from Elasticsearch, by way of S3, into Snowflake (its stand-in).

The file and the mapping are the tutorial's, as they stand there.
"""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import snowflake.connector
from attrs import frozen

import documents
from pipeline_core import Pipeline, Status
from shell import COMMAND, ENVIRONMENT, toml

ROOT = Path(__file__).parents[2]
TUTORIAL = (ROOT / "docs/tutorial/elasticsearch-to-snowflake.md").read_text(encoding="utf-8")
NAMES = count()
STEPS = (
    *("planned", "claimed", "counted", "extracting", "staged", "uploading", "uploaded"),
    *("guarded", "deleted", "inserted", "published", "audited", "cleaned", "settled"),
)
STAGE_KEYS = {"access_key_id": "AWS_ACCESS_KEY_ID", "secret_access_key": "AWS_SECRET_ACCESS_KEY"}
YEAR_DAYS = 365


@frozen
class Systems:
    """An index, a bucket, a table of its own, and how a shell is told of them."""

    folder: Path
    flights: Any
    client: Any
    index: str
    stage: dict[str, Any]
    bucket: Any
    account: dict[str, Any]
    table: str
    environment: dict[str, str]

    def add(self, rows: list[Any]) -> None:
        """More documents."""
        found = documents.documents(self.flights.COLUMNS, rows, "@timestamp")
        documents.put(self.client, self.index, found)

    def configure(self) -> None:
        """Writes the tutorial's file, and beside it, for each step, one whose run a saboteur kills there."""
        (text,) = re.findall(r"```toml\n(.*?)```", TUTORIAL, re.DOTALL)
        changes = {
            '"flights"\n\n[stage]': f'"{self.index}"\n\n[stage]\n{toml(self.stage)}',
            '"FLIGHTS"': f'"{self.table}"',
        }
        for written, here in changes.items():
            assert text.count(written) == 1
            text = text.replace(written, here)
        text = toml({"run": {"crash_backoff_s": 0.01, "backoff_s": 0.01, "max_crashes": 99}}) + text
        (self.folder / "pipeline.toml").write_text(text, encoding="utf-8")
        for step in STEPS:
            saboteur = {"type": "saboteur", "step": step, "nth": 1 if step == "planned" else 5}
            sabotage = toml({"plugins": ["saboteur"], "observers": [saboteur]})
            (self.folder / f"{step}.toml").write_text(sabotage + text, encoding="utf-8")

    def command(self, *arguments: str, file: str = "pipeline") -> subprocess.CompletedProcess[str]:
        """Types a command of `pipeline-core`."""
        return subprocess.run(
            [*COMMAND, *arguments, "-c", f"{file}.toml"],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def told(self, *arguments: str, code: int = 0) -> Any:
        """What a command says as JSON."""
        done = self.command(*arguments, "--json")
        assert done.returncode == code, done.stdout + done.stderr
        return json.loads(done.stdout)

    def query(self, sql: str) -> list[Any]:
        """Rows of the account, by the official connector alone."""
        quiet = {"enable_server_session_keep_alive_auto_detection": False, "platform_detection_timeout_seconds": 0.0}
        with (
            closing(snowflake.connector.connect(**self.account, **quiet)) as connection,
            closing(connection.cursor()) as cursor,
        ):
            return list(cursor.execute(sql).fetchall())

    def landed(self) -> Counter[str]:
        """What the table holds."""
        listed = ", ".join(
            "to_char(flown_at, 'YYYY-MM-DD HH24:MI:SS')" if name == "time_hour" else f'"{name.upper()}"'
            for name in self.flights.COLUMNS
        )
        return documents.counted(self.flights.COLUMNS, self.query(f"select {listed} from {self.table}"))

    def expected(self, rows: list[Any]) -> Counter[str]:
        return documents.counted(self.flights.COLUMNS, rows)

    def staged(self) -> list[str]:
        """What is left in the bucket."""
        return [each["path"] for page in self.bucket.list() for each in page]


@pytest.fixture(scope="module")
def flights() -> Any:
    """The example's module, which reads the real flights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "examples/flights")
        return importlib.import_module("flights")


@pytest.fixture(scope="module")
def elasticsearch_client(start_elasticsearch: Callable[..., AbstractContextManager[Any]]) -> Iterator[Any]:
    """The official client of a genuine server."""
    from elasticsearch import Elasticsearch

    with (
        start_elasticsearch("9.2.0") as server,
        closing(Elasticsearch(server.url, request_timeout=60)) as client,
    ):
        yield client


@pytest.fixture
def systems(
    flights: Any, elasticsearch_client: Any, s3_server: Any, snowflake_server: Any, tmp_path: Path
) -> Iterator[Systems]:
    """All three, empty."""
    number = next(NAMES)
    index, table, bucket = f"flights-{number}", f"FLIGHTS_{number}", s3_server.new_bucket()
    settings = {"number_of_shards": 2, "number_of_replicas": 0}
    fields = {"properties": documents.mapping(flights.COLUMNS, "@timestamp")}
    elasticsearch_client.indices.create(index=index, mappings=fields, settings=settings)
    stage = s3_server.settings(bucket)
    keys = {STAGE_KEYS[name]: secret for name, secret in stage.pop("credentials").items()}
    account = snowflake_server.options()
    environment = {
        **ENVIRONMENT,
        **keys,
        **{f"SNOWFLAKE_{name.upper()}": str(value) for name, value in account.items()},
        "ELASTICSEARCH_HOST": str(elasticsearch_client.transport.node_pool.get().base_url),
        "STAGE_URL": stage["url"],
    }
    yield Systems(
        tmp_path,
        flights,
        elasticsearch_client,
        index,
        {name: stage[name] for name in ("endpoint", "region", "allow_http")},
        s3_server.store(bucket),
        account,
        table,
        environment,
    )
    elasticsearch_client.indices.delete(index=index)


@pytest.mark.timeout(1800)
def test_a_year_arrives_though_its_run_is_killed_at_every_step(systems: Systems, flights: Any) -> None:
    """SIGKILL at each step in turn, then a quiet run: equal row for row. Late documents reopen their days, no other."""
    rows = list(flights.year_rows())
    systems.add(rows)
    systems.configure()
    for step in STEPS:
        killed = systems.command("run", file=step)
        assert killed.returncode == -signal.SIGKILL, f"{step}: {killed.stdout}{killed.stderr}"
    report = systems.told("run", "--workers", "2")
    assert report["quarantined"] == 0
    assert systems.landed() == systems.expected(rows)
    assert systems.staged() == []

    assert systems.told("run")["windows"] == {}
    counts = systems.told("status")["counts"]
    assert {status: number for status, number in counts.items() if number} == {"done": YEAR_DAYS}
    ledger = systems.query("select start_us, end_us from pipeline_ledger where pipeline = 'flights'")
    assert len(ledger) == len(set(ledger)) == YEAR_DAYS
    assert_evidence(systems, len(rows))

    late = [rows[0], rows[1], rows[200_000]]
    systems.add(late)
    assert len(systems.told("check", "--reopen", code=1)["differences"]) == 2
    assert systems.told("run")["windows"] == {"loaded": 2}
    assert systems.landed() == systems.expected(rows + late)
    assert_evidence(systems, len(rows) + len(late))


def assert_evidence(systems: Systems, rows: int) -> None:
    """Each record names both sides and what they counted in the end; together every row."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in systems.environment.items():
            patch.setenv(name, value)
        patch.chdir(systems.folder)
        with Pipeline.from_file("pipeline.toml") as pipeline:
            found = [record.evidence for record in pipeline.store.records("flights", Status.DONE)]
    assert len(found) == YEAR_DAYS
    total = 0
    for each in found:
        counts = each.get("after") or each["before"]  # a window killed after its publication is found processed
        assert counts["source"] == counts["target"] > 0
        total += counts["source"]
        assert each["source"]["technology"] == "elasticsearch"
        assert each["target"]["technology"] == "snowflake"
    assert total == rows
    assert "geheim" not in json.dumps(found)


def test_the_owner_s_mapping_goes_through_the_tasks(
    systems: Systems, flights: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flat names and the environment's, the functions as the owner named them: a day, window by window."""
    rows = [row for row in flights.sample_rows() if row[1:3] == (3, 10)]
    systems.add(rows)
    for name, value in systems.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PIPELINE_CORE_STORE_URL", f"sqlite:///{systems.folder / 'records.db'}")
    mapping, code = re.findall(r"```python\n(.*?)```", TUTORIAL, re.DOTALL)
    config = ast.literal_eval(mapping.partition("=")[2].strip())
    config |= {"source_index": systems.index, "target_table": systems.table, "end": "2013-03-11"}
    config["stage"] = {"type": "objects", "url": os.environ["STAGE_URL"], **systems.stage}
    ended = list[dict[str, Any]]()
    for _ in range(13):
        exec(code, {"CONFIG": config, "print": ended.append})
    assert len(ended) == 12
    assert systems.landed() == systems.expected(rows)
    assert systems.staged() == []
