"""Reasons in the words of the command line: what the service tells agents with tools in hand, people do by commands.

ID stands for the task's own id until it is put in.
"""

from __future__ import annotations

import re
from typing import Final

from dispatch.core.waiting import Reason

_ADVICE: Final = {
    "WAITING_FOR_DEPENDENCIES": "See all with 'dispatch deps --task ID'; ask 'dispatch why' of each that is not done.",
    "DEPENDENCY_FAILED": "Have these done again with 'dispatch reopen', or give it up with 'dispatch cancel ID'.",
    "DEPENDENCY_MISSING": "Create what it names, or give it up with 'dispatch cancel ID'.",
    "CYCLE": "Break the circle: 'dispatch cancel' one of these.",
    "BACKING_OFF": "Wait; it is offered again by itself. 'dispatch retry ID' ends the pause.",
    "LOCKED": "Wait, or ask with 'dispatch message ID TEXT'; if it is gone: 'dispatch recover ID todo --note WHY'.",
    "ASSIGNED": "Wait for that agent, or write to it: 'dispatch message ID TEXT'.",
    "IN_REVIEW": "Read it with 'dispatch show ID'; then 'dispatch complete ID' or 'dispatch bounce ID NOTE'.",
    "BACKLOG": "'dispatch move ID todo' offers it.",
    "BLOCKED": "'dispatch show ID' has its thread; 'dispatch move ID todo' offers it again.",
    "ORPHANED": "'dispatch recover ID todo --note WHY' offers it again.",
    "FINISHED": "'dispatch reopen ID' has it done again.",
}
_UUID: Final = re.compile(r" \([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\)")
_WORDS: Final = {"(todo)": "(pending)", "(skipped)": "(rejected)"}
"""States in texts, as lists of tasks show them."""


def for_people(reason: Reason) -> Reason:
    """Return a reason as the command line tells it, with ID for the task's id."""
    text = _UUID.sub("", reason.text)
    for word, shown in _WORDS.items():
        text = text.replace(word, shown)
    return Reason(reason.code, text, _ADVICE.get(reason.code, reason.advice))


def named(advice: str, task_id: str) -> str:
    """Put a task's id where it belongs."""
    return re.sub(r"\bID\b", task_id, advice)
