"""Places of concurrency classes while processes die: never one too many, and none lost for longer than it must be."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.processes import LogProcess, children_of, eventually
from tests.support.promises import FairClock, promised
from tests.support.stack import Stack
from tests.support.witness import most_at_once, spans_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONFIG = """
[classes.one]
limit = 1
[classes.two]
limit = 2
"""
FREE_WITHIN_S = 25.0
"""The bound of docs/executors.md for a dead ingress: 15 s of presence, a few sweeps, and room for a busy machine."""


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """A stack with two classes, not started."""
    config = tmp_path / "dispatch.toml"
    config.write_text(CONFIG)
    found = Stack({"DISPATCH_CONFIG": str(config)})
    try:
        yield found
    except BaseException:
        print(found.report())
        found.abort()
        raise
    found.close()


def create(stack: Stack, duration_s: float, *classes: str, **orders: Any) -> str:
    """Create a task of some classes."""
    payload = dict.fromkeys(classes, True)
    return str(stack.create(tick={"duration_s": duration_s, **orders}, payload=payload)["id"])


def put_place(stack: Stack, name: str, task_id: str) -> None:
    """Leave a place behind as an ingress does that is gone, with an expiry that no test waits for."""
    now = time.time()
    place = json.dumps({"by": "dispatch-gone", "since": now, "until": now + 600})
    with stack.redis.client() as client:
        client.hset(f"dispatch:class:{name}", task_id, place)


def places(stack: Stack, name: str) -> set[str]:
    """Return which tasks have a place in a class."""
    with stack.redis.client() as client:
        return {key.decode() if isinstance(key, bytes) else key for key in client.hkeys(f"dispatch:class:{name}")}


def test_places_that_nobody_keeps(stack: Stack) -> None:
    """A place left behind falls free once its task is not in progress, and a running child keeps its own to its end."""
    stack.start(slots=4)
    ended = create(stack, 0.05)
    stack.wait_task(ended, "completed")
    held = str(stack.create(channel="elsewhere")["id"])
    assert stack.call("POST", f"/tasks/{held}/claim", {"lease_duration": 60_000}, actor="agent:gone")[0] == 200
    put_place(stack, "one", ended)
    put_place(stack, "two", held)
    first = create(stack, 0.1, "one")
    stack.wait_task(first, "completed")
    assert held in places(stack, "two"), "a task in progress keeps its place, whoever holds it"
    assert stack.call("POST", f"/tasks/{held}/release", {"fencing_token": 1}, actor="agent:gone")[0] == 200
    eventually(lambda: not places(stack, "two"), "the place of a task that is pending again")

    stubborn = create(stack, 30, "one", ignore_term=True)
    eventually(lambda: stack.tick_lines(stubborn), "the child")
    following = create(stack, 0.1, "one")
    assert stack.call("POST", f"/tasks/{stubborn}/cancel", {})[0] == 200
    stack.wait_task(following, "completed")
    assert most_at_once(stack, [stubborn, following]) == 1, "a cancelled task has its place until its child is gone"


@pytest.mark.slow
def test_places_after_a_loss_of_redis_without_their_ingress(stack: Stack) -> None:
    """When Redis is emptied while its ingress is dead, a running task has its place again before anybody takes one."""
    stack.start(slots=4)
    go = stack.directory / "go"
    running = create(stack, 60, "one", until=str(go))
    eventually(lambda: stack.tick_lines(running), "the child")
    stack.processes[1].kill()
    stack.redis.flush()
    others = [create(stack, 0.1, "one") for _ in range(3)]
    stack.start_ingress({"DISPATCH_ACTOR_ID": "dispatch-second"})
    eventually(lambda: running in places(stack, "one"), "the place of what runs")
    # A class that was full is asked again after a second: by the end of this one it would have been given away.
    stack.wait_task(create(stack, 1.2), "completed")
    assert not any(map(stack.tick_lines, others))
    go.touch()
    for task_id in (running, *others):
        stack.wait_task(task_id, "completed")
    assert most_at_once(stack, [running, *others]) == 1


class Fire:
    """What happens to a stack of two ingresses and two workers while its tasks run."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        stack.start(slots=3)
        self.ingress = stack.start_ingress({"DISPATCH_ACTOR_ID": "dispatch-second"})
        self.worker = stack.start_worker(3)

    def empty_redis(self) -> None:
        """FLUSHALL."""
        self.stack.redis.flush()

    def kill_redis(self) -> None:
        """kill -9, and start it again with what it had written."""
        self.stack.redis.kill()
        self.stack.redis.start()

    def kill_ingress(self) -> None:
        """kill -9 of one of two; it stays away."""
        self.ingress.kill()

    def kill_worker(self) -> None:
        """kill -9 of a worker with its slots; another one starts."""
        kill_whole(self.worker)
        self.stack.run("worker", ["celery", "-A", "dispatch", "worker", "-c", "3", "-n", "worker-9@test"])


