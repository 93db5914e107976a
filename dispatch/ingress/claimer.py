"""From backlog to queue: claim within the admission window, best first, and enqueue.

This is the one door through which every task goes, new, retried, taken over or
freed by its dependencies.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import RedisError

from dispatch import metrics
from dispatch.core.admission import credit_for, free_window, step_for
from dispatch.core.retry import is_poison, poison_reason
from dispatch.errors import AuthenticationError, GatewayError, GatewayRejectedError
from dispatch.ingress import tracing
from dispatch.ingress.enqueuer import EnqueueError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from dispatch.ats.gateway import AttemptRef
    from dispatch.ats.model import Task
    from dispatch.core.lanes import Lane, Lanes
    from dispatch.ingress.claims import Claim, Claims
    from dispatch.ingress.classes import Classes
    from dispatch.ingress.enqueuer import Enqueuer
    from dispatch.ingress.ledger import Ledger

CLAIMS_A_CALL_MAX: Final = 64
CLAIM_CALLS_AT_ONCE: Final = 2
"""More would only make the calls smaller: what frees up while two are under way shares the next one."""
_DRAIN_S: Final = 10.0
_PAUSE_FIRST_S: Final = 0.5
_PAUSE_MAX_S: Final = 15.0
_NOT_READY_DEFAULT_S: Final = 1.0
_REASON_CHARS_MAX: Final = 4_000


@dataclass(slots=True)
class Capacity:
    """What Redis shows of the fleet, by queue. ``redis_ok`` False stops claiming: nothing could be handed on."""

    slots: dict[str, int] = field(default_factory=dict)
    others_in_flight: dict[str, int] = field(default_factory=dict)
    redis_ok: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """Counts from the settings."""

    credit: int
    max_lease_losses: int


@dataclass(frozen=True, slots=True)
class Hooks:
    """Whom the claimer asks and tells."""

    refill: Callable[[], None]
    """Called when there is room but nothing left that may be claimed, and the service may know more of that."""
    may_run: Callable[[Task], bool] = lambda _: True
    """Has the last word on a task as the claim shows it."""
    must_wait: Callable[[str, frozenset[str]], None] = lambda *_: None
    """Hears the id of a task whose claim the service refused because it waits for others."""
    may_claim: Callable[[Lane], bool] = lambda _: True
    """Says whether tasks of a lane may be claimed now, room or not."""


class Claimer:
    """Claims while there is room. ``kick`` after anything changed that may make room or bring work."""

    def __init__(
        self,
        claims: Claims,
        enqueuer: Enqueuer,
        backlog: Lanes,
        ledger: Ledger,
        classes: Classes,
        *,
        limits: Limits,
        log: Any,
        hooks: Hooks,
    ) -> None:
        self.capacity = Capacity()
        self._claims = claims
        self._enqueuer = enqueuer
        self._backlog = backlog
        self._ledger = ledger
        self._classes = classes
        self._limits = limits
        self._log = log
        self._hooks = hooks
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._calls = 0
        self._paused_until = 0.0
        self._pauses = 0
        self._draining = False

    def kick(self) -> None:
        """Look again whether something can be claimed."""
        self._wake.set()

    def free(self) -> dict[str, int]:
        """Return how many tasks may be claimed now, for each queue that has room."""
        if self._draining or not self.capacity.redis_ok or self._calls >= CLAIM_CALLS_AT_ONCE:
            return {}
        credit = credit_for(self._ledger.pace.rate(time.monotonic()), self._limits.credit)
        own = self._ledger.in_flight()
        windows = {
            queue: free_window(
                slots=slots,
                credit=credit,
                own_in_flight=own.get(queue, 0),
                others_in_flight=self.capacity.others_in_flight.get(queue, 0),
                step=step_for(credit, self._limits.credit),
            )
            for queue, slots in self.capacity.slots.items()
        }
        return {queue: window for queue, window in windows.items() if window > 0}

    async def run(self) -> None:
        """Claim until cancelled."""
        metrics.watch("dispatch_in_flight_tasks", lambda: len(self._ledger))
        metrics.watch("dispatch_backlog_tasks", lambda: len(self._backlog))
        metrics.watch("dispatch_fleet_slots", lambda: sum(self.capacity.slots.values()))
        metrics.watch("dispatch_redis_up", lambda: float(self.capacity.redis_ok))
        while True:
            self._claim_what_fits()
            try:
                await asyncio.wait_for(self._wake.wait(), self._patience_s())
            except TimeoutError:
                continue
            finally:
                self._wake.clear()

    async def drain(self) -> None:
        """Claim nothing more and wait until the claims under way are enqueued or given back."""
        self._draining = True
        deadline = time.monotonic() + _DRAIN_S
        while self._tasks and time.monotonic() < deadline:
            await asyncio.wait(self._tasks, timeout=deadline - time.monotonic())

    def _patience_s(self) -> float | None:
        """Return how long to sleep when nothing happens; None for ever."""
        moments = [self._backlog.next_due(), self._classes.next_try() if self._backlog.waiting() else None]
        if self._paused_until > time.monotonic():
            moments.append(self._paused_until)
        known = [moment for moment in moments if moment is not None]
        return max(0.0, min(known) - time.monotonic()) + 0.001 if known else None

    def _claim_what_fits(self) -> None:
        now = time.monotonic()
        if now < self._paused_until:
            return
        rooms = self.free()
        if not rooms:
            return

        def is_open(lane: Lane) -> bool:
            return (
                rooms.get(lane.queue, 0) > 0
                and self._classes.may_have_room(lane.classes, now)
                and self._hooks.may_claim(lane)
            )

        batch: dict[str, int] = {}
        while len(batch) < CLAIMS_A_CALL_MAX:
            candidate = self._backlog.pop(now, is_open)
            if candidate is None:
                if any(rooms.values()) and self._backlog.may_lack(is_open):
                    self._hooks.refill()
                break
            task_id, priority = candidate
            if task_id not in self._ledger:
                choice = self._backlog.choice_of(task_id)
                rooms[choice.queue] -= 1
                self._ledger.reserve(task_id, priority, queue=choice.queue)
                batch[task_id] = priority
        if batch:
            self._calls += 1
            self._spawn(self._claim(batch))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._log.error("admission_broken", error=repr(error))
        self.kick()

    async def _claim(self, batch: dict[str, int]) -> None:
        """Claim what was taken from the backlog, in one call; what frees up meanwhile goes into the next one."""
        try:
            batch = await self._take_places(batch)
            results = await self._claims.claim(list(batch)) if batch else []
        except BaseException as exc:
            for task_id, priority in batch.items():
                self._put_back(task_id, priority)
            if isinstance(exc, RedisError | OSError):
                self.capacity.redis_ok = False
                return
            if not isinstance(exc, GatewayError):
                raise
            metrics.count("dispatch_claims_total", len(batch), result="error")
            self._pause(exc)
            return
        finally:
            self._calls -= 1
        self._pauses = 0
        for (task_id, priority), result in zip(batch.items(), results, strict=True):
            if isinstance(result, GatewayRejectedError):
                metrics.count("dispatch_claims_total", result="refused")
                self._ledger.drop(task_id)
                self._refused(task_id, priority, result)
            else:
                metrics.count("dispatch_claims_total", result="granted")
                self._ledger.granted(result.ref, sent_at=result.sent_at, lease_s=result.lease_s)
                tracing.claimed(result)
                self._spawn(self._admit(result))

    async def _take_places(self, batch: dict[str, int]) -> dict[str, int]:
        """Return what has got the places that it needs in its classes; the rest goes back and holds nothing."""
        taken = {}
        for task_id, priority in batch.items():
            classes = self._backlog.choice_of(task_id).classes
            if not classes or await self._classes.take(task_id, classes):
                self._ledger.hold(task_id, classes)
                taken[task_id] = priority
        for task_id, priority in batch.items():
            if task_id not in taken:
                self._put_back(task_id, priority)
        return taken

    def _put_back(self, task_id: str, priority: int) -> None:
        self._ledger.drop(task_id)
        self._backlog.add(task_id, priority)

    async def _admit(self, claim: Claim) -> None:
        if is_poison(
            claim.task.attempts,
            claim.task.lease_losses,
            max_attempts=self._backlog.choice_of(claim.task.id).max_attempts,
            max_lease_losses=self._limits.max_lease_losses,
        ):
            await self._fail_poison(claim)
        elif not self._hooks.may_run(claim.task):
            await self._give_back(claim.ref, "The task waits for others, or was paused.")
        else:
            await self._enqueue(claim)

    async def _enqueue(self, claim: Claim) -> None:
        ref = claim.ref
        choice = self._backlog.choice_of(ref.task_id)
        began_ns = time.time_ns()
        try:
            if choice.classes:
                if not await self._classes.confirm(ref.task_id, choice.classes):
                    await self._give_back(ref, "Its places in classes were lost before it was queued.")
                    return
                self._ledger.hold(ref.task_id, choice.classes, is_claimed=True)
            await self._enqueuer.enqueue(ref, choice.queue)
        except (EnqueueError, RedisError, OSError) as exc:
            tracing.enqueued(claim, choice.queue, began_ns, "not_taken")
            self.capacity.redis_ok = False
            self._log.error("enqueue_failed", task=ref.task_id, token=ref.token, reason=str(exc))
            await self._give_back(ref, "The queue did not take the task.")
            return
        self._ledger.enqueued(ref, time.monotonic())
        tracing.enqueued(claim, choice.queue, began_ns)
        self._log.info("task_enqueued", task=ref.task_id, token=ref.token, attempt=ref.attempt)

    async def _give_back(self, ref: AttemptRef, reason: str) -> None:
        self._ledger.drop(ref.task_id)
        try:
            await self._claims.release(ref, reason=reason)
        except GatewayError as exc:
            self._log.warning("release_failed", task=ref.task_id, token=ref.token, reason=str(exc))

    async def _fail_poison(self, claim: Claim) -> None:
        ref = claim.ref
        reason = poison_reason(self._backlog.choice_of(ref.task_id).max_attempts)
        self._ledger.drop(ref.task_id)
        try:
            if last := await self._claims.last_reason(ref.task_id):
                reason = f"{reason}: {last}"[:_REASON_CHARS_MAX]
            await self._claims.fail(ref, reason)
        except GatewayError as exc:
            # The lease runs out and the task comes by here again.
            self._log.warning("poison_fail_failed", task=ref.task_id, token=ref.token, reason=str(exc))
            return
        self._log.warning("task_poison", task=ref.task_id, token=ref.token, attempts=claim.task.attempts)

    def _refused(self, task_id: str, priority: int, exc: GatewayRejectedError) -> None:
        if exc.code == "NOT_READY" and "retry_after_ms" in exc.facts:
            wait_s = _seconds(exc.facts["retry_after_ms"])
            self._backlog.add(task_id, priority, due=time.monotonic() + wait_s)
        elif exc.code == "NOT_READY":
            self._hooks.must_wait(task_id, _missing(exc.facts.get("waits_for")))
        self._log.debug("claim_refused", task=task_id, code=exc.code, status=exc.status, reason=str(exc))

    def _pause(self, exc: GatewayError) -> None:
        now = time.monotonic()
        if now < self._paused_until:
            return
        step = min(_PAUSE_FIRST_S * 2.0 ** min(self._pauses, 10), _PAUSE_MAX_S)
        asked = getattr(exc, "retry_after_s", None) or 0.0
        self._pauses += 1
        self._paused_until = now + max(step * random.uniform(0.5, 1.0), asked)  # noqa: S311  Jitter, not a secret.
        if isinstance(exc, AuthenticationError) and self._pauses > 1:
            return  # said once; until somebody mends it there is nothing new
        self._log.warning("claiming_paused", pause_s=round(self._paused_until - now, 3), reason=str(exc))


def _missing(waits_for: Any) -> frozenset[str]:
    """Return the names that no task of the project has, of what a refusal says that a task waits for."""
    items = [item for item in waits_for if isinstance(item, dict)] if isinstance(waits_for, list) else []
    return frozenset(str(item.get("name")) for item in items if item.get("status") == "missing")


def _seconds(millis: Any) -> float:
    if isinstance(millis, int | float) and not isinstance(millis, bool):
        return max(0.0, min(millis / 1000.0, 86_400.0))
    return _NOT_READY_DEFAULT_S
