"""Marks of starts on a thread: what is written is read again, and nothing else is taken for one."""

from __future__ import annotations

from typing import Any

import pytest

from dispatch.ats.marks import mark_of, runners_in


def message(*texts: Any) -> dict[str, Any]:
    """Return a message with these texts as its parts."""
    return {"id": 1, "parts": [{"type": "text", "content": text} for text in texts]}


def test_marks_of_one_token_are_found_in_order():
    """Among other messages, parts and tokens, those who began under a token are named, the first first."""
    thread = [
        message("Agent processing started", mark_of(7, "host/1/a")),
        message(mark_of(8, "host/2/b")),
        message("still at it"),
        message(mark_of(7, "host/3/c")),
    ]
    assert runners_in(thread, 7) == ["host/1/a", "host/3/c"]
    assert runners_in(thread, 9) == []


@pytest.mark.parametrize(
    "strange",
    [
        None,
        7,
        "Begun by a, token 7.",
        {},
        {"parts": None},
        {"parts": "Begun by a, token 7."},
        {"parts": [None, 7, {"content": 7}, {"url": "x"}]},
        message("I saw: Begun by a, token 7."),
        message("Begun by a b, token 7."),
        message("Begun by a, token 7.\n"),
        message("Begun by a, token \u0667."),
        message("Begun by a, token 77777777777777777777."),
    ],
)
def test_nothing_else_is_a_mark(strange: Any):
    """Whatever a foreign service or a person puts on a thread is passed over."""
    assert runners_in([strange], 7) == []
