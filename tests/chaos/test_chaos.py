"""A small chaos run in every test run; ``make chaos`` makes the large ones."""

from __future__ import annotations

import pytest

from tests.chaos.history import FaultKind
from tests.chaos.plan import in_a_hurry, make_graph_plan, make_plan
from tests.chaos.run import run

SEED = 3
GRAPH_SPAN_S = 5.0


def test_a_small_run_is_valid() -> None:
    """40 tasks and one kill -9 of each kind: no promise broken, everything recovers in time, nothing is left."""
    plan = make_plan(SEED, tasks=40, faults=5)
    outcome = run(plan, is_alone=False)
    assert outcome.report.ok, f"{plan.text()}\n{outcome.text()}"
    assert outcome.report.counts["faults"] == 5


@pytest.mark.parametrize("seed", [1, 2])
def test_a_graph_under_fire_is_valid(seed: int) -> None:
    """200 tasks that depend on each other, kill -9 of an ingress, a worker and Redis: none lost, doubled, stranded."""
    plan = in_a_hurry(make_graph_plan(seed, tasks=200, faults=3), GRAPH_SPAN_S)
    outcome = run(plan, is_alone=False)
    assert outcome.report.ok, f"{plan.text()}\n{outcome.text()}"
    assert outcome.report.counts["acknowledged"] == 200
    assert outcome.report.counts["faults"] == 3


def test_a_seed_is_a_plan() -> None:
    """The same seed makes the same plan, another one another; twelve faults are 4 + 4 + 2 + 1 + 1."""
    plan = make_plan(7, tasks=300, faults=12)
    assert plan == make_plan(7, tasks=300, faults=12)
    assert plan != make_plan(8, tasks=300, faults=12)
    assert len(plan.tasks) == len({task.title for task in plan.tasks}) == 300
    kills = [fault.kind for fault in plan.faults]
    assert {kind: kills.count(kind) for kind in kills} == {
        FaultKind.POOL_CHILD: 4,
        FaultKind.WORKER: 4,
        FaultKind.INGRESS: 2,
        FaultKind.REDIS: 1,
        FaultKind.SERVICE: 1,
    }
    assert [fault.at for fault in plan.faults] == sorted(fault.at for fault in plan.faults)
