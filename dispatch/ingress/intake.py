"""What news about a task means for the backlog and the ledger.

News come from the feed and from listings, in any order, twice or never. Each is
only a hint: the worst that a wrong one can cause is a claim that is refused.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from dispatch import metrics
from dispatch.core.graph import is_settled
from dispatch.core.lifecycle import ATS_WORD, Status
from dispatch.core.routing import TaskTraits, choose
from dispatch.ingress.sealed import Seen

if TYPE_CHECKING:
    from collections.abc import Callable

    from dispatch.ats.model import Event, Task
    from dispatch.core.lanes import Lanes
    from dispatch.core.routing import Choice, Routing
    from dispatch.ingress.ledger import Ledger
    from dispatch.ingress.sealed import Sealed
    from dispatch.ingress.waiting_tasks import WaitingTasks

PENDING: Final = ATS_WORD[Status.TODO]
IN_PROGRESS: Final = ATS_WORD[Status.IN_PROGRESS]

EVENTS: Final = (
    "created",
    "reopened",
    "lease_expired",
    "updated",
    "released",
    "unlocked",
    "recovered",
    "cancelled",
    "failed",
    "completed",
    "rejected",
    "ready",
)
"""What the ingress wants to hear; the verbs of ``task.*`` events."""


@dataclass(frozen=True, slots=True)
class Errands:
    """What follows from news and is done later; each is called with a task id and must not block.

    ``is_paused`` is asked with a channel.
    """

    wake: Callable[[str], None]
    """Somebody else than the holder ended a task that may be running."""
    look: Callable[[str], None]
    """News came without all that must be known of a task: somebody should read it."""
    register: Callable[[str], None] = lambda _: None
    """The task asks to trust a key."""
    ended: Callable[[str], None] = lambda _: None
    """The task is seen to have ended; called any number of times."""
    places_free: Callable[[str, tuple[str, ...]], None] = lambda _id, _classes: None
    """The task has ended and needs its places in these classes no longer."""
    stopping: Callable[[str], None] = lambda _: None
    """Said before anything else of what ``wake`` is called with: the child may outlive the task for a moment."""
    is_paused: Callable[[str, str], bool] = lambda _channel, _queue: False
    """Whether nothing of a channel may be claimed for a queue now."""


class Intake:
    """Sorts news into backlog and ledger.

    ``waiting`` takes tasks that need others; None where the service alone keeps
    them back. ``sealed`` looks into tasks of which news does not tell all.
    ``routing`` decides where each goes.
    """

    def __init__(
        self,
        *,
        channels: tuple[str, ...],
        backlog: Lanes,
        routing: Routing,
        ledger: Ledger,
        clock_offset_s: Callable[[], float],
        errands: Errands,
        waiting: WaitingTasks | None = None,
        sealed: Sealed | None = None,
    ) -> None:
        self._channels = frozenset(channels)
        self._backlog = backlog
        self._routing = routing
        self._ledger = ledger
        self._clock_offset_s = clock_offset_s
        self._wake = errands.wake
        self._look = errands.look
        self._register = errands.register
        self._waiting = waiting
        self._sealed = sealed
        self.ended = errands.ended
        self._places_free = errands.places_free
        self._stopping = errands.stopping
        self._is_paused = errands.is_paused

    def on_event(self, event: Event) -> None:
        """Take one event of the feed."""
        if event.verb not in EVENTS:
            return
        task = event.task
        if task is None or not task.status:
            self._look(event.task_id)
            return
        if event.verb == "ready" and self._waiting is not None:
            self._waiting.freed(task.id)
        if event.verb == "updated" and self._sealed is not None:
            self._sealed.changed(task.id)
        if task.updated_at is not None:
            now_s = time.time() + self._clock_offset_s()
            metrics.observe("dispatch_feed_lag_seconds", now_s - task.updated_at.timestamp())
        if self._ended_by_another(event, task):
            self._stopping(task.id)
            self._wake(task.id)
        self.on_task(task)

    def on_task(self, task: Task, *, read_now: bool = False, claimable: bool = False) -> None:
        """Take the state of a task as some answer or event shows it.

        ``read_now`` says that it was asked for because of news about this very task, and is
        all of it; ``claimable`` that the service says it waits for nothing.
        """
        if task.channel and task.channel not in self._channels:
            self._backlog.discard(task.id)
            return
        if task.status == PENDING:
            self._on_pending(task, read_now=read_now, claimable=claimable)
            return
        if task.status == IN_PROGRESS:
            self._backlog.discard(task.id)
        else:
            if is_settled(task.status):
                self._places_free(task.id, self.decide(task).classes)
            self._backlog.forget(task.id)
        if self._sealed is not None:
            self._sealed.left(task.id)
        if is_settled(task.status):
            self.ended(task.id)
        if self._waiting is not None:
            self._waiting.left(task)
        if task.status != IN_PROGRESS and self._ledger.concerns(task.id, task.fencing_token):
            self._ledger.ended(task.id, time.monotonic())

    def _on_pending(self, task: Task, *, read_now: bool, claimable: bool) -> None:
        if task.id in self._ledger:
            if task.fencing_token is None and not read_now:
                # Without tokens nobody can tell whether this was before or after our claim: look again.
                self._look(task.id)
                return
            if not self._ledger.concerns(task.id, task.fencing_token):
                return
            self._ledger.ended(task.id, time.monotonic())
        seen = Seen(task) if self._sealed is None else self._sealed.see(task, is_whole=read_now)
        if seen is not None:
            self._backlog.route(task.id, choose(self._routing, traits_of_task(seen.task, seen.sender)))
        if seen is None:
            self._backlog.discard(task.id)
            if self._waiting is not None:
                self._waiting.still_pending(task.id)
            self._look(task.id)
        elif seen.registers:
            self._backlog.discard(task.id)
            self._register(task.id)
        elif self._must_wait(seen, claimable=claimable) or self._is_paused(
            task.channel, self._backlog.choice_of(task.id).queue
        ):
            self._backlog.discard(task.id)
        else:
            self._backlog.add(task.id, task.priority, self._due(task))

    def decide(self, task: Task) -> Choice:
        """Decide about a task in whatever state; about a sealed one as was decided while it was pending."""
        return self._backlog.choice_of(task.id) if task.sealed else choose(self._routing, traits_of_task(task, None))

    def _must_wait(self, seen: Seen, *, claimable: bool) -> bool:
        if self._waiting is None:
            return False
        if claimable and not seen.hidden:
            self._waiting.claimable(seen.task)
        return self._waiting.holds(seen.task, hidden=seen.hidden)

    def _due(self, task: Task) -> float:
        """Return when the task may be claimed on our monotonic clock; 0 means now."""
        if task.not_before_at is None:
            return 0.0
        now = datetime.now(UTC).timestamp() + self._clock_offset_s()
        wait_s = task.not_before_at.timestamp() - now
        return time.monotonic() + wait_s if wait_s > 0 else 0.0

    def _ended_by_another(self, event: Event, task: Task) -> bool:
        if event.verb == "cancelled":
            return True
        flight = self._ledger.get(task.id)
        return flight is not None and flight.ref is not None and event.actor_id != flight.ref.actor_id


def traits_of_task(task: Task, sender: str | None) -> TaskTraits:
    """Return what a decision about where a task goes looks at."""
    return TaskTraits(task.channel, task.type, sender, task.traits)
