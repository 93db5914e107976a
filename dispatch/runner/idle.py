"""Look at an attempt's processes now and then, and say when they hang; the decision is ``core.idle``'s."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dispatch.core import idle
from dispatch.core.idle import IdleLimit, Quiet, Sight
from dispatch.runner import tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class IdleWatch:
    """Watches one attempt. Without a limit nothing is ever looked at."""

    def __init__(self, limit: IdleLimit = IdleLimit()) -> None:  # noqa: B008 - a value that cannot change
        self._limit = limit
        self._quiet: Quiet | None = None
        self._ticks: dict[tree.Process, int] = {}
        self._reaped_s = 0.0
        self.every_s = idle.look_every_s(limit.limit_s)
        """Seconds between two looks."""
        self.said = ""
        """What is said of an attempt that hangs; holds nothing of the task."""

    def begin(self, at: float, reaped_s: float) -> float:
        """Count from now on; return when to look first. ``reaped_s``: as for ``hangs``."""
        self._quiet, self._reaped_s = Quiet(at), reaped_s
        return at + self.every_s

    def hangs(self, at: float, written_bytes: int, living: Callable[[], Iterable[tree.Stat]], reaped_s: float) -> bool:
        """Look once.

        ``written_bytes`` is all that it wrote so far, ``living`` finds its processes. ``reaped_s`` is the processor
        time of all that this process has collected itself: orphans, which may live for less than from look to look.
        """
        found = list(living())
        # What a process uses is counted as it grows: one that ended takes nothing back. One that is reaped is counted
        # once more with its parent, and its end is a sign of life indeed.
        used = sum(max(0, one.ticks - self._ticks.get(one.process, 0)) for one in found)
        self._ticks = {one.process: one.ticks for one in found}
        is_stopped = any(one.state in "Tt" for one in found)
        used_s = used / tree.TICKS_PER_S + max(0.0, reaped_s - self._reaped_s)
        self._reaped_s = reaped_s
        sight = Sight(at, written_bytes, used_s, is_stopped)
        self._quiet = idle.after(self._quiet or Quiet(at), sight, self._limit.limit_s)
        if not idle.hangs(self._quiet, self._limit.limit_s):
            return False
        self.said = idle.reason(self._limit)
        return True
