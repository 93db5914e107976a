"""Sending one callback: a signed POST to an address that may be connected, and nothing but its status back.

No proxy of the environment, no redirects, no cookies; a connection of its own
for every try, so that every try is judged anew.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import math
import socket
import ssl
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import aiohttp
from standardwebhooks.webhooks import Webhook
from yarl import URL

import dispatch
from dispatch.core.delivery import Answer
from dispatch.notify.address import AddressRefusedError, AddressRules, parse

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CONNECT_S: Final = 5.0
TOTAL_S: Final = 20.0
READ_BYTES_MAX: Final = 65_536
READ_S: Final = 2.0
"""An answer that has its status is read this long at most: for the connection's sake, not ours."""
URL_CHARS_MAX: Final = 2_048
_SECRET_BYTES: Final = range(24, 65)
_MALFORMED: Final = "url_malformed"
_OWN_KEPT_S: Final = 60.0


class BadUrlError(Exception):
    """A callback URL that nobody is called at; the text is a short word."""


@dataclass(frozen=True, slots=True)
class WebhookRules:
    """What the operator allows. ``own`` are (host, port) of our own service and Redis; ``secrets`` all sign."""

    allow_http: bool = False
    ports: frozenset[int] = frozenset({443})
    addresses: AddressRules = field(default_factory=AddressRules)
    own: tuple[tuple[str, int], ...] = ()
    secrets: tuple[str, ...] = field(default=(), repr=False)
    connect_s: float = CONNECT_S
    total_s: float = TOTAL_S


def secrets_of(text: str) -> tuple[str, ...]:
    """Read comma-separated signing secrets. Raises ValueError, which shows nothing of them."""
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    for secret in found:
        try:
            size = len(base64.b64decode(secret.removeprefix("whsec_"), validate=True))
        except ValueError:
            size = 0
        if not secret.startswith("whsec_") or size not in _SECRET_BYTES:
            raise ValueError("must be whsec_ and the base64 of 24 to 64 random bytes; several are separated by commas")
    return found


