"""Loading into genuine servers: it converges, whatever ends it, and a lower fence overwrites nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pyarrow as pa
import pytest

from pipeline_core import (
    Claim,
    ClaimLostError,
    ExtractRequest,
    Load,
    PermanentError,
    Record,
    SideError,
    Staged,
    TransientError,
    Window,
)
from pipeline_elasticsearch import publication

AT = 1_362_873_600_000_000  # 2013-03-10T00:00:00Z
DAY = Window.from_us(AT, AT + 24 * 3_600_000_000)
MAPPING = {"at": {"type": "date_nanos"}, "n": {"type": "long"}, "text": {"type": "keyword"}}


def rows(*numbers: int, **more: pa.Array) -> pa.Table:
    stamps = pa.array([AT + n for n in range(len(numbers))], pa.timestamp("us", "UTC"))
    return pa.table({"at": stamps, "n": pa.array(numbers, pa.int64()), **more})


def load(
    table: pa.Table, fence: int = 10, read: Callable[[], Any] | None = None, window: Window = DAY, **columns: str
) -> Load:
    staged = Staged(f"flights/{fence}", "flights", window, fence, len(table), (), "", {})
    claim = Claim("claim", Record("flights", window), fence)
    return Load(claim, staged, read or (lambda: (batch for batch in table.to_batches())), columns)


def publish(side: Any, given: Load) -> int:
    side.upload(given)
    with side.transaction() as verbs:
        verbs.guard(given)
        verbs.delete(given.window)
        verbs.insert(given)
        return int(verbs.count(given.window))


def held(side: Any) -> list[Any]:
    with closing(side.extract(ExtractRequest(DAY))) as batches:
        return sorted(n for batch in batches for n in batch.column("n").to_pylist())


def documents(*rows: tuple[object, object]) -> pa.Table:
    """Rows as the `document` shape gives them: `_id` and `_source`."""
    ids, sources = zip(*rows, strict=True)
    stamps = pa.array([AT] * len(rows), pa.timestamp("us", "UTC"))
    return pa.table({"_id": pa.array(ids, pa.string()), "at": stamps, "_source": pa.array(sources, pa.string())})


def test_equal_rows_are_as_many_documents(cluster: Any) -> None:
    """As often as they were staged, however often they are written."""
    table = pa.concat_tables([rows(1), rows(1), rows(1)])
    with cluster.side(cluster.index(MAPPING)) as side:
        assert publish(side, load(table)) == 3
        assert publish(side, load(table, 11)) == 3
        assert publish(side, load(rows(1), 12)) == 1


def test_a_key_names_the_documents(cluster: Any) -> None:
    """By timestamp and its fields' values; what names none, or two at once, is refused before anything is written."""
    index = cluster.index(MAPPING)
    with cluster.side(index, key=("n", "text")) as side:
        texts = pa.array(["a", "b"])
        assert publish(side, load(rows(1, 1, text=texts))) == 2
        ids = {hit["_id"] for hit in cluster.client.search(index=index)["hits"]["hits"]}
        assert ids == {'["2013-03-10T00:00:00Z",1,"a"]', '["2013-03-10T00:00:00.000001Z",1,"b"]'}
        with pytest.raises(PermanentError, match="has no 'text'"):
            side.upload(load(rows(1, text=pa.array([None], pa.string())), 12))
        with pytest.raises(PermanentError, match="bytes that an _id"):
            side.upload(load(rows(1, text=pa.array(["x" * 600])), 12))
        twice = pa.concat_tables([rows(1, text=pa.array(["a"]))] * 2)
        with pytest.raises(PermanentError, match=r"two staged rows .*expected at and the key n, text to tell"):
            side.upload(load(twice, 12))
        assert held(side) == [1, 1]


