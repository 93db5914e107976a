"""The service as a process: killed, restarted, told to stop, refused its port or its disk."""

from __future__ import annotations

import asyncio
import http.client
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from dispatch.ats.model import Actor
from dispatch.errors import ConfigurationError, NoAddressError, OverloadedError
from dispatch.service import tasks, tenants
from dispatch.service.clock import Clock
from dispatch.service.server import listen, run
from dispatch.service.sqlite import SqliteStore
from dispatch.settings import load
from tests.support.processes import ROOT, eventually
from tests.support.redis import free_port
from tests.support.service import Client, ServiceProcess

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ServiceProcess]:
    """A service of its own."""
    running = ServiceProcess(tmp_path).start()
    yield running
    running.stop()


def _churn(url: str, number: int, acknowledged: dict[int, tuple[str, int]], stop: threading.Event) -> None:
    """Create, claim and complete without pause; note each answer when it has come."""
    client = Client(url, f"churner-{number}")
    try:
        while not stop.is_set():
            ref = client.create()["id"]
            acknowledged[ref] = ("pending", 0)
            client.post(f"/tasks/{ref}/claim", {"claim_id": "c"})
            acknowledged[ref] = ("in_progress", 1)
            client.post(f"/tasks/{ref}/complete", {"outputs": [ref], "fencing_token": 1})
            acknowledged[ref] = ("completed", 1)
    except (OSError, http.client.HTTPException):
        pass
    finally:
        client.close()


def test_kill_9_loses_nothing_that_was_acknowledged(service: ServiceProcess) -> None:
    """Killed three times under load: every transition that was answered is there, and no later than one step behind."""
    order = ["pending", "in_progress", "completed"]
    acknowledged: dict[int, tuple[str, int]] = {}
    for _ in range(3):
        stop = threading.Event()
        count = len(acknowledged)
        threads = [threading.Thread(target=_churn, args=(service.url, n, acknowledged, stop)) for n in range(4)]
        for thread in threads:
            thread.start()
        eventually(lambda count=count: len(acknowledged) > count + 60)
        service.kill()
        stop.set()
        for thread in threads:
            thread.join()
        service.start()
        client = service.client()
        for ref, (word, token) in acknowledged.items():
            task = client.get(f"/tasks/{ref}?fields=status,fencing_token,outputs")["task"]
            behind = order.index(task["status"]) - order.index(word)
            assert behind in (0, 1), (ref, word, task)
            assert task["fencing_token"] - token in (0, 1)
            assert (task["outputs"] == [ref]) == (task["status"] == "completed")


def test_lost_answers_are_found_again(service: ServiceProcess) -> None:
    """Whoever did not see the answer of claim, start or complete repeats the call, also across a kill."""
    client = service.client()
    path = f"/tasks/{client.create()['id']}"
    calls = [
        ("claim", {"claim_id": "x", "lease_duration": 60_000}),
        ("start", {"fencing_token": 1, "runner": "r"}),
        ("complete", {"fencing_token": 1, "outputs": ["done"]}),
    ]
    for verb, body in calls:
        first = client.post(f"{path}/{verb}", body)["task"]
        service.kill()
        service.start()
        client = service.client()
        again = client.post(f"{path}/{verb}", body)["task"]
        kept = ("status", "fencing_token", "attempts", "runner", "outputs")
        assert [again[key] for key in kept] == [first[key] for key in kept]
    assert client.refused("POST", f"{path}/complete", {"fencing_token": 1, "outputs": ["other"]})[0] == 409


def test_a_restart_extends_every_lease(tmp_path: Path) -> None:
    """A lease that ran out while the service was down is whole again after its start, then expires in its time."""
    with ServiceProcess(tmp_path, DISPATCH_REGRANT_DELAY_S="0") as service:
        client = service.client()
        ref = client.create()["id"]
        granted = client.post(f"/tasks/{ref}/claim", {"lease_duration": 2_500})
        service.kill()
        time.sleep(2.6)  # longer than the lease: what is tested is what this time must not do
        service.start()
        client = service.client()
        task = client.get(f"/tasks/{ref}")["task"]
        assert (task["status"], task["fencing_token"]) == ("in_progress", granted["lease"]["fencing_token"])
        client.post(f"/tasks/{ref}/start", {"fencing_token": 1, "runner": "r"})
        eventually(lambda: client.get(f"/tasks/{ref}")["task"]["status"] == "pending")
        task = client.get(f"/tasks/{ref}")["task"]
        assert (task["attempts"], task["lease_losses"]) == (0, 1)
        assert client.post(f"/tasks/{ref}/claim", {})["lease"]["fencing_token"] == 2
        assert service.stop() == 0


def _run(tmp_path: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "DISPATCH_DATA_DIR": str(tmp_path), **settings}
    return subprocess.run(
        [sys.executable, "-m", "dispatch.service"], env=env, capture_output=True, text=True, timeout=60, check=False
    )


