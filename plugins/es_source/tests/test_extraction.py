"""Extraction on genuine servers: every type, every way a document may be written, every way it may end."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from typing import Any

import pyarrow as pa
import pytest

from pipeline_core import ExtractRequest, PermanentError, SideError, TransientError, Window

AT = 1_362_873_600_000_000  # 2013-03-10T00:00:00Z
DAY = Window.from_us(AT, AT + 24 * 3_600_000_000)
NOON = "2013-03-10T12:00:00Z"
DATE = {"at": {"type": "date"}}


def extracted(side: Any, window: Window = DAY, **more: Any) -> pa.Table:
    with closing(side.extract(ExtractRequest(window, **more))) as batches:
        return pa.concat_tables(pa.table(batch) for batch in batches)


def one(cluster: Any, properties: Mapping[str, Any], document: Mapping[str, Any], **settings: Any) -> dict[str, Any]:
    """The one row that a document becomes."""
    index = cluster.index({**DATE, **properties}, {"at": NOON, **document})
    with cluster.side(index, **settings) as side:
        (row,) = extracted(side).to_pylist()
        return {name: value for name, value in row.items() if name != "at"}


def test_every_type(cluster: Any) -> None:
    """Each as its column; what no column type holds as JSON text."""
    cases: dict[str, tuple[Any, Any, Any]] = {
        "k": ({"type": "keyword"}, "O'Hare", "O'Hare"),
        "t": ({"type": "text", "fields": {"raw": {"type": "keyword"}}}, "a b", "a b"),
        "l": ({"type": "long"}, -(2**63), -(2**63)),
        "i": ({"type": "integer"}, "7", 7),
        "s": ({"type": "short"}, 7.9, 7),
        "b": ({"type": "byte"}, -128, -128),
        "u": ({"type": "unsigned_long"}, 2**64 - 1, 2**64 - 1),
        "d": ({"type": "double"}, 0.1, 0.1),
        "f": ({"type": "float"}, 0.1, 0.1),
        "h": ({"type": "half_float"}, 1, 1.0),
        "sf": ({"type": "scaled_float", "scaling_factor": 100}, 1.25, 1.25),
        "bo": ({"type": "boolean"}, "true", True),
        "ip": ({"type": "ip"}, "10.0.0.1", "10.0.0.1"),
        "geo": ({"type": "geo_point"}, {"lat": 40.6, "lon": -73.8}, '{"lat":40.6,"lon":-73.8}'),
        "n": ({"type": "nested", "properties": {"x": {"type": "long"}}}, [{"x": 1}, {"x": 2}], '[{"x":1},{"x":2}]'),
        "fl": ({"type": "flattened"}, {"any": {"thing": 1}}, '{"any":{"thing":1}}'),
        "off": ({"type": "object", "enabled": False}, {"a": [1]}, '{"a":[1]}'),
        "null": ({"type": "keyword"}, None, None),
    }
    # Modules that the archive leaves out take some types with them.
    missing = {name for name, (mapping, _, _) in cases.items() if not known(cluster, mapping)}
    assert missing <= {"sf", "u", "fl"}
    cases = {name: case for name, case in cases.items() if name not in missing}
    row = one(cluster, {name: case[0] for name, case in cases.items()}, {name: case[1] for name, case in cases.items()})
    assert row == {name: case[2] for name, case in cases.items()}


def put_letters(cluster: Any, index: str, id_: str, source: str) -> None:
    """Indexes a document letter for letter."""
    json = {"content-type": "application/json", "accept": "application/json"}
    cluster.client.perform_request("PUT", f"/{index}/_doc/{id_}?refresh=true", headers=json, body=source)


def known(cluster: Any, mapping: Mapping[str, Any]) -> bool:
    from elasticsearch import BadRequestError

    try:
        cluster.client.indices.delete(index=cluster.index({"x": mapping}))
    except BadRequestError:
        return False
    return True


@pytest.mark.parametrize(
    ("mapping", "value", "expected"),
    [
        ({"type": "date"}, "2013-03-10", "2013-03-10 00:00:00+00:00"),
        ({"type": "date"}, "2013-03-10T05:06:07.123-05:00", "2013-03-10 10:06:07.123000+00:00"),
        ({"type": "date"}, 1_362_891_967_123, "2013-03-10 05:06:07.123000+00:00"),
        ({"type": "date"}, 2013, "2013-01-01 00:00:00+00:00"),
        ({"type": "date", "format": "epoch_millis"}, 2013, "1970-01-01 00:00:02.013000+00:00"),
        ({"type": "date", "format": "epoch_second"}, 1_362_891_967, "2013-03-10 05:06:07+00:00"),
        ({"type": "date", "format": "dd/MM/yyyy HH:mm"}, "10/03/2013 05:06", "2013-03-10 05:06:00+00:00"),
        ({"type": "date_nanos"}, "2013-03-10T05:06:07.123456789Z", "2013-03-10 05:06:07.123456+00:00"),
    ],
)
def test_dates_in_any_format(cluster: Any, mapping: dict[str, Any], value: object, expected: str) -> None:
    """As the server reads them, to the microsecond."""
    assert str(one(cluster, {"when": mapping}, {"when": value})["when"]) == expected


@pytest.mark.parametrize("shape", ["fields", "document"])
def test_a_timestamp_in_a_format_of_its_own(cluster: Any, shape: str) -> None:
    """And one that is an alias of another field."""
    properties = {"at": {"type": "date", "format": "epoch_second"}, "also": {"type": "alias", "path": "at"}}
    index = cluster.index(properties, {"at": AT // 10**6 + 5})
    for name in ("at", "also"):
        with cluster.side(index, timestamp_field=name, shape=shape) as side:
            assert extracted(side).column(name).cast(pa.int64()).to_pylist() == [AT + 5_000_000]


def test_a_timestamp_that_is_in_no_document(cluster: Any) -> None:
    """A multi-field is read as the timestamp of whole documents only; and no row has a list of times."""
    also = {"type": "keyword", "fields": {"at": {"type": "date"}}}
    index = cluster.index({**DATE, "when": also}, {"at": NOON, "when": NOON})
    with cluster.side(index, timestamp_field="when.at") as side, pytest.raises(SideError, match="is in no _source"):
        extracted(side)
    with cluster.side(index, timestamp_field="when.at", shape="document") as side:
        assert [at.isoformat() for at in extracted(side).column("when.at").to_pylist()] == ["2013-03-10T12:00:00+00:00"]
    with cluster.side(index, lists=frozenset({"at"})) as side, pytest.raises(SideError, match="names the timestamp"):
        extracted(side)


def test_names_with_dots(cluster: Any) -> None:
    """Objects, dotted keys, and both at once are the same columns."""
    properties = {"a": {"properties": {"b": {"type": "long"}, "c": {"type": "keyword"}}}}
    assert one(cluster, properties, {"a": {"b": 1, "c": "x"}}) == {"a.b": 1, "a.c": "x"}
    assert one(cluster, properties, {"a.b": 1, "a": {"c": "x"}}) == {"a.b": 1, "a.c": "x"}
    assert one(cluster, {"p.q": {"type": "long"}}, {"p": {"q": 3}}) == {"p.q": 3}


def test_several_values(cluster: Any) -> None:
    """A list where the configuration says so; otherwise an error that names the document."""
    tags = {"tags": {"type": "keyword"}}
    assert one(cluster, tags, {"tags": ["a", "b"]}, lists=frozenset({"tags"})) == {"tags": ["a", "b"]}
    assert one(cluster, tags, {"tags": "a"}, lists=frozenset({"tags"})) == {"tags": ["a"]}
    with pytest.raises(PermanentError, match=r"field 'tags': found .*\[\"a\",\"b\"\].*name it under lists"):
        one(cluster, tags, {"tags": ["a", "b"]})
    with pytest.raises(SideError, match="lists names \\['tag'\\]"):
        one(cluster, tags, {"tags": "a"}, lists=frozenset({"tag"}))


def test_several_timestamps_are_no_row(cluster: Any) -> None:
    """The document has no one time; in either shape the error says so."""
    index = cluster.index(DATE, {"at": [NOON, "2013-03-10T13:00:00Z"]})
    for shape in ("fields", "document"):
        with cluster.side(index, shape=shape) as side, pytest.raises(PermanentError, match="field 'at'"):
            extracted(side)


def test_a_whole_document_letter_for_letter(cluster: Any) -> None:
    """Its numbers as they were written, what is empty, what is not mapped, the order of its keys."""
    import json

    source = '{"z":1.10,"at":"2013-03-10T12:00:00Z","big":123456789012345678901234567890,"o":{},"l":[],"s":"\\u00e9 é"}'
    index = cluster.index({**DATE, "big": {"type": "keyword"}, "o": {"type": "object"}})
    put_letters(cluster, index, "x%2F1", source)
    with cluster.side(index, shape="document") as side:
        table = extracted(side)
        assert table.column_names == ["_id", "_index", "at", "_source"]
        (row,) = table.to_pylist()
        assert (row["_id"], row["_index"], row["_source"]) == ("x/1", index, source)
        assert json.loads(row["_source"])["at"] == row["at"].isoformat().replace("+00:00", "Z")
        assert extracted(side, exclude=frozenset({"_id"})).column_names == ["_index", "at", "_source"]
        with pytest.raises(SideError, match="exclude"):
            extracted(side, exclude=frozenset({"at"}))


def test_texts_are_what_the_index_holds(cluster: Any) -> None:
    """A number as it was written, not as Python would write it; half a character is none."""
    index = cluster.index({**DATE, "k": {"type": "keyword"}})
    numbers = ["19.90", "12345678901234567.89", "1e5", "123456789012345678901234567890"]
    for at, number in enumerate(numbers):
        put_letters(cluster, index, str(at), f'{{\n "at": "{NOON}",\n "k": {number}\n}}')
    terms = cluster.client.search(index=index, size=0, aggregations={"k": {"terms": {"field": "k"}}})
    assert {bucket["key"] for bucket in terms["aggregations"]["k"]["buckets"]} == set(numbers)
    put_letters(cluster, index, "half", f'{{"at":"{NOON}","k":"abc\\ud83d"}}')
    with cluster.side(index) as side:
        assert sorted(extracted(side).column("k").to_pylist()) == sorted([*numbers, "abc�"])
    with cluster.side(index, shape="document") as side:
        assert f'{{"at":"{NOON}","k":"abc\\ufffd"}}' in extracted(side).column("_source").to_pylist()


def test_dates_that_the_index_does_not_hold_so(cluster: Any) -> None:
    """Malformed ones that Python could read all the same, and a year before 0."""
    when = {"when": {"type": "date", "ignore_malformed": True}}
    for value in ("2013-03-10 05:06:07", "2013-03-10T05:06:07+25:00", -2013):
        with pytest.raises(PermanentError, match="field 'when': found"):
            one(cluster, when, {"when": value})


def test_indices_that_differ(cluster: Any) -> None:
    """A field that one of them lacks is NULL, widths widen, and what contradicts itself is an error until excluded."""
    one_ = cluster.index({**DATE, "n": {"type": "integer"}, "x": {"type": "long"}}, {"at": NOON, "n": 1, "x": 1})
    other = cluster.index({**DATE, "n": {"type": "long"}, "m": {"type": "text"}}, {"at": NOON, "n": 2**40, "m": "b"})
    with cluster.side(f"{one_},{other}") as side:
        table = extracted(side)
        assert table.schema.field("n").type == pa.int64()
        found = sorted(table.select(["n", "m", "x"]).to_pylist(), key=lambda row: row["n"])
        assert found == [{"n": 1, "m": None, "x": 1}, {"n": 2**40, "m": "b", "x": None}]
    clash = cluster.index({**DATE, "n": {"type": "keyword"}}, {"at": NOON, "n": "a"})
    deep = cluster.index({**DATE, "n": {"properties": {"x": {"type": "long"}}}}, {"at": NOON, "n": {"x": 1}})
    with cluster.side(f"{one_},{clash}") as side:
        with pytest.raises(SideError, match=f"'n' is int32 in '{one_}' and string in '{clash}'"):
            extracted(side)
        assert sorted(extracted(side, exclude=frozenset({"n"})).column_names) == ["at", "x"]
    with cluster.side(f"{one_},{deep}") as side:
        with pytest.raises(SideError, match=r"'n' is a value, and also an object that holds 'n\.x'"):
            extracted(side)
        assert len(extracted(side, exclude=frozenset({"n"}))) == 2
    both = {"n": {"type": "long"}, "n.max": {"type": "long"}}
    flat = cluster.index({**DATE, **both}, {"at": NOON, "n": 1, "n.max": 2}, subobjects=False)
    with cluster.side(flat) as side:
        with pytest.raises(SideError, match=r"'n' is a value, and also an object that holds 'n\.max'"):
            extracted(side)
        assert extracted(side, exclude=frozenset({"n"})).column("n.max").to_pylist() == [2]


@pytest.mark.parametrize("source", [{"enabled": False}, {"excludes": ["n"]}])
def test_an_index_that_keeps_no_source(cluster: Any, source: dict[str, Any]) -> None:
    """Its documents can be counted, and not be read back."""
    index = cluster.index({**DATE, "n": {"type": "long"}}, {"at": NOON, "n": 1}, _source=source)
    with cluster.side(index) as side:
        assert side.count(DAY) == 1
        with pytest.raises(SideError, match="_source"):
            extracted(side)


@pytest.mark.parametrize("slices", [1, 2, 5])
def test_many_pages_and_slices(cluster: Any, slices: int) -> None:
    """Each document once, none twice, whichever way it is read; and nothing is left open."""
    documents = [{"at": (AT + n * 1_000_000) // 1000, "n": n} for n in range(2_345)]
    for document in documents[::7]:
        document["at"] = "2013-03-10T12:00:00.5Z"
    index = cluster.index({**DATE, "n": {"type": "long"}}, *documents)
    before = cluster.open_points_in_time()
    with cluster.side(index, slices=slices, page_rows=100) as side:
        table = extracted(side)
        assert sorted(table.column("n").to_pylist()) == list(range(2_345))
        assert cluster.open_points_in_time() == before


def test_pages_of_large_documents_are_small(cluster: Any) -> None:
    """A server has to hold an answer in memory, however many documents it is of."""
    text = "lorem ipsum " * 8_500  # 102 kB
    index = cluster.index({**DATE, "text": {"type": "keyword", "index": False, "doc_values": False}})
    for _ in range(3):
        cluster.put(index, *({"at": NOON, "text": text} for _ in range(100)))
    with cluster.side(index, slices=1) as side, closing(side.extract(ExtractRequest(DAY))) as batches:
        found = [(len(batch), batch.nbytes) for batch in batches]
    assert sum(rows for rows, _ in found) == 300
    assert max(size for _, size in found) < 20_000_000


def test_a_page_too_many_for_the_server_is_asked_smaller(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where small documents are followed by large ones, those before them were no guide."""
    from pipeline_elasticsearch.client import Client
    from pipeline_elasticsearch.faults import refused

    error = {"type": "circuit_breaking_exception", "reason": "[parent] Data too large"}
    sizes, ask = [], Client.ask

    def short_of_memory(self: Client, method: str, path: str, parameters: Any = None, body: Any = None) -> bytes:
        if body is not None and "size" in body:
            sizes.append(body["size"])
            if body["size"] > most:
                raise refused(self.place, 429, {"error": error})
        return ask(self, method, path, parameters, body)

    index = cluster.index(DATE, *({"at": NOON} for _ in range(250)))
    monkeypatch.setattr(Client, "ask", short_of_memory)
    with cluster.side(index, slices=1) as side:
        most = 100
        assert len(extracted(side)) == 250
        assert sizes == [100, 10_000, 100, 10_000, 100]
        most = 99
        with pytest.raises(TransientError, match="Data too large") as caught:
            extracted(side)
    assert caught.value.side_down


