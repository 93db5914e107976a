"""Reading what became of dependencies that no event told of: many at once from our own service, else one by one."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from dispatch.ats import answers, protocol
from dispatch.ats.model import parse_task
from dispatch.core.dependencies import UUID
from dispatch.core.graph import MISSING, is_settled
from dispatch.core.lifecycle import ATS_WORD, Status
from dispatch.errors import GatewayRejectedError
from dispatch.ingress.intake import PENDING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from dispatch.ats.aclient import AsyncClient
    from dispatch.ats.model import Task

_READS_AT_ONCE: Final = 8
_WATCHED_MAX: Final = 200
_BEHIND_MAX: Final = 10_000
_FIELDS: Final = "id,channel,status,depends_on,sealed,updated_at"
_PUT_ASIDE: Final = frozenset({ATS_WORD[Status.BACKLOG], ATS_WORD[Status.BLOCKED]})


class Dependencies:
    """Reads states. ``at_once`` is how many ids one ``read`` may have.

    ``announced`` says that the service knows dependencies itself. A dependency
    that does not exist is believed missing only when it still does not exist
    ``missing_after_s`` later: it may be created after its dependents.
    ``found(id, ids)`` hears what dependencies that are not begun need themselves,
    where no event tells us: on other channels, and while they are put aside;
    ``needs_of`` finds it out of a whole task. A circle may lead through several fleets.
    """

    def __init__(
        self,
        client: AsyncClient,
        *,
        announced: bool,
        channels: tuple[str, ...],
        missing_after_s: float,
        found: Callable[[str, tuple[str, ...]], None],
        needs_of: Callable[[Task], tuple[str, ...]],
    ) -> None:
        self.at_once: Final = 200 if announced else _READS_AT_ONCE * 4
        self._client = client
        self._announced = announced
        self._channels = frozenset(channels)
        self._missing_after_s = missing_after_s
        self._found = found
        self._needs_of = needs_of
        self._missing_since: dict[str, float] = {}
        self._elsewhere: dict[str, None] = {}
        self._behind: dict[str, tuple[datetime | None, tuple[str, ...]]] = {}
        """What sealed dependencies on other channels need, as of their last change."""

    def elsewhere(self) -> list[str]:
        """Return open dependencies on channels that this ingress does not watch: nobody tells of their end."""
        names = list(self._elsewhere)[:_WATCHED_MAX]
        for name in names:  # the next ones next time
            del self._elsewhere[name]
        return names

    async def read(self, names: Sequence[str]) -> dict[str, str]:
        """Return the states of dependencies, MISSING for those that do not exist; those in doubt are left out.

        Raises the GatewayError family.
        """
        states: dict[str, str] = {}
        for name, task in (await self._tasks(names)).items():
            if task is None:
                self._found(name, ())
                if time.monotonic() - self._missing_since.setdefault(name, time.monotonic()) >= self._missing_after_s:
                    states[name] = MISSING
                continue
            self._missing_since.pop(name, None)
            states[name] = task.status
            is_elsewhere = task.channel not in self._channels or task.id != name
            if is_elsewhere and not is_settled(task.status):
                self._elsewhere[name] = None
            if (is_elsewhere and task.status == PENDING) or task.status in _PUT_ASIDE:
                await self._look_behind(name, task)
            else:
                self._found(name, ())
        return states

    async def _look_behind(self, name: str, task: Task) -> None:
        """Tell what a dependency needs itself; a sealed one is read whole for that, once for each change."""
        changed_at, needs = self._behind.get(name, (None, ()))
        if not task.sealed or task.payload is not None:
            needs = self._needs_of(task)
        elif changed_at is None or changed_at != task.updated_at:
            whole = await self._get(name, asyncio.Semaphore())
            if whole is None:
                return
            needs = self._needs_of(whole)
            if len(self._behind) >= _BEHIND_MAX:
                self._behind.clear()
            self._behind[name] = (whole.updated_at, needs)
        self._found(name, needs)

    async def _tasks(self, names: Sequence[str]) -> dict[str, Task | None]:
        if not self._announced:
            limit = asyncio.Semaphore(_READS_AT_ONCE)
            found = await asyncio.gather(*(self._get(name, limit) for name in names))
            return dict(zip(names, found, strict=True))
        # Our own service shows other names only for tasks that it does not have; a sealed part may name a UUID.
        numbers = [name for name in names if name.isascii() and name.isdigit()]
        known: dict[str, Task | None] = {}
        if numbers:
            request = protocol.list_tasks(ids=numbers, fields=_FIELDS, limit=len(numbers))
            known |= {task.id: task for task in answers.tasks_of(await self._client.send(request))}
        for name in names:
            if UUID.fullmatch(name):
                known[name] = await self._get(name, asyncio.Semaphore())
        return {name: known.get(name) for name in names}

    async def _get(self, name: str, limit: asyncio.Semaphore) -> Task | None:
        async with limit:
            try:
                return parse_task(await self._client.send(protocol.get(name)), keep_raw=False)
            except GatewayRejectedError:  # unknown, or no id of this service at all
                return None
