"""A fleet on hosts of its own: Redis, service with ingress, and worker hosts, each with its own address."""

from __future__ import annotations

import http.client
import sys
from typing import TYPE_CHECKING

from dispatch.ats.model import Actor
from dispatch.service import direct, keys
from dispatch.service.access import Access
from tests.support.database import put_database
from tests.support.netns import HostProcess, Network
from tests.support.processes import PATIENCE_S, ROOT
from tests.support.redis import ConfiguredRedis
from tests.support.stack import Stack

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from dispatch.service.store import Tx
    from tests.support.processes import LogProcess

SLOTS = 4
REDIS_HOST = "redis"
SERVICE_HOST = "service"


class HostRedis(ConfiguredRedis):
    """The Redis of config/, on a host's address instead of loopback."""

    def __init__(self, directory: Path, network: Network) -> None:
        super().__init__(directory)
        self._network = network
        self._address = network.addresses[REDIS_HOST]

    def _configuration(self) -> list[str]:
        return [*super()._configuration(), f"bind {self._address}"]

    def start(self, timeout_s: float = PATIENCE_S) -> None:
        """Start it there; the caller's thread is there only for this moment."""
        with self._network.inside(REDIS_HOST):
            super().start(timeout_s)

    def settings(self, user: str) -> dict[str, str]:
        """Return the settings of a process that comes as ``user``."""
        return {**super().settings(user), "DISPATCH_REDIS_URL": f"redis://{user}@{self._address}:{self.port}/0"}


class HostStack(Stack):
    """A stack whose processes are on hosts: ``workers`` name those that each run one Celery worker of SLOTS slots.

    The service wants an API key of everybody, Redis a login. Ticks go to a
    directory that all hosts see; everything else of a host is its own.
    """

    # Where there are keys, nobody but the holder may report at all; then the token alone tells an old one.
    late_actor = f"agent:dispatch-{SERVICE_HOST}"

    def __init__(self, network: Network, workers: tuple[str, ...]) -> None:
        super().__init__()
        self.network = network
        self.workers: dict[str, LogProcess] = {}
        self.redis = HostRedis(self.directory / "redis", network)
        self.url = f"http://{network.addresses[SERVICE_HOST]}:{self.port}"
        self.env |= {"DISPATCH_ATS_URL": self.url, "DISPATCH_BIND": self.url.removeprefix("http://")}
        self._hosts = workers

    def start(self, slots: int = SLOTS) -> HostStack:
        """Start Redis, the service, an ingress and a worker on each worker host, and wait until all are ready."""
        put_database(self.directory / "data")
        self.env["DISPATCH_ATS_TOKEN"] = self._make_key()
        self.redis.start()
        self.run_on(SERVICE_HOST, "service", ["dispatch", "serve"]).wait_event("service_ready")
        ingress = self.run_on(SERVICE_HOST, "ingress", ["dispatch", "ingress"], self.redis.settings("ingress"))
        for host in self._hosts:
            self.launch_worker(host, slots)
        ingress.wait_event("ingress_ready")
        for worker in self.workers.values():
            worker.wait_event("worker_ready")
        return self

    def launch_worker(self, host: str, slots: int = SLOTS) -> LogProcess:
        """Start a host's worker, as its service manager does after a boot. Does not wait."""
        own = {**self.redis.settings("worker"), "DISPATCH_DATA_DIR": str(self.directory / f"data-{host}")}
        argv = ["celery", "-A", "dispatch", "worker", "-c", str(slots), "-n", f"worker@{host}"]
        self.workers[host] = self.run_on(host, f"worker-{host}", argv, own)
        return self.workers[host]

    def run_on(self, host: str, name: str, argv: list[str], env: Mapping[str, str] | None = None) -> LogProcess:
        """Start a Python module on a host with the stack's environment and ``env`` on top."""
        entered = self.network.argv(host, [sys.executable, "-m", *argv])
        process = HostProcess(name, entered, {**self.env, **(env or {})}, ROOT)
        self.processes.append(process)
        return process

    def connect(self) -> http.client.HTTPConnection:
        """Return a connection to the service from its own host; the caller must close it."""
        connection = http.client.HTTPConnection(self.network.addresses[SERVICE_HOST], self.port, timeout=60)
        with self.network.inside(SERVICE_HOST):
            connection.connect()
        return connection

    def _make_key(self) -> str:
        def work(tx: Tx) -> str:
            return keys.create(tx, "fleet", access=Access.WRITE, actor=Actor("agent", "dispatch", "dispatch"))[1]

        return direct.transaction(f"sqlite:///{self.directory / 'data' / 'tasks.db'}", work)
