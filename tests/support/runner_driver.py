"""Drive ``runner_host`` from a test: start it, script its service, look at what it did, clear it away."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dispatch.runner import tree
from dispatch.runner.owner import Owner

if TYPE_CHECKING:
    from collections.abc import Callable

HOST = Path(__file__).resolve().parent / "runner_host.py"


def eventually(condition: Callable[[], Any], timeout_s: float = 5.0, what: str = "") -> Any:
    """Poll until a condition holds and return its value; fail after the timeout."""
    end = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"not within {timeout_s} s: {what or condition}"
        time.sleep(0.005)


class Worker:
    """A running host. ``directory`` is where its files are."""

    def __init__(
        self,
        directory: Path,
        command: list[str],
        *,
        env: dict[str, str] | None = None,
        moods: dict[str, int | None] | None = None,
        **config: Any,
    ) -> None:
        self.directory = directory
        directory.mkdir(exist_ok=True)
        for name, times in (moods or {}).items():
            self.mood(name, times)
        self.is_main = bool(config.get("main"))
        self._log = (directory / "log.jsonl").open("wb")
        self._popen = subprocess.Popen(
            [sys.executable, str(HOST), json.dumps({"directory": str(directory), "command": command, **config})],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=os.environ | (env or {}),
            start_new_session=True,
        )
        self._owners: list[Owner] = []

    # Files

    def lines(self, name: str) -> list[Any]:
        """Return the JSON lines of a file, [] when it is not there yet."""
        try:
            text = (self.directory / name).read_text()
        except FileNotFoundError:
            return []
        whole = text[: text.rfind("\n") + 1]
        return [json.loads(line) for line in whole.splitlines() if line.startswith("{") or line.isdigit()]

    def mood(self, name: str, times: int | None = None) -> None:
        """Make the service refuse an operation: ``complete.unavailable``, once, some times or always."""
        (self.directory / name).write_text("" if times is None else str(times))

    def better(self, name: str) -> None:
        """End a mood."""
        (self.directory / name).unlink()

    def calls(self, op: str) -> list[Any]:
        """Return the calls of one operation."""
        return [call for call in self.lines("calls.jsonl") if call["op"] == op]

    def reports(self) -> list[Any]:
        """Return everything that was reported about attempts."""
        return [call for call in self.lines("calls.jsonl") if call["op"] in ("complete", "fail", "release")]

    def events(self, name: str) -> list[Any]:
        """Return the log events of one name."""
        return [event for event in self.lines("log.jsonl") if event["event"] == name]

    def result(self, timeout_s: float = 30.0) -> Any:
        """Wait for the end of the first attempt."""
        return eventually(lambda: self.lines("results.jsonl"), timeout_s, f"a result; log: {self.log()[-2000:]}")[0]

    def log(self) -> str:
        """Return the host's output."""
        return (self.directory / "log.jsonl").read_text()

    def noted(self, name: str, count: int) -> list[tree.Process]:
        """Wait until so many children have noted their pids; return them."""

        def read() -> list[tree.Process]:
            with contextlib.suppress(FileNotFoundError):
                pids = [int(line) for line in (self.directory / name).read_text().split()]
                if len(pids) >= count:
                    return [tree.Process(pid, tree.starttime(pid) or 0) for pid in pids]
            return []

        return eventually(read, 5.0, f"{count} pids in {name}; log: {self.log()[-2000:]}")

    # Processes

    def pid(self, which: str) -> int:
        """Wait for the pid of ``main``, ``child`` or ``warden``."""
        path = self.directory / f"{which}.pid"
        number = int(eventually(lambda: path.exists() and path.read_text(), 5.0, f"{which}: {self.log()[-2000:]}"))
        if which == "child":
            with contextlib.suppress(ProcessLookupError):
                self._owners.append(Owner.of(number))
        return number

    def signal(self, which: str, number: int) -> None:
        """Send a signal to one process of the host."""
        os.kill(self.pid(which), number)

    def wait(self, timeout_s: float = 10.0) -> int:
        """Wait for the host to exit by itself."""
        return self._popen.wait(timeout_s)

    def strays(self) -> list[tree.Process]:
        """Return the processes that attempts of the pool child have left."""
        return [stray for owner in self._owners for stray in owner.everything()]

    def close(self) -> list[tree.Process]:
        """End whatever is left of the host; return processes of attempts that had outlived it."""
        if self._popen.poll() is None:
            self._popen.kill()
        self._popen.wait()
        self._log.close()
        if self.is_main:
            # The wardens have seen it die, and clear away what it left.
            pids = [event["pid"] for event in self.events("warden_started")]
            wardens = [tree.Process(pid, tree.starttime(pid) or 0) for pid in pids]
            dead_within(wardens, 5.0)
        left: list[tree.Process] = []
        for owner in self._owners:
            left += [process for process in owner.everything() if self.is_main]
            tree.kill_all(owner.everything)
        return left


class FakeService:
    """An HTTP server that records the warden's releases and answers with what ``statuses`` says next, else 200."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.statuses: list[int] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                outer.requests.append(
                    {"path": self.path, "headers": dict(self.headers), "body": json.loads(body), "at": tree.boottime()}
                )
                self.send_response(outer.statuses.pop(0) if outer.statuses else 200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    @property
    def tasks_url(self) -> str:
        """Return what a worker is given."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/base/orgs/o/projects/p/tasks"

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def dead_within(processes: list[tree.Process], timeout_s: float) -> None:
    """Assert that all of these processes end in time."""
    eventually(lambda: not any(tree.alive(process) for process in processes), timeout_s, f"{processes} dead")
