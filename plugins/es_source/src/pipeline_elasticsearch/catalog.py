"""What the index is, asked before anything is counted: the server answers 0 for much that is not there at all."""

from __future__ import annotations

from typing import Any

from attrs import frozen

from pipeline_core import SideError
from pipeline_elasticsearch.client import Client, path
from pipeline_elasticsearch.timestamps import Resolution

#: Nothing is passed over in silence: an index that is missing or closed is an error, and so is half an answer.
STRICT = {"ignore_unavailable": False, "allow_no_indices": False}
_SHOWN = 5


@frozen
class Catalog:
    """Looks at the index expression `index` and its `timestamp_field`."""

    client: Client
    index: str
    timestamp_field: str

    def resolution(self) -> Resolution:
        """How fine the timestamps are. Raises SideError where an index is closed, or lacks the field."""
        self._check_open()
        asked = {**STRICT, "fields": self.timestamp_field, "include_unmapped": True}
        answer = self.client.ask_for(dict[str, Any], "GET", path(self.index, "_field_caps"), asked)
        kinds = answer["fields"].get(self.timestamp_field, {})
        if not set(kinds) - {"unmapped"}:
            raise SideError(f"{self._place}: no index has that field; correct timestamp_field")
        if "unmapped" in kinds:
            lacking = kinds["unmapped"]["indices"]
            raise SideError(
                f"{self._place}: {_some(lacking)} lack that field, so none of their documents would be counted; "
                "map it there, or narrow index"
            )
        if not set(kinds) <= {"date", "date_nanos"}:
            raise SideError(f"{self._place}: found the type {', '.join(sorted(kinds))}, expected date or date_nanos")
        unsearchable = [kind for kind, found in kinds.items() if not found["searchable"]]
        if unsearchable:
            raise SideError(f"{self._place}: it is not indexed, so no range of it can be counted; index that field")
        return Resolution(millis="date" in kinds, nanos="date_nanos" in kinds)

    def exists(self) -> bool:
        """Whether there is any such index."""
        asked = {"ignore_unavailable": True, "filter_path": "*.settings.index.uuid"}
        return bool(self.client.ask_for(dict[str, Any], "GET", path(self.index, "_settings"), asked))

    def mappings(self) -> dict[str, dict[str, Any]]:
        """The mapping of each index, by its name."""
        if ":" in self.index:
            raise SideError(
                f"{self._place}: the mapping of a remote cluster cannot be read; set shape = 'document', or name that "
                "cluster itself in url"
            )
        answer = self.client.ask_for(dict[str, Any], "GET", path(self.index, "_mapping"), STRICT)
        return {name: found["mappings"] for name, found in answer.items()}

    def _check_open(self) -> None:
        """Only patterns pass over closed indices, so only theirs are asked for; not those of remote clusters."""
        patterns = ",".join(each for each in self.index.split(",") if ":" not in each)
        if "*" not in patterns and patterns != "_all":
            return
        wanted = {
            **STRICT,
            "expand_wildcards": "open,closed",
            "filter_path": "*.settings.index.verified_before_close",
        }
        closed = self.client.ask_for(dict[str, Any], "GET", path(patterns, "_settings"), wanted)
        if closed:
            raise SideError(
                f"{self._place}: {_some(closed)} are closed, so none of their documents would be counted; "
                "open them, or narrow index"
            )

    @property
    def _place(self) -> str:
        return f"{self.client.place}, timestamp_field {self.timestamp_field!r}"


def _some(names: Any) -> str:
    names = sorted(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"the indices {', '.join(names[:_SHOWN])}{more}"
