"""Fleets and the service they work for, with one way to speak to either kind, for tests about graphs.

Each task's child writes down when it began and ended; order is read from there,
never from what a fleet believes.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from dispatch.ats import protocol
from dispatch.ats.client import Client
from dispatch.ats.model import Actor
from tests.support.fake_ats import FakeAts
from tests.support.graph_plans import doomed_in
from tests.support.processes import PATIENCE_S, eventually
from tests.support.stack import FINISHED, Stack

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from tests.support.graph_plans import Planned

DURATION_S = 0.05


class World:
    """Fleets, each with a Redis and a channel of its own, and the one service they work for.

    ``needs`` is what the tasks that were created need. Task numbers that
    ``create`` gives out grow by one.
    """

    def __init__(self, stacks: Sequence[Stack], ats: FakeAts | None) -> None:
        self.stacks, self.ats = stacks, ats
        self.stack = stacks[0]
        self.needs: dict[int, list[int]] = {}
        self.channels: dict[int, str] = {}

    def start(self, *, ingresses: int = 1, slots: int = 4) -> None:
        """Start the service if it is ours, and of every fleet Redis, ingresses and a worker."""
        if self.ats is None:
            self.stack.start_service()

        def start_fleet(stack: Stack) -> None:
            for _ in range(ingresses):
                stack.start_ingress()
            if slots:
                stack.start_worker(slots)

        for stack in self.stacks:
            stack.redis.start()  # from this thread: the server ends with the one that started it
        with ThreadPoolExecutor() as pool:
            list(pool.map(start_fleet, self.stacks))

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
        self.channels[ident] = body["channel"]
        return ident

    def create_planned(self, task: Planned, ids: Sequence[int], **orders: Any) -> int:
        """Create a task of a plan whose places have these numbers."""
        orders |= {"duration_s": task.duration_s, "exits": [1 if task.fails else 0]}
        return self.create(*(ids[place] for place in task.needs), channel=task.channel, **orders)

    def do(self, ident: int, verb: str, **fields: Any) -> None:
        """Move or change a task as a person would."""
        url = self.stack.url if self.ats is None else self.ats.url
        client = Client(protocol.endpoint(url), Actor("human", "tester", "tester"))
        with closing(client):
            client.send(getattr(protocol, verb)(str(ident), **fields))

    def task(self, ident: int) -> dict[str, Any]:
        """Return a task as the service has it."""
        return self.ats.tasks[ident] if self.ats is not None else self.stack.task(ident)

    def wait(self, idents: Iterable[int], *statuses: str, timeout_s: float = PATIENCE_S) -> None:
        """Wait until all these tasks have one of these statuses, any in which a task ends if none is given."""
        wanted = statuses or FINISHED
        for ident in idents:
            what = f"task {ident} {' or '.join(wanted)}"
            eventually(lambda i=ident: self.task(i)["status"] in wanted, what, timeout_s=timeout_s)

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
                assert len({line["pid"] for line in self.stack.tick_lines(ident)}) == 1, ident
                assert all(self.ended(needed) <= began for needed in needs), (ident, needs)
            elif needs:
                assert status == "failed", (ident, status)
                assert began is None, ident

    def check_plan(self, plan: Sequence[Planned], ids: Sequence[int]) -> None:
        """Check order, and that exactly what is behind a failure failed for it, unstarted; all have ended."""
        doomed = doomed_in(plan)
        for place, ident in enumerate(ids):
            task = plan[place]
            if place in doomed:
                assert self.task(ident)["status"] == "failed", (place, task)
                assert self.began(ident) is None, (place, task)
                bad = [ids[needed] for needed in task.needs if needed in doomed or plan[needed].fails]
                assert any(f"#{one} (failed)" in self.reason(ident) for one in bad), self.reason(ident)
                continue
            assert self.task(ident)["status"] == ("failed" if task.fails else "completed"), (place, task)
            began = self.began(ident)
            assert began is not None
            assert len({line["pid"] for line in self.stack.tick_lines(ident)}) == 1, (place, task)
            assert all(self.ended(ids[needed]) <= began for needed in task.needs), (place, task)

    def reason(self, ident: int) -> str:
        """Return why a task was failed."""
        return str(self.task(ident).get("reason"))


@contextmanager
def world_of(kind: str, *channels: str, **settings: str) -> Iterator[World]:
    """Give a world that is not started; at its end everything is stopped and looked through for leftovers.

    ``kind`` is "ours" or "foreign". There is a fleet for each of ``channels``, one if none is given.
    """
    with FakeAts() as ats:
        if kind == "foreign":
            settings |= {"DISPATCH_ATS_URL": ats.url, "DISPATCH_LEASE_MS": "8000"}
        stacks: list[Stack] = []
        for channel in channels or ("test",):
            where = {"DISPATCH_ATS_URL": stacks[0].url} if stacks and kind == "ours" else {}
            stacks.append(Stack({**settings, **where, "DISPATCH_ACTOR_ID": f"dispatch-{channel}"}, channel=channel))
        try:
            yield World(stacks, ats if kind == "foreign" else None)
            with ThreadPoolExecutor() as pool:
                list(pool.map(Stack.close, stacks))
        finally:
            for stack in reversed(stacks):
                stack.abort()
