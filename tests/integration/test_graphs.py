"""Task graphs on real parts, against our own service and against a foreign ATS.

Each task's child writes down when it began and ended; order is read from there,
never from what the fleet believes.
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from dispatch.ats import protocol
from dispatch.ats.client import Client
from dispatch.ats.model import Actor
from tests.support.fake_ats import FakeAts
from tests.support.processes import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tests.support.stack import Stack

DURATION_S = 0.05
BAD = ("failed", "cancelled", "rejected")


class World:
    """A fleet and the service it works for, with one way to speak to either."""

    def __init__(self, stack: Stack, ats: FakeAts | None) -> None:
        self.stack, self.ats = stack, ats
        self.needs: dict[int, list[int]] = {}

    def start(self, *, ingresses: int = 1, slots: int = 4) -> None:
        """Start Redis, the service if it is ours, ingresses and a worker."""
        self.stack.redis.start()
        if self.ats is None:
            self.stack.start_service()
        for _ in range(ingresses):
            self.stack.start_ingress()
        if slots:
            self.stack.start_worker(slots)

    def create(self, *needs: int, channel: str = "", written: Any = None, **orders: Any) -> int:
        """Create a task that depends on others; ``written`` is how a payload says so, if unusual."""
        payload: dict[str, Any] = {"tick": {"dir": str(self.stack.ticks), "duration_s": DURATION_S, **orders}}
        if needs or written is not None:
            payload["depends_on"] = list(needs) if written is None else written
        body = {"title": "a task", "channel": channel or self.stack.channel, "payload": payload}
        if self.ats is not None:
            ident = int(self.ats.add(**body)["id"])
        else:
            status, answer = self.stack.call("POST", "/tasks", body)
            assert status == 201, answer
            ident = answer.get("task", answer)["id"]
        self.needs[ident] = list(needs)
        return ident

    def do(self, ident: int, verb: str, **fields: Any) -> None:
        """Move or change a task as a person would."""
        url = self.stack.url if self.ats is None else self.ats.url
        client = Client(protocol.endpoint(url), Actor("human", "tester", "tester"))
        with closing(client):
            client.send(getattr(protocol, verb)(str(ident), **fields))

    def task(self, ident: int) -> dict[str, Any]:
        """Return a task as the service has it."""
        return self.ats.tasks[ident] if self.ats is not None else self.stack.task(ident)

    def wait(self, idents: Iterable[int], status: str, timeout_s: float = 20.0) -> None:
        """Wait until all these tasks have a status."""
        for ident in idents:
            eventually(lambda i=ident: self.task(i)["status"] == status, timeout_s, f"task {ident} {status}")

    def began(self, ident: int) -> float | None:
        """Return when the task's child began, by its own account."""
        lines = [line["at"] for line in self.stack.tick_lines(ident) if line["kind"] == "begin"]
        return min(lines, default=None)

    def ended(self, ident: int) -> float:
        """Return when the task's child ended, by its own account."""
        return max(line["at"] for line in self.stack.tick_lines(ident) if line["kind"] == "end")

    def check_order(self) -> None:
        """Each completed task began after all it needs had ended; each failed one never began; each ran once."""
        for ident, needs in self.needs.items():
            status, began = self.task(ident)["status"], self.began(ident)
            if status == "completed":
                assert began is not None
                assert len({line["pid"] for line in self.stack.tick_lines(ident)}) == 1
                assert all(self.ended(needed) <= began for needed in needs), (ident, needs)
            elif needs:
                assert status == "failed", (ident, status)
                assert began is None, ident

    def reason(self, ident: int) -> str:
        """Return why a task was failed."""
        return str(self.task(ident).get("reason"))


@pytest.fixture(params=["ours", "foreign"])
def world(request: pytest.FixtureRequest, make_stack: Callable[..., Stack]) -> Iterator[World]:
    """A fleet that is not started yet."""
    if request.param == "ours":
        yield World(make_stack(), None)
        return
    with FakeAts() as ats:
        yield World(make_stack(DISPATCH_ATS_URL=ats.url, DISPATCH_LEASE_MS="8000"), ats)


def test_chain_fan_and_diamond(world: World):
    """Chain, fan-out, fan-in and diamond: each task starts after the last of those that it needs, and runs once."""
    world.start()
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
    world.start()
    bad = world.create(exits=[1], duration_s=0.3)
    slow = world.create(duration_s=20)
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
