"""Where people read what happened, and the queue before each such place.

Best effort: what cannot be sent after TRIES_MAX tries is logged and forgotten,
and nothing else ever waits for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Protocol

from dispatch.errors import ConfigurationError
from dispatch.notify.message import Message, Notice, compose

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

QUEUE_MAX: Final = 1_000
TRIES_MAX: Final = 3
PAUSE_FIRST_S: Final = 1.0
PAUSE_MAX_S: Final = 300.0


class ChatError(Exception):
    """A message was not taken. The text is a short reason without secrets; ``is_final``: trying again cannot help."""

    def __init__(self, reason: str, *, is_final: bool = False, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.is_final = is_final
        self.retry_after_s = retry_after_s


class Chat(Protocol):
    """A place where people read messages."""

    name: str
    every_s: float
    """Shortest time between two messages."""

    async def send(self, message: Message) -> None:
        """Send one message. Raises ChatError."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


class Line:
    """The queue before one chat: what waits when its turn comes goes out as one message."""

    def __init__(self, chat: Chat, turn: Callable[[Chat], Awaitable[None]], log: Any) -> None:
        """``turn(chat)`` returns when a message may go to this chat, whoever else sends to it."""
        self._chat = chat
        self._turn = turn
        self._log = log
        self._waiting: deque[Notice] = deque()
        self._dropped = 0
        self._news = asyncio.Event()
        self.idle = asyncio.Event()
        """Set while there is nothing to send."""
        self.idle.set()

    def put(self, notices: Iterable[Notice], dropped: int = 0) -> None:
        """Queue notices; when too many wait, the oldest are only counted. Returns at once."""
        self._waiting.extend(notices)
        self._dropped += dropped
        while len(self._waiting) > QUEUE_MAX:
            self._waiting.popleft()
            self._dropped += 1
        if self._waiting or self._dropped:
            self.idle.clear()
            self._news.set()

    async def run(self) -> None:
        """Send, for ever."""
        try:
            while True:
                await self._news.wait()
                await self._turn(self._chat)
                self._news.clear()
                notices, dropped = list(self._waiting), self._dropped
                self._waiting.clear()
                self._dropped = 0
                if notices or dropped:
                    await self._send(compose(notices, dropped), len(notices) + dropped)
                if not self._waiting and not self._dropped:
                    self.idle.set()
        finally:
            await self._chat.close()

    async def _send(self, message: Message, count: int) -> None:
        for number in range(1, TRIES_MAX + 1):
            try:
                await self._chat.send(message)
            except ChatError as exc:
                if exc.is_final or number == TRIES_MAX:
                    self._log.warning("notification_failed", chat=self._chat.name, events=count, reason=str(exc))
                    return
                pause_s = exc.retry_after_s if exc.retry_after_s is not None else PAUSE_FIRST_S * 2.0**number
                self._log.info("notification_delayed", chat=self._chat.name, reason=str(exc), pause_s=pause_s)
                await asyncio.sleep(min(max(pause_s, self._chat.every_s), PAUSE_MAX_S))
                await self._turn(self._chat)
            else:
                self._log.info("notification_sent", chat=self._chat.name, events=count)
                return


class AppriseChat:
    """Whatever Apprise knows: Slack, Discord, Matrix, mail and a hundred others, all of ``urls`` at once."""

    name = "apprise"
    every_s = 1.0

    def __init__(self, urls: str) -> None:
        """Raise ConfigurationError when Apprise is not installed or does not understand a URL."""
        # Its sentences may show URLs, which hold the keys.
        logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)
        try:
            import apprise  # noqa: PLC0415 - an optional dependency
        except ImportError:
            raise ConfigurationError(
                "DISPATCH_NOTIFY_URLS is set, but Apprise is not installed; install the extra 'notify'."
            ) from None
        self._apprise: Any = apprise.Apprise()
        for number, url in enumerate(urls.replace(",", " ").split(), 1):
            if not self._apprise.add(url):
                raise ConfigurationError(f"DISPATCH_NOTIFY_URLS: Apprise does not understand URL number {number}.")

    async def send(self, message: Message) -> None:
        """Send to all places; Apprise is synchronous, so it has a thread."""
        body = message.text or message.head
        title = message.head if message.text else ""
        try:
            taken = await asyncio.to_thread(self._apprise.notify, body=body, title=title, body_format="text")
        except Exception as exc:  # noqa: BLE001  A hundred plugins raise what they like, and it may show a URL.
            raise ChatError(type(exc).__name__) from None
        if not taken:
            # Some of the places may have it already: they must not get it thrice.
            raise ChatError("not taken by every place", is_final=True)

    async def close(self) -> None:
        """Nothing is open."""