def test_what_cannot_start_says_why(service: ServiceProcess, tmp_path: Path) -> None:
    """A taken port, a taken database, a public address and a foreign database URL are one sentence and exit 78."""
    ended = _run(tmp_path, DISPATCH_BIND=service.url.removeprefix("http://"))
    assert ended.returncode == 78, ended
    assert "Address already in use" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    own = {"DISPATCH_CONFIG": "/dev/null", "DISPATCH_DATA_DIR": str(tmp_path)}
    for settings, word in (
        ({"DISPATCH_BIND": "127.0.0.1:0"}, "Another task service"),
        ({"DISPATCH_BIND": "0.0.0.0:0"}, "loopback only"),
        ({"DISPATCH_BIND": "127.0.0.1"}, "host:port"),
        ({"DISPATCH_BIND": "127.0.0.1:0", "DISPATCH_DATABASE_URL": "mysql://x/y"}, "sqlite:///"),
        ({"DISPATCH_BIND": "127.0.0.1:0", "DISPATCH_DATABASE_URL": "sqlite:////proc/x/y.db"}, "cannot be opened"),
    ):
        with pytest.raises(ConfigurationError, match=word) as caught:
            asyncio.run(run(load(own | settings)))
        assert caught.value.exit_code == 78
        assert len(str(caught.value).splitlines()) == 1


def test_what_passes_by_itself_is_no_wrong_setting(tmp_path: Path) -> None:
    """A database that is not up yet and an address that the network has not brought yet: exit 69 and 75.

    Units start again after these, and not after 78: a reboot must not leave the service down for good.
    """
    away = f"postgresql://dispatch:hunter2@127.0.0.1:{free_port()}/dispatch"
    ended = _run(tmp_path, DISPATCH_BIND="127.0.0.1:0", DISPATCH_DATABASE_URL=away)
    assert (ended.returncode, "does not answer" in ended.stderr) == (69, True), ended
    assert "hunter2" not in ended.stderr
    with pytest.raises(NoAddressError, match="not up yet") as caught:
        listen("192.0.2.1:0")
    assert caught.value.exit_code == 75


@pytest.mark.parametrize("bind", ["localhost:0", "[::1]:0", "127.0.0.2:0"])
def test_every_loopback_address_can_be_used(bind: str) -> None:
    """By name, IPv6 where the machine has it, and the rest of 127/8."""
    if bind == "[::1]:0" and not Path("/proc/net/if_inet6").read_text():
        with pytest.raises(ConfigurationError):
            listen(bind)
    else:
        listen(bind).close()


@pytest.fixture
def actor() -> Actor:
    """Somebody."""
    return Actor("agent", "a", "A")


async def test_a_full_disk_is_503_and_passes(tmp_path: Path, actor: Actor) -> None:
    """When the disk is full nothing is half written; when there is room again the same call succeeds."""
    store = SqliteStore(tmp_path / "tasks.db", Clock())
    await store.start()
    try:
        await store.write(tenants.ensure_default)
        new = tasks.NewTask("big", payload='"' + "x" * 200_000 + '"')

        def limit(pages: str) -> Any:
            return store.write(lambda tx: tx.one(text(f"PRAGMA max_page_count = {pages}")))

        pages = await store.write(lambda tx: tx.one(text("PRAGMA page_count")))
        await limit(str(pages[0]))
        with pytest.raises(OverloadedError, match="full"):
            await store.write(lambda tx: tasks.create(tx, None, actor, new))
        assert (await store.read(tasks.stats))["total"] == 0
        await limit("1000000")
        await store.write(lambda tx: tasks.create(tx, None, actor, new))
        assert (await store.read(tasks.stats))["total"] == 1
    finally:
        await store.close()


async def test_a_locked_database_is_503_and_passes(tmp_path: Path, actor: Actor) -> None:
    """While another program locks the file, writes are refused and reads go on."""
    store = SqliteStore(tmp_path / "tasks.db", Clock(), busy_ms=50)
    await store.start()
    try:
        await store.write(tenants.ensure_default)
        new = tasks.NewTask("t")
        with store._engine.connect() as other:
            other.exec_driver_sql("BEGIN IMMEDIATE")
            with pytest.raises(OverloadedError, match="locked"):
                await store.write(lambda tx: tasks.create(tx, None, actor, new))
            assert (await store.read(tasks.stats))["total"] == 0
            other.exec_driver_sql("ROLLBACK")
        await store.write(lambda tx: tasks.create(tx, None, actor, new))
    finally:
        await store.close()
    with pytest.raises(OverloadedError):
        await store.write(tenants.ensure_default)


async def test_durability_is_what_was_promised(tmp_path: Path) -> None:
    """The writer runs in WAL with synchronous=FULL and foreign keys on."""
    store = SqliteStore(tmp_path / "tasks.db", Clock())
    await store.start()
    try:
        for pragma, value in (("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1)):
            row = await store.write(lambda tx, pragma=pragma: tx.one(text(f"PRAGMA {pragma}")))
            assert row[0] == value
    finally:
        await store.close()


def test_the_clock_ignores_steps_of_the_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the clock was made, the machine's wall clock may jump by hours: the service's time goes on evenly."""
    clock = Clock()
    before = clock.now_ms()
    real = time.time_ns
    for hours in (-1, 1):
        monkeypatch.setattr(time, "time_ns", lambda hours=hours: real() + hours * 3_600_000_000_000)
        assert 0 <= clock.now_ms() - before < 60_000
