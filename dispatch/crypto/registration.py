"""Keys that ask to be trusted: what each is told. Pure.

Whoever can create a task can ask, so there is a limit to how many wait and how
many come in an hour. Everything is keyed by the bytes of the key.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from dispatch.crypto import keys

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dispatch.crypto.trust import Sender

WAITING_MAX: Final = 100
NEW_PER_HOUR_MAX: Final = 30
EXPIRES_S: Final = 7 * 86_400.0
_HOUR_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Waiting:
    """A key that asked and has no answer yet. ``task_id``: the newest task that it asked with."""

    public: bytes
    task_id: str
    asked_at_s: float

    @property
    def fingerprint(self) -> str:
        """The key's fingerprint, 32 hexadecimal digits."""
        return keys.kid_of(self.public)


@dataclass(frozen=True, slots=True)
class Rejected:
    """A key that an operator does not want."""

    public: bytes
    reason: str
    rejected_at_s: float


@dataclass(frozen=True, slots=True)
class Registrations:
    """All registrations. ``new_at_s``: when keys were new in the last hour."""

    waiting: tuple[Waiting, ...] = ()
    rejected: tuple[Rejected, ...] = ()
    new_at_s: tuple[float, ...] = ()

    def at(self, now_s: float, senders: Iterable[Sender]) -> Registrations:
        """Return what is still of interest: nothing expired, no key that has become a sender's or was rejected."""
        settled = {one.public for one in senders} | {one.public for one in self.rejected}
        return replace(
            self,
            waiting=tuple(
                one for one in self.waiting if one.public not in settled and now_s - one.asked_at_s < EXPIRES_S
            ),
            new_at_s=tuple(at_s for at_s in self.new_at_s if now_s - at_s < _HOUR_S),
        )


class Verdict(StrEnum):
    """What a key that asks is told."""

    PENDING = "pending_approval"
    KNOWN = "already_registered"
    REVOKED = "revoked"
    REJECTED = "rejected"
    TOO_MANY = "too_many"
    TOO_FAST = "too_fast"


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict; ``name`` of a known or removed sender, ``reason`` of a rejected key; what is to be kept."""

    verdict: Verdict
    kept: Registrations
    name: str = ""
    reason: str = ""


def decide(
    senders: Iterable[Sender], registrations: Registrations, public: bytes, *, task_id: str, now_s: float
) -> Decision:
    """Return what a key is told that asks with a task, and the registrations after it."""
    senders = tuple(senders)
    kept = registrations.at(now_s, senders)
    known = next((one for one in senders if one.public == public), None)
    if known is not None:
        verdict = Verdict.KNOWN if known.revoked_at is None else Verdict.REVOKED
        return Decision(verdict, kept, name=known.name)
    rejected = next((one for one in kept.rejected if one.public == public), None)
    if rejected is not None:
        return Decision(Verdict.REJECTED, kept, reason=rejected.reason)
    others = tuple(one for one in kept.waiting if one.public != public)
    if len(others) < len(kept.waiting):
        # Asking again neither counts nor lasts longer; the answer goes to the newest task.
        again = tuple(replace(one, task_id=task_id) if one.public == public else one for one in kept.waiting)
        return Decision(Verdict.PENDING, replace(kept, waiting=again))
    if len(others) >= WAITING_MAX:
        return Decision(Verdict.TOO_MANY, kept)
    if len(kept.new_at_s) >= NEW_PER_HOUR_MAX:
        return Decision(Verdict.TOO_FAST, kept)
    new = Waiting(public, task_id, now_s)
    return Decision(Verdict.PENDING, replace(kept, waiting=(*others, new), new_at_s=(*kept.new_at_s, now_s)))
