"""Every error that dispatch raises.

::

    DispatchError
    |- ConfigurationError           the operator must change a setting or install something (exit 78)
    |- UsageError                   the person typed something that cannot be done (exit 2)
    |- BrokerUnavailableError       Redis does not answer (exit 69)
    |- TaskError                    the service refuses, nothing changed
    |  |- InvalidInputError         400, the request is malformed or out of bounds
    |  |- ForbiddenError            403, the service does not serve who asks
    |  |- MethodNotAllowedError     405
    |  |- SlowBodyError             408
    |  |- TooLargeError             413
    |  |- NotFoundError             404
    |  |- IllegalMoveError          409, the lifecycle does not allow it
    |  |- LeaseHeldError            409, somebody else holds the task
    |  |- StaleLeaseError           409, the fencing token is not the current one
    |  |- NotReadyError             409, waits for a time or for dependencies
    |  |- ConflictError             409, the name or id exists already
    |  `- OverloadedError           503, try again
    `- GatewayError                 a call to a task service did not succeed, seen from the client
       |- GatewayUnavailableError   no usable answer; trying again is right
       |- GatewayRejectedError      the service understood and refused; trying again is not
       |  |- LeaseLostError         the lease or token is no longer ours: stop the attempt
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
    """Redis does not answer. Trying again is right."""

    exit_code = 69


class TaskError(DispatchError):
    """The service refuses; nothing was changed. ``facts`` go into the answer as they are."""

    code: ClassVar[str] = "REFUSED"
    http_status: ClassVar[int] = 400

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(message)
        self.facts = facts

    def as_body(self) -> dict[str, Any]:
        """Return the JSON body of the refusal: ``error`` (a sentence), ``code``, and the facts."""
        return {"error": str(self), "code": self.code, **self.facts}


class InvalidInputError(TaskError):
    """The request is malformed, of the wrong type, or out of bounds."""

    code = "INVALID"
    http_status = 400


class ForbiddenError(TaskError):
    """The service does not serve who asks: a web page of another site, or a foreign Host."""

    code = "FORBIDDEN"
    http_status = 403


class MethodNotAllowedError(TaskError):
    """The path exists, but not for this method."""

    code = "METHOD_NOT_ALLOWED"
    http_status = 405


class SlowBodyError(TaskError):
    """The body of the request did not arrive in time."""

    code = "TIMEOUT"
    http_status = 408


class TooLargeError(TaskError):
    """A body or a field exceeds its limit."""

    code = "TOO_LARGE"
    http_status = 413


class NotFoundError(TaskError):
    """The task, project or organisation does not exist."""

    code = "NOT_FOUND"
    http_status = 404


class IllegalMoveError(TaskError):
    """The lifecycle does not allow this move from the task's present state."""

    code = "ILLEGAL_MOVE"
    http_status = 409

    def __init__(self, *, current: str, target: str, allowed: list[str]) -> None:
        options = ", ".join(allowed) or "nothing"
        super().__init__(
            f"A task in {current} status does not allow {target}; it allows: {options}.",
            status=current,
            allowed=allowed,
        )


class LeaseHeldError(TaskError):
    """Somebody else holds the task's lease."""

    code = "LEASE_HELD"
    http_status = 409


class StaleLeaseError(TaskError):
    """The caller's fencing token is not the task's current one."""

    code = "STALE_LEASE"
    http_status = 409


class NotReadyError(TaskError):
    """The task may not be claimed yet: it waits for a time or for other tasks."""

    code = "NOT_READY"
    http_status = 409


class ConflictError(TaskError):
    """Something with this name or id exists already."""

    code = "CONFLICT"
    http_status = 409


class OverloadedError(TaskError):
    """The service cannot do it now; the same call may succeed later."""

    code = "UNAVAILABLE"
    http_status = 503


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


class UnknownTaskError(GatewayRejectedError):
    """The service has no such task."""


class AuthenticationError(GatewayError):
    """The service refused the key, or the key may not do this."""

    exit_code = 77
