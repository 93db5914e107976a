"""Why a task is not running: the reasons, from what is known of it. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from dispatch.core.lifecycle import FINISHED, Status

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Needed:
    """A dependency that is not completed."""

    name: str
    status: Status


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a task. Times are texts for people, pauses are seconds from now."""

    status: Status
    waits_for: Sequence[Needed] = ()
    missing: Sequence[str] = ()
    """Names that it depends on and no task has."""
    circle: str = ""
    """The way by which what it waits for waits for itself."""
    holder: str | None = None
    """Who holds its lock."""
    until: str | None = None
    """When the lock runs out; None: never."""
    is_expired: bool = False
    """The lock ran out and is about to be taken back."""
    yields: bool = False
    """The lock gives way to a reviewer."""
    pause_s: float = 0.0
    """How long nobody may claim it."""
    assigned_to: str | None = None
    needs: Sequence[str] = ()
    listeners: int | None = 0
    """How many executors listen on its channel; None: nobody knows."""
    ahead: int = 0
    """How many tasks of its channel go before it."""
    reason: str | None = None
    """Of the last failure."""
    is_running: bool = False
    """The holder has begun."""
    is_sealed: bool = False
    """What it waits for may stand where whoever asks cannot read it."""


@dataclass(frozen=True, slots=True)
class Reason:
    """One reason: a stable code, a sentence, and what to do."""

    code: str
    text: str
    advice: str


_MOVE: Final = "Move it"
SEALED: Final = "SEALED"
_SEALED: Final = Reason(
    SEALED,
    "It is sealed: what it waits for, if anything, is known to the fleet only.",
    "Ask with 'dispatch why' on a host that reaches the fleet's Redis.",
)


def reasons(facts: Facts) -> list[Reason]:
    """Return why the task is not running, the weightiest first; nothing when it runs."""
    status = facts.status
    if status in FINISHED:
        return [_finished(facts)]
    found: list[Reason] = []
    if status is Status.BACKLOG:
        found.append(Reason("BACKLOG", "It is in the backlog, where nothing is run.", f"{_MOVE} to todo."))
    if status is Status.BLOCKED:
        found.append(
            Reason(
                "BLOCKED",
                "Somebody marked it as blocked.",
                f"Read its thread; then {_MOVE[0].lower()}{_MOVE[1:]} to todo.",
            )
        )
    if status is Status.IN_REVIEW:
        who = f" {facts.holder} holds it." if facts.holder and not facts.yields else ""
        found.append(
            Reason(
                "IN_REVIEW",
                f"Its result waits for a review.{who}",
                f"{_MOVE} to completed, or back to todo with a note.",
            )
        )
        return found
    if status is Status.IN_PROGRESS:
        return found + _in_progress(facts)
    found += _dependencies(facts)
    if facts.holder:
        found.append(_locked(facts))
    if facts.pause_s > 0:
        why = f" after: {facts.reason}" if facts.reason else ""
        found.append(
            Reason(
                "BACKING_OFF",
                f"It pauses for another {math.ceil(facts.pause_s)} s{why}",
                "Wait; it is offered again by itself.",
            )
        )
    if facts.assigned_to:
        found.append(
            Reason(
                "ASSIGNED",
                f"It is kept for agent {facts.assigned_to}, who has not begun.",
                "Wait for that agent, or change the assignee.",
            )
        )
    if status is Status.TODO and not found:
        found += [_offered(facts), _SEALED] if facts.is_sealed else [_offered(facts)]
    return found


def _finished(facts: Facts) -> Reason:
    why = f": {facts.reason}" if facts.reason else "."
    again = f"{_MOVE} to todo to have it done again."
    if facts.status is Status.FAILED and (facts.missing or any(one.status in FINISHED for one in facts.waits_for)):
        again = "Have what it depends on done first, from the first that failed; moved to todo alone it fails again."
    return Reason("FINISHED", f"It is {facts.status}{why}", again)


def _in_progress(facts: Facts) -> list[Reason]:
    if facts.holder is None:
        return [
            Reason(
                "ORPHANED",
                "It is in progress, but nobody holds it.",
                "Take its lock and go on, or recover it to todo.",
            )
        ]
    if facts.is_expired:
        return [
            Reason(
                "LOST",
                f"{facts.holder} stopped renewing its lock; it goes back to todo within seconds.",
                "Wait; it is offered again by itself.",
            )
        ]
    if not facts.is_running:
        return [
            Reason(
                "QUEUED",
                f"{facts.holder} has claimed it; it waits for a free worker.",
                "Wait, or add workers; 'dispatch status' shows the slots.",
            )
        ]
    return []


def _dependencies(facts: Facts) -> list[Reason]:
    dead = [one for one in facts.waits_for if one.status in FINISHED]
    alive = [one for one in facts.waits_for if one.status not in FINISHED]
    found = []
    if facts.circle:
        found.append(
            Reason(
                "CYCLE",
                f"What it waits for waits for itself: {facts.circle}. It can never run.",
                "Take one of these out of another's depends_on, or fail one of them.",
            )
        )
    if facts.missing:
        names = ", ".join(facts.missing[:10])
        found.append(
            Reason(
                "DEPENDENCY_MISSING",
                f"It depends on what its project does not have: {names}.",
                "Create it, or change depends_on.",
            )
        )
    if dead:
        names = ", ".join(f"{one.name} ({one.status})" for one in dead[:10])
        found.append(
            Reason(
                "DEPENDENCY_FAILED",
                f"It depends on what did not succeed: {names}.",
                "Reopen these, or cancel this task.",
            )
        )
    if alive:
        names = ", ".join(f"{one.name} ({one.status})" for one in alive[:10])
        more = f" and {len(alive) - 10} others" if len(alive) > 10 else ""
        found.append(
            Reason(
                "WAITING_FOR_DEPENDENCIES",
                f"It waits for {names}{more}.",
                "Explain these to see why they are not done.",
            )
        )
    return found


def _locked(facts: Facts) -> Reason:
    until = f"until {facts.until}" if facts.until else "until it is released"
    return Reason(
        "LOCKED",
        f"{facts.holder} holds its lock {until} and has not begun.",
        "Wait, ask the holder in its thread, or recover the task if the holder is gone.",
    )


def _offered(facts: Facts) -> Reason:
    if facts.listeners == 0:
        needs = f" It needs {', '.join(facts.needs)}." if facts.needs else ""
        return Reason(
            "NO_WORKER",
            f"It is ready, and no executor listens on its channel.{needs}",
            "Start one with 'dispatch up' or 'dispatch ingress', or claim it as an agent.",
        )
    if facts.listeners is None:
        return Reason(
            "OFFERED",
            "It is ready; whether an executor listens on its channel is not known.",
            "Look at 'dispatch status', and whether an ingress watches this channel.",
        )
    if facts.ahead:
        return Reason(
            "IN_LINE",
            f"It is ready; {facts.ahead} tasks of its channel go before it.",
            "Wait, add workers, or raise its priority.",
        )
    return Reason(
        "OFFERED",
        "It is ready and next in line; an executor listens, but has no free worker or has not looked yet.",
        "Wait, or add workers; 'dispatch status' shows the slots.",
    )
