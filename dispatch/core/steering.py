"""What an operator ordered: channels and queues that are paused, hosts that are drained. Pure.

Orders travel as JSON objects with ``left_ms``, the time until they end by
themselves, so that nobody compares clocks. Times here are readings of the
caller's monotonic clock in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

CHANNEL: Final = "channel"
QUEUE: Final = "queue"
HOST: Final = "host"
KINDS: Final = (CHANNEL, QUEUE, HOST)
EXTENSION: Final = "steering"
"""What a task service announces that keeps orders itself."""


@dataclass(frozen=True, slots=True)
class Order:
    """A channel or queue is paused, or a host is drained."""

    kind: str
    name: str
    note: str = ""
    by: str = ""
    at: str = ""
    """When it was ordered, ISO 8601."""
    until: str | None = None
    """When it ends by itself, ISO 8601; None: never."""
    ends_at: float | None = None
    """The same on the reader's monotonic clock."""

    def holds(self, now: float) -> bool:
        """Say whether it is in force."""
        return self.ends_at is None or now < self.ends_at

    @property
    def words(self) -> str:
        """The order as the end of a sentence: why and until when."""
        until = f" until {self.until}" if self.until else ""
        by = f" by {self.by}" if self.by else ""
        note = f": {self.note}" if self.note else ""
        return f"{until}{by}{note}"


@dataclass(frozen=True, slots=True)
class Steering:
    """All orders, as they were read once."""

    orders: tuple[Order, ...] = ()

    def in_force(self, now: float) -> tuple[Order, ...]:
        """Return the orders that hold now."""
        return tuple(order for order in self.orders if order.holds(now))

    def pause_of(self, channel: str, queue: str, now: float) -> Order | None:
        """Return the order that keeps a task of ``channel``, meant for ``queue``, from being claimed; or None."""
        wanted = {(CHANNEL, channel), (QUEUE, queue)}
        return next((order for order in self.in_force(now) if (order.kind, order.name) in wanted), None)

    def pauses(self, now: float) -> frozenset[tuple[str, str]]:
        """Return (kind, name) of all that is paused."""
        return frozenset((order.kind, order.name) for order in self.in_force(now) if order.kind != HOST)

    def hosts(self, now: float) -> dict[str, Order]:
        """Return the hosts that take nothing new."""
        return {order.name: order for order in self.in_force(now) if order.kind == HOST}

    def next_end(self, now: float) -> float | None:
        """Return when the next order ends by itself, or None."""
        return min((order.ends_at for order in self.in_force(now) if order.ends_at is not None), default=None)


def steering_of(rows: Iterable[Any], now: float) -> Steering:
    """Read orders as a service or Redis tells them; what is none, and what is over, is left out."""
    found = [_order(row, now) for row in rows if isinstance(row, dict)]
    return Steering(tuple(order for order in found if order is not None and order.holds(now)))


def _order(row: Mapping[str, Any], now: float) -> Order | None:
    kind, name, left_ms = row.get("kind"), row.get("name"), row.get("left_ms")
    if kind not in KINDS or not isinstance(name, str) or not name:
        return None
    if left_ms is not None and (isinstance(left_ms, bool) or not isinstance(left_ms, int | float)):
        return None
    texts = {key: str(row.get(key) or "") for key in ("note", "by", "at")}
    until = row.get("until")
    return Order(
        kind,
        name,
        **texts,
        until=until if isinstance(until, str) else None,
        ends_at=None if left_ms is None else now + left_ms / 1000.0,
    )
