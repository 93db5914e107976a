"""Random graphs, random news: no task is released too early, and in the end each has run or failed as it must."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from hypothesis import given, settings
from hypothesis import strategies as st

from dispatch.ats.model import Task
from dispatch.core.graph import MISSING, blocked_reason, is_settled, opens
from dispatch.ingress.waiting_tasks import WaitingTasks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ENDS = ("completed", "completed", "completed", "failed", "cancelled", "rejected")
graphs = st.integers(1, 7).flatmap(
    lambda size: st.fixed_dictionaries(
        {
            str(task): st.tuples(
                st.lists(st.integers(0, size).map(str), max_size=3, unique=True).map(tuple), st.sampled_from(ENDS)
            )
            for task in range(size)
        }
    )
)
"""By task what it needs, circles and one that does not exist included, and how it would end."""


class Service:
    """A service with a fleet around ``WaitingTasks``; every method is a step that may come at any time, or late."""

    def __init__(self, needs: Mapping[str, tuple[str, ...]], ends: Mapping[str, str]) -> None:
        self.needs, self.ends = needs, ends
        self.truth = dict.fromkeys(needs, "pending")
        self.news = list(self.truth.items())
        self.gates: dict[str, dict[str, str]] = {}
        self.ready: set[str] = set()
        self.blocked: dict[str, str] = {}
        self.reasons: dict[str, str] = {}
        self.tasks = WaitingTasks(fail=self.blocked.__setitem__, kick=lambda: None)

    def hear(self, place: int, *, again: bool) -> None:
        """Let news arrive, in any order, old ones too."""
        if self.news:
            task_id, status = self.news[place % len(self.news)]
            if not again:
                del self.news[place % len(self.news)]
            self.show(task_id, status)

    def show(self, task_id: str, status: str) -> None:
        """Let the ingress see a task."""
        task = Task(id=task_id, status=status, depends_on=self.needs[task_id])
        if status != "pending":
            self.tasks.left(task)
        elif not self.tasks.holds(task):
            self.ready.add(task_id)

    def run(self, place: int) -> None:
        """Run a task that was released; its end is news."""
        if self.ready:
            task_id = sorted(self.ready)[place % len(self.ready)]
            self.ready.discard(task_id)
            if self.truth[task_id] == "pending":
                states = [self.truth.get(name) for name in self.needs[task_id]]
                assert set(states) <= {"completed"}, (task_id, states)
                self.end(task_id, self.ends[task_id])

    def end(self, task_id: str, status: str) -> None:
        """Let a task end."""
        self.truth[task_id] = status
        self.news.append((task_id, status))

    def move(self) -> None:
        """Do what is noted, as ``Graphs`` does."""
        for task_id in list(self.tasks.to_arm):
            task = self.tasks.get(task_id)
            if task is not None and task_id not in self.gates:
                self.gates[task_id] = dict.fromkeys(task.needs, "")
                self.tasks.read_soon(name for name in task.needs if name not in self.tasks)
        self.tasks.to_arm.clear()
        for name, status in self.tasks.to_settle.items():
            for gates in self.gates.values():
                if name in gates:
                    gates[name] = status
        self.tasks.to_settle.clear()
        for task_id in self.tasks.to_close:
            if task_id not in self.tasks:
                self.gates.pop(task_id, None)
        self.tasks.to_close.clear()
        names = list(self.tasks.to_read)
        self.tasks.to_read.clear()
        for name in names:
            status = self.truth.get(name, MISSING)
            if is_settled(status) and name in self.tasks.dependents:
                self.tasks.settle(name, status)
        self.run_gates()

    def run_gates(self) -> None:
        """Release or fail tasks whose gates say so."""
        for task_id, gates in list(self.gates.items()):
            if all(opens(status) for status in gates.values()):
                del self.gates[task_id]
                self.tasks.release(task_id)
                self.ready.add(task_id)
            elif any(is_settled(status) and not opens(status) for status in gates.values()):
                self.blocked.setdefault(task_id, blocked_reason(gates))

    def fail(self) -> None:
        """Fail what is blocked, as far as it still waits."""
        for task_id, reason in self.blocked.items():
            if self.truth[task_id] == "pending":
                self.reasons[task_id] = reason
                self.end(task_id, "failed")
                self.tasks.failed(task_id)
            else:
                self.tasks.forget(task_id)
        self.blocked.clear()

    def reconcile(self) -> None:
        """List what is pending."""
        began_at = time.monotonic()
        for task_id, status in self.truth.items():
            if status == "pending":
                self.show(task_id, status)
        self.tasks.compare(began_at, [])

    def finish(self) -> None:
        """Let everything happen that is still to happen."""
        for _ in range(4 * len(self.needs) + 4):
            while self.news:
                self.hear(0, again=False)
            self.reconcile()
            self.move()
            self.tasks.fail_circles()
            self.fail()
            while self.ready:
                self.run(0)


def expected(needs: Mapping[str, tuple[str, ...]], ends: Mapping[str, str]) -> dict[str, str]:
    """Return how all must end: tasks run while all they need is completed; whatever else is left fails."""
    found: dict[str, str] = {}
    while free := [t for t in needs if t not in found and all(found.get(n) == "completed" for n in needs[t])]:
        found |= {task: ends[task] for task in free}
    return {**dict.fromkeys(needs, "failed"), **found}


@settings(deadline=None)
@given(graphs, st.data())
def test_whatever_the_order_of_news_all_end_as_they_must(
    graph: dict[str, tuple[tuple[str, ...], str]], data: st.DataObject
) -> None:
    """Descendants of a bad end, of what does not exist and of a circle fail with a reason; all others run, in order."""
    needs = {task: said[0] for task, said in graph.items()}
    ends = {task: said[1] for task, said in graph.items()}
    service = Service(needs, ends)
    steps: list[Callable[[int], Any]] = [
        lambda place: service.hear(place, again=False),
        lambda place: service.hear(place, again=True),
        service.run,
        lambda _: service.move(),
        lambda _: service.tasks.fail_circles(),
        lambda _: service.fail(),
        lambda _: service.reconcile(),
    ]
    for step, place in data.draw(st.lists(st.tuples(st.integers(0, len(steps) - 1), st.integers(0, 9)), max_size=40)):
        steps[step](place)
    service.finish()
    assert service.truth == expected(needs, ends)
    assert all(reason.startswith("Blocked: ") for reason in service.reasons.values())
    assert len(service.tasks) == 0
    assert not service.gates
