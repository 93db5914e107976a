"""Obeying an operator's orders: what is paused is not claimed, and workers of drained hosts hear of it.

The orders are the service's (in Redis for a foreign ATS). They are read with
every reconcile and whenever somebody says on STEER_CHANNEL that they changed.
Until they were read once, nothing may be claimed.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import RedisError

from dispatch import metrics
from dispatch.asynchronous import side_by_side
from dispatch.ats import orders
from dispatch.broker import DRAIN_KEY, PRESENCE_CHANNEL, STEER_CHANNEL
from dispatch.core.steering import EXTENSION, KINDS, Steering, steering_of
from dispatch.errors import GatewayError

if TYPE_CHECKING:
    from collections.abc import Callable

    import redis.asyncio

    from dispatch.ats.aclient import AsyncClient

_PAUSE_S: Final = 0.5
_PATIENCE_S: Final = 3.0


class Orders:
    """What is paused and drained, as this ingress knows it. ``changed`` is called when something else is paused."""

    def __init__(
        self,
        client: AsyncClient,
        redis_client: redis.asyncio.Redis,
        *,
        extensions: frozenset[str],
        changed: Callable[[], None],
        log: Any,
    ) -> None:
        self._client = client
        self._redis = redis_client
        self._in_service = EXTENSION in extensions
        self._changed = changed
        self._log = log
        self._known: Steering | None = None
        self._pauses: frozenset[tuple[str, str]] = frozenset()
        self._ends = asyncio.Event()
        """Set when another moment is the next at which an order ends."""
        metrics.watch("dispatch_steering_orders", self._counted)

    def holds(self, channel: str, queue: str) -> bool:
        """Say whether nothing of ``channel`` may be claimed for ``queue`` now."""
        return self._known is None or self._known.pause_of(channel, queue, time.monotonic()) is not None

    def _counted(self) -> metrics.Values:
        in_force = () if self._known is None else self._known.in_force(time.monotonic())
        return {(kind,): float(sum(order.kind == kind for order in in_force)) for kind in KINDS}

    def any_pause(self) -> bool:
        """Say whether anything at all is paused, or nothing is known yet."""
        return self._known is None or bool(self._known.pauses(time.monotonic()))

    async def read(self) -> None:
        """Read the orders. Raises the GatewayError family, ``redis.RedisError`` or ``OSError``."""
        was_known = self._known is not None
        self._known = steering_of(await self._rows(), time.monotonic())
        self._ends.set()
        self._compare(is_news=was_known)

    async def relay(self, *, tidy: bool = False) -> None:
        """Let workers know which hosts are drained; ``tidy`` takes back what is over.

        Raises ``redis.RedisError`` or ``OSError``.
        """
        if self._known is None:
            return
        now = time.monotonic()
        base_url = self._client.endpoint.base_url
        hosts = self._known.hosts(now)
        for key, text in orders.drains_of(base_url, hosts).items():
            ends_at = hosts[key.removeprefix(DRAIN_KEY)].ends_at
            await self._redis.set(key, text, px=None if ends_at is None else max(1, round((ends_at - now) * 1000)))
        if not tidy:
            return
        async for key in self._redis.scan_iter(match=DRAIN_KEY + "*", count=500):
            found: Any = await self._redis.get(key)
            if key.removeprefix(DRAIN_KEY) not in hosts and orders.is_ours(base_url, found):
                await self._redis.delete(key)

    async def run(self) -> None:
        """Hear of changes until cancelled."""
        await side_by_side([self._listen(), self._end_in_time()])

    async def _rows(self) -> list[Any]:
        if self._in_service:
            answer = await self._client.send(orders.ask())
            rows = answer.get("steering") if isinstance(answer, dict) else None
            return rows if isinstance(rows, list) else []
        key = orders.orders_key(self._client.endpoint.base_url)
        values: Any = await self._redis.hvals(key)
        seconds, micros = await self._redis.time()
        return orders.rows_of(values, seconds + micros / 1e6)

    def _compare(self, *, is_news: bool) -> None:
        pauses = frozenset() if self._known is None else self._known.pauses(time.monotonic())
        if pauses == self._pauses:
            return
        for kind, name in sorted(pauses - self._pauses):
            self._log.info("steering_paused", kind=kind, name=name)
        for kind, name in sorted(self._pauses - pauses):
            self._log.info("steering_resumed", kind=kind, name=name)
        self._pauses = pauses
        if is_news:
            self._changed()

    async def _listen(self) -> None:
        while True:
            try:
                async with self._redis.pubsub() as channel:
                    await channel.subscribe(STEER_CHANNEL)
                    while True:
                        message = await channel.get_message(ignore_subscribe_messages=True, timeout=_PATIENCE_S)
                        if message is not None:
                            await self.read()
                            await self.relay(tidy=True)
                            # Workers that begin or stop to drain say so; whoever shows them need not wait.
                            await self._redis.publish(PRESENCE_CHANNEL, "steering")
            except (RedisError, OSError, GatewayError) as exc:
                # The next reconcile reads them.
                self._log.debug("steering_not_read", reason=str(exc))
            await asyncio.sleep(_PAUSE_S)

    async def _end_in_time(self) -> None:
        while True:
            ends_at = None if self._known is None else self._known.next_end(time.monotonic())
            wait_s = None if ends_at is None else max(0.0, ends_at - time.monotonic()) + 0.01
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ends.wait(), wait_s)
            self._ends.clear()
            self._compare(is_news=True)
