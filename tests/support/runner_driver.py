"""Drive ``runner_host`` from a test: start it, script its service, look at what it did, clear it away."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from dispatch.runner import tree
from dispatch.runner.owner import Owner
from tests.support.processes import PATIENCE_S, eventually
from tests.support.promises import promised

HOST = Path(__file__).resolve().parent / "runner_host.py"


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
        partial = self.directory / f"{name}.part"
        partial.write_text("" if times is None else str(times))
        partial.rename(self.directory / name)

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

    def result(self) -> Any:
        """Wait for the end of the first attempt."""
        return self.results(1)[0]

    def results(self, count: int) -> list[Any]:
        """Wait for the ends of so many attempts."""
        return eventually(lambda: len(found := self.lines("results.jsonl")) >= count and found, f"{count} results")

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

        return eventually(read, f"{count} pids in {name}")

    # Processes

    def pid(self, which: str) -> int:
        """Wait for the pid of ``main``, ``child`` or ``warden``."""
        path = self.directory / f"{which}.pid"
        number = int(eventually(lambda: path.exists() and path.read_text(), f"the pid of {which}"))
        if which == "child":
            with contextlib.suppress(ProcessLookupError):
                self._owners.append(Owner.of(number))
        return number

    def signal(self, which: str, number: int) -> None:
        """Send a signal to one process of the host."""
        os.kill(self.pid(which), number)

    def signal_heard(self, which: str, number: int) -> None:
        """Send a signal, and wait until it was taken and the process sleeps again; two at once would be one."""
        pid = self.pid(which)
        os.kill(pid, number)

        def is_heard() -> bool:
            text = Path(f"/proc/{pid}/status").read_text("ascii")
            facts = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
            return facts["State"].startswith("S") and not int(facts["SigPnd"], 16) | int(facts["ShdPnd"], 16)

        eventually(is_heard, f"signal {number} being heard")

    def wait(self) -> int:
        """Wait for the host to exit by itself."""
        return self._popen.wait(PATIENCE_S)

    def strays(self) -> list[tree.Process]:
        """Return the processes that attempts of the pool child have left."""
        return [stray for owner in self._owners for stray in owner.everything()]

    def close(self) -> list[tree.Process]:
        """End whatever is left of the host; return processes of attempts that had outlived it."""
        if self._popen.poll() is None:
            self._popen.kill()
        self._popen.wait()
        self._log.close()
        print(self.log()[-4000:])
        if self.is_main:
            # The wardens have seen it die, and clear away what it left.
            pids = [event["pid"] for event in self.events("warden_started")]
            wardens = [tree.Process(pid, tree.starttime(pid) or 0) for pid in pids]
            eventually(lambda: not any(map(tree.alive, wardens)), "the end of the wardens")
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


def dead(processes: list[tree.Process]) -> bool:
    """Say whether all of these processes have ended."""
    return not any(tree.alive(process) for process in processes)


def dead_within(processes: list[tree.Process], bound_s: float) -> None:
    """Assert that all of these processes end in the time that is promised."""
    with promised(bound_s, f"the end of {processes}"):
        eventually(lambda: dead(processes), f"the end of {processes}")
