"""The functions that orchestrators call: a mapping in, a JSON-safe mapping out, each usable in a process of its own.

`config` is the pipeline's mapping, or a `Pipeline`'s configuration file by path; of several `[pipelines.NAME]` its own
key `name` says which, of `[profiles.NAME]` its key `profile`. A record travels from task to task
with the id of its claim; every task resumes that claim first. `exit_dag: True` says that nothing is left to do and
everything downstream may skip: `reason` says why. `now` (aware, or local text) stands for the store's clock in deciding
what is stable, in tests and replays.

A fault that can heal is raised as TransientError and leaves the claim as it is, so that the orchestrator's own retry
goes on with it; call `release_record` when it gives up. A fault of the window itself quarantines it, and is raised too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from attrs import evolve

from pipeline_core.config import missing_check_fields
from pipeline_core.contracts import Can, Staged
from pipeline_core.decision import Decision
from pipeline_core.engine import auditing, counting, publish, runner, shrinking, transfer
from pipeline_core.engine.outage import Outages
from pipeline_core.engine.parts import Parts
from pipeline_core.errors import (
    AuditError,
    ClaimLostError,
    ConfigError,
    Interrupted,
    PermanentError,
    RecordError,
    SideError,
    TransientError,
)
from pipeline_core.log import LOGGER
from pipeline_core.mappings import from_mapping, to_mapping, upload_of
from pipeline_core.pipeline import Pipeline, When
from pipeline_core.record import Claim, Outcome, Status, Verdict
from pipeline_core.window import Window

Config = Mapping[str, Any] | str | Path
Result = dict[str, Any]


def store_new_and_pass_valid_record(
    config: Config, *, now: When = None, start: When = None, end: When = None, reload: bool = False
) -> Result:
    """Writes the records that are due, rebuilds broken ones, and claims the oldest that is complete and stable.

    Returns `{'exit_dag', 'record', 'reason'}`. `start`, `end` limit it to windows that start there, as a task does that
    is run again for its own window: where that is done already, `reason` is the recorded one. `reload` moves it again.
    A mapping whose `default_record` lacks check fields is answered with `exit_dag`, and logged as an error each time.
    A store that is away or in the way when it is to give the claim is waited for, up to `run.give_up_after`.
    """
    lacking = missing_check_fields(config) if isinstance(config, Mapping) else []
    if lacking:
        reason = f"default_record lacks check fields: {', '.join(lacking)}; nothing was generated or rebuilt"
        LOGGER.error(reason)  # a skip alone would look like no work, for ever
        return _exit(reason)
    with _pipeline(config) as pipeline:
        pipeline.require(Can.EXTRACT, Can.LOAD)
        pipeline.plan(now=now)
        if reload:
            pipeline.reload(start=start, end=end, reason="asked for by its orchestrator")
        order = runner.Order(pipeline.within(start, end), now_us=pipeline.instant_us(now))
        outages = Outages.watch(pipeline.config, pipeline.report, threading.Event())
        claims = outages.store.outlast(
            lambda: pipeline.store.claim(runner.claim_request(pipeline.config, pipeline.store, order))
        )
        if not claims:
            return _exit(_why_none(pipeline, order.within))
        record = to_mapping(claims[0], pipeline.config.policy.timezone)
        return {"exit_dag": False, "record": record, "reason": f"claimed {claims[0].window}"}


def _why_none(pipeline: Pipeline, within: Window | None) -> str:
    """Why no window could be claimed; of the one that was asked for, what its record says."""
    asked = [] if within is None else pipeline.store.records(pipeline.config.pipeline, within=within, limit=2)
    if len(asked) != 1:
        return (
            "No window is ready: everything stable is done, quarantined, in backoff or claimed, "
            "or as many run as run.max_running allows"
        )
    record = asked[0]
    if record.status is Status.DONE:
        return record.reason
    return f"No window is ready: {record.window} is {record.status}: {record.reason}"


def pre_validate_counts(config: Config, record: Mapping[str, Any]) -> Result:
    """Counts source and target in the record's window, and decides.

    Returns `{'exit_dag', 'reason', 'source_count', 'target_count'}`. A claimed record that turns out to be already
    processed is finished here; a plain mapping with the two window times is only counted.
    """

    def count_only(parts: Parts, window: Window) -> Result:
        return _counted(counting.check_counts(parts, window))

    def step(parts: Parts, claim: Claim) -> Result:
        decision = counting.check_counts(parts, claim.window, reload=claim.record.asked is not None)
        if decision.exit_dag:
            _finish(parts, claim, auditing.already_processed(parts, decision.counts, decision.reason))
        return _counted(decision)

    return _under_claim(config, record, step, done=_recorded_counts, unclaimed=count_only)


def get_source_count(config: Config, record: Mapping[str, Any]) -> int:
    """The rows of the record's window at the source: a count-only query, retried while the fault can heal."""
    with _pipeline(config) as pipeline, pipeline.parts() as parts:
        return counting.count_source(parts, from_mapping(record, parts.pipeline).window)


