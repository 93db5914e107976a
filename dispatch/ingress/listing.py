"""Reading long lists of tasks, whole whatever leaves or joins them between two pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dispatch.ats import answers, protocol
from dispatch.core.pages import OffsetWalk

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dispatch.ats.aclient import AsyncClient
    from dispatch.ats.model import Task

PAGE: Final = 500
_AFTER: Final = "after"


class Listing:
    """The lists of one task service, which announces ``extensions``. Methods raise the GatewayError family."""

    def __init__(self, client: AsyncClient, extensions: frozenset[str]) -> None:
        self._client = client
        self._has_after = _AFTER in extensions

    async def page(self, **filters: Any) -> list[Task]:
        """Return one page, of at most PAGE tasks."""
        return answers.tasks_of(await self._client.send(protocol.list_tasks(limit=PAGE, **filters)))

    async def each(self, take: Callable[[Sequence[Task]], None], *, most: int | None = None, **filters: Any) -> bool:
        """Hand over all tasks that match, in the order of their creation, page by page; one may come twice.

        Every task that matches from the beginning to the end is among them, if the
        answer is True; False: the list changed too fast, or had more than ``most``.
        """
        order = {"sort_by": "created_at", "sort_dir": "asc"}
        count = 0
        walk, last = OffsetWalk(), None
        while walk.offset is not None:
            place = {"after": last} if self._has_after else {"offset": walk.offset}
            tasks = await self.page(**filters, **order, **place)
            take(tasks)
            count += len(tasks)
            if most is not None and count >= most:
                return False
            if not self._has_after:
                walk.take([task.id for task in tasks])
            elif tasks:
                last = tasks[-1].id
            else:
                return True
        return walk.is_whole
