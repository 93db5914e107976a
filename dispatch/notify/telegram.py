"""Messages to a Telegram chat, through the Bot API.

The token is part of every URL, so no URL and no library's sentence ever leaves
this module.
"""

from __future__ import annotations

import asyncio
import contextlib
import html
import json
from typing import TYPE_CHECKING, Any, Final

import aiohttp
from yarl import URL

from dispatch.notify.chat import ChatError
from dispatch.notify.message import Message, cut_utf16

if TYPE_CHECKING:
    from dispatch.setting_kinds import Secret

UNITS_MAX: Final = 4_096
"""What Telegram takes, in UTF-16 units, counted after its own parsing."""
TIMEOUT_S: Final = 10.0
_ANSWER_BYTES_MAX: Final = 65_536
_RETRY_AFTER_MAX_S: Final = 300.0


def as_html(message: Message) -> str:
    """Return a message as Telegram's HTML: cut first, then escaped, so that no entity is cut in two."""
    head = cut_utf16(message.head, UNITS_MAX)
    left = UNITS_MAX - len(head.encode("utf-16-le", "replace")) // 2 - 1
    bold = f"<b>{html.escape(head, quote=False)}</b>"
    if not message.text or left < 2:
        return bold
    return f"{bold}\n{html.escape(cut_utf16(message.text, left), quote=False)}"


class Telegram:
    """One chat. ``timeout_s`` bounds a whole call."""

    name = "telegram"
    every_s = 1.05
    """Telegram takes about one message a second for a chat."""

    def __init__(self, api_url: str, token: Secret, chat_id: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self._url = URL(f"{api_url}/bot{token.reveal()}/sendMessage")
        self._chat_id = chat_id
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._session: aiohttp.ClientSession | None = None

    async def send(self, message: Message) -> None:
        """Send one message. Raises ChatError."""
        body = {
            "chat_id": self._chat_id,
            "text": as_html(message),
            "parse_mode": "HTML",
            "link_preview_options": {"is_disabled": True},
        }
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=self._timeout, trust_env=True)
        try:
            async with self._session.post(self._url, json=body, allow_redirects=False) as answer:
                status = answer.status
                said = await answer.content.read(_ANSWER_BYTES_MAX)
        except (aiohttp.ClientError, OSError, ValueError, asyncio.IncompleteReadError) as exc:
            raise ChatError("timeout" if isinstance(exc, TimeoutError) else type(exc).__name__) from None
        if status != 200:
            raise _error_of(status, said)

    async def close(self) -> None:
        """Close the connection."""
        if self._session is not None:
            await self._session.close()


def _error_of(status: int, said: bytes) -> ChatError:
    """Return what a refusal means."""
    retry_after: Any = None
    with contextlib.suppress(ValueError, KeyError, TypeError):
        retry_after = json.loads(said)["parameters"]["retry_after"]
    if status == 429 and isinstance(retry_after, int | float) and not isinstance(retry_after, bool):
        return ChatError("http_429", retry_after_s=min(max(float(retry_after), 0.0), _RETRY_AFTER_MAX_S))
    return ChatError(f"http_{status}", is_final=400 <= status < 500 and status != 429)
