"""Real processes for tests: start them, read their JSON log, signal them, find what they left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

ROOT = Path(__file__).parents[2]
MARK = "ATS_TEST_RUN"
"""The environment variable that marks every process of one test."""

T = TypeVar("T")


PATIENCE_S = 120.0
"""How long tests wait for what comes at once on a machine with nothing else to do.

It is no bound that anything has to hold (tests/support/promises.py is for those), and longer than whatever the
product itself may try, so that a test fails by what happened and never by how busy the machine was.
"""


def eventually(get: Callable[[], T], what: str = "the condition", *, timeout_s: float = PATIENCE_S) -> T:
    """Call ``get`` until it returns something true, and return that. Fails the test after ``timeout_s``.

    The longer it takes the less often it looks, because looking costs the processes under test their time.
    """
    deadline = time.monotonic() + timeout_s
    pause_s = 0.01
    while not (value := get()):
        assert time.monotonic() < deadline, f"{what} did not come true within {timeout_s:g} s"
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.1, 0.1)
    return value


class LogProcess:
    """A process of ours that writes JSON lines on stdout.

    ``output`` keeps every line, those of stderr included; ``events`` the ones
    that are JSON objects with an ``event``. Whoever makes one must call ``stop``.
    """

    def __init__(self, name: str, argv: list[str], env: Mapping[str, str], cwd: Path = ROOT) -> None:
        self.name = name
        self.argv = argv
        self.output: list[str] = []
        self.events: list[dict[str, Any]] = []
        self._news = threading.Condition()
        self._is_asked = False
        # Then one that does not end says in its output where each of its threads stands.
        self._tells_where = "PYTHONFAULTHANDLER" in env
        self._process = subprocess.Popen(
            argv,
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
        self.pid = self._process.pid
        self._reader = threading.Thread(target=self._read, name=f"log of {name}", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for raw in lines:
                line = raw.decode("utf-8", "replace").rstrip("\n")
                with self._news:
                    self.output.append(line)
                    with contextlib.suppress(ValueError):
                        event = json.loads(line)
                        if isinstance(event, dict) and "event" in event:
                            self.events.append(event)
                    self._news.notify_all()

    @property
    def exit_code(self) -> int | None:
        """The exit code (negative for a signal), or None while it runs."""
        return self._process.poll()

    def tail(self, lines: int = 30) -> str:
        """Return the end of its output, for messages."""
        return "\n".join(f"  {self.name}| {line}" for line in self.output[-lines:])

    def forget(self) -> None:
        """Forget all output until now, so that who looks for events finds only later ones."""
        with self._news:
            self.output.clear()
            self.events.clear()

    def find(self, name: str, **facts: Any) -> list[dict[str, Any]]:
        """Return the events so far with this name and these facts."""
        return [e for e in list(self.events) if e["event"] == name and facts.items() <= e.items()]

    def wait_event(self, name: str, timeout_s: float = PATIENCE_S, count: int = 1, **facts: Any) -> dict[str, Any]:
        """Return the ``count``-th event with this name and these facts; fail if it does not come in time."""
        deadline = time.monotonic() + timeout_s
        with self._news:
            while len(found := self.find(name, **facts)) < count:
                left = deadline - time.monotonic()
                ended = self.exit_code is not None and not self._reader.is_alive()
                assert left > 0 and not ended, (  # noqa: PT018 - both make the same message
                    f"{self.name} (exit {self.exit_code}) logged no {name} {facts or ''}:\n{self.tail()}"
                )
                self._news.wait(min(left, 0.1))
        return found[count - 1]

    def signal(self, number: int) -> None:
        """Send a signal to the process, not to its children."""
        if self.exit_code is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """kill -9 and wait for its end; its children stay."""
        self.signal(signal.SIGKILL)
        self._process.wait()

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """Wait for its end and for the end of its output, and return the exit code."""
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            if self._tells_where:
                self.signal(signal.SIGABRT)
                self._reader.join(5.0)
            raise AssertionError(f"{self.name} did not end within {timeout_s:g} s:\n{self.tail(80)}") from None
        self._reader.join(10.0)
        return code

    def ask(self) -> None:
        """SIGTERM, once: a second one may mean more than the first. Who asked need not wait, but must call ``stop``."""
        if not self._is_asked:
            self._is_asked = True
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)

    def stop(self, timeout_s: float = PATIENCE_S) -> int:
        """SIGTERM, wait, and kill what does not go. Returns the exit code. May be called again."""
        self.ask()
        try:
            return self.wait(timeout_s)
        finally:
            self.kill()
            self._reader.join(10.0)


def processes_with(*marks: str) -> dict[int, str]:
    """Return pid -> command line of all live processes whose environment holds one of ``NAME=value``."""
    wanted = [mark.encode() for mark in marks]
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            environ = (entry / "environ").read_bytes().split(b"\0")
            if any(mark in environ for mark in wanted):
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return found


def children_of(pid: int) -> list[int]:
    """Return the pids of a process's children."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):  # one thread may end while the others are looked at
                found += map(int, (thread / "children").read_text().split())
    return found


def is_running(pid: int) -> bool:
    """Say whether a process exists and is no zombie."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def listening_ports(ports: Iterable[int]) -> set[int]:
    """Return those of the TCP ports on which somebody listens."""
    listening = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(FileNotFoundError):
            for row in Path(table).read_text().splitlines()[1:]:
                local, state = row.split()[1], row.split()[3]
                if state == "0A":  # TCP_LISTEN of the kernel's net/tcp_states.h
                    listening.add(int(local.rpartition(":")[2], 16))
    return listening & set(ports)
