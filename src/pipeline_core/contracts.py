"""What a plugin implements. No I/O, no driver and no Arrow library here.

Times are integers: microseconds UTC since 1970. A window is half-open: `start <= t < end`, in every verb.
Requests are single frozen objects, so that they can grow without breaking a plugin.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from enum import StrEnum
from typing import Generic, Protocol, TypeVar

from attrs import field, frozen, validators

from pipeline_core.errors import PermanentError, nearest
from pipeline_core.ledger import Adoption, Entry
from pipeline_core.record import (
    Change,
    Claim,
    Event,
    Intervention,
    Pruned,
    Pruning,
    Record,
    Span,
    Status,
    Verdict,
)
from pipeline_core.window import Window

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


# --- providers -------------------------------------------------------------------------------------------------------


class Can(StrEnum):
    """What a connector declares; the conformance suite demands exactly that."""

    EXTRACT = "extract"
    LOAD = "load"
    ATOMIC = "atomic"
    DEFER = "defer"


@frozen
class Context:
    """What an opened object may know of the pipeline that opens it.

    `lease_s` is how many seconds a worker may be silent before another takes its window; None where nobody claims.
    """

    pipeline: str
    lease_s: float | None = None


class Settings(Protocol[T_co]):
    """An attrs class: one section of the configuration. Its docstring's first line is the one-line summary."""

    def open(self, context: Context, /) -> AbstractContextManager[T_co]:
        """Imports the driver, and yields the opened object; leaving the context releases everything it holds."""
        ...


def _abilities(can: Iterable[Can]) -> frozenset[Can]:
    return frozenset(can)


@frozen
class Provider(Generic[T]):
    """What every hook yields. `type = "name"` in the configuration selects it.

    `aliases` maps other names for a setting, as in a flat configuration, to the setting: `{"elasticsearch_host":
    "url"}`. In capitals they are read from the environment too.
    """

    name: str
    settings: Callable[..., T]
    can: frozenset[Can] = field(default=frozenset(), converter=_abilities)
    aliases: Mapping[str, str] = field(factory=dict)


@frozen
class Problem:
    """Something that `doctor` found: what is wrong, and what to do about it; `advice` where a run goes well without."""

    what: str
    remedy: str
    advice: bool = False


# --- record stores ---------------------------------------------------------------------------------------------------


@frozen
class ClaimRequest:
    """Which windows a worker wants.

    Pending windows of `pipeline` that end at or before `stable_until_us`, are not in backoff and, where `within` is
    given, start in it; oldest first, `limit` at most. `owner` names the asking process where its death can be seen;
    leases held by `dead_owners` count as expired. An expired lease is one crash of its window: at `max_crashes` the
    window is quarantined, before that it waits `crash_backoff_s` x 2^(crashes - 2) from the second crash on.
    `max_running`: no claim that would leave more windows of the pipeline running, whoever asks, whichever they are; a
    claim that is resumed stays.
    """

    pipeline: str
    stable_until_us: int
    lease_s: float
    limit: int = 1
    within: Window | None = None
    owner: str | None = None
    dead_owners: frozenset[str] = frozenset()
    max_crashes: int = 5
    crash_backoff_s: float = 10.0
    max_running: int | None = field(default=None, validator=validators.optional(validators.ge(1)))


#: What a store keeps, one by one.
Kept = Generator[Record | Event, None, None]


