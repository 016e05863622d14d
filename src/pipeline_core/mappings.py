"""Records as orchestrators see them: JSON-safe mappings that travel between tasks.

`WINDOW_START_TIME` and `WINDOW_END_TIME` are ISO 8601 with offset; what is ours beside them sits under `PIPELINE`;
every other key is the user's.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from attrs import frozen

from pipeline_core.errors import RecordError
from pipeline_core.record import END, OURS, OWN_KEYS, START, Claim, Record
from pipeline_core.window import Window, to_us


@frozen
class Parcel:
    """A record mapping, read: the window, the user's fields, and the claim under which it travels, if it does."""

    window: Window
    fields: Mapping[str, Any]
    claim: Claim | None


def to_mapping(claim: Claim, timezone: str, upload: str | None = None) -> dict[str, Any]:
    """A claimed record as a mapping, its times on the clock of `timezone`; `upload` is the token of a submitted one."""
    record = claim.record
    ours = {"name": record.pipeline, "claim": claim.id, "fence": claim.fence, "attempts": record.attempts}
    if upload is not None:
        ours["upload"] = upload
    return {
        **(record.fields or {}),
        START: record.window.start.in_timezone(timezone).isoformat(),
        END: record.window.end.in_timezone(timezone).isoformat(),
        OURS: ours,
    }


def from_mapping(mapping: Mapping[str, Any], pipeline: str) -> Parcel:
    """Reads a record mapping of `pipeline`. Raises RecordError naming the key that is missing or malformed."""
    if not isinstance(mapping, Mapping):
        raise RecordError(f"record: found {type(mapping).__name__}, expected the mapping that the task before returned")
    window = Window.from_us(_instant(mapping, START), _instant(mapping, END))
    fields = {key: value for key, value in mapping.items() if key not in OWN_KEYS}
    return Parcel(window, fields, _claim(mapping.get(OURS), window, fields, pipeline))


def upload_of(mapping: Mapping[str, Any]) -> str | None:
    """The token of the upload that travels with a record that `from_mapping` can read; None where none does."""
    ours: Mapping[str, Any] = mapping.get(OURS) or {}
    return ours.get("upload")


def _claim(ours: object, window: Window, fields: Mapping[str, Any], pipeline: str) -> Claim | None:
    if ours is None:
        return None
    if not isinstance(ours, Mapping) or not isinstance(ours.get("claim"), str) or type(ours.get("fence")) is not int:
        raise RecordError(f"record: {OURS}: expected the claim and fence that the task before put there")
    if ours.get("name") != pipeline:
        raise RecordError(
            f"record: {OURS}.name: the record belongs to pipeline {ours.get('name')!r}, "
            f"the configuration is that of {pipeline!r}"
        )
    if not isinstance(ours.get("upload", ""), str):
        raise RecordError(f"record: {OURS}.upload: expected the text that submit_staged_data put there")
    return Claim(ours["claim"], Record(pipeline, window, fields), ours["fence"])


def _instant(mapping: Mapping[str, Any], key: str) -> int:
    value = mapping.get(key)
    if not isinstance(value, str | datetime):
        raise RecordError(f"record: {key}: found {value!r}, expected a time such as '2013-03-10T00:00:00-05:00'")
    try:
        return to_us(datetime.fromisoformat(value) if isinstance(value, str) else value)
    except ValueError as error:
        raise RecordError(f"record: {key}: found {str(value)!r}, expected ISO 8601 with an offset ({error})") from None
