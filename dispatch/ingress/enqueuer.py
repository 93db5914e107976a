"""The one place that sends tasks to Celery.

Publishing is synchronous and may block for seconds when Redis is frozen, so it
happens in a thread of its own; the event loop only awaits the outcome. What is
sent is the name of one attempt, never a payload.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from typing import TYPE_CHECKING, Any

from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from dispatch.celery import EXECUTE, make_app
from dispatch.errors import DispatchError

if TYPE_CHECKING:
    from dispatch.ats.gateway import AttemptRef
    from dispatch.settings import Settings


class EnqueueError(DispatchError):
    """Redis did not take the message. It may be there all the same: the start guard makes that harmless."""


class Enqueuer:
    """Sends attempts to the queue. ``start`` before use; ``stop`` waits for what is under way."""

    def __init__(self, settings: Settings) -> None:
        self._app = make_app(settings)
        self._jobs: queue.SimpleQueue[tuple[AttemptRef, str, float, asyncio.Future[None]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="enqueuer", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Start the thread. Must be called from the event loop that will await ``enqueue``."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self) -> None:
        """Finish what was handed over and end the thread."""
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join, 10.0)

    async def enqueue(self, ref: AttemptRef, queue_name: str, timeout_s: float) -> None:
        """Put one attempt, with its soft time limit, on a queue. Raises EnqueueError when Redis did not confirm it."""
        if self._loop is None:
            raise RuntimeError("Enqueuer.start() has not been called")
        done: asyncio.Future[None] = self._loop.create_future()
        self._jobs.put((ref, queue_name, timeout_s, done))
        await done

    def _run(self) -> None:
        producer: Any = None
        while (job := self._jobs.get()) is not None:
            ref, queue_name, timeout_s, done = job
            error: Exception | None = None
            try:
                if producer is None:
                    producer = self._app.amqp.Producer(self._app.connection_for_write())
                self._send(ref, queue_name, timeout_s, producer)
            except (OperationalError, RedisError, OSError, AttributeError) as exc:
                error = EnqueueError(f"Redis did not take task {ref.task_id}: {type(exc).__name__}.")
                error.__cause__ = exc
                _close_quietly(producer)
                producer = None
            if self._loop is not None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(_settle, done, error)
        _close_quietly(producer)

    def _send(self, ref: AttemptRef, queue_name: str, timeout_s: float, producer: Any) -> None:
        self._app.send_task(
            EXECUTE,
            args=(ref.task_id, ref.attempt, ref.token, ref.actor_id),
            task_id=f"{ref.task_id}.{ref.token}",
            queue=queue_name,
            soft_time_limit=timeout_s,
            ignore_result=True,
            retry=False,
            producer=producer,
        )


def _settle(done: asyncio.Future[None], error: Exception | None) -> None:
    if done.cancelled():
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)


def _close_quietly(producer: Any) -> None:
    if producer is None:
        return
    try:
        connection = producer.connection
        producer.close()
        if connection is not None:
            connection.close()
    except Exception:  # noqa: BLE001  The connection is broken already; nothing is lost with it.
        return
