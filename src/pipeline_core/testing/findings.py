"""How a suite reports: what was promised, by whom it was broken, where, what was expected, and what was found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline_core.window import Window


class BrokenPromiseError(AssertionError):
    """A promise that the object under test does not keep; reads like a bug report."""


def report(promise: str, subject: object, window: Window | None, expected: object, got: object) -> BrokenPromiseError:
    """The finding, as an error to raise."""
    lines = [
        promise,
        f"  tested:   {named(subject)}",
        *([f"  window:   {window}"] if window is not None else []),
        f"  expected: {expected}",
        f"  got:      {got}",
    ]
    return BrokenPromiseError("\n".join(lines))


def expect(promise: str, subject: object, got: object, expected: object, *, window: Window | None = None) -> None:
    """Raises BrokenPromiseError unless what was found is what was promised."""
    if got != expected:
        raise report(promise, subject, window, repr(expected), repr(got))


def expect_error(
    promise: str,
    subject: object,
    act: Callable[[], Any],
    kind: type[Exception] = Exception,
    *,
    window: Window | None = None,
) -> Exception:
    """Raises BrokenPromiseError unless `act` raises an error of the kind; returns that error."""
    try:
        found = act()
    except kind as error:
        return error
    except Exception as error:
        raise report(promise, subject, window, kind.__name__, f"{type(error).__name__}: {error}") from error
    raise report(promise, subject, window, kind.__name__, f"no error, but {found!r}")


def named(subject: object) -> str:
    """The class of what is tested, with its module."""
    kind = type(subject)
    return f"{kind.__module__}.{kind.__qualname__}"
