"""What a store keeps of a pipeline, as a file of JSON lines that another store of any kind takes in.

Of each pipeline a header, a line a record (the superseded ones too), a line an event, and an end that holds their
numbers and the sha256 of its lines before: a file that was torn or changed is refused before anything of it is taken
in. Times are microseconds UTC.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

import attrs
from attrs import evolve

from pipeline_core.contracts import RecordStore
from pipeline_core.errors import ConfigError, RecordError
from pipeline_core.record import Asked, Event, Outcome, Record, Status
from pipeline_core.window import Window

FORMAT = "pipeline_core store"
VERSION = 1

#: How many there are of each kind, "record" and "event".
Numbers = Counter[str]


def export(kept: Sequence[tuple[RecordStore, str]], file: Path) -> list[Numbers]:
    """Writes the file, which appears only when it is whole: one pipeline of a store after the other.

    Raises ConfigError where it is there already or cannot be written, RecordError where nothing is kept of any pipeline
    or a window runs: a claim must not be alive in two stores.
    """
    if file.exists():
        raise ConfigError(f"{file}: is there already; name a file that is not")
    part = file.with_name(f"{file.name}.part")
    try:
        with part.open("wb") as out:
            numbers = [_write(store, pipeline, out) for store, pipeline in kept]
            if not any(each["record"] for each in numbers):
                names = ", ".join(repr(pipeline) for _, pipeline in kept)
                raise RecordError(f"pipeline {names}: found no record of it in this store; check its url and the name")
            out.flush()
            os.fsync(out.fileno())
        part.rename(file)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)
    return numbers


def take_in(store: RecordStore, pipeline: str, file: Path) -> Numbers:
    """Reads the file whole, then lets the store take it in, in one transaction.

    Raises ConfigError where it cannot be read or is of another pipeline or format, RecordError where it is torn and
    where the store keeps anything of the pipeline already.
    """
    numbers = Counter(_KIND[type(each)] for each in _read(pipeline, file))
    store.restore(pipeline, _read(pipeline, file))
    return numbers


# --- writing ----------------------------------------------------------------------------------------------------------


def _write(store: RecordStore, pipeline: str, out: BinaryIO) -> Numbers:
    digest, numbers = sha256(), Numbers(record=0, event=0)

    def line(mapping: Mapping[str, Any]) -> None:
        text = json.dumps(mapping, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        digest.update(text)
        out.write(text)

    line({"format": FORMAT, "version": VERSION, "pipeline": pipeline})
    with closing(store.dump(pipeline)) as kept:
        for each in kept:
            kind = _KIND[type(each)]
            line({kind: _mapping(_free(each) if isinstance(each, Record) else each)})
            numbers[kind] += 1
    line({"end": {**numbers, "sha256": digest.hexdigest()}})
    return numbers


_KIND: Mapping[type, str] = {Record: "record", Event: "event"}


def _free(record: Record) -> Record:
    """The record without a claim that could be resumed; RecordError where it runs."""
    if record.status is Status.RUNNING:
        raise RecordError(
            f"pipeline {record.pipeline!r}: window {record.window} is running, and would be in both stores; "
            "let the workers end, or `pipeline-core release` it where its worker is gone"
        )
    return evolve(record, claim_id=None) if record.status is Status.PENDING else record


def _mapping(each: Record | Event) -> dict[str, Any]:
    mapping = attrs.asdict(each, recurse=False)
    del mapping["pipeline"]  # the header's
    window = mapping.pop("window")
    return {"window": None if window is None else [window.start_us, window.end_us], **mapping}


# --- reading ----------------------------------------------------------------------------------------------------------


def _read(pipeline: str, file: Path) -> Iterator[Record | Event]:
    """What the file holds of the pipeline; raises at its end at the latest, where it is not whole."""
    found: list[str] = []
    try:
        with file.open("rb") as lines:
            numbered = enumerate(lines, 1)
            for number, line in numbered:
                name = _header(line, file, number)
                if name in found:
                    raise _torn(file)
                found.append(name)
                yield from _part(name, pipeline, line, numbered, file)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    if not found:
        raise _torn(file)
    if pipeline not in found:
        raise ConfigError(f"{file}: pipeline: found {', '.join(map(repr, found))}, expected {pipeline!r}")


def _part(
    name: str, wanted: str, header: bytes, lines: Iterator[tuple[int, bytes]], file: Path
) -> Iterator[Record | Event]:
    """The lines of one pipeline up to its end, which they have to fit; what they hold where it is the one wanted."""
    digest, numbers = sha256(header), Numbers(record=0, event=0)
    for number, line in lines:
        kind, value = _parsed(line, file, number)
        if kind == "end":
            if value != {**numbers, "sha256": digest.hexdigest()}:
                break
            return
        numbers[kind] += 1
        if name == wanted:
            yield _made(kind, value, name, file, number)
        digest.update(line)
    raise _torn(file)


def _torn(file: Path) -> RecordError:
    return RecordError(f"{file}: was torn or changed since it was exported; nothing was taken in; export it again")


def _parsed(line: bytes, file: Path, number: int) -> tuple[str, Any]:
    try:
        return next(iter(json.loads(line).items()))  # type: ignore[no-any-return]
    except (ValueError, AttributeError, StopIteration):
        raise RecordError(
            f"{file}: line {number}: found no JSON object, or half of one, expected an export; export it again"
        ) from None


def _header(line: bytes, file: Path, number: int) -> str:
    """The pipeline whose part begins here."""
    _parsed(line, file, number)
    header = json.loads(line)
    if number > 1 and "format" not in header:
        raise _torn(file)
    expected = {"format": FORMAT, "version": VERSION}
    problems = [
        f"{file}: {key}: found {header.get(key)!r}, expected {value!r}"
        for key, value in expected.items()
        if header.get(key) != value
    ]
    if problems:
        raise ConfigError(problems)
    return str(header["pipeline"])


def _made(kind: str, value: Any, pipeline: str, file: Path, number: int) -> Record | Event:
    try:
        window = None if value["window"] is None else Window.from_us(*value["window"])
        given = {**value, "pipeline": pipeline, "window": window}
        if kind == "event":
            return Event(**given)
        outcome, asked = given["outcome"], given["asked"]
        given["status"] = Status(given["status"])
        given["outcome"] = None if outcome is None else Outcome(outcome)
        given["asked"] = None if asked is None else Asked(asked)
        return Record(**given)
    except (KeyError, TypeError, ValueError) as error:
        raise RecordError(f"{file}: line {number}: is no {kind} that this version knows: {error}") from None
