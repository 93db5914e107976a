"""Two fleets, each with a Redis, an ingress and workers of its own, on graphs whose edges cross between them.

One fleet serves the channel alpha, the other beta; nothing but the task service
connects them.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from tests.support.graph_plans import Planned, doomed_in, random_layer
from tests.support.graph_world import World, world_of
from tests.support.processes import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

CHANNELS = ("alpha", "beta")


ROOTS = (
    Planned("alpha", duration_s=300),
    Planned("beta", duration_s=300),
    Planned("alpha", fails=True, duration_s=0.3),
    Planned("beta", fails=True, duration_s=0.9),
)
"""The first two run until the test says so."""
DIAMOND = (Planned("beta", (0,)), Planned("beta", (0, 1)), Planned("alpha", (4, 5)))
"""Alpha, twice beta, alpha."""


@pytest.fixture(params=["ours", pytest.param("foreign", marks=pytest.mark.slow)], scope="module")
def shared(request: pytest.FixtureRequest) -> Iterator[World]:
    """Two running fleets and their service, for all tests of this file."""
    with world_of(request.param, *CHANNELS, DISPATCH_MAX_ATTEMPTS="1") as world:
        world.start(slots=3)
        yield world


@pytest.fixture
def world(shared: World) -> World:
    """The running fleets, with no tasks known."""
    shared.needs = {}
    return shared


@pytest.mark.parametrize("seed", [1])
def test_random_graphs_across_two_fleets(world: World, seed: int):
    """Created before, while and after their dependencies run, tasks start after these, and exactly the doomed fail."""
    rand = random.Random(seed)
    go = world.stack.directory / f"go-{seed}"
    bad = [place for place, task in enumerate(ROOTS) if task.fails]

    def layer(before: list[Planned], count: int, channels: tuple[str, ...]) -> list[Planned]:
        return random_layer(rand, [n for n in range(len(before)) if n not in bad], bad, channels, count)

    first = [*ROOTS, *DIAMOND]
    first += layer(first, 9, CHANNELS)
    second = layer(first, 10, CHANNELS[::-1])
    third = layer(first + second, 10, CHANNELS)
    plan = first + second + third
    # Every task of the first wave comes before those that it needs, and names them by the numbers they will get.
    last = world.create() + len(first)
    ids = [last - place for place in range(len(first))]
    for place in reversed(range(len(first))):
        orders = {"until": str(go)} if place < 2 else {}
        assert world.create_planned(first[place], ids, **orders) == ids[place]
    eventually(lambda: world.began(ids[0]) and world.began(ids[1]), "the first roots running")
    for task in second:
        ids.append(world.create_planned(task, ids))
    go.touch()
    world.wait(ids[: len(first)])
    for task in third:
        ids.append(world.create_planned(task, ids))
    world.wait(ids)
    world.check_plan(plan, ids)
    assert {plan[place].channel for place in doomed_in(plan)} == set(CHANNELS)
    for stack in world.stacks:
        ran = [event["task"] for process in stack.processes for event in process.find("attempt_started")]
        assert set(ran) <= {str(ident) for ident, channel in world.channels.items() if channel == stack.channel}
        assert len(set(ran)) == len(ran)


def test_circles_across_two_fleets_fail(world: World):
    """Tasks that wait for each other across channels, and what is behind them, fail with a reason, unstarted."""
    first = world.create() + 1
    one = world.create(written=first + 1, channel="alpha")
    two = world.create(written=first + 2, channel="beta")
    three = world.create(one, channel="beta")
    behind = world.create(three, channel="alpha")
    world.wait([one, two, three, behind], "failed")
    reasons = [world.reason(ident) for ident in (one, two, three)]
    assert any("circle" in reason for reason in reasons), reasons
    assert all("circle" in reason or "(failed)" in reason for reason in [*reasons, world.reason(behind)])

    go = world.stack.directory / "go"
    root = world.create(duration_s=300, until=str(go), channel="beta")
    left = world.create(root, channel="alpha")
    right = world.create(left, channel="beta")
    payload = world.task(left)["payload"]
    world.do(left, "patch", payload={**payload, "depends_on": [root, right]})
    world.wait([left, right], "failed")
    assert any("circle" in world.reason(ident) for ident in (left, right))
    go.touch()
    world.wait([root], "completed")
    assert not any(world.began(ident) for ident in (one, two, three, behind, left, right))
