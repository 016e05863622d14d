"""What the index is, asked before anything is counted: the server answers 0 for much that is not there at all."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from attrs import frozen

from pipeline_core import SideError
from pipeline_elasticsearch.client import Client, path
from pipeline_elasticsearch.timestamps import Resolution

#: Nothing is passed over in silence: an index that is missing or closed is an error, and so is half an answer.
STRICT = {"ignore_unavailable": False, "allow_no_indices": False}
#: What `term` compares whole, as field_caps calls it: a text is compared word by word, a date or an address as a range.
_EXACT = {
    *("keyword", "version", "flattened", "boolean"),
    *("long", "integer", "short", "byte", "unsigned_long", "double", "float", "half_float", "scaled_float"),
}
_SHOWN = 5


@frozen
class Catalog:
    """Looks at the index expression `index`, its `timestamp_field` and the fields that `scope` compares."""

    client: Client
    index: str
    timestamp_field: str
    scope: Collection[str]

    def resolution(self) -> Resolution:
        """How fine the timestamps are. Raises SideError where an index is closed, or a field does not fit."""
        self._check_open()
        remote = self._remote()
        fields = ",".join([self.timestamp_field, *self.scope])
        asked = {**STRICT, "fields": fields, "include_unmapped": True}
        answer = self.client.ask_for(dict[str, Any], "GET", path(self.index, "_field_caps"), asked)
        self._refuse_closed(remote - set(answer["indices"]))
        known = answer["fields"]
        for name in self.scope:
            self._kinds(known, "scope", name, _EXACT, "a keyword, a number or a boolean")
        kinds = self._kinds(
            known, "timestamp_field", self.timestamp_field, {"date", "date_nanos"}, "date or date_nanos"
        )
        if not all(found["searchable"] for found in kinds.values()):
            place = self._place("timestamp_field", self.timestamp_field)
            raise SideError(f"{place}: it is not indexed, so no range of it can be counted; index that field")
        return Resolution(
            millis="date" in kinds,
            nanos="date_nanos" in kinds,
            aggregatable=all(found["aggregatable"] for found in kinds.values()),
        )

    def _kinds(
        self, known: Mapping[str, Mapping[str, Any]], setting: str, name: str, expected: Collection[str], said: str
    ) -> Mapping[str, Any]:
        """What the field is, by type. Raises SideError where a search by it would find nothing, or something else."""
        place = self._place(setting, name)
        kinds = known.get(name, {})
        if not set(kinds) - {"unmapped"}:
            raise SideError(f"{place}: no index has that field; correct {setting}")
        if "unmapped" in kinds:
            lacking = kinds["unmapped"]["indices"]
            raise SideError(
                f"{place}: {_some(lacking)} lack that field, so none of their documents would be counted; "
                "map it there, or narrow index"
            )
        if not set(kinds) <= set(expected):
            raise SideError(f"{place}: found the type {', '.join(sorted(kinds))}, expected {said}; correct {setting}")
        above = [name[:at] for at, letter in enumerate(name) if letter == "."]
        nested = [each for each in above if "nested" in known.get(each, {})]
        if nested:
            raise SideError(
                f"{place}: it lies in the nested {nested[0]!r}, whose documents are no rows; correct {setting}"
            )
        return kinds

    def exists(self) -> bool:
        """Whether there is any such index."""
        asked = {"ignore_unavailable": True, "filter_path": "*.settings.index.uuid"}
        return bool(self.client.ask_for(dict[str, Any], "GET", path(self.index, "_settings"), asked))

    def mappings(self) -> dict[str, dict[str, Any]]:
        """The mapping of each index, by its name."""
        if ":" in self.index:
            raise SideError(
                f"{self.client.place}: the mapping of a remote cluster cannot be read; set shape = 'document', or name "
                "that cluster itself in url"
            )
        answer = self.client.ask_for(dict[str, Any], "GET", path(self.index, "_mapping"), STRICT)
        return {name: found["mappings"] for name, found in answer.items()}

    def _check_open(self) -> None:
        """Only patterns pass over closed indices, so only theirs are asked for."""
        patterns = ",".join(each for each in self.index.split(",") if ":" not in each)
        if "*" not in patterns and patterns != "_all":
            return
        wanted = {
            **STRICT,
            "expand_wildcards": "open,closed",
            "filter_path": "*.settings.index.verified_before_close",
        }
        self._refuse_closed(self.client.ask_for(dict[str, Any], "GET", path(patterns, "_settings"), wanted))

    def _remote(self) -> set[str]:
        """What patterns name in remote clusters, whose settings cannot be asked for, closed indices included."""
        patterns = ",".join(each for each in self.index.split(",") if ":" in each)
        if "*" not in patterns:
            return set()
        wanted = {"expand_wildcards": "open,closed"}
        found = self.client.ask_for(dict[str, Any], "GET", path("_resolve", "index", patterns), wanted)
        behind = {
            f"{alias['name'].partition(':')[0]}:{index}" for alias in found["aliases"] for index in alias["indices"]
        }
        return behind | {index["name"] for index in found["indices"]}

    def _refuse_closed(self, closed: Collection[str]) -> None:
        if closed:
            raise SideError(
                f"{self.client.place}: {_some(closed)} are closed, so none of their documents would be counted; "
                "open them, or narrow index"
            )

    def _place(self, setting: str, name: str) -> str:
        return f"{self.client.place}, {setting} {name!r}"


def _some(names: Any) -> str:
    names = sorted(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"the indices {', '.join(names[:_SHOWN])}{more}"
