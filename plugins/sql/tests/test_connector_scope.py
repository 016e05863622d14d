"""A side of a shared table: `scope` and `where`, on each engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, date, datetime
from typing import Any

import pyarrow as pa
import pytest
import sqlalchemy as sa

from pipeline_core import ConfigError, Context, ExtractRequest, PermanentError, Secret, SideError, Window
from pipeline_core.config import load as load_config
from pipeline_sql import SqlSettings

START = datetime(2013, 3, 10, tzinfo=UTC)
DAY = Window(START, datetime(2013, 3, 11, tzinfo=UTC))
MakeLoad = Callable[..., Any]
Publish = Callable[[Any, Any], int]
ROWS = [
    "('{at}', 1, true, '2013-03-10', 'eu', 0.5)",
    "('{at}', 2, false, '2013-03-11', 'EU', 1.5)",
    "('{at}', 2, true, '2013-03-10', 'it''s 100% :x ?', 2.5)",
    "('{at}', NULL, NULL, NULL, NULL, NULL)",
]


# A scope is to the letter, where a column takes "EU" for "eu" as well.
TABLES = {
    "sqlite": "at TIMESTAMPTZ, n INTEGER, flag BOOLEAN, day DATE, region TEXT COLLATE NOCASE, x REAL",
    "postgresql": "at TIMESTAMPTZ, n INTEGER, flag BOOLEAN, day DATE, region TEXT, x DOUBLE PRECISION",
    "mariadb": "at TIMESTAMP(6) NULL, n INTEGER, flag BOOLEAN, day DATE, region TEXT, x DOUBLE",
}


class Database:
    """A table `t` of four rows in one day, and plain statements beside it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = sa.create_engine(url)
        self.run(f"CREATE TABLE t ({TABLES[self.engine.name]})")
        for row in ROWS:
            zone = "" if self.engine.name == "mariadb" else "Z"
            self.run(f"INSERT INTO t VALUES {row.format(at=f'2013-03-10 12:00:00{zone}')}")

    def run(self, statement: str) -> list[Any]:
        with self.engine.begin() as connection:
            if self.engine.name == "mariadb":
                connection.exec_driver_sql("SET time_zone = '+00:00'")
            plain = self.engine.dialect.paramstyle == "qmark"
            found = connection.exec_driver_sql(statement if plain else statement.replace("%", "%%"))
            return list(found.all()) if found.returns_rows else []

    def side(self, *, pipeline: str = "flights", **more: Any) -> Any:
        settings = SqlSettings(Secret(self.url), table="t", timestamp_column="at", **more)
        return settings.open(Context(pipeline))


@pytest.fixture(params=[False, True], ids=["bare", "indexed"])
def database(url: str, request: pytest.FixtureRequest) -> Iterator[Database]:
    """A new database, with and without an index on the timestamp: other plans count."""
    made = Database(url)
    if request.param:
        made.run("CREATE INDEX t_at ON t (at)")
    yield made
    made.engine.dispose()


def extracted(source: Any) -> list[Any]:
    with closing(source.extract(ExtractRequest(DAY))) as batches:
        return [row["x"] for batch in batches for row in batch.to_pylist()]


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ({"n": 2}, [1.5, 2.5]),
        ({"x": 0.5}, [0.5]),
        ({"x": 1}, []),
        ({"flag": True}, [0.5, 2.5]),
        ({"flag": False}, [1.5]),
        ({"day": date(2013, 3, 10)}, [0.5, 2.5]),
        ({"region": "eu"}, [0.5]),
        ({"region": "it's 100% :x ?"}, [2.5]),
        ({"n": 2, "flag": True}, [2.5]),
    ],
)
def test_a_scope_of_each_type(database: Database, scope: Any, expected: list[float]) -> None:
    """Counted one by one and in bulk, and extracted: exactly the rows that hold the value; NULL holds none."""
    with database.side(scope=scope) as side:
        assert side.count(DAY) == len(expected)
        assert side.count_many([DAY, Window.from_us(0, 1), DAY]) == [len(expected), 0, len(expected)]
        assert sorted(extracted(side)) == expected
        assert side.excluded() == 0