class RecordStore(ABC):
    """Where records live. Its clock is the clock: of leases, of stability, of fences. Shared between threads.

    Every verb is one transaction; none is open between two calls. Each transition appends an event with its reason.
    """

    @abstractmethod
    def now_us(self) -> int:
        """The store's clock, in microseconds UTC."""

    @abstractmethod
    def spans(self, pipeline: str) -> Sequence[Span]:
        """Every live record (not superseded), in order of time, in bulk."""

    @abstractmethod
    def records(
        self, pipeline: str, *status: Status, within: Window | None = None, limit: int | None = None
    ) -> Sequence[Record]:
        """Records in any of `status` (none: all live ones), in order of time; `within`: only those starting in it."""

    @abstractmethod
    def apply(self, change: Change) -> Change:
        """Supersedes and adds; returns what took effect. Atomic and idempotent.

        A removal is passed over where the record is gone, running, or claimed since (its fence differs); an addition
        where a live record overlaps it. So a plan that was overtaken does what still holds, and the next one the rest.
        """

    @abstractmethod
    def claim(self, request: ClaimRequest) -> Sequence[Claim]:
        """Claims windows, each for one worker only: status running, a new claim id, a fence above every earlier one.

        A fence is `max(last fence + 1, now_us())`, one sequence for the whole store.
        """

    @abstractmethod
    def next_claim_us(self, request: ClaimRequest) -> int | None:
        """When the next window of the request may become claimable (now or earlier: at once); None if none is left.

        Counts pending windows in backoff, running ones whose lease may expire, and with `max_running` the end of so
        many leases of the pipeline that another window may run.
        """

    @abstractmethod
    def resume(self, claim: Claim, lease_s: float) -> Claim:
        """Goes on with a claim, perhaps in another process: a fresh, higher fence and a new lease.

        Accepted while no one else has claimed, even past the lease. A window that this claim has already settled as
        done or quarantined comes back unchanged: look at `claim.record.status`. Otherwise ClaimLostError.
        """

    @abstractmethod
    def renew(self, claim: Claim, lease_s: float) -> None:
        """Extends the lease, or raises ClaimLostError where this fence holds the record no more."""

    @abstractmethod
    def settle(self, claim: Claim, verdict: Verdict) -> Record:
        """Ends the claim: done, pending again, or quarantined; or ClaimLostError. Pending again forgets the claim."""

    @abstractmethod
    def intervene(self, intervention: Intervention) -> Sequence[Record]:
        """Does what a person says, window by window, in one transaction; returns the records that moved, as they are.

        A window is passed over where its status or fence is no longer that of its span. `by_hand` says where it goes,
        and raises RecordError, before anything is done, for a span that the hand does not fit. The claim is forgotten
        and no backoff is left; who held it is locked out. Retried: attempts and crashes begin anew. Skipped: that is
        the outcome, and what was asked is forgotten. `intervention.told` is the reason, and the event says `by` too.
        """

    @abstractmethod
    def events(self, pipeline: str, since_us: int = 0, window: Window | None = None) -> Iterable[Event]:
        """The log of transitions, oldest first; with `window`, of records that overlap it."""

    @abstractmethod
    def dump(self, pipeline: str) -> Kept:
        """All that is kept of the pipeline, as of one instant: every record, the superseded ones too, then every event.

        Each in the order in which it came. What is read may hold a transaction open: take all of it, or close it.
        """

    @abstractmethod
    def restore(self, pipeline: str, kept: Iterable[Record | Event]) -> None:
        """Takes in what `dump` of another store gave of the pipeline, as it was there. Atomic.

        From then on every fence is above those of the records. RecordError where anything is kept of it already; what
        `kept` itself raises goes on to the caller, and nothing was taken in.
        """

    @abstractmethod
    def prune(self, pruning: Pruning) -> Pruned:
        """Does the next step of it, and says what was done; nothing once nothing is left. Call it until then.

        The done records that it covers give up reason, evidence and the claim's id, as `in_short` says, and nothing
        else: `spans` is the same before and after, whatever comes next. Superseded records that end by `before_us` go,
        and so do events: those of windows that end by then and that no other live record overlaps, and those of no
        window that are older. A step that did anything is one event, "pruned", which no prune takes away. With
        `dry_run` nothing changes, and what all steps together would do is returned.
        """

    def upgrade(self) -> str:
        """Brings what is kept into the form that this code works with; says what was done, or that nothing was.

        A store may do so whenever it is opened; then this says what was done at the opening.
        """
        return "nothing to do"

    def problems(self) -> Iterable[Problem]:
        """For `doctor`."""
        return ()


# --- rows and stages -------------------------------------------------------------------------------------------------


class Batch(Protocol):
    """Rows in memory: pyarrow, polars, arro3, whichever the plugin uses."""

    def __arrow_c_stream__(self, requested_schema: object = None) -> object: ...
    def __len__(self) -> int: ...


