"""PostgreSQL by psycopg 3: many writers, row locks, and one clock, the server's."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import event, exc

from pipeline_core import ConfigError, PermanentError, PipelineError, SideError, TransientError, Window
from pipeline_core.secrets import redact
from pipeline_sql.engines.codes import Codes
from pipeline_sql.engines.default import BETWEEN_PROBES_S, PROBES, SILENT_S, Engine
from pipeline_sql.postgresql_claims import TAKE_FENCES, claiming
from pipeline_sql.prepared import Connected, Direct, Prepared, Row, scalar
from pipeline_sql.tables import Column, Range, Rows, Table, named_column

if TYPE_CHECKING:  # the record store needs no Arrow
    from pipeline_sql.loading import Loading
    from pipeline_sql.postgresql_types import PostgresTypes
    from pipeline_sql.side import Side

_CONNECT_TIMEOUT_S = 10
# What the driver reads, whatever a role or database sets: times in UTC and ISO's form, floats with all their digits.
_FOR_THE_DRIVER = {"TimeZone": "UTC", "DateStyle": "ISO", "extra_float_digits": 3}
# The store's statements all have an index to walk, and keep one plan: it must serve when the table has grown, too.
_FOR_THE_STORE = {
    "default_transaction_isolation": "'read committed'",
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
}
_TAKE_FENCES = Prepared(sa.text(f"SELECT {TAKE_FENCES}(:now_us, :count) AS first"))
_SCHEMA_LOCK = "pipeline_core schema"
_PLAN_LOCK = "pipeline_core plan of "

# What codes of the server mean to the core, by how they begin (https://www.postgresql.org/docs/current/errcodes-appendix.html).
_CODES = Codes(
    heals={
        "40": "another transaction was in the way",
        "55P03": "see what keeps its transaction open, or raise timeout_s",
        "57014": "make an index on the timestamp column, raise timeout_s, or the statement_timeout of role or database",
        "25P03": "the transaction stood still for too long",
    },
    heals_for_all={
        "08": "check the server and the way to it",
        "53100": "free some space on its disk",
        "53": "the server has no more to give: wait, or raise its limits",
        "57P": "the server ended the connection, or is starting",
        "58": "check the server's disk and log",
    },
    needs_a_person={
        "28": "check user and password",
        "3D000": "create the database, or correct its name",
        "3F000": "create the schema, or correct its name",
        "42501": "grant this user the right",
        "42P01": "create it, or correct its name",
        "42703": "create it, or correct its name",
        "25006": "connect to a server that may be written to",
    },
)
# A refused connection carries no code, only words: these of the driver, or of a server that speaks English.
_REFUSED = {
    "no password supplied": _CODES.needs_a_person["28"],
    "no pg_hba.conf entry": "let the server's pg_hba.conf admit this user from here",
    "permission denied": _CODES.needs_a_person["42501"],
    "unrecognized configuration parameter": "correct the url",
    "connection is bad: invalid": "correct the url",
}
_SAID_BY_THE_SERVER = ":  "  # so the driver parts the severity from the text, whatever language both are in

_COPIED_ROWS = 50_000  # encoded at a time

_RELATION = """
SELECT c.oid AS id, n.nspname AS schema, c.relname AS name, c.relkind::text AS kind
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = to_regclass(:name) AND c.relkind IN ('r', 'p', 'f', 'v', 'm')
"""
# Whatever changes a column, its type or an index writes its row in the catalog anew, under another `xmin`.
_VERSION = """
SELECT c.oid,
       (SELECT array_agg(ARRAY[a.xmin::text, t.xmin::text] ORDER BY a.attnum)
        FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid WHERE a.attrelid = c.oid AND a.attnum > 0),
       (SELECT array_agg(i.xmin::text ORDER BY i.indexrelid) FROM pg_index i WHERE i.indrelid = c.oid)
