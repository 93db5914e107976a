"""Comparing what the ingress believes with what the service and Redis say.

The feed wakes, reconciling guarantees. ``Reconciler.with_service`` runs after every
(re)connect of the feed and on a timer; ``with_redis`` on a shorter one: it
renews what still waits in the queue, and enqueues again what Redis lost. Both
are safe to repeat: a message that exists twice starts once.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from dispatch.ats.gateway import AttemptRef
from dispatch.core.graph import GRAPH_MAX
from dispatch.core.lease import renew_at
from dispatch.core.pages import OffsetWalk
from dispatch.errors import GatewayError, GatewayRejectedError
from dispatch.ingress.claims import LIST_FIELDS
from dispatch.ingress.enqueuer import EnqueueError
from dispatch.ingress.intake import IN_PROGRESS, PENDING
from dispatch.ingress.listing import PAGE
from dispatch.ingress.sealed import is_titled

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dispatch.ats.model import Task
    from dispatch.core.lanes import Lanes
    from dispatch.ingress.claims import Claims
    from dispatch.ingress.enqueuer import Enqueuer
    from dispatch.ingress.intake import Intake
    from dispatch.ingress.ledger import Flight, Ledger
    from dispatch.ingress.listing import Listing
    from dispatch.ingress.redis_view import RedisView
    from dispatch.ingress.sealed import Sealed
    from dispatch.ingress.waiting_tasks import WaitingTasks

QUEUED_AGE_MIN_S: Final = 1.0
"""A message younger than this may be between two hands; nobody asks for it yet."""
POPPED_AGE_MAX_S: Final = 2.0
"""A worker accepts what it popped in a moment. A message that stays popped was left behind by one that died
or lost Redis in between: Celery brings it back after minutes, and until then its lease must not be renewed."""
_REFRESH_AT_ONCE: Final = 200
_READ_ON_PAUSE: Final = 20
"""So many times as long as a whole list took to read it is not read again."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What the sweeps work on."""

    listing: Listing
    claims: Claims
    enqueuer: Enqueuer
    view: RedisView
    backlog: Lanes
    ledger: Ledger
    intake: Intake
    waiting: WaitingTasks | None = None
    """Tasks that need others; None where nobody tells what they need."""
    knows_waiting: bool = False
    """Whether the service lists by itself which tasks wait."""
    sealed: Sealed | None = None
    is_paused: Callable[[str], bool] = lambda _: False
    """Whether nothing of a channel may be claimed now."""


