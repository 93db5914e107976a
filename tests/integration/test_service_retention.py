"""A service with old rows: subscribers are told what they missed, and the service removes by itself."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from websockets.sync.client import connect

from dispatch.ats import protocol
from dispatch.ats.feed import Connected, Feed
from dispatch.ats.model import Actor, Event
from dispatch.core.retention import KINDS, Retention
from dispatch.service.clock import Clock
from dispatch.service.pruner import Pruner
from dispatch.service.sqlite import SqliteStore
from tests.support.processes import eventually
from tests.support.service import ServiceProcess

if TYPE_CHECKING:
    from collections.abc import Iterator

ALL = Retention(**{f"{kind}_s": 3600.0 for kind in KINDS if kind not in ("history", "tasks")})
TIMES = {
    "tasks": ("created_at", "updated_at", "entered_at", "completed_at"),
    "messages": ("created_at",),
    "events": ("created_at",),
}


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ServiceProcess]:
    """A service with a task that ended ten days ago, and has five lines on its thread; not running."""
    with ServiceProcess(tmp_path) as service:
        client = service.client()
        task = client.create()["id"]
        for number in range(5):
            client.post(f"/tasks/{task}/messages", {"parts": [{"type": "text", "content": f"{number}"}], "kind": "log"})
        client.post(f"/tasks/{task}/cancel")
        client.create()
    with contextlib.closing(sqlite3.connect(tmp_path / "tasks.db")) as raw, raw:
        for table, columns in TIMES.items():
            changed = ", ".join(f"{name} = {name} - 864000000" for name in columns)
            raw.execute(f"UPDATE {table} SET {changed}")
    yield service
    with contextlib.suppress(ProcessLookupError):
        service.stop()


def _prune(directory: Path) -> None:
    async def run() -> None:
        store = SqliteStore(directory / "tasks.db", Clock())
        await store.start()
        try:
            await Pruner(store, ALL).go_through()
        finally:
            await store.close()

    asyncio.run(run())


def _frames(url: str, since: int) -> list[Any]:
    """Subscribe and return the frames that come until a pong."""
    with connect(url.replace("http", "ws", 1) + "/ws", compression=None, proxy=None) as socket:
        socket.send(json.dumps({"type": "subscribe", "extended": True, "thin": True, "since": since}))
        found = []
        while not found or found[-1].get("type") != "task.created" or len(found) < 4:
            found.append(json.loads(socket.recv(60)))
        return found


def test_a_subscriber_that_was_away_too_long_is_told(service: ServiceProcess) -> None:
    """Behind ``subscribed`` comes a gap, then what is kept; one that missed nothing hears of no gap.

    Our own feed goes on, and its reader lists anew as after every connection.
    """
    _prune(service.directory)
    service.start()
    frames = _frames(service.url, 1)
    assert [frame["type"] for frame in frames] == ["connected", "subscribed", "gap", "task.cancelled", "task.created"]
    assert (frames[2]["seq"], frames[3]["seq"]) == (6, 7)
    frames = _frames(service.url, 6)
    assert [frame["type"] for frame in frames] == ["connected", "subscribed", "task.cancelled", "task.created"]

    async def follow() -> tuple[list[Any], int]:
        feed = Feed(protocol.endpoint(service.url), Actor("agent", "a", "a"))
        feed.last_seq = 1
        heard: list[Any] = []
        async with contextlib.aclosing(feed.run()) as items:
            async for item in items:
                heard.append(item)
                if isinstance(item, Event) and item.verb == "created":
                    return heard, feed.frames_ignored
        raise AssertionError

    heard, ignored = asyncio.run(asyncio.wait_for(follow(), 60))
    assert isinstance(heard[0], Connected)
    assert [item.verb for item in heard[1:]] == ["cancelled", "created"]
    assert ignored == 0


@pytest.mark.slow
def test_a_running_service_removes_by_itself(service: ServiceProcess) -> None:
    """Soon after its start it says how many of what it removed, without what is kept for ever; numbers go on."""
    service._settings |= {"DISPATCH_TASKS_KEEP_S": "86400", "DISPATCH_EVENTS_KEEP_S": "0"}
    service.start()
    eventually(lambda: service.process.find("old_rows_removed"), "the pruner")
    (line,) = service.process.find("old_rows_removed")
    assert line["removed"] == {"log_messages": 5, "tasks": 1}
    client = service.client()
    assert client.refused("GET", "/tasks/1")[0] == 404
    assert client.create()["id"] == 3
