"""The one decision about an attempt that ended: report, retry, release or let go.

Everything that can end an attempt is an ``EndReason``; ``decide`` turns it,
with the count of attempts, into what the fleet does next. Nothing else in the
project decides whether a task is tried again.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

EXIT_TEMPFAIL: Final = 75
"""``EX_TEMPFAIL`` of sysexits.h: the child says "not now" (a rate limit, a quota)."""

BACKOFF_MAX_S: Final = 300.0


class EndReason(StrEnum):
    """Why an attempt ended. Users match on these words; do not add one lightly."""

    SUCCESS = "success"
    """The leader exited 0 before anybody stopped it."""
    EXIT = "exit"
    """The leader exited with another code than 0 and 75."""
    SIGNAL = "signal"
    """A signal that dispatch did not send ended the leader."""
    TEMPFAIL = "tempfail"
    """The leader exited 75: try again later, the attempt does not count."""
    TIMEOUT = "timeout"
    """The soft time limit passed and dispatch stopped the tree."""
    IDLE = "idle"
    """It wrote nothing and used almost no processor time for too long; dispatch stopped the tree as hanging."""
    OOM = "oom"
    """It needed more memory than it may have, or the host had none left; the kernel killed it or dispatch did."""
    PROCESS_LIMIT = "process_limit"
    """It had more processes than it may have and dispatch stopped the tree; the kernel refuses them instead."""
    SPAWN_ERROR = "spawn_error"
    """The command could not be started."""
    WORKER_LOST = "worker_lost"
    """The worker process died under the attempt; the warden noticed."""
    CANCELLED = "cancelled"
    """Somebody cancelled the task; dispatch stopped the tree."""
    LEASE_LOST = "lease_lost"
    """The lease could not be renewed in time, or somebody else holds it."""
    SHUTDOWN = "shutdown"
    """The worker drained and the attempt did not finish in time."""


FAILURES: Final = frozenset(
    {
        EndReason.EXIT,
        EndReason.SIGNAL,
        EndReason.TIMEOUT,
        EndReason.IDLE,
        EndReason.OOM,
        EndReason.PROCESS_LIMIT,
        EndReason.SPAWN_ERROR,
        EndReason.WORKER_LOST,
    }
)
"""Ends that count as a failed attempt."""


class Action(StrEnum):
    """What the fleet does about an attempt that ended."""

    COMPLETE = "complete"
    FAIL = "fail"
    RETRY = "retry"
    """Give the claim back, counted, with a pause before the next attempt."""
    RELEASE = "release"
    """Give the claim back, not counted."""
    LET_GO = "let_go"
    """Report nothing: the task is no longer ours."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how fast a task is tried. All pauses in seconds."""

    max_attempts: int = 3
    backoff_s: float = 5.0
    cooldown_s: float = 60.0
    """Pause after an exit 75."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, and for retries and releases how long the task must wait first."""

    action: Action
    delay_s: float = 0.0


def backoff_s(attempt: int, first_s: float, rand: float) -> float:
    """Return the pause after failed attempt number ``attempt`` (from 1).

    Exponential from ``first_s``, at most BACKOFF_MAX_S, with equal jitter:
    ``rand``, uniform in [0, 1), moves it between half and all of the step.
    """
    step = min(first_s * 2.0 ** min(attempt - 1, 30), BACKOFF_MAX_S)
    return step * (0.5 + 0.5 * rand)


def decide(end: EndReason, attempt: int, policy: RetryPolicy, rand: float) -> Decision:
    """Decide what follows the end of attempt number ``attempt`` (from 1, counted ones only)."""
    if end is EndReason.SUCCESS:
        return Decision(Action.COMPLETE)
    if end in (EndReason.CANCELLED, EndReason.LEASE_LOST):
        return Decision(Action.LET_GO)
    if end is EndReason.SHUTDOWN:
        return Decision(Action.RELEASE)
    if end is EndReason.TEMPFAIL:
        return Decision(Action.RELEASE, policy.cooldown_s * (0.5 + 0.5 * rand))
    if attempt >= policy.max_attempts:
        return Decision(Action.FAIL)
    return Decision(Action.RETRY, backoff_s(attempt, policy.backoff_s, rand))


def is_poison(attempts: int, lease_losses: int, *, max_attempts: int, max_lease_losses: int) -> bool:
    """Say whether a task has used up its attempts before anybody could fail it.

    ``attempts`` counts failed attempts, ``lease_losses`` attempts that started
    and whose lease then ran out unreported. A lost lease is not a failure, but a
    task that takes its whole host down each time must not do so for ever.
    """
    return attempts >= max_attempts or lease_losses >= max_lease_losses


def poison_reason(max_attempts: int) -> str:
    """Return the failure reason of a poison task, in the words that users know."""
    return f"Exceeded max retry attempts ({max_attempts})"