def test_one_key_in_two_windows_or_scopes_is_as_many_documents(cluster: Any) -> None:
    """None takes another's place."""
    index = cluster.index(MAPPING)
    next_day = Window.from_us(DAY.end_us, DAY.end_us + 24 * 3_600_000_000)
    later = rows(1).set_column(0, "at", pa.array([next_day.start_us], pa.timestamp("us", "UTC")))
    for scope in ("eu", "us"):
        texts = pa.array([scope])
        with cluster.side(index, key=("n",), scope={"text": scope}) as side:
            for table, window in ((rows(1), DAY), (later, next_day)):
                assert publish(side, load(table.append_column("text", texts), window=window)) == 1
    with cluster.side(index) as whole:
        assert list(whole.count_many([DAY, next_day])) == [2, 2]


@pytest.mark.parametrize(
    ("before", "after"), [(range(8, 10), range(4)), (range(7), range(2)), (range(4), range(4))], ids=len
)
def test_a_publication_that_broke_off_never_counts_as_whole(
    cluster: Any, monkeypatch: pytest.MonkeyPatch, before: range, after: range
) -> None:
    """Wherever it was, also where documents keep their `_id`; the ledger knows, and the next one ends the work."""
    monkeypatch.setattr("pipeline_elasticsearch.publication._CHUNK_DOCUMENTS", 2)
    monkeypatch.setattr("pipeline_elasticsearch.publication._PAGE_ROWS", 1)
    monkeypatch.setattr("pipeline_elasticsearch.publication._SLICES", 1)
    real, left = publication.write, [0]

    def dies(*arguments: Any, **more: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError
        real(*arguments, **more)

    monkeypatch.setattr("pipeline_elasticsearch.publication.write", dies)
    index = cluster.index(MAPPING)
    with cluster.side(index, key=("n",), refresh=True) as side:
        for requests in range(1, len(after) + len(before) + 1):
            left[0] = 99
            publish(side, load(rows(*before, text=pa.array(["old"] * len(before))), 10 * requests))
            given = load(rows(*after, text=pa.array(["new"] * len(after))), 10 * requests + 1)
            left[0] = requests
            try:
                publish(side, given)
            except RuntimeError:
                assert not side.published(given)
                found = side.count(DAY)
                whole = cluster.client.count(index=index, query={"term": {"text": "new"}})["count"] == len(after)
                assert found != len(after) or whole
            else:
                break
        assert side.published(given)
        assert side.count(DAY) == len(after)


def test_a_ledger_of_many_pages(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is read to its end: a coarser window replaces what each finer one has entered."""
    monkeypatch.setattr("pipeline_elasticsearch.target_ledger._PAGE", 2)
    minutes = [Window.from_us(AT + n * 1_000, AT + (n + 1) * 1_000) for n in range(5)]
    with cluster.side(cluster.index(MAPPING)) as side:
        for n, window in enumerate(minutes):
            at = pa.array([window.start_us], pa.timestamp("us", "UTC"))
            publish(side, load(rows(n).set_column(0, "at", at), 10 + n, window=window))
        with pytest.raises(ClaimLostError):
            publish(side, load(rows(7), 13))
        assert publish(side, load(rows(7), 14)) == 1
        for window in minutes:
            with pytest.raises(ClaimLostError):
                publish(side, load(rows(8).slice(0, 0), 13, window=window))


def test_a_worker_that_lost_its_window_overwrites_nothing(cluster: Any) -> None:
    """Guarded in time, late with its documents: the same ones are refused, and others give it away at the end."""
    index = cluster.index(MAPPING)
    for late_rows in (rows(1, 2), rows(7)):
        with cluster.side(index) as side, cluster.side(index) as late:
            stale = load(late_rows, 20)
            late.upload(stale)
            newer = load(rows(1, 2), 21)

            def overtaken(late: Any = late, side: Any = side, stale: Load = stale, newer: Load = newer) -> None:
                with late.transaction() as verbs:
                    verbs.guard(stale)
                    publish(side, newer)
                    verbs.insert(stale)

            with pytest.raises(ClaimLostError):
                overtaken()
            assert side.published(newer)
            assert not late.published(stale)
            cluster.client.indices.refresh(index=index)
            assert set(held(side)) >= {1, 2}
            # What the late worker added of its own shows in the count, and goes with the next publication.
            assert publish(side, load(rows(1, 2), 22)) == 2
            assert held(side) == [1, 2]
        cluster.client.indices.delete(index=index)
        index = cluster.index(MAPPING)


def test_a_worker_that_another_cut_overtook_does_not_publish(cluster: Any) -> None:
    """No document of a later fence is in its way; only the ledger knows of the wider window."""
    wide = Window.from_us(AT - 1_000, DAY.end_us)
    before = rows(5).set_column(0, "at", pa.array([wide.start_us], pa.timestamp("us", "UTC")))
    index = cluster.index(MAPPING)
    with cluster.side(index) as side, cluster.side(index) as late:
        stale, newer = load(rows(1), 20), load(before, 21, window=wide)
        late.upload(stale)

        def overtaken() -> None:
            with late.transaction() as verbs:
                verbs.guard(stale)
                assert publish(side, newer) == 1
                verbs.insert(stale)

        with pytest.raises(ClaimLostError):
            overtaken()
        assert not late.published(stale)
        assert side.published(newer)


@pytest.mark.parametrize("at", ["2013-03-10T12:00:00Z", "2013-03-20T12:00:00Z"], ids=["inside", "outside"])
def test_a_later_version_of_something_else_is_no_other_worker(cluster: Any, at: str) -> None:
    """Nobody has taken over, so the window waits for a person; the error names the document."""
    index = cluster.index(MAPPING)
    strange = {"id": '["2013-03-10T00:00:00Z",1]', "version": 10**18, "version_type": "external"}
    cluster.client.index(index=index, document={"at": at}, refresh=True, **strange)
    said = r"document '\[\"2013-03-10T00:00:00Z\",1\]' has a higher version than fence 10"
    with cluster.side(index, key=("n",)) as side, pytest.raises(PermanentError, match=said):
        publish(side, load(rows(1)))


def test_a_missing_index_is_made(cluster: Any) -> None:
    """With a field of each kind; until then it holds nothing, and without `create` it is an error."""
    index = f"{cluster.index(MAPPING)}-made"
    table = rows(
        1,
        short=pa.array([1], pa.int16()),
        ratio=pa.array([0.5]),
        flag=pa.array([True]),
        text=pa.array(["x"]),
        tags=pa.array([["a", "b"]]),
        day=pa.array([15_775], pa.date32()),
        nothing=pa.nulls(1),
        raw=pa.array([b"\x00\xff"]),
    )
    with cluster.side(index) as side, pytest.raises(SideError, match="no such index"):
        side.upload(load(table))
    with cluster.side(index, create=True, lists=frozenset({"tags"})) as side:
        assert (side.count(DAY), list(side.count_many([DAY])), side.excluded()) == (0, [0], 0)
        assert list(side.problems()) == []
        assert publish(side, load(table)) == 1
        with closing(side.extract(ExtractRequest(DAY))) as batches:
            (row,) = pa.concat_tables(pa.table(batch) for batch in batches).to_pylist()
    assert str(row.pop("day")) == "2013-03-11 00:00:00+00:00"
    assert {**row, "at": str(row["at"])} == {
        "at": "2013-03-10 00:00:00+00:00",
        "n": 1,
        "short": 1,
        "ratio": 0.5,
        "flag": True,
        "text": "x",
        "tags": ["a", "b"],
        "nothing": None,
        "raw": "AP8=",
    }


def test_a_missing_index_of_whole_documents_is_made(cluster: Any) -> None:
    """With the timestamp; the server maps the rest as documents come."""
    index = f"{cluster.index(MAPPING)}-made"
    with cluster.side(index, create=True, shape="document") as side:
        assert list(side.ddl(documents(("a", "{}")), {})) == []
        assert list(side.problems()) == []
        assert publish(side, load(documents(("a", '{"at": "2013-03-10T12:00:00Z", "n": 1}')))) == 1
        assert list(side.problems()) == []


def test_an_index_that_is_made_takes_long_texts(cluster: Any) -> None:
    """Longer ones than the server would make searchable, of the longest characters too."""
    index = f"{cluster.index(MAPPING)}-made"
    texts = ["x" * 40_000, "🛫" * 8_191]
    with cluster.side(index, create=True) as side:
        assert publish(side, load(rows(1, 2, text=pa.array(texts)))) == 2
        with closing(side.extract(ExtractRequest(DAY))) as batches:
            assert sorted(text for batch in batches for text in batch.column("text").to_pylist()) == sorted(texts)


def test_json_text_becomes_what_it_says(cluster: Any) -> None:
    """Where the field takes objects; text that is no JSON is refused before anything is written."""
    mapping = {**MAPPING, "geo": {"type": "geo_point"}}
    with cluster.side(cluster.index(mapping)) as side:
        assert publish(side, load(rows(1, geo=pa.array(['{"lat":1.5,"lon":2}'])))) == 1
        with closing(side.extract(ExtractRequest(DAY))) as batches:
            assert [v for batch in batches for v in batch.column("geo").to_pylist()] == ['{"lat":1.5,"lon":2}']
        with pytest.raises(PermanentError, match="no JSON text"):
            side.upload(load(rows(1, geo=pa.array(["{"])), 11))


def test_a_document_of_several_lines(cluster: Any) -> None:
    """Is copied as it is, but on one line: its numbers and texts stay letter for letter."""
    index = cluster.index(MAPPING)
    text = '{\n  "at": "2013-03-10T12:00:00Z",\n  "ratio": 1.10, "text": "a\\n \\u00e9 b"\n}'
    with cluster.side(index, shape="document") as side:
        assert publish(side, load(documents(("a", text), ("b", '{"at": "2013-03-10T12:00:00Z"}')))) == 2
        with closing(side.extract(ExtractRequest(DAY))) as batches:
            found = {row["_id"]: row["_source"] for batch in batches for row in batch.to_pylist()}
    assert found == {
        "a": '{"at":"2013-03-10T12:00:00Z","ratio":1.10,"text":"a\\n \\u00e9 b"}',
        "b": '{"at": "2013-03-10T12:00:00Z"}',
    }


@pytest.mark.parametrize(
    ("table", "text"),
    [
        (documents(("a", '{}\n{"delete": {"_id": "b"}}')), "document 'a': found .* no JSON text"),
        (documents(("a", '{"text": "line\nbreak"}')), "document 'a': found .* no JSON text"),
        (documents(("a", None)), "document 'a': found .*NoneType"),
        (documents((None, "{}")), "has no '_id'"),
        (documents(("a", "{}"), ("a", "{}")), "two staged rows that would both be document 'a', expected _id"),
    ],
)
def test_whole_documents_that_do_not_fit(cluster: Any, table: pa.Table, text: str) -> None:
    """Are refused by the upload; a line within one is never taken for a request of its own."""
    index = cluster.index(MAPPING)
    with cluster.side(index, shape="document") as side, pytest.raises(PermanentError, match=text):
        side.upload(load(table))


@pytest.mark.parametrize(
    ("table", "text"),
    [
        (rows(1, other=pa.array([1])), "maps no field for the staged \\['other'\\]"),
        (rows(1).drop_columns("at"), "no staged column becomes \\['at'\\]"),
        (rows(1).set_column(0, "at", pa.array(["2013"])), "expected a timestamp with a zone"),
        (
            rows(1).set_column(0, "at", pa.array([DAY.end_us], pa.timestamp("us", "UTC"))),
            "expected an instant of window",
        ),
        (rows(1).set_column(0, "at", pa.nulls(1, pa.timestamp("us", "UTC"))), "none at all"),
        (rows(1, ratio=pa.array([float("nan")])), "NaN or infinity"),
        (rows(1, ratio=pa.array([[1.0, float("inf")]])), "NaN or infinity"),
        (rows(1, ratio=pa.array([[{"a": [float("-inf")]}]])), "NaN or infinity"),
    ],
)
def test_rows_that_do_not_fit(cluster: Any, table: pa.Table, text: str) -> None:
    """Are refused by the upload, before anything is written."""
    with cluster.side(cluster.index({**MAPPING, "ratio": {"type": "double"}})) as side:
        with pytest.raises(PermanentError, match=text):
            side.upload(load(table))
        assert side.count(DAY) == 0


@pytest.mark.parametrize(
    ("format_", "reads"),
    [
        ("epoch_millis", False),
        ("epoch_second||yyyy-MM-dd", False),
        ("strict_date_time_no_millis", False),
        ("yyyy-MM-dd'T'HH:mm:ss[.SSSSSS]X", True),
        ("epoch_second||strict_date_optional_time", True),
    ],
)
def test_a_timestamp_that_is_written_otherwise(cluster: Any, format_: str, reads: bool) -> None:
    """Where its format does not read what is written, no window can be loaded: a fault of the side, found at once."""
    index = cluster.index({**MAPPING, "at": {"type": "date", "format": format_}})
    with cluster.side(index) as side:
        if reads:
            assert publish(side, load(rows(1))) == 1
            return
        for refuse in (lambda: side.ddl(rows(1), {}), lambda: side.upload(load(rows(1)))):
            with pytest.raises(SideError, match="'at': the format of its mapping does not read"):
                refuse()


@pytest.mark.parametrize("create", [False, True])
def test_columns_that_no_field_takes_are_found_without_a_load(cluster: Any, *, create: bool) -> None:
    """`ddl`, by which `doctor` asks, refuses them as an upload does: a fault of the side where every window would."""
    index = "made-when-loaded" if create else cluster.index(MAPPING)
    with cluster.side(index, create=create) as side:
        assert list(side.ddl(rows(1), {})) == []
        for refuse in (lambda: side.ddl(rows(1), {"at": "ts"}), lambda: side.upload(load(rows(1), at="ts"))):
            with pytest.raises(SideError, match=r"no staged column becomes \['at'\]"):
                refuse()
        if not create:
            with pytest.raises(PermanentError, match=r"maps no field for the staged \['m'\]"):
                side.ddl(rows(1), {"n": "m"})
    with cluster.side(index, query={"match_all": {}}) as side, pytest.raises(SideError, match="query limits a source"):
        side.ddl(rows(1), {})


def test_a_document_that_the_index_refuses(cluster: Any) -> None:
    """A value that its field cannot hold: the error names the document and the cause."""
    index = cluster.index({**MAPPING, "text": {"type": "ip"}})
    said = r"document '.*' is refused: .*is not an IP string literal"
    with cluster.side(index) as side, pytest.raises(PermanentError, match=said) as caught:
        publish(side, load(rows(1, text=pa.array(["no address"]))))
    assert not isinstance(caught.value, SideError)


def test_a_target_is_one_index(cluster: Any) -> None:
    """Not two behind an alias, and not a part of one by a query."""
    one, other = cluster.index(MAPPING), cluster.index(MAPPING)
    alias = f"two-{one}"
    cluster.client.indices.put_alias(index=f"{one},{other}", name=alias)
    with cluster.side(alias) as side, pytest.raises(SideError, match="a target is one index"):
        publish(side, load(rows(1)))
    with cluster.side(one, query={"term": {"n": 1}}) as side, pytest.raises(SideError, match="limit a target by scope"):
        publish(side, load(rows(1)))
    cluster.client.indices.put_alias(index=one, name=f"one-{one}")
    with cluster.side(f"one-{one}") as side, cluster.side(one) as same:
        assert publish(side, load(rows(1))) == 1
        with pytest.raises(ClaimLostError):
            publish(same, load(rows(1), 9))


def test_a_server_killed_while_it_is_loaded(cluster: Any) -> None:
    """The fault can heal, and the same load, tried again, leaves the new documents and no others."""
    index = cluster.index(MAPPING)
    table = rows(*range(5_000))
    reads: list[int] = []

    def read() -> Iterator[Any]:
        reads.append(len(reads))
        for number, batch in enumerate(table.to_batches(1_000)):
            if reads == [0, 1] and number == 3:  # of the insertion, once some documents are there
                cluster.server.kill()
            yield batch

    given = load(table, 11, read)
    with cluster.side(index) as side:
        publish(side, load(rows(-1, -2)))
        with pytest.raises(TransientError) as caught:
            publish(side, given)
        assert caught.value.side_down
        cluster.server.start()
        assert not side.published(given)
        assert publish(side, given) == 5_000
        assert side.published(given)
        assert held(side) == list(range(5_000))
