"""A receiver of callbacks on a real socket: it records every request and answers as it is told.

``Receiver`` speaks HTTP through aiohttp; ``Listener`` is a bare socket that
counts the bytes that reach it, for addresses that nothing may reach, and can
answer with raw bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from aiohttp import web

from tests.support.processes import PATIENCE_S, eventually

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass
class Request:
    """One request as it came."""

    path: str
    headers: dict[str, str]
    body: bytes
    at: float
    """Wall clock."""

    @property
    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)


@dataclass
class Reply:
    """How to answer. ``delay_s`` before the answer, ``body`` after the head."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    delay_s: float = 0.0


class Receiver:
    """Start it with ``with Receiver() as receiver:``.

    ``replies`` are used up one by one by requests, whatever their path; then ``usual`` answers.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.replies: list[Reply] = []
        self.usual: Callable[[Request], Reply] = lambda _request: Reply()
        self.port = 0
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def url(self) -> str:
        """The base URL."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(PATIENCE_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(60)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._run())
        self._loop.run_until_complete(asyncio.sleep(0))  # lets the tasks that were just cancelled come to their end
        self._loop.close()

    async def _run(self) -> None:
        self._stop = asyncio.Event()
        app = web.Application(client_max_size=8 * 1024 * 1024)
        app.router.add_route("*", "/{rest:.*}", self._answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.port = runner.addresses[0][1]
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        seen = Request(request.path_qs, dict(request.headers), await request.read(), time.time())
        self.requests.append(seen)
        reply = self.replies.pop(0) if self.replies else self.usual(seen)
        await asyncio.sleep(reply.delay_s)
        return web.Response(status=reply.status, headers=reply.headers, body=reply.body)

    def at(self, path: str) -> list[Request]:
        """Return the requests to a path."""
        return [request for request in list(self.requests) if request.path == path]

    def wait(self, count: int) -> list[Request]:
        """Return the requests once there are ``count``."""
        eventually(lambda: len(self.requests) >= count, f"{count} requests ({len(self.requests)} came)")
        return self.requests


class Listener:
    """Accepts connections on a loopback address and counts what comes; ``answer`` is written to each, then it waits.

    ``close_after`` closes each connection once it was answered.
    """

    def __init__(self, host: str = "127.0.0.1", *, answer: bytes = b"", close_after: bool = False) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, 0), family=family)
        self.port = int(self._socket.getsockname()[1])
        self.connections = 0
        self.received = b""
        self._answer = answer
        self._close_after = close_after
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(60)
        for connection in self._open:
            connection.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(connection)
            connection.settimeout(1.0)
            with contextlib.suppress(OSError):
                self.received += connection.recv(65_536)
                connection.sendall(self._answer)
            if self._close_after:
                connection.close()