def shown(url: str) -> str:
    """Return a URL as it may be logged: without user, password, query and fragment, on one line."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "(not a URL)"
    return f"{parts.scheme}://{host}{port}{parts.path}"[:200]


class Webhooks:
    """Sends callbacks. ``close`` is not needed: nothing stays open between two calls."""

    def __init__(self, rules: WebhookRules) -> None:
        self._rules = rules
        self._signers = [Webhook(secret) for secret in rules.secrets]
        self._tls = ssl.create_default_context()
        self._own: AddressRules | None = None
        self._own_at = -math.inf

    def check(self, url: str) -> URL:
        """Read a callback URL. Raises BadUrlError."""
        if len(url) > URL_CHARS_MAX or not url.isascii() or not url.isprintable() or set(url) & set(" \\<>\"'`"):
            raise BadUrlError(_MALFORMED)
        try:
            found = URL(url)
            port = found.port
        except ValueError:
            raise BadUrlError(_MALFORMED) from None
        if found.scheme not in ("https", "http") or (found.scheme == "http" and not self._rules.allow_http):
            raise BadUrlError("url_scheme")
        if "@" in url.partition("://")[2].partition("/")[0] or found.raw_user is not None:
            raise BadUrlError("url_userinfo")
        if not found.raw_host or port is None:
            raise BadUrlError(_MALFORMED)
        if port not in self._rules.ports:
            raise BadUrlError("url_port")
        return found

    async def send(self, url: str, delivery_id: str, body: bytes) -> Answer:
        """POST ``body``, signed, and return how that ended. Raises nothing but cancellation."""
        try:
            target = self.check(url)
        except BadUrlError as exc:
            return Answer(error=str(exc), is_final=True)
        door = _Door(await self._addresses(), target.raw_host or "")
        try:
            return await self._exchange(target, self._headers(delivery_id, body), body, door)
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            if door.refused and not door.opened:
                return Answer(error="address_refused", is_final=True)
            error = _error_of(exc)
            return Answer(error=error, is_final=error == _MALFORMED)

    def _headers(self, delivery_id: str, body: bytes) -> dict[str, str]:
        now = datetime.now(UTC).replace(microsecond=0)
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"dispatch/{dispatch.__version__}",
            "webhook-id": delivery_id,
            "webhook-timestamp": str(int(now.timestamp())),
        }
        if self._signers:
            text = body.decode()
            headers["webhook-signature"] = " ".join(signer.sign(delivery_id, now, text) for signer in self._signers)
        return headers

    async def _exchange(self, url: URL, headers: Mapping[str, str], body: bytes, door: _Door) -> Answer:
        connector = aiohttp.TCPConnector(
            ssl=self._tls, socket_factory=door.socket, use_dns_cache=False, force_close=True, limit=1
        )
        async with (
            aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(total=self._rules.total_s, connect=self._rules.connect_s),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
            ) as session,
            session.post(url, data=body, headers=headers, allow_redirects=False) as answer,
        ):
            found = Answer(answer.status, retry_after_s=retry_after_s(answer.headers))
            with contextlib.suppress(aiohttp.ClientError, OSError):
                await _skim(answer)
            answer.close()
            return found

    async def _addresses(self) -> AddressRules:
        """Return the rules with what our own service and Redis are resolved to just now."""
        if self._own is None or time.monotonic() - self._own_at > _OWN_KEPT_S:
            found = {pair for host, port in self._rules.own for pair in await _resolved(host, port)}
            given = self._rules.addresses
            self._own = AddressRules(given.networks, given.hosts, given.own | frozenset(found))
            self._own_at = time.monotonic()
        return self._own


class _Door:
    """Makes the sockets of one try, for allowed addresses only."""

    def __init__(self, rules: AddressRules, host: str) -> None:
        self._rules = rules
        self._host = host
        self.opened = 0
        self.refused = 0

    def socket(self, info: Any) -> socket.socket:
        """Return a socket for an address that a name was resolved to. Raises AddressRefusedError."""
        family, kind, proto, _, where = info
        if not self._rules.allows(parse(where[0]), where[1], self._host):
            self.refused += 1
            raise AddressRefusedError("a callback may not connect to this address")
        self.opened += 1
        made = socket.socket(family, kind, proto)
        made.setblocking(False)
        return made


async def _resolved(host: str, port: int) -> Sequence[tuple[Any, int]]:
    with contextlib.suppress(OSError, ValueError):
        infos = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return [(parse(str(info[4][0])), port) for info in infos]
    return []


async def _skim(answer: aiohttp.ClientResponse) -> None:
    """Read a short answer to its end, so that its sender is not cut off, and no more of a long one."""
    left = READ_BYTES_MAX
    async with asyncio.timeout(READ_S):
        while left > 0 and (chunk := await answer.content.read(min(left, 16_384))):
            left -= len(chunk)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Read how long an answer asks to wait, in seconds; None when it does not say, or not understandably."""
    value = headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        at = parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError):
        return None
    now = datetime.now(UTC)
    return max(0.0, (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() - now.timestamp())


_WORDS: Final[tuple[tuple[tuple[type[BaseException], ...], str], ...]] = (
    ((TimeoutError,), "timeout"),
    ((aiohttp.ClientConnectorDNSError,), "dns"),
    ((aiohttp.ClientSSLError, ssl.SSLError), "tls"),
    ((aiohttp.ClientConnectorError, ConnectionRefusedError), "connect"),
    ((aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError, aiohttp.ClientOSError), "connection_closed"),
    ((aiohttp.InvalidURL, ValueError), _MALFORMED),
)


def _error_of(exc: BaseException) -> str:
    """Return a short word for what went wrong; never the library's sentence, which may show the URL."""
    return next((word for kinds, word in _WORDS if isinstance(exc, kinds)), "protocol")
