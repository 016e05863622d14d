"""The verbs of one publication, in the session that holds the uploaded rows."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field

from pipeline_core import Load, PermanentError, Publication, TransientError, Window
from pipeline_core.ledger import enter
from pipeline_snowflake.counting import count_windows
from pipeline_snowflake.ledger import TargetLedger
from pipeline_snowflake.session import Session
from pipeline_snowflake.side import Side
from pipeline_snowflake.uploading import Scratch


@define
class SnowflakePublication(Publication):
    """The verbs. `guard` comes first, and says which scratch it is."""

    _session: Session
    _ledger: Callable[[Side], TargetLedger]
    _scratch_of: Callable[[Load], Scratch]
    _look: Callable[[], Side | None]
    _side: Side | None = field(default=None, init=False)
    _load: Load | None = field(default=None, init=False)

    def guard(self, load: Load) -> None:
        side = self._scratch_of(load).loading.side
        ledger = self._ledger(side)
        ledger.lock()
        change = enter(ledger.overlapping(load.claim), load.claim, self._session.place, ledger.scope)
        ledger.apply(change)
        self._side, self._load = side, load

    def check_committed(self) -> None:
        """Raises TransientError where the server had ended the transaction before the commit, which then tells nothing.

        The audit would not notice where the old rows are as many as the new.
        """
        if self._load is not None and not self._ledger(self._guarded).entered(self._load.claim):
            raise TransientError(
                f"{self._session.place}: the server ended the transaction before its commit; the window is published "
                "again"
            )

    def delete(self, window: Window) -> int:
        side = self._guarded
        condition, values = side.inside(window)
        return self._session.count(f"DELETE FROM {side.table.sql} WHERE {condition}", *values)  # noqa: S608 - quoted

    def insert(self, load: Load) -> None:
        side, scratch = self._guarded, self._scratch_of(load)
        self._check_unchanged(side, scratch)
        self._session.rows(scratch.loading.insert(scratch.sql))

    def _check_unchanged(self, side: Side, scratch: Scratch) -> None:
        """Raises TransientError where a column is no longer what it was when the rows were made to fit it."""
        now = self._look()
        known = () if now is None else now.table.columns
        changed = [each.column.name for each in scratch.loading.filled if each.column not in known]
        if changed:
            raise TransientError(
                f"{self._session.place}: the columns {changed} have changed since the upload; "
                "the rows are uploaded again"
            )

    def count(self, window: Window) -> int:
        return count_windows(self._session, self._guarded, [window])[0]

    @property
    def _guarded(self) -> Side:
        if self._side is None:
            raise PermanentError(f"{self._session.place}: a publication begins with guard; nothing was written")
        return self._side
