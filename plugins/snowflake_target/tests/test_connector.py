"""What the Snowflake side does beyond the promises of every connector: names, types, time zones, tables it makes."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline_core import ExtractRequest, Load, PermanentError, SideError, Window
from pipeline_snowflake.connector import SnowflakeConnector
from pipeline_snowflake.table import Column
from pipeline_snowflake.types import writing

INSTANT = pa.timestamp("us", "UTC")
START = int(datetime(2013, 3, 10, 12, tzinfo=UTC).timestamp()) * 1_000_000
HOUR = 3_600_000_000
NOON = Window.from_us(START, START + HOUR)
Publish = Callable[[SnowflakeConnector, Load], int]
MakeLoad = Callable[..., Load]


def rows(*times: int, **columns: Any) -> pa.Table:
    """Staged rows at those instants."""
    return pa.table({"at": pa.array(times, INSTANT), **columns})


def extracted(side: SnowflakeConnector, window: Window = NOON, **more: Any) -> pa.Table:
    """The rows of a window, by the connector."""
    with closing(side.extract(ExtractRequest(window, **more))) as batches:
        return pa.Table.from_batches([pa.RecordBatch.from_struct_array(b.to_struct_array()) for b in batches])


# --- types -----------------------------------------------------------------------------------------------------------

KINDS = {
    "flag": pa.array([True, None], pa.bool_()),
    "small": pa.array([-7, None], pa.int16()),
    "large": pa.array([2**63 - 1, None], pa.int64()),
    "huge": pa.array([2**64 - 1, None], pa.uint64()),
    "ratio": pa.array([0.1, None], pa.float64()),
    "price": pa.array([Decimal("12345678901234567.89"), None], pa.decimal128(19, 2)),
    "text": pa.array(["nöte 'x' \\N \"q\"", None], pa.string()),
    "bytes": pa.array([b"\x00\xff\x80", None], pa.binary()),
    "day": pa.array([date(1969, 12, 31), None], pa.date32()),
    "clock": pa.array([time(23, 59, 59, 999_999), None], pa.time64("us")),
    "moment": pa.array([-1, None], INSTANT),
    "local": pa.array([-1, None], pa.timestamp("us")),
    "word": pa.array(["a", None]).dictionary_encode(),
}


def test_what_is_made_for_a_type_keeps_its_values(account: Any, load: MakeLoad, publish: Publish) -> None:
    """A table made from staged rows gives back every value, NULL among them."""
    given = rows(START, START + 1, **KINDS)
    with account.side(account.name(), create=True) as side:
        one = load(NOON, given)
        side.upload(one)
        assert publish(side, one) == 2
        found = extracted(side).sort_by("AT")
    assert found.column("AT").cast(pa.int64()).to_pylist() == [START, START + 1]
    for name, values in KINDS.items():
        assert found.column(name.upper()).to_pylist() == values.to_pylist(), name


def test_nested_values_become_variants(account: Any, load: MakeLoad, publish: Publish) -> None:
    """Lists, structs and maps, and JSON text where the column takes documents; they come back as JSON text."""
    table = account.name()
    columns = "DOC VARIANT, TAGS VARIANT, LISTED ARRAY, TEXTS ARRAY, MAPPED OBJECT"
    account.run(f'CREATE TABLE {table} ("AT" TIMESTAMP_NTZ, {columns})')
    tags = pa.array([["a", "ü'"], None], pa.list_(pa.string()))
    given = rows(
        START,
        START + 1,
        doc=pa.array(['{"a": {"b": [1, null]}}', None]),
        tags=tags,
        listed=pa.array([[{"n": 1}], None]),
        texts=pa.array([" [1]", None]),
        mapped=pa.array([[("k", 1.5)], None], pa.map_(pa.string(), pa.float64())),
    )
    with account.side(table, timestamp_timezone="UTC") as side:
        one = load(NOON, given)
        side.upload(one)
        publish(side, one)
        found = extracted(side).sort_by("AT")
    import json

    docs = [None if text is None else json.loads(text) for text in found.column("DOC").to_pylist()]
    assert docs == [{"a": {"b": [1, None]}}, None]
    expected = {"TAGS": ["a", "ü'"], "LISTED": [{"n": 1}], "TEXTS": [1], "MAPPED": {"k": 1.5}}
    for name, value in expected.items():
        first, second = found.column(name).to_pylist()
        assert (json.loads(first), second) == (value, None)


def test_integers_come_back_as_integers(account: Any, load: MakeLoad, publish: Publish) -> None:
    """What was made for 64 bits; a number of as many digits beyond them is refused, and not shown."""
    table = account.name()
    with account.side(table, create=True) as side:
        one = load(NOON, rows(START, n=pa.array([-(2**63)]), huge=pa.array([2**64 - 1], pa.uint64())))
        side.upload(one)
        publish(side, one)
        found = extracted(side)
        assert (found.schema.field("N").type, found.column("N").to_pylist()) == (pa.int64(), [-(2**63)])
        assert found.schema.field("HUGE").type == pa.decimal128(20, 0)
        account.run(f"UPDATE {table} SET N = 9223372036854775808")
        with pytest.raises(PermanentError, match=r"column 'N': a value of type .* is none of its type") as error:
            extracted(side)
        assert "9223372036854775808" not in str(error.value)


@pytest.mark.parametrize(
    ("declared", "values", "message"),
    [
        ("NUMBER(3, 0)", pa.array([1000]), "does not survive in a column declared NUMBER"),
        ("NUMBER(10, 1)", pa.array([Decimal("1.25")]), "does not survive in a column declared NUMBER"),
        ("NUMBER(10, 0)", pa.array([1.0]), "cannot hold the staged double"),
        ("FLOAT", pa.array([2**53 + 1]), "does not survive in a column declared FLOAT"),
        ("FLOAT", pa.array(["1"]), "cannot hold the staged string"),
        ("VARCHAR(3)", pa.array(["four"]), "one of length 4, longer than 3"),
        ("BOOLEAN", pa.array([1]), "cannot hold the staged int64"),
        ("TIMESTAMP_NTZ", pa.array([1], INSTANT), "cannot hold the staged timestamp"),
        ("VARCHAR", pa.array([{"a": 1}]), "cannot hold the staged struct"),
        ("DATE", pa.array([1], pa.duration("s")), "cannot hold the staged duration"),
        ("VARIANT", pa.array([" \n"]), "a blank text"),
        ("VARIANT", pa.array([[1]], pa.list_(INSTANT)), "cannot hold the staged list<item: timestamp"),
        ("VARIANT", pa.array([{"a": [b"four"]}]), "cannot hold the staged struct<a: list<item: binary"),
        ("VARIANT", pa.array([[("four", 1), ("four", 2)]], pa.map_(pa.string(), pa.int64())), "has one key twice"),
        ("VARIANT", pa.array([[(b"four", 1)]], pa.map_(pa.binary(), pa.int64())), "cannot hold the staged map"),
    ],
)
def test_a_value_that_would_change_is_refused(
    account: Any, load: MakeLoad, declared: str, values: pa.Array, message: str
) -> None:
    """Before anything is published, by column and type, without the value."""
    table = account.name()
    account.run(f'CREATE TABLE {table} ("AT" TIMESTAMP_TZ, V {declared})')
    with account.side(table) as side, pytest.raises(PermanentError, match=message) as error:
        side.upload(load(NOON, rows(START, v=values)))
    assert "four" not in str(error.value)
    assert "'V'" in str(error.value)


def encoded(declared: str, values: pa.Array) -> list[str | None]:
    """What is sent for a column of an ARRAY or OBJECT. Of the types alone: the stand-in calls both VARIANT."""
    how = writing(Column("V", declared, declared), values.type)
    if how is None:
        raise ValueError("cannot hold it")
    assert how.insert == f"PARSE_JSON({{}})::{declared}"
    return how.values(values).to_pylist()


@pytest.mark.parametrize(
    ("declared", "values", "texts"),
    [
        ("ARRAY", pa.array(['[""]', None]), ['[""]', None]),
        ("ARRAY", pa.array([["x"], None]), ['["x"]', None]),
        ("OBJECT", pa.array([' {"x": 4}', None]), [' {"x": 4}', None]),
        ("OBJECT", pa.array([{"x": 4}, None]), ['{"x": 4}', None]),
    ],
)
def test_what_arrays_and_objects_take(declared: str, values: pa.Array, texts: list[str | None]) -> None:
    """Each its own kind of nested values, and text of that kind."""
    assert encoded(declared, values) == texts


@pytest.mark.parametrize(
    ("declared", "values", "message"),
    [
        ("ARRAY", pa.array(['{"x": 4}']), r"begin with \["),
        ("ARRAY", pa.array([""]), r"begin with \["),
        ("ARRAY", pa.array([{"x": 4}]), "cannot hold"),
        ("OBJECT", pa.array(['["x"]']), "begin with {"),
        ("OBJECT", pa.array([["x"]]), "cannot hold"),
    ],
)
def test_what_arrays_and_objects_refuse(declared: str, values: pa.Array, message: str) -> None:
    """Snowflake would make an array of what is none, and NULL of a blank text."""
    with pytest.raises(ValueError, match=message):
        encoded(declared, values)


def test_what_json_lacks_makes_no_column(account: Any, load: MakeLoad) -> None:
    """Of a table to be made, said by the column's name before anything is sent."""
    given = rows(START, whens=pa.array([[1]], pa.list_(INSTANT)))
    with account.side(account.name(), create=True) as side:
        with pytest.raises(PermanentError, match="column 'whens': no type of the target keeps what the staged list"):
            side.upload(load(NOON, given))
        assert side.count(NOON) == 0


