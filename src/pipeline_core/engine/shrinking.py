"""The guard before a load: a window is not replaced by fewer rows than were verified, unless somebody says so."""

from __future__ import annotations

from collections.abc import Callable

from pipeline_core.decision import shrinks
from pipeline_core.engine import identity
from pipeline_core.engine.parts import Parts
from pipeline_core.errors import ShrinkError
from pipeline_core.record import Asked, Claim


def refuse_shrink(parts: Parts, claim: Claim, rows: int, held: Callable[[], int]) -> None:
    """Raises ShrinkError where loading `rows` of the source would lose some that the target may be the last to hold.

    `held` gives the target's rows; it is called only where it matters. `on_shrink = "replace"` and a reload that
    accepts a shrink let everything pass.
    """
    if parts.config.on_shrink == "replace" or claim.record.asked is Asked.ACCEPT_SHRINK:
        return
    verified = claim.record.verified_rows
    if rows >= (verified or 1):
        return
    target = held()
    changed = identity.difference(claim.record.identity, parts.identity())
    if shrinks(rows, target, verified, elsewhere=bool(changed)):
        before = "none were ever verified" if verified is None else f"{verified} were verified before"
        if changed and verified is not None:
            before += f" under another identity ({changed})"
        raise ShrinkError(
            f"source shrank: {claim.window}: it gives {rows} rows, {before}, the target holds {target}; nothing was "
            "replaced. Bring the rows back and retry the window, skip it, or accept what there is: "
            "`pipeline-core reload --accept-shrink`",
            {"source": rows, "target": target, "verified": verified},
        )
