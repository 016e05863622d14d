"""Secrets: hidden where they are shown, known to `redact` once they are used."""

from __future__ import annotations

import json
import uuid
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline_core.secrets import Secret, hide, redact


def fresh() -> str:
    return f"pw-{uuid.uuid4()}"


def test_repr_str_and_format_hide_the_value() -> None:
    """No way of turning a Secret into text shows its value."""
    value = fresh()
    secret = Secret(value)
    for text in (repr(secret), str(secret), f"{secret}", f"{secret!r:>20}", f"{[secret]}"):
        assert value not in text
        assert "***" in text


def test_reveal_gives_the_value_and_redact_knows_it_from_then_on() -> None:
    """Only `reveal` gives the value out, and that makes `redact` blot it out."""
    value = fresh()
    secret = Secret(value)
    assert redact(f"login with {value} failed") == f"login with {value} failed"
    assert secret.reveal() == value
    assert redact(f"login with {value} failed") == "login with *** failed"


@pytest.mark.parametrize(
    "shown",
    [repr, json.dumps, lambda value: quote(value, safe=""), quote_plus, str.strip],
    ids=["repr", "json", "url", "form", "stripped"],
)
@given(st.text(min_size=8))
def test_a_secret_is_known_in_the_forms_that_drivers_show(shown, value) -> None:
    """Quoted for Python, JSON or a URL, or without the newline of its file, it is blotted out as well."""
    value = f"{fresh()} {value}\n"
    hide(value)
    text = shown(value)
    assert redact(f"x {text} y") in ("x *** y", 'x "***" y', "x '***' y")


def test_the_password_of_a_hidden_url_is_hidden_alone() -> None:
    """A driver that reports only the password of a URL gives nothing away."""
    value = fresh()
    hide(f"postgresql://me:{value}@db.example/flights")
    assert value not in redact(f"password {value!r} was refused")


def test_the_password_of_any_url_is_blotted_out() -> None:
    """A URL's password goes even where nobody has named it a secret; the rest of the URL stays."""
    text = redact("cannot reach postgresql://me:hunter2@db.example/flights?x=1 today")
    assert text == "cannot reach postgresql://me:***@db.example/flights?x=1 today"
    assert redact("see http://db.example:9200/a and ask a@b.example") == (
        "see http://db.example:9200/a and ask a@b.example"
    )


def test_the_longer_of_two_overlapping_secrets_goes_first() -> None:
    """A secret that begins with another one leaves no tail behind."""
    short = fresh()
    hide(short)
    hide(short + "-and-more")
    assert redact(f"<{short}-and-more>") == "<***>"


def test_very_short_values_stay() -> None:
    """A value that stands in innocent words is not blotted out of every text."""
    hide("qz7")
    assert redact("qz7 is short") == "qz7 is short"
