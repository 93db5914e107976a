"""What happened, from the transaction that did it to everybody who listens.

An ``Event`` is written to the ``events`` table in the transaction of the move,
and published after the commit, in the order of ``seq``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from dispatch.service import wire

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

STEP: Final = "task.step"
"""A move inside a longer one: it is in the history, nobody is told."""

_EXTENDED: Final = {
    "task.started": None,
    "task.locked": None,
    "task.released": "task.updated",
    "task.unlocked": "task.updated",
    "task.recovered": "task.updated",
    "task.ready": "task.updated",
}
"""Events that plain ATS does not know, and what a plain client gets instead, if anything."""


@dataclass(slots=True)
class Event:
    """One line of the event log, with the task as it was right after."""

    seq: int
    type: str
    task: Any
    """The task's row."""
    actor_id: str
    actor_name: str
    created_at: int
    message: str | None = None
    """The message as JSON text, for ``task.message``."""
    _frames: dict[tuple[str, bool], str] = field(default_factory=dict)

    def type_for(self, *, extended: bool) -> str | None:
        """Return the type that a subscriber is told, or None when it is not told."""
        if self.type == STEP:
            return None
        return self.type if extended else _EXTENDED.get(self.type, self.type)

    def frame(self, shown_type: str, *, thin: bool) -> str:
        """Return the WebSocket frame, serialised once for all subscribers that get the same form."""
        cached = self._frames.get((shown_type, thin))
        if cached is not None:
            return cached
        head = {
            "type": shown_type,
            "seq": self.seq,
            "timestamp": wire.iso(self.created_at),
            "task_id": self.task.id,
            "channel": self.task.channel,
            "actor_id": self.actor_id,
            "actor_name": self.actor_name,
        }
        task = wire.thin_task_json(self.task) if thin else wire.task_json(self.task, self.created_at)
        message = f',"message":{self.message}' if self.message is not None else ""
        text = f'{json.dumps(head, separators=(",", ":"))[:-1]},"data":{{"task":{task}{message}}}}}'
        self._frames[shown_type, thin] = text
        return text


class Bus:
    """Hands committed events to listeners, on the event loop, in the order of ``seq``."""

    def __init__(self, last_seq: int = 0) -> None:
        self.last_seq = last_seq
        """The newest event that was published."""
        self._listeners: list[Callable[[Sequence[Event]], None]] = []

    def listen(self, listener: Callable[[Sequence[Event]], None]) -> None:
        """Call ``listener`` with every batch of events from now on. It must not block."""
        self._listeners.append(listener)

    def forget(self, listener: Callable[[Sequence[Event]], None]) -> None:
        """Stop calling ``listener``."""
        self._listeners.remove(listener)

    def publish(self, events: Sequence[Event]) -> None:
        """Hand ``events``, committed and in order, to every listener."""
        if not events:
            return
        self.last_seq = events[-1].seq
        for listener in tuple(self._listeners):
            listener(events)
