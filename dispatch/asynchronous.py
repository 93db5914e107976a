"""Ending for sure: asyncio tasks, and processes that are told to."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_AGAIN_S: Final = 0.2


async def cancel_all(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks until they have ended; their outcomes are dropped.

    Once is not enough: until Python 3.12 a ``wait_for`` whose time is up at that
    very moment swallows the cancellation, and a process that counts on one would
    wait for ever at its end.
    """
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_AGAIN_S)


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
