"""What follows from news but must not hold up the handling of the next: reading a task, waking its runner."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import RedisError

from dispatch.asynchronous import side_by_side
from dispatch.ats import protocol
from dispatch.ats.model import parse_task
from dispatch.errors import AuthenticationError, GatewayError, GatewayUnavailableError
from dispatch.ingress.claims import LIST_FIELDS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dispatch.ats.aclient import AsyncClient
    from dispatch.ats.model import Task
    from dispatch.ingress.redis_view import RedisView

WAITING_MAX: Final = 100_000
WAKES_WAITING_MAX: Final = 1_000
READS_AT_ONCE: Final = 8
TRIES: Final = 3
_PAUSE_S: Final = 1.0
LOOK_FIELDS: Final = (*LIST_FIELDS.split(","), "uuid", "payload", "created_at", "depends_on", "sealed")
"""What a look at a task of our own service asks for: all but thread, texts and results."""


class Looks:
    """Reads whole tasks of which news told too little: what ``add`` names, in order, is handed to ``take``.

    Several at a time, each once however many ask. What is named while it is being read is read again. When too many
    wait, more are passed over: the next reconcile names them again.
    """

    def __init__(
        self,
        client: AsyncClient,
        *,
        take: Callable[[Task], None],
        key_is_refused: Callable[[AuthenticationError], None],
        log: Any,
        fields: Sequence[str] = (),
    ) -> None:
        """``fields``: what to ask for; everything when empty."""
        self._client = client
        self._fields = fields
        self._take = take
        self._key_is_refused = key_is_refused
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

    async def read(self, task_id: str) -> Task:
        """Return a task with its payload. Raises the GatewayError family."""
        return parse_task(await self._client.send(protocol.get(task_id, fields=self._fields)), keep_raw=False)

    def _add(self, task_id: str, tries: int) -> None:
        if len(self._waiting) < WAITING_MAX:
            self._waiting[task_id] = max(tries, self._waiting.get(task_id, 0))
            self._news.set()

    async def run(self) -> None:
        """Read until cancelled."""
        await side_by_side(self._read_all() for _ in range(READS_AT_ONCE))

    async def _read_all(self) -> None:
        while True:
            task_id = next((one for one in self._waiting if one not in self._reading), None)
            if task_id is None:
                self._news.clear()
                await self._news.wait()
                continue
            tries = self._waiting.pop(task_id)
            self._reading.add(task_id)
            try:
                self._take(await self.read(task_id))
            except AuthenticationError as exc:
                self._key_is_refused(exc)
                await asyncio.sleep(_PAUSE_S)
            except GatewayUnavailableError as exc:
                self._log.warning("errand_failed", errand="look", task=task_id, reason=str(exc))
                if tries > 1:
                    self._add(task_id, tries - 1)
                await asyncio.sleep(_PAUSE_S)
            except GatewayError as exc:
                self._log.warning("errand_failed", errand="look", task=task_id, reason=str(exc))
            finally:
                self._reading.discard(task_id)
                if task_id in self._waiting:
                    self._news.set()


class Wakes:
    """Wakes the runners of the tasks that ``add`` names. Dropped when too many wait: their renewals tell them too."""

    def __init__(self, view: RedisView, *, log: Any) -> None:
        self._view = view
        self._log = log
        self._waiting: asyncio.Queue[str] = asyncio.Queue(WAKES_WAITING_MAX)

    def add(self, task_id: str) -> None:
        """Have the runner of a task woken."""
        with contextlib.suppress(asyncio.QueueFull):
            self._waiting.put_nowait(task_id)

    async def run(self) -> None:
        """Wake until cancelled."""
        while True:
            task_id = await self._waiting.get()
            try:
                await self._view.wake(task_id)
            except (RedisError, OSError) as exc:
                self._log.warning("errand_failed", errand="wake", task=task_id, reason=str(exc))
