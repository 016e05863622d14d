"""A record: the stored row of one window of one pipeline, and what may happen to it. Pure state, no I/O."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

from attrs import evolve, field, frozen

from pipeline_core.errors import RecordError
from pipeline_core.window import Window

#: The keys of a record that travels which are ours, and always there; every other one is a field of the user's.
OWN_KEYS = START, END, OURS = "WINDOW_START_TIME", "WINDOW_END_TIME", "PIPELINE"


class Status(StrEnum):
    """Where a record stands."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    QUARANTINED = "quarantined"
    SUPERSEDED = "superseded"


class Outcome(StrEnum):
    """How a done window ended."""

    ALREADY_PROCESSED = "already processed"
    LOADED = "loaded"
    VERIFIED_EMPTY = "verified empty"
    SKIPPED = "skipped"


class Asked(StrEnum):
    """What a person has asked for a pending window: its rows move even though the counts agree.

    ACCEPT_SHRINK says beside that the source may hold fewer rows than were verified.
    """

    RELOAD = "reload"
    ACCEPT_SHRINK = "reload, accept shrink"


_ALLOWED = {
    Status.PENDING: {Status.RUNNING, Status.SUPERSEDED, Status.QUARANTINED, Status.DONE},
    Status.RUNNING: {Status.PENDING, Status.DONE, Status.QUARANTINED, Status.RUNNING},
    Status.DONE: {Status.SUPERSEDED},
    Status.QUARANTINED: {Status.SUPERSEDED, Status.PENDING, Status.DONE},
    Status.SUPERSEDED: set[Status](),
}


def transition(before: Status, after: Status) -> Status:
    """`after`, if a record in `before` may go there; RecordError otherwise. The one table of allowed transitions.

    Running to running is a claim resumed. A reopened window is a done record superseded and a pending one added.
    """
    if after not in _ALLOWED[before]:
        allowed = ", ".join(sorted(_ALLOWED[before])) or "nothing"
        raise RecordError(f"a record that is {before} cannot become {after}; from there it may become: {allowed}")
    return after


class Hand(StrEnum):
    """What a person does to windows as they stand; the value is the step that the event log shows."""

    RETRY = "retried"
    RELEASE = "released"
    SKIP = "skipped"

    @property
    def fits(self) -> Collection[Status]:
        """The states of a record that it can be laid on."""
        return _BY_HAND[self][0]


_BY_HAND = {
    Hand.RETRY: ({Status.QUARANTINED}, Status.PENDING),
    Hand.RELEASE: ({Status.RUNNING}, Status.PENDING),
    Hand.SKIP: ({Status.PENDING, Status.QUARANTINED}, Status.DONE),
}


def by_hand(hand: Hand, before: Status) -> Status:
    """Where a person's hand leads a record in `before`; RecordError where it cannot be laid on it."""
    befores, after = _BY_HAND[hand]
    if before not in befores:
        raise RecordError(f"a record that is {before} cannot be {hand}; expected one that is {' or '.join(befores)}")
    return transition(before, after)


@frozen
class Record:
    """One window of one pipeline, as stored.

    `fields` is the user's part (None where the stored text is no JSON object any more); all else is kept by the store.
    Times are microseconds UTC. `not_before_us` is when a window in backoff may be claimed again, `lease_until_us` when
    a running one may be taken over. `verified_rows` are the source's rows when this span was last verified (None:
    never), and `identity` names both sides as they were then; a record that replaces another of its span takes them
    over. `asked` is what a person has asked for, until the window is done.
    """

    pipeline: str
    window: Window
    fields: Mapping[str, Any] | None = field(factory=dict)
    status: Status = Status.PENDING
    outcome: Outcome | None = None
    reason: str = ""
    attempts: int = 0
    crashes: int = 0
    not_before_us: int = 0
    fence: int = 0
    claim_id: str | None = None
    owner: str | None = None
    lease_until_us: int | None = None
    identity: str = ""
    verified_rows: int | None = None
    asked: Asked | None = None
    evidence: Mapping[str, Any] = field(factory=dict)
    updated_us: int = 0


