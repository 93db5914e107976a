"""Graphs: how soon a dependent starts, how fast a failure cascades, what a large graph costs the ingress."""

from __future__ import annotations

import asyncio
import statistics
import time
import uuid
from datetime import datetime
from typing import TYPE_CHECKING, Any

from dispatch.ats import protocol
from dispatch.ats.client import Client
from dispatch.ats.model import Actor, parse_task
from tests.bench import client
from tests.support.fake_ats import FakeAts
from tests.support.processes import eventually
from tests.support.stack import Stack

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ACTOR = Actor("human", "bench", "bench")
GRAPH_MAX = 255
"""How many dependents one call of create_graph makes."""
CASCADE_S = 120.0


def measure_dependents(defaults: Mapping[str, str], count: int) -> dict[str, float]:
    """From a task's completion, by the service's clock, to its dependent's first act, in ms, on an idle system."""
    stack = Stack({**defaults, "DISPATCH_COMMAND": "/bin/date +%s.%N"})
    try:
        stack.start(slots=2)
        found = sorted(asyncio.run(_pairs_ms(stack.url, stack.channel, count)))
    finally:
        stack.close()
    return {"dependent_p50_ms": statistics.median(found), "dependent_p99_ms": found[int(len(found) * 0.99) - 1]}


async def _pairs_ms(url: str, channel: str, count: int) -> list[float]:
    async def work(ats: Any, ends: asyncio.Queue[Any]) -> list[float]:
        found = []
        for number in range(count):
            # The first is held back until the second waits for it.
            first = parse_task(await ats.send(protocol.create(f"first {number}", channel="not-yet")))
            waits = {"depends_on": [first.id]}
            second = parse_task(await ats.send(protocol.create(f"second {number}", channel=channel, payload=waits)))
            await asyncio.sleep(0.05)  # An idle system is what is measured.
            await ats.send(protocol.patch(first.id, channel=channel))
            for _ in range(2):
                await asyncio.wait_for(ends.get(), 40)
            done = [parse_task(await ats.send(protocol.get(task.id))) for task in (first, second)]
            completed_at = datetime.fromisoformat(done[0].raw["completed_at"]).timestamp()
            found.append((float(done[1].outputs[0]["response"]) - completed_at) * 1000)
        return found

    found: list[float] = await client.with_feed(url, channel, work)
    return found


def measure_cascade(
    defaults: Mapping[str, str], count: int, pss_mb: Callable[[int], float], *, deep: bool
) -> dict[str, float]:
    """A root with ``count`` tasks behind it fails: until the last of them is failed, and what they cost the ingress.

    All of them need the root, or, if ``deep``, each the one before it.
    """
    stack = Stack({**defaults, "DISPATCH_COMMAND": "/bin/false", "DISPATCH_MAX_ATTEMPTS": "1"})
    try:
        stack.redis.start()
        stack.start_service()
        ats = Client(protocol.endpoint(stack.url), ACTOR)
        root = parse_task(ats.send(protocol.create("root", channel="not-yet")))
        ingress = stack.start_ingress()
        before = pss_mb(ingress.pid)
        began = time.perf_counter()
        _create_behind(ats, root.uuid, stack.channel, count, deep=deep)
        created_s = time.perf_counter() - began
        stack.start_worker(2)
        after = pss_mb(ingress.pid)
        began = time.perf_counter()
        ats.send(protocol.patch(root.id, channel=stack.channel))
        left = protocol.list_tasks(channel=stack.channel, status="pending", fields="id", limit=1)
        # Counting all tasks in each state would take the service's time; that is done once, at the end.
        eventually(lambda: not ats.send(left)["tasks"], "the end of the cascade", timeout_s=CASCADE_S)
        took_s = time.perf_counter() - began
        assert ats.send(protocol.Request("GET", "/tasks/stats"))["stats"]["by_status"] == {"failed": count + 1}
        ats.close()
    finally:
        stack.close()
    if deep:
        return {"deep_created_s": created_s, "deep_cascade_s": took_s, "deep_graph_mb": after - before}
    return {"cascade": count, "created_s": created_s, "cascade_s": took_s, "graph_mb": after - before}


def _create_behind(ats: Client, root: str, channel: str, count: int, *, deep: bool) -> None:
    """Create tasks behind a root, in as few calls as may be."""
    last = root
    for start in range(0, count, GRAPH_MAX):
        numbers = range(start, min(start + GRAPH_MAX, count))
        plans = [
            {
                "ref": f"t{n}",
                "title": f"t{n}",
                "status": "todo",
                "channel": channel,
                "depends_on": [root if not deep else last if n == start else f"t{n - 1}"],
            }
            for n in numbers
        ]
        where = {"project_key": "main", "run_id": str(uuid.uuid4()), "tasks": plans}
        last = ats.send(protocol.tool("create_graph", where))["tasks"][-1]["task_id"]


def measure_foreign_cascade(defaults: Mapping[str, str], count: int) -> dict[str, float]:
    """The same against an ATS that is not ours: one call or more a task."""
    with FakeAts() as fake:
        stack = Stack(
            {**defaults, "DISPATCH_ATS_URL": fake.url, "DISPATCH_COMMAND": "/bin/false", "DISPATCH_MAX_ATTEMPTS": "1"}
        )
        try:
            stack.redis.start()
            stack.start_ingress()
            stack.start_worker(2)
            ats = Client(protocol.endpoint(fake.url), ACTOR)
            root = parse_task(ats.send(protocol.create("root", channel="not-yet")))
            for n in range(count):
                waits = {"depends_on": [root.id]}
                ats.send(protocol.create(f"t{n}", channel=stack.channel, payload=waits))
            began = time.perf_counter()
            ats.send(protocol.patch(root.id, channel=stack.channel))

            def failed() -> int:
                return sum(task["status"] == "failed" for task in list(fake.tasks.values()))

            eventually(lambda: failed() > count, "the end of the cascade", timeout_s=CASCADE_S)
            took_s = time.perf_counter() - began
            ats.close()
        finally:
            stack.close()
    return {"foreign_cascade_s": took_s}
