"""The registry of waiting tasks and the Celery gates on a real Redis: all happens once, or again until it has."""

from __future__ import annotations

import json
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from dispatch.broker import connect_async
from dispatch.ingress.gates import Gates
from dispatch.ingress.registry import SETTLE_AT_ONCE, Armed, Registry
from dispatch.log import get_logger
from dispatch.settings import load
from tests.support.processes import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from tests.support.redis import RedisServer

pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex")  # Celery's, in its thread
SENTINEL = "sentinel"
URL = "http://127.0.0.1:1"


class Bench:
    """A registry and gates on one Redis, with all that they said."""

    def __init__(self, server: RedisServer) -> None:
        settings = load({"DISPATCH_REDIS_URL": server.url, "DISPATCH_CONFIG": "/dev/null"})
        self.server = server
        self.redis = connect_async(settings.broker)
        self.registry = Registry(self.redis, URL)
        self.blocked: list[tuple[str, str]] = []
        self.gates = Gates(settings, URL, on_blocked=lambda *a: self.blocked.append(a), log=get_logger("ingress"))
        self.rounds = 0
        self.seen: Callable[[], list[str]] = list

    async def arm(self, task_id: str, *needs: str) -> str:
        """Arm a task and return the round."""
        self.rounds += 1
        round_ = f"round{self.rounds}"
        sizes = {self.gates.chord_size(round_): len(needs)} if len(needs) > 1 else {}
        armed = {task_id: Armed(",".join(sorted(needs)), round_, needs)}
        gates = {task_id: self.gates.build(task_id, round_, needs)}
        assert await self.registry.arm_many(armed, gates, sizes) == [True]
        assert await self.registry.arm_many(armed, gates, {}) == [False]
        return round_

    async def arm_each(self, task_ids: Iterable[str], needed: str) -> None:
        """Arm many tasks that need the same one, in one call."""
        armed, gates = {}, {}
        for task_id in task_ids:
            self.rounds += 1
            armed[task_id] = Armed(needed, f"round{self.rounds}", (needed,))
            gates[task_id] = self.gates.build(task_id, armed[task_id].round, (needed,))
        assert all(await self.registry.arm_many(armed, gates, {}))

    async def settle(self, needed: str, status: str = "completed", times: int = 1) -> int:
        """Settle a dependency, send what moved so many times, and return how much moved."""
        moved = await self.registry.settle(needed, status, opens=status == "completed")
        for gate in moved * times:
            self.gates.send(gate, status)
        return len(moved)

    async def all_ran(self) -> None:
        """Wait until everything that was sent before has run: there is one consumer, and it keeps the order."""
        self.rounds += 1
        name = f"{SENTINEL}{self.rounds}"
        await self.arm(name, name)
        await self.settle(name)
        eventually(lambda: name in self.seen(), "what was sent before")


@pytest.fixture
async def bench(redis_server: RedisServer) -> AsyncIterator[Bench]:
    """A bench whose gates run."""
    found = Bench(redis_server)
    found.gates.start()
    yield found
    found.gates.stop()
    await found.redis.aclose()


@pytest.fixture
def released(bench: Bench) -> Any:
    """Return a function that gives the ids of tasks released so far."""
    seen: list[str] = []
    with closing(bench.server.client(decode_responses=True)) as client, client.pubsub() as channel:
        channel.subscribe(bench.registry.prefix + "ready")
        channel.get_message(timeout=60)

        def so_far() -> list[str]:
            while (message := channel.get_message(timeout=0.01)) is not None:
                seen.append(json.loads(message["data"])["id"])
            return [name for name in seen if not name.startswith(SENTINEL)]

        bench.seen = lambda: so_far() + seen
        yield so_far


@pytest.mark.parametrize("needs", [("1",), ("1", "2"), tuple(map(str, range(256)))], ids=["chain", "chord", "wide"])
async def test_a_task_is_released_once_when_all_gates_opened(bench: Bench, released: Any, needs: tuple[str, ...]):
    """Gates that are settled twice and sent three times release once, after the last of them and not before."""
    await bench.arm("9", *needs)
    for name in needs[:-1]:
        assert await bench.settle(name, times=3) == 1
        assert await bench.settle(name) == 0
    await bench.all_ran()
    assert released() == []
    await bench.settle(needs[-1], times=3)
    eventually(released, "the release")
    await bench.all_ran()
    assert released() == ["9"]
    assert await bench.registry.close("9") is None
    assert bench.blocked == []


@pytest.mark.parametrize("needs", [("1",), ("1", "2", "3")], ids=["chain", "chord"])
async def test_a_bad_end_calls_back_before_the_other_gates(bench: Bench, released: Any, needs: tuple[str, ...]):
    """One failed gate calls back at once, though others are still parked; the outcome says why."""
    round_ = await bench.arm("9", *needs)
    await bench.settle(needs[0], "cancelled")
    eventually(lambda: bench.blocked, "the error callback")
    assert set(bench.blocked) == {("9", round_)}
    assert await bench.registry.outcomes("9", round_) == {needs[0]: "cancelled"}
    assert await bench.registry.outcomes("9", "an older round") == {}
    assert released() == []


async def test_changed_dependencies_replace_the_gates(bench: Bench, released: Any):
    """A task armed anew for other dependencies is released by these, and gates of before mean nothing."""
    first = await bench.arm("9", "1")
    moved = await bench.registry.settle("1", "completed", opens=True)
    assert await bench.registry.fingerprints(["9", "8"]) == ["1", ""]
    await bench.arm("9", "2")
    assert await bench.registry.close("9", first) is None
    bench.gates.send(moved[0], "completed")
    await bench.all_ran()
    assert released() == []
    await bench.settle("2")
    eventually(released, "the release")


async def test_what_was_never_sent_is_found_and_can_be_sent(bench: Bench, released: Any):
    """A gate that was moved by a process that died shows as stuck until its task is closed.

    In each while it shows to one caller, and how often it did is counted for all.
    """
    await bench.arm("9", "1", "2")
    await bench.registry.settle("1", "completed", opens=True)
    assert await bench.registry.stuck(0.0, 10) == []
    await bench.registry.settle("2", "completed", opens=True)
    (stuck,) = await bench.registry.stuck(0.0, 10)
    assert (stuck.task_id, stuck.open, {sent.needed for sent in stuck.sent}) == ("9", False, {"1", "2"})
    assert await bench.registry.stuck(1.0, 10) == []
    (again,) = await Registry(bench.redis, URL).stuck(0.0, 10)
    assert (stuck.tries, again.tries) == (1, 2)
    for sent in stuck.sent:
        bench.gates.send(sent.gate, sent.status)
    eventually(released, "the release")
    assert await bench.registry.stuck(0.0, 10) == []


async def test_a_dependency_of_very_many_moves_in_portions(bench: Bench, released: Any):
    """1,000 dependents are moved by a few calls, none of which is long, and all are released once."""
    await bench.arm_each(map(str, range(1000)), "root")
    counts = [await bench.settle("root") for _ in range(6)]
    assert counts == [SETTLE_AT_ONCE] * 5 + [0]
    eventually(lambda: len(released()) >= 1000, "1,000 releases")
    assert len(set(released())) == len(released()) == 1000
