"""How long the task service keeps what, which tasks may go together, and how fast removing goes. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

IDEMPOTENCY_KEYS: Final = "idempotency_keys"
DELIVERIES: Final = "deliveries"
EVENTS: Final = "events"
LOG_MESSAGES: Final = "log_messages"
HISTORY: Final = "history"
TASKS: Final = "tasks"
KINDS: Final = (IDEMPOTENCY_KEYS, DELIVERIES, EVENTS, LOG_MESSAGES, HISTORY, TASKS)
"""What is removed, in this order: what is small and old first, whole tasks last."""

DUTY: Final = 0.2
"""The part of the time that removing may take of the one writer."""
PAUSE_MIN_S: Final = 0.02
PAUSE_MAX_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Retention:
    """Seconds that each kind is kept; 0 is for ever."""

    events_s: float = 0.0
    history_s: float = 0.0
    log_messages_s: float = 0.0
    deliveries_s: float = 0.0
    idempotency_keys_s: float = 0.0
    tasks_s: float = 0.0

    def limits(self, now_ms: int) -> Iterator[tuple[str, int]]:
        """Yield (kind, time in ms before which it goes) for every kind that is not kept for ever."""
        for kind in KINDS:
            keep_s: float = getattr(self, f"{kind}_s")
            if keep_s > 0:
                yield kind, now_ms - round(keep_s * 1000)


def going(candidates: Iterable[int], needers: Mapping[int, Iterable[int]]) -> set[int]:
    """Return those of ``candidates`` that nobody needs but others that go with them.

    ``needers`` names for a task those that depend on it or are its subtasks;
    one that is no candidate keeps the task, and with it all that the task needs.
    """
    left = set(candidates)
    needs: dict[int, list[int]] = {}
    pending = []
    for task, who in needers.items():
        if task not in left:
            continue
        for needer in who:
            needs.setdefault(needer, []).append(task)
            if needer not in left:
                pending.append(needer)
    while pending:
        for task in needs.pop(pending.pop(), ()):
            if task in left:
                left.remove(task)
                pending.append(task)
    return left


def pause_s(took_s: float) -> float:
    """Return how long to leave the writer to others after a batch that took so long, queueing included."""
    return min(max(took_s * (1 / DUTY - 1), PAUSE_MIN_S), PAUSE_MAX_S)
