"""Takes leases back when they have run out: one exact timer.

On a database that several services share, the leases that the others granted
are looked for every few seconds as well: one of them may have died.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from dispatch.asynchronous import cancel_all
from dispatch.errors import OverloadedError
from dispatch.log import get_logger
from dispatch.service import lapse

if TYPE_CHECKING:
    from dispatch.service.store import Store

_RETRY_S: Final = 1.0
_LONGEST_S: Final = 3600.0
_LOOK_AGAIN_S: Final = 5.0
_log: Final = get_logger("service")


class Expiry:
    """Sleeps until the first lease may be granted anew, takes it back, and sleeps again."""

    def __init__(self, store: Store, regrant_delay_ms: int) -> None:
        self._store = store
        self._delay_ms = regrant_delay_ms
        self._longest_s = _LOOK_AGAIN_S if store.is_shared else _LONGEST_S
        self._next_ms: int | None = None
        self._earlier = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Extend every live lease if nobody could renew because no service ran; then watch."""
        if self._store.is_alone:
            extended = await self._store.write(lapse.extend_all)
            if extended:
                _log.info("leases_extended", leases=extended)
        self._next_ms = await self._store.read(lapse.next_expiry)
        self._store.on_lease = self._notice
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop watching."""
        if self._task is not None:
            await cancel_all([self._task])

    def _notice(self, expires_ms: int) -> None:
        """Wake up when a lease that was just granted or renewed is the first to run out."""
        if self._next_ms is None or expires_ms < self._next_ms:
            self._next_ms = expires_ms
            self._earlier.set()

    async def _run(self) -> None:
        while True:
            self._earlier.clear()
            wait_s = self._longest_s
            if self._next_ms is not None:
                wait_s = min(wait_s, (self._next_ms + self._delay_ms - self._store.clock.now_ms()) / 1000)
            try:
                async with asyncio.timeout(max(0.0, wait_s)):
                    await self._earlier.wait()
                continue
            except TimeoutError:
                pass
            try:
                await self._take_back()
            except OverloadedError:
                await asyncio.sleep(_RETRY_S)
                self._next_ms = 0  # which is past, so that it is tried again

    async def _take_back(self) -> None:
        # A lease that was renewed moves the next expiry without a write.
        self._next_ms = None
        upcoming = await self._store.read(lapse.next_expiry)
        if upcoming is not None and upcoming + self._delay_ms <= self._store.clock.now_ms():
            upcoming = await self._store.write(lambda tx: lapse.expire(tx, self._delay_ms))
        if upcoming is not None:
            self._notice(upcoming)
