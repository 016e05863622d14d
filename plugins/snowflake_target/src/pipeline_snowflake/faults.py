"""What went wrong with a statement, in the project's own errors: what can heal, what waits for a person.

By the number and the SQL state that the server and the connector give. Both lines of the connector number what happens
below SQL in their own way. 4.x: `errorcode.py`; to an HTTP status `errors.py` adds 290000, once more where the error is
made anew. 5.x: the kinds of `_internal/error_kinds.py` (4 transfer, 6 internal, 7 missing setting, 14 timeout). The
server's own are named in `network.py` of 4.x, in `internal/errors` of gosnowflake, and, for signing in, in Snowflake's
documentation: 390000 to 399999 are refusals, but for those that end a session.
"""

from __future__ import annotations

import re
from typing import Final

import snowflake.connector
from snowflake.connector import errors

from pipeline_core import PermanentError, PipelineError, SideError, TransientError
from pipeline_core.secrets import redact

MISSING: Final = 2003
MAJOR: Final = int(snowflake.connector.__version__.partition(".")[0])
if MAJOR < 5:  # 4.x lets what breaks off below it come through as it is, while it fetches rows
    from snowflake.connector.vendored.requests.exceptions import RequestException
    from snowflake.connector.vendored.urllib3.exceptions import HTTPError

    _RAW: tuple[type[Exception], ...] = (RequestException, HTTPError)
else:
    _RAW = ()
#: What a statement may raise, and this module tells the meaning of.
RAISED: Final[tuple[type[Exception], ...]] = (errors.Error, *_RAW)

_HTTP: Final = 290_000
_REPEATED: Final = {307, 308, 400, 403, 405, 408, 429, *range(500, 600)}  # by 4.x itself, before it gives up
_UNREACHABLE: Final = {14, 250001, 250002, 250003, 250005, 250006, 251011, 251012}
_SESSION_ENDED: Final = {390104, 390110, 390111, 390112, 390113, 390114, 390115, 390195, 390400, 605}
_TOOK_TOO_LONG: Final = {604, 630}
_LOCKED: Final = {625, 626, 635}
_BUSY: Final = {90001}
_SIGN_IN: Final = "correct account, user and what signs in"
_REMEDIES: Final = {
    MISSING: "create it, correct its name, or give the role the right to see it",
    2043: "create it, correct its name, or give the role the right to see it",
    904: "correct the name of the column",
    606: "name a warehouse in the settings, or give the user a default one",
    90073: "resume the warehouse, or raise its limit",
    90105: "set database and schema, or write table as database.schema.table",
    90106: "set schema, or write table as database.schema.table",
    390189: "correct the name of the role",
    390201: "correct the name of the database, schema, role or warehouse",
    7: _SIGN_IN,
    _HTTP + 250001: "correct account and host",  # a 403 while signing in
}
_NEEDS_A_PERSON: Final = {
    "28": _SIGN_IN,
    "42501": "give the role the privileges that docs/reference/snowflake.md lists",
    "42S02": "create it, or correct its name",
}
# What 5.x says only in words.
_REFUSED: Final = re.compile(r"Authentication failed|responded with error status: 40[134]\b")
_BROKEN_OFF: Final = re.compile(r"Failed to read batches|responded with error status")
_QUERY: Final = re.compile(r"(https?://[^\s?'\"]+)\?[^\s'\"]+")
_VALUES: Final = re.compile(r"'[^']*'|\"[^\"]*\"")


def lost(error: Exception) -> bool:
    """Whether the session is gone, or may be, so that the next statement needs another."""
    if not isinstance(error, errors.Error):
        return True
    state = error.sqlstate or ""
    return error.errno in _UNREACHABLE | _SESSION_ENDED or state.startswith(("08", "HYT")) or _of_wire(error)


def meaning(error: Exception, place: str) -> PipelineError:
    """The project's error for one of RAISED. It holds no value of a row, and no secret."""
    if not isinstance(error, errors.Error):  # its text quotes an address that opens the rows to whoever has it
        return _away(place, type(error).__name__)
    text = _plain(error)
    heals = _healing(error, place, text)
    if heals is not None:
        return heals
    remedy = _remedy(error.errno or 0, error.sqlstate or "", text)
    if remedy is not None:
        return SideError(f"{place}: {text}; {remedy}")
    if error.errno in _BUSY or lost(error):
        return _away(place, text)
    # Only what is wrong with a statement itself quotes no value of a row.
    of_statement = (error.sqlstate or "").startswith("42")
    return PermanentError(f"{place}: {text if of_statement else _VALUES.sub('…', text)}")


def _away(place: str, text: str) -> TransientError:
    return TransientError(f"{place}: cannot be reached: {text}; see whether it answers", side_down=True)


def _healing(error: errors.Error, place: str, text: str) -> TransientError | None:
    """What can heal and blames no side."""
    number = error.errno
    if number in _TOOK_TOO_LONG:
        return TransientError(f"{place}: {text}; raise timeout_s, cut smaller windows, or take a larger warehouse")
    if number in _LOCKED or "waiters for this lock" in text:
        return TransientError(f"{place}: {text}; another transaction was in the way")
    if number in _SESSION_ENDED:
        return TransientError(f"{place}: the session has ended: {text}; a new one is opened")
    return None


def _remedy(number: int, state: str, text: str) -> str | None:
    """What a person can do, where one has to. Both lines give a refusal to sign in the state of a lost connection."""
    if number in _REMEDIES:
        return _REMEDIES[number]
    if 300 <= _status(number) < 500 and _status(number) not in _REPEATED:
        return "correct account, host and port"
    if number in _UNREACHABLE:
        return _SIGN_IN if _REFUSED.search(text) else None
    if 390_000 <= number < 400_000 or 251_000 <= number < 252_000:
        return _SIGN_IN
    return next((remedy for start, remedy in _NEEDS_A_PERSON.items() if state.startswith(start)), None)


def _of_wire(error: errors.Error) -> bool:
    """Whether an HTTP answer or a transfer such as a PUT's has failed: of these no state is told."""
    if error.errno == 6:
        return _BROKEN_OFF.search(str(error.msg)) is not None
    told = error.sqlstate not in (None, "", "n/a")
    return _status(error.errno or 0) in _REPEATED or (isinstance(error, errors.OperationalError) and not told)


def _status(number: int) -> int:
    """The status of the HTTP answer that a number stands for; 0 for none."""
    status = number % _HTTP if number >= _HTTP else 0
    return status if status < 600 else 0


def _plain(error: errors.Error) -> str:
    """The first lines of the message: after them Snowflake quotes the statement."""
    lines = [line.strip() for line in str(error.msg or error).splitlines() if line.strip()]
    return redact(_QUERY.sub(r"\1", " ".join(lines[:2]))) or type(error).__name__
