"""What went wrong with a statement, in the project's own errors: what can heal, what waits for a person.

By the number and the SQL state that the server and the connector give. Both lines of the connector number what happens
below SQL in their own way: 250001 to 250003 and 14 with HYT00 are connections in 4.x and 5.x.
"""

from __future__ import annotations

import re
from typing import Final

from snowflake.connector import errors

from pipeline_core import PermanentError, PipelineError, SideError, TransientError
from pipeline_core.secrets import redact

MISSING: Final = 2003
_UNREACHABLE: Final = {14, 250001, 250002, 250003, 250005, 250006, 251011, 251012}
_SESSION_ENDED: Final = {390104, 390110, 390111, 390112, 390113, 390114, 390115, 390195, 605}
_TOOK_TOO_LONG: Final = {604, 630}
_LOCKED: Final = {625, 626, 635}
_BUSY: Final = {390189, 390190, 90001}
_REMEDIES: Final = {
    MISSING: "create it, correct its name, or give the role the right to see it",
    2043: "create it, correct its name, or give the role the right to see it",
    904: "correct the name of the column",
    606: "name a warehouse in the settings, or give the user a default one",
    90073: "resume the warehouse, or raise its limit",
    90105: "set database and schema, or write table as database.schema.table",
    90106: "set schema, or write table as database.schema.table",
    390201: "correct the name of the database, schema, role or warehouse",
}
_NEEDS_A_PERSON: Final = {
    "28": "correct account, user and what signs in",
    "42501": "give the role the privileges that docs/reference/snowflake.md lists",
    "42S02": "create it, or correct its name",
}
_VALUES: Final = re.compile(r"'[^']*'|\"[^\"]*\"")


def lost(error: errors.Error) -> bool:
    """Whether the session is gone, or may be, so that the next statement needs another."""
    state = error.sqlstate or ""
    return error.errno in _UNREACHABLE | _SESSION_ENDED or state.startswith(("08", "HYT")) or _of_wire(error)


def meaning(error: errors.Error, place: str) -> PipelineError:
    """The project's error for one of the connector's. It holds no value of a row, and no secret."""
    text = _plain(error)
    heals = _healing(error, place, text)
    if heals is not None:
        return heals
    remedy = _remedy(error.errno or 0, error.sqlstate or "")
    if remedy is not None:
        return SideError(f"{place}: {text}; {remedy}")
    # Only what is wrong with a statement itself quotes no value of a row.
    of_statement = (error.sqlstate or "").startswith("42")
    return PermanentError(f"{place}: {text if of_statement else _VALUES.sub('…', text)}")


def _healing(error: errors.Error, place: str, text: str) -> TransientError | None:
    number = error.errno
    if number in _TOOK_TOO_LONG:
        return TransientError(f"{place}: {text}; raise timeout_s, cut smaller windows, or take a larger warehouse")
    if number in _LOCKED or "waiters for this lock" in text:
        return TransientError(f"{place}: {text}; another transaction was in the way")
    if number in _SESSION_ENDED:
        return TransientError(f"{place}: the session has ended: {text}; a new one is opened")
    if number in _BUSY or lost(error):
        return TransientError(f"{place}: cannot be reached: {text}; see whether it answers", side_down=True)
    return None


def _remedy(number: int, state: str) -> str | None:
    """What a person can do, where one has to."""
    if number in _REMEDIES:
        return _REMEDIES[number]
    if 390_000 <= number < 400_000 or 251_000 <= number < 252_000:
        return _NEEDS_A_PERSON["28"]
    return next((remedy for start, remedy in _NEEDS_A_PERSON.items() if state.startswith(start)), None)


def _of_wire(error: errors.Error) -> bool:
    """5.x says of a transfer that broke off, such as a PUT's, no more than this."""
    return isinstance(error, errors.OperationalError) and not error.sqlstate


def _plain(error: errors.Error) -> str:
    """The first lines of the message: after them Snowflake quotes the statement."""
    lines = [line.strip() for line in str(error.msg or error).splitlines() if line.strip()]
    return redact(" ".join(lines[:2])) or type(error).__name__
