"""What the task service says about tasks that have places in classes, or ought to have some."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from dispatch.ats import answers, protocol
from dispatch.ats.gateway import AttemptRef
from dispatch.core.routing import choose
from dispatch.errors import UnknownTaskError
from dispatch.ingress.claims import LIST_FIELDS
from dispatch.ingress.intake import IN_PROGRESS, traits_of_task

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from dispatch.ats.aclient import AsyncClient
    from dispatch.ats.model import Task
    from dispatch.core.routing import Routing
    from dispatch.ingress.claims import Claims
    from dispatch.ingress.sealed import Sealed

_PAGE: Final = 500
_OVERLAP: Final = 100
_AT_ONCE: Final = 200


class Occupant(NamedTuple):
    """A task in progress that needs places."""

    task_id: str
    classes: tuple[str, ...]
    holder: str
    """Who claimed it: an ingress, or an agent, who works on it just as well."""


class ClassTruth:
    """Asks one service. ``read`` returns a task with its payload. Methods raise the GatewayError family."""

    def __init__(
        self,
        client: AsyncClient,
        claims: Claims,
        sealed: Sealed,
        read: Callable[[str], Awaitable[Task]],
        *,
        routing: Routing,
        is_fenced: bool,
    ) -> None:
        self._client = client
        self._claims = claims
        self._sealed = sealed
        self._read = read
        self._routing = routing
        self._is_fenced = is_fenced

    async def states(self, task_ids: Sequence[str]) -> dict[str, str]:
        """Return the status of each of these tasks that can be seen, as an ATS word."""
        found: dict[str, str] = {}
        for start in range(0, len(task_ids), _AT_ONCE):
            refs = [AttemptRef(task_id, 0, 0, "") for task_id in task_ids[start : start + _AT_ONCE]]
            found |= {task_id: task.status for task_id, task in (await self._claims.refresh(refs)).items()}
        return found

    async def occupants(self) -> list[Occupant]:
        """Return the tasks in progress, on whatever channel, that need places by our settings."""
        found: dict[str, Occupant] = {}
        offset = 0
        while news := [task for task in await self._page(offset) if task.id not in found]:
            for task in news:
                found[task.id] = await self._occupant(task)
            # What ends meanwhile moves the others forward.
            offset = max(offset + 1, len(found) - _OVERLAP)
        return [one for one in found.values() if one.classes]

    async def _page(self, offset: int) -> list[Task]:
        fields = {"fields": f"{LIST_FIELDS},sealed"} if self._is_fenced else {}
        request = protocol.list_tasks(
            status=IN_PROGRESS, sort_by="created_at", sort_dir="asc", limit=_PAGE, offset=offset, **fields
        )
        return answers.tasks_of(await self._client.send(request))

    async def _occupant(self, task: Task) -> Occupant:
        sender = None
        if task.sealed:
            try:
                seen = self._sealed.read(await self._read(task.id))
            except UnknownTaskError:
                seen = None
            task, sender = (task, "") if seen is None else (seen.task, seen.sender)
        classes = choose(self._routing, traits_of_task(task, sender)).classes
        return Occupant(task.id, classes, task.assignee_id or "")
