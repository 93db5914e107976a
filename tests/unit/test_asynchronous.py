"""Tasks that swallow a cancellation, as ``wait_for`` and clients of Redis do now and then, end all the same."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from dispatch.asynchronous import cancel_all, end_the_rest, side_by_side


async def stubborn(swallowed: list[str], times: int = 2) -> None:
    """Wait for ever, and go on as if nothing had happened when cancelled for the first times."""
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if len(swallowed) >= times:
                raise
            swallowed.append("once more")


async def ends_when_cancelled(task: asyncio.Task[None]) -> None:
    """Cancel a task once, and wait for its end."""
    await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        async with asyncio.timeout(20):
            await task


async def test_a_cancelled_caller_leaves_nobody_behind() -> None:
    """The end of an inner group is waited for, also when whoever waits is cancelled again and again."""
    swallowed: list[str] = []
    inner = asyncio.create_task(stubborn(swallowed, 3))
    await asyncio.sleep(0)
    outer = asyncio.create_task(cancel_all([inner]))
    await asyncio.sleep(0)
    await cancel_all([outer])
    assert (inner.done(), outer.cancelled(), len(swallowed)) == (True, True, 3)


async def test_loops_side_by_side_end_together() -> None:
    """A caller that is cancelled once ends all of them, those that swallow a cancellation included."""
    swallowed: list[str] = []
    running = asyncio.create_task(side_by_side([stubborn(swallowed), stubborn([], 0)]))
    await ends_when_cancelled(running)
    assert (running.cancelled(), len(swallowed)) == (True, 2)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_the_failure_of_one_ends_the_others_and_is_told() -> None:
    """Nothing goes on half."""

    async def fails() -> None:
        raise LookupError("why")

    with pytest.raises(LookupError, match="why"):
        await side_by_side([stubborn([]), fails()])
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_nothing_is_left_for_the_end_of_the_loop() -> None:
    """What nobody waited for ends as well."""
    left = asyncio.create_task(stubborn([]))
    await asyncio.sleep(0)
    await end_the_rest()
    assert left.cancelled()
