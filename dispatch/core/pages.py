"""Walking a long list page by page while others come and go, where a service pages by offset only. Pure.

Whatever leaves before the place where one is moves the rest forward: the next
page then begins too late, and what was skipped is never seen. So each page
is asked to begin with the last task of the page before. If it begins with any
task that was seen, nothing was skipped in between; if not, one steps back.
That holds for lists in an order that does not change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

_BACK_FIRST: Final = 8
_GAPS_MAX: Final = 100


class OffsetWalk:
    """Says which page to ask for next; ``take`` is told what came.

    A task that is in the list all the time is in one of the pages, unless the walk
    gave up (``is_whole`` False), because the list changed faster than it was read. A
    service that gives one task a page, however many were asked for, leaves no room
    for that: it is read page after page.
    """

    def __init__(self) -> None:
        self.offset: int | None = 0
        """Where the next page begins; None: the list is over."""
        self.is_whole = True
        self._seen: set[str] = set()
        self._longest = 0
        self._back = _BACK_FIRST
        self._gaps = 0

    def take(self, ids: Sequence[str]) -> None:
        """Note the page at ``offset``."""
        at = self.offset or 0
        self._longest = max(self._longest, len(ids))
        is_joined = at == 0 or self._longest < 2 or (bool(ids) and ids[0] in self._seen)
        if not is_joined:
            # Only pages without a gap before them count as seen, or a later one could join itself to what is behind it.
            self._step_back(at)
            return
        self._back = _BACK_FIRST
        self._seen.update(ids)
        if not ids or (len(ids) == 1 and self._longest > 1):
            self.offset = None  # the task that was known stands there alone: nothing comes after it
        else:
            self.offset = at + max(1, len(ids) - 1)

    def _step_back(self, at: int) -> None:
        self._gaps += 1
        if self._gaps > _GAPS_MAX:
            self.offset, self.is_whole = None, False
            return
        self.offset = max(0, at - self._back)
        self._back *= 4
