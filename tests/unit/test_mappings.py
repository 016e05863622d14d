"""Records as mappings between tasks."""

from __future__ import annotations

import json
from typing import Any

import pytest
from attrs import evolve

from pipeline_core import Claim, Record, RecordError, TimeError, Window
from pipeline_core.mappings import from_mapping, to_mapping, upload_of

CLAIM = Claim("abc", Record("p", Window.from_us(1362895200_000000, 1362902400_000000), {"key_x": 0, "note": None}), 9)


def mapping(**changes: Any) -> dict[str, Any]:
    """A record as it travels."""
    return to_mapping(CLAIM, "America/New_York") | changes


def test_it_is_json_with_offsets_and_the_users_own_fields() -> None:
    """ISO 8601 on the pipeline's clock, ours under one key."""
    assert json.loads(json.dumps(mapping())) == {
        "WINDOW_START_TIME": "2013-03-10T01:00:00-05:00",
        "WINDOW_END_TIME": "2013-03-10T04:00:00-04:00",
        "key_x": 0,
        "note": None,
        "PIPELINE": {"name": "p", "claim": "abc", "fence": 9, "attempts": 0},
    }


def test_no_field_takes_the_place_of_the_windows_own_times() -> None:
    """Not even one that an earlier version has let into the store."""
    fields = {"WINDOW_START_TIME": None, "WINDOW_END_TIME": "2024-01-01T00:00:00+00:00", "PIPELINE": 1, "key_x": 0}
    stored = evolve(CLAIM, record=evolve(CLAIM.record, fields=fields))
    parcel = from_mapping(to_mapping(stored, "UTC"), "p")
    assert (parcel.window, parcel.fields) == (CLAIM.window, {"key_x": 0})


def test_it_comes_back_as_it_went() -> None:
    """Window, fields and claim survive the journey."""
    parcel = from_mapping(json.loads(json.dumps(mapping())), "p")
    assert (parcel.window, parcel.fields) == (CLAIM.window, CLAIM.record.fields)
    assert parcel.claim is not None
    assert (parcel.claim.id, parcel.claim.fence) == ("abc", 9)


def test_a_submitted_upload_travels_with_its_record() -> None:
    """Where one was submitted, and only there."""
    record = json.loads(json.dumps(to_mapping(CLAIM, "America/New_York", "a token")))
    claim = from_mapping(record, "p").claim
    assert claim is not None
    assert (upload_of(record), claim.id) == ("a token", "abc")
    assert upload_of(mapping()) is None
    assert "upload" not in mapping()["PIPELINE"]


def test_a_plain_mapping_has_no_claim() -> None:
    """Two times are enough to count."""
    plain = mapping()
    del plain["PIPELINE"]
    assert from_mapping(plain, "p").claim is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"WINDOW_START_TIME": None}, "WINDOW_START_TIME: found None"),
        ({"WINDOW_START_TIME": "yesterday"}, "WINDOW_START_TIME: found 'yesterday'"),
        ({"WINDOW_START_TIME": "2013-03-10T01:00:00"}, "WINDOW_START_TIME: found '2013-03-10T01:00:00'"),
        ({"WINDOW_END_TIME": 5}, "WINDOW_END_TIME: found 5"),
        ({"PIPELINE": {"claim": 1}}, "PIPELINE: expected the claim"),
        ({"PIPELINE": {"name": "p", "claim": "abc", "fence": 1, "upload": 5}}, "PIPELINE.upload: expected the text"),
        ({"PIPELINE": {"name": "q", "claim": "abc", "fence": 1}}, "belongs to pipeline 'q'"),
    ],
)
def test_malformed_records_name_the_key(changes: dict[str, Any], message: str) -> None:
    """And what was found there."""
    with pytest.raises(RecordError, match=message):
        from_mapping(mapping(**changes), "p")


def test_a_reversed_window_is_refused() -> None:
    """End before start is no window."""
    with pytest.raises(TimeError):
        from_mapping(mapping(WINDOW_END_TIME="2013-03-10T00:00:00-05:00"), "p")


def test_no_mapping_at_all() -> None:
    """None, as a skipped task upstream would hand over."""
    with pytest.raises(RecordError, match="found NoneType"):
        from_mapping(None, "p")  # type: ignore[arg-type]
