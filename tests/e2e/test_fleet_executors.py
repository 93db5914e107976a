"""A fleet with executors and routes from a TOML file: what runs is watched, and results are reviewed."""

from __future__ import annotations

import json
import signal
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.cli import Cli
from tests.support.processes import eventually
from tests.support.promises import FairClock
from tests.support.stack import Stack

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LINES = 10
SCRIPT = f"""
import time
for number in range({LINES}):
    print("at", time.time(), flush=True)
    print(f"::progress {{number * 10}} Step {{number}}", flush=True)
    time.sleep(1)
"""
CONFIG = f"""
[executors.default]
command = ["cat"]

[executors.ticker]
command = ["{sys.executable}", "-I", "-S", "SCRIPT"]
stdin = "nothing"

[[routes]]
type = "tick"
executor = "ticker"

[[routes]]
type = "reviewed"
review = true
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A running fleet with that file."""
    home = tmp_path_factory.mktemp("fleet")
    (home / "script.py").write_text(SCRIPT)
    (home / "dispatch.toml").write_text(CONFIG.replace("SCRIPT", str(home / "script.py")))
    made = Stack({"DISPATCH_CONFIG": str(home / "dispatch.toml"), "DISPATCH_MAX_ATTEMPTS": "2"})
    del made.env["DISPATCH_COMMAND"]
    try:
        yield made.start(1)
        made.close()
    finally:
        print(made.report())
        made.abort()


@pytest.fixture
def cli(stack: Stack, tmp_path: Path) -> Iterator[Cli]:
    """The commands, as on a host that has nothing but the service's address."""
    made = Cli(tmp_path, {"DISPATCH_ATS_URL": stack.url})
    yield made
    made.close()


def test_a_line_a_second_is_seen_within_two_seconds(stack: Stack, cli: Cli) -> None:
    """Lines come while the task runs, the usual one less than 2 s late; progress can be seen, the response is whole."""
    watch = cli.start("watch", env={"PYTHONUNBUFFERED": "1"})
    assert watch.stderr is not None
    assert "Watching" in watch.stderr.readline()
    ident = str(stack.create("watch me", type="tick", payload={})["id"])
    logs = cli.start("logs", "-f", ident, env={"PYTHONUNBUFFERED": "1"})
    assert logs.stdout is not None
    delays: list[float] = []
    with FairClock() as clock:
        for line in logs.stdout:
            text = line.rstrip("\n").rpartition("\t")[2]
            if line.count("\t") == 2 and text.startswith("at "):
                delays.append(time.time() - float(text.split()[1]))
            if len(delays) == LINES - 2:
                break
    # One that is late on a busy machine proves nothing; lines that are held back are late always.
    assert sorted(delays)[len(delays) // 2] < 2.0 * clock.slowness, delays
    assert max(delays) < 6.0 * clock.slowness, delays
    story = cli.here("show", ident).out
    assert "Step" in next(line for line in story.splitlines() if line.startswith("progress"))
    (running,) = json.loads(cli.here("status", "--json").out)["tasks"]["running"]
    assert (running["id"], running["progress"] >= 60) == (ident, True)
    logs.kill()
    watch.send_signal(signal.SIGINT)
    steps = [line for line in watch.communicate(timeout=60)[0].splitlines() if "\tmessage\t" in line]
    assert any("[30 % Step 3]" in line for line in steps), steps
    assert len(steps) == len(set(steps)) <= LINES + 1
    response = stack.wait_task(ident)["outputs"][0]["response"]
    assert [line[:3] for line in response.splitlines()] == ["at "] * LINES
    kept = stack.directory / "data" / "logs" / f"{ident}-1.log"
    assert kept.read_text().count("::progress") == LINES
    assert "progress" not in cli.here("show", ident).out.partition("Thread")[0]


def transition(stack: Stack, ident: str, target: str, note: str | None = None) -> None:
    """Move a task with the Task Tool, as an agent that reviews."""
    body = {"task_id": stack.task(ident)["uuid"], "to_status": target, "expected_from_status": "in_review"}
    body |= {} if note is None else {"note": note}
    status, answer = stack.call("POST", "/tools/core_transition_task", body, actor="agent:critic")
    assert (status, answer["status"], answer["locked_by"]) == (200, target, None)


@pytest.mark.parametrize("by", ["payload", "route"])
def test_a_task_that_is_sent_back_is_done_anew_with_the_note(stack: Stack, cli: Cli, by: str) -> None:
    """The result waits; the next attempt reads the note, what was said and the earlier result; then approval.

    Once with the commands, once with the Task Tool alone.
    """
    is_tool = by == "route"
    asked = {"payload": {"review": True, "k": "v"}} if by == "payload" else {"type": "reviewed", "payload": {}}
    ident = str(stack.create("write it", description="first words", **asked)["id"])
    first = stack.wait_task(ident, "in_review")
    assert "first words" in first["outputs"][0]["response"]
    assert "sent it back" not in first["outputs"][0]["response"]
    assert cli.here("message", ident, "people-said-this").code == 0
    if is_tool:
        transition(stack, ident, "in_review", "a-remark-that-decides-nothing")
        transition(stack, ident, "todo", "the-note: add a table")
    else:
        ended = cli.here("bounce", ident, "the-note: add a table")
        assert (ended.code, ended.out) == (0, f"Task {ident} sent back.\n")
    second = eventually(
        lambda: (
            (task := stack.task(ident))["status"] == "in_review"
            and "the-note" in task["outputs"][0]["response"]
            and task
        ),
        "the second result",
    )
    prompt = second["outputs"][0]["response"]
    blocks = [line.split()[2] for line in prompt.splitlines() if line.startswith("--- begin ")]
    assert blocks[0] == "title"
    assert blocks[-1] == "reviewer-note"
    assert "a reviewer sent it back" in prompt
    for piece in ("the-note: add a table", "people-said-this", "earlier-result"):
        assert piece in prompt
    assert ("a-remark-that-decides-nothing" in prompt) == is_tool
    assert "Agent processing started" not in prompt
    assert second["attempts"] == 1
    if is_tool:
        transition(stack, ident, "completed")
    else:
        assert cli.here("complete", ident).code == 0
    done = stack.task(ident)
    assert (done["status"], len(done["outputs"])) == ("completed", 1)
    refused = cli.here("bounce", ident, "too late")
    assert (refused.code, "not in in_review" in refused.err) == (1, True)
