"""Keeping the places that tasks have in their classes, giving them back, and hearing when others do.

Every sweep keeps what is in flight here or runs on a worker. What nobody keeps
is asked about at the task service, beside the sweep, which never waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import RedisError

from dispatch.core.places import stands_for_nothing, unkept
from dispatch.core.presence import RUNNING_EVERY_S
from dispatch.errors import GatewayError
from dispatch.ingress.classes import CHANGED_CHANNEL, Classes

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    import redis.asyncio

    from dispatch.core.places import Place
    from dispatch.core.presence import IngressPresence, WorkerPresence
    from dispatch.ingress.class_truth import ClassTruth
    from dispatch.ingress.ledger import Flight, Ledger
    from dispatch.settings import Settings

_PAUSE_S: Final = 0.5
_SETTLE_SWEEPS: Final = 3.0
"""After a loss of Redis so many sweeps pass before new places are taken: others enter theirs with each sweep."""
_SHOWN_WITHIN_S: Final = 2 * RUNNING_EVERY_S
_GIVEN_BACK_WITHIN_S: Final = 0.5
"""An ingress that lives has given the places of a task back so long after it ended."""


class ClassLoop:
    """Moves ``classes``. ``changed`` is called when a place may have fallen free."""

    def __init__(
        self,
        settings: Settings,
        client: redis.asyncio.Redis,
        holder: str,
        *,
        changed: Callable[[], None],
        log: Any,
    ) -> None:
        self._redis = client
        self._holder = holder
        self.classes = Classes(
            client,
            settings.routing.classes,
            holder=holder,
            lease_s=settings.execution.lease_s,
            settle_s=_SETTLE_SWEEPS * settings.ingress.sweep_s,
        )
        self._changed = changed
        self._log = log
        self._gone: asyncio.Queue[tuple[str, tuple[str, ...]]] = asyncio.Queue()
        self._ended: dict[str, float] = {}
        """Tasks of classes that have ended, and when we heard so (monotonic)."""
        self._stopping: dict[str, float] = {}
        """Tasks that were taken from under their runner, whose child may still be alive, and until when (monotonic)
        a worker that runs one may not show it yet."""
        self._unkept: list[tuple[str, str, Place]] = []
        self.is_lost = False
        """Redis lost places, and what is in progress has not got its own again."""
        self._look = asyncio.Event()

    def stopping(self, task_id: str) -> None:
        """Hear that somebody else than its runner ended a task: its places fall free when no worker shows it."""
        self._stopping[task_id] = time.monotonic() + _SHOWN_WITHIN_S

    def gone(self, task_id: str, flight: Flight) -> None:
        """Hear that a task is not in flight any more."""
        if flight.classes and task_id not in self._stopping:
            self._gone.put_nowait((task_id, flight.classes))

    def ended(self, task_id: str, classes: tuple[str, ...]) -> None:
        """Hear that a task has ended for good, whoever had it in flight: that ingress may be gone."""
        if classes:
            self._ended[task_id] = time.monotonic()

    async def keep(
        self,
        ledger: Ledger,
        workers: Iterable[WorkerPresence],
        ingresses: Iterable[IngressPresence],
        *,
        is_first: bool,
    ) -> None:
        """Hold what is ours, or runs somewhere, for another while; note what nobody holds.

        ``is_first`` says that Redis was not seen for a while: then what may have expired
        meanwhile is held until the service was asked. Raises ``redis.RedisError`` or ``OSError``.
        """
        self.is_lost = await self.classes.is_lost()
        for task_id, flight in ledger.items():
            if flight.has_places:
                await self.classes.enter(task_id, flight.classes)
        running = {name.rpartition(".")[0] for worker in workers for name in worker.running}
        now = time.monotonic()
        self._stopping = {one: until for one, until in self._stopping.items() if until > now or one in running}
        running |= self._stopping.keys()
        held = await self.classes.holders()
        for task_id in running if not is_first else {ident for places in held.values() for ident in places}:
            if names := [name for name, places in held.items() if task_id in places]:
                await self.classes.prolong(task_id, names, is_known=task_id in running)
        if is_first:
            held = await self.classes.holders()
        present = {one.actor for one in ingresses}
        ended = {one for one, heard_at in self._ended.items() if now - heard_at > _GIVEN_BACK_WITHIN_S}
        self._unkept = list(
            unkept(held, me=self._holder, in_flight=ledger, present=present, running=running, ended=ended)
        )
        still_held = {task_id for places in held.values() for task_id in places}
        self._ended = {one: at for one, at in self._ended.items() if one not in ended or one in still_held}
        if self._unkept or self.is_lost:
            self._look.set()

    def loops(self, truth: ClassTruth, ledger: Ledger) -> list[tuple[str, Coroutine[Any, Any, None]]]:
        """Return what must run side by side, with names."""
        return [
            ("classes-back", self._give_back(ledger)),
            ("classes-changed", self._hear()),
            ("classes-truth", self._ask(truth, ledger)),
        ]

    async def _give_back(self, ledger: Ledger) -> None:
        while True:
            task_id, classes = await self._gone.get()
            if task_id in ledger:
                continue  # claimed anew meanwhile: the places are those of the new claim
            try:
                await self.classes.give_back(task_id, classes)
            except (RedisError, OSError):
                continue  # the next sweep sees that nobody keeps them
            self.classes.opened()
            self._changed()

    async def _ask(self, truth: ClassTruth, ledger: Ledger) -> None:
        while True:
            await self._look.wait()
            self._look.clear()
            try:
                if self.is_lost:
                    await self._begin_anew(truth, ledger)
                if self._unkept and not self.classes.is_settling():
                    await self._look_at_unkept(truth)
            except (RedisError, OSError):
                await asyncio.sleep(_PAUSE_S)
            except GatewayError as exc:
                self._log.warning("classes_not_compared", reason=str(exc))
                await asyncio.sleep(_PAUSE_S)

    async def _begin_anew(self, truth: ClassTruth, ledger: Ledger) -> None:
        """Enter the places of everything in progress, whoever claimed it, and open the classes again."""
        for one in await truth.occupants():
            flight = ledger.get(one.task_id)
            # What we took and did not confirm is given back; of an adopted sealed task the flight has no classes.
            if flight is None or not flight.classes:
                await self.classes.enter(one.task_id, one.classes, one.holder)
        await self.classes.begin()
        self.is_lost = False

    async def _look_at_unkept(self, truth: ClassTruth) -> None:
        """Give away the places of tasks that are not in progress, and hold those of tasks that are."""
        unkept_now, self._unkept = self._unkept, []
        states = await truth.states(sorted({task_id for _, task_id, _ in unkept_now}))
        for name, task_id, place in unkept_now:
            if not stands_for_nothing(states.get(task_id)):
                if task_id in states:
                    await self.classes.prolong(task_id, [name])
            elif await self.classes.free(name, task_id, place):
                self._log.info("place_fell_free", task=task_id, **{"class": name}, holder=place.by)

    async def _hear(self) -> None:
        while True:
            with contextlib.suppress(RedisError, OSError):
                async with self._redis.pubsub() as channel:
                    await channel.subscribe(CHANGED_CHANNEL)
                    while True:
                        message = await channel.get_message(ignore_subscribe_messages=True, timeout=3.0)
                        if message is not None:
                            self.classes.opened()
                            self._changed()
            await asyncio.sleep(_PAUSE_S)
