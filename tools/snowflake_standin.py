"""The stand-in for Snowflake: fakesnow's server, corrected where the official connector or a test would be misled.

Run by `snowflake_server.py`, with the Python of an environment of its own. What is added here, because the real one
does it and fakesnow does not: a wrong password is refused; ALTER SESSION is accepted; a failed statement is a SQL
error, not a status 500 that drivers repeat; DDL commits the open transaction; UPDATE, DELETE and MERGE lock their table
until the transaction ends, and others wait (an idle holder in the way is rolled back: there after five minutes, here
after `IDLE_S`); CURRENT_TRANSACTION(); PUT and COPY with the quotes and commas that other programs write; REMOVE;
statements that go on without their session, of which the status is told, and which are aborted; a table's stage goes
with it. `/statements` gives the texts that each session has sent, `/sessions` what is open and lies about; between
`/hold?on=1` and `/hold` no statement begins to go on without its session.

What it forgives: any database and schema, which it makes; missing privileges; a second statement of a transaction sees
what the first saw; it keeps no length of text, no nanoseconds and no zone of a value; it knows no warehouse, query
history or server-side timeout.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import re
import shutil
import sys
import time
import uuid
from pathlib import Path
from string import Template
from typing import Any

import duckdb
import fakesnow.server as fake
import uvicorn
from fakesnow import copy_into, cursor, info_schema
from fakesnow.cursor import FakeSnowflakeCursor
from fakesnow.instance import FakeSnow
from fakesnow.transforms import transforms
from fakesnow.transforms.stage import LOCAL_BUCKET_PATH, internal_dir
from snowflake.connector import errors
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

PASSWORDS = {"owner": "geheim-owner", "other": "geheim-other"}
IDLE_S = 1.5


def _begins(words: str) -> re.Pattern[str]:
    return re.compile(rf"\s*(?:{words})", re.IGNORECASE)


_SESSION = _begins(r"ALTER\s+SESSION\b")
_DDL = _begins(r"(?:CREATE|ALTER|DROP|TRUNCATE|COMMENT|GRANT|UNDROP)\b(?!\s+SESSION)")
_LOCKING = _begins(r"(?:UPDATE|DELETE\s+FROM|MERGE\s+INTO)\s+((?:\"(?:[^\"]|\"\")*\"|[\w$.])+)")
_WRITING = _begins(r"(?:INSERT|UPDATE|DELETE|MERGE|COPY)\b")
_FILES = _begins(r"(?:PUT|COPY)\b")
_BEGINNING = _begins(r"(?:BEGIN|START\s+TRANSACTION)\b")
_ENDING = _begins(r"(?:COMMIT|ROLLBACK)\b")
# DuckDB has temporary tables in no schema.
_SCRATCH = re.compile(r'(?<![@.])(?<!STAGE )(?:"(?:[^"]|"")+"\.){2}(?="PIPELINE_SCRATCH)')
# What Snowflake takes and fakesnow does not: a stage that PUT names in quotes, quotes around how COPY matches columns,
# commas between the options of a file format.
_PUT_STAGE = re.compile(r"(\bPUT\s+'(?:[^']|'')*'\s+)'(@[^']*)'", re.IGNORECASE)
_MATCHING = re.compile(r"(\bMATCH_BY_COLUMN_NAME\s*=\s*)'(\w+)'", re.IGNORECASE)
_OPTIONS = re.compile(r"\bFILE_FORMAT\s*=\s*\([^()]*\)", re.IGNORECASE)
_REMOVING = re.compile(r'\s*REMOVE\s+@"([^"]+)"\."([^"]+)"\."([^"]+)"/(\S+)', re.IGNORECASE)
_DROPPING = _begins(r'DROP\s+TABLE\s+(?:IF\s+EXISTS\s+)?"([^".]+)"\."([^".]+)"\."([^".]+)"')
_NO_RESULT = "SELECT 'Statement executed successfully.' AS status"


class Session:
    """What is known of a session beside fakesnow's own connection."""

    def __init__(self, autocommit: bool, lock_timeout_s: float) -> None:
        self.id = uuid.uuid4().int % 10**12
        self.autocommit = autocommit
        self.lock_timeout_s = lock_timeout_s
        self.transaction: str | None = None
        self.left_alone = False
        self.seen = time.monotonic()
        self.busy = asyncio.Lock()


