"""Counting on genuine servers: right, or an error. Each test is one of the ways in which a search misleads."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pipeline_core import PermanentError, SideError, TransientError, Window

AT = 1_362_873_600_000_000  # 2013-03-10T00:00:00Z
HOUR = 3_600_000_000
DAY = Window.from_us(AT, AT + 24 * HOUR)
DATE = {"at": {"type": "date"}}
NANOS = {"at": {"type": "date_nanos"}}


def at(ns: int) -> str:
    """Nanoseconds since 1970 as text, in UTC, with all nine digits."""
    import datetime

    whole = datetime.datetime.fromtimestamp(ns // 10**9, datetime.UTC)
    return f"{whole:%Y-%m-%dT%H:%M:%S}.{ns % 10**9:09d}Z"


def rows(*offsets_us: int) -> list[dict[str, Any]]:
    return [{"at": at((AT + us) * 1000)} for us in offsets_us]


@contextmanager
def refused(error: type[Exception], *texts: str) -> Iterator[pytest.ExceptionInfo[Any]]:
    with pytest.raises(error) as caught:
        yield caught
    for text in texts:
        assert text in str(caught.value)


def fails(side: Any, error: type[Exception], *texts: str) -> None:
    """Whatever is counted, it is this error."""
    asks: list[Callable[[], object]] = [lambda: side.count(DAY), lambda: side.count_many([DAY, DAY]), side.excluded]
    for ask in asks:
        with refused(error, *texts):
            ask()


# --- right ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["date", "date_nanos"])
def test_a_thousand_windows_are_counted_as_by_hand(cluster: Any, kind: str) -> None:
    """Windows that touch, overlap, repeat and hold nothing, their bounds between milliseconds too."""
    chance = random.Random(3)
    finest = 1_000_000 if kind == "date" else 1
    instants = [AT * 1000 + chance.randrange(24 * HOUR * 1000) // finest * finest for _ in range(3_000)]
    edges = [chance.choice(instants) // 1000 for _ in range(600)]
    starts = [AT + chance.randrange(24 * HOUR) for _ in range(200)]
    windows = [Window.from_us(us, us + chance.choice([1, 999, 1000, HOUR])) for us in [*edges, *starts]]
    windows += [Window.from_us(us - HOUR, us) for us in edges[:200]]
    index = cluster.index({"at": {"type": kind}}, *({"at": at(ns)} for ns in instants))
    with cluster.side(index) as side:
        found = list(side.count_many(windows))
        assert found == [sum(w.start_us <= ns // 1000 < w.end_us for ns in instants) for w in windows]
        assert [side.count(window) for window in windows[::100]] == found[::100]


def test_nanoseconds_at_the_end_of_a_window_stay_inside(cluster: Any) -> None:
    """What the aggregation of dates would cut, or round as a double, into the next window."""
    end_ns = DAY.end_us * 1000
    index = cluster.index(NANOS, *({"at": at(end_ns + ns)} for ns in (-1, -100, -500_000, 0, 1)))
    next_ = Window.from_us(DAY.end_us, DAY.end_us + HOUR)
    with cluster.side(index) as side:
        assert list(side.count_many([DAY, next_])) == [3, 2]
        assert (side.count(DAY), side.count(next_)) == (3, 2)


def test_windows_outside_what_the_type_can_hold_count_none(cluster: Any) -> None:
    """Before 1970 and after 2262 no nanosecond exists; the server would refuse to be asked."""
    ages = [Window.from_us(-HOUR, 0), Window.from_us(-HOUR, HOUR), Window.from_us(9_300_000_000 * 10**6, 10**16)]
    whole = Window.from_us(-(10**15), 10**16)
    index = cluster.index(NANOS, {"at": "1970-01-01T00:00:00Z"}, *rows(0))
    with cluster.side(index) as side:
        assert list(side.count_many([*ages, whole])) == [0, 1, 0, 2]
    index = cluster.index(DATE, {"at": "1969-12-31T23:59:59.999Z"}, {"at": "1970-01-01T00:00:00Z"}, *rows(0))
    with cluster.side(index) as side:
        assert list(side.count_many([*ages, whole])) == [1, 2, 0, 3]


def test_more_than_ten_thousand(cluster: Any) -> None:
    """The number at which a search stops counting by default."""
    index = cluster.index(DATE, *rows(*range(0, 10_050_000, 1000)))
    with cluster.side(index) as side:
        assert side.count(DAY) == 10_050
        assert list(side.count_many([DAY])) == [10_050]


def test_many_indices_by_alias_list_and_pattern(cluster: Any) -> None:
    """Whichever way they are named, of both types."""
    one, other = cluster.index(DATE, *rows(0, 1_000_000)), cluster.index(NANOS, *rows(0, 5))
    alias = f"both-{one}"
    cluster.client.indices.put_alias(index=f"{one},{other}", name=alias)
    for name in (alias, f"{one},{other}", f"{alias[:-1]}*"):
        with cluster.side(name) as side:
            assert side.count(DAY) == 4
            assert list(side.count_many([DAY, Window.from_us(AT, AT + 1_000)])) == [4, 3]
            with refused(PermanentError, "whole millisecond"):
                side.count(Window.from_us(AT, AT + 1))


def test_many_windows_where_the_mappings_write_dates_differently(cluster: Any) -> None:
    """Seconds in one index, day before month in the other, and a name that stands for the field in both."""
    also = {"when": {"type": "alias", "path": "at"}}
    seconds = cluster.index({"at": {"type": "date", "format": "epoch_second"}, **also}, {"at": AT // 10**6})
    dotted = {"at": {"type": "date", "format": "dd.MM.uuuu HH:mm"}, **also}
    index = f"{seconds},{cluster.index(dotted, {'at': '10.03.2013 00:00'}, {'at': '10.03.2013 01:00'})}"
    hours = [Window.from_us(AT + n * HOUR, AT + (n + 1) * HOUR) for n in range(3)]
    for field in ("at", "when"):
        with cluster.side(index, timestamp_field=field) as side:
            assert list(side.count_many(hours)) == [side.count(hour) for hour in hours] == [2, 1, 0]


def test_windows_that_overlap_heavily(cluster: Any) -> None:
    """Counted by searches of their own, with the same result."""
    index = cluster.index(DATE, *rows(0, HOUR))
    with cluster.side(index) as side:
        assert list(side.count_many([DAY] * 1_100)) == [2] * 1_100


def test_a_document_that_stands_for_many_is_one(cluster: Any) -> None:
    """An aggregation takes the `_doc_count` of a rollup for as many documents; a row is one."""
    rollup = {**rows(0)[0], "_doc_count": 10}
    index = cluster.index(DATE, rollup, *rows(HOUR))
    hours = [Window.from_us(AT + n * HOUR, AT + (n + 1) * HOUR) for n in range(2)]
    with cluster.side(index) as side:
        assert list(side.count_many(hours)) == [side.count(hour) for hour in hours] == [1, 1]


def test_timestamps_that_no_aggregation_reads(cluster: Any) -> None:
    """Kept for searches only: many windows are counted as one is."""
    index = cluster.index({"at": {"type": "date", "doc_values": False}}, *rows(0, 1_000, 24 * HOUR))
    with cluster.side(index) as side:
        assert list(side.count_many([DAY, Window.from_us(DAY.end_us, DAY.end_us + HOUR)])) == [2, 1]


def test_a_query_narrows_everything(cluster: Any) -> None:
    """Counting one window and many, what is excluded, and extraction."""
    documents = [{**row, "n": n} for n, row in enumerate(rows(0, 1000, 2000, 3000))]
    index = cluster.index({**DATE, "n": {"type": "long"}}, *documents, {"n": 2}, {"n": 0})
    with cluster.side(index, query={"range": {"n": {"gte": 2}}}) as side:
        assert (side.count(DAY), list(side.count_many([DAY])), side.excluded()) == (2, [2], 1)
        from pipeline_core import ExtractRequest

        found = [n for batch in side.extract(ExtractRequest(DAY)) for n in batch.column("n").to_pylist()]
        assert sorted(found) == [2, 3]
        with cluster.side(index) as whole:
            assert whole.identity != side.identity


def test_nested_documents_are_not_rows(cluster: Any) -> None:
    """They are documents of their own to the index only."""
    legs = {"type": "nested", "properties": {"to": {"type": "keyword"}}}
    index = cluster.index({**DATE, "legs": legs}, {**rows(0)[0], "legs": [{"to": "LAX"}, {"to": "SFO"}]})
    with cluster.side(index) as side:
        assert (side.count(DAY), list(side.count_many([DAY])), side.excluded()) == (1, [1], 0)


def test_several_timestamps_count_in_each_window(cluster: Any) -> None:
    """Once in each, by one request as by many; and the document is no row, because it has no one time."""
    index = cluster.index(DATE, {"at": [at(AT * 1000), at((AT + 1_000) * 1000), at((AT + HOUR) * 1000)]})
    first, second = (Window.from_us(AT + n * HOUR, AT + (n + 1) * HOUR) for n in range(2))
    with cluster.side(index) as side:
        assert list(side.count_many([first, second])) == [side.count(first), side.count(second)] == [1, 1]


def test_a_refresh_shows_what_was_just_written(cluster: Any) -> None:
    """Without it, what was written a moment ago is not seen."""
    index = cluster.index(DATE, settings={"refresh_interval": "-1"})
    cluster.put(index, *rows(0), refresh=False)
    with cluster.side(index) as side, cluster.side(index, refresh=True) as fresh:
        assert side.count(DAY) == 0
        assert fresh.count(DAY) == 1
        cluster.put(index, *rows(0), refresh=False)
        assert list(fresh.count_many([DAY])) == [2]
        cluster.put(index, {"n": 1}, refresh=False)
        assert fresh.excluded() == 1


# --- or an error ------------------------------------------------------------------------------------------------------


def test_an_index_that_is_not_there(cluster: Any) -> None:
    """By its name, in a list, and as a pattern that matches nothing."""
    there = cluster.index(DATE)
    for name in ("no-such-index", f"{there},no-such-index", "no-such-*", f"{there},no-such-*"):
        with cluster.side(name) as side:
            fails(side, SideError, "index_not_found_exception", "correct index")


def test_a_closed_index_is_named_even_behind_a_pattern(cluster: Any) -> None:
    """A search over a pattern passes over it and counts the rest."""
    one, other = cluster.index(DATE, *rows(0)), cluster.index(DATE, *rows(0))
    alias = f"all-{one}"
    cluster.client.indices.put_alias(index=f"{one},{other}", name=alias)
    cluster.client.indices.close(index=other)
    for name in (other, f"{one},{other}", alias, f"{alias[:-1]}*", f"{one},{other[:-1]}*"):
        with cluster.side(name) as side:
            fails(side, SideError, "closed", other)


def test_a_field_that_is_not_mapped(cluster: Any) -> None:
    """At all, or in one index of several, which is named."""
    index, lacking = cluster.index(DATE, *rows(0)), cluster.index({"n": {"type": "long"}}, {"n": 1})
    with cluster.side(index, timestamp_field="when") as side:
        fails(side, SideError, "'when'", "no index has that field")
    with cluster.side(f"{index},{lacking}") as side:
        fails(side, SideError, lacking, "lack that field")


@pytest.mark.parametrize(
    ("properties", "text"),
    [
        ({"at": {"type": "keyword"}}, "found the type keyword, expected date or date_nanos"),
        ({"at": {"type": "date", "index": False, "doc_values": False}}, "not indexed"),
    ],
)
def test_a_field_that_cannot_be_counted_by(cluster: Any, properties: dict[str, Any], text: str) -> None:
    """A text that looks like a time would be compared letter by letter."""
    with cluster.side(cluster.index(properties)) as side:
        fails(side, SideError, text)


@pytest.mark.parametrize(
    ("scope", "texts"),
    [
        ({"carier": "UA"}, ("scope 'carier'", "no index has that field")),
        ({"carrier": "UA"}, ("scope 'carrier'", "found the type text, expected a keyword")),
        ({"legs.to": "LAX"}, ("scope 'legs.to'", "nested 'legs'")),
    ],
)
def test_a_scope_that_no_search_can_compare(cluster: Any, scope: dict[str, str], texts: tuple[str, ...]) -> None:
    """It would find nothing, or a word of a text; the keyword of that text is compared as a whole."""
    carrier = {"type": "text", "fields": {"keyword": {"type": "keyword"}}}
    legs = {"type": "nested", "properties": {"to": {"type": "keyword"}}}
    document = {**rows(0)[0], "carrier": "UA", "legs": {"to": "LAX"}}
    index = cluster.index({**DATE, "carrier": carrier, "legs": legs}, document)
    with cluster.side(index, scope=scope) as side:
        fails(side, SideError, *texts)
    with cluster.side(index, scope={"carrier.keyword": "UA"}) as side:
        assert side.count(DAY) == 1


def test_a_timestamp_of_nested_documents(cluster: Any) -> None:
    """They are no rows, so every window would be empty."""
    legs = {"type": "nested", "properties": {"at": {"type": "date"}}}
    with cluster.side(cluster.index({"legs": legs}, {"legs": rows(0)}), timestamp_field="legs.at") as side:
        fails(side, SideError, "timestamp_field 'legs.at'", "nested 'legs'")


def test_a_search_that_takes_too_long(cluster: Any) -> None:
    """The server cuts it off; that is a matter of this window, and no sign that the whole side is down."""
    words = ({**rows(n * 1_000)[0], "word": f"{n:08d}" * 1_000} for n in range(1_500))
    index = cluster.index({**DATE, "word": {"type": "keyword"}}, *words)
    slow = {"bool": {"should": [{"regexp": {"word": f".*{n}x.*"}} for n in range(100)]}}
    with cluster.side(index, query=slow, timeout_s=0.001) as side:
        for ask in (lambda: side.count(DAY), lambda: side.count_many([DAY] * 10)):
            with refused(TransientError, "cut off by timeout_s") as caught:
                ask()
            assert not caught.value.side_down


def test_a_part_of_the_shards_is_no_count(cluster: Any) -> None:
    """One of two indices has its shards on no node: the other one's documents are not the answer."""
    one = cluster.index(DATE, *rows(0))
    name = f"{one}-nowhere"
    cluster.client.indices.create(
        index=name,
        mappings={"properties": DATE},
        settings={"number_of_replicas": 0, "index.routing.allocation.require._name": "nobody"},
        wait_for_active_shards=0,
    )
    try:
        with cluster.side(f"{one}*") as side:
            for ask in (lambda: side.count(DAY), lambda: side.count_many([DAY]), side.excluded):
                with pytest.raises(TransientError):
                    ask()
    finally:
        cluster.client.indices.delete(index=name)


