"""What the settings say of callbacks and chats. Everything here raises ConfigurationError for what cannot be."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from dispatch.errors import ConfigurationError
from dispatch.notify.address import AddressRules, parse_allowed
from dispatch.notify.chat import AppriseChat, Chat
from dispatch.notify.telegram import Telegram
from dispatch.notify.webhook import WebhookRules, secrets_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dispatch.settings import Settings


def webhook_rules(settings: Settings) -> WebhookRules:
    """Return what the operator allows callbacks, and how they are signed."""
    wanted = settings.notify
    try:
        networks, hosts = parse_allowed(wanted.callback_allow_private)
    except ValueError as exc:
        raise ConfigurationError(f"DISPATCH_CALLBACK_ALLOW_PRIVATE: {exc}.") from exc
    try:
        secrets = secrets_of(wanted.callback_secret.reveal()) if wanted.callback_secret else ()
    except ValueError as exc:
        raise ConfigurationError(f"DISPATCH_CALLBACK_SECRET {exc}.") from None
    return WebhookRules(
        allow_http=wanted.callback_allow_http,
        ports=wanted.callback_ports,
        addresses=AddressRules(networks, hosts),
        own=tuple(_own_places(settings)),
        secrets=secrets,
    )


def chats(settings: Settings) -> list[Chat]:
    """Return the chats where people are told."""
    wanted = settings.notify
    found: list[Chat] = []
    if bool(wanted.telegram_token) != bool(wanted.telegram_chat_id):
        raise ConfigurationError(
            "DISPATCH_TELEGRAM_CHAT_ID and DISPATCH_TELEGRAM_TOKEN belong together: set both or neither."
        )
    if wanted.telegram_token and wanted.telegram_chat_id:
        found.append(Telegram(wanted.telegram_api_url, wanted.telegram_token, wanted.telegram_chat_id))
    if wanted.urls:
        found.append(AppriseChat(wanted.urls.reveal()))
    return found


def _own_places(settings: Settings) -> Iterator[tuple[str, int]]:
    """Yield (host, port) of our own service and Redis."""
    ports = {"http": 80, "https": 443, "redis": 6379, "rediss": 6379}
    for url in (settings.ats.url, settings.broker.url, f"http://{settings.service.bind}"):
        with contextlib.suppress(ValueError):
            parts = urlsplit(url)
            if parts.hostname and parts.scheme in ports:
                yield parts.hostname, parts.port or ports[parts.scheme]
