"""Every error that dispatch raises.

::

    DispatchError
    |- ConfigurationError           the operator must change a setting or install something (exit 78)
    |- UsageError                   the person typed something that cannot be done (exit 2)
    |- BrokerUnavailableError       Redis does not answer, or takes no writes (exit 69)
    |- DatabaseUnavailableError     the service's database does not answer, or takes no writes (exit 69)
    |- NoAddressError               this machine does not have the address to listen on, yet (exit 75)
    |- TaskError                    the service refuses, nothing changed
    |  |- InvalidInputError         400, the request is malformed or out of bounds
    |  |- UnauthorizedError         401, an API key is missing, wrong, expired or revoked
    |  |- ForbiddenError            403, the service does not serve who asks
    |  |- MethodNotAllowedError     405
    |  |- SlowBodyError             408
    |  |- TooLargeError             413
    |  |- NotFoundError             404
    |  |- IllegalMoveError          409, the lifecycle does not allow it
    |  |- UnexpectedStatusError     409, the task is not in the status that the caller named
    |  |- LeaseHeldError            409, somebody else holds the task
    |  |- StaleLeaseError           409, the fencing token is not the current one
    |  |- ReusedSealError          409, the sealed message came in another task before
    |  |- NotReadyError             409, waits for a time or for dependencies
    |  |- AssignedElsewhereError    409, it was given to another agent
    |  |- ConflictError             409, the name or id exists already
    |  |- OverloadedError           503, try again
    |  `- InternalError             500, a mistake in dispatch
    `- GatewayError                 a call to a task service did not succeed, seen from the client
       |- GatewayUnavailableError   no usable answer; trying again is right
       |- GatewayRejectedError      the service understood and refused; trying again is not
       |  |- LeaseLostError         the lease or token is no longer ours: stop the attempt
       |  |- SealReplayedError      the sealed message came in another task before
       |  `- UnknownTaskError       the task does not exist there
       `- AuthenticationError       the key was refused

``str(error)`` is one sentence a person can act on; facts are attributes.
``TaskError.code`` is stable and documented in docs/errors.md; the map from
codes to HTTP statuses is this module's and nobody else's.
"""

from __future__ import annotations

from typing import Any, ClassVar


class DispatchError(Exception):
    """The root: catch this to catch everything that dispatch raises itself."""

    exit_code: ClassVar[int] = 1


class ConfigurationError(DispatchError):
    """A setting, a file or a program that is needed is missing, wrong or inconsistent."""

    exit_code = 78


class UsageError(DispatchError):
    """What was typed cannot be done as typed."""

    exit_code = 2


class BrokerUnavailableError(DispatchError):
    """Redis does not answer, or takes no writes. Trying again is right."""

    exit_code = 69


class DatabaseUnavailableError(DispatchError):
    """The task service's database does not answer, or its disk is full. Trying again is right."""

    exit_code = 69


class NoAddressError(DispatchError):
    """This machine has no such address, which may be because its network is not up yet. Trying again is right."""

    exit_code = 75


class TaskError(DispatchError):
    """The service refuses; nothing was changed. ``facts`` go into the answer as they are."""

    code: ClassVar[str] = "REFUSED"
    http_status: ClassVar[int] = 400
    why: ClassVar[str] = ""
    """The rule behind every refusal with this code."""
    advice: ClassVar[str] = ""
    """What to do next, in general."""

    def __init__(self, message: str, *, next_step: str | None = None, **facts: Any) -> None:
        """``next_step`` is better advice than the general one, for this very case."""
        super().__init__(message)
        self.next_step = next_step or self.advice
        self.facts = facts

    def as_body(self) -> dict[str, Any]:
        """Return the JSON body of the refusal: ``error`` (a sentence), ``code``, ``why``, ``next``, and the facts."""
        return {"error": str(self), "code": self.code, "why": self.why, "next": self.next_step, **self.facts}

    def as_text(self) -> str:
        """Return the refusal as one text, for a reader who sees nothing else."""
        return f"{self.code}: {self} {self.why} Next: {self.next_step}"


class InvalidInputError(TaskError):
    """The request is malformed, of the wrong type, or out of bounds."""

    code = "INVALID"
    http_status = 400
    why = "What comes from outside is read strictly; nothing is guessed and nothing was changed."
    advice = "Correct what the sentence names and call again."


class UnauthorizedError(TaskError):
    """The service wants an API key, and the request has none that is good."""

    code = "UNAUTHORIZED"
    http_status = 401
    why = "This service has API keys, and every request must carry a good one."
    advice = "Send the header 'Authorization: Bearer KEY'; an operator makes keys with 'dispatch api-key create'."


class ForbiddenError(TaskError):
    """The service does not serve who asks: a web page of another site, or a foreign Host."""

    code = "FORBIDDEN"
    http_status = 403
    why = "Whoever asks may do only what the key, or the machine they call from, allows."
    advice = "Use a key that allows it, or ask the operator for one."


class MethodNotAllowedError(TaskError):
    """The path exists, but not for this method."""

    code = "METHOD_NOT_ALLOWED"
    http_status = 405
    why = "The path exists, but not for this method."
    advice = "Use one of the methods that the sentence lists."


