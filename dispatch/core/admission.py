"""Who may be claimed next, and how many.

The backlog holds the claimable tasks that the ingress has heard of, best first,
bounded: when it overflows, the worst is forgotten and ``truncated`` says that
the service knows more. The window says how many claims may be in flight. No
I/O, no clock; times are readings of the caller's monotonic clock in seconds.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field
from typing import Final

BACKLOG_MAX: Final = 10_000


def free_window(*, slots: int, credit: int, own_in_flight: int, others_in_flight: int, step: int = 1) -> int:
    """Return how many more tasks to claim now for one queue; 0 while there is room for fewer than ``step``.

    Without a slot anywhere nothing is claimed: a lease must not be spent waiting
    for a worker that may never come.
    """
    if slots <= 0:
        return 0
    room = slots + credit - own_in_flight - others_in_flight
    return room if room >= max(1, step) else 0


_PACE_MEMORY_S: Final = 0.5
LEAD_S: Final = 0.2
CREDIT_MAX: Final = 64


@dataclass(slots=True)
class Pace:
    """How fast slots fall free: a rate per second that forgets within about half a second."""

    _rate: float = 0.0
    _at: float = 0.0

    def ended(self, now: float) -> None:
        """Count one attempt that ended."""
        self._rate = self.rate(now) + 1.0 / _PACE_MEMORY_S
        self._at = now

    def rate(self, now: float) -> float:
        """Return the present rate per second."""
        return self._rate * math.exp(-max(0.0, now - self._at) / _PACE_MEMORY_S)


def credit_for(rate: float, base: int) -> int:
    """Return how many tasks to claim beyond the free slots.

    Claiming ahead by what is used up within LEAD_S keeps slots from waiting for
    claims when tasks are short (Little's law); when they are long the rate is
    about zero and only ``base`` is claimed ahead.
    """
    return min(base + math.ceil(rate * LEAD_S), max(CREDIT_MAX, base)) if base else 0


def step_for(credit: int, base: int) -> int:
    """Return for how many tasks it is worth asking the service, given what ``credit_for`` answered.

    Half of what is claimed ahead for the pace: the other half is what the slots
    live on meanwhile, and a call for each task that ends would cost the service
    as much again as the task. What ``base`` allows is always claimed at once.
    """
    return max(1, (credit - base) // 2)


def _order(task_id: str) -> tuple[int, str]:
    return (int(task_id), "") if task_id.isdigit() else (0, task_id)


@dataclass(slots=True)
class Backlog:
    """Claimable tasks, best first: highest priority, then oldest (lowest id).

    A task that must wait is kept apart until ``due``. Every method is O(log n).
    """

    capacity: int = BACKLOG_MAX
    truncated: bool = False
    """True once something was forgotten; the owner refills from the service and resets it."""
    _ready: list[tuple[int, tuple[int, str], str]] = field(default_factory=list)
    _waiting: list[tuple[float, str, int]] = field(default_factory=list)
    _known: dict[str, tuple[int, float]] = field(default_factory=dict)
    """task id -> (priority, due): what the heaps hold besides is stale and skipped."""

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, task_id: object) -> bool:
        return task_id in self._known

    def add(self, task_id: str, priority: int, due: float = 0.0) -> None:
        """Remember a claimable task, or change what is known of it. ``due`` 0 means now."""
        if self._known.get(task_id) == (priority, due):
            return
        self._known[task_id] = (priority, due)
        if due > 0.0:
            heapq.heappush(self._waiting, (due, task_id, priority))
        else:
            heapq.heappush(self._ready, (-priority, _order(task_id), task_id))
        if len(self._known) > self.capacity:
            self._forget_worst()
        elif len(self._ready) + len(self._waiting) > 2 * len(self._known) + 64:
            self._rebuild()

    def discard(self, task_id: str) -> None:
        """Forget a task; unknown ids are fine."""
        self._known.pop(task_id, None)

    def clear(self) -> None:
        """Forget all tasks; the owner lists them anew."""
        self._known.clear()
        self._ready.clear()
        self._waiting.clear()

    def best(self, now: float) -> tuple[int, tuple[int, str]] | None:
        """Return the rank of the best task that is due, the lower the better, or None."""
        self._promote(now)
        while self._ready:
            negative, order, task_id = self._ready[0]
            if self._known.get(task_id) == (-negative, 0.0):
                return negative, order
            heapq.heappop(self._ready)
        return None

    def pop(self, now: float) -> tuple[str, int] | None:
        """Take the best task that is due, as (task id, priority), or None."""
        if self.best(now) is None:
            return None
        negative, _, task_id = heapq.heappop(self._ready)
        del self._known[task_id]
        return task_id, -negative

    def next_due(self) -> float | None:
        """Return when the next waiting task becomes due, or None."""
        while self._waiting:
            due, task_id, priority = self._waiting[0]
            if self._known.get(task_id) == (priority, due):
                return due
            heapq.heappop(self._waiting)
        return None

    def _promote(self, now: float) -> None:
        while (due := self.next_due()) is not None and due <= now:
            _, task_id, priority = heapq.heappop(self._waiting)
            self._known[task_id] = (priority, 0.0)
            heapq.heappush(self._ready, (-priority, _order(task_id), task_id))

    def _rebuild(self) -> None:
        self._ready = [(-p, _order(i), i) for i, (p, due) in self._known.items() if due == 0.0]
        self._waiting = [(due, i, p) for i, (p, due) in self._known.items() if due > 0.0]
        heapq.heapify(self._ready)
        heapq.heapify(self._waiting)

    def _forget_worst(self) -> None:
        """Forget the worst tenth at once, so that overflowing stays cheap."""
        worst = sorted(self._known, key=lambda i: (-self._known[i][0], _order(i)))[self.capacity * 9 // 10 :]
        for task_id in worst:
            del self._known[task_id]
        self.truncated = True
        self._rebuild()
