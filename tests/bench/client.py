"""The load of the benchmark: creates tasks over keep-alive connections and waits for their ends by the feed."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from dispatch.ats import protocol
from dispatch.ats.aclient import AsyncClient
from dispatch.ats.feed import Connected, Feed
from dispatch.ats.model import Actor, Event, Task, parse_task

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

ACTOR = Actor("human", "bench", "bench")


async def with_feed(url: str, channel: str, work: Callable[[AsyncClient, asyncio.Queue[Event]], Awaitable[Any]]) -> Any:
    """Run ``work`` with a client and a queue that gets every finished task of the channel."""
    where = protocol.endpoint(url)
    ends: asyncio.Queue[Event] = asyncio.Queue()
    ready = asyncio.Event()

    async def listen() -> None:
        async for item in Feed(where, ACTOR, [channel], verbs=("completed", "failed", "cancelled")).run():
            if isinstance(item, Connected):
                ready.set()
            elif isinstance(item, Event):
                ends.put_nowait(item)

    async with AsyncClient(where, ACTOR) as client:
        listener = asyncio.create_task(listen())
        try:
            await asyncio.wait_for(ready.wait(), 10)
            return await work(client, ends)
        finally:
            listener.cancel()
            await asyncio.gather(listener, return_exceptions=True)


async def pickup_ms(url: str, channel: str, count: int) -> list[float]:
    """Return, for each of ``count`` tasks one after another, create accepted -> child started, in ms.

    The child is ``date``: its answer is its own start time on the same clock.
    """

    async def work(client: AsyncClient, ends: asyncio.Queue[Event]) -> list[float]:
        found = []
        for number in range(count):
            answer = await client.send(protocol.create(f"pickup {number}", channel=channel))
            accepted_at = time.time()
            await asyncio.wait_for(ends.get(), 10)
            done: Task = parse_task(await client.send(protocol.get(parse_task(answer).id)))
            found.append((float(done.outputs[0]["response"]) - accepted_at) * 1000)
            await asyncio.sleep(0.02)  # An idle system is what is measured.
        return found

    return await with_feed(url, channel, work)


async def burst_s(url: str, channel: str, count: int, at_once: int = 8) -> float:
    """Return how long it takes from the first create to the end of the last of ``count`` tasks, in seconds."""

    async def work(client: AsyncClient, ends: asyncio.Queue[Event]) -> float:
        numbers = iter(range(count))
        began = time.perf_counter()

        async def creator() -> None:
            for number in numbers:
                await client.send(protocol.create(f"burst {number}", channel=channel))

        await asyncio.gather(*(creator() for _ in range(at_once)))
        ended = set()
        while len(ended) < count:
            event = await asyncio.wait_for(ends.get(), 60)
            if event.verb != "completed":
                raise RuntimeError(f"task {event.task_id} {event.verb}")
            ended.add(event.task_id)
        return time.perf_counter() - began

    return await with_feed(url, channel, work)


async def create_many(url: str, channel: str, count: int, at_once: int = 16) -> None:
    """Create ``count`` tasks."""
    async with AsyncClient(protocol.endpoint(url), ACTOR) as client:
        numbers = iter(range(count))

        async def creator() -> None:
            for number in numbers:
                await client.send(protocol.create(f"pending {number}", channel=channel))

        await asyncio.gather(*(creator() for _ in range(at_once)))
