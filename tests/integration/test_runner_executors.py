"""Executors of all kinds, with real children: what they are told, what their ends mean, that they can be stopped."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from dispatch.ats.gateway import AttemptRef
from dispatch.ats.model import Task
from dispatch.core.routing import Executor
from dispatch.runner.executors import Assignment
from dispatch.runner.unsealing import NotAcceptedError, Work
from tests.support.processes import eventually
from tests.support.runner_driver import Worker

if TYPE_CHECKING:
    from pathlib import Path

Start = Callable[..., Worker]
TASK = {"title": "Title", "description": "Text", "type": "thumb", "payload": {"size": 64, "callback_url": "https://c/"}}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start workers whose only executor is the given one; afterwards nothing of any attempt may be alive."""
    workers: list[Worker] = []

    def make(executor: dict[str, Any], route: dict[str, Any] | None = None, **config: Any) -> Worker:
        routing = {"executors": {"one": executor}, "routes": [{"executor": "one", **(route or {})}]}
        config = {"task": TASK, "routing": routing, **config}
        workers.append(Worker(tmp_path / f"worker{len(workers)}", ["false"], **config))
        return workers[-1]

    yield make
    assert [process for worker in workers for process in worker.close()] == []


class Receiver:
    """An HTTP server that answers with what the test says and keeps what it was sent."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], Any]] = []
        self.answer: tuple[int, dict[str, str], bytes] = (200, {}, b"done")
        self.pause_s = 0.0
        """Between two bytes of the answer."""
        self.hold = threading.Event()
        self.hold.set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.got.append((dict(self.headers), json.loads(body)))
                outer.hold.wait(60)
                status, headers, text = outer.answer
                self.send_response(status)
                for name, value in {"Content-Length": str(len(text)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if not outer.pause_s:
                    self.wfile.write(text)
                    return
                for byte in text:
                    self.wfile.write(bytes([byte]))
                    time.sleep(outer.pause_s)

            def log_message(self, *_: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/run"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self.hold.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Serve for one test."""
    made = Receiver()
    yield made
    made.close()


def test_a_command_gets_the_tasks_values_and_the_task(start: Start) -> None:
    """Values stand in the argv, the task as JSON on stdin, without what steers dispatch."""
    executor = {
        "command": ["sh", "-c", 'printf "%s|" "$@"; cat', "x", "{id}", "{attempt}", "{payload.size}"],
        "stdin": "task",
    }
    worker = start(executor)
    out = worker.result()["stdout"]
    values, _, body = out.rpartition("|")
    assert values == "7|1|64"
    said = json.loads(body)
    assert (said["id"], said["title"], said["description"]) == ("7", "Title", "Text")
    assert said["payload"] == {"size": 64}
    assert worker.events("attempt_started")[0]["executor"] == "one"


def test_a_path_is_meant_from_where_the_worker_was_started(tmp_path: Path, monkeypatch: Any) -> None:
    """The child has a work directory of its own, where no path of the settings would lead anywhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "agent").touch(mode=0o755)
    assignment = Assignment(AttemptRef("7", 1, 5, "a"), Task("7"), Work("t", "d", None), lambda: b"prompt")
    for program, argv in (("./agent", f"{tmp_path}/agent"), ("~/agent", f"{tmp_path}/agent"), ("sh", "sh")):
        start = assignment.start_of(Executor("one", command=(program, "x")), {"PATH": "/usr/bin:/bin"}, ())
        assert start.argv == (argv, "x")


def test_a_missing_field_fails_the_task_at_once(start: Start) -> None:
    """No attempt would find it: nothing is started, and the reason names executor and field."""
    worker = start({"command": ["true", "{payload.width}"]})
    worker.wait()
    (report,) = worker.reports()
    assert report["op"] == "fail"
    assert report["reason"] == (
        "The executor needs the payload field width, which this task does not have. (executor one)"
    )


def test_a_route_limits_time_and_attempts(start: Start) -> None:
    """The route's time limit stops the attempt, and its number of attempts makes this one the last."""
    worker = start({"command": ["sleep", "60"], "stdin": "nothing"}, {"timeout_ms": 200, "max_attempts": 1})
    assert worker.result()["reason"] == "timeout"
    (report,) = worker.reports()
    assert (report["op"], report["reason"]) == (
        "fail",
        "Exceeded max retry attempts (1): timed out after 0.2 s",
    )