@pytest.mark.parametrize(
    ("columns", "scope", "found"),
    [
        ("n, at", {"n": 2}, True),
        ("flag, day, at", {"day": date(2013, 3, 10), "flag": True}, True),
        ("flag, n, at", {"n": 2}, False),
        ("n, x, at", {"n": 2}, False),
        ("n, at", {}, False),
    ],
)
def test_an_index_that_begins_with_the_scope(url: str, columns: str, scope: dict[str, Any], found: bool) -> None:
    """Finds a window's rows as well, if the scope fixes all that stands before the timestamp."""
    made = Database(url)
    made.run(f"CREATE INDEX t_scope ON t ({columns})")
    with made.side(scope=scope) as side:
        assert any("no index" in each.what for each in side.problems()) == (not found)
        assert side.count_many([DAY, DAY]) == [side.count(DAY)] * 2
    made.engine.dispose()


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("n = 2", [1.5, 2.5]),
        ("n = 1 OR x > 2", [0.5, 2.5]),
        ("region LIKE 'it''s 100%' -- a comment", [2.5]),
        ("x IN (SELECT max(x) FROM t)", [2.5]),
    ],
)
def test_a_source_is_limited_by_its_condition(database: Database, where: str, expected: list[float]) -> None:
    """As it was written: it neither widens the window nor ends what stands behind it."""
    with database.side(where=where, scope={"flag": True}) as both, database.side(where=where) as side:
        assert side.count(DAY) == len(expected)
        assert side.count(Window.from_us(0, 1)) == 0
        assert side.count_many([DAY, Window.from_us(0, 1)]) == [len(expected), 0]
        assert sorted(extracted(side)) == expected
        assert sorted(extracted(both)) == [x for x in expected if x != 1.5]


@pytest.mark.parametrize(
    "where", ["n = ", "no_such = 1", "1 = 1) OR (1 = 1", "1 = 1; DELETE FROM t", "n = 2 ORDER BY n"]
)
def test_what_is_no_condition_is_refused(database: Database, where: str) -> None:
    """Before any row is counted or extracted, and doctor says so."""
    with database.side(where=where) as side:
        for ask in (lambda: side.count(DAY), side.excluded, lambda: extracted(side)):
            with pytest.raises(SideError, match="table 't': where is no condition on it: "):
                ask()
        (problem,) = side.problems()
    assert "where is no condition" in problem.what
    assert len(database.run("SELECT * FROM t")) == 4


@pytest.mark.parametrize(
    ("scope", "message"),
    [
        ({"regio": "eu"}, r"scope names no column of it: 'regio' \(nearest: 'region'\)"),
        ({"n": "2"}, "scope sets column 'n' to '2', but it is declared (?i:int)"),
        ({"n": True}, "scope sets column 'n' to True"),
        ({"flag": 1}, "scope sets column 'flag' to 1"),
        ({"region": 1}, "scope sets column 'region' to 1"),
        ({"day": "2013-03-10"}, "scope sets column 'day' to '2013-03-10'"),
    ],
)
def test_a_scope_that_does_not_fit_the_table(database: Database, scope: Any, message: str) -> None:
    """By column, with what was found and what to do: what databases compare differently is no scope."""
    with database.side(scope=scope) as side, pytest.raises(SideError, match=message):
        side.count(DAY)


def test_where_is_for_sources(database: Database, load: MakeLoad) -> None:
    """A target's rows cannot be checked against it, so nothing is loaded."""
    with database.side(where="n = 1") as side, pytest.raises(SideError, match="where limits a source only"):
        side.upload(load(DAY, pa.table({"at": pa.array([START], pa.timestamp("us", "UTC"))})))


