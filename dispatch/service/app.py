"""The task service as one ASGI application."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.routing import WebSocketRoute

from dispatch.core.retention import Retention
from dispatch.service import tenants, tracing
from dispatch.service.audience import Audience
from dispatch.service.caller import authenticate, read_headers
from dispatch.service.calls import Calls
from dispatch.service.expiry import Expiry
from dispatch.service.feed import Feed
from dispatch.service.handlers import Context
from dispatch.service.mcp.http import McpFace, serves
from dispatch.service.protocols import into_the_void
from dispatch.service.pruner import Pruner
from dispatch.service.rest import RestFace
from dispatch.service.tools.registry import LocalToolbox

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dispatch.service.access import Caller
    from dispatch.service.store import Store
    from dispatch.service.tools.model import Toolbox

Asgi = Callable[[Any, Any, Any], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class ServiceApp:
    """The application, and the parts of it that must be told before the service goes away."""

    asgi: Asgi
    feed: Feed
    calls: Calls
    mcp: McpFace

    async def say_goodbye(self) -> None:
        """End what clients wait for: the service begins to stop."""
        self.calls.stop()
        await self.feed.close()


def create_app(
    store: Store,
    *,
    default_lease_ms: int = 60_000,
    lock_ms: int = 3_600_000,
    regrant_delay_ms: int = 15_000,
    origins: frozenset[str] = frozenset(),
    toolbox: Toolbox | None = None,
    is_traced: bool = False,
    retention: Retention | None = None,
) -> ServiceApp:
    """Build the application on a store that was started. Its lifespan runs the expiry of leases, and the pruner.

    ``origins`` are the web sites whose pages may call it, where there are keys.
    ``retention`` says how long what is kept; without it everything is, for ever.
    ``toolbox`` stands in for the tools on the store, which REST and MCP show.
    With ``is_traced`` it tells of tasks as spans.
    """
    toolbox = toolbox or LocalToolbox(store, lock_ms=lock_ms)
    feed = Feed(store, origins)
    calls = Calls()

    async def caller_of(scope: Any) -> Caller:
        return await authenticate(store, read_headers(scope["headers"]), scope.get("client"), origins)

    mcp = McpFace(toolbox, caller_of, calls)
    expiry = Expiry(store, regrant_delay_ms)
    audience = Audience(store, feed)
    if is_traced:
        tracing.watch(store)
    pruner = Pruner(store, retention or Retention())

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        await store.write(tenants.ensure_default)
        await expiry.start()
        audience.start()
        pruner.start()
        try:
            yield
        finally:
            await mcp.close()
            await pruner.close()
            await audience.close()
            await expiry.close()

    rest = RestFace(Context(store, default_lease_ms, toolbox, origins), calls)
    starlette = Starlette(routes=[WebSocketRoute("/ws", feed)], lifespan=lifespan)
    # Not a Mount: its pattern does not match every path, and Starlette's own answers are not JSON.
    starlette.router.default = rest
    starlette.router.redirect_slashes = False

    async def asgi(scope: Any, receive: Any, send: Any) -> None:
        # The REST face answers every path and every mistake itself; Starlette's layers would only cost.
        if scope["type"] != "http":
            await starlette(scope, receive, send)
            return
        if is_traced:
            tracing.note_origin(scope)
        if serves(scope["path"]):
            await mcp(scope, receive, into_the_void(send))
        else:
            await rest(scope, receive, into_the_void(send))

    return ServiceApp(asgi, feed, calls, mcp)