def get_target_count(config: Config, record: Mapping[str, Any]) -> int:
    """The rows of the record's window at the target: a count-only query, retried while the fault can heal."""
    with _pipeline(config) as pipeline, pipeline.parts() as parts:
        return counting.count_target(parts, from_mapping(record, parts.pipeline).window)


def extract_source_data(config: Config, record: Mapping[str, Any]) -> Result:
    """Extracts the window to the stage, or finds it staged already. Returns `{'exit_dag', 'record', 'rows'}`."""

    def step(parts: Parts, claim: Claim) -> Result:
        rows = counting.count_source(parts, claim.window)
        shrinking.refuse_shrink(parts, claim, rows, lambda: counting.count_target(parts, claim.window))
        staged = transfer.reuse(parts, claim, rows) or transfer.extract(parts, claim, rows)
        return {"exit_dag": False, "record": _mapping(parts, claim), "rows": staged.rows}

    return _under_claim(config, record, step)


def submit_staged_data(config: Config, record: Mapping[str, Any]) -> Result:
    """Begins the upload of the staged window, which the target's server ends while no worker waits for it.

    Returns `{'exit_dag', 'record', 'rows'}`. The record carries the upload: it is the one to poll, to load and to
    release. Submitting again takes the place of what was submitted before. Where the target cannot upload by itself
    (`Can.DEFER`) nothing is submitted, and `load_staged_data` uploads.
    """

    def step(parts: Parts, claim: Claim) -> Result:
        load = transfer.load_of(parts, claim, _staged(parts, claim))
        token = transfer.submit(parts, load)
        return {"exit_dag": False, "record": _mapping(parts, claim, token), "rows": load.staged.rows}

    return _under_claim(config, record, step)


def poll_submitted_data(config: Config, record: Mapping[str, Any]) -> Result:
    """Asks once whether the target holds what was submitted, and renews the lease: ask more often than `run.lease_s`.

    Returns `{'exit_dag', 'record', 'uploaded'}`; `uploaded` True: go on with `load_staged_data`. Raises what the upload
    failed with; where that can heal, submit again.
    """

    def step(parts: Parts, claim: Claim) -> Result:
        token = upload_of(record)
        uploaded = token is None or transfer.uploaded(parts, claim.window, token)
        return {"exit_dag": False, "record": _mapping(parts, claim, token), "uploaded": uploaded}

    return _under_claim(config, record, step)


def load_staged_data(config: Config, record: Mapping[str, Any]) -> Result:
    """Publishes the staged window in one transaction of the target. Returns `{'exit_dag', 'record', 'rows'}`.

    It uploads first, unless the record carries what `submit_staged_data` has submitted; that has to be there in full.
    """

    def step(parts: Parts, claim: Claim) -> Result:
        load = transfer.load_of(parts, claim, _staged(parts, claim), upload_of(record))
        transfer.upload(parts, load)
        publish.publish(parts, load)
        return {"exit_dag": False, "record": _mapping(parts, claim, load.token), "rows": load.staged.rows}

    return _under_claim(config, record, step)


def audit_and_clean_up(config: Config, record: Mapping[str, Any]) -> Result:
    """Recounts both sides, keeps the evidence, removes staged files and scratch, ends the claim.

    Returns `{'exit_dag', 'reason', 'outcome', 'source_count', 'target_count'}`, with `exit_dag` False: the window was
    worked on. Where a side moved meanwhile the window goes back to pending, and AuditError is raised.
    """

    def step(parts: Parts, claim: Claim) -> Result:
        try:
            verdict = auditing.audit(parts, claim, _staged(parts, claim))
        except AuditError as error:
            _finish(parts, claim, runner.verdict_on(error, claim, parts.config.run))
            raise
        _finish(parts, claim, verdict)
        return {**_recorded(verdict.outcome, verdict.reason, verdict.evidence), "exit_dag": False}

    def done(claim: Claim) -> Result:
        found = claim.record
        return {**_recorded(found.outcome, found.reason, found.evidence), "exit_dag": False}

    return _under_claim(config, record, step, done=done)


