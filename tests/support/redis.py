"""A real redis-server for tests: kill it, empty it, start it again on the same data."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import closing
from typing import TYPE_CHECKING

import redis

from dispatch.embedded import EmbeddedRedis

if TYPE_CHECKING:
    from pathlib import Path


def free_port() -> int:
    """Return a TCP port on loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RedisServer(EmbeddedRedis):
    """The embedded server, with a TCP port on loopback as well if ``tcp`` is true; the port survives restarts."""

    def __init__(self, directory: Path, *, tcp: bool = False) -> None:
        super().__init__(directory)
        self.port = free_port() if tcp else 0

    def _configuration(self) -> list[str]:
        lines = super()._configuration()
        if self.port:
            lines[0] = f"port {self.port}"
            lines.append("bind 127.0.0.1")
        return lines

    @property
    def tcp_url(self) -> str:
        """The URL of the TCP port; both redis-py and Celery take it."""
        assert self.port, "RedisServer was made without tcp=True"
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self, **options: object) -> redis.Redis:
        """Return a redis-py client; the caller must close it."""
        return redis.Redis.from_url(self.url, **options)

    def kill(self) -> None:
        """kill -9; the data stays as it is on disk."""
        if self.pid is not None:
            os.kill(self.pid, signal.SIGKILL)
        self.stop(grace_s=0)

    def flush(self) -> None:
        """FLUSHALL."""
        with closing(self.client()) as client:
            client.flushall()
