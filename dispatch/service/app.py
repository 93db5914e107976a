"""The task service as one ASGI application."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.routing import WebSocketRoute

from dispatch.service import tenants
from dispatch.service.audience import Audience
from dispatch.service.expiry import Expiry
from dispatch.service.feed import Feed
from dispatch.service.handlers import Context
from dispatch.service.rest import RestFace
from dispatch.service.tools.registry import LocalToolbox

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dispatch.service.store import Store

Asgi = Callable[[Any, Any, Any], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class ServiceApp:
    """The application, and the part of it that must be told before the service goes away."""

    asgi: Asgi
    feed: Feed


def create_app(
    store: Store, *, default_lease_ms: int = 60_000, lock_ms: int = 3_600_000, regrant_delay_ms: int = 15_000
) -> ServiceApp:
    """Build the application on a store that was started. Its lifespan runs the expiry of leases."""
    feed = Feed(store)
    expiry = Expiry(store, regrant_delay_ms)
    audience = Audience(store, feed)

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        await store.write(tenants.ensure_default)
        await expiry.start()
        audience.start()
        try:
            yield
        finally:
            await audience.close()
            await expiry.close()

    rest = RestFace(Context(store, default_lease_ms, LocalToolbox(store, lock_ms=lock_ms)))
    starlette = Starlette(routes=[WebSocketRoute("/ws", feed)], lifespan=lifespan)
    # Not a Mount: its pattern does not match every path, and Starlette's own answers are not JSON.
    starlette.router.default = rest
    starlette.router.redirect_slashes = False

    async def asgi(scope: Any, receive: Any, send: Any) -> None:
        # The REST face answers every path and every mistake itself; Starlette's layers would only cost.
        await (rest if scope["type"] == "http" else starlette)(scope, receive, send)

    return ServiceApp(asgi, feed)
