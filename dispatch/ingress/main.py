"""The ingress process: feed, claimer and sweeps in one event loop, and its end.

It holds nothing that cannot be rebuilt. Four loops run side by side; each
survives the loss of what it talks to, and none waits for another:

- feed: events into backlog and ledger; a reconcile after every (re)connect
- claimer: claims within the window and enqueues
- redis: presence of the fleet, renewing and re-enqueueing what is queued
- reconcile: the timer

SIGTERM and SIGINT drain: nothing more is claimed; what is queued stays queued.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from redis.exceptions import RedisError

from dispatch.asynchronous import cancel_all
from dispatch.ats import protocol
from dispatch.ats.aclient import AsyncClient
from dispatch.ats.choose import has_fencing
from dispatch.ats.feed import Connected, Disconnected, Feed
from dispatch.ats.model import Event
from dispatch.broker import connect_async
from dispatch.core.lanes import Lanes
from dispatch.core.presence import PRESENCE_EVERY_S, IngressPresence, slots_of
from dispatch.core.routing import TaskTraits, choose
from dispatch.core.sealed import is_sealed
from dispatch.core.standing import KEY_TROUBLE, SERVICE_TROUBLE
from dispatch.crypto.files import key_files
from dispatch.errors import AuthenticationError, GatewayError
from dispatch.ingress.claimer import Claimer, Hooks, Limits
from dispatch.ingress.claims import FencedClaims
from dispatch.ingress.class_loop import ClassLoop
from dispatch.ingress.class_truth import ClassTruth
from dispatch.ingress.enqueuer import Enqueuer
from dispatch.ingress.errands import LOOK_FIELDS, Looks, Wakes
from dispatch.ingress.graph_parts import Calls, GraphsOf, graphs_of, make_graphs
from dispatch.ingress.intake import EVENTS, Errands, Intake
from dispatch.ingress.key_watch import KeyWatch
from dispatch.ingress.ledger import Ledger
from dispatch.ingress.listing import Listing
from dispatch.ingress.plain_claims import PlainClaims
from dispatch.ingress.reconcile import Parts, Reconciler
from dispatch.ingress.redis_view import RedisView
from dispatch.ingress.registration import Registrar
from dispatch.ingress.sealed import Sealed
from dispatch.ingress.steering import Orders
from dispatch.ingress.telling import Telling
from dispatch.log import get_logger
from dispatch.notify.wishes import Wishes, effective

if TYPE_CHECKING:
    from dispatch.ats.model import Actor, Task
    from dispatch.ingress.claims import Claims
    from dispatch.settings import Settings

_REFILL_EVERY_S: Final = 0.25
"""Shortest time between two listings, whoever asks for them."""
_AGAIN_S: Final = 2.0
"""Between two listings while the service does not answer."""
_REDIS_PAUSE_S: Final = 0.5


class Ingress:
    """One ingress. ``run`` until ``stop`` is called or the process is signalled."""

    def __init__(self, settings: Settings, actor: Actor, *, extensions: frozenset[str] = frozenset()) -> None:
        """``extensions`` is what the task service announces."""
        graphs = graphs_of(extensions)
        self._settings = settings
        self._actor = actor
        self._log = get_logger("ingress")
        self._key = KeyWatch(self._log)
        self._stopping = asyncio.Event()
        self._sweep_now = asyncio.Event()
        self._reconcile_now = asyncio.Event()
        self._redis = connect_async(settings.broker)
        self._view = RedisView(self._redis, settings.routing.queues())
        self._client = AsyncClient(protocol.endpoint_of(settings.ats), actor)
        self._listing = Listing(self._client, extensions)
        self._backlog = Lanes(choose(settings.routing, TaskTraits("")))
        self._class_loop = ClassLoop(settings, self._redis, actor.id, changed=self._kick, log=self._log)
        self._ledger = Ledger(gone=self._class_loop.gone)
        self._enqueuer = Enqueuer(settings)
        fenced = has_fencing(extensions)
        self._claims = self._make_claims(fenced=fenced)
        self._orders = Orders(self._client, self._redis, extensions=extensions, changed=self._steered, log=self._log)
        self._wakes = Wakes(self._view, log=self._log)
        self._looks = self._make_looks(fenced=fenced)
        self._knows_needs = knows_needs = graphs is GraphsOf.SERVICE
        files = key_files(settings)
        self._sealed = Sealed(files.trust, is_thin=fenced, knows_needs=knows_needs, log=self._log)
        self._class_truth = ClassTruth(
            self._listing, self._claims, self._sealed, self._looks.read, routing=settings.routing, is_fenced=fenced
        )
        self._registrar = Registrar(self._claims, files, read=self._looks.read, log=self._log)
        self._graphs, waiting = make_graphs(
            settings,
            graphs,
            client=self._client,
            redis=self._redis,
            claims=self._claims,
            sealed=self._sealed,
            looks=self._looks,
            calls=Calls(ready=self._make_ready, rearm=self._reconcile_now.set),
        )
        self._waiting = waiting
        self._claimer = self._make_claimer()
        self._telling = Telling(
            settings, self._client, self._redis, extensions=extensions, effective=self._wishes_of, log=self._log
        )
        self._intake = self._make_intake()
        self._reconciler = self._make_reconciler()
        verbs = (*EVENTS, *self._telling.notices.verbs)
        self._feed = Feed(self._client.endpoint, actor, settings.ats.channels, verbs=verbs)
        self._feed_is_up = True
        self._ready_logged = False
        self._trouble = ""

    def _make_looks(self, *, fenced: bool) -> Looks:
        fields = LOOK_FIELDS if fenced else ()
        return Looks(self._client, take=self._look_at, key_is_refused=self._key.refused, log=self._log, fields=fields)

    def _make_reconciler(self) -> Reconciler:
        settings = self._settings
        return Reconciler(
            Parts(
                self._listing,
                self._claims,
                self._enqueuer,
                self._view,
                self._backlog,
                self._ledger,
                self._intake,
                self._waiting,
                knows_waiting=self._knows_needs,
                sealed=self._sealed,
                is_paused=lambda channel: self._orders.holds(channel, ""),
            ),
            actor_id=self._actor.id,
            channels=settings.ats.channels,
            lease_s=settings.execution.lease_s,
            log=self._log,
        )

    def _make_claims(self, *, fenced: bool) -> Claims:
        lease_s = self._settings.execution.lease_s
        if fenced:
            return FencedClaims(self._client, self._actor, lease_s)
        return PlainClaims(self._client, self._redis, self._actor, lease_s)

    def _make_intake(self) -> Intake:
        return Intake(
            channels=self._settings.ats.channels,
            routing=self._settings.routing,
            backlog=self._backlog,
            ledger=self._ledger,
            clock_offset_s=self._client.clock_offset_s,
            errands=Errands(
                wake=self._wakes.add,
                look=self._looks.add,
                register=self._registrar.add,
                ended=self._telling.deliveries.saw_end,
                places_free=self._class_loop.ended,
                stopping=self._class_loop.stopping,
                is_paused=self._orders.holds,
            ),
            waiting=self._waiting,
            sealed=self._sealed,
        )

    def _make_claimer(self) -> Claimer:
        settings = self._settings
        return Claimer(
            self._claims,
            self._enqueuer,
            self._backlog,
            self._ledger,
            self._class_loop.classes,
            limits=Limits(settings.ingress.credit, settings.execution.max_lease_losses),
            log=self._log,
            hooks=Hooks(self._refill, self._may_run, self._must_wait),
        )

    async def run(self) -> None:
        """Run until stopped, then drain."""
        self._enqueuer.start()
        if self._graphs is not None:
            self._graphs.start()
        loops = [
            asyncio.create_task(loop, name=name)
            for name, loop in (
                ("feed", self._feed_loop()),
                ("claimer", self._claimer.run()),
                ("redis", self._redis_loop()),
                ("presence", self._presence_loop()),
                ("reconcile", self._reconcile_loop()),
                ("wakes", self._wakes.run()),
                ("looks", self._looks.run()),
                ("registrations", self._registrar.run()),
                *self._class_loop.loops(self._class_truth, self._ledger),
                ("steering", self._orders.run()),
                *(self._graphs.loops() if self._graphs is not None else ()),
            )
        ]
        loops += self._telling.start()
        stopping = asyncio.create_task(self._stopping.wait(), name="stopping")
        try:
            await asyncio.wait([*loops, stopping], return_when=asyncio.FIRST_COMPLETED)
            for loop in loops:
                if loop.done() and (error := loop.exception()):
                    raise error
            self._log.info("ingress_draining", in_flight=len(self._ledger))
            await asyncio.gather(self._claimer.drain(), self._telling.drain())
        finally:
            await cancel_all([*loops, stopping])
            with contextlib.suppress(RedisError, OSError):
                await self._view.leave(self._actor.id)
            await self._enqueuer.stop()
            if self._graphs is not None:
                await self._graphs.stop()
            await self._client.close()
            await self._redis.aclose()
            self._log.info("ingress_stopped")

    def stop(self) -> None:
        """Begin to drain; safe from a signal handler of the event loop."""
        self._stopping.set()

    def _make_ready(self, task_id: str, priority: int) -> None:
        if self._orders.any_pause():
            self._looks.add(task_id)  # what it shows then says whether it is of a paused channel
            return
        self._backlog.add(task_id, priority)
        self._claimer.kick()

    def _steered(self) -> None:
        """Begin anew with what may be claimed: the backlog does not know which of its tasks are paused now."""
        self._backlog.clear()
        self._reconcile_now.set()

    def _wishes_of(self, task: Task) -> Wishes:
        """Return whom a whole task wants told of its end; of a sealed one its sealed part says it."""
        wishes = Wishes(*self._sealed.effective_delivery(task)) if is_sealed(task.payload) else effective(task)
        return wishes if self._intake.decide(task).notify else replace(wishes, quiet=True)

    def _may_run(self, task: Task) -> bool:
        """Have a last look at what a task needs, as far as the service does not look itself."""
        if self._orders.holds(task.channel, self._backlog.choice_of(task.id).queue):
            return False
        seen = self._sealed.at_claim(task)
        if seen is None or seen.registers:
            return False
        if self._waiting is None or (self._knows_needs and not seen.hidden):
            return True
        return self._waiting.may_run(seen.task)

    def _must_wait(self, task_id: str, missing: frozenset[str]) -> None:
        if self._waiting is not None:
            self._waiting.refused(task_id, missing)
            self._looks.add(task_id)

    def _refill(self) -> None:
        if self._reconciler.read_on():
            self._reconcile_now.set()

    def _kick(self) -> None:
        self._claimer.kick()

    def _look_at(self, task: Task) -> None:
        self._intake.on_task(task, read_now=True)
        self._claimer.kick()

    async def _feed_loop(self) -> None:
        async for item in self._feed.run():
            if isinstance(item, Event):
                self._intake.on_event(item)
                self._telling.notices.on_event(item)
                self._claimer.kick()
            elif isinstance(item, Connected):
                self._feed_is_up = True
                self._log.info("feed_connected", extended=item.extended)
                self._reconcile_now.set()
            elif isinstance(item, Disconnected):
                if self._feed_is_up or not self._key.refusals:
                    self._log.warning("feed_disconnected", reason=item.reason)
                self._feed_is_up = False
                self._reconcile_now.set()

    async def _reconcile_loop(self) -> None:
        usual_s = self._settings.ingress.reconcile_s
        period_s = usual_s
        listed_at = -_REFILL_EVERY_S
        while True:
            jittered_s = period_s * random.uniform(0.8, 1.2)  # noqa: S311  Spreads load; not a secret.
            await self._wait(self._reconcile_now, jittered_s)
            await asyncio.sleep(max(0.0, listed_at + _REFILL_EVERY_S - time.monotonic()))
            listed_at = time.monotonic()
            try:
                await self._orders.read()
                await self._reconciler.with_service()
                await self._orders.relay(tidy=True)
            except (RedisError, OSError) as exc:
                self._redis_is_lost(exc)
                period_s = min(_AGAIN_S, usual_s)
                continue
            except AuthenticationError as exc:
                self._key.refused(exc)
                period_s = min(_AGAIN_S * 2.0 ** min(self._key.refusals - 1, 10), usual_s)
                continue
            except GatewayError as exc:
                self._log.warning("reconcile_failed", reason=str(exc))
                self._trouble = SERVICE_TROUBLE
                period_s = min(_AGAIN_S, usual_s)
                continue
            period_s = usual_s
            self._key.accepted()
            self._trouble = ""
            # The service lives: a feed that waits to reconnect, for up to a minute, need not wait longer.
            if not self._feed_is_up:
                self._feed.hurry()
            self._claimer.kick()
            if not self._ready_logged:
                self._ready_logged = True
                self._log.info("ingress_ready", actor=self._actor.id, channels=list(self._settings.ats.channels))

    async def _redis_loop(self) -> None:
        sweep_s = self._settings.ingress.sweep_s
        shown_at = -PRESENCE_EVERY_S
        while True:
            try:
                await self._look_at_fleet()
                if self._class_loop.is_lost or time.monotonic() - shown_at >= PRESENCE_EVERY_S:
                    await self._view.show(self._presence())
                    shown_at = time.monotonic()
                await self._reconciler.with_redis()
            except (RedisError, OSError) as exc:
                self._redis_is_lost(exc)
                await asyncio.sleep(_REDIS_PAUSE_S)
                continue
            except AuthenticationError as exc:
                self._key.refused(exc)
            except GatewayError as exc:
                self._log.warning("sweep_failed", reason=str(exc))
            await self._wait(self._sweep_now, min(sweep_s, PRESENCE_EVERY_S))

    async def _presence_loop(self) -> None:
        """Hear at once when a worker appears or leaves."""
        while True:
            try:
                async for _ in self._view.presence_changes():
                    self._sweep_now.set()
            except (RedisError, OSError):
                await asyncio.sleep(_REDIS_PAUSE_S)

    async def _look_at_fleet(self) -> None:
        capacity = self._claimer.capacity
        workers = await self._view.workers(prove=not capacity.redis_ok)
        others = [i for i in await self._view.ingresses() if i.actor != self._actor.id]
        slots = {queue: slots_of(workers, queue) for queue in self._settings.routing.queues()}
        if not capacity.redis_ok or slots != capacity.slots:
            self._log.info("fleet_changed", workers=len(workers), slots=slots)
        capacity.slots = slots
        capacity.others_in_flight = {queue: sum(i.in_flight.get(queue, 0) for i in others) for queue in slots}
        await self._class_loop.keep(self._ledger, workers, others, is_first=not capacity.redis_ok)
        capacity.redis_ok = True
        await self._orders.relay()
        self._claimer.kick()

    def _redis_is_lost(self, exc: Exception) -> None:
        if self._claimer.capacity.redis_ok:
            self._log.error("redis_lost", reason=type(exc).__name__)
        self._claimer.capacity.redis_ok = False

    def _presence(self) -> IngressPresence:
        return IngressPresence(
            actor=self._actor.id,
            host=socket.gethostname(),
            pid=os.getpid(),
            in_flight=dict(self._ledger.in_flight()),
            channels=self._settings.ats.channels,
            backlog=len(self._backlog),
            trouble=KEY_TROUBLE if self._key.refusals else self._trouble,
        )

    @staticmethod
    async def _wait(event: asyncio.Event, patience_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(event.wait(), patience_s)
        event.clear()
