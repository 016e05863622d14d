"""What a world is, whichever database it lives in: source, target and store in one kind, and a stage in a folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

from pipeline_core.pipeline import Pipeline
from worlds.child import Child

BEGIN = datetime(2013, 3, 10, 5, tzinfo=UTC)  # midnight in New York, on the day its clocks go forward
NOW = "2013-03-10T12:00"
RUN = {"crash_backoff_s": 0.01, "backoff_s": 0.01, "batch_rows": 10}


class World(ABC):
    """Six windows of New York's 2013-03-10, up to noon; a row every seven minutes, and one exactly on each boundary.

    `server` names the fixture of the server that it needs. `one_writer`: who writes to the target locks it for all
    others, and only the end of its process frees it. `processes`: how many may work at the same time. `untold`: steps
    that it does not go through. `keeps_records`: its store lives and dies with its server.
    `everywhere`: whether the shorter profile runs every test on it; `kills`: how often it kills each step there.
    """

    server: ClassVar[str | None] = None
    one_writer: ClassVar[bool] = False
    processes: ClassVar[int] = 8
    untold: ClassVar[frozenset[str]] = frozenset()
    columns: ClassVar[str] = "id integer primary key, ts timestamp not null, value real, note text"
    placeholder: ClassVar[str] = "?"
    now: ClassVar[str | None] = NOW
    keeps_records: ClassVar[bool] = True
    everywhere: ClassVar[bool] = True
    kills: ClassVar[int] = 3

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._children: list[Child] = []
        self.fill()

    # --- what differs ------------------------------------------------------------------------------------------------

    @abstractmethod
    def url(self, name: str) -> str:
        """The URL of the database `source`, `target` or `records`."""

    @abstractmethod
    def connection(self, name: str) -> Any:
        """A connection to that database by its own driver, in autocommit mode."""

    @abstractmethod
    def tables(self) -> set[str]:
        """What stands in the target."""

    def forget(self) -> None:
        """Loses the store: the next one is empty."""
        raise NotImplementedError

    def quiet(self) -> None:  # noqa: B027 - most have nothing to wait for
        """Waits until what killed workers have held is freed: a server may notice their death a little later."""

    def cut_off(self) -> None:
        """Ends the sessions that stand still inside a transaction, as the server's own limit does in time."""
        raise NotImplementedError

    def kill_server(self) -> None:
        """Ends the server without any warning."""
        raise NotImplementedError

    def start_server(self) -> None:
        """Starts it again, and waits until it answers."""
        raise NotImplementedError

    # --- the data ----------------------------------------------------------------------------------------------------

    def fill(self) -> None:
        """Makes the source."""
        self.query("source", f"create table events ({self.columns})")
        self.query("source", "create index events_ts on events (ts)")
        self.insert(range(0, 11 * 60, 7))
        self.insert(range(60, 11 * 60, 60), first_id=10_000)

    def insert(self, minutes: Sequence[int], first_id: int = 0) -> None:
        """Adds rows to the source, so many minutes after midnight."""
        rows = [
            (first_id + n, f"{BEGIN + timedelta(minutes=m):%Y-%m-%d %H:%M:%S}", m / 8, None if m % 2 else f"nöte {m}")
            for n, m in enumerate(minutes)
        ]
        with closing(self.connection("source")) as connection:
            cursor = connection.cursor()
            cursor.execute("begin")
            cursor.executemany(f"insert into events values ({', '.join([self.placeholder] * 4)})", rows)
            cursor.execute("commit")

    def query(self, name: str, sql: str) -> list[tuple[Any, ...]]:
        """The rows of a query, or none of another statement, by the database's own driver."""
        with closing(self.connection(name)) as connection:
            cursor = connection.cursor()
            cursor.execute(sql)
            return list(cursor.fetchall()) if cursor.description else []

    def rows(self, name: str) -> list[tuple[Any, ...]]:
        """All rows of a side, in order, their times as instants."""
        return self.query(name, "select id, ts, value, note from events order by id, ts")

    def fences(self) -> list[tuple[Any, ...]]:
        """The fences in the target's ledger, in order of time."""
        return self.query("target", "select fence from pipeline_ledger order by start_us")

    # --- the pipeline ------------------------------------------------------------------------------------------------

    def side(self, name: str) -> dict[str, Any]:
        """The section of the configuration for `source` or `target`."""
        section = {"type": "sql", "table": "events", "timestamp_column": "ts", "timestamp_timezone": "UTC"}
        return {**section, "url": self.url(name), **({"create": True} if name == "target" else {})}

    def config(self, **changes: Any) -> dict[str, Any]:
        """The pipeline's mapping."""
        return {
            "name": "events",
            "timezone": "America/New_York",
            "granularity": "2h",
            "x_time_back": "0s",
            "begin": "2013-03-10",
            "source": self.side("source"),
            "target": self.side("target"),
            "stage": {"type": "objects", "url": f"file://{self.folder / 'stage'}"},
            "store": {"type": "sql", "url": self.url("records")},
            "run": RUN,
            "retry": {"wait_s": 0.01},
        } | changes

    def pipeline(self, **changes: Any) -> Pipeline:
        """The pipeline, in this process."""
        return Pipeline.from_mapping(self.config(**changes))

    def run(self, **changes: Any) -> dict[str, Any]:
        """A whole run, in this process."""
        with self.pipeline(**changes) as pipeline:
            return pipeline.run(now=self.now).as_mapping()

    def done(self) -> int:
        """How many windows are done."""
        ((count,),) = self.query("records", "select count(*) from pipeline_core_records where status = 'done'")
        return int(count)

    def start(self, **changes: Any) -> Child:
        """A whole run in a process of its own; the modules beside this package can be named as plugins."""
        child = Child(self.config(**changes), self.now)
        self._children.append(child)
        return child

    def close(self) -> None:
        """Ends the processes that a failed test has left."""
        for child in self._children:
            child.abandon()

    # --- the proof ---------------------------------------------------------------------------------------------------

    def staged(self) -> list[Path]:
        """The files in the stage."""
        return sorted(path for path in (self.folder / "stage").rglob("*") if path.is_file())

    def assert_whole(self) -> None:
        """Source and target equal row for row, every window done once, nothing left lying about."""
        assert self.rows("target") == self.rows("source")
        spans = self.query(
            "records", "select start_us, end_us, status from pipeline_core_records where live = 1 order by start_us"
        )
        assert [status for *_, status in spans] == ["done"] * len(spans)
        ledger = self.query("target", "select start_us, end_us from pipeline_ledger order by start_us")
        assert len(ledger) == len(set(ledger))
        assert set(ledger) <= {(start, end) for start, end, _ in spans}
        assert self.tables() == {"events", "pipeline_ledger", "pipeline_ledger_head"}
        assert self.staged() == []
