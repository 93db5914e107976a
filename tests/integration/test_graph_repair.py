"""What the sweep does about gates that get lost: it sends them again, then does without them."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from tests.support.graph_world import World, world_of
from tests.support.processes import LogProcess, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator


class Broken:
    """A running fleet, and ways to keep its gates from arriving."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.ingress: LogProcess = next(p for p in world.stack.processes if p.name == "ingress")
        self._redis = world.stack.redis.client(decode_responses=True)
        (self._queue,) = [name for name in self._bindings() if ".gates." in name]

    def _bindings(self) -> set[str]:
        """Return the names of the queues that somebody consumes, as Celery's transport notes them."""
        keys = self._redis.keys("dispatch:_kombu.binding.*.gates.*")
        return {key.partition("binding.")[2] for key in keys}

    def keys(self, pattern: str) -> list[str]:
        """Return the names in Redis that match."""
        found: list[str] = self._redis.keys(pattern)
        return found

    def close(self) -> None:
        """Let gates arrive again and disconnect."""
        self.mend()
        self._redis.close()

    def lose(self) -> None:
        """Let every gate that is sent from now on be lost: what has the queue's name takes no messages."""
        self._redis.set(f"dispatch:{self._queue}", "no queue")

    def mend(self) -> None:
        """Let gates arrive again."""
        self._redis.delete(f"dispatch:{self._queue}")

    def chords(self) -> list[str]:
        """Return the names under which Celery keeps how many gates a chord has."""
        return self.keys("dispatch:celery-taskset-meta-*.s")

    def forget(self, chord: str) -> None:
        """Take away by what Celery knows when a chord is complete: its gates arrive, its body never comes."""
        self._redis.delete(chord)

    def armed(self, chains: int, chords: int) -> None:
        """Wait until so many tasks wait for one gate, of the chords the last one."""
        eventually(lambda: len(self.keys("dispatch:graph:*:parked:*")) == chains + chords, "tasks with gates")
        counted = "dispatch:celery-taskset-meta-*.j"
        eventually(lambda: len(self.keys(counted)) == chords, "chords whose first gate was counted")

    def tries(self, ident: int) -> list[int]:
        """Return which tries the sweep made for a task."""
        return [event["tries"] for event in self.ingress.find("gates_stuck", task=str(ident))]


@pytest.fixture
def broken() -> Iterator[Broken]:
    """A fleet whose gates can be kept from arriving."""
    # The listing of what can be claimed would release tasks as well, and sooner.
    with world_of("ours", DISPATCH_RECONCILE_S="60") as world:
        world.start()
        broken = Broken(world)
        with closing(broken):
            yield broken


def test_lost_gates_are_sent_again_and_then_done_without(broken: Broken):
    """What is lost once is sent again; what stays lost is released or failed without gates; each task runs once."""
    world = broken.world
    done = world.create()
    world.wait([done], "completed")
    go = world.stack.directory / "go"
    root = world.create(duration_s=300, until=str(go))
    stuck = world.create(root, done)
    (chord_of_stuck,) = eventually(broken.chords, "its chord")
    chain, chord = world.create(root), world.create(root, done)
    broken.armed(chains=1, chords=2)
    broken.forget(chord_of_stuck)
    broken.lose()
    go.touch()
    world.wait([root], "completed")
    broken.ingress.wait_event("gate_not_sent", count=3)
    broken.mend()
    world.wait([chain, chord, stuck], "completed")
    assert (broken.tries(chain), broken.tries(chord), broken.tries(stuck)) == ([1], [1], [1, 2])
    assert {event["task"] for event in broken.ingress.find("task_released")} == {str(chain), str(chord)}

    go = world.stack.directory / "go-on"
    root, bad = (world.create(duration_s=300, until=str(go), exits=exits) for exits in ([0], [1]))
    chain, chord, failed = world.create(root), world.create(root, done), world.create(root, bad)
    eventually(lambda: len(broken.keys("dispatch:graph:*:parked:*")) == 3, "three tasks with gates")
    broken.lose()
    go.touch()
    world.wait([chain, chord], "completed")
    world.wait([failed], "failed")
    assert broken.tries(chain) == broken.tries(chord) == broken.tries(failed) == [1, 2]
    assert len(broken.ingress.find("task_released")) == 2, "Celery released none of them"
    assert f"#{bad} (failed)" in world.reason(failed)
    broken.mend()
    world.check_order()
    eventually(lambda: all(key.endswith("epoch") for key in broken.keys("dispatch:graph:*")), "an empty registry")
    eventually(lambda: not broken.chords(), "no parts of chords")
