"""The task service as one ASGI application."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.routing import WebSocketRoute

from dispatch.service import tenants
from dispatch.service.expiry import Expiry
from dispatch.service.feed import Feed
from dispatch.service.handlers import Context
from dispatch.service.rest import RestFace

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dispatch.service.store import Store


@dataclass(frozen=True, slots=True)
class ServiceApp:
    """The application, and the part of it that must be told before the service goes away."""

    asgi: Starlette
    feed: Feed


def create_app(store: Store, *, default_lease_ms: int = 60_000, regrant_delay_ms: int = 15_000) -> ServiceApp:
    """Build the application on a store that was started. Its lifespan runs the expiry of leases."""
    feed = Feed(store)
    expiry = Expiry(store, regrant_delay_ms)

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        await store.write(tenants.ensure_default)
        await expiry.start()
        try:
            yield
        finally:
            await expiry.close()

    asgi = Starlette(routes=[WebSocketRoute("/ws", feed)], lifespan=lifespan)
    # Not a Mount: its pattern does not match every path, and Starlette's own answers are not JSON.
    asgi.router.default = RestFace(Context(store, default_lease_ms))
    asgi.router.redirect_slashes = False
    return ServiceApp(asgi, feed)
