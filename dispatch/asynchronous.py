"""Ending asyncio tasks for sure."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

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