#: A generator, not one C stream for a window: errors keep their type, `close()` acts at once, progress is seen.
Batches = Generator[Batch, None, None]


@frozen
class StageRequest:
    """Where to put the rows of one window. `key` is the folder, unique to window and fence; `identity` the source's."""

    key: str
    pipeline: str
    window: Window
    fence: int
    identity: Mapping[str, str]


@frozen
class StagedFile:
    url: str
    rows: int
    bytes: int
    sha256: str


@frozen
class Staged:
    """The manifest: written last, and without it the files do not exist. `schema` is for people, one column a line."""

    key: str
    pipeline: str
    window: Window
    fence: int
    rows: int
    files: Sequence[StagedFile]
    schema: str
    identity: Mapping[str, str]


class Stage(ABC):
    """Where extracted rows rest, as files. Used by one thread at a time, not always the same one."""

    @abstractmethod
    def write(self, request: StageRequest, batches: Batches) -> Staged:
        """Writes every batch, then the manifest. The first batch gives the schema, even when it holds no row."""

    @abstractmethod
    def find(self, prefix: str) -> Sequence[Staged]:
        """The complete ones (with a manifest) whose key begins with `prefix`."""

    @abstractmethod
    def keys(self, prefix: str) -> Sequence[str]:
        """The keys that begin with `prefix` and hold any file at all, complete or not."""

    @abstractmethod
    def read(self, staged: Staged) -> Batches:
        """The rows, at least one batch. A file that is missing or differs from its sha256 is an error."""

    @abstractmethod
    def remove(self, key: str) -> None:
        """Removes the key's files, the manifest first. Harmless where there is nothing."""

    def problems(self) -> Iterable[Problem]:
        """For `doctor`."""
        return ()


# --- connectors ------------------------------------------------------------------------------------------------------


@frozen
class ExtractRequest:
    """Which rows a source is asked for. `exclude` names columns to leave out; each must exist."""

    window: Window
    exclude: frozenset[str] = frozenset()
    batch_rows: int = 50_000


@frozen
class Load:
    """One window to load: from `read()`, or from the files of `staged` by URL where the target can take them.

    `columns` maps source names to target names; the rest keep theirs, matched by the target's own case rule. `token` is
    what `DeferredTarget.submit` answered for these staged files, perhaps under a lower fence and to another process;
    None where this side has uploaded them itself.
    """

    claim: Claim
    staged: Staged
    read: Callable[[], Batches]
    columns: Mapping[str, str] = field(factory=dict)
    token: str | None = None

    @property
    def window(self) -> Window:
        return self.claim.record.window


def target_names(
    staged: Sequence[str], columns: Mapping[str, str], place: str, fold: Callable[[str], str] = str
) -> list[str]:
    """What a target calls the staged columns, in order: `columns` as in `Load`, `fold` its own case rule.

    Raises PermanentError for a rename of nothing, and for two columns that would become one.
    """
    for source in columns:
        if source not in staged:
            raise PermanentError(
                f"{place}: [columns] renames {source!r}, but the staged rows hold no such column "
                f"({nearest(source, staged)}); correct the name"
            )
    names = [columns.get(name, name) for name in staged]
    taken: dict[str, str] = {}
    for source, name in zip(staged, names, strict=True):
        if fold(name) in taken:
            raise PermanentError(
                f"{place}: the staged columns {taken[fold(name)]!r} and {source!r} would both become {name!r}; "
                "rename one under [columns], or exclude it at the source"
            )
        taken[fold(name)] = source
    return names


class Connector(ABC):
    """One side of a pipeline. Used by one thread at a time, not always the same one.

    Raises TransientError for what can heal; any other exception is permanent. Retries nothing itself.
    """

    @property
    @abstractmethod
    def identity(self) -> Mapping[str, str]:
        """What this side is: technology, host or account by name, database, table, filter. Never a secret.

        A pipeline is refused whose sides agree in all but how one table is looked at: `scope`, `where`, `query`,
        `shape`, `lists`, `timestamp_column`, `timestamp_field`, `timestamp_timezone`, `timestamp_unit`.
        """

    @property
    def naive_timezone(self) -> str | None:
        """The zone in which the timestamp column's bare local times are meant; None where the column carries a zone."""
        return None

    @abstractmethod
    def count(self, window: Window) -> int:
        """The rows of the window. Raises rather than guesses: a failed, partial or timed-out count is no number."""

    def count_many(self, windows: Sequence[Window]) -> Sequence[int]:
        """The rows of each window, in the order given."""
        return [self.count(window) for window in windows]

    def excluded(self) -> int:
        """Rows that can fall into no window, whose timestamp is null or none. Reported at each run, never hidden."""
        return 0

    def problems(self) -> Iterable[Problem]:
        """For `doctor`: permissions, indexes, fields."""
        return ()


