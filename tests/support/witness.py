"""What the children of a stack's tasks wrote down about themselves (tests/support/tick.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.support.stack import Stack


def spans_of(stack: Stack, task_id: str) -> list[tuple[float, float]]:
    """Return from when to when each attempt of a task was seen alive, on the clock since the machine's start."""
    times: dict[int, list[float]] = {}
    for line in stack.tick_lines(task_id):
        times.setdefault(line["token"], []).append(line["at"])
    return [(min(seen), max(seen)) for seen in times.values()]


def most_at_once(stack: Stack, task_ids: Iterable[str]) -> int:
    """Return how many attempts of the tasks ran at the same time at most."""
    spans = [span for task_id in task_ids for span in spans_of(stack, task_id)]
    return max(sum(begin <= at < end for begin, end in spans) for at, _ in spans)
