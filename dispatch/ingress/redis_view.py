"""What the ingress reads from and writes to Redis besides the queue itself.

Every method raises ``redis.RedisError`` or ``OSError`` when Redis does not answer in
time; the caller goes on without.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from dispatch.broker import CANCEL_KEY, INGRESS_KEY, KEY_PREFIX, PRESENCE_CHANNEL, WAKE_CHANNEL, WORKER_KEY
from dispatch.core.presence import (
    PRESENCE_TTL_S,
    IngressPresence,
    WorkerPresence,
    dump,
    parse_ingress,
    parse_worker,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    import redis.asyncio

CANCEL_FLAG_TTL_S: Final = 300
_PROOF_KEY: Final = KEY_PREFIX + "proof"


def message_id(text: str) -> str | None:
    """Return the Celery id (``task.token``) of a message in a queue or in ``unacked``; None if it has none."""
    try:
        message = json.loads(text)
        if isinstance(message, list):
            message = message[0]
        ident = message["headers"]["id"]
    except (ValueError, TypeError, KeyError, IndexError):
        return None
    return ident if isinstance(ident, str) else None


class RedisView:
    """Presence of workers and other ingresses, messages in the queue, wake-ups."""

    def __init__(self, client: redis.asyncio.Redis, queues: Sequence[str]) -> None:
        self._redis = client
        self._queues = tuple(queues)

    async def _values(self, prefix: str) -> list[Any]:
        keys = [key async for key in self._redis.scan_iter(match=prefix + "*", count=500)]
        return list(await self._redis.mget(keys)) if keys else []

    async def workers(self, *, prove: bool = False) -> list[WorkerPresence]:
        """Return the workers that show themselves.

        ``prove`` says that Redis was lost: it must take a write before it counts as back. One that is full, or a
        replica, answers every question, and what is claimed for it would be given back at once, again and again.
        """
        if prove:
            await self._redis.set(_PROOF_KEY, "1", ex=PRESENCE_TTL_S)
        found = [parse_worker(text) for text in await self._values(WORKER_KEY)]
        return [worker for worker in found if worker is not None]

    async def ingresses(self) -> list[IngressPresence]:
        """Return the ingresses that show themselves, this one included."""
        found = [parse_ingress(text) for text in await self._values(INGRESS_KEY)]
        return [ingress for ingress in found if ingress is not None]

    async def show(self, presence: IngressPresence) -> None:
        """Show this ingress for PRESENCE_TTL_S."""
        await self._redis.set(INGRESS_KEY + presence.actor, dump(presence), ex=PRESENCE_TTL_S)

    async def leave(self, actor: str) -> None:
        """Stop showing this ingress."""
        await self._redis.delete(INGRESS_KEY + actor)

    async def messages(self) -> tuple[set[str], dict[str, str]]:
        """Return the Celery ids of the messages in the queues, and of those popped but not accepted, by delivery."""
        async with self._redis.pipeline(transaction=True) as pipe:
            for queue in self._queues:
                pipe.lrange(KEY_PREFIX + queue, 0, -1)
            pipe.hgetall(KEY_PREFIX + "unacked")
            *queued, unacked = await pipe.execute()
        return (
            {ident for texts in queued for text in texts if (ident := message_id(text))},
            {delivery: ident for delivery, text in unacked.items() if (ident := message_id(text))},
        )

    async def wake(self, task_id: str) -> None:
        """Tell whoever runs ``task_id`` to ask the service at once whether it still may."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.set(CANCEL_KEY + task_id, "1", ex=CANCEL_FLAG_TTL_S)
            pipe.publish(WAKE_CHANNEL, task_id)
            await pipe.execute()

    async def presence_changes(self) -> AsyncIterator[str]:
        """Yield once when subscribed and then for every change of presence; raises when Redis goes away."""
        async with self._redis.pubsub() as channel:
            await channel.subscribe(PRESENCE_CHANNEL)
            yield "subscribed"
            while True:
                message = await channel.get_message(ignore_subscribe_messages=True, timeout=3.0)
                if message is not None:
                    yield str(message["data"])
