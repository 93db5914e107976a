"""Tells the store who listens to this process, whenever that changes and often enough to stay believed."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from typing import TYPE_CHECKING, Final

from dispatch.asynchronous import cancel_all
from dispatch.errors import OverloadedError
from dispatch.service import listeners

if TYPE_CHECKING:
    from dispatch.service.feed import Feed
    from dispatch.service.store import Store

_PAUSE_S: Final = 0.2
"""Many who come at once are one change."""
_AGAIN_S: Final = listeners.STALE_MS / 1000 / 3


class Audience:
    """Reports the executors of a feed until it is closed."""

    def __init__(self, store: Store, feed: Feed) -> None:
        self._store = store
        self._feed = feed
        self._process = str(uuid.uuid4())
        self._told: dict[str, int] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to report."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop, and say that nobody listens here any more."""
        if self._task is not None:
            await cancel_all([self._task])
        if self._told:
            with contextlib.suppress(OverloadedError):
                await self._store.write(lambda tx: listeners.report(tx, self._process, {}))

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_AGAIN_S):
                    await self._feed.changed.wait()
                    await asyncio.sleep(_PAUSE_S)
            changed = self._feed.changed.is_set()
            self._feed.changed.clear()
            counts = dict(self._feed.executors())
            # Without executors there is nothing to keep alive; with the same ones only their time.
            if counts == self._told and (changed or not counts):
                continue
            with contextlib.suppress(OverloadedError):
                await self._store.write(lambda tx: listeners.report(tx, self._process, counts))  # noqa: B023
                self._told = counts