class Alone:
    """A statement that goes on without its session: it commits as the session does, and has nothing else of it."""

    def __init__(self, session: Session, token: str) -> None:
        self.id = str(uuid.uuid4())
        self.status = "RUNNING"
        self.code = ""
        self.message = ""
        self.task: asyncio.Task[None] | None = None
        asked = fake.sessions[token]
        fake.sessions[self.id] = fake.shared_fs.connect(asked.database, asked.schema, autocommit=session.autocommit)

    async def run(self, request: Request) -> None:
        try:
            await going.wait()
            found = json.loads((await fake.query_request(request)).body)
            self.status = "SUCCESS" if found["success"] else "FAILED_WITH_ERROR"
            self.code, self.message = found.get("code") or "", found.get("message") or ""
        except asyncio.CancelledError:
            self.status, self.code, self.message = "ABORTED", "000604", "SQL execution canceled"
        finally:
            fake.sessions.pop(self.id).close()


sessions: dict[str, Session] = {}
alone: dict[str, Alone] = {}
going = asyncio.Event()
going.set()
statements: list[dict[str, Any]] = []
locks: dict[str, str] = {}
definitions = asyncio.Lock()  # what fakesnow notes of a table, two statements at once would note twice


def refused(code: int, state: str, message: str) -> JSONResponse:
    text = f"{code:06d}"
    data = {"errorCode": text, "sqlState": state, "queryId": str(uuid.uuid4())}
    return JSONResponse({"data": data, "code": text, "message": message, "success": False})


async def body_of(request: Request) -> Any:
    body = await request.body()
    return json.loads(gzip.decompress(body) if request.headers.get("Content-Encoding") == "gzip" else body)


def with_body(request: Request, body: Any) -> Request:
    """The same request with another body, for fakesnow's own handler."""
    headers = [(name, value) for name, value in request.scope["headers"] if name != b"content-encoding"]
    changed = Request({**request.scope, "headers": headers}, request.receive)
    changed._body = json.dumps(body).encode()
    return changed


async def login(request: Request) -> JSONResponse:
    body = await body_of(request)
    data = body["data"]
    user = str(data.get("LOGIN_NAME", ""))
    if PASSWORDS.get(user) != data.get("PASSWORD"):
        answer = {"data": {"nextAction": "RETRY_LOGIN"}, "code": "390100", "success": False}
        return JSONResponse({**answer, "message": "Incorrect username or password was specified."})
    parameters = data.setdefault("SESSION_PARAMETERS", {})
    autocommit = str(parameters.get("AUTOCOMMIT", True)).lower() != "false"
    parameters["AUTOCOMMIT"] = autocommit
    async with definitions:
        reply = json.loads((await fake.login_request(with_body(request, body))).body)
    session = Session(autocommit, float(parameters.get("LOCK_TIMEOUT", 43_200)))
    sessions[reply["data"]["token"]] = session
    reply["data"] |= {
        "masterToken": reply["data"]["token"],
        "validityInSeconds": 3600,
        "masterValidityInSeconds": 14_400,
        "sessionId": session.id,
    }
    statements.append({"session": session.id, "sql": f"LOGIN {json.dumps(parameters)}", "transaction": None})
    return JSONResponse(reply)


async def query(request: Request) -> JSONResponse:
    try:
        token = fake.to_token(request)
        fake.to_conn(token)
    except fake.ServerError as error:
        return JSONResponse({"data": None, "code": error.code, "message": error.message, "success": False})
    session, body = sessions[token], await body_of(request)
    sql = str(body["sqlText"])
    if not body.get("describeOnly"):
        statements.append({"session": session.id, "sql": sql, "transaction": session.transaction})
    if removing := _REMOVING.match(sql):
        shutil.rmtree(internal_dir(".".join(removing.group(1, 2, 3)), removing[4]), ignore_errors=True)
    if removing or _SESSION.match(sql):
        return await fake.query_request(with_body(request, {**body, "sqlText": _NO_RESULT, "bindings": None}))
    if body.get("asyncExec"):
        return started(request, body, Alone(session, token), session)
    blocked = await begun(token, session, sql)
    if blocked is not None:
        return blocked
    here = f"'{session.transaction}'" if session.transaction else "NULL"
    sql = _SCRATCH.sub("", plainer(sql)).replace("CURRENT_TRANSACTION()", here)
    async with session.busy, definitions if _DDL.match(sql) else contextlib.AsyncExitStack():
        answer = await fake.query_request(with_body(request, {**body, "sqlText": sql}))
    if dropping := _DROPPING.match(sql):
        shutil.rmtree(internal_dir("{}.{}.%{}".format(*dropping.groups())), ignore_errors=True)
    session.seen = time.monotonic()
    if _ENDING.match(sql) or session.transaction is None:
        free(token)
    return completed(answer)


