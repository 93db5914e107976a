"""The backlog, divided into lanes: tasks that need the same queue and the same classes stand in one line.

A lane whose queue has no room, or whose class is full, holds up nobody in the
others. No I/O, no clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from dispatch.core.admission import BACKLOG_MAX, Backlog

if TYPE_CHECKING:
    from collections.abc import Callable

    from dispatch.core.routing import Choice


_LANES_FULL: Final = 5
"""So many backlogs full of tasks are kept in all, so that a lane that is stuck does not hide the others."""


class Lane(NamedTuple):
    """What a task needs before it may be claimed."""

    queue: str
    classes: tuple[str, ...] = ()


def lane_of(choice: Choice) -> Lane:
    """Return the lane of a task about which this was decided."""
    return Lane(choice.queue, choice.classes)


@dataclass(slots=True)
class Lanes:
    """A Backlog for each lane. A task of which nothing else is known stands in the lane of ``usual``.

    What was decided about a task is kept until ``forget``, also while it is not
    in the backlog; only what differs from ``usual`` costs memory.
    """

    usual: Choice
    capacity: int = BACKLOG_MAX
    _choices: dict[str, Choice] = field(default_factory=dict)
    _lanes: dict[Lane, Backlog] = field(default_factory=dict)
    _is_unread: bool = False

    def __len__(self) -> int:
        return sum(map(len, self._lanes.values()))

    def __contains__(self, task_id: object) -> bool:
        return any(task_id in backlog for backlog in self._lanes.values())

    @property
    def truncated(self) -> bool:
        """Whether the service knows more: something was forgotten in a lane, or not read (then the owner sets it)."""
        return self.may_lack(lambda _lane: True)

    @truncated.setter
    def truncated(self, value: bool) -> None:
        self._is_unread = value
        if not value:
            for backlog in self._lanes.values():
                backlog.truncated = False

    def may_lack(self, is_open: Callable[[Lane], bool]) -> bool:
        """Say whether the service may know more tasks of lanes that are open."""
        return self._is_unread or any(backlog.truncated and is_open(lane) for lane, backlog in self._lanes.items())

    def route(self, task_id: str, choice: Choice) -> None:
        """Note what was decided about a task; if it is in another lane now, it leaves that."""
        before = self.choice_of(task_id)
        if choice == before:
            return
        if lane_of(before) != lane_of(choice) and (old := self._lanes.get(lane_of(before))) is not None:
            old.discard(task_id)
        if choice == self.usual:
            self._choices.pop(task_id, None)
        else:
            self._choices[task_id] = choice

    def choice_of(self, task_id: str) -> Choice:
        """Return what was decided about a task."""
        return self._choices.get(task_id, self.usual)

    def clear(self) -> None:
        """Forget which tasks may be claimed; the owner lists them anew. What was decided about them stays."""
        for backlog in self._lanes.values():
            backlog.clear()

    def forget(self, task_id: str) -> None:
        """Forget a task altogether: it is not pending and not in flight."""
        self.discard(task_id)
        self._choices.pop(task_id, None)

    def add(self, task_id: str, priority: int, due: float = 0.0) -> None:
        """Remember a claimable task, or change what is known of it. ``due`` 0 means now."""
        self._backlog(lane_of(self.choice_of(task_id))).add(task_id, priority, due)

    def discard(self, task_id: str) -> None:
        """Take a task out of its lane; unknown ids are fine."""
        backlog = self._lanes.get(lane_of(self.choice_of(task_id)))
        if backlog is not None:
            backlog.discard(task_id)

    def pop(self, now: float, is_open: Callable[[Lane], bool]) -> tuple[str, int] | None:
        """Take the best task that is due from the lanes that are open, as (task id, priority), or None."""
        best: tuple[Backlog, tuple[int, tuple[int, str]]] | None = None
        for lane, backlog in self._lanes.items():
            if is_open(lane) and (rank := backlog.best(now)) is not None and (best is None or rank < best[1]):
                best = backlog, rank
        return best[0].pop(now) if best is not None else None

    def next_due(self) -> float | None:
        """Return when the next waiting task of any lane becomes due, or None."""
        moments = [due for backlog in self._lanes.values() if (due := backlog.next_due()) is not None]
        return min(moments, default=None)

    def is_full(self) -> bool:
        """Say whether enough is known to stop asking the service for more: of what is usual, or in all."""
        usual = self._lanes.get(lane_of(self.usual), ())
        return len(usual) >= self.capacity * 9 // 10 or len(self) >= _LANES_FULL * self.capacity

    def waiting(self) -> dict[Lane, int]:
        """Return how many tasks stand in each lane that is not empty."""
        return {lane: len(backlog) for lane, backlog in self._lanes.items() if len(backlog)}

    def _backlog(self, lane: Lane) -> Backlog:
        return self._lanes.setdefault(lane, Backlog(self.capacity))
