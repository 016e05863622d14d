"""Real flights, from an index into PostgreSQL: row for row, through crashes of the server, and as the tutorial says."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

import documents
from pipeline_core import ExtractRequest, Pipeline, TransientError, Window

ROOT = Path(__file__).parents[3]
TUTORIAL = ROOT / "docs/tutorial/elasticsearch.md"
LONG = os.environ.get("PIPELINE_LONG") == "1"
NUMBERS = ("year", "month", "day", "hour", "minute", "flight", "distance", "air_time")
YEAR = Window.from_us(1_356_998_400_000_000, 1_388_620_800_000_000)  # 2013 in New York, and some hours around it


@pytest.fixture(scope="session")
def flights() -> Any:
    """The example's module, which reads the real flights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "examples/flights")
        return importlib.import_module("flights")


def mapping(flights: Any, timestamp: str = "time_hour") -> dict[str, Any]:
    return documents.mapping(flights.COLUMNS, timestamp)


def indexed(cluster: Any, flights: Any, rows: Iterable[Any], timestamp: str = "time_hour") -> str:
    """An index that holds those flights."""
    index: str = cluster.index(mapping(flights, timestamp))
    documents.put(cluster.client, index, documents.documents(flights.COLUMNS, rows, timestamp))
    return index


def counted(flights: Any, rows: Iterable[Sequence[Any]]) -> Counter[str]:
    """Rows as often as they occur."""
    return documents.counted(flights.COLUMNS, rows)


def landed(flights: Any, server: Any, database: str, timestamp: str = "time_hour") -> Counter[str]:
    """What the table in PostgreSQL holds."""
    import psycopg

    listed = ", ".join(
        f"\"{timestamp}\" at time zone 'UTC'" if name == "time_hour" else name for name in flights.COLUMNS
    )
    with psycopg.connect(server.dsn(database)) as connection:
        return counted(flights, connection.execute(f"select {listed} from flights").fetchall())  # type: ignore[call-overload]


def configuration(cluster: Any, index: str, target: str, folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "name": "flights",
        "timezone": "America/New_York",
        "granularity": "1d",
        "x_time_back": "0s",
        "begin": "2013-03-07",
        "end": "2013-03-14",
        "source": {"type": "elasticsearch", "url": cluster.url, "index": index, "timestamp_field": "time_hour"},
        "target": {"type": "sql", "url": target, "table": "flights", "timestamp_column": "time_hour", "create": True},
        "stage": {"type": "objects", "url": (folder / "stage").as_uri()},
        "store": {"type": "sql", "url": f"sqlite:///{folder / 'records.db'}"},
        "run": {"backoff_s": 0.01, "workers": 2},
        "retry": {"retries": 1, "wait_s": 0.01},
    } | changes


def run(configured: dict[str, Any]) -> dict[str, Any]:
    with Pipeline.from_mapping(configured) as pipeline:
        return pipeline.run().as_mapping()


@pytest.mark.timeout(1800)
def test_real_flights_arrive_row_for_row(cluster: Any, flights: Any, postgres_server: Any, tmp_path: Path) -> None:
    """And document for document on their way back. A second run finds it all done.

    Two weeks with a clock change each; `PIPELINE_LONG=1` takes the whole year.
    """
    rows = list(flights.year_rows() if LONG else flights.sample_rows())
    index = indexed(cluster, flights, rows)
    database = postgres_server.new_database()
    spans = [("2013-01-01", "2014-01-01")] if LONG else [("2013-03-07", "2013-03-14"), ("2013-10-31", "2013-11-07")]
    for begin, end in spans:
        configured = configuration(cluster, index, postgres_server.url(database), tmp_path, begin=begin, end=end)
        report = run(configured)
        assert set(report["windows"]) == {"loaded"}
        assert run(configured)["windows"] == {}
    assert landed(flights, postgres_server, database) == counted(flights, rows)
    (tmp_path / "records.db").unlink()
    assert set(run(configured)["windows"]) == {"already processed"}

    back = cluster.index(mapping(flights))
    for begin, end in spans:
        configured = configuration(cluster, back, postgres_server.url(database), tmp_path, begin=begin, end=end)
        there, here = configured["source"], configured["target"]
        del here["create"]
        configured |= {"name": "back", "source": here, "target": there}
        assert set(run(configured)["windows"]) == {"loaded"}
        assert run(configured)["windows"] == {}
    assert sources(cluster, back) == sources(cluster, index)
    assert cluster.open_points_in_time() == 0


def test_whole_documents_arrive_as_jsonb(cluster: Any, flights: Any, postgres_server: Any, tmp_path: Path) -> None:
    """The document shape, into a table that a person made."""
    import psycopg

    rows = [row for row in flights.sample_rows() if row[1:3] == (3, 10)]
    index = indexed(cluster, flights, rows)
    database = postgres_server.new_database()
    with psycopg.connect(postgres_server.dsn(database)) as connection:
        connection.execute("create table flights (_id text, _index text, time_hour timestamptz, _source jsonb)")
    configured = configuration(cluster, index, postgres_server.url(database), tmp_path)
    configured["source"]["shape"] = "document"
    assert run(configured)["rows"] == len(rows)
    with psycopg.connect(postgres_server.dsn(database)) as connection:
        found = [source for (source,) in connection.execute("select _source from flights")]
    assert sorted(json.dumps(each, sort_keys=True) for each in found) == sorted(
        json.dumps(each, sort_keys=True) for each in documents.documents(flights.COLUMNS, rows, "time_hour")
    )


