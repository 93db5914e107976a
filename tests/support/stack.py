"""Everything on one machine for a test: service, Redis, ingress and workers as real processes, on short leases."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.database import put_database
from tests.support.processes import MARK, PATIENCE_S, ROOT, LogProcess, eventually, listening_ports, processes_with
from tests.support.redis import RedisServer, free_port

if TYPE_CHECKING:
    from collections.abc import Mapping

TIMING: Mapping[str, str] = {
    "DISPATCH_LEASE_MS": "6000",
    "DISPATCH_DEFAULT_LEASE_MS": "6000",
    "DISPATCH_REGRANT_DELAY_S": "0.75",
    "DISPATCH_RECONCILE_S": "1.5",
    "DISPATCH_SWEEP_S": "0.25",
    "DISPATCH_GRACE_S": "0.5",
    "DISPATCH_DRAIN_S": "1",
    "DISPATCH_RETRY_BACKOFF_S": "0.05",
    "DISPATCH_COOLDOWN_S": "0.2",
}
"""A twentieth of the defaults, so that a lost lease comes back within a test."""

TICK_COMMAND = f"{sys.executable} -I -S {Path(__file__).with_name('tick.py')}"
FINISHED = ("completed", "failed", "cancelled", "rejected")


class Stack:
    """Starts and stops the processes of one test and talks to the service over HTTP.

    ``settings`` are DISPATCH_* variables on top of TIMING. Use ``close`` at the
    end: it stops everything and fails if a process or a port is left over.
    """

    late_actor = "agent:late"
    """As whom a worker comes that did not hear that its lease is over."""

    def __init__(self, settings: Mapping[str, str] | None = None, *, channel: str = "test") -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="dispatch-"))
        self.ticks = self.directory / "ticks"
        self.ticks.mkdir()
        self.channel = channel
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.redis = RedisServer(self.directory / "redis")
        self.mark = uuid.uuid4().hex
        self.processes: list[LogProcess] = []
        self._numbers = itertools.count(1)
        self.env = {
            "PATH": f"{Path(sys.executable).parent}:{os.defpath}",
            "HOME": str(self.directory),
            "LANG": "C.UTF-8",
            "PYTHONUNBUFFERED": "1",
            "PYTHONFAULTHANDLER": "1",
            MARK: self.mark,
            "DISPATCH_ATS_URL": self.url,
            "DISPATCH_BIND": f"127.0.0.1:{self.port}",
            "DISPATCH_CHANNEL": channel,
            "DISPATCH_DATA_DIR": str(self.directory / "data"),
            "DISPATCH_REDIS_URL": self.redis.url,
            "DISPATCH_COMMAND": TICK_COMMAND,
            **TIMING,
            **(settings or {}),
        }

    def run(self, name: str, argv: list[str], env: Mapping[str, str] | None = None) -> LogProcess:
        """Start a process with the stack's environment and ``env`` on top."""
        process = LogProcess(name, [sys.executable, "-m", *argv], {**self.env, **(env or {})}, ROOT)
        self.processes.append(process)
        return process

    def start_service(self, env: Mapping[str, str] | None = None) -> LogProcess:
        """Start the task service and wait until it serves."""
        put_database(self.directory / "data")
        process = self.run("service", ["dispatch", "serve"], env)
        process.wait_event("service_ready")
        return process

    def start_ingress(self, env: Mapping[str, str] | None = None) -> LogProcess:
        """Start an ingress and wait until it watches the channel."""
        process = self.run("ingress", ["dispatch", "ingress"], env)
        process.wait_event("ingress_ready")
        return process

    def start_worker(self, slots: int = 2, env: Mapping[str, str] | None = None, *, queues: str = "") -> LogProcess:
        """Start a Celery worker with ``slots`` pool children, on these queues only, and wait until it consumes."""
        process = self._run_worker(slots, env, queues)
        process.wait_event("worker_ready")
        return process

    def _run_worker(self, slots: int, env: Mapping[str, str] | None = None, queues: str = "") -> LogProcess:
        node = f"worker-{next(self._numbers)}@test"
        argv = ["celery", "-A", "dispatch", "worker", "-c", str(slots), "-n", node]
        return self.run("worker", [*argv, "-Q", queues] if queues else argv, env)

    def start(self, slots: int = 2) -> Stack:
        """Start Redis, the service, an ingress and a worker: ``processes`` in this order, the last two at once."""
        self.redis.start()
        self.start_service()
        ingress, worker = self.run("ingress", ["dispatch", "ingress"]), self._run_worker(slots)
        ingress.wait_event("ingress_ready")
        worker.wait_event("worker_ready")
        return self

    def connect(self) -> http.client.HTTPConnection:
        """Return a connection to the service; the caller must close it."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def call(self, method: str, path: str, body: Any = None, actor: str = "human:tester") -> tuple[int, Any]:
        """Make one REST call and return (status, JSON answer)."""
        kind, _, ident = actor.partition(":")
        headers = {
            "Content-Type": "application/json",
            "X-Actor-Type": kind,
            "X-Actor-ID": ident,
            "X-Actor-Name": ident,
        }
        if token := self.env.get("DISPATCH_ATS_TOKEN"):
            headers["Authorization"] = f"Bearer {token}"
        connection = self.connect()
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def create(self, title: str = "a task", *, tick: Mapping[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
        """Create a task on the stack's channel and return it. ``tick`` are orders for tests/support/tick.py."""
        if tick is not None or "payload" not in fields:
            orders = {"dir": str(self.ticks), **(tick or {})}
            fields["payload"] = {**(fields.get("payload") or {}), "tick": orders}
        status, answer = self.call("POST", "/tasks", {"title": title, "channel": self.channel, **fields})
        assert status in (200, 201), answer
        return answer.get("task", answer)

    def task(self, ident: Any) -> dict[str, Any]:
        """Return a task as the service shows it."""
        status, answer = self.call("GET", f"/tasks/{ident}")
        assert status == 200, answer
        return answer.get("task", answer)

    def wait_task(self, ident: Any, *words: str, timeout_s: float = PATIENCE_S) -> dict[str, Any]:
        """Wait until a task has one of the statuses (default: a finished one) and return it."""
        wanted = words or FINISHED

        def reached() -> dict[str, Any] | None:
            task = self.task(ident)
            return task if task["status"] in wanted else None

        return eventually(reached, f"task {ident} becoming {' or '.join(wanted)}", timeout_s=timeout_s)

    def tick_lines(self, ident: Any) -> list[dict[str, Any]]:
        """Return what the children of a task wrote down so far."""
        path = self.ticks / f"{ident}.ticks"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def leftovers(self) -> dict[int, str]:
        """Return pid -> command line of everything of this stack that is alive, children of attempts included."""
        return processes_with(f"{MARK}={self.mark}", f"ATS_URL={self.url}")

    def close(self) -> None:
        """Stop all processes, service and Redis after those who need them, and fail if anything of them is left."""
        try:
            running = [process for process in reversed(self.processes) if process.exit_code is None]
            running.sort(key=lambda process: process.name == "service")
            for process in running:
                if process.name != "service":
                    process.ask()
            codes = {process.name: process.stop() for process in running}
            self.redis.stop()
            eventually(lambda: not self.leftovers(), f"the end of {self.leftovers()} (exits {codes})")
            assert not listening_ports([self.port]), f"somebody still listens on port {self.port}"
        finally:
            self.abort()

    def abort(self) -> None:
        """Kill everything at once and remove the files."""
        for process in self.processes:
            process.kill()
        self.redis.stop(grace_s=0)
        for pid in self.leftovers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self.processes:
            process.wait()  # for the end of its log, which a child that was just killed may have held open
        shutil.rmtree(self.directory, ignore_errors=True)

    def report(self) -> str:
        """Return the end of every process's output, for a failed test."""
        return "\n".join(process.tail() for process in self.processes)
