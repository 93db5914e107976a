"""The waiting tasks of one ingress: who they are, when they may run, and when they never will.

``WaitingTasks`` is what this ingress knows, without I/O; ``Graphs`` moves it: it
arms gates in the registry, settles them when a dependency ends, reads
dependencies that no event tells of, and repairs. Waiting tasks hold no lease
and no slot. All of it can be rebuilt from the service.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import time
from collections import deque
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from redis.exceptions import RedisError

from dispatch import metrics
from dispatch.core.graph import GRAPH_MAX, is_settled, opens
from dispatch.errors import GatewayError
from dispatch.ingress.registry import SETTLE_AT_ONCE, Armed

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    import redis.asyncio

    from dispatch.ingress.blocked import Blocked
    from dispatch.ingress.dependencies import Dependencies
    from dispatch.ingress.gates import Gates
    from dispatch.ingress.registry import Registry, Stuck
    from dispatch.ingress.waiting_tasks import WaitingTasks

ARM_AT_ONCE: Final = 100
CROWD: Final = 20
"""From so many tasks behind a bad end on, they are failed in bulk and not by error callbacks."""
STUCK_S: Final = 2.0
"""A gate takes milliseconds; one that changed nothing for this long was lost, or Celery's chord is stuck."""
STUCK_AT_ONCE: Final = 200
_WATCH_S: Final = 1.0
"""Between two looks at dependencies on channels whose events this ingress does not hear."""
_PAUSE_S: Final = 0.5
_PAUSE_GATEWAY_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class GraphParts:
    """What ``Graphs`` works on."""

    redis: redis.asyncio.Redis
    registry: Registry
    gates: Gates
    tasks: WaitingTasks
    dependencies: Dependencies
    blocked: Blocked


@dataclass(frozen=True, slots=True)
class GraphHooks:
    """Whom ``Graphs`` tells."""

    ready: Callable[[str, int], None]
    """Puts a task, by id and priority, into the backlog."""
    rearm: Callable[[], None]
    """Asks for a reconcile."""
    started: Callable[[asyncio.AbstractEventLoop], None]
    """Hears in which event loop everything runs."""


