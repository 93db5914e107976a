"""Why a sealed task is not accepted.

The reason is for the operator's log. Whoever sent the task reads ``SENTENCE``
and nothing else: more would tell an attacker what to try next.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

SENTENCE: Final = "The sealed task was not accepted. The operator's log says why."


class Refusal(StrEnum):
    """What is wrong; the values appear in logs and docs/encryption.md."""

    MALFORMED = "malformed"
    """The outer payload is not one of the known forms."""
    VERSION = "version"
    """This version of the envelope is not allowed, or not for this sender."""
    UNKNOWN_SENDER = "unknown_sender"
    """No trusted sender has this name or key."""
    SENDER_MISMATCH = "sender_mismatch"
    """Name and key, or outer and inner key, belong to different senders."""
    REVOKED_SENDER = "revoked_sender"
    """The sender's key was removed."""
    UNKNOWN_RECIPIENT = "unknown_recipient"
    """It was sealed for a key that is not ours, or not any more."""
    FORGED = "forged"
    """It does not open: tampered with, cut, or sealed with another key."""
    REFLECTION = "reflection"
    """It is an answer of ours."""
    REPLAY = "replay"
    """The same message came in another task."""
    STALE = "stale"
    """It was sealed too long before the task was created, or after it, or its sender wanted it run earlier."""
    CONTEXT = "context"
    """It was sealed for another channel, or a field outside the seal differs from what is inside."""
    CONTENT = "content"
    """It opens, but what is inside is no task."""
    NOT_PERMITTED = "not_permitted"
    """This sender may not use this channel or executor."""
    ENCRYPTION_REQUIRED = "encryption_required"
    """A task in the open, where only sealed ones are accepted."""


class SealError(Exception):
    """A task is not accepted. ``refusal`` says why, ``str()`` gives the operator details without content."""

    def __init__(self, refusal: Refusal, detail: str = "") -> None:
        super().__init__(detail or refusal.value)
        self.refusal = refusal