def kill_whole(worker: LogProcess) -> None:
    """Kill a worker and its pool, but not its warden: that ends the trees of what ran there."""
    (warden,) = (event["pid"] for event in worker.find("warden_started"))
    for child in children_of(worker.pid):
        if child != warden:
            os.kill(child, signal.SIGKILL)
    worker.kill()


def under_fire(stack: Stack, count: int, *, seed: int, faults: list[str], duration_s: float, pause_s: float) -> None:
    """Run tasks of classes while each fault happens once, then check what the children wrote down."""
    chance = random.Random(seed)
    fire = Fire(stack)
    with FairClock() as clock:
        kinds = [("one",), ("two",), ("two",), ("one", "two")]
        tasks: dict[str, tuple[str, ...]] = {}
        for number in range(count):
            classes = kinds[number % len(kinds)]
            tasks[create(stack, duration_s * chance.uniform(0.5, 1.5), *classes)] = classes
        eventually(lambda: any(map(stack.tick_lines, tasks)), "the first child")
        order = faults.copy()
        chance.shuffle(order)
        for fault in order:
            begun = sum(bool(stack.tick_lines(task_id)) for task_id in tasks)
            getattr(fire, fault)()
            print(f"seed {seed}: {fault} with {begun} of {count} begun")
            after = begun + max(1, round(count * pause_s))
            eventually(
                lambda after=after: sum(bool(stack.tick_lines(task_id)) for task_id in tasks) >= min(after, count),
                f"the next child after {fault}",
            )
        for task_id in tasks:
            stack.wait_task(task_id, "completed")
    of = {name: [task_id for task_id, classes in tasks.items() if name in classes] for name in ("one", "two")}
    assert most_at_once(stack, of["one"]) == 1, stack.report()
    assert most_at_once(stack, of["two"]) <= 2, stack.report()
    for task_id in tasks:
        assert most_at_once(stack, [task_id]) == 1
        ends = [line for line in stack.tick_lines(task_id) if line["kind"] == "end"]
        assert ends, "what completed a task was a child that came to its end"
    begins = sorted(begin for task_id in tasks for begin, _ in spans_of(stack, task_id))
    gaps = [later - earlier for earlier, later in zip(begins, begins[1:], strict=False)]
    print(f"longest time without a new child: {max(gaps):.1f} s, everything being {clock.slowness:.1f} times as slow")
    assert max(gaps) / clock.slowness < FREE_WITHIN_S
    with promised(FREE_WITHIN_S, "all places given back"):
        eventually(lambda: not places(stack, "one") and not places(stack, "two"), "all places given back")


def test_classes_hold_when_redis_and_an_ingress_die(stack: Stack) -> None:
    """No class ever has more children than its limit, and all complete. The long one below finds more."""
    under_fire(stack, 8, seed=1, faults=["empty_redis", "kill_redis", "kill_ingress"], duration_s=0.3, pause_s=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_classes_hold_under_fire(stack: Stack, seed: int) -> None:
    """Redis emptied and killed, an ingress and a worker killed, in any order: limits hold, nothing waits long."""
    faults = ["empty_redis", "kill_redis", "kill_ingress", "kill_worker"]
    under_fire(stack, 40, seed=seed, faults=faults, duration_s=0.6, pause_s=0.15)
