"""Waiting as Celery sees it: a chord of gates, or a chain for a single one, and who runs them.

A task that needs others is the body of a chord; its header is one gate per
dependency, frozen with fixed ids and parked as JSON. When the dependency
settles its gate is sent, to succeed or to fail as the dependency did. The body
releases the task; the error callback of a gate fails it at once, without
waiting for the other gates.

Gates take a moment each and must never stand behind tasks that take hours, so
they have a queue of their own, and every ingress consumes it in a thread. What
the queue loses is sent again by the sweep; what it doubles changes nothing:
chords count a gate once, and an entry of the registry is closed once.
"""

from __future__ import annotations

import contextlib
import json
import queue
import threading
from typing import TYPE_CHECKING, Any, Final

from celery import group
from celery.worker.request import Request
from kombu.exceptions import OperationalError
from kombu.messaging import Consumer
from redis.exceptions import RedisError

from dispatch.ats.fences import service_key
from dispatch.broker import connect
from dispatch.celery import BLOCKED, CHORD_KEEP_S, GATE, RELEASE, make_gates_app
from dispatch.core.graph import opens
from dispatch.ingress.registry import Releases

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dispatch.settings import Settings

_LOST: Final = (OperationalError, RedisError, OSError, AttributeError)
"""What is raised when Redis goes away; the AttributeError is Celery's own mistake (dispatch.celery)."""
_PAUSE_S: Final = 0.5
_consumer: Any = Consumer
_LOOK_UP_S: Final = 0.5
"""How long the consumer waits for a message before it looks whether it shall stop."""


class DependencyEndedBadlyError(Exception):
    """Makes a gate fail; expected, so that Celery logs no traceback."""


class Gates:
    """Builds, sends and runs gates. ``start`` before use, ``stop`` at the end.

    ``on_blocked(task id, round)`` is called in the consumer's thread when a gate of the task failed.
    """

    def __init__(self, settings: Settings, base_url: str, *, on_blocked: Callable[[str, str], None], log: Any) -> None:
        self._queue_name = f"{settings.broker.queue}.gates.{service_key(base_url)}"
        self._app = make_gates_app(settings, self._queue_name)
        self._releases = Releases(connect(settings.broker), base_url)
        self._on_blocked = on_blocked
        self._log = log
        self._stopping = threading.Event()
        self._jobs: queue.SimpleQueue[tuple[str, str] | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._publish, name="gates-out", daemon=True),
            threading.Thread(target=self._consume, name="gates-in", daemon=True),
        ]
        self._gate, self._release, self._blocked = self._register()

    def _register(self) -> tuple[Any, Any, Any]:
        """Define the three Celery tasks. The error callback takes no argument of Celery's, or it would run in place."""

        def gate(needed: str, task_id: str, status: str) -> str:
            if not opens(status):
                raise DependencyEndedBadlyError(f"Dependency {needed} of task {task_id}: {status}.")
            return needed

        def release(task_id: str, round_: str) -> None:
            if self._releases.release(task_id, round_):
                self._log.info("task_released", task=task_id)

        def blocked(task_id: str, round_: str) -> None:
            self._on_blocked(task_id, round_)

        define = self._app.task
        return (
            define(gate, name=GATE, shared=False, throws=(DependencyEndedBadlyError,)),
            define(release, name=RELEASE, shared=False, ignore_result=True),
            define(blocked, name=BLOCKED, shared=False, ignore_result=True),
        )

    def build(self, task_id: str, round_: str, needed: Sequence[str]) -> dict[str, str]:
        """Return the gates of a task by dependency, as they are parked.

        For several of them the chord's size (``chord_size``) must be set before the first is sent.
        """
        blocked = self._blocked.si(task_id, round_)
        body = self._release.si(task_id, round_).set(task_id=f"{round_}.release")
        body.link_error(blocked)
        gates = [self._gate.si(name, task_id, "").set(task_id=f"{round_}.{n}") for n, name in enumerate(needed)]
        for gate in gates:
            gate.link_error(blocked)
        if len(gates) == 1:
            gates[0].options["chain"] = [body]
        else:
            header = group(gates, app=self._app)
            header.freeze(group_id=round_, chord=body)
            gates = list(header.tasks)
        return {name: json.dumps(gate) for name, gate in zip(needed, gates, strict=True)}

    def chord_size(self, round_: str) -> tuple[str, int]:
        """Return the name under which Celery looks up how many gates a chord has, and how long to keep it, seconds."""
        return self._chord_key(round_, ".s"), CHORD_KEEP_S

    def chord_keys(self, round_: str) -> list[str]:
        """Return all names that Celery keeps for a chord: a chord that failed leaves them behind."""
        return [self._chord_key(round_, part) for part in (".s", ".j", ".d", ".t", ".c")]

    def _chord_key(self, round_: str, part: str) -> str:
        key = self._app.backend.get_key_for_group(round_, part)
        return key.decode() if isinstance(key, bytes) else str(key)

    def send(self, gate: str, status: str) -> None:
        """Send a parked gate whose dependency ended in ``status``. Returns at once; a loss is the sweep's to mend."""
        self._jobs.put((gate, status))

    def start(self) -> None:
        """Start both threads."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End both threads; waits a few seconds at most."""
        self._stopping.set()
        self._jobs.put(None)
        for thread in self._threads:
            if thread.is_alive():
                thread.join(5.0)

    def _publish(self) -> None:
        producer: Any = None
        while (job := self._jobs.get()) is not None:
            try:
                if producer is None:
                    producer = self._app.amqp.Producer(self._app.connection_for_write())
                signature = self._app.signature(json.loads(job[0]))
                signature.args = (*signature.args[:2], job[1])
                signature.apply_async(producer=producer, retry=False, add_to_parent=False)
            except _LOST as exc:
                self._log.warning("gate_not_sent", reason=type(exc).__name__)
                _close(producer)
                producer = None
                self._stopping.wait(_PAUSE_S)
        _close(producer)

    def _consume(self) -> None:
        while not self._stopping.is_set():
            try:
                with self._app.connection_for_read() as connection:
                    queues = [self._app.amqp.queues[self._queue_name]]
                    with _consumer(connection, queues, on_message=self._run, accept=["json"], prefetch_count=1):
                        while not self._stopping.is_set():
                            with contextlib.suppress(TimeoutError):
                                connection.drain_events(timeout=_LOOK_UP_S)
            except _LOST as exc:
                self._log.warning("gates_lost_redis", reason=type(exc).__name__)
                self._stopping.wait(_PAUSE_S)

    def _run(self, message: Any) -> None:
        """Run one message as a worker would: Celery counts the gate, sends the body or calls back."""
        try:
            request = Request(message, app=self._app, on_ack=lambda *_: message.ack(), on_reject=lambda *_: None)
        except Exception as exc:  # noqa: BLE001  Whatever is wrong with a message, the next one may be good.
            self._log.error("message_malformed", reason=f"{type(exc).__name__}: {exc}"[:200])
            message.ack()
            return
        try:
            request.execute()
        except _LOST:
            raise
        except Exception as exc:  # noqa: BLE001  The sweep sends again what did not succeed; the next must run.
            self._log.error("gate_broken", reason=f"{type(exc).__name__}: {exc}"[:200])


def _close(producer: Any) -> None:
    if producer is None:
        return
    with contextlib.suppress(Exception):
        connection = producer.connection
        producer.close()
        connection.close()
