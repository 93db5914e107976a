"""Putting together what moves waiting tasks, for the kind of service at hand."""

from __future__ import annotations

import contextlib
from enum import Enum
from typing import TYPE_CHECKING

from dispatch.ats.choose import has_fencing
from dispatch.ingress.blocked import Blocked, BulkFailing, ClaimedFailing, SealedFailing
from dispatch.ingress.dependencies import Dependencies
from dispatch.ingress.gates import Gates
from dispatch.ingress.graphs import GraphHooks, GraphParts, Graphs
from dispatch.ingress.registry import Registry
from dispatch.ingress.waiting_tasks import WaitingTasks
from dispatch.log import get_logger

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    import redis.asyncio

    from dispatch.ats.aclient import AsyncClient
    from dispatch.ats.model import Task
    from dispatch.ingress.claims import Claims
    from dispatch.ingress.sealed import Sealed
    from dispatch.settings import Settings


class GraphsOf(Enum):
    """Who says what a task needs."""

    SERVICE = "service"
    """The service knows it, shows it with every task, and refuses claims of tasks that must wait."""
    PAYLOAD = "payload"
    """A foreign ATS: it stands in the payload, and only the fleet cares."""
    NOBODY = "nobody"
    """A service with fencing that does not show it: the service alone keeps tasks back."""


def graphs_of(extensions: frozenset[str]) -> GraphsOf:
    """Say who tells what tasks need, by what the service announces."""
    if extensions >= {"depends_on", "fail.many"}:
        return GraphsOf.SERVICE
    return GraphsOf.NOBODY if has_fencing(extensions) else GraphsOf.PAYLOAD


def make_graphs(
    settings: Settings,
    kind: GraphsOf,
    *,
    client: AsyncClient,
    redis: redis.asyncio.Redis,
    claims: Claims,
    sealed: Sealed,
    ready: Callable[[str, int], None],
    rearm: Callable[[], None],
) -> tuple[Graphs | None, WaitingTasks | None]:
    """Return what moves waiting tasks, and the tasks; (None, None) where nobody says what they need."""
    if kind is GraphsOf.NOBODY:
        return None, None
    log = get_logger("ingress")
    is_ours = kind is GraphsOf.SERVICE
    base_url = client.endpoint.base_url
    registry = Registry(redis, base_url)
    loop: list[asyncio.AbstractEventLoop] = []

    def on_blocked(task_id: str, round_: str) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended: the next ingress sends the gate again
            loop[0].call_soon_threadsafe(lambda: blocked.add(task_id, round_=round_))

    gates = Gates(settings, base_url, on_blocked=on_blocked, log=log)
    tasks = WaitingTasks(
        fail=lambda task_id, reason: blocked.add(task_id, reason=reason),
        kick=lambda: graphs.kick(),  # noqa: PLW0108 - it is made below
    )

    def still_needs(task: Task) -> bool:
        seen, waiting = sealed.at_claim(task), tasks.get(task.id)
        return seen is not None and waiting is not None and seen.task.depends_on == waiting.needs

    claimed = ClaimedFailing(claims, still_needs=still_needs)
    blocked = Blocked(
        registry,
        SealedFailing(BulkFailing(client), claimed, tasks.hidden) if is_ours else claimed,
        failed=tasks.failed,
        refused=tasks.forget,
        log=log,
    )
    dependencies = Dependencies(
        client,
        announced=is_ours,
        channels=settings.ats.channels,
        missing_after_s=settings.ingress.reconcile_s,
        found=tasks.found_elsewhere,
        needs_of=sealed.needs_of,
    )
    graphs = Graphs(
        GraphParts(redis, registry, gates, tasks, dependencies, blocked),
        GraphHooks(ready=ready, rearm=rearm, started=loop.append),
        deep=is_ours,
        sweep_s=settings.ingress.sweep_s,
        log=log,
    )
    return graphs, tasks
