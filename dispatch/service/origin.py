"""Where a request came from, for whoever tells of what it changed: kept beside the request while traces are on."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from dispatch.core.trace_ids import Link


@dataclass(frozen=True, slots=True)
class Origin:
    """When the request came, in nanoseconds since 1970, and the caller's span, if it named one."""

    came_ns: int
    link: Link | None


ORIGIN: Final[ContextVar[Origin | None]] = ContextVar("origin", default=None)
"""Set by the application for each request, in the task that serves it."""
