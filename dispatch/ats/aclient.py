"""The asynchronous client: the twin of ``client`` for the ingress, over aiohttp.

Same calls, same answers, same errors; any number of calls at once, over at
most CONNECTIONS_MAX kept-alive connections.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from typing import TYPE_CHECKING, Any, Final, Self

import aiohttp
from yarl import URL

from dispatch.ats import answers, protocol
from dispatch.errors import GatewayUnavailableError

if TYPE_CHECKING:
    from dispatch.ats.model import Actor

CONNECTIONS_MAX: Final = 32


class AsyncClient:
    """Calls a task service from one event loop. Use it as ``async with``, or call ``close`` at the end.

    ``actor`` speaks unless a call names another. ``deadline_s`` bounds a whole
    call, waiting for a free connection included.
    """

    def __init__(
        self,
        where: protocol.Endpoint,
        actor: Actor,
        *,
        deadline_s: float = protocol.DEADLINE_S,
        answer_bytes_max: int = protocol.ANSWER_BYTES_MAX,
    ) -> None:
        self.endpoint = where
        self.actor = actor
        self._deadline_s = deadline_s
        self._answer_bytes_max = answer_bytes_max
        self._headers = {**protocol.headers(where, actor), "Accept-Encoding": "identity"}
        self._tls = ssl.create_default_context() if where.scheme == "https" else True
        self._session: aiohttp.ClientSession | None = None
        self._date: tuple[str, float] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def send(
        self, request: protocol.Request, *, actor: Actor | None = None, deadline_s: float | None = None
    ) -> Any:
        """Make one call and return the JSON of its answer.

        Raises what ``client.Client.send`` raises, in the same cases.
        """
        status, answer_headers, content = await self.exchange(request, actor=actor, deadline_s=deadline_s)
        return answers.interpret(status, answer_headers, content, leased=request.leased)

    async def exchange(
        self, request: protocol.Request, *, actor: Actor | None = None, deadline_s: float | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Make one call and return the answer as it came: status, headers, body.

        Raises GatewayUnavailableError when none came.
        """
        body = protocol.encode(request)
        sent_headers = self._headers
        if actor is not None and actor != self.actor:
            sent_headers = {**self._headers, **protocol.headers(self.endpoint, actor)}
        try:
            async with asyncio.timeout(self._deadline_s if deadline_s is None else deadline_s):
                try:
                    status, answer_headers, content = await self._exchange(request, body, sent_headers)
                except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as exc:
                    # Most likely a kept-alive connection that was closed meanwhile; aiohttp itself repeats GET only.
                    is_refused = isinstance(exc, aiohttp.ClientConnectorError)
                    if is_refused or request.method == "GET" or not request.repeatable:
                        raise
                    status, answer_headers, content = await self._exchange(request, body, sent_headers)
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            raise GatewayUnavailableError(
                f"The task service at {self.endpoint.base_url} gave no answer: {_cause(exc)}."
            ) from exc
        if date := answer_headers.get("Date"):
            self._date = (date, time.time())
        return status, answer_headers, content

    def clock_offset_s(self) -> float:
        """Return the service's wall clock minus ours, in seconds, as of the last answer; 0.0 when unknown."""
        return 0.0 if self._date is None else answers.date_offset_s(*self._date)

    async def close(self) -> None:
        """Close all connections; the next call opens new ones."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=CONNECTIONS_MAX, ttl_dns_cache=60, ssl=self._tls),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=protocol.DEADLINE_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
            )
        return self._session

    async def _exchange(
        self, request: protocol.Request, body: bytes, sent_headers: dict[str, str]
    ) -> tuple[int, dict[str, str], bytes]:
        where = self.endpoint
        url = URL(f"{where.scheme}://{where.authority}{protocol.target(request, where)}", encoded=True)
        async with self._open().request(
            request.method, url, data=body, headers=sent_headers, allow_redirects=False
        ) as answer:
            content = bytearray()
            async for chunk in answer.content.iter_any():
                content += chunk
                if len(content) > self._answer_bytes_max:
                    answer.close()
                    raise GatewayUnavailableError(
                        f"The task service's answer is longer than {self._answer_bytes_max} bytes."
                    )
            return answer.status, dict(answer.headers), bytes(content)


def _cause(exc: BaseException) -> str:
    if isinstance(exc, aiohttp.ClientPayloadError):
        return "the answer was cut off"
    if isinstance(exc, aiohttp.ServerDisconnectedError):
        return "the connection was closed"
    return answers.cause_of(exc)