def test_a_host_without_the_program_gives_the_task_back(start: Start) -> None:
    """Another host may have it: the attempt does not count, and log and reason say what is missing, and where."""
    worker = start({"command": ["no-such-program"]})
    worker.wait()
    (report,) = worker.reports()
    assert (report["op"], report["counted"]) == ("release", False)
    (event,) = worker.events("executor_unusable")
    host = os.uname().nodename
    assert event["error"] == f"Host {host} cannot run the executor one: no-such-program is not there."
    assert report["reason"].startswith(event["error"])


def test_a_call_is_quiet_by_its_nature(start: Start, receiver: Receiver) -> None:
    """The idle limit for all is not for calls over HTTP; one of their own ends a call that nobody answers."""
    receiver.hold.clear()
    executor = {"kind": "http", "url": receiver.url}
    execution = {"idle_s": 1.0, "grace_s": 0.2}
    patient, limited = (start(one, execution=execution) for one in (executor, {**executor, "idle_s": 1}))
    result = limited.result()
    assert result["reason"] == "idle"
    assert "for 1 s (idle_s in [executors.one])" in result["detail"]
    assert patient.lines("results.jsonl") == []
    receiver.hold.set()
    assert patient.result()["reason"] == "success"


def test_an_http_executor_posts_the_task_and_returns_the_answer(start: Start, receiver: Receiver) -> None:
    """Headers come from the worker's environment, and the secret is neither in an argv nor in the log."""
    receiver.answer = (201, {}, '{"ok": "\u00fc"}'.encode())
    receiver.hold.clear()
    executor = {"kind": "http", "url": receiver.url, "headers": {"Authorization": "env:RUN_KEY", "X-A": "b"}}
    worker = start(executor, env={"RUN_KEY": "Bearer canary-1"})
    headers, body = eventually(lambda: receiver.got)[0]
    (pid,) = {event["pid"] for event in worker.events("attempt_started")}
    with open(f"/proc/{pid}/cmdline", "rb") as cmdline, open(f"/proc/{pid}/environ", "rb") as environ:
        assert b"canary-1" not in cmdline.read() + environ.read()
    receiver.hold.set()
    assert worker.result()["stdout"] == '{"ok": "\u00fc"}'
    assert (headers["Authorization"], headers["X-A"]) == ("Bearer canary-1", "b")
    assert (body["task"]["id"], body["task"]["payload"]) == ("7", {"size": 64})
    assert "canary-1" not in worker.log()


def test_pieces_of_an_answer_and_printed_lines_are_signs_of_life(
    start: Start, receiver: Receiver, tmp_path: Path
) -> None:
    """Neither waits in a buffer of ours until it is full: an attempt that says something now and then does not hang."""
    (tmp_path / "jobs.py").write_text(FUNCTIONS)
    receiver.answer, receiver.pause_s = (200, {}, b"slowly"), 0.4
    execution = {"idle_s": 1.0}
    slow = start({"kind": "http", "url": receiver.url, "idle_s": 1}, execution=execution)
    talking = {"kind": "python", "function": "jobs:talks"}
    python = start(talking, execution=execution, env={"PYTHONPATH": str(tmp_path)})
    assert (slow.result()["reason"], slow.result()["stdout"]) == ("success", "slowly")
    assert python.result()["reason"] == "success"


REDIRECTED = "302 Found: redirects are not followed; write the address that answers into the executor's url. why"
ANSWERS: list[tuple[int, dict[str, str], str, str]] = [
    (429, {}, "tempfail", "not now (exit code 75): 429 Too Many Requests: why"),
    (500, {"Retry-After": "3"}, "tempfail", "not now (exit code 75): 500 Internal Server Error: why"),
    (400, {}, "exit", "exit code 1: 400 Bad Request: why"),
    (302, {"Location": "http://127.0.0.1:1/"}, "exit", f"exit code 1: {REDIRECTED}"),
]


