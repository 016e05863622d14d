"""Extraction from Elasticsearch and counts of many windows, beside the official client, dlt and elasticdump.

Starts a genuine server (tools/elasticsearch_server.py). In turns, on one machine; only ratios within one run mean
anything, for the server shares the cores.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

from elastic_transport import OrjsonSerializer
from elasticsearch import Elasticsearch

from pipeline_core import Context, ExtractRequest, Secret, StageRequest, Window
from pipeline_elasticsearch import ElasticsearchSettings
from pipeline_objects import ObjectStageSettings

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "examples/flights"), str(ROOT / "tools")]

from elasticsearch_server import Server  # noqa: E402
from flights import COLUMNS, year_rows  # noqa: E402

ELASTICDUMP = "elasticdump@6.125.1"
INDEX, FIELD = "flights", "time_hour"
PAGE = 10_000
HOUR_US = 3_600_000_000
OFTENER = 50  # what takes milliseconds is measured so many times as often
YEAR = Window.from_us(1_356_998_400_000_000, 1_356_998_400_000_000 + 366 * 24 * HOUR_US)
KINDS = {"INTEGER": "integer", "REAL": "double", "TEXT": "keyword", "TIMESTAMP": "date"}


def fill(client: Elasticsearch, copies: int) -> int:
    """An index of two shards that holds the year of flights so many times; returns its documents."""
    mapping = {"properties": {name: {"type": KINDS[kind]} for name, kind in COLUMNS.items()}}
    settings = {"number_of_shards": 2, "number_of_replicas": 0, "requests.cache.enable": False}
    client.indices.create(index=INDEX, mappings=mapping, settings=settings)
    done = 0
    for _ in range(copies):
        rows = year_rows()
        while chunk := list(islice(rows, 5_000)):
            operations: list[Any] = []
            for row in chunk:
                document = dict(zip(COLUMNS, row, strict=True))
                operations += [{"index": {}}, document | {FIELD: f"{str(document[FIELD]).replace(' ', 'T')}Z"}]
            client.bulk(index=INDEX, operations=operations)
            done += len(chunk)
    client.indices.refresh(index=INDEX)
    client.indices.forcemerge(index=INDEX, max_num_segments=1)
    return done


def loop(client: Elasticsearch) -> Iterator[list[Any]]:
    """The official client's own way: one point in time, page after page."""
    pit, after = client.open_point_in_time(index=INDEX, keep_alive="5m")["id"], None
    span = {"gte": YEAR.start_us // 1000, "lt": YEAR.end_us // 1000, "format": "epoch_millis"}
    more: dict[str, Any] = {}
    try:
        while True:
            answer = client.search(
                pit={"id": pit, "keep_alive": "5m"},
                query={"bool": {"filter": [{"range": {FIELD: span}}]}},
                sort=[{"_shard_doc": "asc"}],
                size=PAGE,
                track_total_hits=False,
                filter_path="pit_id,timed_out,_shards,hits.hits._id,hits.hits._source,hits.hits.sort",
                **more,
            )
            hits = answer.body.get("hits", {}).get("hits", [])
            yield hits
            if len(hits) < PAGE:
                return
            after = hits[-1]["sort"]
            more = {"search_after": after}
    finally:
        client.close_point_in_time(id=pit)


def bare(client: Elasticsearch) -> int:
    """Documents thrown away."""
    return sum(map(len, loop(client)))


def ours(url: str, folder: Path, slices: int) -> int:
    """From the index to staged Parquet, manifest and all."""
    source = ElasticsearchSettings(INDEX, Secret(url), timestamp_field=FIELD, slices=slices)
    request = StageRequest("bench/1_2/3", "bench", YEAR, 3, {})
    with source.open(Context("bench")) as side, ObjectStageSettings(folder.as_uri()).open(Context("bench")) as stage:
        with closing(side.extract(ExtractRequest(YEAR))) as batches:
            rows = stage.write(request, batches).rows
        stage.remove(request.key)
    return rows


def by_dlt(client: Elasticsearch, folder: Path) -> int:
    """The same loop as a resource of dlt, into its Parquet files."""
    import dlt
    from dlt.destinations import filesystem

    seen = 0

    def pages() -> Iterator[list[Any]]:
        nonlocal seen
        for hits in loop(client):
            seen += len(hits)
            yield [hit["_source"] for hit in hits]

    name = f"bench_{time.time_ns()}"
    pipeline = dlt.pipeline(
        name, pipelines_dir=str(folder / "dlt"), destination=filesystem(bucket_url=(folder / name).as_uri())
    )
    pipeline.run(dlt.resource(pages, name="flights"), loader_file_format="parquet")
    return seen


def elasticdump(folder: Path) -> Path | None:
    """The program, which npm puts into the folder; None where there is no npm."""
    npm = shutil.which("npm")
    if npm is None:
        return None
    wanted = ["--no-save", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts", ELASTICDUMP]
    subprocess.run([npm, "install", "--silent", "--prefix", folder, *wanted], check=True)
    return folder / "node_modules/.bin/elasticdump"


@contextmanager
def with_root(url: str) -> Iterator[str]:
    """A relay that answers `GET /` too: elasticdump asks for it first, and the archive's server lacks that module."""

    class Relay(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/":
                self.answer(200, b'{"version": {"number": "8.0.0"}}')
                return
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            with closing(HTTPConnection(urlsplit(url).netloc)) as connection:
                connection.request(self.command, self.path, body, {"content-type": "application/json"})
                response = connection.getresponse()
                self.answer(response.status, response.read())

        do_POST = do_DELETE = do_GET  # noqa: N815 - the base class names them so

        def answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Relay) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def by_elasticdump(program: Path, url: str, folder: Path) -> int:
    """Its own format, which is JSON by the line: it writes no Parquet."""
    output = folder / "dump.json"
    command = [
        str(program),
        f"--input={url}/{INDEX}",
        f"--output={output}",
        "--type=data",
        f"--limit={PAGE}",
        "--quiet",
    ]
    subprocess.run(command, check=True, capture_output=True)
    with output.open("rb") as file:
        rows = sum(1 for _ in file)
    output.unlink()
    return rows


def timed(act: Callable[[], object], expected: object) -> float:
    begun = time.perf_counter()
    found = act()
    took = time.perf_counter() - begun
    if found != expected:
        raise SystemExit(f"found {found}, expected {expected}")
    return took


def compare(ways: dict[str, Callable[[], object]], expected: object, rounds: int) -> dict[str, float]:
    """The median seconds of each way, all of them in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, act in ways.items():
            seconds[name].append(timed(act, expected))
    return {name: statistics.median(each) for name, each in seconds.items()}


def extraction(url: str, documents: int, rounds: int, folder: Path) -> None:
    """Prints documents a second of every way, and its part of the bare loop's by orjson."""
    plain = Elasticsearch(url, request_timeout=120)
    fast = Elasticsearch(url, request_timeout=120, serializer=OrjsonSerializer())
    ways: dict[str, Callable[[], object]] = {
        "official client, its JSON, thrown away": lambda: bare(plain),
        "official client, orjson, thrown away": lambda: bare(fast),
        "ours, 1 slice, staged Parquet": lambda: ours(url, folder / "stage", 1),
        "ours, 2 slices, staged Parquet": lambda: ours(url, folder / "stage", 2),
    }
    try:
        import dlt  # noqa: F401
    except ImportError:
        print("dlt is not installed: left out")
    else:
        ways["dlt, orjson, Parquet"] = lambda: by_dlt(fast, folder)
    program = elasticdump(folder / "npm")
    if program is None:
        print("elasticdump cannot be had without npm: left out")
    else:
        ways["elasticdump, lines of JSON"] = lambda: by_elasticdump(program, relayed, folder)
    with with_root(url) as relayed:
        found = compare(ways, documents, rounds)
    reference = found["official client, orjson, thrown away"]
    print(f"{documents:,} documents of {len(COLUMNS)} fields, 2 shards; medians of {rounds}")
    for name, seconds in found.items():
        print(f"{name:40} {documents / seconds / 1000:8.0f} k/s {reference / seconds:8.2f}x orjson", flush=True)


def counts(url: str, rounds: int) -> None:
    """Prints the milliseconds that 1,000 window counts take, by each way."""
    client = Elasticsearch(url, request_timeout=120, serializer=OrjsonSerializer())
    step = (YEAR.end_us - YEAR.start_us) // 1000 // HOUR_US * HOUR_US
    windows = [Window.from_us(YEAR.start_us + n * step, YEAR.start_us + (n + 1) * step) for n in range(1000)]
    settings = ElasticsearchSettings(INDEX, Secret(url), timestamp_field=FIELD)

    def body(window: Window) -> dict[str, Any]:
        span = {"gte": window.start_us // 1000, "lt": window.end_us // 1000, "format": "epoch_millis"}
        return {"size": 0, "track_total_hits": True, "query": {"bool": {"filter": [{"range": {FIELD: span}}]}}}

    def one_request(kind: str = "date_range") -> Sequence[int]:
        ranges = [
            {"key": str(n), "from": window.start_us // 1000, "to": window.end_us // 1000}
            for n, window in enumerate(windows)
        ]
        whole = body(Window.from_us(windows[0].start_us, windows[-1].end_us))
        wanted = {"w": {kind: {"field": FIELD, "format": "epoch_millis", "keyed": True, "ranges": ranges}}}
        read = "hits.total,aggregations.*.buckets.*.doc_count"
        buckets = client.search(index=INDEX, aggs=wanted, filter_path=read, **whole)["aggregations"]["w"]["buckets"]
        return [buckets[str(n)]["doc_count"] for n in range(1000)]

    def msearch() -> Sequence[int]:
        searches: list[Any] = [line for window in windows for line in ({}, body(window))]
        answers = client.msearch(index=INDEX, searches=searches)["responses"]
        return [answer["hits"]["total"]["value"] for answer in answers]

    def single() -> Sequence[int]:
        return [client.search(index=INDEX, **body(window))["hits"]["total"]["value"] for window in windows]

    with settings.open(Context("bench")) as side:
        quick: dict[str, Callable[[], object]] = {
            "bare, date_range": one_request,
            "bare, range": lambda: one_request("range"),
            "ours": lambda: list(side.count_many(windows)),
        }
        found = compare(quick, one_request(), rounds * OFTENER)
        found |= compare({"bare, _msearch": msearch, "bare, one by one": single}, one_request(), rounds)
    print(f"1,000 window counts; medians of {rounds * OFTENER}, of the slow ways of {rounds}")
    for name, seconds in found.items():
        print(f"{name:40} {seconds * 1000:8.0f} ms {seconds / found['bare, date_range']:8.2f}x", flush=True)


def main() -> None:
    """Starts a server, fills it, and measures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--version", default="8.19.0", help="of the server")
    parser.add_argument("--rounds", type=int, default=5, help="how often each way is gone")
    parser.add_argument("--copies", type=int, default=1, help="how many times the year of flights is indexed")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pipeline-es-") as home, tempfile.TemporaryDirectory() as folder:
        server = Server(chosen.version, Path(home))
        try:
            with closing(Elasticsearch(server.url, request_timeout=120)) as client:
                documents = fill(client, chosen.copies)
            extraction(server.url, documents, chosen.rounds, Path(folder))
            counts(server.url, chosen.rounds)
        finally:
            server.stop()


if __name__ == "__main__":
    main()
