"""Cancel wake-ups from Redis, for the lease keeper of one pool child.

A wake-up names a task; it means "ask the service at once". It may come late,
twice or never: the next renewal finds out anyway.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import RedisError

from dispatch.broker import CANCEL_KEY, WAKE_CHANNEL, connect

if TYPE_CHECKING:
    from dispatch.settings import Broker

_RECONNECT_S: Final = 2.0


class RedisWakes:
    """One subscription, opened when first used, in the process and thread that uses it."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._client: Any = None
        self._channel: Any = None
        self._down_until = 0.0

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when a wake-up may have come; -1 while Redis is away."""
        if not self._open():
            return -1
        sock = getattr(self._channel.connection, "_sock", None)
        return int(sock.fileno()) if sock is not None else -1

    def read(self) -> set[str] | None:
        """Return the task ids that were woken since the last call; None when Redis went away."""
        if not self._open():
            return None
        woken: set[str] = set()
        try:
            while (message := self._channel.get_message(timeout=0)) is not None:
                if message["type"] == "message":
                    woken.add(str(message["data"]))
        except (RedisError, OSError):
            self._close()
            return None
        return woken

    def check(self, task_id: str, token: int) -> bool:  # noqa: ARG002 - one wake-up too many costs one renewal
        """Say whether a wake-up for the task was sent before we listened; False when Redis is away."""
        if not self._open():
            return False
        try:
            return bool(self._client.exists(CANCEL_KEY + task_id))
        except (RedisError, OSError):
            self._close()
            return False

    def _open(self) -> bool:
        if self._channel is not None:
            return True
        if time.monotonic() < self._down_until:
            return False
        try:
            self._client = connect(self._broker)
            self._channel = self._client.pubsub()
            self._channel.subscribe(WAKE_CHANNEL)
        except (RedisError, OSError):
            self._close()
            return False
        return True

    def _close(self) -> None:
        for part in (self._channel, self._client):
            if part is not None:
                part.close()
        self._channel = self._client = None
        self._down_until = time.monotonic() + _RECONNECT_S
