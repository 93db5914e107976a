"""The checker of graphs passes a right history and catches each way of breaking the promise."""

from __future__ import annotations

from dataclasses import replace

from tests.chaos.graphs import check_graph
from tests.chaos.history import Creation, Event, FaultKind, FinalTask, History, Tick
from tests.chaos.plan import in_a_hurry, make_graph_plan

NEEDED, WAITING = "1", "2"


def history(*, needed: str = "completed", waiting: str = "completed", completed_at: float = 5.0) -> History:
    """Task 2 depends on task 1, which is completed at 5.0; task 2 lives from 6.0 on, if it ever does."""
    done = [Event(1, NEEDED, "task.completed", "in_review", "completed", completed_at)] if needed == "completed" else []
    lives = [Tick(NEEDED, 1, 1, 4.0)] + ([Tick(WAITING, 1, 1, 6.0)] if waiting == "completed" else [])
    return History(
        events=tuple(done),
        tasks=(FinalTask(NEEDED, "a", needed), FinalTask(WAITING, "b", waiting)),
        creations=(Creation("a", NEEDED, 1.0), Creation("b", WAITING, 2.0, needs=(NEEDED,))),
        ticks=tuple(lives),
        ended_at=9.0,
    )


def test_a_right_history_passes() -> None:
    """Completed in order, or failed behind a failure without having lived: nothing to say."""
    assert list(check_graph(history())) == []
    assert list(check_graph(history(needed="failed", waiting="failed"))) == []


def test_a_life_before_its_time_is_caught() -> None:
    """A task that lives before its dependency is completed, or although that never was."""
    (early,) = check_graph(history(completed_at=6.5))
    assert early.task_id == WAITING
    assert "0.500 s before task 1" in early.sentence
    found = [violation.sentence for violation in check_graph(history(needed="failed"))]
    assert len(found) == 2
    assert "alive" in found[0]
    assert "is completed, and task 1" in found[1]


def test_a_task_that_waits_for_ever_is_caught() -> None:
    """What stands behind a failure must not stay as it was."""
    (stranded,) = check_graph(history(needed="cancelled", waiting="todo"))
    assert "is todo, and task 1" in stranded.sentence


def test_a_lost_dependency_is_caught() -> None:
    """A task that was acknowledged, is depended on, and is not there."""
    whole = history()
    (lost,) = check_graph(replace(whole, tasks=whole.tasks[1:]))
    assert "lost" in lost.sentence


def test_a_seed_is_a_graph_without_circles() -> None:
    """The same seed makes the same graph; every task needs earlier ones only, and some need several."""
    plan = make_graph_plan(7, tasks=200, faults=6)
    assert plan == make_graph_plan(7, tasks=200, faults=6)
    assert all(need < place for place, task in enumerate(plan.tasks) for need in task.needs)
    assert max(len(task.needs) for task in plan.tasks) == 5
    assert sum(bool(task.needs) for task in plan.tasks) > 150
    assert any(task.title.startswith("failing") for task in plan.tasks)


def test_a_hurry_changes_no_graph() -> None:
    """In a hurry the tasks need the same ones, and worker, Redis and ingress are killed once each, in good time."""
    plan = make_graph_plan(7, tasks=200, faults=6)
    hurried = in_a_hurry(plan, 5.0)
    assert [(task.title, task.needs, task.ends) for task in hurried.tasks] == [
        (task.title, task.needs, task.ends) for task in plan.tasks
    ]
    assert max(task.at for task in hurried.tasks) <= 2.5
    assert {fault.kind for fault in hurried.faults} == {FaultKind.WORKER, FaultKind.REDIS, FaultKind.INGRESS}
    assert max(fault.at for fault in hurried.faults) <= 5.0
