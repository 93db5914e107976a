"""The claims that this ingress has in flight: from the try to claim until the task left in_progress.

Pure bookkeeping; times are readings of the caller's monotonic clock. The ledger
is a hint for admission and for renewing what is queued; the service is the truth.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dispatch.core.admission import Pace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dispatch.ats.gateway import AttemptRef


@dataclass(slots=True)
class Flight:
    """One claim. ``ref`` is None while the claim itself is under way."""

    priority: int
    ref: AttemptRef | None = None
    granted_at: float = 0.0
    """When the latest successful claim or renewal was sent."""
    lease_s: float = 0.0
    enqueued_at: float | None = None
    """None until Redis took the message."""
    queue: str = ""
    classes: tuple[str, ...] = ()
    """The classes in which it has taken places."""
    has_places: bool = False
    """It had them still when the task was claimed: they are ours until the flight ends."""
    started: bool = False
    """A worker has started it: from then on the worker renews, not we."""


@dataclass(slots=True)
class Ledger:
    """All flights, by task id; ``pace`` is how fast they end. ``gone`` hears of every flight that is forgotten."""

    pace: Pace = field(default_factory=Pace)
    gone: Callable[[str, Flight], None] = lambda _task_id, _flight: None
    _flights: dict[str, Flight] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._flights)

    def __contains__(self, task_id: object) -> bool:
        return task_id in self._flights

    def in_flight(self) -> dict[str, int]:
        """Return how many flights each queue has."""
        return Counter(flight.queue for flight in self._flights.values())

    def reserve(self, task_id: str, priority: int, *, queue: str = "") -> None:
        """Take a place in the window of a queue before trying to claim."""
        self._flights[task_id] = Flight(priority=priority, queue=queue)

    def hold(self, task_id: str, classes: tuple[str, ...], *, is_claimed: bool = False) -> None:
        """Record in which classes a flight has taken places; ``is_claimed``: and keeps them."""
        if (flight := self._flights.get(task_id)) is not None:
            flight.classes, flight.has_places = classes, is_claimed

    def granted(self, ref: AttemptRef, *, sent_at: float, lease_s: float) -> None:
        """Record a claim that succeeded. Must be called before the message is enqueued."""
        flight = self._flights.setdefault(ref.task_id, Flight(priority=0))
        flight.ref = ref
        flight.granted_at = sent_at
        flight.lease_s = lease_s
        flight.enqueued_at = None
        flight.started = False

    def enqueued(self, ref: AttemptRef, now: float) -> None:
        """Record that Redis took the message; nothing happens if the task has ended meanwhile."""
        flight = self._flights.get(ref.task_id)
        if flight is not None and flight.ref == ref:
            flight.enqueued_at = now

    def renewed(self, ref: AttemptRef, *, sent_at: float, lease_s: float) -> None:
        """Record a renewal of a queued claim."""
        flight = self._flights.get(ref.task_id)
        if flight is not None and flight.ref == ref:
            flight.granted_at, flight.lease_s = sent_at, lease_s

    def started(self, ref: AttemptRef) -> None:
        """Record that a worker has started the attempt."""
        flight = self._flights.get(ref.task_id)
        if flight is not None and flight.ref == ref:
            flight.started = True

    def items(self) -> list[tuple[str, Flight]]:
        """Return all flights as (task id, flight); a copy, so that dropping while looping is fine."""
        return list(self._flights.items())

    def get(self, task_id: str) -> Flight | None:
        """Return the flight of a task, or None."""
        return self._flights.get(task_id)

    def drop(self, task_id: str) -> Flight | None:
        """Forget a flight and return it."""
        flight = self._flights.pop(task_id, None)
        if flight is not None:
            self.gone(task_id, flight)
        return flight

    def ended(self, task_id: str, now: float) -> None:
        """Forget a flight whose attempt has ended: its slot is free."""
        if self.drop(task_id) is not None:
            self.pace.ended(now)

    def concerns(self, task_id: str, token: int | None) -> bool:
        """Say whether news about ``task_id`` under ``token`` is about the present flight.

        News older than the flight's own token, or heard while the claim is under
        way, must change nothing.
        """
        flight = self._flights.get(task_id)
        if flight is None or flight.ref is None:
            return False
        return token is None or token >= flight.ref.token

    def queued(self, now: float, min_age_s: float) -> Iterator[tuple[AttemptRef, Flight]]:
        """Yield the flights that Redis took at least ``min_age_s`` ago and no worker is known to have started."""
        for flight in list(self._flights.values()):
            if flight.ref is None or flight.started or flight.enqueued_at is None:
                continue
            if now - flight.enqueued_at >= min_age_s:
                yield flight.ref, flight