def test_a_value_that_fits_no_way_ends_the_extraction(cluster: Any) -> None:
    """And leaves nothing open."""
    index = cluster.index({**DATE, "n": {"type": "long", "ignore_malformed": True}}, {"at": NOON, "n": "many"})
    before = cluster.open_points_in_time()
    with cluster.side(index) as side, pytest.raises(PermanentError, match=r"found .*many.*, expected int64"):
        extracted(side)
    assert cluster.open_points_in_time() == before


def test_a_time_that_the_index_does_not_hold(cluster: Any) -> None:
    """A `date` keeps milliseconds: a document that says more lies elsewhere than its window, where one is cut finer."""
    index = cluster.index(DATE, {"at": "2013-03-10T12:00:00.000900Z"})
    noon = AT + 12 * 3_600_000_000
    with cluster.side(index) as side:
        assert len(extracted(side)) == 1
        window = Window.from_us(noon, noon + 500)
        assert side.count(window) == 1
        with pytest.raises(PermanentError, match="keeps whole milliseconds"):
            extracted(side, window)


def test_a_lost_point_in_time_restarts_the_window(cluster: Any) -> None:
    """Positions mean nothing in another one, so the error says that it can heal, and the next try reads it all."""
    index = cluster.index({**DATE, "n": {"type": "long"}}, *({"at": NOON, "n": n} for n in range(10)))
    with cluster.side(index, slices=1, page_rows=3) as side:
        with closing(side.extract(ExtractRequest(DAY))) as batches:
            assert len(next(batches)) == 0
            cluster.server.stop()
            cluster.server.start()
            with pytest.raises(TransientError, match="lost its point in time"):
                next(batches)
        assert sorted(extracted(side).column("n").to_pylist()) == list(range(10))
