"""Lists that change while an ingress reads them, on our service and on a foreign ATS that pages by offset."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
import redis.asyncio

from dispatch.ats import protocol
from dispatch.ats.aclient import AsyncClient
from dispatch.ats.choose import extensions_of_health
from dispatch.ats.model import Actor
from dispatch.core.lanes import Lane, Lanes
from dispatch.core.routing import Route, Routing, TaskTraits, choose
from dispatch.ingress import listing, reconcile
from dispatch.ingress.claims import FencedClaims
from dispatch.ingress.enqueuer import Enqueuer
from dispatch.ingress.intake import Errands, Intake
from dispatch.ingress.ledger import Ledger
from dispatch.ingress.listing import Listing
from dispatch.ingress.reconcile import Parts, Reconciler
from dispatch.ingress.redis_view import RedisView
from dispatch.log import get_logger
from dispatch.settings import load
from tests.support.fake_ats import FakeAts
from tests.support.service import service_on

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dispatch.ats.model import Task

ME = Actor("agent", "worker-1", "Worker-1")
KEPT = 4
"""Every so many of the tasks stay where they are."""


async def read_while_it_changes(
    url: str, end: Callable[[str], None], begin: Callable[[], None]
) -> tuple[list[str], bool]:
    """Read what is in progress; with each page most of what was seen ends, and another task begins."""
    seen: dict[str, None] = {}
    async with AsyncClient(protocol.endpoint(url), ME) as client:
        found = Listing(client, extensions_of_health(await client.send(protocol.health())))

        def take(page: Sequence[Task]) -> None:
            for task in page:
                if task.id not in seen and len(seen) % KEPT:
                    end(task.id)
                seen[task.id] = None
            if page and len(seen) < 40:
                begin()

        is_whole = await found.each(take, status="in_progress", assignee_id=ME.id)
    return list(seen), is_whole


async def test_a_foreign_service_is_read_whole() -> None:
    """It pages by offset, three tasks at a time however many are asked for: still nothing is missed."""
    with FakeAts(page_size=3) as ats:

        def begin() -> None:
            task = ats.add(title="more")
            ats.tasks[task["id"]] |= {"status": "in_progress", "assignee_id": ME.id, "lease_expires": None}

        for _ in range(20):
            begin()
        all_ids = list(ats.tasks)
        seen, is_whole = await read_while_it_changes(
            ats.url, lambda ident: ats.tasks[int(ident)].update(status="completed"), begin
        )
    assert is_whole
    assert set(map(str, all_ids)) <= set(seen)


async def test_our_service_is_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each page is asked for by where the last one ended, so that nothing is read twice either."""
    monkeypatch.setattr(listing, "PAGE", 3)
    with service_on("sqlite") as service:
        client = service.client()

        def begin() -> str:
            ident = str(client.create(title="more")["id"])
            client.post(f"/tasks/{ident}/claim", {"lease_duration": 600_000})
            return ident

        all_ids = [begin() for _ in range(20)]
        paths: list[str] = []
        monkeypatch.setattr(protocol, "list_tasks", _noting(protocol.list_tasks, paths))
        seen, is_whole = await read_while_it_changes(
            service.url, lambda ident: client.post(f"/tasks/{ident}/cancel"), lambda: None
        )
    assert is_whole
    assert seen == all_ids
    assert len(paths) == 20 // 3 + 2
    assert not any("offset" in path for path in paths)


@pytest.mark.parametrize("stuck", [4, 20], ids=["page", "backlog"])
async def test_tasks_that_cannot_be_claimed_hide_no_other(monkeypatch: pytest.MonkeyPatch, stuck: int) -> None:
    """Behind a page of known tasks, or a full backlog, stands one not heard of: it is found once nothing else runs."""
    monkeypatch.setattr(listing, "PAGE", 3)
    monkeypatch.setattr(reconcile, "PAGE", 3)
    routing = Routing(routes=(Route(type="urgent", queue="free"),))
    with service_on("sqlite") as service:
        people = service.client()
        for _ in range(stuck):
            people.create(title="known")
        async with AsyncClient(protocol.endpoint(service.url), ME) as client:
            backlog, reconciler = reconciler_of(client, routing, capacity=10)
            await reconciler.with_service()
            unheard = str(people.create(title="unheard", type="urgent")["id"])
            await reconciler.with_service()
            assert unheard not in backlog
            assert backlog.pop(time.monotonic(), is_free) is None
            assert backlog.may_lack(is_free)
            assert reconciler.read_on()
            await reconciler.with_service()
            assert backlog.pop(time.monotonic(), is_free) == (unheard, 5)
            assert not backlog.may_lack(is_free)
            assert backlog.truncated is (stuck > 10)
            assert reconciler.read_on() is (stuck < 10)


def is_free(lane: Lane) -> bool:
    """Say whether tasks of a lane can run: those that are urgent."""
    return lane.queue == "free"


def reconciler_of(client: AsyncClient, routing: Routing, capacity: int) -> tuple[Lanes, Reconciler]:
    """Return a backlog and who fills it; nothing here comes to Redis."""
    backlog, ledger = Lanes(choose(routing, TaskTraits("")), capacity), Ledger()
    intake = Intake(
        channels=("default",),
        backlog=backlog,
        routing=routing,
        ledger=ledger,
        clock_offset_s=client.clock_offset_s,
        errands=Errands(wake=str, look=str),
    )
    parts = Parts(
        Listing(client, frozenset({"after"})),
        FencedClaims(client, ME, 60.0),
        Enqueuer(load({})),
        RedisView(redis.asyncio.Redis(), routing.queues()),
        backlog,
        ledger,
        intake,
    )
    return backlog, Reconciler(parts, actor_id=ME.id, channels=("default",), lease_s=60.0, log=get_logger("test"))


def _noting(real: Callable[..., protocol.Request], paths: list[str]) -> Callable[..., protocol.Request]:
    def noting(**filters: object) -> protocol.Request:
        request = real(**filters)
        paths.append(str(request))
        return request

    return noting