class Span(NamedTuple):
    """A live record in bulk: what planning needs of each, without an object a record. Times are microseconds UTC."""

    start_us: int
    end_us: int
    status: Status
    fence: int
    attempts: int
    identity: str
    fields: Mapping[str, Any] | None
    outcome: Outcome | None = None
    verified_rows: int | None = None
    asked: Asked | None = None


class Removal(NamedTuple):
    """A live record to supersede. It is left alone where `fence` shows that a worker has claimed it meanwhile."""

    start_us: int
    end_us: int
    fence: int
    reason: str


class Addition(NamedTuple):
    """A pending record to add, with the attempts it inherits from those it replaces.

    One that replaces a record of its own span takes over what was verified of it and what a person asked for.
    """

    start_us: int
    end_us: int
    attempts: int
    identity: str = ""
    verified_rows: int | None = None
    asked: Asked | None = None


@frozen
class Change:
    """What planning decides: the records to supersede, then the records to add, and why. Both in order of time.

    Every added record gets `fields`. `notes` are for people: overlaps found, where a pipeline without `begin` starts.
    """

    pipeline: str
    remove: Sequence[Removal] = ()
    add: Sequence[Addition] = ()
    fields: Mapping[str, Any] = field(factory=dict)
    reason: str = "planned"
    notes: Sequence[str] = ()

    def __bool__(self) -> bool:
        return bool(self.remove or self.add)


@frozen
class Intervention:
    """What a person, `by`, does to windows as they stand, and why. `spans` are the records as they were read."""

    pipeline: str
    hand: Hand
    spans: Sequence[Span]
    reason: str
    by: str

    @property
    def told(self) -> str:
        """What the record gives as its reason."""
        return f"{self.hand} by {self.by}: {self.reason}"


@frozen
class Pruning:
    """What is old enough to be told in short: windows that end by `before_us`, and events before it of no window.

    Microseconds UTC. `most` is how many records, or events, one step of it may do away with; a `dry_run` counts all.
    """

    pipeline: str
    before_us: int
    most: int = 1_000
    dry_run: bool = False

    def covers(self, status: Status, outcome: Outcome | None, end_us: int) -> bool:
        """Whether a live record is old, done and verified. What a person skipped stays: nothing else says who and why.

        What any other live record overlaps keeps its events, however old.
        """
        return status is Status.DONE and outcome is not Outcome.SKIPPED and end_us <= self.before_us


@frozen
class Pruned:
    """How many done records gave up their details, and how many superseded records and events are gone. They add up."""

    done: int = 0
    superseded: int = 0
    events: int = 0

    def __bool__(self) -> bool:
        return bool(self.done or self.superseded or self.events)

    def __add__(self, other: Pruned) -> Pruned:
        return Pruned(self.done + other.done, self.superseded + other.superseded, self.events + other.events)


#: The reason of a done record whose own one was pruned.
PRUNED = "verified before; its evidence and its events were pruned"


def missing_fields(fields: Mapping[str, Any], check_fields: Sequence[str]) -> list[str]:
    """The check fields that a record's fields lack, or hold as null."""
    return [name for name in check_fields if name not in OWN_KEYS and fields.get(name) is None]


def in_short(record: Record) -> Record:
    """What is left of a done record once it is pruned: all that planning, checks and guards go by."""
    return evolve(record, reason=PRUNED, claim_id=None, evidence={})


@frozen
class Claim:
    """A worker's lease on a record. `id` stays and travels between processes; each resume brings a higher `fence`."""

    id: str
    record: Record
    fence: int

    @property
    def window(self) -> Window:
        return self.record.window


@frozen
class Verdict:
    """How an attempt ended.

    `attempt` says that it counts against the window's allowance, `wait_s` how many seconds a pending window must wait.
    Without `verified_rows` nothing was verified: the record keeps the number that it has, and its identity.
    """

    status: Status
    reason: str
    outcome: Outcome | None = None
    evidence: Mapping[str, Any] = field(factory=dict)
    identity: str = ""
    verified_rows: int | None = None
    attempt: bool = False
    wait_s: float = 0


@frozen
class Event:
    """Something that happened, at `at_us` microseconds UTC by the store's clock. `window` is None for the whole run."""

    at_us: int
    pipeline: str
    window: Window | None
    step: str
    fields: Mapping[str, Any] = field(factory=dict)