def test_rows_of_many_files(
    account: Any, load: MakeLoad, publish: Publish, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What is too much for one file goes into several; none of them stays on the disk."""
    monkeypatch.setattr("pipeline_snowflake.uploading._FILE_BYTES", 1)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    batches = [rows(START + n, START + 10 + n, n=pa.array([n, 10 + n])) for n in range(3)]
    before = len(account.sent())
    with account.side(account.name(), create=True) as side:
        one = load(NOON, *batches, rows(n=pa.array([], pa.int64())))
        side.upload(one)
        assert len({each["sql"] for each in account.sent(before) if each["sql"].startswith("PUT 'file:///")}) == 3
        assert publish(side, one) == 6
        assert sorted(extracted(side).column("N").to_pylist()) == [0, 1, 2, 10, 11, 12]
        with pytest.raises(PermanentError, match="outside window"):
            side.upload(load(NOON, *batches, rows(0, n=pa.array([9])), fence=2))
    assert list(tmp_path.iterdir()) == []


def test_a_window_of_local_time(account: Any, load: MakeLoad, publish: Publish) -> None:
    """A column without a zone on the day its clock goes back: counted, loaded and read as the first pass."""
    table = account.name()
    account.run(f'CREATE TABLE {table} ("AT" TIMESTAMP_NTZ, N NUMBER(18, 0))')
    one_am = int(datetime(2013, 11, 3, 5, tzinfo=UTC).timestamp()) * 1_000_000
    night = Window.from_us(one_am - HOUR, one_am + 3 * HOUR)
    with account.side(table, timestamp_timezone="America/New_York") as side:
        one = load(night, rows(one_am - HOUR, one_am, one_am + 3 * HOUR - 1, n=pa.array([0, 1, 2])))
        side.upload(one)
        assert publish(side, one) == 3
        found = extracted(side, night).sort_by("N")
        first_pass = Window.from_us(one_am, one_am + HOUR)
        assert list(side.count_many([night, first_pass, Window.from_us(one_am + HOUR, one_am + 2 * HOUR)])) == [3, 1, 0]
    assert found.column("AT").cast(pa.int64()).to_pylist() == [one_am - HOUR, one_am, one_am + 3 * HOUR - 1]
    stored = account.run(f'SELECT "AT" FROM {table} ORDER BY N')
    assert [str(at) for (at,) in stored] == [
        "2013-11-03 00:00:00",
        "2013-11-03 01:00:00",
        "2013-11-03 02:59:59.999999",
    ]


def test_many_windows_are_one_statement(account: Any) -> None:
    """A year of two-hour windows is counted by one query; odd bounds by one for each hundred."""
    table = account.name()
    account.run(f'CREATE TABLE {table} ("AT" TIMESTAMP_TZ)', f"INSERT INTO {table} SELECT TO_TIMESTAMP_TZ({START}, 6)")
    year = [Window.from_us(START + n * 2 * HOUR, START + (n + 1) * 2 * HOUR) for n in range(-10, 4_380)]
    odd = [Window.from_us(START + n * HOUR + n * n, START + (n + 1) * HOUR) for n in range(-100, 101)]
    with account.side(table) as side:
        for windows, statements in ((year, 1), (odd, 3)):
            before = len(account.sent())
            counts = side.count_many(windows)
            assert counts == [window.start_us <= START < window.end_us for window in windows]
            counted = [each for each in account.sent(before) if "COUNT(" in each["sql"]]
            assert len(counted) == statements


# --- names -----------------------------------------------------------------------------------------------------------


def test_names_are_meant_as_snowflake_means_them(account: Any, load: MakeLoad, publish: Publish) -> None:
    """Unquoted ones in capitals; the column of exactly the name goes before."""
    name = account.name()
    account.run(f'CREATE TABLE {name} ("AT" TIMESTAMP_TZ, "lower" NUMBER(5, 0), "UPPER" NUMBER(5, 0))')
    with account.side(f"db.public.{name.lower()}", timestamp_column="at") as side:
        one = load(NOON, rows(START, lower=pa.array([1]), upper=pa.array([2])))
        side.upload(one)
        assert publish(side, one) == 1
        assert extracted(side).drop_columns(["AT"]).to_pylist() == [{"lower": 1, "UPPER": 2}]
    before = len(account.sent())
    # The stand-in does not tell the two apart, so what it was asked has to do.
    with account.side(f'"{name.lower()}"') as side, pytest.raises(SideError):
        side.count(NOON)
    assert f'DESCRIBE TABLE "DB"."PUBLIC"."{name.lower()}"' in [each["sql"] for each in account.sent(before)]


HOSTILE = ['x" y', "semi;colon -- '", "per%cent ?", ":1 $1 {}", "漢字"]


def test_hostile_names_and_values_stay_what_they_are(account: Any, load: MakeLoad, publish: Publish) -> None:
    """In table, columns, scope and rows; made, loaded, counted, read and added."""
    table = f'odd "{account.name()}" -- \'t'
    quoted = '"' + table.replace('"', '""') + '"'
    texts = pa.array([f"'; DROP TABLE {table}; --", "\\' OR 1=1", None, '"', "\\N"])
    columns = dict.fromkeys(HOSTILE, texts) | {"scope'd": pa.array(["a'b\\"] * 5)}
    given = rows(*(START + n for n in range(5)), **columns)
    settings = {"timestamp_column": "at", "create": True, "new_columns": "add", "scope": {"scope'd": "a'b\\"}}
    before = len(account.sent())
    with account.side(quoted, pipeline="o'pipeline\\", **settings) as side:
        one = load(NOON, given)
        side.upload(one)
        assert publish(side, one) == 5
        again = load(NOON, given.append_column('new "one', texts), fence=2)
        side.upload(again)
        assert publish(side, again) == 5
        found = extracted(side).sort_by("AT")
        for name in [*HOSTILE, 'new "one']:
            assert found.column(name).to_pylist() == texts.to_pylist()
    for each in account.sent(before):
        assert "OR 1=1" not in each["sql"]


# --- statements ------------------------------------------------------------------------------------------------------

DDL = re.compile(r"\s*(CREATE|ALTER\s+TABLE|DROP|TRUNCATE|COMMENT)\b", re.IGNORECASE)
WORDS = re.findall(
    r"\w+",
    """
    ABORT ADD ALTER AND AS AT AUTO_COMPRESS BEGIN BY CASE CASE_SENSITIVE COLUMN COMMIT COPY COUNT CREATE
    CURRENT_DATABASE CURRENT_SCHEMA CURRENT_TRANSACTION DATE_PART DATE_TRUNC DELETE DESCRIBE DROP
    EPOCH_MICROSECOND EXISTS FALSE FENCE FILE_FORMAT FLOAT FROM FROM_FIRST GROUP IF INFORMATION_SCHEMA INSERT INTO IS
    MATCH_BY_COLUMN_NAME MICROSECOND MOD NOT NULL NULL_IF NUMBER OR ORDER OVERWRITE PARQUET PARSE_JSON PIPELINE
    PUBLICATIONS PUBLISHED_US PURGE PUT QUERY_TAG ROLLBACK SCOPE SELECT SESSION SET STAGE STARTSWITH START_US END_US
    TABLE TABLES TABLE_NAME TABLE_SCHEMA TARGET_TABLE TEMPORARY TIMESTAMP_LTZ TO_JSON TO_TIMESTAMP_LTZ TO_TIMESTAMP_TZ
    TRANSACTION TRUE TYPE UPDATE VALUES VARCHAR WHEN THEN END WHERE
    """,
)


def bare(sql: str) -> set[str]:
    """What stands in a statement outside quotes: words that are neither Snowflake's nor the ledger's."""
    rest = re.sub(r"'(?:[^'\\]|\\.|'')*'|\"(?:[^\"]|\"\")*\"", " ", sql)
    rest = re.sub(r"/PIPELINE_SCRATCH_[0-9A-F]{32}/", " ", rest)
    return {word for word in re.findall(r"[A-Za-z_]\w*", rest) if word not in WORDS and not re.fullmatch(r"C\d+", word)}


def test_what_is_sent(account: Any, load: MakeLoad, publish: Publish) -> None:
    """No DDL inside a transaction, no name without quotes, no value in a text; a load is so many statements."""
    table = f"secret table {account.name()}"
    given = rows(START, word=pa.array(["a value"]), n=pa.array([4_711_815]))
    before = len(account.sent())
    with account.side(f'"{table}"', timestamp_column="at", create=True, scope={"word": "a value"}) as side:
        for window in (Window.from_us(START - HOUR, START + HOUR), NOON):
            begun = len(account.sent())
            one = load(window, given, fence=window.start_us)
            side.upload(one)
            publish(side, one)
            side.discard(one.claim)
        # 4.x asks twice where a file is to be put.
        words = [each["sql"].split()[0] for each in account.sent(begun)]
        loaded = len(words) - max(0, words.count("PUT") - 1)
        extracted(side)
        side.count_many([NOON, Window.from_us(START + HOUR, START + 2 * HOUR)])
        side.excluded()
        assert side.published(one)
    sent = account.sent(before)
    logins = [each["sql"] for each in sent if each["sql"].startswith("LOGIN")]
    assert len(logins) == 1
    assert all(word in logins[0] for word in ('"TIMEZONE": "UTC"', '\\"pipeline\\": \\"flights\\"', "LOCK_TIMEOUT"))
    assert "STATEMENT_TIMEOUT_IN_SECONDS" in logins[0]
    assert re.search(r'"ROWS_PER_RESULTSET": "?0\b', logins[0])
    texts = [each["sql"] for each in sent if not each["sql"].startswith("LOGIN")]
    assert not any(account.options["password"] in each["sql"] for each in sent)
    inside = [each["sql"] for each in sent if each["transaction"] is not None]
    assert len(inside) > 10
    assert [sql for sql in inside if DDL.match(sql)] == []
    assert {sql: bare(sql) for sql in texts if bare(sql)} == {}
    assert [sql for sql in texts if "a value" in sql or "4711815" in sql or str(START) in sql] == []
    for transaction in {each["transaction"] for each in sent if each["sql"].startswith('DELETE FROM "DB"')}:
        first, second, third, *_ = [each["sql"] for each in sent if each["transaction"] == transaction]
        assert first == "SELECT CURRENT_TRANSACTION()"
        assert second.startswith('UPDATE "DB"."PUBLIC"."PIPELINE_LEDGER_HEAD"'), "what a publication writes first"
        assert third.startswith("SELECT PIPELINE"), "reading comes after locking"
    assert any("2013-03-10T12:00:00Z" in sql for sql in texts if "QUERY_TAG" in sql)
    assert loaded == STATEMENTS


#: Of a load into a table that is there, with its ledger: docs/reference/snowflake.md names it.
STATEMENTS = 20


# --- tables ----------------------------------------------------------------------------------------------------------


def test_new_columns(account: Any, load: MakeLoad, publish: Publish) -> None:
    """A staged column without a place is an error, is added, or is left out, as the settings say."""
    table = account.name()
    account.run(f'CREATE TABLE {table} ("AT" TIMESTAMP_TZ, N NUMBER(18, 0))')
    given = rows(START, n=pa.array([1]), more=pa.array(["x"]))
    with account.side(table) as side, pytest.raises(PermanentError, match="it has no column for the staged 'more'"):
        side.upload(load(NOON, given))
    for how, names in (("ignore", ["AT", "N"]), ("add", ["AT", "N", "MORE"])):
        with account.side(table, new_columns=how) as side:
            one = load(NOON, given, fence=len(names))
            ddl = side.ddl(given, {})
            assert [text for text in ddl if "MORE" in text] == (
                [f'ALTER TABLE "DB"."PUBLIC"."{table}" ADD COLUMN IF NOT EXISTS "MORE" VARCHAR;']
                if how == "add"
                else []
            )
            side.upload(one)
            publish(side, one)
            assert extracted(side).column_names == names


@pytest.mark.parametrize(
    ("settings", "columns", "said"),
    [
        ({}, {"at": "moved"}, "no staged column becomes its timestamp column 'AT'"),
        ({"scope": {"n": 1}}, {"n": "m"}, r"scope limits this pipeline by the columns \['N'\], which no staged column"),
    ],
)
def test_settings_that_no_row_fits_blame_no_window(
    account: Any, load: MakeLoad, settings: dict[str, Any], columns: dict[str, str], said: str
) -> None:
    """No staged column becomes the timestamp, or one of the scope; `doctor`, which asks for the DDL, finds it too."""
    table = account.name()
    account.run(f'CREATE TABLE {table} ("AT" TIMESTAMP_TZ, N NUMBER(18, 0))')
    given = rows(START, n=pa.array([1]))
    with account.side(table, **settings) as side:
        with pytest.raises(SideError, match=said):
            side.upload(load(NOON, given, columns=columns))
        with pytest.raises(SideError, match=said):
            side.ddl(given, columns)


def test_a_column_that_another_worker_adds_first(front: Any, account: Any, load: MakeLoad, publish: Publish) -> None:
    """It is there: the rows go in."""
    table = account.name()
    account.run(f'CREATE TABLE {table} ("AT" TIMESTAMP_TZ)')
    added = []

    def outrun(what: str, ask: Callable[[], tuple[int, bytes]]) -> tuple[int, bytes]:
        if what.startswith("ALTER TABLE"):
            added.append(what)
            account.run(f"ALTER TABLE {table} ADD COLUMN N NUMBER(19, 0)")
        return ask()

    front.answer = outrun
    with account.side(table, new_columns="add", port=front.server_port) as side:
        one = load(NOON, rows(START, n=pa.array([7])))
        side.upload(one)
        assert publish(side, one) == 1
        assert extracted(side).column("N").to_pylist() == [7]
    assert len(added) == 1


def test_a_missing_table(account: Any, load: MakeLoad) -> None:
    """It holds no row where it is to be made, and is an error of the side where not."""
    table = account.name()
    with account.side(table, create=True) as side:
        assert list(side.count_many([NOON])) == [0]
        assert side.excluded() == 0
        made = [text for text in side.ddl(rows(START, n=pa.array([1])), {}) if table in text]
        assert made == [f'CREATE TABLE IF NOT EXISTS "DB"."PUBLIC"."{table}" ("AT" TIMESTAMP_LTZ, "N" NUMBER(19, 0));']
        assert list(side.count_many([NOON])) == [0], "ddl() runs nothing"
    with account.side(table) as side, pytest.raises(SideError, match=r"no such table .* set create = true"):
        side.upload(load(NOON, rows(START)))


def test_where_limits_a_source_alone(account: Any, load: MakeLoad) -> None:
    """A target refuses it; what is no condition is the side's fault, whatever brackets it holds."""
    table = account.name()
    account.run(f'CREATE TABLE {table} ("AT" TIMESTAMP_TZ, N NUMBER(18, 0))')
    stored = ", ".join(f"(TO_TIMESTAMP_TZ({START + n}, 6), {n})" for n in range(4))
    account.run(f"INSERT INTO {table} SELECT * FROM VALUES {stored}")
    with account.side(table, where="N > 1 -- not 0") as side:
        assert side.count(NOON) == 2
        assert extracted(side).column("N").to_pylist() == [2, 3]
        with pytest.raises(SideError, match="limit a target by scope"):
            side.upload(load(NOON, rows(START)))
    for strange in ("N >", "1 = 1) OR (1 = 1", "NOPE = 1"):
        with account.side(table, where=strange) as side, pytest.raises(SideError, match="where is no condition"):
            side.count(NOON)


def test_a_column_changed_since_the_upload_is_noticed(account: Any, load: MakeLoad, publish: Publish) -> None:
    """The rows were made to fit another one: nothing is published."""
    from pipeline_core import TransientError

    table = account.name()
    account.run(f'CREATE TABLE {table} ("AT" TIMESTAMP_TZ, N NUMBER(18, 0))')
    with account.side(table) as side:
        one = load(NOON, rows(START, n=pa.array([1])))
        side.upload(one)
        account.run(f"ALTER TABLE {table} DROP COLUMN N", f"ALTER TABLE {table} ADD COLUMN N VARCHAR")
        with pytest.raises(TransientError, match=r"\['N'\] have changed since the upload"):
            publish(side, one)
        assert side.count(NOON) == 0


def test_rows_without_a_timestamp_are_a_problem(account: Any) -> None:
    """`doctor` names them, with what to do."""
    table = account.name()
    account.run(f'CREATE TABLE {table} ("AT" TIMESTAMP_TZ)', f"INSERT INTO {table} VALUES (NULL), (NULL)")
    with account.side(table) as side:
        (problem,) = side.problems()
    assert "2 rows have no 'AT'" in problem.what
    with account.side(account.name()) as side:
        (problem,) = side.problems()
    assert ("no such table" in problem.what, "create = true" in problem.remedy) == (True, True)