@pytest.mark.parametrize(("status", "headers", "reason", "detail"), ANSWERS)
def test_other_answers_are_failed_attempts_or_not_now(
    start: Start, receiver: Receiver, status: int, headers: dict[str, str], reason: str, detail: str
) -> None:
    """Asking for a pause does not count as an attempt; redirects are not followed, because headers hold secrets."""
    receiver.answer = (status, headers, b"why")
    result = start({"kind": "http", "url": receiver.url}).result()
    assert (result["reason"], result["detail"]) == (reason, detail)


def test_secrets_are_in_no_response_and_no_reason(start: Start, receiver: Receiver) -> None:
    """Both are read by whoever reads the task. What a program says on stdout is its reason where stderr is empty."""
    env = {"RUN_KEY": "Bearer canary-1"}
    done = start({"command": ["sh", "-c", 'echo "it is $RUN_KEY"'], "env": ["RUN_KEY"]}, env=env)
    assert done.result()["stdout"] == "it is ***\n"
    failed = start({"command": ["sh", "-c", 'echo "not with $RUN_KEY"; exit 3'], "env": ["RUN_KEY"]}, env=env)
    assert failed.result()["detail"] == "exit code 3: not with ***"
    receiver.answer = (400, {}, b"canary-1 is no key")
    refused = start({"kind": "http", "url": receiver.url, "headers": {"Authorization": "env:RUN_KEY"}}, env=env)
    assert refused.result()["detail"] == "exit code 1: 400 Bad Request: *** is no key"


def test_a_cancel_ends_an_http_call(start: Start, receiver: Receiver) -> None:
    """The call is a process like any other: it is gone as soon as the task is cancelled."""
    receiver.hold.clear()
    worker = start({"kind": "http", "url": receiver.url}, lease_s=1.0)
    eventually(lambda: receiver.got)
    worker.mood("renew.cancelled")
    assert worker.result()["reason"] == "cancelled"


FUNCTIONS = """
import sys
import time
def double(task):
    print("printed")
    return {"twice": task["payload"]["size"] * 2}
def fails(task):
    raise ValueError("no such size")
def later(task):
    sys.exit(75)
def talks(task):
    for number in range(6):
        print(number)
        time.sleep(0.4)
"""


@pytest.mark.parametrize(
    ("name", "reason", "stdout", "last"),
    [
        ("double", "success", '{"twice": 128}', ""),
        ("fails", "exit", "", "ValueError: no such size"),
        ("later", "tempfail", "", "not now (exit code 75)"),
        ("nothing", "exit", "", "exit code 1: The module jobs has no function nothing."),
    ],
)
def test_a_python_executor_calls_a_function(
    start: Start, tmp_path: Path, name: str, reason: str, stdout: str, last: str
) -> None:
    """What it returns is the response, what it prints is not; its exceptions and exits end the attempt."""
    (tmp_path / "jobs.py").write_text(FUNCTIONS)
    worker = start({"kind": "python", "function": f"jobs:{name}"}, env={"PYTHONPATH": str(tmp_path)})
    result = worker.result()
    assert (result["reason"], result["stdout"]) == (reason, stdout), result
    assert result["detail"].splitlines()[-1:] == ([last] if last else []) or last in result["detail"]


def test_a_sealed_task_is_never_put_into_arguments() -> None:
    """Others on the host can read them: an executor that does that refuses every sealed task."""
    work = Work("t", "d", {"size": 1}, opened=object())  # type: ignore[arg-type]
    assignment = Assignment(AttemptRef("7", 1, 5, "a"), Task("7"), work, lambda: b"prompt")
    with pytest.raises(NotAcceptedError, match="executor one puts fields of the payload into its arguments"):
        assignment.start_of(Executor("one", command=("true", "{payload.size}")), {"PATH": "/usr/bin:/bin"}, ())
    fine = assignment.start_of(Executor("one", command=("true", "{id}")), {"PATH": "/usr/bin:/bin"}, ())
    assert (fine.argv, fine.stdin) == (("true", "7"), b"prompt")
