"""The worker process shows itself in Redis, and looks whether its host is drained, from a thread of its own.

Redis may be away for any time: nothing else in the worker waits for this.
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import RedisError

from dispatch.broker import DRAIN_KEY, PRESENCE_CHANNEL, WORKER_KEY, connect
from dispatch.core.presence import (
    PRESENCE_EVERY_S,
    PRESENCE_TTL_S,
    RUNNING_EVERY_S,
    WorkerPresence,
    dump,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from dispatch.settings import Broker

_LOOK_EVERY_S: Final = RUNNING_EVERY_S
_LOOKS_MIN: Final = 3
"""How often the order must be missing before it counts as taken back: a Redis that lost all gets it again."""


class PresenceThread:
    """Writes one worker's presence until ``leave`` is called.

    ``consume(False)`` is called from the thread when an operator drains the host
    (DRAIN_KEY), ``consume(True)`` when that was taken back. ``running`` returns the
    Celery ids of what the worker runs now.
    """

    def __init__(
        self,
        broker: Broker,
        presence: WorkerPresence,
        log: Any,
        *,
        running: Callable[[], tuple[str, ...]] = tuple,
        consume: Callable[[bool], None] = lambda _: None,
    ) -> None:
        self._running = running
        self._client = connect(broker)
        self._presence = presence
        self._key = f"{WORKER_KEY}{presence.node}:{presence.pid}"
        self._changed = threading.Event()
        self._leaving = False
        self._said = False
        self._log = log
        self._consume = consume
        self._drain_key = DRAIN_KEY + presence.host
        self._shown_at = -PRESENCE_EVERY_S
        self._is_leaving_work = False
        """Whether the process itself is about to end."""
        self._absent = 0
        """How many looks in a row, since the host was drained, have not found the key."""
        self._thread = threading.Thread(target=self._run, name="presence", daemon=True)

    def start(self) -> None:
        """Show the worker, at once and from then on."""
        self._changed.set()
        self._thread.start()

    def drain(self) -> None:
        """Show that the worker takes nothing new. Safe inside a signal handler."""
        self._is_leaving_work = True
        self._changed.set()

    @property
    def is_draining(self) -> bool:
        """Whether the worker shows that it takes nothing new."""
        return self._presence.draining

    def leave(self) -> None:
        """Stop showing the worker."""
        self._leaving = True
        self._changed.set()
        if self._thread.is_alive():
            self._thread.join(timeout=3.0)

    def _run(self) -> None:
        while not self._leaving:
            is_news = self._changed.wait(_LOOK_EVERY_S)
            self._changed.clear()
            if self._is_leaving_work and not self._said:
                self._said = True
                self._presence = replace(self._presence, draining=True)
                self._log.info("worker_draining", node=self._presence.node)
            is_news = self._look() or is_news
            is_due = time.monotonic() - self._shown_at >= PRESENCE_EVERY_S or self._running() != self._presence.running
            if is_news or is_due:
                self._write(is_news=is_news)

    def _look(self) -> bool:
        """Obey the order to drain this host, or its end; say whether that is news."""
        if self._is_leaving_work or self._leaving:
            return False
        try:
            is_ordered = bool(self._client.exists(self._drain_key))
        except (RedisError, OSError):
            return False
        self._absent = 0 if is_ordered else self._absent + 1
        is_drained = self._presence.draining
        if is_ordered is is_drained or (is_drained and self._absent < _LOOKS_MIN):
            return False
        self._presence = replace(self._presence, draining=is_ordered)
        self._consume(not is_ordered)
        self._log.info("host_drained" if is_ordered else "host_resumed", node=self._presence.node)
        return True

    def _write(self, *, is_news: bool) -> None:
        try:
            if self._leaving:
                self._client.delete(self._key)
            else:
                shown = replace(self._presence, running=self._running())
                self._client.set(self._key, dump(shown), ex=PRESENCE_TTL_S)
                self._presence = shown
                self._shown_at = time.monotonic()
            if is_news:
                self._client.publish(PRESENCE_CHANNEL, self._presence.node)
        except (RedisError, OSError):
            # The next round tries again; until then other workers' slots are what the ingress sees.
            return
