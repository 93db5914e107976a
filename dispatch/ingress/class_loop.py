"""Keeping the places that this ingress's tasks have in their classes, and hearing when others give theirs back."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from redis.exceptions import RedisError

from dispatch.ingress.classes import CHANGED_CHANNEL, Classes

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable
    from typing import Any

    import redis.asyncio

    from dispatch.core.presence import WorkerPresence
    from dispatch.ingress.ledger import Flight
    from dispatch.settings import Settings

_PAUSE_S: Final = 0.5
_SETTLE_SWEEPS: Final = 3.0
"""After a loss of Redis so many sweeps pass before new places are taken: others enter theirs with each sweep."""


class ClassLoop:
    """Moves ``classes``. ``changed`` is called when a place may have fallen free."""

    def __init__(
        self, settings: Settings, client: redis.asyncio.Redis, holder: str, *, changed: Callable[[], None]
    ) -> None:
        self._redis = client
        self.classes = Classes(
            client,
            settings.routing.classes,
            holder=holder,
            lease_s=settings.execution.lease_s,
            settle_s=_SETTLE_SWEEPS * settings.ingress.sweep_s,
        )
        self._changed = changed
        self._gone: asyncio.Queue[tuple[str, tuple[str, ...], bool]] = asyncio.Queue()

    def gone(self, task_id: str, flight: Flight) -> None:
        """Hear that a task is not in flight any more."""
        if flight.classes:
            self._gone.put_nowait((task_id, flight.classes, False))

    def ended(self, task_id: str, classes: tuple[str, ...]) -> None:
        """Hear that a task has ended for good, whoever had it in flight: that ingress may be gone."""
        if classes:
            self._gone.put_nowait((task_id, classes, True))

    async def keep(self, flights: Iterable[tuple[str, Flight]], workers: Iterable[WorkerPresence]) -> None:
        """Hold what is ours, or runs somewhere, for another while. Raises ``redis.RedisError`` or ``OSError``."""
        running = [name.rpartition(".")[0] for worker in workers for name in worker.running]
        await self.classes.keep(flights, running)

    def loops(self) -> list[tuple[str, Coroutine[Any, Any, None]]]:
        """Return what must run side by side, with names."""
        return [("classes-back", self._give_back()), ("classes-changed", self._hear())]

    async def _give_back(self) -> None:
        while True:
            task_id, classes, has_ended = await self._gone.get()
            try:
                await self.classes.give_back(task_id, classes, has_ended=has_ended)
            except (RedisError, OSError):
                # If Redis lost everything there is nothing to give back; otherwise it must not wait for its expiry.
                self._gone.put_nowait((task_id, classes, has_ended))
                await asyncio.sleep(_PAUSE_S)
                continue
            self.classes.opened()
            self._changed()

    async def _hear(self) -> None:
        while True:
            with contextlib.suppress(RedisError, OSError):
                async with self._redis.pubsub() as channel:
                    await channel.subscribe(CHANGED_CHANNEL)
                    while True:
                        message = await channel.get_message(ignore_subscribe_messages=True, timeout=3.0)
                        if message is not None:
                            self.classes.opened()
                            self._changed()
            await asyncio.sleep(_PAUSE_S)
