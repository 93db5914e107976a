"""Delivering callbacks: takes what is due from the outbox, sends it, reports what became of it.

Woken by the ends of tasks that the feed tells of, and by the time at which the
next delivery is due. It never holds anything up: it runs beside everything else
in the ingress, and what it cannot do now waits in the outbox. If the ingress
dies in between, the delivery's lease runs out and it is sent again under the
same id.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import RedisError

from dispatch import metrics
from dispatch.asynchronous import cancel_all
from dispatch.ats import protocol
from dispatch.ats.model import Task, parse_task, parse_time
from dispatch.core import delivery as core
from dispatch.core.graph import is_settled
from dispatch.core.sealed import is_sealed
from dispatch.errors import AuthenticationError, GatewayError, UnknownTaskError
from dispatch.notify import wishes
from dispatch.notify.webhook import BadUrlError, Webhooks, shown

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dispatch.ats.aclient import AsyncClient
    from dispatch.ingress.outbox import Delivery, Outbox

IN_HAND_MAX: Final = 64
"""How many deliveries are taken at once; SENDING_MAX of them are on their way."""
SENDING_MAX: Final = 16
READING_MAX: Final = 4
"""How many tasks are read at once: their outputs may be large."""
PER_HOST_MAX: Final = 4
PER_HOST_WAITING_MAX: Final = 16
PER_HOST_EVERY_S: Final = 0.05
"""Shortest time between two deliveries to one host."""
TURN_MAX_S: Final = 20.0
"""How long a delivery waits for its turn before it is put back; with a try of 20 s that is within the lease."""
PUT_BACK_S: Final = 3.0
TAKE_EVERY_S: Final = 0.2
"""Shortest time between two looks into the outbox."""
DRAIN_S: Final = 2.0
IDLE_S: Final = 30.0
"""How often the outbox is looked at when nothing is known to be due."""
_SEEN_WAITING_MAX: Final = 10_000
SEALED: Final = "(sealed)"
"""What logs say instead of a URL that a sealed task names inside."""
_AGAIN_S: Final = 2.0
_HOSTS_KEPT_MAX: Final = 1_000


@dataclass(slots=True)
class _Host:
    """How busy we are with one receiver."""

    slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(PER_HOST_MAX))
    users: int = 0
    """Deliveries that wait for it or are on their way to it."""
    next_at: float = 0.0
    """When the next one may begin, monotonic."""


class Deliveries:
    """Delivers for one ingress while ``run`` runs; ``saw_end`` is told of every task that is seen to have ended."""

    def __init__(
        self,
        outbox: Outbox,
        client: AsyncClient,
        webhooks: Webhooks,
        *,
        effective: wishes.Reader = wishes.effective,
        log: Any,
    ) -> None:
        self._outbox = outbox
        self._client = client
        self._webhooks = webhooks
        self._effective = effective
        self._log = log
        self._wake = asyncio.Event()
        self._seen: asyncio.Queue[str] = asyncio.Queue(_SEEN_WAITING_MAX)
        self._sending = asyncio.Semaphore(SENDING_MAX)
        self._reading = asyncio.Semaphore(READING_MAX)
        self._in_hand: set[asyncio.Task[None]] = set()
        self._hosts: dict[str, _Host] = {}
        self._is_away = False
        self._is_draining = False

    def saw_end(self, task_id: str) -> None:
        """Hear that a task has ended."""
        if self._outbox.keeps_itself:
            self._wake.set()
            return
        with contextlib.suppress(asyncio.QueueFull):
            self._seen.put_nowait(task_id)

    async def run(self) -> None:
        """Deliver, for ever. What is on its way when this is cancelled is sent again after its lease."""
        noting = asyncio.create_task(self._note_all(), name="ends")
        try:
            while True:
                wait_s = await self._take_due()
                # Ends may come by the hundred a second; they are looked at together.
                await asyncio.sleep(TAKE_EVERY_S)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), wait_s)
                self._wake.clear()
        finally:
            await cancel_all([noting, *self._in_hand])

    async def drain(self) -> None:
        """Take nothing more, and give what is on its way DRAIN_S."""
        self._is_draining = True
        if self._in_hand:
            await asyncio.wait(self._in_hand, timeout=DRAIN_S)

    async def _take_due(self) -> float:
        """Begin with what is due, as far as there is room; return how long to wait for more, in seconds."""
        room = 0 if self._is_draining else IN_HAND_MAX - len(self._in_hand)
        if room <= 0:
            return IDLE_S  # whoever ends wakes us
        try:
            taken = await self._outbox.take(room)
        except AuthenticationError:
            return IDLE_S  # the reconcile says so, once
        except Exception as exc:  # noqa: BLE001  Redis may hold anything; the ingress must not end for it.
            if not self._is_away:
                self._log.warning("outbox_unreachable", reason=str(exc) or type(exc).__name__)
            self._is_away = True
            return _AGAIN_S
        self._is_away = False
        for delivery in taken.deliveries:
            self._begin(delivery)
        if len(taken.deliveries) >= room or taken.next_due_s is None:
            return IDLE_S
        return min(max(taken.next_due_s, 0.01), IDLE_S)

    def _begin(self, delivery: Delivery) -> None:
        task = asyncio.create_task(self._deliver(delivery), name=f"delivery {delivery.id}")
        self._in_hand.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        is_full = len(self._in_hand) >= IN_HAND_MAX
        self._in_hand.discard(task)
        if is_full:
            self._wake.set()

    async def _note_all(self) -> None:
        """Write the ends of tasks into an outbox that does not see them itself."""
        while True:
            task_id = await self._seen.get()
            try:
                task = parse_task(await self._client.send(protocol.get(task_id)))
                if is_settled(task.status) and wishes.may_ask(task):
                    await self._outbox.note(task)
                    self._wake.set()
            except UnknownTaskError:
                continue
            except Exception as exc:  # noqa: BLE001  Whatever it is, the next one may be good.
                self._log.warning("end_not_noted", task=task_id, reason=str(exc) or type(exc).__name__)
                await asyncio.sleep(_AGAIN_S)
                self.saw_end(task_id)

    async def _deliver(self, delivery: Delivery) -> None:
        """Send one delivery and report. Whatever goes wrong with it, the others go on."""
        try:
            await self._send(delivery)
        except (GatewayError, RedisError, OSError) as exc:
            # Its lease runs out and it comes back.
            reason = str(exc) or type(exc).__name__
            self._log.warning("delivery_delayed", delivery=delivery.id, task=delivery.task_id, reason=reason)
        except Exception as exc:  # noqa: BLE001  A mistake in one must not end all; it is told below.
            self._log.error(
                "delivery_broken", delivery=delivery.id, task=delivery.task_id, reason=f"{type(exc).__name__}"
            )

    async def _send(self, delivery: Delivery) -> None:
        try:
            url, body, name = await self._read(delivery)
        except UnknownTaskError:
            await self._settle(delivery, "", core.Verdict("failed", error="task_unknown"))
            return
        if url is None:
            await self._outbox.report(delivery, "empty")
            metrics.count("dispatch_deliveries_total", outcome="empty")
            return
        try:
            host = self._webhooks.check(url).authority
        except BadUrlError as exc:
            error = "url_refused" if name == SEALED else str(exc)
            await self._settle(delivery, name, core.Verdict("failed", error=error))
            return
        answer = None
        async with self._turn(host) as is_ours:
            if is_ours:
                answer = await self._webhooks.send(url, delivery.id, body)
        if answer is None:
            await self._put_back(delivery)
        else:
            await self._settle(delivery, name, core.judge(answer, delivery.tries, random.random()))  # noqa: S311

    async def _read(self, delivery: Delivery) -> tuple[str | None, bytes, str]:
        """Return whom to call, what to say, and what the log may say of whom.

        Of the task, which may be large, nothing else is kept.
        """
        async with self._reading:
            task = parse_task(await self._client.send(protocol.get(delivery.task_id)))
            wanted = self._effective(task)
            url = wanted.callback_url
            if url is not None and wanted.message is not None:
                # A copy of somebody's sealed message must not make us call whom its sender named.
                url = url if await self._outbox.is_original(delivery, wanted.message) else None
            name = SEALED if is_sealed(task.payload) else shown(url or "")
            return url, core.body(ended_of(delivery, task)), name

    async def _put_back(self, delivery: Delivery) -> None:
        """Let somebody else have it, or us a moment later; that is no try."""
        delay_s = PUT_BACK_S * (1 + random.random())  # noqa: S311  Spreads load; not a secret.
        await self._outbox.report(delivery, "retry", delay_s=delay_s, counted=False)
        self._wake.set()

    @contextlib.asynccontextmanager
    async def _turn(self, name: str) -> AsyncIterator[bool]:
        """Wait until a delivery to this host may begin; False when too many wait for that already, or for too long."""
        if len(self._hosts) > _HOSTS_KEPT_MAX:
            self._hosts = {name: host for name, host in self._hosts.items() if host.users}
        host = self._hosts.setdefault(name, _Host())
        if host.users >= PER_HOST_MAX + PER_HOST_WAITING_MAX:
            yield False
            return
        host.users += 1
        try:
            async with contextlib.AsyncExitStack() as held:
                yield await self._is_admitted(host, held)
        finally:
            host.users -= 1

    async def _is_admitted(self, host: _Host, held: contextlib.AsyncExitStack) -> bool:
        try:
            async with asyncio.timeout(TURN_MAX_S):
                await held.enter_async_context(host.slots)
                await held.enter_async_context(self._sending)
                now = time.monotonic()
                pause_s = max(0.0, host.next_at - now)
                host.next_at = now + pause_s + PER_HOST_EVERY_S
                await asyncio.sleep(pause_s)
        except TimeoutError:
            return False
        return True

    async def _settle(self, delivery: Delivery, name: str, verdict: core.Verdict) -> None:
        metrics.count("dispatch_deliveries_total", outcome=verdict.outcome)
        facts = {"delivery": delivery.id, "task": delivery.task_id, "url": name, "tries": delivery.tries}
        if verdict.outcome == "delivered":
            self._log.info("callback_delivered", **facts)
        elif verdict.outcome == "retry":
            self._log.info("callback_retry", **facts, error=verdict.error, pause_s=round(verdict.delay_s, 1))
        else:
            self._log.warning("callback_failed", **facts, error=verdict.error)
        await self._outbox.report(delivery, verdict.outcome, delay_s=verdict.delay_s, error=verdict.error)
        if verdict.outcome == "retry":
            self._wake.set()


def ended_of(delivery: Delivery, task: Task) -> core.Ended:
    """Return what a delivery tells of its task, as the task is now."""
    completed_at = parse_time((task.raw or {}).get("completed_at"))
    is_same_end = completed_at is None or completed_at == parse_time(delivery.settled_at)
    return core.Ended(
        task_id=delivery.task_id,
        status=delivery.status,
        settled_at=delivery.settled_at,
        title=task.title,
        channel=task.channel,
        outputs=task.outputs,
        reason=task.reason,
        is_encrypted=is_sealed(task.payload),
        is_stale=task.status != delivery.status or not is_same_end,
    )
