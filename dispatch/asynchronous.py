"""Ending for sure: asyncio tasks, and processes that are told to."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

_AGAIN_S: Final = 0.2


async def cancel_all(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks until they have ended; their outcomes are dropped.

    Once is not enough: until Python 3.12 a ``wait_for`` whose time is up at that
    very moment swallows the cancellation, and a process that counts on one would
    wait for ever at its end. A caller that is itself cancelled meanwhile hears of
    it when they have ended.
    """
    told = set(tasks)
    pending = {task for task in told if not task.done()}
    interrupted: asyncio.CancelledError | None = None
    while pending:
        for task in pending:
            task.cancel()
        try:
            await asyncio.wait(pending, timeout=_AGAIN_S)
        except asyncio.CancelledError as exc:
            interrupted = exc
        pending = {task for task in pending if not task.done()}
    for task in told:
        if not task.cancelled():
            task.exception()  # asked for, so that nobody complains that it was not
    if interrupted is not None:
        raise interrupted


async def side_by_side(loops: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run what never ends, until one of them fails or the caller is cancelled; then all of them have ended.

    One that swallows a cancellation is left running by ``asyncio.gather``, and a
    ``TaskGroup`` waits for it for ever.
    """
    tasks = [asyncio.create_task(loop) for loop in loops]
    try:
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            task.result()
    finally:
        await cancel_all(tasks)


async def end_the_rest() -> None:
    """Cancel every other task of the running loop until it has ended: the last thing that a process does in its loop.

    What ``asyncio.run`` does afterwards cancels once, and then waits for ever for whoever swallowed it.
    """
    await cancel_all(asyncio.all_tasks() - {asyncio.current_task()})


def on_stop(stop: Callable[[], None], hang_up: Callable[[], None] | None = None) -> None:
    """Call ``stop`` in the running loop for each SIGTERM and SIGINT, and ``hang_up`` (default: ``stop``) for SIGHUP.

    A terminal that is closed, or an ssh connection that is lost, sends SIGHUP, often twice: what was started there
    drains. Under nohup it stays ignored.
    """
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        loop.add_signal_handler(signal.SIGHUP, hang_up or stop)
