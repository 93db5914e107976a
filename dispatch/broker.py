"""Redis: the one place that knows its URL forms, key names and timeouts.

Every client made here has socket timeouts: without them a frozen Redis blocks
its caller for ever. Redis holds hints only; whoever reads them must be able to
do without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from urllib.parse import SplitResult, parse_qs, quote, urlencode, urlsplit, urlunsplit

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

if TYPE_CHECKING:
    from collections.abc import Callable

    from dispatch.settings import Broker

KEY_PREFIX: Final = "dispatch:"
WORKER_KEY: Final = "dispatch:worker:"
"""+ node name and pid: what one worker process shows of itself (dispatch.core.presence)."""
INGRESS_KEY: Final = "dispatch:ingress:"
PRESENCE_CHANNEL: Final = "dispatch:presence"
"""Published whenever a worker or an ingress appears, changes or leaves."""
WAKE_CHANNEL: Final = "dispatch:wake"
"""Published with a task id when somebody else than its holder moved a running task."""
CANCEL_KEY: Final = "dispatch:cancel:"
"""+ task id: set for a while beside each wake-up, for who subscribes a moment too late."""
GRAPH_KEY: Final = "dispatch:graph:"
"""+ service + ":": what is kept of tasks that wait for others (dispatch.ingress.registry)."""
OUTBOX_KEY: Final = "dispatch:outbox:"
"""+ service + ":": deliveries of callbacks for a foreign ATS (dispatch.ingress.redis_outbox)."""
TOLD_KEY: Final = "dispatch:told:"
"""+ service + ":" + event: people were told of it (dispatch.ingress.notices)."""
STEER_CHANNEL: Final = "dispatch:steer"
"""Published when somebody paused, resumed or drained something: ingresses read the orders anew."""
DRAIN_KEY: Final = "dispatch:drain:"
"""+ host: set while the workers of a host are to take nothing new (dispatch.ingress.steering)."""
STEERING_KEY: Final = "dispatch:steering:"
"""+ service: orders about the tasks of a foreign ATS, which cannot keep them (dispatch.ats.orders)."""
CLASS_KEY: Final = "dispatch:class:"
"""+ class: who holds a place of it."""

_SOCKET_SCHEMES: Final = ("redis+socket", "unix")

SOCKET_TIMEOUT_S: Final = 5.0
CONNECT_TIMEOUT_S: Final = 3.0


def _with_login(broker: Broker) -> SplitResult:
    parts = urlsplit(broker.url)
    if not (broker.user or broker.password):
        return parts
    user = quote(broker.user or "", safe="") or parts.username or ""
    secret = quote(broker.password.reveal(), safe="") if broker.password else parts.password or ""
    return parts._replace(netloc=f"{user}:{secret}@{parts.netloc.rpartition('@')[2]}")


def _joined(parts: SplitResult) -> str:
    """Join a URL; ``urlunsplit`` would drop the empty host of a socket's URL."""
    if parts.scheme not in _SOCKET_SCHEMES:
        return urlunsplit(parts)
    return f"{parts.scheme}://{parts.netloc}{parts.path}" + (f"?{parts.query}" if parts.query else "")


def _rename(parts: SplitResult, scheme: str, old: str, new: str) -> SplitResult:
    query = parse_qs(parts.query)
    if old in query:
        query[new] = query.pop(old)
    return parts._replace(scheme=scheme, query=urlencode(query, doseq=True))


def redis_url(broker: Broker) -> str:
    """Return the URL as redis-py reads it (``unix://PATH?db=N`` for a socket)."""
    parts = _with_login(broker)
    if parts.scheme == "redis+socket":
        parts = _rename(parts, "unix", "virtual_host", "db")
    return _joined(parts)


def celery_url(broker: Broker) -> str:
    """Return the URL as Celery reads it (``redis+socket://PATH?virtual_host=N`` for a socket)."""
    parts = _with_login(broker)
    if parts.scheme == "unix":
        parts = _rename(parts, "redis+socket", "db", "virtual_host")
    return _joined(parts)


def shown_url(broker: Broker) -> str:
    """Return the URL with its password masked, for people and logs."""
    parts = _with_login(broker)
    host = parts.netloc.rpartition("@")[2]
    if parts.password:
        parts = parts._replace(netloc=f"{parts.username or ''}:***@{host}")
    if "password=" in parts.query:
        parts = parts._replace(query="password=***")
    return _joined(parts)


def _options(url: str, retry: Callable[..., Any], timeout_s: float = SOCKET_TIMEOUT_S) -> dict[str, Any]:
    options: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "health_check_interval": 25,
        "decode_responses": True,
        # Every caller has its own next try; a client that waits and tries again only holds it up.
        "retry": retry(NoBackoff(), 0),
    }
    if not url.startswith("unix:"):
        options |= {"socket_connect_timeout": CONNECT_TIMEOUT_S, "socket_keepalive": True}
    return options


def connect(broker: Broker, *, timeout_s: float = SOCKET_TIMEOUT_S) -> redis.Redis:
    """Return a synchronous client whose answers may take ``timeout_s``; nothing is sent yet."""
    url = redis_url(broker)
    return redis.Redis.from_url(url, **_options(url, Retry, timeout_s))


class _Sturdy(redis.asyncio.connection.AbstractConnection):
    """A connection that says of itself that it was lost.

    A write to one that the other side has closed meanwhile is an OSError in the
    event loop of Python, which redis-py expects, and a RuntimeError in uvloop
    (its issue 506), which would end whoever lives through the loss of Redis.
    """

    async def send_packed_command(self, *args: Any, **options: Any) -> None:
        """Send; raises ``redis.ConnectionError`` when the connection is gone."""
        try:
            await super().send_packed_command(*args, **options)
        except RuntimeError as exc:
            raise redis.ConnectionError(f"The connection to Redis was lost: {exc}") from exc


def connect_async(broker: Broker) -> redis.asyncio.Redis:
    """Return an asynchronous client; nothing is sent yet."""
    url = redis_url(broker)
    client = redis.asyncio.Redis.from_url(url, **_options(url, AsyncRetry))
    pool = client.connection_pool
    pool.connection_class = type("Connection", (_Sturdy, pool.connection_class), {})
    return client
