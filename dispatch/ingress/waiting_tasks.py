"""Which tasks wait for which, as one ingress knows it, and what is to be done about them. No I/O."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from dispatch.core.dependencies import DEPENDENCIES_MAX
from dispatch.core.graph import (
    COMPLETED,
    ELSEWHERE,
    GRAPH_MAX,
    Verdict,
    blocked_reason,
    cascade,
    circle_reason,
    find_cycle,
    is_settled,
    verdict,
)
from dispatch.core.lifecycle import ATS_WORD, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable

    from dispatch.ats.model import Task

FAILED: Final = ATS_WORD[Status.FAILED]
READY_MAX: Final = GRAPH_MAX
_CIRCLES_AT_ONCE: Final = 100
_SUSPECTED_MAX: Final = 1_000


@dataclass(slots=True)
class Waiting:
    """One task that waits."""

    needs: tuple[str, ...]
    priority: int
    seen_at: float
    """When the service last showed it as waiting, monotonic."""
    uuid: str | None = None
    """Its other name, by which others may need it."""


class WaitingTasks:
    """The waiting tasks by id, and notes for who moves them (``dispatch.ingress.graphs``).

    ``fail(task id, reason)`` is called for tasks that can never run. ``kick``
    is called whenever something was noted.
    """

    def __init__(
        self,
        *,
        fail: Callable[[str, str], None],
        kick: Callable[[], None],
    ) -> None:
        self._fail = fail
        self._kick = kick
        self._waiting: dict[str, Waiting] = {}
        self._elsewhere: dict[str, tuple[str, ...]] = {}
        """What dependencies need that are not ours: for finding circles only."""
        self._may_have_circles = False
        self._suspected: set[frozenset[str]] = set()
        """Circles through tasks that are not ours, which are read again before anything is failed."""
        self._ready: dict[str, tuple[str, ...]] = {}
        """What was needed by tasks that have been released and have not ended."""
        self.hidden: set[str] = set()
        """Waiting tasks of which the service does not know all that they need: it stands in their sealed part."""
        self.dependents: dict[str, dict[str, None]] = {}
        """In the order of their arrival: a database writes neighbours faster than tasks from anywhere."""
        self.to_arm: dict[str, None] = {}
        self.to_close: set[str] = set()
        self.to_read: dict[str, None] = {}
        self.to_settle: dict[str, str] = {}
        self.ended: dict[str, str] = {}
        """How dependencies of waiting tasks ended, as far as this ingress has heard."""

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, task_id: object) -> bool:
        return task_id in self._waiting

    def get(self, task_id: str) -> Waiting | None:
        """Return a waiting task."""
        return self._waiting.get(task_id)

    def has_work(self) -> bool:
        """Say whether anything is noted."""
        return bool(self.to_arm or self.to_close or self.to_read or self.to_settle)

    def read_soon(self, names: Iterable[str]) -> None:
        """Note dependencies to be read."""
        self.to_read.update(dict.fromkeys(names))

    # --- news -------------------------------------------------------------------------------------------------------

    def holds(self, task: Task, *, hidden: bool = False) -> bool:
        """Take news of a pending task and say whether it must wait; then it is not to be claimed.

        ``hidden``: the service does not know all that it needs.
        """
        self.ended.pop(task.id, None)
        if not task.depends_on:
            self.forget(task.id)
            return False
        if len(task.depends_on) > DEPENDENCIES_MAX:
            self._fail(task.id, f"Blocked: dependencies are limited to {DEPENDENCIES_MAX}, it names more.")
            return True
        if self._ready.get(task.id) == task.depends_on:
            return False
        self._wait(task, hidden=hidden)
        return True

    def still_pending(self, task_id: str) -> None:
        """Take the news that a task is pending, of which more is about to be read."""
        task = self._waiting.get(task_id)
        if task is not None:
            task.seen_at = time.monotonic()

    def may_run(self, task: Task) -> bool:
        """Say whether a task that was just claimed has been released for what it needs now."""
        return not task.depends_on or self._ready.get(task.id) == task.depends_on

    def claimable(self, task: Task) -> None:
        """Take the service's word, in a listing, that a pending task waits for nothing."""
        if task.depends_on:
            self.forget(task.id)
            self._ready[task.id] = task.depends_on

    def freed(self, task_id: str) -> None:
        """Take the service's word, in an event, that all that a task needs is completed: its gates may open."""
        task = self._waiting.get(task_id)
        if task is not None and task_id not in self.hidden:
            for name in task.needs:
                self.settle(name, COMPLETED)

    def refused(self, task_id: str, missing: Container[str] = ()) -> None:
        """Take the service's word that a task we thought ready must wait.

        ``missing`` are names that no task of its project has. One that we saw completed is a task of another project,
        for which it would wait, be released and be refused for ever.
        """
        elsewhere = {name: ELSEWHERE for name in self._ready.pop(task_id, ()) if name in missing}
        if elsewhere:
            self._fail(task_id, blocked_reason(elsewhere))

    def left(self, task: Task) -> None:
        """Take news of a task that is not pending."""
        self.forget(task.id)
        if not is_settled(task.status):
            return
        self._ready.pop(task.id, None)
        for name in (task.id, task.uuid):
            if name is not None and name in self.dependents:
                self.settle(name, task.status)

    def found_elsewhere(self, name: str, needs: tuple[str, ...]) -> None:
        """Take what a dependency that is not among ours needs itself; () when it waits for nothing, or not any more."""
        if name in self._waiting or self._elsewhere.get(name, ()) == needs:
            return
        if not needs:
            del self._elsewhere[name]
        elif len(self._elsewhere) < GRAPH_MAX:
            self._elsewhere[name] = needs
            self._may_have_circles = True
            self.read_soon(other for other in needs if other not in self._waiting and other not in self._elsewhere)

    def _wait(self, task: Task, *, hidden: bool) -> None:
        known = self._waiting.get(task.id)
        if known is not None and known.needs == task.depends_on:
            known.priority, known.seen_at = task.priority, time.monotonic()
            self._note_hidden(task.id, hidden=hidden)
            return
        if len(self._waiting) >= GRAPH_MAX and known is None:
            return  # the next reconcile offers it again
        self._unlink(task.id)
        self._ready.pop(task.id, None)
        self._elsewhere.pop(task.id, None)
        self._waiting[task.id] = Waiting(task.depends_on, task.priority, time.monotonic(), task.uuid)
        self._note_hidden(task.id, hidden=hidden)
        for name in task.depends_on:
            self.dependents.setdefault(name, {})[task.id] = None
        # Only a task that somebody waits for can close a circle.
        self._may_have_circles |= task.id in self.dependents or task.uuid in self.dependents
        self.to_arm[task.id] = None
        self._kick()

    def _note_hidden(self, task_id: str, *, hidden: bool) -> None:
        if hidden:
            self.hidden.add(task_id)
        else:
            self.hidden.discard(task_id)

    def fail_circles(self) -> None:
        """Fail our tasks that wait for each other in a circle. Costs time in proportion to all that waits.

        What is not ours may have changed unheard, so a circle through it must be found twice. A service that
        knows needs refuses to fail a task for a circle that it cannot see: then those are failed that hide it,
        and the others follow.
        """
        if not self._may_have_circles:
            return
        self._may_have_circles = False
        ids = {task.uuid: name for name, task in self._waiting.items() if task.uuid}
        edges = {
            **self._elsewhere,
            **{name: tuple(ids.get(needed, needed) for needed in task.needs) for name, task in self._waiting.items()},
        }
        for _ in range(_CIRCLES_AT_ONCE):
            circle = find_cycle(edges)
            if not circle:
                return
            others = [name for name in circle[1:] if name not in self._waiting]
            ours = [name for name in circle[1:] if name in self._waiting]
            if others and frozenset(circle) not in self._suspected:
                self._suspect(circle, others)
            else:
                for name in [name for name in ours if name in self.hidden] or ours:
                    self._fail(name, circle_reason(circle))
            for name in circle[1:]:
                edges.pop(name, None)
        self._may_have_circles = True

    def _suspect(self, circle: list[str], others: list[str]) -> None:
        if len(self._suspected) >= _SUSPECTED_MAX:
            self._suspected.clear()
        self._suspected.add(frozenset(circle))
        for name in others:
            self._elsewhere.pop(name, None)
        self.read_soon(others)
        self._may_have_circles = True
        self._kick()

    # --- what follows -----------------------------------------------------------------------------------------------

    def release(self, task_id: str) -> None:
        """Note that a task may run."""
        task = self._waiting.get(task_id)
        if task is not None:
            self._unlink(task_id)
            self._ready[task_id] = task.needs

    def failed(self, task_id: str) -> None:
        """Note that a waiting task was failed: what is behind it hears of it now, not only with the event."""
        self._unlink(task_id)
        self.to_close.add(task_id)
        if task_id in self.dependents:
            self.settle(task_id, FAILED)
        self._kick()

    def settle(self, name: str, status: str) -> None:
        """Note that a dependency has ended."""
        self.to_settle[name] = self.ended[name] = status
        self._kick()

    def count_behind(self, needed: str, limit: int) -> int:
        """Return how many tasks wait for a dependency in the end, ``limit`` at most."""
        return len(cascade(self.dependents, needed, limit))

    def behind(self, needed: str, failing: Container[str], *, deep: bool) -> dict[str, str]:
        """Return why tasks behind a dependency that ended badly must fail, the nearest first: all of them if ``deep``.

        ``failing`` are about to be failed already, and so is all behind them: these are left out, and none of them is
        looked at again for every one before it.
        """
        hidden = self.hidden
        if deep:
            found = cascade(self.dependents, needed, ends=hidden, known=failing)
        else:
            found = [task_id for task_id in self.dependents.get(needed, ()) if task_id not in failing]
        together = frozenset(found) - hidden

        def state(name: str, *, looks_ahead: bool) -> str:
            is_doomed = looks_ahead and (name in together or name in failing)
            return FAILED if is_doomed else self.ended.get(name, "")

        reasons: dict[str, str] = {}
        for task_id in found:
            task = self._waiting.get(task_id)
            # Our service does not know that a sealed task is doomed, so it fails only after what it needs has.
            ahead = deep and task_id not in hidden
            states = {name: state(name, looks_ahead=ahead) for name in task.needs} if task else {}
            if verdict(states.values()) is Verdict.FAIL:
                reasons[task_id] = blocked_reason(states)
        return reasons

    def forget(self, task_id: str) -> None:
        """Note that a task does not wait, or not any more."""
        if self._unlink(task_id):
            self.to_close.add(task_id)
            self._kick()

    def compare(self, began_at: float, in_flight: Iterable[str], *, hidden_too: bool = True) -> None:
        """After a listing that began then: forget what it did not show, arm and read everything else anew.

        ``hidden_too`` False: it may have left out tasks of which the service does not know that they wait.
        """
        for task_id, task in list(self._waiting.items()):
            if task.seen_at < began_at and (hidden_too or task_id not in self.hidden):
                self.forget(task_id)
        flying = set(in_flight)
        if len(self._ready) > READY_MAX:
            self._ready = {name: needs for name, needs in self._ready.items() if name in flying}
        self._elsewhere.clear()
        self.ended = {name: status for name, status in self.ended.items() if name in self.dependents}
        self.to_arm.update(dict.fromkeys(self._waiting))
        self.read_soon(name for name in self.dependents if name not in self._waiting)
        self._kick()

    def _unlink(self, task_id: str) -> bool:
        task = self._waiting.pop(task_id, None)
        self.hidden.discard(task_id)
        self.to_arm.pop(task_id, None)
        if task is None:
            return False
        for name in task.needs:
            behind = self.dependents.get(name)
            if behind is not None:
                behind.pop(task_id, None)
                if not behind:
                    del self.dependents[name]
        return True