FROM pg_class c
WHERE c.oid = to_regclass(:name)
"""
# A domain counts as the type below it, which may be one too, an array as its elements.
_COLUMNS = """
WITH RECURSIVE below (attnum, type, modifier) AS (
    SELECT attnum, atttypid, atttypmod FROM pg_attribute WHERE attrelid = :id AND attnum > 0 AND NOT attisdropped
    UNION ALL
    SELECT attnum, t.typbasetype, t.typtypmod FROM below JOIN pg_type t ON t.oid = type WHERE t.typtype = 'd'
)
SELECT a.attname AS name,
       format_type(a.atttypid, a.atttypmod) AS declared,
       a.attnotnull AND NOT a.atthasdef AND a.attidentity = '' AS required,
       a.attgenerated <> '' OR a.attidentity = 'a' AS generated,
       CASE WHEN e.typtype = 'e' THEN 'enum' ELSE e.typname END AS type,
       b.typcategory = 'A' AND b.typelem <> 0 AS is_array,
       below.modifier
FROM below
JOIN pg_attribute a ON a.attrelid = :id AND a.attnum = below.attnum
JOIN pg_type b ON b.oid = below.type AND b.typtype <> 'd'
JOIN pg_type e ON e.oid = CASE WHEN b.typcategory = 'A' AND b.typelem <> 0 THEN b.typelem ELSE b.oid END
ORDER BY a.attnum
"""
_INDEXES = """
SELECT array_agg(a.attname::text ORDER BY k.place)
FROM pg_index i
JOIN pg_class c ON c.oid = i.indrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_class x ON x.oid = i.indexrelid
JOIN pg_am m ON m.oid = x.relam
CROSS JOIN unnest(i.indkey::int2[]) WITH ORDINALITY AS k (number, place)
LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.number
WHERE n.nspname = :schema AND c.relname = :table AND k.place <= i.indnkeyatts
  AND m.amname = 'btree' AND i.indisvalid AND i.indpred IS NULL