def test_a_query_that_one_index_refuses(cluster: Any) -> None:
    """Its cause is told, not `all shards failed`; alone, and as one of the searches of a bulk count."""
    for kind in (DATE, NANOS):
        index = cluster.index({**kind, "n": {"type": "long"}}, *rows(0))
        with cluster.side(index, query={"term": {"n": "many"}}) as side:
            fails(side, SideError, "many", "correct the settings")
    with cluster.side(index, query={"no_such_query": {}}) as side:
        fails(side, SideError, "no_such_query")


def test_a_remote_cluster_that_is_passed_over(cluster: Any) -> None:
    """A search leaves it out without an error, as it does its closed indices; the rest is not the answer."""
    index = cluster.index(DATE, *rows(0))
    more, alias = f"{index}-more", f"all-{index}"
    cluster.client.indices.create(index=more, mappings={"properties": DATE}, settings={"number_of_replicas": 0})
    cluster.client.indices.put_alias(index=f"{index}*", name=alias)
    near = {"seeds": [f"127.0.0.1:{cluster.server.transport_port}"], "skip_unavailable": True}
    # 1 is nobody's port.
    gone = {"seeds": ["127.0.0.1:1"], "skip_unavailable": True}
    cluster.client.cluster.put_settings(persistent={"cluster.remote": {"near": near, "gone": gone}})
    try:
        with cluster.side(f"near:{index}") as side:
            assert (side.count(DAY), list(side.count_many([DAY]))) == (1, [1])
        for name in (f"near:{index}*", f"near:{alias}*"):
            cluster.client.indices.open(index=more)
            cluster.client.cluster.health(index=more, wait_for_status="yellow")
            with cluster.side(name) as side:
                assert side.count(DAY) == 1
                cluster.client.indices.close(index=more)
                fails(side, SideError, f"near:{more} are closed")
        with cluster.side(f"{index},gone:{index}") as side:
            for ask in (lambda: side.count(DAY), lambda: side.count_many([DAY])):
                with refused(TransientError, "skipped"):
                    ask()
    finally:
        nothing = {"seeds": None, "skip_unavailable": None}
        cluster.client.cluster.put_settings(persistent={"cluster.remote": {"near": nothing, "gone": nothing}})


def test_a_tripped_circuit_breaker_heals(cluster: Any) -> None:
    """The whole side is short of memory, for a while."""
    index = cluster.index(DATE, *rows(0))
    cluster.client.cluster.put_settings(persistent={"indices.breaker.request.limit": "1b"})
    try:
        with cluster.side(index) as side, refused(TransientError, "429", "circuit_breaking_exception") as _:
            side.count_many([DAY, Window.from_us(AT, AT + HOUR)])
    finally:
        cluster.client.cluster.put_settings(persistent={"indices.breaker.request.limit": None})
