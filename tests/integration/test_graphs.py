"""Task graphs on one fleet of real parts, against our own service and against a foreign ATS."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from tests.support.graph_world import World, world_of
from tests.support.processes import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(params=["ours", "foreign"], scope="module")
def shared(request: pytest.FixtureRequest) -> Iterator[World]:
    """One running fleet for all tests that break nothing."""
    with world_of(request.param) as world:
        world.start(slots=6)
        yield world


@pytest.fixture
def world(shared: World) -> Iterator[World]:
    """The running fleet, with no tasks known; what still runs at the end is cancelled. A failure shows the logs."""
    shared.needs = {}
    yield shared
    for ident in shared.needs:
        if shared.task(ident)["status"] == "in_progress":
            shared.do(ident, "cancel")


def test_chain_fan_and_diamond(world: World):
    """Chain, fan-out, fan-in and diamond: each task starts after the last of those that it needs, and runs once."""
    root = world.create(duration_s=0.4)
    chain = [root]
    for _ in range(3):
        chain.append(world.create(chain[-1]))
    fan = [world.create(root) for _ in range(4)]
    world.create(*fan)
    left, right = world.create(chain[-1]), world.create(chain[-1])
    world.create(left, right, root)
    world.wait(world.needs, "completed")
    world.check_order()


def test_a_bad_end_fails_exactly_what_is_behind(world: World):
    """A failed and a cancelled root fail their descendants, at once, with a reason that names them; nothing else."""
    bad = world.create(exits=[1], duration_s=0.3)
    slow = world.create(duration_s=300)
    good = world.create()
    direct = world.create(bad, slow)
    further = [world.create(direct), world.create(direct, good)]
    last = world.create(*further)
    both = world.create(good)
    world.wait([bad, direct, *further, last], "failed")
    world.wait([both], "completed")
    assert world.task(slow)["status"] == "in_progress"
    assert f"#{bad} (failed)" in world.reason(direct)
    assert f"#{direct} (failed)" in world.reason(further[0])
    behind_slow = world.create(slow)
    world.do(slow, "cancel")
    world.wait([behind_slow], "failed")
    assert f"#{slow} (cancelled)" in world.reason(behind_slow)
    early = world.create(slow)  # its dependency has ended long before
    late = world.create(good)
    world.wait([early], "failed")
    world.wait([late], "completed")
    world.check_order()


def test_what_can_never_run_ends_as_a_clear_failure(world: World):
    """Unknown ids, a task that needs itself and circles end as failed with the reason, and so does what is behind.

    So does, on our service, which keeps projects apart, what needs a task of another project, though that is completed.
    """
    unknown = world.create(written=["#999999"])
    behind = world.create(unknown)
    first = max(world.needs) + 1
    itself = world.create(written=first)
    one = world.create(written=str(first + 2))
    two = world.create(written=[f"{first + 3}"])
    three = world.create(one)
    odd = world.create(written=[{"id": 1}])
    world.wait([unknown, behind, itself, one, two, three, odd], "failed")
    assert "#999999 (does not exist)" in world.reason(unknown)
    assert f"#{unknown} (failed)" in world.reason(behind)
    assert "circle" in world.reason(itself)
    assert all("circle" in world.reason(ident) or "(failed)" in world.reason(ident) for ident in (one, two, three))
    assert any("circle" in world.reason(ident) for ident in (one, two, three))
    if world.ats is None:
        ids = {"agent_id": str(uuid4()), "run_id": str(uuid4())}
        body = {"project_key": "elsewhere", "title": "done", "status": "completed", **ids}
        other = world.stack.call("POST", "/tools/core_create_task", body)[1]["id"]
        stranger = world.create(written=[other])
        world.wait([stranger], "failed")
        assert world.reason(stranger) == f"Blocked: dependency #{other} (does not exist in its project)"
    assert not any(world.began(ident) for ident in world.needs)


def test_dependencies_may_come_late_and_change(world: World):
    """A dependency is created after its dependent; another is taken out, a third one put in while the task waits."""
    long = world.create(duration_s=300)
    number = long + 2
    early = world.create(written=[number])
    late = world.create(duration_s=0.2)
    assert late == number
    world.needs[early] = [late]
    freed, held = world.create(long), world.create(late, long)
    world.do(freed, "patch", payload=changed(world, freed, []))
    world.do(held, "patch", payload=changed(world, held, [late, early]))
    world.needs |= {freed: [], held: [late, early]}
    world.wait([early, late, freed, held], "completed")
    world.check_order()
    assert world.task(long)["status"] == "in_progress"


def test_circles_that_a_change_closes_end_as_a_clear_failure(world: World):
    """Tasks that wait, and are then changed to need themselves or each other, fail with the circle as the reason."""
    long = world.create(duration_s=300)
    itself, one = world.create(long), world.create(long)
    two = world.create(one)
    free = world.create(long)
    eventually(lambda: world.began(long), "the long task running")
    world.do(itself, "patch", payload=changed(world, itself, [itself]))
    world.do(one, "patch", payload=changed(world, one, [long, two]))
    world.wait([itself, one, two], "failed")
    assert f"circle: #{itself} -> #{itself}" in world.reason(itself)
    assert any("circle" in world.reason(ident) for ident in (one, two))
    assert all(word in world.reason(one) for word in (f"#{one}", f"#{two}"))
    assert world.task(free)["status"] == "pending"
    if world.ats is None:
        aside = world.create(long)
        world.do(aside, "patch", status="blocked")
        world.do(aside, "patch", payload=changed(world, aside, [free]))
        world.do(free, "patch", payload=changed(world, free, [aside]))
        world.wait([free], "failed")
        assert "circle" in world.reason(free)
        assert world.task(aside)["status"] == "blocked"
    assert not any(world.began(ident) for ident in (itself, one, two, free))


def changed(world: World, ident: int, needs: list[int]) -> dict[str, Any]:
    """Return a task's payload with other dependencies."""
    return {**world.task(ident)["payload"], "depends_on": needs}


