"""Secrets: values that are used but never shown, and texts cleaned of them."""

from __future__ import annotations

import re
from urllib.parse import quote, quote_plus

from attrs import frozen

_MASK = "***"
_SHORTEST = 4  # a shorter value stands in too many innocent words to be blotted out of every text
_URL_PASSWORD = re.compile(r"(://[^/\s:@]*:)([^@\s\"'<>,]+)@")
_revealed: set[str] = set()


def redact(text: str) -> str:
    """`text` with every secret that was revealed so far in this process, and the password of any URL, blotted out."""
    for value in sorted(_revealed, key=len, reverse=True):
        text = text.replace(value, _MASK)
    return _URL_PASSWORD.sub(rf"\1{_MASK}@", text)


@frozen(repr=False, eq=False)
class Secret:
    """A value that its repr, its str and every redacted text hide. Only `reveal()` gives it out."""

    _value: str

    def reveal(self) -> str:
        """The value itself; from now on `redact` knows it."""
        hide(self._value)
        return self._value

    def __repr__(self) -> str:
        return f"Secret({_MASK!r})"

    __str__ = __repr__


def hide(value: str) -> None:
    """Makes `redact` blot out `value`, also as it looks quoted, and the password of a URL in it.

    Values of fewer than four characters are not blotted out.
    """
    _revealed.update(form for form in _forms(value) if len(form) >= _SHORTEST)


def _forms(value: str) -> set[str]:
    """How a value may show up: as it is, without the newline of the file it came from, and quoted by a driver."""
    import json  # noqa: PLC0415 - the core does without it until a secret is hidden

    passwords = [match[2] for match in _URL_PASSWORD.finditer(value)]
    forms = {
        form for text in (value, value.strip(), *passwords) for form in (text, quote(text, safe=""), quote_plus(text))
    }
    return forms | {repr(value)[1:-1], json.dumps(value)[1:-1]}