def test_the_identity_names_scope_and_condition(database: Database) -> None:
    """Work done under another is counted again."""
    with database.side(scope={"n": 2, "day": date(2013, 3, 10)}, where="x > 1") as side, database.side() as whole:
        assert side.identity == {**whole.identity, "scope": '{"day": "2013-03-10", "n": 2}', "where": "x > 1"}


def staged(*values: Any) -> pa.Table:
    """Rows of noon with these regions."""
    noon = pa.array([datetime(2013, 3, 10, 12, tzinfo=UTC)] * len(values), pa.timestamp("us", "UTC"))
    return pa.table({"at": noon, "region": pa.array(values, pa.string()).dictionary_encode()})


@pytest.mark.parametrize("stranger", ["us", "EU", None])
def test_a_staged_row_outside_the_scope(database: Database, load: MakeLoad, stranger: str | None) -> None:
    """It is refused at the upload, whichever batch it is in: column, expected and found are named."""
    given = load(DAY, staged("eu", "eu"), staged("eu", stranger))
    with database.side(scope={"region": "eu"}) as side:
        with pytest.raises(
            PermanentError, match=rf"column 'region': found the staged value {stranger!r}, expected 'eu'"
        ):
            side.upload(given)
        assert side.count(DAY) == 1


def test_a_staged_schema_without_the_column_of_the_scope(database: Database, load: MakeLoad) -> None:
    """Nothing is filled in: a column left out by mistake would pass every row for one's own."""
    with (
        database.side(scope={"n": 2}) as side,
        pytest.raises(SideError, match=r"limits this pipeline by the columns \['n'\], which no staged column becomes"),
    ):
        side.upload(load(DAY, staged().select(["at"])))


def test_pipelines_share_a_table_that_the_first_one_makes(url: str, load: MakeLoad, publish: Publish) -> None:
    """Each replaces its own rows of one window, again and again; the ledger holds an entry a scope."""
    regions = {"flights": "eu", "weather": "us"}
    for fence, (pipeline, region) in enumerate([*regions.items()] * 2, 1):
        settings = SqlSettings(Secret(url), "t", "at", create=True, scope={"region": region})
        with settings.open(Context(pipeline)) as side:
            given = load(DAY, staged(*[region] * (fence + 2)), fence=fence, pipeline=pipeline)
            side.upload(given)
            assert publish(side, given) == fence + 2
            assert side.published(given)
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        counted = connection.exec_driver_sql("SELECT region, count(*) FROM t GROUP BY 1 ORDER BY 1").all()
        held = connection.exec_driver_sql("SELECT pipeline, scope, fence FROM pipeline_ledger ORDER BY 1").all()
    engine.dispose()
    assert counted == [("eu", 5), ("us", 6)]
    assert held == [("flights", '{"region": "eu"}', 3), ("weather", '{"region": "us"}', 4)]


def test_a_scope_is_configured(tmp_path: Any) -> None:
    """Text, numbers, truth and dates as TOML writes them; anything else is a finding that names the place."""
    side = {"type": "sql", "url": "sqlite:///x.db", "table": "t", "timestamp_column": "at"}
    base = {
        "name": "p",
        "granularity": "2h",
        "timezone": "UTC",
        "store": {"type": "sql", "url": f"sqlite:///{tmp_path}/r.db"},
    }
    base["stage"] = {"type": "objects", "url": f"file://{tmp_path}/stage"}
    scope = {"a": "eu", "b": 1, "c": 1.5, "d": True, "e": date(2013, 3, 10)}
    load_config({**base, "source": {**side, "where": "n = 1"}, "target": {**side, "scope": scope}})
    for bad, message in (
        ({"at": START}, r"target\.scope\.at: found"),
        ({"a": ["eu", "us"]}, r"target\.scope\.a: found"),
        ({"a": "x" * 255}, "target.scope: .* 264 characters as JSON, expected 255 at most"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config({**base, "source": side, "target": {**side, "scope": bad}})