class Reconciler:
    """The sweeps of one ingress."""

    def __init__(self, parts: Parts, *, actor_id: str, channels: tuple[str, ...], lease_s: float, log: Any) -> None:
        self._listing = parts.listing
        self._claims = parts.claims
        self._enqueuer = parts.enqueuer
        self._view = parts.view
        self._backlog = parts.backlog
        self._ledger = parts.ledger
        self._intake = parts.intake
        self._waiting = parts.waiting
        self._knows_waiting = parts.knows_waiting
        self._sealed = parts.sealed
        self._is_paused = parts.is_paused
        self._fields = f"{LIST_FIELDS},depends_on,sealed,uuid" if parts.knows_waiting else LIST_FIELDS
        self._actor_id = actor_id
        self._channels = channels
        self._lease_s = lease_s
        self._log = log
        self._popped_at: dict[str, float] = {}
        """When each message that is popped and not accepted was first seen so, by delivery."""
        self._reads_on = False
        self._reads_on_from = 0.0

    def read_on(self) -> bool:
        """Have a listing soon go beyond what is known and what is full: that cannot be claimed, others could.

        Return whether a listing at once is of use.
        """
        self._reads_on = True
        return not self._backlog.is_full() or time.monotonic() >= self._reads_on_from

    async def with_service(self) -> None:
        """List what is pending and what is ours. Raises the GatewayError family."""
        began_at = time.monotonic()
        reads_on = self._reads_on and began_at >= self._reads_on_from
        was_full = self._backlog.is_full()
        self._backlog.truncated = False
        paused = {channel for channel in self._channels if self._is_paused(channel)}
        for channel in self._channels:
            if channel not in paused:  # nobody would claim what a long list of these would bring
                await self._list_pending(channel, beyond_known=reads_on, beyond_full=reads_on and was_full)
            if self._knows_waiting:
                await self._list_waiting(channel)
        if reads_on:
            self._reads_on = False
            self._reads_on_from = time.monotonic() + _READ_ON_PAUSE * (time.monotonic() - began_at)
        await self._list_own()
        is_all = not self._backlog.truncated and not paused
        if self._waiting is not None:
            self._waiting.compare(
                began_at if is_all or self._knows_waiting else 0.0,
                (task_id for task_id, _ in self._ledger.items()),
                hidden_too=is_all,
            )
        if self._sealed is not None and is_all:
            self._sealed.forget_before(began_at)

    async def _list_waiting(self, channel: str) -> None:
        """Read the tasks that wait for others, where the service lists them by themselves."""

        def take(tasks: Sequence[Task]) -> None:
            for task in tasks:
                self._intake.on_task(task)

        await self._listing.each(
            take, most=GRAPH_MAX, status=PENDING, channel=channel, waiting="true", fields=self._fields
        )

    async def _list_pending(self, channel: str, *, beyond_known: bool, beyond_full: bool) -> None:
        """Read pending tasks, best first, until a page brings nothing new or the backlog is full.

        What lies deeper is read when nothing is left that may be claimed (``Lanes.may_lack``), and then ``beyond``
        these two: what is known may stay where it is, and what fills the backlog too, in a lane without room.
        What is claimed meanwhile makes the walk step back; a service may page smaller than it was asked to.
        """
        walk = OffsetWalk()
        while walk.offset is not None:
            tasks = await self._listing.page(
                status=PENDING,
                channel=channel,
                **self._claims.offered,
                sort_by="priority",
                sort_dir="desc",
                offset=walk.offset,
                fields=self._fields,
            )
            is_news = any(task.id not in self._backlog and task.id not in self._ledger for task in tasks)
            for task in tasks:
                self._intake.on_task(task, claimable=self._knows_waiting)
            is_known = not beyond_known and not is_news and len(tasks) >= PAGE
            is_full = not beyond_full and self._backlog.is_full()
            if tasks and (is_known or is_full):
                self._backlog.truncated = True
                return
            walk.take([task.id for task in tasks])
        if not walk.is_whole:
            self._backlog.truncated = True

    async def _list_own(self) -> None:
        """Find our own claims: adopt those of an earlier life, forget those that have ended unheard."""
        before = time.monotonic()
        mine: dict[str, Task] = {}

        def take(tasks: Sequence[Task]) -> None:
            mine.update((task.id, task) for task in tasks if task.assignee_id in (None, self._actor_id))

        is_whole = await self._listing.each(take, status=IN_PROGRESS, assignee_id=self._actor_id, fields=LIST_FIELDS)
        for task in mine.values():
            await self._adopt(task)
        if not is_whole:
            return  # what was not seen may be there: the next reconcile says
        for task_id, flight in self._ledger.items():
            if flight.ref is not None and flight.granted_at < before and task_id not in mine:
                self._ledger.drop(task_id)
                self._intake.ended(task_id)
                self._log.info("flight_ended_unheard", task=task_id, token=flight.ref.token)

    async def _adopt(self, task: Task) -> None:
        if task.id in self._ledger or task.fencing_token is None or task.channel not in self._channels:
            return
        if task.id in self._claims.in_hand:
            return
        attempt = task.attempts if task.runner else task.attempts + 1
        ref = AttemptRef(task.id, attempt, task.fencing_token, self._actor_id)
        if is_titled(task) and not task.runner:
            # Claimed to be answered by us, not by a worker; nobody can say how far that had come.
            with contextlib.suppress(GatewayRejectedError):
                await self._claims.release(ref, reason="The ingress was restarted before it had answered.")
            return
        choice = self._intake.decide(task)
        self._backlog.route(task.id, choice)
        self._ledger.reserve(task.id, task.priority, queue=choice.queue)
        self._ledger.hold(task.id, choice.classes, is_claimed=True)
        # Counting the lease from zero makes the next sweep renew it, if Redis shows the message.
        self._ledger.granted(ref, sent_at=0.0, lease_s=self._lease_s)
        self._ledger.enqueued(ref, 0.0)
        if task.runner:
            self._ledger.started(ref)
        self._log.info("flight_adopted", task=task.id, token=ref.token, started=bool(task.runner))

    async def with_redis(self) -> None:
        """Renew queued claims that Redis shows; find out about those it does not.

        Raises ``redis.RedisError``, ``OSError`` or the GatewayError family.
        """
        queued = list(self._ledger.queued(time.monotonic(), QUEUED_AGE_MIN_S))
        if not queued:
            self._popped_at.clear()
            return
        seen = await self._messages_seen()
        missing: list[tuple[AttemptRef, Flight]] = []
        for ref, flight in queued:
            if f"{ref.task_id}.{ref.token}" in seen:
                await self._renew_if_due(ref, flight)
            else:
                missing.append((ref, flight))
        for start in range(0, len(missing), _REFRESH_AT_ONCE):
            await self._resolve(missing[start : start + _REFRESH_AT_ONCE])

    async def _messages_seen(self) -> set[str]:
        """Return the ids of the messages that somebody will take: queued ones, and those popped just now."""
        queued, unacked = await self._view.messages()
        now = time.monotonic()
        self._popped_at = {delivery: self._popped_at.get(delivery, now) for delivery in unacked}
        return queued | {
            ident for delivery, ident in unacked.items() if now - self._popped_at[delivery] < POPPED_AGE_MAX_S
        }

    async def _renew_if_due(self, ref: AttemptRef, flight: Flight) -> None:
        sent_at = time.monotonic()
        if sent_at < renew_at(flight.granted_at, flight.lease_s):
            return
        try:
            lease_s = await self._claims.renew(ref)
        except GatewayRejectedError as exc:
            # The worker will be told the same when it starts, and drop the message.
            self._ledger.drop(ref.task_id)
            self._log.info("queued_claim_lost", task=ref.task_id, token=ref.token, reason=str(exc))
            return
        self._ledger.renewed(ref, sent_at=sent_at, lease_s=lease_s)

    async def _resolve(self, missing: list[tuple[AttemptRef, Flight]]) -> None:
        """Find out what became of claims whose message Redis does not show."""
        present = await self._claims.refresh([ref for ref, _ in missing])
        for ref, _ in missing:
            task = present.get(ref.task_id)
            still_ours = (
                task is not None
                and task.status == IN_PROGRESS
                and task.fencing_token in (None, ref.token)
                and task.assignee_id in (None, self._actor_id)
            )
            if task is None or not still_ours:
                self._ledger.drop(ref.task_id)
                if task is not None:
                    self._intake.on_task(task)
            elif task.runner:
                self._ledger.started(ref)
            else:
                await self._enqueue_again(ref)

    async def _enqueue_again(self, ref: AttemptRef) -> None:
        try:
            await self._claims.renew(ref)
            choice = self._backlog.choice_of(ref.task_id)
            await self._enqueuer.enqueue(ref, choice.queue)
        except GatewayRejectedError:
            self._ledger.drop(ref.task_id)
        except (GatewayError, EnqueueError) as exc:
            self._log.warning("enqueue_again_failed", task=ref.task_id, token=ref.token, reason=str(exc))
        else:
            self._ledger.enqueued(ref, time.monotonic())
            self._log.warning("message_lost_enqueued_again", task=ref.task_id, token=ref.token)
