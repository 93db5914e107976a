"""Reading tasks whole of which news told too little, several at a time, each once however many ask."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from dispatch.ats import protocol
from dispatch.ats.model import parse_task
from dispatch.errors import AuthenticationError, GatewayError, GatewayUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from dispatch.ats.aclient import AsyncClient
    from dispatch.ats.model import Task

WAITING_MAX: Final = 100_000
READS_AT_ONCE: Final = 8
TRIES: Final = 3
_PAUSE_S: Final = 1.0


class Looks:
    """Reads what ``add`` names, in order, and hands it to ``take``.

    What is named while it is being read is read again. When too many wait,
    more are passed over: the next reconcile names them again.
    """

    def __init__(self, client: AsyncClient, *, take: Callable[[Task], None], log: Any) -> None:
        self._client = client
        self._take = take
        self._log = log
        self._waiting: dict[str, int] = {}
        """Task id -> how often it may still be tried."""
        self._reading: set[str] = set()
        self._news = asyncio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, task_id: str) -> None:
        """Have a task read."""
        self._add(task_id, TRIES)

    def _add(self, task_id: str, tries: int) -> None:
        if len(self._waiting) < WAITING_MAX:
            self._waiting[task_id] = max(tries, self._waiting.get(task_id, 0))
            self._news.set()

    async def run(self, key_is_refused: Callable[[AuthenticationError], None]) -> None:
        """Read until cancelled."""
        async with asyncio.TaskGroup() as readers:
            for _ in range(READS_AT_ONCE):
                readers.create_task(self._read_all(key_is_refused))

    async def _read_all(self, key_is_refused: Callable[[AuthenticationError], None]) -> None:
        while True:
            task_id = next((one for one in self._waiting if one not in self._reading), None)
            if task_id is None:
                self._news.clear()
                await self._news.wait()
                continue
            tries = self._waiting.pop(task_id)
            self._reading.add(task_id)
            try:
                self._take(parse_task(await self._client.send(protocol.get(task_id))))
            except AuthenticationError as exc:
                key_is_refused(exc)
                await asyncio.sleep(_PAUSE_S)
            except GatewayUnavailableError as exc:
                self._log.warning("errand_failed", errand="look", task=task_id, reason=str(exc))
                if tries > 1:
                    self._add(task_id, tries - 1)
                await asyncio.sleep(_PAUSE_S)
            except GatewayError as exc:
                self._log.info("errand_failed", errand="look", task=task_id, reason=str(exc))
            finally:
                self._reading.discard(task_id)
                if task_id in self._waiting:
                    self._news.set()
