"""``dispatch retry`` as an operator types it."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dispatch.ats.fences import attempts_key
from tests.support.cli import CliHere
from tests.support.fake_ats import FakeAts
from tests.support.service import ServiceProcess

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.redis import RedisServer
    from tests.support.service import Client


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> CliHere:
    """Commands in this process."""
    return CliHere(monkeypatch, capfd, tmp_path)


@pytest.fixture
def worker(cli: CliHere, short_dir: Path) -> Iterator[Client]:
    """Somebody who does tasks of a service that the commands are about."""
    with ServiceProcess(short_dir, DISPATCH_REGRANT_DELAY_S="600") as service:
        cli.env(DISPATCH_ATS_URL=service.url)
        yield service.client()


def begin(worker: Client, **fields: Any) -> tuple[int, int]:
    """Create a task and begin an attempt of it; return its number and its token."""
    task = worker.create(**fields)["id"]
    token = worker.post(f"/tasks/{task}/claim", {"claim_id": "c"})["lease"]["fencing_token"]
    worker.post(f"/tasks/{task}/start", {"fencing_token": token, "runner": "r"})
    return task, token


def test_retry_offers_what_ended_badly_and_what_pauses(cli: CliHere, worker: Client) -> None:
    """Failed and cancelled: counters back. Pausing: at once, attempts kept. Taken from its holder: the rest stays."""
    failed, token = begin(worker)
    worker.post(f"/tasks/{failed}/fail", {"fencing_token": token, "reason": "x"})
    cancelled = worker.create()["id"]
    worker.post(f"/tasks/{cancelled}/cancel")
    pausing, token = begin(worker)
    rest = {"fencing_token": token, "counted": True, "delay_ms": 600_000, "reason": "exit 1"}
    worker.post(f"/tasks/{pausing}/release", rest)
    taken, _ = begin(worker)
    assert cli("move", str(taken), "todo").code == 0
    ended = cli("retry", *map(str, (failed, cancelled, pausing, taken)))
    assert ended.code == 0, ended.err
    tasks = [worker.get(f"/tasks/{ident}")["task"] for ident in (failed, cancelled, pausing, taken)]
    assert [task["status"] for task in tasks] == ["pending"] * 4
    assert [task["attempts"] for task in tasks] == [0, 0, 1, 0]
    assert [task["not_before"] is None for task in tasks] == [True, True, True, False]
    worker.post(f"/tasks/{pausing}/claim")
    refused = cli("retry", str(pausing), "99")
    assert refused.code == 1
    assert f"Task {pausing} is in_progress: there is nothing to retry.\n" in refused.err
    assert "There is no task 99." in refused.err


def test_retry_of_many_says_how_many(cli: CliHere, worker: Client) -> None:
    """All failed tasks of one channel and no others; without a channel nothing happens."""
    ids = []
    for channel in ("a", "a", "b"):
        task, token = begin(worker, channel=channel)
        worker.post(f"/tasks/{task}/fail", {"fencing_token": token})
        ids.append(task)
    assert cli("retry", "--failed").code == 2
    assert cli("retry").code == 2
    ended = cli("retry", "--failed", "--channel", "a")
    assert (ended.code, ended.err) == (0, "2 of 2 failed tasks are offered again.\n")
    assert [worker.get(f"/tasks/{ident}")["task"]["status"] for ident in ids] == ["pending", "pending", "failed"]
    assert cli("retry", "--failed", "--channel", "a", "--json").out == ""


def test_retry_on_a_foreign_service_sets_the_counts_in_redis_back(cli: CliHere, redis_server: RedisServer) -> None:
    """The fleet counts attempts in Redis there: without setting them back the task would be poison at once."""
    with FakeAts() as ats, closing(redis_server.client()) as client:
        cli.env(DISPATCH_ATS_URL=ats.url, DISPATCH_REDIS_URL=redis_server.url)
        task = ats.add(status="failed")["id"]
        client.set(attempts_key(ats.url, str(task)), 3)
        assert cli("retry", str(task)).out == f"Task {task} is offered again.\n"
        assert client.get(attempts_key(ats.url, str(task))) is None
        assert ats.tasks[int(task)]["status"] == "pending"
