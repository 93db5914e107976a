"""The test harness itself: logs, signals, leftovers, and the ticking child."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import pytest

from dispatch.core.prompt import build_prompt
from tests.support.processes import MARK, LogProcess, children_of, eventually, is_running, processes_with

TICK = Path(__file__).parents[1] / "support" / "tick.py"


def speaker(code: str, mark: str) -> LogProcess:
    """A process that runs ``code`` after it has said it is ready."""
    ready = 'import sys, time; print(\'{"event": "ready", "n": 1}\', flush=True)\n'
    return LogProcess("speaker", [sys.executable, "-c", ready + code], {MARK: mark})


def run_tick(directory: Path, orders: dict, attempt: int = 1) -> subprocess.CompletedProcess[str]:
    """Run the ticking child as a worker would, with a real prompt."""
    prompt = build_prompt("t", "d", {"tick": {"dir": str(directory), **orders}}, iter(["b0undary"]))
    env = {"ATS_TASK_ID": "7", "ATS_ATTEMPT": str(attempt), "ATS_FENCING_TOKEN": "3", MARK: str(directory)}
    argv = [sys.executable, "-I", "-S", str(TICK)]
    with tempfile.TemporaryFile("w+") as output:  # a pipe would stay open as long as a daemon lives
        done = subprocess.run(argv, input=prompt, env=env, stdout=output, text=True, check=False)
        output.seek(0)
        done.stdout = output.read()
    return done


def lines_in(directory: Path) -> list[dict]:
    """What the child wrote down."""
    return [json.loads(line) for line in (directory / "7.ticks").read_text().splitlines()]


def test_events_are_read_from_the_log() -> None:
    """JSON lines become events, other lines stay output, and waiting for an absent event names the output."""
    process = speaker("print('no json'); sys.exit(3)", "log")
    assert process.wait_event("ready", n=1)["n"] == 1
    assert process.wait() == 3
    assert process.output[1:] == ["no json"]
    with pytest.raises(AssertionError, match=r"logged no absent.*\n.*\n.*no json"):
        process.wait_event("absent")
    process.stop()


def test_stop_ends_a_frozen_process_and_kill_is_final() -> None:
    """stop thaws and terminates; kill ends a process that ignores SIGTERM."""
    frozen = speaker("time.sleep(60)", "frozen")
    frozen.wait_event("ready")
    frozen.signal(signal.SIGSTOP)
    assert frozen.stop() == -signal.SIGTERM
    stubborn = speaker(
        'import signal; signal.signal(15, signal.SIG_IGN); print(\'{"event": "set"}\', flush=True)\ntime.sleep(60)',
        "stubborn",
    )
    stubborn.wait_event("set")
    with pytest.raises(AssertionError, match="did not end"):
        stubborn.stop(timeout_s=0.1)
    assert stubborn.exit_code == -signal.SIGKILL


def test_leftovers_are_found_by_their_mark() -> None:
    """A grandchild whose parent is gone is found by the environment it inherited."""
    mark = uuid.uuid4().hex
    spawn = "import subprocess; subprocess.Popen(['sleep', '60']); print('{\"event\": \"on\"}', flush=True)\n"
    process = speaker(spawn + "time.sleep(60)", mark)
    process.wait_event("on")
    (child,) = children_of(process.pid)
    process.kill()
    assert process.exit_code == -signal.SIGKILL
    try:
        # In the middle of its exec a process has no environment yet.
        eventually(lambda: set(processes_with(f"{MARK}={mark}")) == {child}, "the grandchild being found")
    finally:
        os.kill(child, signal.SIGKILL)
    eventually(lambda: not is_running(child))
    process.stop()


def test_tick_writes_its_life_down(tmp_path: Path) -> None:
    """begin, ticks about every 50 ms, end; the exit code goes by the attempt."""
    first = run_tick(tmp_path, {"duration_s": 0.6, "exits": [4, 0]}, attempt=1)
    second = run_tick(tmp_path, {"duration_s": 0.0, "exits": [4, 0], "output": "hello"}, attempt=2)
    assert (first.returncode, second.returncode, second.stdout) == (4, 0, "hello\n")
    lines = lines_in(tmp_path)
    of_first = [line for line in lines if line["attempt"] == 1]
    assert of_first[0]["kind"] == "begin"
    assert of_first[-1]["kind"] == "end"
    assert len(of_first) >= 4
    assert {(line["task"], line["token"], line["role"]) for line in lines} == {("7", 3, "leader")}
    assert all(a["at"] <= b["at"] for a, b in itertools.pairwise(lines))


def test_tick_can_leave_a_daemon(tmp_path: Path) -> None:
    """The daemon has a session of its own, outlives its leader, ticks, and is found by its environment."""
    assert run_tick(tmp_path, {"duration_s": 0.0, "daemon_s": 30}).returncode == 0
    (daemon,) = processes_with(f"{MARK}={tmp_path}")
    assert os.getsid(daemon) not in (os.getsid(0), daemon)
    eventually(lambda: sum(line["role"] == "daemon" for line in lines_in(tmp_path)) >= 2)
    os.kill(daemon, signal.SIGKILL)
    eventually(lambda: not is_running(daemon))
