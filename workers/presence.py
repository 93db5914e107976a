"""The worker process shows itself in Redis, from a thread of its own.

Redis may be away for any time: nothing else in the worker waits for this.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from dispatch.broker import PRESENCE_CHANNEL, WORKER_KEY, connect
from dispatch.core.presence import PRESENCE_EVERY_S, PRESENCE_TTL_S, WorkerPresence, dump

if TYPE_CHECKING:
    from collections.abc import Callable

    from dispatch.settings import Broker


class PresenceThread:
    """Writes one worker's presence until ``leave`` is called."""

    def __init__(
        self, broker: Broker, presence: WorkerPresence, log: Any, *, running: Callable[[], tuple[str, ...]]
    ) -> None:
        """``running`` returns the Celery ids of what the worker runs now."""
        self._running = running
        self._client = connect(broker)
        self._presence = presence
        self._key = f"{WORKER_KEY}{presence.node}:{presence.pid}"
        self._changed = threading.Event()
        self._leaving = False
        self._said = False
        self._log = log
        self._thread = threading.Thread(target=self._run, name="presence", daemon=True)

    def start(self) -> None:
        """Show the worker, at once and from then on."""
        self._changed.set()
        self._thread.start()

    def drain(self) -> None:
        """Show that the worker takes nothing new. Safe inside a signal handler."""
        self._presence = replace(self._presence, draining=True)
        self._changed.set()

    def leave(self) -> None:
        """Stop showing the worker."""
        self._leaving = True
        self._changed.set()
        if self._thread.is_alive():
            self._thread.join(timeout=3.0)

    def _run(self) -> None:
        while not self._leaving:
            is_news = self._changed.wait(PRESENCE_EVERY_S)
            self._changed.clear()
            if self._presence.draining and not self._said:
                self._said = True
                self._log.info("worker_draining", node=self._presence.node)
            self._write(is_news=is_news)

    def _write(self, *, is_news: bool) -> None:
        try:
            if self._leaving:
                self._client.delete(self._key)
            else:
                self._client.set(self._key, dump(replace(self._presence, running=self._running())), ex=PRESENCE_TTL_S)
            if is_news:
                self._client.publish(PRESENCE_CHANNEL, self._presence.node)
        except (RedisError, OSError):
            # The next round tries again; until then other workers' slots are what the ingress sees.
            return
