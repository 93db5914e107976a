"""What a payload says that its task depends on."""

from __future__ import annotations

from typing import Any

import pytest

from dispatch.core.dependencies import ident_of, named_in

UUID = "6f1d3c1e-5d0b-4a57-9c0e-6d1f2b7a4c11"


@pytest.mark.parametrize(
    ("said", "named"),
    [
        (100, (100,)),
        ("100", (100,)),
        ("#100", (100,)),
        (" 100, 101 ,100", (100, 101)),
        (["100", 101, 100.0], (100, 101)),
        (UUID.upper(), (UUID,)),
        (None, ()),
        ([], ()),
        ("", ()),
        ("step one", ("step one",)),
        ([True, {"a": 1}, 0, -3, 1.5], ("true", '{"a": 1}', "0", "-3", "1.5")),
        (10**30, ("1" + "0" * 30,)),
        ("x" * 100, ("x" * 64,)),
    ],
)
def test_every_form_names_the_same_tasks(said: Any, named: tuple[Any, ...]) -> None:
    """Numbers, texts and lists; what can be no id stays as text, so that it is never taken for nothing."""
    assert named_in({"depends_on": said}) == named


@pytest.mark.parametrize("payload", [None, {}, [], "depends_on", {"depends": 1}, 7])
def test_a_payload_without_the_key_says_nothing(payload: Any) -> None:
    """None is not the same as the empty list."""
    assert named_in(payload) is None


@pytest.mark.parametrize("value", [True, 0, -1, 1.5, "1.5", "", "x", 2**63, None, [], "١٢"])
def test_what_is_no_ident(value: Any) -> None:
    """Booleans, numbers below 1 or above 64 bits, other digits than ASCII."""
    assert ident_of(value) is None
