"""Writing many documents at once, each under its fence: the server refuses to let a lower one overwrite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline_core import ClaimLostError, PermanentError
from pipeline_elasticsearch.client import Client, path
from pipeline_elasticsearch.faults import reasons, refused

Operation = tuple[dict[str, Any], object]
_MISSING, _CONFLICT = 404, 409
_READ = "errors,items.*.status,items.*.error,items.*._id"


class OvertakenError(ClaimLostError):
    """A document that is there in a later version than that of the operation; `document` is its `_id`."""

    def __init__(self, place: str, document: str) -> None:
        self.document = document
        super().__init__(f"{place}: document {document!r} was written under a later fence")


def operation(verb: str, id_: str, fence: int) -> dict[str, Any]:
    """The first line of an operation: `index` or `delete`, of that document, unless a higher fence wrote it."""
    return {verb: {"_id": id_, "version": fence, "version_type": "external_gte"}}


def check_writable(client: Client, index: str) -> None:
    """Raises SideError where documents of the index may not be written, by this user or by anybody.

    Nothing is, and no index is made: it asks to delete a document under a condition that none meets.
    """
    client.ask("POST", path(index, "_refresh"), {"ignore_unavailable": True})
    lines = [{"delete": {"_id": "nobody", "if_seq_no": 0, "if_primary_term": 1}}]
    answer = client.ask_for(dict[str, Any], "POST", path(index, "_bulk"), {"filter_path": _READ}, lines)
    result = answer["items"][0]["delete"]
    if result["status"] not in (_MISSING, _CONFLICT):
        raise refused(f"{client.place}, index {index!r}", result["status"], result)


def write(client: Client, index: str, operations: Sequence[Operation], *, refresh: bool = False) -> None:
    """Sends operations, each with its document (None for a deletion).

    Raises OvertakenError where a document has a later version, TransientError where the server has too much to
    do, and PermanentError for a document that it refuses. Some may have been written then: writing again is harmless.
    """
    lines = [line for operation in operations for line in operation if line is not None]
    answer = client.ask_for(
        dict[str, Any], "POST", path(index, "_bulk"), {"filter_path": _READ, "refresh": refresh}, lines
    )
    if not answer["errors"]:
        return
    for item in answer["items"]:
        (verb,) = item
        result = item[verb]
        if result["status"] == _CONFLICT:
            raise OvertakenError(client.place, result["_id"])
        if result["status"] == 400:
            raise PermanentError(
                f"{client.place}: document {result['_id']!r} is refused: {reasons(result)}; correct the row or the "
                "mapping of its field, or exclude the column"
            )
        if "error" in result:
            raise refused(f"{client.place}, document {result['_id']!r}", result["status"], result)