class Graphs:
    """Moves waiting tasks. ``start``, run every one of ``loops`` until cancelled, ``stop``."""

    def __init__(self, parts: GraphParts, hooks: GraphHooks, *, deep: bool, sweep_s: float, log: Any) -> None:
        """``deep`` says that the service fails only what is doomed, so that a cascade may go all the way at once."""
        self._deep = deep
        self._redis = parts.redis
        self._registry = parts.registry
        self._gates = parts.gates
        self._tasks = parts.tasks
        self._dependencies = parts.dependencies
        self._blocked = parts.blocked
        self._ready = hooks.ready
        self._rearm = hooks.rearm
        self._started = hooks.started
        self._sweep_s = sweep_s
        self._log = log
        self._epoch = ""
        self._closed: deque[tuple[float, list[str]]] = deque(maxlen=GRAPH_MAX)
        """Rounds that were closed: a gate that was under way then leaves its part of the chord behind."""
        self._moved = asyncio.Event()

    def start(self) -> None:
        """Start the gates. Must be called from the event loop that runs ``loops``."""
        metrics.watch("dispatch_graph_waiting_tasks", lambda: len(self._tasks))
        self._started(asyncio.get_running_loop())
        self._gates.start()

    async def stop(self) -> None:
        """Stop the gates."""
        await asyncio.to_thread(self._gates.stop)

    def loops(self) -> list[tuple[str, Coroutine[Any, Any, None]]]:
        """Return what must run side by side, with names."""
        return [
            ("graphs", self._move_loop()),
            ("graphs-ready", self._ready_loop()),
            ("graphs-sweep", self._sweep_loop()),
            ("graphs-blocked", self._blocked.run()),
        ]

    def kick(self) -> None:
        """Look at what ``WaitingTasks`` has noted to be done."""
        self._moved.set()

    # --- arming and settling ----------------------------------------------------------------------------------------

    async def _move_loop(self) -> None:
        while True:
            await self._moved.wait()
            self._moved.clear()
            try:
                while self._tasks.has_work():
                    await self._settle()
                    await self._close()
                    await self._arm()
                    await self._read()
            except (RedisError, OSError, GatewayError) as exc:
                # What was not done is still noted.
                self._log.warning("graphs_paused", reason=str(exc) or type(exc).__name__)
                await asyncio.sleep(_PAUSE_GATEWAY_S if isinstance(exc, GatewayError) else _PAUSE_S)
                self.kick()

    async def _settle(self) -> None:
        """Open or break the gates of dependencies that have ended."""
        for needed, status in list(self._tasks.to_settle.items()):
            nobody_waits = needed not in self._tasks.dependents
            if nobody_waits or (not opens(status) and self._fail_crowd(needed)):
                self._tasks.to_settle.pop(needed, None)
                continue
            while True:
                moved = await self._registry.settle(needed, status, opens=opens(status))
                for gate in moved:
                    self._gates.send(gate, status)
                if len(moved) < SETTLE_AT_ONCE:
                    break
            if self._tasks.to_settle.get(needed) == status:
                del self._tasks.to_settle[needed]

    def _fail_crowd(self, needed: str) -> bool:
        """Fail all of ours behind a dependency that ended badly, without gates, if these are many.

        An error callback costs some five milliseconds, a thousandth of what ten thousand of them may. On our own
        service, which fails only what is doomed, the whole way down is failed at once; elsewhere level by level, and
        so is a sealed task, of which our service does not know that it is doomed.
        """
        if self._tasks.count_behind(needed, CROWD) + len(self._blocked) < CROWD:
            return False
        for task_id, reason in self._tasks.behind(needed, self._blocked, deep=self._deep).items():
            self._blocked.add(task_id, reason=reason)
        return True

    async def _close(self) -> None:
        """Take back the gates of tasks that no longer wait."""
        while batch := list(islice(self._tasks.to_close, ARM_AT_ONCE)):
            await self._forget([task_id for task_id in batch if task_id not in self._tasks])
            self._tasks.to_close.difference_update(batch)

    async def _forget(self, task_ids: list[str]) -> None:
        """Forget what Redis keeps of waiting tasks, Celery's part included."""
        rounds = await self._registry.close_many(task_ids)
        if rounds:
            self._closed.append((time.monotonic(), rounds))
            await self._redis.unlink(*(key for round_ in rounds for key in self._gates.chord_keys(round_)))

    async def _arm(self) -> None:
        """Park gates for tasks that have none, or other ones, in the registry."""
        batch = list(islice(self._tasks.to_arm, ARM_AT_ONCE))
        armed = dict(zip(batch, await self._registry.fingerprints(batch), strict=True))
        wanted = {task_id: task for task_id in batch if (task := self._tasks.get(task_id)) is not None}
        fresh = {
            task_id: Armed(fingerprint, uuid4().hex, task.needs)
            for task_id, task in wanted.items()
            if armed[task_id] != (fingerprint := fingerprint_of(task.needs)) and task_id not in self._blocked
        }
        await self._forget([task_id for task_id in fresh if armed[task_id]])
        sizes = {self._gates.chord_size(one.round): len(one.needs) for one in fresh.values() if len(one.needs) > 1}
        gates = {task_id: self._gates.build(task_id, one.round, one.needs) for task_id, one in fresh.items()}
        done = await self._registry.arm_many(fresh, gates, sizes)
        lost = [one.round for one, is_ours in zip(fresh.values(), done, strict=True) if not is_ours]
        if lost:
            await self._redis.unlink(*(key for round_ in lost for key in self._gates.chord_keys(round_)))
        for task_id in batch:
            task = self._tasks.get(task_id)
            if task is None or task == wanted.get(task_id):
                self._tasks.to_arm.pop(task_id, None)
            if task is not None and task_id in fresh:
                # Reading after parking leaves no gap: an end after this is an event, one before it is read.
                self._tasks.read_soon(name for name in task.needs if name not in self._tasks)

    async def _read(self) -> None:
        """Ask the service about dependencies of which no event has told."""
        batch = list(islice(self._tasks.to_read, self._dependencies.at_once))
        for name in batch:
            self._tasks.to_read.pop(name, None)
        try:
            found = await self._dependencies.read(batch)
        except BaseException:
            self._tasks.read_soon(batch)
            raise
        for name, status in found.items():
            if is_settled(status) and name in self._tasks.dependents:
                self._tasks.settle(name, status)

    # --- what the gates say -----------------------------------------------------------------------------------------

    async def _ready_loop(self) -> None:
        """Hear which tasks were released, by whichever ingress."""
        while True:
            with contextlib.suppress(RedisError, OSError):
                async with self._redis.pubsub() as channel:
                    await channel.subscribe(self._registry.prefix + "ready")
                    self._rearm()  # what was said meanwhile, nobody here heard
                    while True:
                        message = await channel.get_message(ignore_subscribe_messages=True, timeout=3.0)
                        if message is not None:
                            self._on_ready(message["data"])
            await asyncio.sleep(_PAUSE_S)

    def _on_ready(self, text: Any) -> None:
        try:
            said = json.loads(text)
            task_id, fingerprint = said["id"], said["fingerprint"]
        except (ValueError, TypeError, KeyError):
            return
        task = self._tasks.get(task_id)
        if task is not None and fingerprint_of(task.needs) == fingerprint:
            self._tasks.release(task_id)
            self._ready(task_id, task.priority)

    # --- repair -----------------------------------------------------------------------------------------------------

    async def _sweep_loop(self) -> None:
        watched_at = time.monotonic()
        while True:
            await asyncio.sleep(self._sweep_s)
            with contextlib.suppress(RedisError, OSError):
                epoch = await self._registry.epoch()
                if self._epoch not in ("", epoch):
                    self._log.warning("graph_registry_lost", waiting=len(self._tasks))
                    self._rearm()
                self._epoch = epoch
                while self._closed and time.monotonic() - self._closed[0][0] > STUCK_S:
                    rounds = self._closed.popleft()[1]
                    await self._redis.unlink(*(key for round_ in rounds for key in self._gates.chord_keys(round_)))
                for task in await self._registry.stuck(STUCK_S, STUCK_AT_ONCE):
                    await self._repair(task)
            self._tasks.fail_circles()
            if time.monotonic() - watched_at >= _WATCH_S and (elsewhere := self._dependencies.elsewhere()):
                watched_at = time.monotonic()
                self._tasks.read_soon(name for name in elsewhere if name in self._tasks.dependents)
                self.kick()

    async def _repair(self, task: Stuck) -> None:
        """Send the gates again; if that has not helped either, do without them."""
        bad = [sent for sent in task.sent if not opens(sent.status)]
        if (task.open and not bad) or task.task_id in self._blocked:
            return
        self._log.warning("gates_stuck", task=task.task_id, tries=task.tries)
        if task.tries < 2:
            for sent in bad or task.sent:
                self._gates.send(sent.gate, sent.status)
        elif bad:
            self._blocked.add(task.task_id, round_=task.round)
        elif await self._registry.release(task.task_id, task.round):
            self._closed.append((time.monotonic(), [task.round]))


def fingerprint_of(needs: tuple[str, ...]) -> str:
    """Return a word that is another for other dependencies; their order does not matter."""
    return hashlib.sha256("\n".join(sorted(needs)).encode()).hexdigest()[:24]
