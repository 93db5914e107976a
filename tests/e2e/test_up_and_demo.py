"""``dispatch up`` and ``dispatch demo`` as a newcomer runs them, and as one who kills things to see what happens."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.processes import MARK, ROOT, LogProcess, children_of, eventually, is_running, processes_with
from tests.support.redis import free_port
from tests.support.stack import TIMING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Up:
    """A running ``dispatch up`` with two slots, and the command line beside it."""

    def __init__(self, directory: Path) -> None:
        self.mark = uuid.uuid4().hex
        self.env = {
            **TIMING,
            "PATH": os.defpath,
            "HOME": str(directory),
            "LANG": "C.UTF-8",
            MARK: self.mark,
            "DISPATCH_BIND": f"127.0.0.1:{(port := free_port())}",
            "DISPATCH_ATS_URL": f"http://127.0.0.1:{port}",
            "DISPATCH_DATA_DIR": str(directory / "data"),
            "DISPATCH_COMMAND": "/bin/echo well done",
        }
        self.process = LogProcess("up", [sys.executable, "-m", "dispatch", "up", "--slots", "2"], self.env)
        self.process.wait_event("worker_ready")
        self.process.wait_event("ingress_ready")

    def run(self, *arguments: str) -> Any:
        """Run a command and return its JSON."""
        command = [sys.executable, "-m", "dispatch", *arguments, "--json"]
        done = subprocess.run(command, env=self.env, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def parts(self) -> dict[int, str]:
        """Return pid -> command line of its parts. Redis has an empty environment, hence not by mark."""
        commands = {}
        for pid in children_of(self.process.pid):
            with contextlib.suppress(OSError):
                commands[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        return commands

    def pid_of(self, words: str) -> int:
        """Return the pid of the part whose command line contains ``words``, once it is there."""
        found = eventually(lambda: [p for p, line in self.parts().items() if words in line], f"a {words}")
        return found[0]

    def left(self) -> dict[int, str]:
        """Return everything of it that is alive."""
        return processes_with(f"{MARK}={self.mark}")


@contextlib.contextmanager
def started() -> Iterator[Up]:
    """Run ``dispatch up``; at the end everything of it must be gone."""
    with tempfile.TemporaryDirectory(prefix="dispatch-") as directory:
        running = Up(Path(directory))
        parts = set(running.parts())
        try:
            yield running
        finally:
            parts |= set(running.parts())
            running.process.stop()
            eventually(lambda: not running.left() and not any(map(is_running, parts)), "the end of all parts")


@pytest.fixture(scope="module")
def up() -> Iterator[Up]:
    """One that all tests use that leave it running."""
    with started() as running:
        yield running


@pytest.mark.parametrize(
    "part",
    ["dispatch serve", pytest.param("dispatch ingress", marks=pytest.mark.slow), "celery", "redis-server"],
)
def test_up_replaces_what_is_killed(up: Up, part: str):
    """kill -9 of any part of ``dispatch up``: it is started again by itself and the next task is done."""
    assert up.run("create", "before", "--wait")["status"] == "completed"
    victim = up.pid_of(part)
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: not is_running(victim), "the death of the victim")
    assert up.pid_of(part) != victim
    done = eventually(lambda: _try(up), "a task done after the kill")
    assert done["status"] == "completed"
    assert done["outputs"][0]["response"].strip() == "well done"


def _try(up: Up) -> Any:
    try:
        return up.run("create", "after", "--wait")
    except AssertionError:
        # The service may still be on its way up.
        return None


def test_killing_up_itself_leaves_nothing():
    """kill -9 of ``dispatch up``: every part notices and goes, Redis and workers included."""
    with started() as up:
        parts = set(up.parts())
        assert len(parts) == 4
        up.process.kill()
        eventually(lambda: not up.left() and not any(map(is_running, parts)), "the end of all parts")


@pytest.mark.slow
def test_closing_the_terminal_drains():
    """SIGHUP, twice as a shell and the kernel send it: every part drains, exit 0, and nothing is left."""
    with started() as up:
        up.run("create", "before", "--wait")
        up.process.signal(signal.SIGHUP)
        up.process.signal(signal.SIGHUP)
        assert up.process.wait(40) == 0
        for event in ("ingress_stopped", "worker_draining", "worker_stopped", "service_stopped"):
            assert up.process.find(event), up.process.tail()


def test_up_refuses_to_start_on_a_taken_port(up: Up):
    """A second ``up`` on the same port says so in one sentence, exits 78 and leaves nothing."""
    env = {**up.env, MARK: uuid.uuid4().hex, "DISPATCH_DATA_DIR": up.env["DISPATCH_DATA_DIR"] + "2"}
    command = [sys.executable, "-m", "dispatch", "up"]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 78, done.stdout
    assert "cannot listen" in done.stderr
    assert "Traceback" not in done.stderr
    eventually(lambda: not processes_with(f"{MARK}={env[MARK]}"), "nothing left")


def test_demo(short_dir: Path):
    """``dispatch demo`` runs its fifteen tasks, shows how each ended, exits 0 and leaves nothing behind."""
    mark = uuid.uuid4().hex
    env = {"PATH": os.defpath, "HOME": str(short_dir), "LANG": "C.UTF-8", MARK: mark, "TMPDIR": str(short_dir)}
    command = [sys.executable, "-m", "dispatch", "demo"]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All 15 tasks ended as they should" in done.stdout
    for words in ("the sum is 42", "Exceeded max retry attempts (3)", "cancelled by the demo"):
        assert words in done.stdout
    assert done.stderr == ""
    assert processes_with(f"{MARK}={mark}") == {}
    assert [path for path in short_dir.iterdir() if path.name.startswith("dispatch-demo-")] == []