class SlowBodyError(TaskError):
    """The body of the request did not arrive in time."""

    code = "TIMEOUT"
    http_status = 408
    why = "A request must arrive within a bounded time."
    advice = "Send it again over a connection that keeps up."


class TooLargeError(TaskError):
    """A body or a field exceeds its limit."""

    code = "TOO_LARGE"
    http_status = 413
    why = "Every size has a limit, so that one request cannot starve the others."
    advice = "Send less, or keep the data elsewhere and send a reference."


class NotFoundError(TaskError):
    """The task, project or organisation does not exist."""

    code = "NOT_FOUND"
    http_status = 404
    why = "Nothing with this name can be seen by this caller."
    advice = "Look the name up in a list, and mind the project."


class IllegalMoveError(TaskError):
    """The lifecycle does not allow this move from the task's present state."""

    code = "ILLEGAL_MOVE"
    http_status = 409
    why = "The lifecycle allows 28 moves between its nine states, and this is none of them."
    advice = "Make one of the allowed moves, or read the task again if its state surprises you."

    def __init__(self, *, current: str, target: str, allowed: list[str], next_step: str | None = None) -> None:
        options = ", ".join(allowed) or "nothing"
        super().__init__(
            f"A task in {current} status does not allow {target}; it allows: {options}.",
            next_step=next_step,
            status=current,
            allowed=allowed,
        )


class UnexpectedStatusError(TaskError):
    """The task is not in the status that the caller expected."""

    code = "UNEXPECTED_STATUS"
    http_status = 409
    why = "The call was to happen only from the status it named."
    advice = "Read the task again and decide anew."


class LeaseHeldError(TaskError):
    """Somebody else holds the task's lease."""

    code = "LEASE_HELD"
    http_status = 409
    why = "While a lock is live only its holder, or a person, may change or take the task."
    advice = "Wait until the lock is released or runs out, or choose another task."


class StaleLeaseError(TaskError):
    """The caller's fencing token is not the task's current one."""

    code = "STALE_LEASE"
    http_status = 409
    why = "A newer grant or the end of the task made this fencing token void."
    advice = "Stop working on the task; read it again before you do anything about it."


class ReusedSealError(TaskError):
    """The sealed message has been the content of another task before."""

    code = "SEAL_REPLAYED"
    http_status = 409
    why = "A sealed message belongs to one task for good, so that nobody can have it run again by copying it."
    advice = "Do not run the task; its sender seals a new message for a new task."


class NotReadyError(TaskError):
    """The task may not be claimed yet: it waits for a time or for other tasks."""

    code = "NOT_READY"
    http_status = 409
    why = "A task cannot be claimed before its time has come and its dependencies are completed."
    advice = "Wait for what the sentence names, or choose another task."


class AssignedElsewhereError(TaskError):
    """The task was given to another agent."""

    code = "ASSIGNED_ELSEWHERE"
    http_status = 409
    why = "A task with an assignee is kept for it."
    advice = "Choose another task, or have it reassigned with core_update_task."


class ConflictError(TaskError):
    """Something with this name or id exists already."""

    code = "CONFLICT"
    http_status = 409
    why = "Names and ids are given once."
    advice = "Choose another name, or read what exists and use it."


class OverloadedError(TaskError):
    """The service cannot do it now; the same call may succeed later."""

    code = "UNAVAILABLE"
    http_status = 503
    why = "The service or its database is busy or away for the moment."
    advice = "Make the same call again in a second; a repeated report is answered as the first one was."


class InternalError(TaskError):
    """A mistake in dispatch; the service's log says more."""

    code = "INTERNAL"
    http_status = 500
    why = "This is a mistake in dispatch, not in the request."
    advice = "Tell the operator, who finds it in the service's log; whether anything was changed can be read back."


class GatewayError(DispatchError):
    """A call to a task service did not succeed."""


class GatewayUnavailableError(GatewayError):
    """No usable answer came: refused, timed out, cut off, 429, 5xx or not JSON. Try again.

    ``retry_after_s`` is what the service asked for, or None.
    """

    exit_code = 69

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class GatewayRejectedError(GatewayError):
    """The service understood the call and refused it.

    ``status`` is the HTTP status, ``code`` the service's code or "", ``facts``
    the rest of the body.
    """

    def __init__(self, message: str, *, status: int, code: str = "", facts: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.facts = facts or {}


class LeaseLostError(GatewayRejectedError):
    """The lease or the fencing token is no longer ours. The holder must stop its attempt.

    ``task_status`` is the task's ATS word where the service said it, else "".
    """

    @property
    def task_status(self) -> str:
        """The task's present status in ATS words, or ""."""
        return str(self.facts.get("status") or "")


class SealReplayedError(GatewayRejectedError):
    """The sealed message has been the content of another task before: it must not run in this one."""


class UnknownTaskError(GatewayRejectedError):
    """The service has no such task."""


class AuthenticationError(GatewayError):
    """The service refused the key, or the key may not do this."""

    exit_code = 77
