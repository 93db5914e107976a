"""A task service as a real process, and a client that sends exactly what a test says."""

from __future__ import annotations

import http.client
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from dispatch.service import tenants
from dispatch.service.clock import Clock
from dispatch.service.sqlite import SqliteStore
from tests.support.processes import LogProcess, eventually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dispatch.service.store import Store

ROOT = Path(__file__).parents[2]


class Client:
    """One keep-alive connection. ``call`` returns (status, decoded JSON) and fails on anything but JSON."""

    def __init__(self, url: str, actor: str = "worker-1", kind: str = "agent") -> None:
        self.url = url
        self.headers = {
            "Content-Type": "application/json",
            "X-Actor-Type": kind,
            "X-Actor-ID": actor,
            "X-Actor-Name": actor.title(),
        }
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)

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

    def start(self) -> Self:
        """Start it and wait until it serves. A second start takes the same port."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("DISPATCH_")}
        env |= {"DISPATCH_DATA_DIR": str(self.directory), "PYTHONPATH": str(ROOT), **self._settings}
        self.process = LogProcess("service", self.argv, env)
        eventually(
            lambda: self.process.find("service_ready") or self.process.exit_code is not None, 20, "the service's start"
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

    def client(self, actor: str = "worker-1", kind: str = "agent") -> Client:
        """Return a client, closed with the service."""
        self._clients.append(Client(self.url, actor, kind))
        return self._clients[-1]

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


class SteppingClock(Clock):
    """A clock of the service that stands still until a test puts it forward."""

    def __init__(self) -> None:
        super().__init__()
        self._now_ms = super().now_ms()

    def now_ms(self) -> int:
        """Return the time that the test made it."""
        return self._now_ms

    def step(self, seconds: float) -> None:
        """Let time pass."""
        self._now_ms += round(seconds * 1000)


async def sqlite_store(directory: Path, clock: Clock) -> Store:
    """Start a store on SQLite with the default project in it."""
    store = SqliteStore(directory / "tasks.db", clock)
    await store.start()
    await store.write(tenants.ensure_default)
    return store


STORES: dict[str, Callable[[Path, Clock], Awaitable[Store]]] = {"sqlite": sqlite_store}
"""Every store that must pass the conformance suite, by name."""
