"""Where a cascade of failures began: what is to be done again before a task that failed because of others."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from dispatch.ats import protocol
from dispatch.ats.model import parse_task
from dispatch.core.graph import ELSEWHERE, MISSING, ends_in, ends_named, is_settled, opens
from dispatch.errors import UnknownTaskError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dispatch.ats.model import Task
    from dispatch.cli.options import State

READ_MAX: Final = 64
"""How many tasks are read on the way."""


def ends_that(reason: dict[str, str], task: Task) -> list[tuple[str, str]]:
    """Return the dependencies that ended badly because of which a task failed or will; ``reason`` is told of it."""
    if reason["code"] == "DEPENDENCY_FAILED":
        return ends_named(reason["text"])
    return ends_in(task.reason) if reason["code"] == "FINISHED" and task.status == "failed" else []


def first_failures(state: State, ends: Sequence[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """Return the tasks that ended badly by themselves, because of which these ended so, and names that no task has.

    What is done again meanwhile, or completed, is left out. Raises the GatewayError family.
    """
    ended: list[str] = []
    missing: list[str] = []
    to_look_at = deque(ends)
    looked_at: set[str] = set()
    while to_look_at:
        name, status = to_look_at.popleft()
        if name in looked_at:
            continue
        looked_at.add(name)
        if status in (MISSING, ELSEWHERE):
            missing.append(name)
            continue
        if len(looked_at) > READ_MAX:
            ended.append(name)
            continue
        try:
            needed = parse_task(state.client.send(protocol.get(name)))
        except UnknownTaskError:
            missing.append(name)
            continue
        behind = ends_in(needed.reason) if needed.status == "failed" else []
        to_look_at += behind
        if not behind and is_settled(needed.status) and not opens(needed.status):
            ended.append(needed.id)
    return ended, missing


def advice(ended: list[str], missing: list[str]) -> str:
    """Say what to do about a task that failed because of these, with ID for the task's id."""
    if missing:
        names = ", ".join(f"#{name}" for name in missing[:10])
        return f"Reopened it fails again, because {names} does not exist in its project; create it anew without that."
    if ended:
        return f"'dispatch reopen {' '.join(ended)} --dependents' has all of them done again."
    return "'dispatch reopen ID' has it done again."
