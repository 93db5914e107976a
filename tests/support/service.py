"""A task service as a real process, and a client that sends exactly what a test says."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from dispatch.ats.model import Actor
from dispatch.service import direct, keys, tenants
from dispatch.service.access import Access
from dispatch.service.clock import Clock
from dispatch.service.postgres import PostgresStore
from dispatch.service.rows import Scope
from dispatch.service.sqlite import SqliteStore
from tests.support.database import put_database
from tests.support.postgres import shared_server
from tests.support.processes import LogProcess, eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from contextlib import AbstractAsyncContextManager

    from dispatch.service.store import Store, Tx

ROOT = Path(__file__).parents[2]


class Client:
    """One keep-alive connection. ``call`` returns (status, decoded JSON) and fails on anything but JSON."""

    def __init__(self, url: str, actor: str = "worker-1", kind: str = "agent", token: str | None = None) -> None:
        self.url = url
        self.headers = {
            "Content-Type": "application/json",
            "X-Actor-Type": kind,
            "X-Actor-ID": actor,
            "X-Actor-Name": actor.title(),
        }
        if token is not None:
            self.headers["Authorization"] = f"Bearer {token}"
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        raw: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, Any]:
        """Send ``body`` as JSON, or ``raw`` as it is."""
        sent = raw if raw is not None else None if body is None else json.dumps(body).encode()
        if sent is None and method != "GET":
            sent = b""
        try:
            self._connection.request(method, path, sent, {**self.headers, **(headers or {})})
            answer = self._connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException):
            self._connection.close()
            raise
        assert answer.headers["content-type"] == "application/json"
        return answer.status, json.loads(content)

    def get(self, path: str) -> Any:
        """GET, which must succeed."""
        status, body = self.call("GET", path)
        assert status == 200, (path, status, body)
        return body

    def post(self, path: str, body: Any = None) -> Any:
        """POST, which must succeed."""
        status, answer = self.call("POST", path, body)
        assert status in (200, 201), (path, status, answer)
        return answer

    def create(self, **fields: Any) -> Any:
        """Create a task and return it."""
        return self.post("/tasks", {"title": "a task", **fields})["task"]

    def refused(self, method: str, path: str, body: Any = None, **how: Any) -> tuple[int, Any]:
        """Make a call that must be refused, with a sentence and a code."""
        status, answer = self.call(method, path, body, **how)
        assert 400 <= status < 500, (path, status, answer)
        assert isinstance(answer["error"], str)
        assert answer["error"].endswith((".", "?"))
        assert answer["code"]
        return status, answer

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


class ServiceProcess:
    """``python -m dispatch.service`` on a port of its own, with its data in ``directory``."""

    def __init__(self, directory: Path, **settings: str) -> None:
        self.directory = directory
        self._settings = {"DISPATCH_BIND": "127.0.0.1:0", **settings}
        self.argv = [sys.executable, "-m", "dispatch.service"]
        self.process: LogProcess
        self.url = ""
        self._clients: list[Client] = []
        self._keys: list[str] = []

    def start(self) -> Self:
        """Start it and wait until it serves. A second start takes the same port."""
        if "DISPATCH_DATABASE_URL" not in self._settings:
            put_database(self.directory)
        env = {name: value for name, value in os.environ.items() if not name.startswith("DISPATCH_")}
        env |= {"DISPATCH_DATA_DIR": str(self.directory), "PYTHONPATH": str(ROOT), **self._settings}
        self.process = LogProcess("service", self.argv, env)
        eventually(
            lambda: self.process.find("service_ready") or self.process.exit_code is not None, "the service's start"
        )
        ready = self.process.find("service_ready")
        assert ready, self.process.tail()
        self.url = ready[0]["url"]
        self._settings["DISPATCH_BIND"] = self.url.removeprefix("http://")
        return self

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def client(self, actor: str = "worker-1", kind: str = "agent", token: str | None = None) -> Client:
        """Return a client, closed with the service."""
        self._clients.append(Client(self.url, actor, kind, token))
        return self._clients[-1]

    def make_key(self, name: str, **options: Any) -> tuple[str, str]:
        """Make an API key beside the running service and return (its id, the key); ``projects`` are org/project."""

        def work(tx: Tx) -> tuple[str, str]:
            key, text = keys.create(
                tx,
                name,
                access=Access[options.get("access", "write").upper()],
                actor=Actor(options.get("kind", "agent"), options.get("actor", name), name),
                scopes=[Scope(*project.split("/")) for project in options.get("projects", ())],
                expires_at=tx.now_ms + round(options["expires_s"] * 1000) if "expires_s" in options else None,
            )
            return key.id, text

        made = direct.transaction(self._database_url, work)
        self._keys.append(made[0])
        return made

    def revoke_keys(self) -> None:
        """Revoke all that were made here."""
        while self._keys:
            self.revoke_key(self._keys.pop())

    def revoke_key(self, key_id: str) -> None:
        """Revoke an API key beside the running service."""
        direct.transaction(self._database_url, lambda tx: keys.revoke(tx, key_id))

    @property
    def _database_url(self) -> str:
        return self._settings.get("DISPATCH_DATABASE_URL", f"sqlite:///{self.directory / 'tasks.db'}")

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.process.kill()
        self.process.stop()
        self._close_clients()

    def stop(self) -> int:
        """End it with SIGTERM and return its exit code."""
        self._close_clients()
        return self.process.stop()

    def _close_clients(self) -> None:
        while self._clients:
            self._clients.pop().close()


class Subscriber:
    """A WebSocket that collects every event of a service, in the order in which they came."""

    def __init__(self, url: str, **subscription: Any) -> None:
        self._stack = contextlib.ExitStack()
        where = url.replace("http", "ws", 1) + "/ws"
        self._socket = self._stack.enter_context(connect(where, compression=None, proxy=None, max_size=None))
        self._socket.send(json.dumps({"type": "subscribe", "extended": True, "thin": True, **subscription}))
        self.events: list[Any] = []
        assert [json.loads(self._socket.recv(60))["type"] for _ in range(2)] == ["connected", "subscribed"]
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                frame = json.loads(self._socket.recv())
                if frame["type"].startswith("task."):
                    self.events.append(frame)

    @property
    def seqs(self) -> list[int]:
        """The numbers of the events until now."""
        return [event["seq"] for event in list(self.events)]

    def close(self) -> None:
        """Close the connection."""
        self._stack.close()
        self._thread.join()


class SteppingClock(Clock):
    """A clock of the service that stands still until a test puts it forward."""

    def __init__(self) -> None:
        super().__init__()
        self._now_ms = super().now_ms()

    def now_ms(self) -> int:
        """Return the time that the test made it."""
        return self._now_ms

    def set(self, now_ms: int) -> None:
        """Go by the test, not by the database."""

    def step(self, seconds: float) -> None:
        """Let time pass."""
        self._now_ms += round(seconds * 1000)


@contextlib.asynccontextmanager
async def sqlite_store(clock: Clock) -> AsyncIterator[Store]:
    """A store on SQLite."""
    with tempfile.TemporaryDirectory(prefix="dispatch-") as directory:
        put_database(Path(directory))
        store = SqliteStore(Path(directory) / "tasks.db", clock)
        async with _started(store):
            yield store


@contextlib.asynccontextmanager
async def postgres_store(clock: Clock) -> AsyncIterator[Store]:
    """A store on PostgreSQL."""
    with shared_server().database() as url:
        async with _started(PostgresStore(url, clock)) as store:
            yield store


@contextlib.asynccontextmanager
async def _started(store: Store) -> AsyncIterator[Store]:
    try:
        await store.start()
        await store.write(tenants.ensure_default)
        yield store
    finally:
        await store.close()


STORES: dict[str, Callable[[Clock], AbstractAsyncContextManager[Store]]] = {
    "sqlite": sqlite_store,
    "postgresql": postgres_store,
}
"""Every store that must pass the conformance suite, by name: started, with the default project in it."""

FAST_STORES = ("sqlite", pytest.param("postgresql", marks=pytest.mark.slow))
"""The same for a test with thousands of rows or rounds, which takes far longer on PostgreSQL."""


@contextlib.contextmanager
def service_on(engine: str, **settings: str) -> Iterator[ServiceProcess]:
    """Run a service on one of STORES; the caller checks how it ends."""
    with tempfile.TemporaryDirectory(prefix="dispatch-") as directory, contextlib.ExitStack() as stack:
        if engine == "postgresql":
            settings["DISPATCH_DATABASE_URL"] = stack.enter_context(shared_server().database())
        with ServiceProcess(Path(directory), **settings) as service:
            yield service
