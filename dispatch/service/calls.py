"""The tool calls that run in this process, so that they can be ended before their time.

A tool may wait for minutes: for a task to claim, for a message. The wait ends
early when the client takes the call back, when the client is gone, and when the
service stops.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final, TypeVar

from dispatch.asynchronous import cancel_all
from dispatch.errors import OverloadedError
from dispatch.log import get_logger
from dispatch.service.body import GoneError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine
    from typing import Any

    from starlette.types import Receive

T = TypeVar("T")

STOP_GRACE_S: Final = 0.5
"""How long a call that runs when the service stops may go on: enough for all that do not wait for something."""

_log: Final = get_logger("service")

Key = tuple[str, str | int]
"""Session and request id: what a client names a call by when it cancels it."""


class CancelledByClientError(Exception):
    """The client took the call back."""


class Calls:
    """Knows what runs. Used from one event loop."""

    def __init__(self) -> None:
        self._running: dict[asyncio.Timeout, Key | None] = {}
        self._cancelled: set[asyncio.Timeout] = set()
        self._is_stopping = False
        self._idle = asyncio.Event()
        self._idle.set()

    async def wait_idle(self) -> None:
        """Wait until nothing runs."""
        await self._idle.wait()

    @contextlib.asynccontextmanager
    async def running(self, key: Key | None) -> AsyncIterator[None]:
        """Run a call inside. ``key`` names it for ``cancel``; None means that nobody can.

        Raises CancelledByClientError when it was cancelled, OverloadedError when the process stops.
        """
        if self._is_stopping:
            raise _stopping()
        # A limit without a time: a cancel puts it to now.
        limit = asyncio.timeout(None)
        try:
            async with limit:
                self._running[limit] = key
                self._idle.clear()
                try:
                    yield
                finally:
                    del self._running[limit]
                    if not self._running:
                        self._idle.set()
        except TimeoutError:
            if not limit.expired():
                raise
            if limit in self._cancelled:
                _log.debug("call_cancelled")
                raise CancelledByClientError from None
            raise _stopping() from None
        except (asyncio.CancelledError, GoneError):
            _log.debug("call_cancelled")
            raise
        finally:
            self._cancelled.discard(limit)

    def cancel(self, key: Key) -> None:
        """Cancel the call with this key, if it runs here."""
        for limit, name in self._running.items():
            if name == key:
                self._cancelled.add(limit)
                _end_in(limit, 0.0)

    def stop(self) -> None:
        """Refuse new calls, and end what still runs after STOP_GRACE_S with an answer."""
        self._is_stopping = True
        for limit in self._running:
            _end_in(limit, STOP_GRACE_S)


def _end_in(limit: asyncio.Timeout, delay_s: float) -> None:
    if not limit.expired():
        limit.reschedule(asyncio.get_running_loop().time() + delay_s)


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Do ``work`` and return its result. Cancels it and raises GoneError when the client goes away.

    The request's body must have been read from ``receive`` before.
    """
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise GoneError
        return working.result()
    finally:
        await cancel_all([working, leaving])


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _stopping() -> OverloadedError:
    return OverloadedError(
        "The service is stopping.", next_step="Make the same call again in some seconds, when it has started again."
    )
