"""A real redis-server for tests: kill it, empty it, start it again on the same data; bare, or as config/ has it."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import redis

from dispatch.embedded import EmbeddedRedis
from tests.support.processes import PATIENCE_S, ROOT, eventually

if TYPE_CHECKING:
    from pathlib import Path


_RANGE = range(10_000, 32_768)
"""Below the ports that Linux gives to whoever does not care which one it gets, connections among them."""
_reserved: list[socket.socket] = []


def free_port() -> int:
    """Return a TCP port on loopback that is free, and that no other test of this machine is given meanwhile.

    An abstract socket with its number in the name is what reserves it, until this process ends.
    """
    while True:
        port = random.choice(_RANGE)  # chance, so that the tests of several trees do not meet
        mark = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            mark.bind(f"\0dispatch-test-port-{port}")
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            mark.close()
            continue
        _reserved.append(mark)
        return port


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

    def start(self, timeout_s: float = PATIENCE_S) -> None:
        """Start it, with the patience of tests."""
        super().start(timeout_s)

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


class ConfiguredRedis(RedisServer):
    """A server with config/redis.conf and the users of config/redis-users.conf; ``client`` is the user admin.

    Only directory, socket, port and the path of the users' file are the test's own.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, tcp=True)
        subprocess.run(["sh", ROOT / "config/redis-users.sh", directory], check=True)

    def _configuration(self) -> list[str]:
        shipped = (ROOT / "config/redis.conf").read_text("utf-8")
        placed = shipped.replace("/etc/dispatch/redis-users.conf", f"{self.directory}/redis-users.conf")
        assert placed != shipped
        placed = placed.replace("dir /var/lib/redis\n", "")  # may be missing here; the test's own comes below
        bind = next(line for line in shipped.splitlines() if line.startswith("bind "))
        return [*placed.splitlines(), *super()._configuration()[:4], bind]

    def _wait_until_ready(self, deadline: float) -> None:
        """Wait with a login: nobody else is answered."""

        def answers() -> bool:
            with suppress(redis.ConnectionError), closing(self.client()) as client:
                return bool(client.ping())
            return False

        eventually(answers, "the start of Redis")

    def password_file(self, user: str) -> Path:
        """Return the file with a user's password."""
        return self.directory / f"redis-{user}.password"

    def settings(self, user: str) -> dict[str, str]:
        """Return the settings of a process that comes as ``user``."""
        return {
            "DISPATCH_REDIS_URL": f"redis://{user}@127.0.0.1:{self.port}/0",
            "DISPATCH_REDIS_PASSWORD_FILE": str(self.password_file(user)),
        }

    def client(self, user: str = "admin", **options: object) -> redis.Redis:
        """Return a client of a user; the caller must close it."""
        options = {"username": user, "password": self.password_file(user).read_text(), **options}
        return super().client(**options)
