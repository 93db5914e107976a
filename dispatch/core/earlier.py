"""What an attempt is told of an attempt before it that did not finish, so that nothing is done twice unawares. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dispatch.core.prompt import EARLIER_ATTEMPT


@dataclass(frozen=True, slots=True)
class Earlier:
    """``reason`` says how the last one ended, in the words of its report; "" when nobody could report."""

    reason: str = field(default="", repr=False)
    vanished: int = 0
    """How many attempts went away with their host, so that nobody knows how far they came."""

    def blocks(self) -> dict[str, str]:
        """Return it as a named block of a prompt."""
        lines = [self.reason] if self.reason else []
        if self.vanished:
            times = "once" if self.vanished == 1 else f"{self.vanished} times"
            lines.append(f"The host that ran it was lost {times}; nobody knows how far the attempt came.")
        return {EARLIER_ATTEMPT: "\n".join(lines) or "Nobody reported how it ended."}

    def as_json(self) -> dict[str, Any]:
        """Return it for executors that read the task as JSON."""
        return {"reason": self.reason or None, "vanished": self.vanished}


def earlier_of(attempt: int, reason: str | None, lease_losses: int) -> Earlier | None:
    """Return what attempt number ``attempt`` (from 1) must know of those before it; None for a first one.

    ``reason`` is that of the last failure or release, ``lease_losses`` counts the attempts of which nobody reported.
    """
    if attempt <= 1 and not reason and lease_losses <= 0:
        return None
    return Earlier(reason or "", max(0, lease_losses))
