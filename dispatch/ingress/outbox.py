"""Where deliveries wait until they are done: in our service, or in Redis for a foreign ATS.

``ServiceOutbox`` is exact: the service writes a delivery with the end of its
task. The other one (``dispatch.ingress.redis_outbox``) is as good as Redis and
the feed are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from dispatch.ats import protocol
from dispatch.errors import GatewayRejectedError, GatewayUnavailableError, SealReplayedError

if TYPE_CHECKING:
    from dispatch.ats.aclient import AsyncClient
    from dispatch.ats.model import Task

LEASE_S = 90.0
"""How long a delivery is ours once taken: longer than reading its task, its turn and a try take together."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """One end of a task to tell of. ``tries`` counts this one; ``settled_at`` is ISO 8601, ``status`` an ATS word."""

    id: str
    task_id: str
    status: str
    settled_at: str
    tries: int
    token: int


@dataclass(frozen=True, slots=True)
class Taken:
    """What was taken, and in how many seconds the next one is due, if any waits."""

    deliveries: list[Delivery]
    next_due_s: float | None


class Outbox(Protocol):
    """All calls raise the GatewayError family, ``redis.RedisError`` or ``OSError`` when it cannot be reached."""

    keeps_itself: bool
    """Whether ends of tasks come into it without ``note``."""

    async def note(self, task: Task) -> None:
        """Take up the end of a task that the ingress has seen. Safe to repeat."""
        ...

    async def take(self, limit: int) -> Taken:
        """Take what is due, for LEASE_S."""
        ...

    async def report(
        self, delivery: Delivery, outcome: str, *, delay_s: float = 0.0, error: str | None = None, counted: bool = True
    ) -> None:
        """Say what became of it: delivered, failed, empty, or retry after ``delay_s``. Too late changes nothing."""
        ...

    async def is_original(self, delivery: Delivery, message: str) -> bool:
        """Say whether the sealed message with this digest belongs to the task that has ended.

        It does from now on if it belonged to none: whichever of several copies was begun, or has ended, first.
        """
        ...


class ServiceOutbox:
    """The deliveries of our service, for some channels."""

    keeps_itself = True

    def __init__(self, client: AsyncClient, channels: tuple[str, ...]) -> None:
        self._client = client
        self._channels = channels

    async def note(self, task: Task) -> None:
        """Do nothing: the service has written it."""

    async def take(self, limit: int) -> Taken:
        """Ask the service."""
        answer = await self._client.send(protocol.take_deliveries(self._channels, lease_s=LEASE_S, limit=limit))
        rows = answer.get("deliveries") if isinstance(answer, dict) else None
        if not isinstance(rows, list):
            raise GatewayUnavailableError("The task service answered something that is not a list of deliveries.")
        next_ms = answer.get("next_due_ms")
        return Taken([_delivery(row) for row in rows], next_ms / 1000.0 if isinstance(next_ms, int | float) else None)

    async def report(
        self, delivery: Delivery, outcome: str, *, delay_s: float = 0.0, error: str | None = None, counted: bool = True
    ) -> None:
        """Tell the service."""
        request = protocol.report_delivery(
            delivery.id, token=delivery.token, outcome=outcome, delay_s=delay_s, error=error, counted=counted
        )
        try:
            await self._client.send(request)
        except GatewayRejectedError as exc:
            if exc.status not in (404, 409):
                raise

    async def is_original(self, delivery: Delivery, message: str) -> bool:
        """Ask the service's register."""
        try:
            await self._client.send(protocol.seal(delivery.task_id, message))
        except SealReplayedError:
            return False
        return True


def _delivery(row: Any) -> Delivery:
    try:
        return Delivery(
            id=str(row["id"]),
            task_id=str(row["task_id"]),
            status=str(row["status"]),
            settled_at=str(row["settled_at"]),
            tries=int(row["tries"]),
            token=int(row["token"]),
        )
    except (KeyError, TypeError, ValueError):
        raise GatewayUnavailableError("The task service answered a delivery that cannot be read.") from None
