"""Can others be told: receivers of callbacks, people, a collector of traces?"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from dispatch.errors import ConfigurationError
from dispatch.preflight.check import Check
from dispatch.traces import recorder, sending

if TYPE_CHECKING:
    from dispatch.settings import Settings


def check_callbacks(settings: Settings) -> list[Check]:
    """Can tasks' ends be told as the settings want it, and would a receiver know that it is us?"""
    from dispatch.notify import configured  # noqa: PLC0415 - workers make other checks and need not load it

    try:
        rules = configured.webhook_rules(settings)
        chats = configured.chats(settings)
    except ConfigurationError as exc:
        return [Check("callbacks", "error", str(exc))]
    told = f"People are told in: {', '.join(chat.name for chat in chats)}." if chats else "People are told nowhere."
    if not rules.secrets:
        sentence = f"Callbacks go out unsigned: a receiver cannot know that they are ours. {told}"
        advice = "Set DISPATCH_CALLBACK_SECRET_FILE (docs/callbacks.md)."
        return [Check("callbacks", "warning", sentence, advice)]
    return [Check("callbacks", "ok", f"Callbacks are signed. {told}")]


def check_traces(settings: Settings) -> list[Check]:
    """If traces are wanted, can they be sent?"""
    url = settings.traces.url
    if url is None:
        return [Check("traces", "ok", "No task is traced.")]
    try:
        with contextlib.closing(sending.Sender(url, recorder.prepare(settings.traces))) as sender:
            sender.send(b"")
    except ConfigurationError as exc:
        return [Check("traces", "error", str(exc))]
    except sending.NotTakenError as exc:
        advice = "Check DISPATCH_TRACES_URL and DISPATCH_TRACES_HEADERS_FILE; until then spans are dropped."
        return [Check("traces", "warning", f"The collector at {url} takes no spans: {exc}.", advice)]
    return [Check("traces", "ok", f"The collector at {url} takes spans.")]