def release_record(config: Config, record: Mapping[str, Any], reason: str = "released by its orchestrator") -> Result:
    """Gives a claim back after a failure: pending after a backoff, one attempt used; quarantined at the last one.

    Returns `{'exit_dag', 'reason', 'status'}`.
    """

    def step(parts: Parts, claim: Claim) -> Result:
        _cancel(parts, claim, record)
        verdict = runner.verdict_on(TransientError(reason), claim, parts.config.run)
        _finish(parts, claim, verdict)
        return {"exit_dag": True, "reason": verdict.reason, "status": str(verdict.status)}

    return _under_claim(config, record, step)


def _under_claim(
    config: Config,
    record: Mapping[str, Any],
    step: Callable[[Parts, Claim], Result],
    done: Callable[[Claim], Result] | None = None,
    unclaimed: Callable[[Parts, Window], Result] | None = None,
) -> Result:
    """Runs one step under the record's claim, resumed. A claim lost to another is a skip, never a failure.

    A window that this claim has finished already answers with what was recorded, since tasks are run again at will.
    """
    with _pipeline(config) as pipeline, pipeline.parts() as parts:
        parcel = from_mapping(record, parts.pipeline)
        claim = parcel.claim
        if claim is None:
            if unclaimed:
                return unclaimed(parts, parcel.window)
            raise RecordError("record: PIPELINE: no claim; pass the record of store_new_and_pass_valid_record")
        try:
            claim = parts.store.resume(claim, parts.config.run.lease_s)
        except ClaimLostError as error:
            _cancel(parts, claim, record)
            return _exit(f"claimed elsewhere: {error}")
        if claim.record.status is not Status.RUNNING:
            _cancel(parts, claim, record)  # which a task does not, if it dies once it has ended the claim
        try:
            if claim.record.status is Status.QUARANTINED:
                raise PermanentError(f"window {claim.window} is quarantined: {claim.record.reason}")
            if claim.record.status is Status.DONE:
                return done(claim) if done else _exit(claim.record.reason)
            return _guarded(parts, claim, step)
        except ClaimLostError as error:
            return _exit(f"claimed elsewhere: {error}")


def _guarded(parts: Parts, claim: Claim, step: Callable[[Parts, Claim], Result]) -> Result:
    with runner.heartbeat(parts, claim) as lost:
        try:
            return step(evolve(parts, stopping=lost.is_set), claim)
        except (ClaimLostError, TransientError, SideError):
            raise
        except Interrupted as error:
            raise ClaimLostError(str(error)) from error  # nothing else stops a task's step
        except Exception as error:
            _finish(parts, claim, runner.verdict_on(error, claim, parts.config.run))
            raise


def _finish(parts: Parts, claim: Claim, verdict: Verdict) -> None:
    # Settled first: a task that dies in between is run again, and has nothing staged to work on where it was cleaned.
    parts.store.settle(claim, verdict)
    parts.report.tell("settled", claim.window, status=verdict.status, outcome=verdict.outcome, reason=verdict.reason)
    auditing.clean_up(parts, claim, finished=verdict.status is not Status.PENDING)


def _cancel(parts: Parts, claim: Claim, record: Mapping[str, Any]) -> None:
    """Ends the upload that travels with the record, which nobody is to publish any more."""
    token = upload_of(record)
    if token is not None:
        transfer.cancel(parts, claim.window, token)


def _staged(parts: Parts, claim: Claim) -> Staged:
    staged = transfer.latest(parts, claim)
    if staged is None:
        raise TransientError(
            f"stage: nothing is staged for {claim.window} of {parts.pipeline}; call extract_source_data first"
        )
    return staged


def _pipeline(config: Config) -> Pipeline:
    if isinstance(config, Mapping):
        return Pipeline.from_mapping(config)
    if isinstance(config, str | Path):
        return Pipeline.from_file(config)
    raise ConfigError(
        f"config: found a {type(config).__name__}, expected a mapping or the path of a TOML file; give one"
    )


def _mapping(parts: Parts, claim: Claim, upload: str | None = None) -> Result:
    return to_mapping(claim, parts.config.policy.timezone, upload)


def _exit(reason: str) -> Result:
    return {"exit_dag": True, "record": None, "reason": reason}


def _counted(decision: Decision) -> Result:
    return {
        "exit_dag": decision.exit_dag,
        "reason": decision.reason,
        "source_count": decision.counts.source,
        "target_count": decision.counts.target,
    }


def _recorded(outcome: Outcome | None, reason: str, evidence: Mapping[str, Any]) -> Result:
    counts = evidence.get("after") or evidence.get("before") or {}
    return {
        "exit_dag": True,
        "reason": reason,
        "outcome": outcome and str(outcome),
        "source_count": counts.get("source"),
        "target_count": counts.get("target"),
    }


def _recorded_counts(claim: Claim) -> Result:
    found = claim.record
    recorded = _recorded(found.outcome, found.reason, found.evidence)
    del recorded["outcome"]
    return recorded