@pytest.mark.parametrize("shape", ["fields", "document"])
def test_from_one_index_into_another(cluster: Any, flights: Any, tmp_path: Path, shape: str) -> None:
    """Document for document, in either shape; a second run finds it done, and a damaged window is mended."""
    rows = [row for row in flights.sample_rows() if row[1] == 3]
    index, target = indexed(cluster, flights, rows), cluster.index(mapping(flights))
    side = {"type": "elasticsearch", "url": cluster.url, "timestamp_field": "time_hour", "shape": shape}
    configured = configuration(cluster, index, "", tmp_path)
    configured |= {"source": {**side, "index": index}, "target": {**side, "index": target}}
    assert run(configured)["windows"] == {"loaded": 7}
    assert sources(cluster, target) == sources(cluster, index)
    assert run(configured)["windows"] == {}
    gone = cluster.client.search(index=target, size=3)["hits"]["hits"]
    operations = [{"delete": {"_id": hit["_id"]}} for hit in gone]
    cluster.client.bulk(index=target, operations=operations, refresh=True)
    (tmp_path / "records.db").unlink()
    assert run(configured)["windows"]["loaded"] in (1, 2, 3)
    assert sources(cluster, target) == sources(cluster, index)


def sources(cluster: Any, index: str) -> Counter[str]:
    """Every document of an index, as often as it occurs."""
    from elasticsearch.helpers import scan

    return Counter(json.dumps(hit["_source"], sort_keys=True) for hit in scan(cluster.client, index=index, size=5_000))


def test_a_server_killed_while_it_is_counted_and_read(
    cluster: Any, flights: Any, postgres_server: Any, tmp_path: Path
) -> None:
    """Every count is right, or an error that can heal; so is the half of a window; a run waits until it is back."""
    rows = [row for row in flights.sample_rows() if row[1] == 3]
    index = indexed(cluster, flights, rows)
    cluster.client.indices.flush(index=index)
    started, wrong, errors = Event(), list[object](), list[Exception]()

    def count() -> None:
        with cluster.side(index, timestamp_field="time_hour") as side:
            while not errors:
                try:
                    found = (side.count(YEAR), *side.count_many([YEAR, YEAR]))
                    if found != (len(rows),) * 3:
                        wrong.append(found)
                except TransientError as error:
                    errors.append(error)
                started.set()

    thread = Thread(target=count)
    thread.start()
    with cluster.side(index, timestamp_field="time_hour", page_rows=10) as side:
        with closing(side.extract(ExtractRequest(YEAR))) as batches:
            assert sum(len(batch) for batch in islice(batches, 4)) == 30
            assert started.wait(60)
            cluster.server.kill()
            with pytest.raises(TransientError) as caught:
                for _ in batches:
                    pass
        thread.join(60)
        assert (wrong, len(errors)) == ([], 1)
        assert caught.value.side_down

        database = postgres_server.new_database()
        configured = configuration(cluster, index, postgres_server.url(database), tmp_path)
        with ThreadPoolExecutor(1) as pool:
            report = pool.submit(run, configured)
            cluster.server.start()
            assert report.result()["windows"] == {"loaded": 7}
        assert landed(flights, postgres_server, database) == counted(flights, rows)
        assert side.count(YEAR) == len(rows)


def ran(*command: str | Path, **options: Any) -> None:
    """A program that ended well, in an environment that knows nothing of this checkout."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    clean |= options.pop("env", {})
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=clean, **options)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a new environment, into which the tutorial's own command installs built wheels."""
    folder = tmp_path_factory.mktemp("installed")
    for source in (ROOT, *(ROOT / "plugins" / name for name in ("es_source", "objects", "sql"))):
        ran(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder / "dist", source)
    ran(sys.executable, "-m", "venv", folder / "venv")
    (command,) = re.findall(r"^\$ pip (install .*)", TUTORIAL.read_text(), re.MULTILINE)
    ran(folder / "venv/bin/python", "-m", "pip", *shlex.split(command), cwd=folder)
    return folder / "venv/bin"


def test_the_tutorial(cluster: Any, flights: Any, postgres_server: Any, installed: Path, tmp_path: Path) -> None:
    """Its file and its commands, as they stand there, from the wheels alone."""
    text = TUTORIAL.read_text()
    (configured,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert len([line for line in configured.splitlines() if line.strip()]) <= 12
    (tmp_path / "pipeline.toml").write_text(configured)
    rows = [row for row in flights.sample_rows() if row[1] == 3]
    index = indexed(cluster, flights, rows, "@timestamp")
    cluster.client.indices.put_alias(index=index, name="flights")
    database = postgres_server.new_database()
    try:
        environment = {"ELASTICSEARCH_HOST": cluster.url, "TARGET_URL": postgres_server.url(database)}
        for command in re.findall(r"^\$ (pipeline-core .*)|`(pipeline-core [\w ]+)`", text, re.MULTILINE):
            program, *arguments = "".join(command).split()
            extra = ["--to", "2013-03-20"] if arguments == ["run"] else []
            ran(installed / program, *arguments, *extra, env=environment, cwd=tmp_path)
    finally:
        cluster.client.indices.delete_alias(index=index, name="flights")
    assert landed(flights, postgres_server, database, "@timestamp") == counted(flights, rows)
