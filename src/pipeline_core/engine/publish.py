"""The exactly-once sequence: the only place in the project that replaces rows."""

from __future__ import annotations

from logging import DEBUG

from pipeline_core.contracts import Load
from pipeline_core.engine.parts import Parts, blaming
from pipeline_core.engine.shrinking import refuse_shrink
from pipeline_core.errors import ClaimLostError, MismatchError, TransientError
from pipeline_core.log import timed


def publish(parts: Parts, load: Load) -> None:
    """Replaces the window's rows in one transaction of the target; what is retried is the whole transaction.

    Raises ClaimLostError where another worker has the window. Where the target alone says so it is a TransientError:
    the next claim's fence is a later one.
    """
    with timed() as watch:
        try:
            parts.retried("publish", load.window, lambda: _transact_or_find_done(parts, load))
        except ClaimLostError as refused:
            parts.store.renew(load.claim, parts.config.run.lease_s)  # raises where the claim is lost indeed
            raise TransientError(
                f"{refused}; yet the store holds this claim, nobody has taken over: it was restored or made anew, and "
                "its clock is behind the one that gave out that fence. A fence is a time in microseconds UTC: retry "
                "the window once the store's clock is past it"
            ) from refused
    parts.report.tell("published", load.window, rows=load.staged.rows, seconds=watch.seconds)


@blaming("target")
def _transact_or_find_done(parts: Parts, load: Load) -> None:
    try:
        _transact(parts, load)
    except TransientError:
        # The reply to a commit may be lost after the commit took effect: only the ledger knows.
        if not parts.target.published(load):
            raise


def _transact(parts: Parts, load: Load) -> None:
    window, tell = load.window, parts.report.tell
    with parts.target.transaction() as transaction:
        transaction.guard(load)
        tell("guarded", window, level=DEBUG, fence=load.claim.fence)
        # Again, on what is about to replace the rows: the source may have shrunk between the count and the extraction.
        refuse_shrink(parts, load.claim, load.staged.rows, lambda: transaction.count(window))
        removed = transaction.delete(window)
        tell("deleted", window, level=DEBUG, rows=removed)
        transaction.insert(load)
        tell("inserted", window, level=DEBUG, rows=load.staged.rows)
        landed = transaction.count(window)
        if landed != load.staged.rows:
            raise MismatchError(
                f"target: {window}: {load.staged.rows} rows were staged, but {landed} fall into the window after the "
                "insert; nothing was published. A column that rounds its timestamps, or rows written there by others "
                "outside this pipeline, would explain it"
            )
