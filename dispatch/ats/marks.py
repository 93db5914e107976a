"""Marks on a task's thread that say who began which attempt, for a service without fencing tokens.

Redis may lose what it knows of a start; the thread does not. Pure.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_MARK: Final = re.compile(r"Begun by (\S{1,512}), token ([0-9]{1,19})\.", re.ASCII)


def mark_of(token: int, runner: str) -> str:
    """Return the sentence that says that ``runner``, a name without spaces, began the attempt with this token."""
    return f"Begun by {runner}, token {token}."


def runners_in(messages: Iterable[Any], token: int) -> list[str]:
    """Return who began the attempt with this token, as messages of any shape say it, in their order."""
    found = []
    for message in messages:
        parts = message.get("parts") if isinstance(message, dict) else None
        for part in parts if isinstance(parts, list) else ():
            text = part.get("content") if isinstance(part, dict) else None
            mark = _MARK.fullmatch(text) if isinstance(text, str) else None
            if mark is not None and int(mark[2]) == token:
                found.append(mark[1])
    return found
