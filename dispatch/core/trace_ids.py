"""Which trace a task belongs to, and the ids of its spans: worked out by every process alone. Pure.

Nothing about traces travels through Redis or stands in the database. The trace
of a task is its UUID, and a span's id is a hash of the trace, of what the span
is about and of the fencing token. So service, ingress and worker name each
other's spans without having heard of them. What is hashed must never change:
processes of two versions write into one trace.

The texts are those of W3C Trace Context, https://www.w3.org/TR/trace-context/.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final
from uuid import NAMESPACE_URL, UUID, uuid5

_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)
_CHARS_MAX: Final = 512


@dataclass(frozen=True, slots=True)
class Link:
    """A span, as others are told of it."""

    trace_id: int
    span_id: int
    is_sampled: bool

    def traceparent(self) -> str:
        """Write it as a ``traceparent``."""
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{self.is_sampled:02x}"


@dataclass(frozen=True, slots=True)
class TaskTrace:
    """The trace of one task. ``has_create``: the service that keeps the task is ours and tells of its creation."""

    trace_id: int
    is_sampled: bool
    has_create: bool

    def span_id(self, what: str, number: int = 0) -> int:
        """Return the id of a span, never 0; ``number`` is the fencing token, or what else tells it from the others."""
        return _digest(self.trace_id, f"{what}.{number}", size=8) or 1

    def traceparent(self, span_id: int) -> str:
        """Return what a process is handed so that its spans become children of this one."""
        return Link(self.trace_id, span_id, self.is_sampled).traceparent()


def trace_of(uuid: str | None, *, url: str, task_id: str, ratio: float) -> TaskTrace:
    """Return the trace of a task.

    A task without a UUID, which a foreign ATS may have, gets one of the service's
    URL and its id there: all processes must know the service under one URL.
    ``ratio`` is the share of traces that are sampled, from 0 to 1.
    """
    known = _uuid(uuid)
    ident = known if known is not None else uuid5(NAMESPACE_URL, f"{url}/tasks/{task_id}").int
    # Zero is no trace; a task may be called so all the same.
    ident = ident or _digest(0, "trace", size=16)
    return TaskTrace(ident, _is_sampled(ident, ratio), has_create=known is not None)


def link_of(header: str) -> Link | None:
    """Read a ``traceparent``; None when it is none. Later versions of it may have more at the end."""
    found = _TRACEPARENT.fullmatch(header.strip()) if len(header) <= _CHARS_MAX else None
    if found is None or found[1] == "ff" or (found[1] == "00" and found[5]):
        return None
    trace_id, span_id = int(found[2], 16), int(found[3], 16)
    return Link(trace_id, span_id, bool(int(found[4], 16) & 1)) if trace_id and span_id else None


def _uuid(text: str | None) -> int | None:
    try:
        return UUID(text).int if text else None
    except ValueError:
        return None


def _is_sampled(ident: int, ratio: float) -> bool:
    # A hash, and not bits of the id: those of a UUID are not all random, and its author may have chosen them.
    return _digest(ident, "sampled", size=8) < ratio * 2**64


def _digest(ident: int, what: str, *, size: int) -> int:
    return int.from_bytes(blake2b(ident.to_bytes(16) + what.encode(), digest_size=size, person=b"dispatch").digest())