def started(request: Request, body: Any, statement: Alone, session: Session) -> JSONResponse:
    """Starts a statement that goes on without its session, and answers at once."""
    headers = [each for each in request.scope["headers"] if each[0] != b"authorization"]
    headers.append((b"authorization", f'Snowflake Token="{statement.id}"'.encode()))
    own = Request({**request.scope, "headers": headers}, request.receive)
    statement.task = asyncio.create_task(statement.run(with_body(own, {**body, "sqlText": plainer(body["sqlText"])})))
    alone[statement.id] = statement
    session.left_alone = True
    data = {"queryId": statement.id, "getResultUrl": f"/queries/{statement.id}/result", "queryAbortsAfterSecs": 300}
    text = "Query execution in progress. Asynchronous execution is requested."
    return JSONResponse({"data": data, "code": "333334", "message": text, "success": True})


async def monitored(request: Request) -> JSONResponse:
    """What became of a statement that goes on without its session."""
    fake.to_conn(fake.to_token(request))
    each = alone.get(request.path_params["sfqid"])
    told = [] if each is None else [{"status": each.status, "errorCode": each.code, "errorMessage": each.message}]
    return JSONResponse({"data": {"queries": told}, "code": None, "message": None, "success": True})


async def aborted(request: Request) -> JSONResponse:
    """Ends a statement that goes on without its session, and says whether there was one."""
    fake.to_conn(fake.to_token(request))
    each = alone.get(request.path_params["sfqid"])
    going_on = each is not None and each.task is not None and each.task.cancel()
    text = None if going_on else "Identified SQL statement is not currently executing."
    return JSONResponse({"data": None, "code": None if going_on else "000605", "message": text, "success": going_on})


async def held(request: Request) -> JSONResponse:
    """Holds such statements, or lets them go."""
    (going.clear if request.query_params.get("on") else going.set)()
    return JSONResponse(None)


def plainer(sql: str) -> str:
    """A PUT or COPY as fakesnow takes it; any other statement as it is."""
    if not _FILES.match(sql):
        return sql
    sql = _MATCHING.sub(r"\1\2", _PUT_STAGE.sub(r"\1\2", sql))
    return _OPTIONS.sub(lambda found: found[0].replace(",", " "), sql)


async def begun(token: str, session: Session, sql: str) -> JSONResponse | None:
    """What a statement does to its transaction and to locks before it runs; the error that keeps it from running."""
    if _DDL.match(sql) and session.transaction is not None:
        await run_in_threadpool(end, token, "COMMIT")
    if locking := _LOCKING.match(sql):
        blocked = await acquire(locking[1], token, session)
        if blocked is not None:
            return blocked
    implicit = not session.autocommit and session.transaction is None and _WRITING.match(sql)
    if _BEGINNING.match(sql) or implicit:
        session.transaction = str(time.time_ns())
    return None


def completed(answer: JSONResponse) -> JSONResponse:
    """fakesnow's answer, with what the connectors of today look for."""
    found = json.loads(answer.body)
    if answer.status_code != 200:
        return refused(int(found["code"]), "XX000", found["message"])
    data = found.get("data") or {}
    if "stageInfo" in data:
        stage = {"region": "", "path": "", "storageAccount": "", "endPoint": "", "isClientSideEncrypted": False}
        data["stageInfo"] = {**stage, **data["stageInfo"]}
        found["data"] = {"threshold": 0, "sourceCompression": "none", **data, "overwrite": True}
    return JSONResponse(found)


async def acquire(table: str, token: str, session: Session) -> JSONResponse | None:
    """Waits for the lock of a table; the error that says it was not to be had."""
    key, until = table.upper(), time.monotonic() + session.lock_timeout_s
    while locks.setdefault(key, token) != token:
        holder = sessions.get(locks[key])
        if holder is None:
            del locks[key]
        elif time.monotonic() - holder.seen > IDLE_S and not holder.busy.locked():
            await run_in_threadpool(end, locks[key], "ROLLBACK")
        elif time.monotonic() > until:
            return refused(625, "57014", f"Statement has locked table {key} in a transaction and not yet released it.")
        else:
            await asyncio.sleep(0.01)
    return None


def end(token: str, how: str) -> None:
    """Ends the transaction of a session from outside."""
    fake.sessions[token].cursor().execute(how)
    free(token)


def free(token: str) -> None:
    sessions[token].transaction = None
    for key in [key for key, holder in locks.items() if holder == token]:
        del locks[key]