class Source(Connector):
    """A connector that extracts."""

    @abstractmethod
    def extract(self, request: ExtractRequest) -> Batches:
        """The rows of the window, at least one batch (an empty one carries the schema). Closing it releases all."""


class Publication(ABC):
    """The verbs inside the one transaction that replaces a window's rows. The core owns their order."""

    @abstractmethod
    def guard(self, load: Load) -> None:
        """Locks by writing, *then* reads the ledger, refuses or enters the fence (see `pipeline_core.ledger`)."""

    @abstractmethod
    def delete(self, window: Window) -> int:
        """Deletes `start <= t < end`; returns how many rows went."""

    @abstractmethod
    def insert(self, load: Load) -> None:
        """Inserts the uploaded rows from scratch."""

    @abstractmethod
    def count(self, window: Window) -> int:
        """The rows that `start <= t < end` holds now, inside the transaction."""


class Target(Connector):
    """A connector that loads."""

    @abstractmethod
    def upload(self, load: Load) -> None:
        """Puts the rows into scratch, seen by nobody else. All DDL happens here. Uploading again is harmless."""

    @abstractmethod
    def transaction(self) -> AbstractContextManager[Publication]:
        """One transaction, without DDL: commits on exit, rolls back on any exception."""

    @abstractmethod
    def published(self, load: Load) -> bool:
        """Whether the ledger holds this load's fence: decides what a lost reply to the commit meant."""

    def ddl(self, rows: Batch, columns: Mapping[str, str]) -> Sequence[str]:
        """The statements that would make what a load of such rows needs and does not find: table, columns, index,
        ledger. Runs none of them. None by default: a target that makes nothing by statements. Raises what an upload
        of such rows would raise for their columns, so that `doctor` finds it.
        """
        del rows, columns
        return ()

    @abstractmethod
    def adopt(self, adoption: Adoption) -> Sequence[Entry]:
        """Hands the ledger's entries of another pipeline over, in one transaction that locks as a publication does.

        Returns the entries handed over, their fences kept (see `pipeline_core.ledger.adopt`); of a dry run those that
        would be.
        """

    @abstractmethod
    def discard(self, claim: Claim) -> None:
        """Drops the window's scratch of this and every lower fence. Harmless where there is none."""


class DeferredTarget(Target):
    """A target whose server uploads while no worker waits, as `Can.DEFER` declares: `upload` in two halves.

    A load that carries the token is published as any other, under the fence of the submission or a higher one. Such
    scratch outlives session and process: `discard` drops it from whichever process, and what nobody discards expires.
    """

    @abstractmethod
    def submit(self, load: Load) -> str:
        """Begins an upload that the server ends without this process; returns the token by which any process finds it.

        Submitting again takes the place of what was submitted of the window under this and every lower fence.
        """

    @abstractmethod
    def uploaded(self, token: str) -> bool:
        """Whether every row is in scratch; False while the server goes on.

        Raises what it failed with, as any fault; TransientError where scratch is gone, and has to be submitted anew.
        """

    @abstractmethod
    def cancel(self, token: str) -> None:
        """Ends the upload and drops its scratch. Harmless where it has ended, was published, or is gone."""


# --- the smaller hooks -----------------------------------------------------------------------------------------------


class Observer(Protocol):
    """Told every event, by several threads at once; it has to be quick. An error harms nothing but itself."""

    def notify(self, event: Event, /) -> None: ...


class SecretResolver(Protocol):
    """Resolves the `name` of `${prefix:name}`. Raises KeyError where there is none."""

    def resolve(self, name: str, /) -> str: ...
