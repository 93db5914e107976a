"""Wakes calls that wait for something to happen."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dispatch.service.events import Bus, Event

_QUIET: Final = frozenset({"task.message", "task.started", "task.claimed", "task.locked", "task.step"})
"""Events after which no task can be begun that could not be before."""


class News:
    """Listens to a bus once, for every call that waits."""

    def __init__(self, bus: Bus) -> None:
        self._waiting: dict[asyncio.Event, int] = {}
        bus.listen(self._hear)

    def _hear(self, events: Sequence[Event]) -> None:
        if not self._waiting:
            return
        projects = {event.task.project_id for event in events if event.type not in _QUIET}
        for waiter, project in self._waiting.items():
            if project in projects:
                waiter.set()

    @contextlib.contextmanager
    def of(self, project_id: int) -> Iterator[asyncio.Event]:
        """Give an event that is set whenever a task of the project may have become ready. The caller clears it."""
        waiter = asyncio.Event()
        self._waiting[waiter] = project_id
        try:
            yield waiter
        finally:
            del self._waiting[waiter]
