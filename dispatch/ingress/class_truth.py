"""What the task service says about tasks that have places in classes, or ought to have some."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from dispatch.ats.gateway import AttemptRef
from dispatch.core.routing import choose
from dispatch.errors import UnknownTaskError
from dispatch.ingress.claims import LIST_FIELDS
from dispatch.ingress.intake import IN_PROGRESS, traits_of_task

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from dispatch.ats.model import Task
    from dispatch.core.routing import Routing
    from dispatch.ingress.claims import Claims
    from dispatch.ingress.listing import Listing
    from dispatch.ingress.sealed import Sealed

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
        listing: Listing,
        claims: Claims,
        sealed: Sealed,
        read: Callable[[str], Awaitable[Task]],
        *,
        routing: Routing,
        is_fenced: bool,
    ) -> None:
        self._listing = listing
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
        seen: dict[str, Task] = {}
        fields: dict[str, Any] = {"fields": f"{LIST_FIELDS},sealed"} if self._is_fenced else {}
        await self._listing.each(lambda page: seen.update((one.id, one) for one in page), status=IN_PROGRESS, **fields)
        found = [await self._occupant(task) for task in seen.values()]
        return [one for one in found if one.classes]

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
