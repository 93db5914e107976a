"""Two fleets, each with a Redis, an ingress and workers of its own, on graphs whose edges cross between them.

One fleet serves the channel alpha, the other beta; nothing but the task service
connects them.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.support.graph_world import World, world_of
from tests.support.processes import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

CHANNELS = ("alpha", "beta")


@dataclass(frozen=True)
class Planned:
    """One task of a graph: where it runs, and the places of those that it needs."""

    channel: str
    needs: tuple[int, ...] = ()
    fails: bool = False
    duration_s: float = 0.05


ROOTS = (
    Planned("alpha", duration_s=1.5),
    Planned("beta", duration_s=0.6),
    Planned("alpha", fails=True, duration_s=0.3),
    Planned("beta", fails=True, duration_s=0.9),
)
DIAMOND = (Planned("beta", (0,)), Planned("beta", (0, 1)), Planned("alpha", (4, 5)))
"""Alpha, twice beta, alpha."""


def random_layer(rand: random.Random, before: int, count: int, offset: int) -> list[Planned]:
    """Return tasks that need one to three of those ``before`` them; few of them need what fails."""
    good = [place for place in range(before) if place not in (2, 3)]
    found = []
    for place in range(count):
        needs = rand.sample(good, rand.randint(1, 3))
        if rand.random() < 0.25:
            needs.append(rand.choice((2, 3)))
        found.append(Planned(CHANNELS[(place + offset) % 2], tuple(sorted(set(needs)))))
    return found


def doomed_in(plan: list[Planned]) -> set[int]:
    """Return the places behind a root that fails; what a place needs comes before it."""
    doomed: set[int] = set()
    for place, task in enumerate(plan):
        if any(needed in doomed or plan[needed].fails for needed in task.needs):
            doomed.add(place)
    return doomed


@pytest.fixture(params=["ours", "foreign"], scope="module")
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


def create(world: World, task: Planned, needs: list[int]) -> int:
    """Create a planned task."""
    orders = {"duration_s": task.duration_s, "exits": [1 if task.fails else 0]}
    return world.create(*needs, channel=task.channel, **orders)


@pytest.mark.parametrize("seed", [1])
def test_random_graphs_across_two_fleets(world: World, seed: int):
    """Created before, while and after their dependencies run, tasks start after these, and exactly the doomed fail."""
    rand = random.Random(seed)
    first = [*ROOTS, *DIAMOND]
    first += random_layer(rand, len(first), 9, offset=0)
    second = random_layer(rand, len(first), 10, offset=1)
    third = random_layer(rand, len(first) + len(second), 10, offset=0)
    plan = first + second + third
    # Every task of the first wave comes before those that it needs, and names them by the numbers they will get.
    last = world.create() + len(first)
    ids = [last - place for place in range(len(first))]
    for place in reversed(range(len(first))):
        assert create(world, first[place], [ids[needed] for needed in first[place].needs]) == ids[place]
    eventually(lambda: world.began(ids[0]), 10, "the first root running")
    for task in second:
        ids.append(create(world, task, [ids[needed] for needed in task.needs]))
    created_at = time.clock_gettime(time.CLOCK_BOOTTIME)
    world.wait(ids[: len(first)])
    for task in third:
        ids.append(create(world, task, [ids[needed] for needed in task.needs]))
    world.wait(ids)
    assert created_at < world.ended(ids[0]), "the second wave came while its dependencies ran"
    check(world, plan, ids)


def check(world: World, plan: list[Planned], ids: list[int]) -> None:
    """Compare what the children wrote down, and what the service says, with the plan."""
    doomed = doomed_in(plan)
    for place, (task, ident) in enumerate(zip(plan, ids, strict=True)):
        expected = "failed" if task.fails or place in doomed else "completed"
        assert world.task(ident)["status"] == expected, (place, task)
    world.check_order()
    for channel, stack in zip(CHANNELS, world.stacks, strict=True):
        assert {plan[place].channel for place in doomed} == set(CHANNELS)
        ran = [event["task"] for process in stack.processes for event in process.find("attempt_started")]
        mine = {str(ident) for ident, where in world.channels.items() if where == channel}
        assert set(ran) <= mine
        assert len(set(ran)) == len(ran)
    for place in doomed:
        bad = [ids[n] for n in plan[place].needs if n in doomed or plan[n].fails]
        assert any(f"#{ident} (failed)" in world.reason(ids[place]) for ident in bad), world.reason(ids[place])


def test_circles_across_two_fleets_fail(world: World):
    """Tasks that wait for each other across channels, and what is behind them, end as failed with a reason."""
    first = world.create() + 1
    one = world.create(written=first + 1, channel="alpha")
    two = world.create(written=first + 2, channel="beta")
    three = world.create(one, channel="alpha")
    behind = world.create(three, channel="beta")
    world.wait([one, two, three, behind], "failed")
    reasons = [world.reason(ident) for ident in (one, two, three)]
    assert any("circle" in reason for reason in reasons), reasons
    assert all("circle" in reason or "(failed)" in reason for reason in [*reasons, world.reason(behind)])
    assert not any(world.began(ident) for ident in (one, two, three, behind))
