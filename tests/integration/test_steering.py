"""Pausing and draining a real fleet: what is ordered is obeyed within moments, and what runs goes on."""

from __future__ import annotations

import socket
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from dispatch.broker import WORKER_KEY
from dispatch.core.presence import parse_worker
from tests.support.cli import CliHere
from tests.support.fake_ats import FakeAts
from tests.support.processes import eventually
from tests.support.promises import promised

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.stack import Stack

OBEYED_S = 1.0
HOST = socket.gethostname()


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> CliHere:
    """Commands in this process."""
    return CliHere(monkeypatch, capfd, tmp_path)


def use(cli: CliHere, stack: Stack) -> None:
    """Let commands be about a stack."""
    cli.env(**{name: value for name, value in stack.env.items() if name.startswith("DISPATCH_")})


def draining(stack: Stack) -> list[bool]:
    """Whether each worker shows that it drains."""
    with closing(stack.redis.client(decode_responses=True)) as client:
        found = [parse_worker(client.get(key)) for key in client.scan_iter(match=WORKER_KEY + "*")]
    return [worker.draining for worker in found if worker is not None]


def test_a_paused_channel_rests_and_a_drained_host_finishes(fleet: Callable[..., Stack], cli: CliHere) -> None:
    """Pause: nothing new is claimed, what runs ends well, other channels go on, and the end comes by itself.

    Drain: the worker shows it and takes nothing, also after FLUSHALL; undone, it takes tasks again. A name that nobody
    shows is said.
    """
    stack = fleet()
    use(cli, stack)
    running = stack.create(tick={"duration_s": 1.0})["id"]
    stack.wait_task(running, "in_progress")
    ingress = stack.processes[1]
    told = cli("pause", "channel", stack.channel, "--note", "disk full")
    assert (told.code, told.out) == (0, f"Channel {stack.channel} is paused.\n")
    with promised(OBEYED_S, "the pause"):
        ingress.wait_event("steering_paused")
    held = stack.create()["id"]
    assert stack.wait_task(running)["status"] == "completed"
    assert (stack.task(held)["status"], stack.task(held)["fencing_token"]) == ("pending", 0)
    assert cli("pause", "channel", stack.channel, "--for", "1s").code == 0
    assert cli("paused").out.split("\t")[:2] == ["channel", stack.channel]
    assert stack.wait_task(held)["status"] == "completed"
    assert cli("paused").out == ""

    slip = cli("drain", "nohost")
    assert (slip.code, slip.out) == (0, "Host nohost takes nothing new.\n")
    assert f"No worker of a host nohost shows itself now (those that are seen: {HOST})" in slip.err
    assert "No ingress watches a channel nope now" in cli("pause", "channel", "nope").err
    assert "No worker takes from a queue nope now" in cli("pause", "queue", "nope").err
    assert [cli(*words).code for words in (("drain", "nohost", "--undo"), ("resume", "queue", "nope"))] == [0, 0]
    ended = cli("drain", HOST, "--note", "kernel")
    assert (ended.out, ended.err) == (f"Host {HOST} takes nothing new.\n", "")
    eventually(lambda: draining(stack) == [True], "the worker showing that it drains")
    stack.redis.flush()
    waiting = stack.create()["id"]
    eventually(lambda: draining(stack) == [True], "the worker showing that it still drains")
    assert stack.task(waiting)["status"] == "pending"
    assert not stack.processes[2].find("host_resumed")
    assert cli("drain", HOST, "--undo").out == f"Host {HOST} takes tasks again.\n"
    assert stack.wait_task(waiting)["status"] == "completed"
    assert cli("drain", HOST, "--undo").out == f"Host {HOST} was not drained.\n"


def test_a_paused_queue_on_a_foreign_service(make_stack: Callable[..., Stack], cli: CliHere) -> None:
    """Where the service keeps no orders Redis does: a paused queue is claimed for by nobody until it is resumed."""
    with FakeAts() as ats:
        stack = make_stack(DISPATCH_ATS_URL=ats.url, DISPATCH_LEASE_MS="8000", DISPATCH_RECONCILE_S="30")
        stack.redis.start()
        ingress = stack.start_ingress()
        stack.start_worker(1)
        use(cli, stack)
        order: Any = cli("pause", "queue", "dispatch", "--for", "1h", "--json").json
        assert 3_590_000 < order["left_ms"] <= 3_600_000
        with promised(OBEYED_S, "the pause"):
            ingress.wait_event("steering_paused")
        ident = int(ats.add(title="t", channel=stack.channel, payload={"tick": {"dir": str(stack.ticks)}})["id"])
        with pytest.raises(AssertionError):
            eventually(lambda: ats.tasks[ident]["status"] != "pending", timeout_s=1.0)
        assert cli("resume", "queue", "dispatch").out == "Queue dispatch is resumed.\n"
        eventually(lambda: ats.tasks[ident]["status"] == "completed", "the task's end")
        assert cli("resume", "queue", "dispatch").out == "Queue dispatch was not paused.\n"
