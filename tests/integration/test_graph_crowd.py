"""Many random graphs at the same time on one fleet."""

from __future__ import annotations

import random

import pytest

from tests.support.graph_plans import doomed_in, random_graph
from tests.support.graph_world import world_of

GRAPHS = 60


@pytest.mark.slow
def test_sixty_random_graphs_at_once():
    """Each task starts after all it needs have ended, each once; exactly what is behind a failure fails, unstarted."""
    rand = random.Random(7)
    plans = [random_graph(rand, rand.randint(2, 6)) for _ in range(GRAPHS)]
    with world_of("ours", DISPATCH_MAX_ATTEMPTS="1") as world:
        world.start(slots=6)
        numbers: list[list[int]] = []
        for plan in plans:
            numbers.append([])
            for task in plan:
                numbers[-1].append(world.create_planned(task, numbers[-1]))
        world.wait(world.needs)
        for plan, ids in zip(plans, numbers, strict=True):
            world.check_plan(plan, ids)
    assert sum(bool(doomed_in(plan)) for plan in plans) > 10