def test_dependencies_on_other_channels(world: World):
    """What another fleet runs on another channel, heard by nobody here, opens and breaks gates here."""
    other = world.create(channel="other", duration_s=0.3)
    bad = world.create(channel="other", exits=[1])
    good, broken = world.create(other), world.create(bad)
    world.stack.start_ingress({"DISPATCH_CHANNEL": "other", "DISPATCH_ACTOR_ID": "dispatch-other"})
    world.wait([other, good], "completed")
    world.wait([bad, broken], "failed")
    world.check_order()


def test_gates_go_through_celery_and_leave_nothing_behind(world: World):
    """The body of its chord releases a task; afterwards Redis keeps no entry, no gate and no part of a chord."""
    # A listing of what can be claimed that comes between the end of the root and the gates, 5 ms later, is as good.
    assert any(released_by_gates(world) for _ in range(3))
    events = {event["event"] for process in world.stack.processes for event in process.events}
    assert not events & {"gates_stuck", "graph_registry_lost", "graphs_paused", "gate_not_sent"}


def released_by_gates(world: World) -> bool:
    """Let gates open for one task and break for another, and say whether they were what released the first."""
    go = world.stack.directory / "go"
    go.unlink(missing_ok=True)
    roots = [world.create(duration_s=300, until=str(go), exits=exits) for exits in ([0], [1])]
    good, bad = world.create(roots[0]), world.create(*roots)
    with closing(world.stack.redis.client(decode_responses=True)) as client:
        eventually(lambda: len(client.keys("dispatch:graph:*:parked:*")) == 2, "two tasks waiting")
        left = "dispatch:celery-taskset-meta-*"
        assert len([key for key in client.keys(left + ".s") if client.ttl(key) > 300]) == 1, "one chord"
        go.touch()
        world.wait([good], "completed")
        world.wait([bad], "failed")
        eventually(lambda: all(k.endswith("epoch") for k in client.keys("dispatch:graph:*")), "an empty registry")
        eventually(lambda: all(client.ttl(k) <= 300 for k in client.keys(left)), "no parts of chords")
    return any(process.find("task_released", task=str(good)) for process in world.stack.processes)


# The last of the file, because it shakes the fleet of all the others.
@pytest.mark.parametrize("shared", ["ours", pytest.param("foreign", marks=pytest.mark.slow)], indirect=True)
def test_lost_redis_and_killed_ingresses_strand_nothing(world: World):
    """FLUSHALL, kill -9 of Redis and of one of two ingresses while tasks wait: each runs once, in order, or fails."""
    world.stack.start_ingress()
    shaken(world)


def shaken(world: World) -> None:
    """Let a graph wait while everything is taken away, one after the other."""
    roots = [world.create(duration_s=1.0), world.create(duration_s=2.0), world.create(duration_s=2.5, exits=[1])]
    fan = [world.create(root) for root in roots for _ in range(3)]
    last = world.create(*fan[:6])
    broken = world.create(*fan)
    tail = world.create(broken)
    stack = world.stack
    eventually(lambda: world.began(roots[0]), "the first root running")
    ingress = next(process for process in stack.processes if process.name == "ingress")
    stack.redis.flush()
    world.wait(roots[:1], "completed")
    stack.redis.kill()
    ingress.kill()
    stack.redis.start()
    world.wait([*roots[:2], *fan[:6], last], "completed")
    world.wait([roots[2], *fan[6:], broken, tail], "failed")
    world.check_order()
