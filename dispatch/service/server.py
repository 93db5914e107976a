"""Runs the task service as a process: socket, signals, log, goodbye."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import uvicorn
import uvloop

from dispatch import log, metrics
from dispatch.asynchronous import on_stop
from dispatch.errors import ConfigurationError, NoAddressError
from dispatch.service import direct, keys, measures
from dispatch.service.app import create_app
from dispatch.service.caller import is_loopback
from dispatch.service.clock import Clock
from dispatch.service.protocols import HttpProtocol, SocketProtocol
from dispatch.service.sqlite import SqliteStore
from dispatch.traces import recorder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dispatch.service.app import ServiceApp
    from dispatch.service.store import Store
    from dispatch.settings import Settings

FRAME_BYTES_MAX: Final = 65_536
_KEEP_ALIVE_S: Final = 75
_GOODBYE_S: Final = 5
_UNREAD_MS: Final = 30_000
_log: Final = log.get_logger("service")


def open_store(url: str, clock: Clock) -> Store:
    """Return the store for a database URL, not started yet. Raises ConfigurationError."""
    parts = urlsplit(url)
    if direct.is_postgres(url):
        return direct.open_postgres(url, clock)
    if parts.scheme != "sqlite" or parts.netloc or len(parts.path) < 2:
        raise ConfigurationError(
            "DISPATCH_DATABASE_URL must be sqlite:///path/to/file.db or postgresql://user@host/database;"
            f" it begins with {parts.scheme!r}."
        )
    return SqliteStore(Path(url.removeprefix("sqlite:///")).expanduser(), clock)


def address_of(bind: str) -> tuple[str, int]:
    """Take ``host:port`` apart. Raises ConfigurationError."""
    host, colon, port = bind.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65_535:
        raise ConfigurationError(f"DISPATCH_BIND must be host:port, such as 127.0.0.1:8700; it is {bind!r}.")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _check_reach(settings: Settings) -> None:
    """Refuse an address beyond this machine when nobody would need a key. Raises ConfigurationError."""
    host, port = address_of(settings.service.bind)
    if is_loopback(host):
        return
    if not direct.transaction(settings.database_url, keys.exist):
        raise ConfigurationError(
            f"DISPATCH_BIND names {host!r}: without API keys the service listens on loopback only, such as"
            f" 127.0.0.1:{port}. Make a key first: 'dispatch api-key create NAME'."
        )


def listen(bind: str) -> socket.socket:
    """Return a socket on ``host:port`` (0 takes a free port). Raises ConfigurationError, NoAddressError."""
    host, port = address_of(bind)
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, proto)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # A client that never reads must not hold its connection for ever.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNREAD_MS)
            sock.bind(address)
            sock.listen(1024)
        except OSError:
            sock.close()
            raise
    except OSError as exc:
        if exc.errno == errno.EADDRNOTAVAIL:
            raise NoAddressError(
                f"The task service cannot listen on {bind}: this machine has no such address, or its network is not up"
                " yet. Wait for it, or set DISPATCH_BIND."
            ) from exc
        raise ConfigurationError(
            f"The task service cannot listen on {bind}: {exc.strerror or exc}. Stop what uses it or set DISPATCH_BIND."
        ) from exc
    return sock


def _url_of(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """uvicorn, leaving signals to us and saying goodbye to those who wait first."""

    def __init__(self, config: uvicorn.Config, app: ServiceApp, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._app = app
        self._on_started = on_started

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._app.say_goodbye()
        await super().shutdown(sockets)


class _NotOurs(logging.Filter):
    """Keeps out of the log what uvicorn takes for errors: bad UTF-8 of a client, and a handshake that we refused."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(("Invalid UTF-8 sequence", "ASGI callable returned without"))


async def run(settings: Settings, *, on_ready: Callable[[str], None] | None = None) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP. ``on_ready`` is called with the base URL once requests are answered.

    Raises DispatchError when the address or the database cannot be used: its exit code says whether to try again.
    """
    _check_reach(settings)
    with contextlib.closing(listen(settings.service.bind)) as sock:
        await _serve_on(sock, settings, on_ready)


async def _serve_on(sock: socket.socket, settings: Settings, on_ready: Callable[[str], None] | None) -> None:
    store = open_store(settings.database_url, Clock())
    try:
        await store.start()
        if settings.metrics.service_port:
            metrics.begin(metrics.SERVICE)
            measures.watch(store)
            metrics.serve(settings.metrics.bind, settings.metrics.service_port, _log)
        recorder.begin(recorder.SERVICE, settings, _log)
        app = create_app(
            store,
            default_lease_ms=round(settings.service.default_lease_s * 1000),
            lock_ms=round(settings.service.lock_s * 1000),
            regrant_delay_ms=round(settings.service.regrant_delay_s * 1000),
            origins=settings.service.allowed_origins,
            is_traced=settings.traces.url is not None,
            retention=settings.service.retention,
        )
        await serve_app(app, sock, on_ready, has_keys=await store.has_keys())
    finally:
        # Nobody is to come while it closes.
        sock.close()
        await store.close()
        recorder.end()


async def serve_app(
    app: ServiceApp, sock: socket.socket, on_ready: Callable[[str], None] | None = None, *, has_keys: bool = False
) -> None:
    """Serve an application on a socket that listens, until SIGTERM, SIGINT or SIGHUP. ``has_keys`` is for the log."""
    config = uvicorn.Config(
        app.asgi,
        http=HttpProtocol,
        ws=SocketProtocol,
        ws_max_size=FRAME_BYTES_MAX,
        ws_per_message_deflate=False,
        lifespan="on",
        access_log=False,
        proxy_headers=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_GOODBYE_S,
    )
    # uvicorn's warnings are about what clients send; they have their answer already.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    logging.getLogger("uvicorn.error").addFilter(_NotOurs())

    def ready() -> None:
        url = _url_of(sock)
        _log.info("service_ready", url=url, keys=has_keys)
        if on_ready is not None:
            on_ready(url)

    server = _Server(config, app, ready)
    on_stop(lambda: setattr(server, "should_exit", True))
    await server.serve(sockets=[sock])
    _log.info("service_stopped")


def serve(settings: Settings) -> None:
    """Run the task service in this process until it is told to stop."""
    log.configure(settings.local.log_level)
    # The database holds what tasks say; it is for this user alone.
    os.umask(0o077)
    uvloop.run(run(settings))