async def session(request: Request) -> JSONResponse:
    answer = await fake.session(request)
    token = fake.to_token(request)
    if request.query_params.get("delete") and token in sessions:
        free(token)
        del sessions[token]
    return answer


async def told(request: Request) -> JSONResponse:
    """What the connector tells of itself."""
    del request
    return JSONResponse({"data": "Log Received", "code": None, "message": None, "success": True})


async def sent(request: Request) -> JSONResponse:
    """What sessions have sent, from the given place of the list on."""
    return JSONResponse(statements[int(request.query_params.get("since", 0)) :])


async def opened(request: Request) -> JSONResponse:
    """The sessions that are open, their temporary tables, and the files that lie in any stage.

    A session that 4.x has left with a statement that goes on is none: it ends when it has been idle.
    """
    del request
    tables = [name for token in list(sessions) for name in await temporary(token)]
    files = [file for file in Path(LOCAL_BUCKET_PATH).rglob("*") if file.is_file()]
    listed = [f"temporary table {name}" for name in tables] + [f"staged file {file}" for file in files]
    return JSONResponse([*(f"session {each.id}" for each in sessions.values() if not each.left_alone), *listed])


async def temporary(token: str) -> list[str]:
    """The temporary tables of a session."""
    listed = "SELECT table_name FROM duckdb_tables() WHERE temporary"
    async with sessions[token].busy:
        connection = fake.sessions.get(token)
        return [] if connection is None else [name for (name,) in connection._duck_conn.execute(listed).fetchall()]


def execute(self: FakeSnowflakeCursor, *given: Any, **named: Any) -> None:
    """fakesnow's own, whose rarer errors become SQL errors too."""
    try:
        plain_execute(self, *given, **named)
    except duckdb.ConstraintException as error:
        raise errors.ProgrammingError(msg=str(error), errno=100072, sqlstate="22000") from None
    except duckdb.DataError as error:
        raise errors.ProgrammingError(msg=str(error), errno=100069, sqlstate="22P02") from None
    except duckdb.Error as error:
        raise errors.ProgrammingError(msg=f"{type(error).__name__}: {error}", errno=100132, sqlstate="P0000") from None


def describe(table: Any, connection: Any, database: str | None, schema: str) -> list[tuple[str, str]]:
    """fakesnow's own, which looks for temporary tables in a schema, where DuckDB has none."""
    name = f'"{table.name}"'
    if not table.name.startswith("PIPELINE_SCRATCH"):
        name = f'"{table.catalog or database}"."{table.db or schema}".{name}'
    return [(row[0], row[1]) for row in connection.execute(f"DESCRIBE {name}").fetchall()]


def insert_text_lengths(catalog: str, schema: str, table: str, lengths: list[tuple[str, int]]) -> str:
    """fakesnow's own, which writes names as they are."""
    return plain_text_lengths(catalog, schema, doubled(table), [(doubled(name), most) for name, most in lengths])


def doubled(name: str) -> str:
    return name.replace("'", "''")


class Doubling(Template):
    """A template of fakesnow's, in which names stand as text."""

    def substitute(self, *given: Any, **named: Any) -> str:
        return super().substitute(*given, **{name: doubled(str(value)) for name, value in named.items()})


for module in (cursor, transforms):
    for name, value in list(vars(module).items()):
        if isinstance(value, Template):
            setattr(module, name, Doubling(value.template))
copy_into._describe_table = describe
plain_text_lengths = info_schema.insert_text_lengths_sql
info_schema.insert_text_lengths_sql = insert_text_lengths
plain_execute = FakeSnowflakeCursor._execute
FakeSnowflakeCursor._execute = execute

MINE = {
    "/session/v1/login-request": login,
    "/queries/v1/query-request": query,
    "/session": session,
    "/monitoring/queries/{sfqid}": monitored,
}
routes = [Route(each.path, MINE.get(each.path, each.endpoint), methods=list(each.methods)) for each in fake.routes]
more = [
    Route("/telemetry/send", told, methods=["POST"]),
    Route("/monitoring/queries//{sfqid}", monitored, methods=["GET"]),  # as 5.x writes it
    Route("/queries/{sfqid}/abort-request", aborted, methods=["POST"]),
    Route("/hold", held, methods=["GET"]),
    Route("/statements", sent, methods=["GET"]),
    Route("/sessions", opened, methods=["GET"]),
]
app = Starlette(routes=[*routes, *more])

if __name__ == "__main__":
    fake.shared_fs = FakeSnow(db_path=sys.argv[2])
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", timeout_keep_alive=600)
