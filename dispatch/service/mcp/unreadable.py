"""Calls with arguments that no store keeps, such as a NUL or half an emoji: refused to the model that made them."""

from __future__ import annotations

import json
from typing import Any

from dispatch.errors import InvalidInputError


def refused_call(raw: bytes, sentence: str) -> dict[str, Any] | None:
    """Return the answer to a call of a tool that cannot be read strictly; None for what is no such call.

    As an error of the protocol, without the id of the request, no model would read it. ``sentence`` says what is wrong.
    """
    try:
        message = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    ident = message.get("id") if isinstance(message, dict) and message.get("method") == "tools/call" else None
    if not isinstance(ident, str | int) or isinstance(ident, bool) or not str(ident).isprintable():
        return None
    refusal = InvalidInputError(sentence)
    content = [{"type": "text", "text": refusal.as_text()}]
    result = {"content": content, "structuredContent": refusal.as_body(), "isError": True}
    return {"jsonrpc": "2.0", "id": ident, "result": result}
