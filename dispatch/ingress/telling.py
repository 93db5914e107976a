"""Putting together what tells others that something happened to a task: callbacks and messages for people."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from dispatch.ingress.deliveries import Deliveries
from dispatch.ingress.notices import Notices
from dispatch.ingress.outbox import Outbox, ServiceOutbox
from dispatch.ingress.redis_outbox import RedisOutbox
from dispatch.notify import configured, wishes
from dispatch.notify.webhook import Webhooks

if TYPE_CHECKING:
    import redis.asyncio

    from dispatch.ats.aclient import AsyncClient
    from dispatch.settings import Settings

EXTENSION: Final = "deliveries"
"""What a service announces that keeps deliveries itself."""


class Telling:
    """Callbacks and messages of one ingress. ``effective`` reads what a task wants. Raises ConfigurationError."""

    def __init__(
        self,
        settings: Settings,
        client: AsyncClient,
        redis_client: redis.asyncio.Redis,
        *,
        extensions: frozenset[str],
        effective: wishes.Reader = wishes.effective,
        log: Any,
    ) -> None:
        channels = settings.ats.channels
        outbox: Outbox = RedisOutbox(redis_client, client.endpoint.base_url, channels)
        if EXTENSION in extensions:
            outbox = ServiceOutbox(client, channels)
        webhooks = Webhooks(configured.webhook_rules(settings))
        self.deliveries = Deliveries(outbox, client, webhooks, effective=effective, log=log)
        self.notices = Notices(
            configured.chats(settings),
            client,
            redis_client,
            on=settings.notify.on,
            lists_fields="fields" in extensions,
            effective=effective,
            log=log,
        )

    def start(self) -> list[asyncio.Task[None]]:
        """Start the loops, which run until they are cancelled."""
        return [
            asyncio.create_task(self.deliveries.run(), name="deliveries"),
            asyncio.create_task(self.notices.run(), name="notices"),
        ]

    async def drain(self) -> None:
        """Begin nothing more, and give what is on its way a moment."""
        await asyncio.gather(self.deliveries.drain(), self.notices.drain())
