"""What is sealed, as everybody can see it who holds no key. Pure."""

from __future__ import annotations

from typing import Any, Final

RESULT_NOTE: Final = "(The result is sealed: only the sender of the task can read it.)"
"""Stands for a sealed result wherever somebody else would read it."""


def is_sealed(payload: Any) -> bool:
    """Say whether a payload claims to be sealed."""
    return isinstance(payload, dict) and bool(payload.get("encrypted"))


def is_sealed_answer(output: Any) -> bool:
    """Say whether one of a task's outputs is a sealed answer."""
    return isinstance(output, dict) and isinstance(output.get("encrypted_response"), dict)
