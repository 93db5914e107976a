"""Tells a service process what other processes committed to the PostgreSQL database they share.

A notification only says that there is something new; what it is comes from the
table, in order. So a lost one costs seconds and no event: on every connection,
and every few seconds, the table is looked at in any case. The same connection
holds the lock that says that this process is alive.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import psycopg

from dispatch.asynchronous import cancel_all
from dispatch.errors import OverloadedError
from dispatch.log import get_logger
from dispatch.service import history
from dispatch.service.strict import INTEGER_MAX

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dispatch.service.store import Store

CHANNEL: Final = "dispatch_events"
KEYS_CHANNEL: Final = "dispatch_keys"
ALIVE: Final = 0x6469_7370_0003
"""Every living service process holds this lock, shared."""
_TRY_ALONE: Final = f"SELECT pg_try_advisory_lock({ALIVE})".encode()
_NOT_ALONE_ANY_MORE: Final = f"SELECT pg_advisory_unlock({ALIVE})".encode()
_HOLD: Final = f"SELECT pg_advisory_lock_shared({ALIVE}); LISTEN {CHANNEL}; LISTEN {KEYS_CHANNEL}".encode()
_PAGE: Final = 500
_LOOK_AGAIN_S: Final = 3.0
_RETRY_S: Final = 0.5

_log: Final = get_logger("service")


class Follower:
    """Publishes on the store's bus what is in the table and was not published yet."""

    def __init__(
        self,
        store: Store,
        parameters: Mapping[str, Any],
        is_own: Callable[[int], bool],
        forget_keys: Callable[[], None],
    ) -> None:
        """``parameters`` are those of a connection; ``is_own`` knows the server process of our own writer.

        ``forget_keys`` is called when an API key was made or revoked, or may have been.
        """
        self._forget_keys = forget_keys
        self._store = store
        self._parameters = parameters
        self._is_own = is_own
        self._woken = asyncio.Event()
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> bool:
        """Connect, and follow from now on. Say whether no other process is alive. Raises psycopg.Error."""
        self._connection = connection = await self._connect()
        answer = await connection.execute(_TRY_ALONE)
        row = await answer.fetchone()
        alone = bool(row and row[0])
        await self._hold(connection)
        if alone:
            await connection.execute(_NOT_ALONE_ANY_MORE)
        self._tasks = [asyncio.create_task(self._listen(connection)), asyncio.create_task(self._follow())]
        return alone

    async def close(self) -> None:
        """Stop following."""
        await cancel_all(self._tasks)
        if self._connection is not None:
            await self._connection.close()

    def wake(self) -> None:
        """Look at the table now. Belongs to the event loop."""
        self._woken.set()

    async def _connect(self) -> psycopg.AsyncConnection[Any]:
        return await psycopg.AsyncConnection.connect(**self._parameters, autocommit=True)

    async def _hold(self, connection: psycopg.AsyncConnection[Any]) -> None:
        await connection.execute(_HOLD)

    async def _listen(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Wake up when another process notifies; connect again for as long as it takes."""
        while True:
            try:
                async for notification in connection.notifies():
                    if notification.channel == KEYS_CHANNEL:
                        self._forget_keys()
                    elif not self._is_own(notification.pid):
                        self.wake()
            except psycopg.Error as exc:
                _log.warning("notifications_lost", error=str(exc).partition("\n")[0])
            connection = await self._connect_again()
            self._forget_keys()
            self.wake()

    async def _connect_again(self) -> psycopg.AsyncConnection[Any]:
        while True:
            if self._connection is not None:
                await self._connection.close()
            await asyncio.sleep(_RETRY_S)
            try:
                self._connection = connection = await self._connect()
                await self._hold(connection)
            except psycopg.Error:
                continue
            return connection

    async def _follow(self) -> None:
        while True:
            self._woken.clear()
            try:
                await self._catch_up()
            except OverloadedError:
                await asyncio.sleep(_RETRY_S)
                continue
            except Exception:  # noqa: BLE001 - a mistake in a listener must not end the feed of this process
                _log.exception("follower_failed")
                await asyncio.sleep(_RETRY_S)
                continue
            try:
                async with asyncio.timeout(_LOOK_AGAIN_S):
                    await self._woken.wait()
            except TimeoutError:
                pass

    async def _catch_up(self) -> None:
        """Publish what is in the table after the last published event.

        While the table is read, our own writer may publish what follows without
        a gap; so what has been published meanwhile is left out.
        """
        bus = self._store.bus
        while True:
            after = bus.last_seq
            events = await self._store.read(lambda tx: history.page(tx, after, INTEGER_MAX, _PAGE))  # noqa: B023
            bus.publish([event for event in events if event.seq > bus.last_seq])
            if len(events) < _PAGE:
                return
