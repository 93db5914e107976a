"""Putting together what moves waiting tasks, for the kind of service at hand."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from dispatch.ats.choose import has_fencing
from dispatch.core.lifecycle import FINISHED_ATS_WORDS
from dispatch.ingress.blocked import Blocked, BulkFailing, ClaimedFailing, SealedFailing, StillNeeds
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
    from dispatch.errors import GatewayRejectedError
    from dispatch.ingress.claims import Claims
    from dispatch.ingress.errands import Looks
    from dispatch.ingress.sealed import Sealed
    from dispatch.settings import Settings


_LOOK_AFTER_S: Final = 1.0
"""When a task is looked at again whose failing was refused: at once could be for ever."""


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


@dataclass(frozen=True, slots=True)
class Calls:
    """What waiting tasks lead to in the ingress."""

    ready: Callable[[str, int], None]
    """Puts a task, by id and priority, into the backlog."""
    rearm: Callable[[], None]
    """Asks for a reconcile."""


def make_graphs(
    settings: Settings,
    kind: GraphsOf,
    *,
    client: AsyncClient,
    redis: redis.asyncio.Redis,
    claims: Claims,
    sealed: Sealed,
    looks: Looks,
    calls: Calls,
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

    def on_refused(task_id: str, refusal: GatewayRejectedError) -> None:
        tasks.forget(task_id)
        if refusal.facts.get("status") not in FINISHED_ATS_WORDS:
            loop[0].call_later(_after_s(refusal), looks.add, task_id)

    claimed = ClaimedFailing(claims, still_needs=StillNeeds(tasks, sealed, looks.read))
    blocked = Blocked(
        registry,
        SealedFailing(BulkFailing(client), claimed, lambda task_id: task_id in tasks.hidden or task_id not in tasks)
        if is_ours
        else claimed,
        failed=tasks.failed,
        refused=on_refused,
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
        GraphHooks(ready=calls.ready, rearm=calls.rearm, started=loop.append),
        deep=is_ours,
        sweep_s=settings.ingress.sweep_s,
        log=log,
    )
    return graphs, tasks


def _after_s(refusal: GatewayRejectedError) -> float:
    wait_ms = refusal.facts.get("retry_after_ms")
    return max(_LOOK_AFTER_S, wait_ms / 1000.0) if isinstance(wait_ms, int) else _LOOK_AFTER_S
