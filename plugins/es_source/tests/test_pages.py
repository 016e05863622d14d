"""From an answer's bytes to Arrow: the fast way and the tolerant one give the same, without a server."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline_core import PermanentError, TransientError
from pipeline_elasticsearch.columns import INSTANT, Column
from pipeline_elasticsearch.pages import FieldsShape

COLUMNS = [
    Column("at", INSTANT),
    Column("flag", pa.bool_()),
    Column("long", pa.int64()),
    Column("short", pa.int16()),
    Column("big", pa.uint64()),
    Column("ratio", pa.float64()),
    Column("text", pa.string()),
    Column("tags", pa.string(), many=True),
]
DOTTED = [Column("at", INSTANT), Column("a.b.c", pa.int64()), Column("a.d", pa.string()), Column("e", pa.float64())]
CLEAN = {
    "at": "2013-03-10T05:06:07.123456Z",
    "flag": True,
    "long": -(2**63),
    "short": 5,
    "big": 2**63 + 1,
    "ratio": 0.1,
    "text": "O'Hare\n漢字 🛫",
    "tags": ["a", None],
}


def answer(*sources: Any, **changes: Any) -> bytes:
    """What a server would send."""
    hits = [
        {"_index": "i", "_id": str(n), "_score": None, "_ignored": ["text"], "_source": each, "sort": [n]}
        for n, each in enumerate(sources)
    ]
    head = {
        "pit_id": "p",
        "took": 3,
        "timed_out": False,
        "_shards": {"total": 1, "successful": 1, "skipped": 0, "failed": 0},
        "hits": {"total": {"value": len(hits), "relation": "eq"}, "max_score": None, "hits": hits},
    }
    return json.dumps(head | changes, ensure_ascii=False).encode()


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.integers(-3, 3),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=3),
    st.sampled_from(["5", "1.5", "true", "2013", "2013-03-10", "2013-03-10T05:06:07+02:00", "2013-03-10T05:06"]),
)
VALUES = st.one_of(SCALARS, st.lists(SCALARS, max_size=2))
FLAT = st.dictionaries(st.sampled_from([*(column.name for column in COLUMNS), "other"]), VALUES)
NESTED = st.recursive(
    VALUES, lambda inner: st.dictionaries(st.sampled_from(["a", "b", "c", "d", "e", "a.b", "b.c", "a.b.c"]), inner)
)


@pytest.mark.parametrize("columns", [COLUMNS, DOTTED], ids=["flat", "dotted"])
@given(st.data())
def test_both_ways_read_the_same(columns: list[Column], data: st.DataObject) -> None:
    """Wherever the fast way gives an answer, the tolerant one gives the same."""
    sources = st.lists(FLAT if columns is COLUMNS else st.dictionaries(st.sampled_from(["a", "e"]), NESTED), max_size=2)
    body = answer(*data.draw(sources))
    shape = FieldsShape(columns, "here")
    fast = shape.read_fast(body)
    if fast is not None:
        tolerant = shape.read_tolerant(body)
        assert fast.rows.to_pylist() == tolerant.rows.to_pylist()
        assert (fast.after, fast.total, fast.pit_id) == (tolerant.after, tolerant.total, tolerant.pit_id)


def test_clean_documents_go_the_fast_way() -> None:
    """With values missing or null, with fields that are not mapped, and with none at all."""
    shape = FieldsShape(COLUMNS, "here")
    page = shape.read_fast(answer(CLEAN, {}, {"text": None, "more": {"x": [1]}}))
    assert page is not None
    assert page.rows.schema == shape.schema
    first, *others = page.rows.to_pylist()
    assert first == {**CLEAN, "at": first["at"]}
    assert str(first["at"]) == "2013-03-10 05:06:07.123456+00:00"
    assert others == [dict.fromkeys(CLEAN)] * 2
    empty = shape.read_fast(answer())
    assert empty is not None
    assert (len(empty.rows), empty.rows.schema, empty.after, empty.total) == (0, shape.schema, None, 0)
    nested = FieldsShape(DOTTED, "here").read_fast(answer({"a": {"b": {"c": 1}, "d": "x"}, "e": 2}, {"a": None}))
    assert nested is not None
    assert [row["a.b.c"] for row in nested.rows.to_pylist()] == [1, None]


def test_documents_on_several_lines_go_the_fast_way() -> None:
    """As an answer holds them that were indexed so."""
    body = json.dumps(json.loads(answer(CLEAN, {"text": "b"})), indent=2).replace("\n", "\r\n").encode()
    page = FieldsShape(COLUMNS, "here").read_fast(body)
    assert page is not None
    assert page.rows.column("text").to_pylist() == [CLEAN["text"], "b"]


@pytest.mark.parametrize("half", [r"\ud83d", r"\uDE00", r"\\\ud83d", r"\ude00\ud83d"])
def test_half_a_character(half: str) -> None:
    """Stands for none; whole ones, and what looks like one behind a backslash, stay."""
    body = answer({"text": "x@y"}, {"text": "🛫"}).replace("🛫".encode(), rb"\ud83d\udeeb \\ud83d")
    page = FieldsShape(COLUMNS, "here").read(body.replace(b"@", half.encode()))
    found, whole = page.rows.column("text").to_pylist()
    assert found == {r"\\\ud83d": "x\\�y", r"\ude00\ud83d": "x��y"}.get(half, "x�y")
    assert whole == "🛫 \\ud83d"


@pytest.mark.parametrize("literal", ["19.90", "1e5", "12345678901234567.89", "123456789012345678901234567890", "-0.0"])
def test_a_number_in_a_text_column_is_what_was_written(literal: str) -> None:
    """A column of numbers reads the same as before."""
    columns = [Column("text", pa.string()), Column("ratio", pa.float64())]
    body = answer({"text": "@", "ratio": "@"}).replace(b'"@"', literal.encode())
    (row,) = FieldsShape(columns, "here").read(body).rows.to_pylist()
    assert row == {"text": literal, "ratio": float(literal)}


def test_a_date_that_the_index_ignored() -> None:
    """Is an error, however readable it looks; a text that it ignored, for its length, is none."""
    body = answer(CLEAN, CLEAN | {"at": "2013-03-10 05:06:07"})
    assert FieldsShape(COLUMNS, "here").read_fast(body) is not None
    with pytest.raises(PermanentError, match="document '0' of index 'i', field 'at'"):
        FieldsShape(COLUMNS, "here").read(body.replace(b'["text"]', b'["text", "at"]'))


@pytest.mark.parametrize(
    ("name", "found", "expected"),
    [
        ("long", "5", 5),
        ("long", 5.9, 5),
        ("long", "-5.9", -5),
        ("long", [7], 7),
        ("long", [], None),
        ("long", [None], None),
        ("ratio", "1.5", 1.5),
        ("ratio", 3, 3.0),
        ("flag", "true", True),
        ("flag", "", False),
        ("text", 5, "5"),
        ("text", False, "false"),
        ("tags", "one", ["one"]),
        ("tags", [["a"], ["b", None]], ["a", "b", None]),
        ("tags", [], []),
        ("tags", None, None),
    ],
)
def test_values_written_otherwise(name: str, found: object, expected: object) -> None:
    """Are read as the index reads them, beside clean ones."""
    page = FieldsShape(COLUMNS, "here").read(answer(CLEAN, {name: found}))
    assert page.rows.column(name).to_pylist()[1] == expected


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("long", [1, 2]),
        ("long", "many"),
        ("short", 40_000),
        ("long", 2**63),
        ("text", {"a": 1}),
        ("at", "soon"),
        ("at", ["2013", "2014"]),
        ("flag", 1),
        ("ratio", "NaN"),
        ("ratio", "1e999"),
    ],
)
def test_values_that_fit_no_way(name: str, found: object) -> None:
    """The error names the document and the field, and shows the value."""
    with pytest.raises(
        PermanentError, match=f"document '1' of index 'i', field '{name}': found .*, expected"
    ) as caught:
        FieldsShape(COLUMNS, "here").read(answer(CLEAN, {name: found}))
    assert "lists" in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        {"a": {"b": {"c": 1}}},
        {"a.b.c": 1},
        {"a": {"b.c": 1}},
        {"a.b": {"c": 1}},
        {"a": [{"b": {"c": 1}}]},
        {"a": [{"b": {}}, {"b": [{"c": 1}]}, None, 5]},
    ],
)
def test_a_name_with_dots_however_it_is_written(source: dict[str, Any]) -> None:
    """All of these are one field to the index."""
    page = FieldsShape(DOTTED, "here").read(answer(source))
    assert page.rows.column("a.b.c").to_pylist() == [1]


def test_json_columns_keep_what_is_written() -> None:
    """As JSON text: objects, lists and numbers alike; null is NULL."""
    column = Column("geo", pa.string(), as_json=True)
    page = FieldsShape([column], "here").read(
        answer({"geo": {"lat": 1, "lon": [2.5]}}, {"geo": [1, 2]}, {"geo": "x"}, {"geo": None}, {})
    )
    assert page.rows.column("geo").to_pylist() == ['{"lat":1,"lon":[2.5]}', "[1,2]", '"x"', None, None]


@pytest.mark.parametrize(
    "changes",
    [
        {"timed_out": True},
        {"_shards": {"total": 2, "successful": 1, "skipped": 0, "failed": 1}},
        {"_shards": {"total": 2, "successful": 1, "skipped": 0, "failed": 0}},
        {"_shards": {"total": 2, "successful": 1, "skipped": 0, "failed": 1, "failures": [{"shard": 0}]}},
        {"_clusters": {"total": 2, "successful": 1, "skipped": 1}},
    ],
)
@pytest.mark.parametrize("column", [Column("long", pa.int64()), Column("long", pa.string(), as_json=True)])
def test_a_partial_answer_is_no_page(changes: dict[str, Any], column: Column) -> None:
    """Whichever way it is read."""
    with pytest.raises(TransientError):
        FieldsShape([column], "here").read(answer({"long": 1}, **changes))
