"""The two child processes of our own: what they make of answers that end early, and of results that are none."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dispatch.runner import http_call, python_call

HEAD = b"HTTP/1.1 200 OK\r\n"


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """Serve one connection: read the request, send these bytes, close."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            peer, _ = server.accept()
            with peer:
                peer.recv(65_536)
                peer.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/run?key=canary-1"
        thread.join()


def posted(url: str, capfd: Any) -> tuple[int, str, str]:
    """Return exit code, stdout and stderr of a call."""
    code = http_call.call({"url": url, "headers": {}, "body": {}})
    said = capfd.readouterr()
    return code, said.out, said.err


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (HEAD + b"Content-Length: 10\r\n\r\nhalf", "the answer ended 6 bytes before its Content-Length."),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n8\r\nhalf", "the answer ended before it was whole."),
        (b"", "Remote end closed connection without response."),
        (b"SMTP ready\r\n", "SMTP ready"),
    ],
)
def test_an_answer_that_is_not_whole_is_no_result(answer: bytes, sentence: str, capfd: Any) -> None:
    """A server that dies while it answers has not done the task; the reason names the host and nothing secret."""
    with answering(answer) as url:
        code, _, said = posted(url, capfd)
    assert code == 1
    assert said.startswith(f"The request to {url[7:].partition('/')[0]} failed: ")
    assert sentence in said
    assert "canary" not in said


def test_a_body_that_says_no_length_is_whole_when_it_ends(capfd: Any) -> None:
    """HTTP/1.0 style answers end with their connection."""
    with answering(HEAD + b"\r\nall of it") as url:
        assert posted(url, capfd) == (0, "all of it", "")


def test_a_refused_connection_is_told_in_words(capfd: Any) -> None:
    """No errno, no class name of Python."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    code, _, said = posted(f"http://127.0.0.1:{port}/", capfd)
    assert (code, said) == (1, f"The request to 127.0.0.1:{port} failed: connection refused.\n")


def test_a_redirect_says_what_to_do(capfd: Any) -> None:
    """It is not followed, and the operator reads what to change."""
    with answering(b"HTTP/1.1 301 Moved\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n") as url:
        code, _, said = posted(url, capfd)
    assert (code, said.partition("; ")[0]) == (1, "301 Moved: redirects are not followed")


FUNCTIONS = """
import os
def a_set(task): return {1}
def nan(task): return [float("nan")]
def data(task): return b"x"
async def later(task): return 1
def circle(task):
    found = []
    found.append(found)
    return found
def forks(task):
    if os.fork() == 0:
        return "of the copy"
    os.wait()
    return "of the first"
def raises(task): return task["x"]
def needs(task): import no_such_module
"""
NO_TEXT = "is no text and not to be had as JSON: "


def called(function: str, directory: Path) -> tuple[int, str, str]:
    """Return exit code, stdout and stderr of a call of a function in ``jobs``."""
    (directory / "jobs.py").write_text(FUNCTIONS)
    order = {"function": function, "task": {}, "path": [str(directory), *sys.path]}
    done = subprocess.run(
        [sys.executable, "-P", python_call.__file__],
        input=json.dumps(order),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a_set", f"What jobs:a_set returned, of type set, {NO_TEXT}Object of type set is not JSON serializable."),
        ("nan", f"What jobs:nan returned, of type list, {NO_TEXT}Out of range float values are not JSON compliant"),
        ("data", f"What jobs:data returned, of type bytes, {NO_TEXT}"),
        ("later", f"What jobs:later returned, of type coroutine, {NO_TEXT}"),
        ("circle", f"What jobs:circle returned, of type list, {NO_TEXT}Circular reference detected."),
        ("nothing", "The module jobs has no function nothing."),
    ],
)
def test_a_result_that_is_none_is_told_in_a_sentence(name: str, said: str, tmp_path: Path) -> None:
    """The user's function returned what cannot be a response: a failed attempt, and no traceback through our code."""
    code, out, err = called(f"jobs:{name}", tmp_path)
    assert (code, out) == (1, "")
    assert err.startswith(said)
    assert "Traceback" not in err


def test_a_traceback_shows_the_users_frames_only(tmp_path: Path) -> None:
    """Where dispatch called it from tells nobody anything."""
    _, _, err = called("jobs:raises", tmp_path)
    assert err.splitlines()[-1] == "KeyError: 'x'"
    assert err.count("File ") == 1


def test_a_copy_that_the_function_forked_adds_nothing_to_the_response(tmp_path: Path) -> None:
    """Two processes come back from the function; one result is the response."""
    assert called("jobs:forks", tmp_path) == (0, "of the first", "")


def test_a_module_that_this_host_lacks_is_for_another_host(tmp_path: Path) -> None:
    """It is "not now", as where a program is not there; a module that the function needs is the function's failure."""
    assert called("absent.jobs:run", tmp_path) == (75, "", "There is no module absent on this host.\n")
    code, _, err = called("jobs:needs", tmp_path)
    assert (code, err.splitlines()[-1]) == (1, "ModuleNotFoundError: No module named 'no_such_module'")
