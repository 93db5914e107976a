"""Ending tool calls before their time."""

from __future__ import annotations

import asyncio

import pytest

from dispatch.errors import OverloadedError
from dispatch.service.body import GoneError
from dispatch.service.calls import STOP_GRACE_S, Calls, CancelledByClientError, while_connected

KEY = ("session", 7)


async def begun(calls: Calls, key: tuple[str, str | int] | None, work_s: float = 60) -> asyncio.Task[str]:
    """Begin a call that takes a while."""
    started = asyncio.Event()

    async def work() -> str:
        async with calls.running(key):
            started.set()
            await asyncio.sleep(work_s)
        return "done"

    task = asyncio.create_task(work())
    await started.wait()
    return task


async def test_a_cancel_ends_the_call_with_that_key_only() -> None:
    """Other keys of the same session, the same id as text, and calls without a key go on; twice is as good as once."""
    calls = Calls()
    meant, *others = [await begun(calls, key) for key in (KEY, ("session", 8), ("session", "7"), None)]
    calls.cancel(KEY)
    calls.cancel(KEY)
    await asyncio.sleep(0)
    calls.cancel(KEY)
    with pytest.raises(CancelledByClientError):
        await meant
    assert not any(task.done() for task in others)
    calls.cancel(KEY)
    for task in others:
        task.cancel()
    await asyncio.wait(others)
    await asyncio.wait_for(calls.wait_idle(), 60)


async def test_a_stop_lets_short_calls_end_and_tells_the_others() -> None:
    """What ends within the grace has its result; what waits is UNAVAILABLE; what comes then is refused."""
    calls = Calls()
    short, long = await begun(calls, None, STOP_GRACE_S / 5), await begun(calls, KEY)
    calls.stop()
    assert await short == "done"
    with pytest.raises(OverloadedError, match="stopping"):
        await long
    with pytest.raises(OverloadedError):
        async with calls.running(None):
            raise AssertionError


async def test_a_time_out_of_the_tool_stays_one() -> None:
    """TimeoutError from inside is not taken for ours, and a cancelled task is cancelled."""
    calls = Calls()
    with pytest.raises(TimeoutError):
        async with calls.running(KEY):
            raise TimeoutError
    task = await begun(calls, KEY)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_work_ends_with_the_connection() -> None:
    """The work's result or error comes through; a client that goes away cancels it."""
    never: asyncio.Future[dict[str, str]] = asyncio.get_running_loop().create_future()

    async def stays() -> dict[str, str]:
        return await asyncio.shield(never)

    messages = [{"type": "http.disconnect"}, {"type": "http.request"}]

    async def leaves() -> dict[str, str]:
        return messages.pop()

    async def fails() -> str:
        raise ValueError

    assert await while_connected(stays, asyncio.sleep(0, "done")) == "done"
    with pytest.raises(ValueError):  # noqa: PT011 - it has no text
        await while_connected(stays, fails())
    ended = asyncio.Event()

    async def waits() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    with pytest.raises(GoneError):
        await while_connected(leaves, waits())
    assert ended.is_set()
    never.cancel()
