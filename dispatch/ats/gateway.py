"""What a worker asks of a task service about one attempt.

Two implementations: ``dispatch.ats.fenced`` for services that announce the
fencing extension (ours), ``dispatch.ats.plain`` for a foreign ATS without
tokens, where fencing happens in Redis and by re-reading, which is best effort.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from dispatch.ats.model import Grant, Task


@dataclass(frozen=True, slots=True)
class AttemptRef:
    """Names one attempt: the content of a Celery message, nothing else travels through Redis."""

    task_id: str
    attempt: int
    """Number of the attempt, from 1, counting only attempts that count."""
    token: int
    """The fencing token of the claim."""
    actor_id: str
    """The actor that claimed; every report about the attempt is made as this actor."""


class TaskGateway(Protocol):
    """Synchronous calls of a worker. Every call has a deadline of its own and is safe to repeat.

    All raise GatewayUnavailableError (try again), LeaseLostError (stop, report
    nothing), UnknownTaskError, AuthenticationError or GatewayRejectedError.
    """

    def start(self, ref: AttemptRef, *, runner: str, message: str) -> Grant:
        """Begin the attempt: the worker's first act. LeaseLostError means: drop the message."""
        ...

    def renew(self, ref: AttemptRef, *, message: str | None = None) -> Grant:
        """Extend the lease from now."""
        ...

    def complete(self, ref: AttemptRef, outputs: list[Any], *, review: bool = False) -> None:
        """Report success. Repeating it with the same outputs is answered as the first time.

        With ``review`` the task waits for somebody's approval, where the service knows that.
        """
        ...

    def fail(self, ref: AttemptRef, reason: str) -> None:
        """Report the final failure."""
        ...

    def seen(self, ref: AttemptRef, digest: str) -> None:
        """Note that a sealed message, by its digest, is the content of the task; safe to repeat in every attempt.

        Raises SealReplayedError when it was another task's: then it must not run.
        """
        ...

    def read(self, task_id: str) -> Task:
        """Return a task as it is now: another one than the attempt's."""
        ...

    def say(self, ref: AttemptRef, text: str, meta: dict[str, Any] | None = None) -> str:
        """Append a text of kind ``log`` to the task's thread, with facts for programs; return the message's id, or "".

        Repeated, it stands there twice. May be called by a third thread, beside reports and renewals.
        """
        ...

    def was_said(self, ref: AttemptRef, text: str, *, after: str) -> bool:
        """Say whether a text that got no answer stands on the thread all the same.

        ``after`` is the id of the message that was said before it, "" if there is none.
        """
        ...

    def release(self, ref: AttemptRef, *, counted: bool, delay_s: float, reason: str) -> None:
        """Give the claim back; the task waits ``delay_s`` before it can be claimed again."""
        ...
