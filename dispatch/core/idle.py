"""Whether a running attempt still does something, or hangs. Pure.

A command may wait for ever for what never comes: an answer over a dead
connection, a key press. It then writes nothing, which alone says little, because
many commands write only at their end, and it uses almost no processor time,
which no command does that works. Both together for long enough are a hang.

Quiet is counted look by look, so time in which nobody looked (the worker was
frozen, the machine asleep) counts as one look at most, and time in which the
attempt itself was stopped counts as none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from dispatch.core.routing import Routing

BUSY_SHARE: Final = 0.003
"""Share of one processor that is almost nothing: an event loop that wakes ten times a second uses 0.0013."""
_BUSY_MIN_S: Final = 0.05
"""The same for short limits: the kernel counts processor time in ticks of 10 ms."""
_LOOKS: Final = 20
"""How many quiet looks make a hang."""
_LOOK_MAX_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class IdleLimit:
    """How long an attempt may be quiet, seconds, 0 for ever; ``name`` is the setting that an operator would change."""

    limit_s: float = 0.0
    name: str = "idle_s"


@dataclass(frozen=True, slots=True)
class Sight:
    """What one look at an attempt saw. ``at`` is a reading of the caller's clock."""

    at: float
    written_bytes: int
    """All that it has written, progress lines included."""
    processor_s: float
    """What its processes have used since the look before."""
    is_stopped: bool = False
    """Whether somebody stopped a process of it (SIGSTOP, a debugger)."""


@dataclass(frozen=True, slots=True)
class Quiet:
    """For how long an attempt has been quiet, and what it used in that time. Begins at its start."""

    seen_at: float
    written_bytes: int = 0
    for_s: float = 0.0
    processor_s: float = 0.0


def look_every_s(limit_s: float) -> float:
    """Return the pause between two looks, infinity without a limit."""
    return min(limit_s / _LOOKS, _LOOK_MAX_S) if limit_s > 0 else math.inf


def after(quiet: Quiet, sight: Sight, limit_s: float) -> Quiet:
    """Return what is known after one more look. Anything written and more than a little work begin anew."""
    used_s = quiet.processor_s + sight.processor_s
    if sight.written_bytes != quiet.written_bytes or used_s > max(_BUSY_MIN_S, BUSY_SHARE * limit_s):
        return Quiet(sight.at, sight.written_bytes)
    passed_s = 0.0 if sight.is_stopped else min(max(0.0, sight.at - quiet.seen_at), look_every_s(limit_s))
    return Quiet(sight.at, quiet.written_bytes, quiet.for_s + passed_s, used_s)


def hangs(quiet: Quiet, limit_s: float) -> bool:
    """Say whether it was quiet for too long."""
    # Twenty parts of a limit may add up to a little less than it.
    return limit_s > 0 and quiet.for_s >= limit_s - 1e-6


def shown_s(seconds: float) -> str:
    """Return a duration for people, exact: 10 min, 90 s."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"


def reason(limit: IdleLimit) -> str:
    """Return the sentence about an attempt that was ended for being idle."""
    return (
        f"wrote nothing and used almost no processor time for {shown_s(limit.limit_s)} ({limit.name}), so it was"
        " stopped as hanging; look for a question that nobody answers or a dead connection, and if it may be quiet for"
        f" so long, raise {limit.name}"
    )


def finding(routing: Routing) -> tuple[bool, str, str]:
    """Return what a worker would make of its idle limits: whether that is well, a sentence, an advice or ""."""
    pairs = routing.idle_limits()
    useless = next((pair for pair in pairs if 0 < pair[1] <= pair[0].limit_s), None)
    if useless is not None:
        limit, timeout_s = useless
        sentence = (
            f"An idle limit does nothing: {limit.name} is {shown_s(limit.limit_s)}, and the attempts that it is for"
            f" end after {shown_s(timeout_s)} anyway."
        )
        return False, sentence, f"Make {limit.name} shorter than the time limit, or 0."
    on = sorted({limit.limit_s for limit, _ in pairs if limit.limit_s > 0})
    if not on:
        longest = shown_s(max(timeout_s for _, timeout_s in pairs))
        return True, f"Only its time limit ends an attempt that hangs, after up to {longest} (idle_s is 0).", ""
    after_s = shown_s(on[0]) if len(on) == 1 else f"{shown_s(on[0])} to {shown_s(on[-1])}"
    some = "" if all(limit.limit_s > 0 for limit, _ in pairs) else "some "
    return True, f"Of {some or 'all '}attempts those that hang are ended after {after_s} (idle_s).", ""
