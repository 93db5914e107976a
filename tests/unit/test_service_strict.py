"""What the edge of the service accepts and refuses, without a service."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatch.errors import InvalidInputError, TooLargeError
from dispatch.service import strict

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=3),
    max_leaves=10,
)


@given(json_values)
def test_ordinary_json_is_read_as_it_is(value: object) -> None:
    """Whatever the standard library writes without NaN comes back equal."""
    assert strict.parse_json(json.dumps(value).encode()) == value


@given(st.binary(max_size=40) | st.text('[]{}",:0123456789eE.-\\unatrfl', max_size=40).map(str.encode))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    """No input raises anything but the refusal."""
    with contextlib.suppress(InvalidInputError):
        strict.parse_json(body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nul",
        b"{} {}",
        b"\xff",
        b'"\xed\xa0\x80"',
        b"\xef\xbb\xbf{}",
        b"NaN",
        b"[Infinity]",
        b"-Infinity",
        b"1e999",
        b'{"a":1,"a":2}',
        b'{"a":{"b":1,"\\u0062":2}}',
        b"[" * 33 + b"]" * 33,
        b'{"a":' * 33 + b"1" + b"}" * 33,
        b"[" * 100_000,
        b"9" * 5_000,
        b'"\\u0000"',
        b'{"a\\u0000":1}',
        b'"\\ud800"',
        b'["\\udc00\\ud800"]',
        b'"a\nb"',
        b"01",
        b"'a'",
    ],
)
def test_bad_json_is_refused(body: bytes) -> None:
    """Each of these is malformed, ambiguous, or cannot be stored."""
    with pytest.raises(InvalidInputError):
        strict.parse_json(body)


def test_depth_and_pairs_at_the_limit_are_accepted() -> None:
    """Thirty-two levels and whole surrogate pairs are fine; many flat brackets are not depth."""
    assert strict.parse_json(b"[" * 32 + b"]" * 32)
    assert strict.parse_json(b'"\\ud83d\\ude00"') == "\N{GRINNING FACE}"
    assert len(strict.parse_json(b"[" + b"[]," * 99 + b"[]]")) == 100


def test_an_unknown_field_suggests_the_near_one() -> None:
    """The sentence names the field and what was probably meant."""
    with pytest.raises(InvalidInputError, match="'titel' is unknown; did you mean 'title'"):
        strict.parse_object({"titel": "x"}, {"title": strict.text(9)})


def test_json_text_measures_bytes() -> None:
    """The cap is on encoded bytes, not on characters."""
    accept = strict.json_text(10)
    assert accept("payload", "aaaaaaaa") == '"aaaaaaaa"'
    with pytest.raises(TooLargeError):
        accept("payload", "ääääää")


@pytest.mark.parametrize("text", ["2026-01-31T12:00:00.000Z", "2026-01-31T13:00:00+01:00", "2026-01-31T12:00:00"])
def test_moments_are_utc_unless_they_say_otherwise(text: str) -> None:
    """All three are the same instant; a plus that became a blank in a query is forgiven."""
    assert strict.moment("t", text) == strict.moment("t", text.replace("+", " ")) == 1_769_860_800_000


@pytest.mark.parametrize("ident", ["0", "-1", "1.0", "٣", "99999999999999999999", "9" * 400, "abc", "", " 1", "1 "])
def test_what_is_no_task_id(ident: str) -> None:
    """Only a positive 64-bit number or a UUID names a task."""
    assert strict.task_ident(ident) is None