GROUP BY i.indexrelid
"""
_FOLLOWERS = """
SELECT DISTINCT f.conrelid::regclass::text AS name
FROM pg_constraint f
JOIN pg_class c ON c.oid = f.confrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = :schema AND c.relname = :table AND f.contype = 'f' AND f.confdeltype IN ('c', 'n', 'd')
ORDER BY name
"""


class PostgresEngine(Engine):
    """PostgreSQL. Waiting for a lock ends after the timeout."""

    name = "postgresql"
    # Not now(): that is the instant at which the transaction began, before any wait for a lock.
    clock = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"

    def _create(self) -> sa.Engine:
        if self.url.drivername == "postgresql":
            self.url = self.url.set(drivername="postgresql+psycopg")
        if self.url.get_driver_name() != "psycopg":
            raise ConfigError(
                f"url: found the driver {self.url.drivername!r}, expected postgresql+psycopg://; "
                "pip install 'windowed-pipeline-sql[postgresql]' brings it"
            )
        known = {
            "connect_timeout": _CONNECT_TIMEOUT_S,
            "application_name": "pipeline-core",
            "keepalives_idle": SILENT_S,
            "keepalives_interval": BETWEEN_PROBES_S,
            "keepalives_count": PROBES,
        }
        wanted = {name: value for name, value in known.items() if name not in self.url.query}
        made = sa.create_engine(
            self.url,
            hide_parameters=True,
            # Each statement sees what was committed before it: a lock is of use only to what is read after it.
            isolation_level="READ COMMITTED",
            # Whatever the URL or the database says: the upload encodes text as UTF-8.
            connect_args={**wanted, "client_encoding": "utf8"},
        )
        engine = self._connecting(made)

        @event.listens_for(engine, "connect")
        def on_connect(connection: Any, record: Any) -> None:
            del record
            settings = {"lock_timeout": max(1, round(self.timeout_s * 1000)), **_FOR_THE_DRIVER}
            listed = ", ".join(f"set_config('{name}', '{value}', false)" for name, value in settings.items())
            connection.execute(f"SELECT {listed}")
            connection.commit()

        return engine

    def prepare_store(self) -> None:
        # A worker that was stopped inside a transaction of the store would hold its locks for ever.
        milliseconds = max(1, round(self.timeout_s * 1000))
        settings = {"idle_in_transaction_session_timeout": milliseconds, **_FOR_THE_STORE}

        @event.listens_for(self.sa, "connect")
        def on_connect(connection: Any, record: Any) -> None:
            del record
            self._check_encoding(connection.info.parameter_status("server_encoding"))
            connection.autocommit = True
            for name, value in settings.items():
                connection.execute(f"SET {name} = {value}")

        # The driver would begin one transaction for each statement, the claim's too, with a journey of its own.
        @event.listens_for(self.sa, "begin")
        def on_begin(connection: sa.Connection) -> None:
            connection.exec_driver_sql("BEGIN")

    def _check_encoding(self, found: str) -> None:
        if found != "UTF8":
            raise SideError(
                f"{self.place}: found a database in {found}, which cannot hold every record, expected UTF8; "
                "make one for the store: CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0"
            )

    def _begin(self, connection: sa.PoolProxiedConnection) -> None:
        driver: Any = connection.driver_connection
        driver.execute("BEGIN")

    @contextmanager
    def snapshot(self) -> Iterator[sa.Connection]:
        with self.reading() as connection:
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            yield connection

    @contextmanager
    def migrating(self) -> Iterator[sa.Connection]:
        with self.writing() as connection:
            _lock(connection, _SCHEMA_LOCK)
            yield connection

    def lock_plan(self, connection: sa.Connection, pipeline: str) -> None:
        _lock(connection, _PLAN_LOCK + pipeline)

    def now_us(self, connection: Connected) -> int:
        return int(scalar(connection, f"SELECT {self.clock}"))

    def take_fences(self, connection: Connected, now_us: int, count: int) -> int:
        first: int = _TAKE_FENCES.rows(connection, {"now_us": now_us, "count": count})[0]["first"]
        return first

    def claim_at_once(self, wanted: Mapping[str, Any]) -> list[Row]:
        with self.translated(), closing(self.sa.raw_connection()) as connection:
            return claiming(self.clock).rows(Direct(self.sa.dialect, connection), wanted)

    def translate(self, error: Exception) -> PipelineError:
        cause: Any = getattr(error, "orig", None) or error
        code = getattr(cause, "sqlstate", None)
        if code is None:
            return self._without_code(error, cause)
        # Neither detail nor context, which quote the row; nor the end of a text such as: invalid input: "…".
        text = redact(str(cause.diag.message_primary or type(cause).__name__))
        if code.startswith("22"):
            text = text.partition(': "')[0]
        said = f"{self.place}: {text}"
        return _CODES.error(code, said) or PermanentError(said)

    # --- the connector's half -----------------------------------------------------------------------------------------

    @property
    def host(self) -> str | None:
        asked = self.url.query.get("host", ())
        return self.url.host or (asked if isinstance(asked, str) else ",".join(asked)) or None

    @property
    def types(self) -> PostgresTypes:
        from pipeline_sql.postgresql_types import PostgresTypes  # noqa: PLC0415 - loads Arrow, which the store needs not

        return PostgresTypes()

    def prepare_side(self, *, create: bool) -> None:
        del create

        # Both would else come as parsed objects, and lose how they were written.
        @event.listens_for(self.sa, "connect")
        def on_connect(connection: Any, record: Any) -> None:
            from psycopg.types.string import TextLoader  # noqa: PLC0415

            del record
            for name in ("json", "jsonb", "uuid"):
                connection.adapters.register_loader(name, TextLoader)

    @contextmanager
    def transaction(self, connection: sa.Connection, *, writing: bool) -> Iterator[None]:
        with super().transaction(connection, writing=writing):
            if writing:
                # A worker that stands still while it holds the ledger's lock is cut off before its lease ends.
                milliseconds = max(1, round(self.standstill_s * 1000))
                connection.exec_driver_sql(f"SET LOCAL idle_in_transaction_session_timeout = {milliseconds}")
            else:
                # Only scratch is written, which ends with the session: nobody need wait for the disk.
                connection.exec_driver_sql("SET LOCAL synchronous_commit = off")
            yield

    def lost(self, connection: sa.Connection) -> bool:
        return super().lost(connection) or bool(getattr(connection.connection.driver_connection, "closed", False))

    @contextmanager
    def limited(self, connection: sa.Connection) -> Iterator[None]:
        connection.exec_driver_sql(f"SET LOCAL statement_timeout = {max(1, round(self.timeout_s * 1000))}")
        yield

    def schema_version(self, connection: sa.Connection, schema: str | None, name: str) -> object:
        return connection.execute(sa.text(_VERSION), {"name": _quoted(schema, name)}).one_or_none()

    def schema_names(self, connection: sa.Connection) -> Sequence[str]:
        return sa.inspect(connection).get_schema_names()

    def table(self, connection: sa.Connection, schema: str | None, name: str) -> Table | None:
        from pipeline_sql.postgresql_types import PostgresColumn  # noqa: PLC0415

        found = connection.execute(sa.text(_RELATION), {"name": _quoted(schema, name)}).one_or_none()
        if found is None:
            return None
        columns = tuple(
            PostgresColumn(
                each.name,
                each.declared,
                required=each.required,
                generated=each.generated,
                type=each.type,
                array=each.is_array,
                modifier=each.modifier,
            )
            for each in connection.execute(sa.text(_COLUMNS), {"id": found.id})
        )
        return Table(found.schema, found.name, columns, found.kind in ("v", "m"))

    def has_index(self, connection: sa.Connection, schema: str | None, name: str) -> bool:
        found = sa.text("SELECT to_regclass(:name) IS NOT NULL")
        return bool(connection.execute(found, {"name": _quoted(schema, name)}).scalar_one())

    def _indexes(self, connection: sa.Connection, table: Table) -> list[Sequence[str | None]]:
        asked = {"schema": table.schema, "table": table.name}
        return list(connection.execute(sa.text(_INDEXES), asked).scalars())

    def followers(self, connection: sa.Connection, table: Table) -> Sequence[str]:
        asked = {"schema": table.schema, "table": table.name}
        return list(connection.execute(sa.text(_FOLLOWERS), asked).scalars())

    def selected(self, column: Column) -> sa.ColumnElement[Any]:
        # The driver reads the arrays of the types it knows, and no enumeration is among them.
        value = named_column(column.name)
        return sa.cast(value, sa.ARRAY(sa.Text)) if self.types.is_enums(column) else value

    def count_ranges(self, connection: sa.Connection, side: Side, ranges: Sequence[Range]) -> list[int]:
        if len(ranges) <= 1:
            return super().count_ranges(connection, side, ranges)
        kind = sa.ARRAY(sa.BigInteger() if isinstance(ranges[0][0], int) else _moment(ranges[0][0]))
        if side.indexed:
            lows, highs = (sa.literal(list(ends), kind) for ends in zip(*ranges, strict=True))
            return self._count_each(connection, side, lows, highs)
        cuts = sorted({end for each in ranges for end in each})
        below = self._count_below(connection, side, cuts, kind)
        return [below[high] - below[low] for low, high in ranges]

    def _count_each(self, connection: sa.Connection, side: Side, lows: Any, highs: Any) -> list[int]:
        """Range by range, each a walk of the index, in one statement."""
        asked = sa.func.unnest(lows, highs).table_valued("low", "high", with_ordinality="place", name="asked")
        asked = asked.render_derived()
        value = named_column(side.timestamp.name)
        rows = sa.select(sa.func.count()).select_from(side.table.clause()).where(side.rows)
        count = rows.where(value >= asked.c.low, value < asked.c.high).correlate(asked).scalar_subquery()
        found = connection.execute(sa.select(count).select_from(asked).order_by(asked.c.place))
        return [int(number) for number in found.scalars()]

    def _count_below(
        self, connection: sa.Connection, side: Side, cuts: list[Any], kind: sa.ARRAY[Any]
    ) -> dict[Any, int]:
        """The rows between the first cut and each one, from one reading of the whole table."""
        value = named_column(side.timestamp.name)
        bucket = sa.func.width_bucket(value, sa.literal(cuts, kind)).label("bucket")
        rows = sa.select(bucket, sa.func.count()).select_from(side.table.clause()).where(side.rows)
        found = connection.execute(rows.where(value >= cuts[0], value < cuts[-1]).group_by(sa.text("1")))
        counts = {int(place): int(number) for place, number in found}
        return dict(zip(cuts, accumulate((counts.get(n, 0) for n in range(1, len(cuts))), initial=0), strict=True))

    @contextmanager
    def fetching(self, connection: sa.Connection, query: sa.Select[Any]) -> Iterator[Callable[[int], Rows]]:
        # A cursor of the server, which sends no rows before they are asked for; the driver's own, without wrapping.
        compiled = query.compile(connection)
        driver: Any = connection.connection.driver_connection
        try:
            cursor = driver.cursor(name="pipeline_extract")
            try:
                cursor.execute(str(compiled), compiled.params)
                yield cursor.fetchmany
            finally:
                self._close(cursor)
        except self.sa.dialect.loaded_dbapi.DataError as error:
            if error.sqlstate is not None:
                raise
            raise PermanentError(
                f"{self.place}: found a date or time that cannot be kept, such as infinity, 24:00 or one before the "
                "year 1; correct the row, or exclude the column"
            ) from None

    def _close(self, cursor: Any) -> None:
        try:
            cursor.close()
        except self.sa.dialect.loaded_dbapi.Error:
            cursor.close()  # what the lost connection kept the first call from: letting go of it here
            raise

    def fill(
        self,
        connection: sa.Connection,
        scratch: sa.TableClause,
        loading: Loading,
        batches: Iterable[Any],
        window: Window,
    ) -> None:
        import pyarrow as pa  # noqa: PLC0415

        into = connection.dialect.identifier_preparer.format_table(scratch)
        driver: Any = connection.connection.driver_connection
        encoder = None
        with driver.cursor() as cursor, cursor.copy(f"COPY {into} FROM STDIN (FORMAT BINARY)") as copy:
            for batch in batches:
                for at in range(0, max(1, len(batch)), _COPIED_ROWS):
                    arrays = loading.values(batch.slice(at, _COPIED_ROWS), window)
                    if encoder is None:
                        encoder = self.types.encoder(loading.columns, arrays)
                        copy.write(encoder.write_header())
                    names = [f"c{index}" for index in range(len(arrays))]
                    copy.write(encoder.write_batch(pa.RecordBatch.from_arrays(arrays, names)))
            if encoder is not None:
                copy.write(encoder.finish())

    # --- errors -------------------------------------------------------------------------------------------------------

    def _without_code(self, error: Exception, cause: Exception) -> PipelineError:
        if not isinstance(cause, self.sa.dialect.loaded_dbapi.OperationalError):
            if isinstance(error, exc.DBAPIError) and error.connection_invalidated:
                return TransientError(f"{self.place}: the connection was lost", side_down=True)
            return super().translate(error)
        text = redact(" ".join(str(cause).split()))
        for words, advice in _REFUSED.items():
            if words in text:
                return SideError(f"{self.place}: {text}; {advice}")
        if _names_who_or_where(cause) and "too many connections" not in text:
            return SideError(f"{self.place}: {text}; check user and password, their rights, and the database's name")
        return TransientError(f"{self.place}: {text}; {_CODES.heals_for_all['08']}", side_down=True)


def _names_who_or_where(cause: Any) -> bool:
    """Whether the server refused a connection by the name of its user or database, in whatever language.

    What heals, a server that starts or has too many clients, names neither; too many of one role or database do, and
    are told from these only in English.
    """
    said = str(cause).partition(_SAID_BY_THE_SERVER)[2]
    asked = (cause.pgconn.user, cause.pgconn.db) if cause.pgconn is not None else ()
    names = [re.escape(name.decode(errors="replace")) for name in asked if name]
    return any(re.search(rf"[^\w\s]\s?{name}\s?[^\w\s]", said) for name in names)


def _moment(value: datetime) -> sa.TIMESTAMP:
    return sa.TIMESTAMP(timezone=value.tzinfo is not None)


def _quoted(schema: str | None, name: str) -> str:
    return ".".join('"' + part.replace('"', '""') + '"' for part in (schema, name) if part is not None)


def _lock(connection: sa.Connection, name: str) -> None:
    """Waits for the lock of that name, which the end of the transaction frees."""
    connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"), {"name": name})
