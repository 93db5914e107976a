"""What is told about a task as spans: names, parents and attributes. Pure.

One trace tells of one task (docs/traces.md shows one)::

    create                        service
      claim                       ingress, for each grant
        enqueue QUEUE             ingress
          attempt QUEUE           worker
            start, run, report    worker
      end                         service, for each end

Nothing that an author wrote is in a span but the title of a task in the open:
no payload, no prompt, no output, no reason of a failure. Names and attributes
follow OpenTelemetry's conventions for messaging where these fit,
https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from dispatch.core.retry import FAILURES, EndReason

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dispatch.core.trace_ids import Link, TaskTrace

TITLE_CHARS_MAX: Final = 200
NOT_RUN: Final = "not_run"
"""How an attempt ended that started nothing."""
_BAD: Final = FAILURES | {EndReason.LEASE_LOST}
_ELSEWHERE: Final = frozenset({"claim", "attempt"})
"""Spans whose parent another process makes."""

Times = tuple[int, int]
"""When a span began and ended, in nanoseconds since 1970."""


class Kind(StrEnum):
    """What a span is to the processes that it lies between."""

    PRODUCER = "producer"
    CONSUMER = "consumer"
    CLIENT = "client"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class Span:
    """One span, over. ``error`` is a word of ours, "" when nothing went wrong."""

    trace: TaskTrace
    name: str
    kind: Kind
    span_id: int
    times: Times
    attributes: Mapping[str, str | int]
    parent_id: int | None = None
    is_parent_remote: bool = False
    """Whether another process made the parent."""
    error: str = ""
    links: tuple[Link, ...] = ()


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """What is told about a task. ``title`` is cut, and left out when the task is sealed."""

    task_id: str
    uuid: str
    channel: str
    type: str
    priority: int
    title: str = field(repr=False)
    is_sealed: bool


def create(trace: TaskTrace, task: TaskFacts, actor_id: str, times: Times, link: Link | None = None) -> Span:
    """Return the span of a task's creation. ``link`` is the span in which whoever created it did so."""
    attributes: dict[str, str | int] = {
        "messaging.system": "dispatch",
        "messaging.operation.name": "create",
        "messaging.operation.type": "create",
        "dispatch.task.id": task.task_id,
        "dispatch.task.uuid": task.uuid,
        "dispatch.task.type": task.type,
        "dispatch.task.priority": task.priority,
        "dispatch.channel": task.channel,
        "dispatch.actor.id": actor_id,
    }
    if not task.is_sealed:
        attributes["dispatch.task.title"] = task.title[:TITLE_CHARS_MAX]
    links = () if link is None else (link,)
    return Span(trace, "create", Kind.PRODUCER, trace.span_id("create"), times, attributes, links=links)


def end(trace: TaskTrace, task_id: str, status: str, actor_id: str, seq: int, at_ns: int) -> Span:
    """Return the mark of a task's end. ``status`` is an ATS word, ``seq`` the event's number: a task may end twice."""
    return Span(
        trace,
        "end",
        Kind.INTERNAL,
        trace.span_id("end", seq),
        (at_ns, at_ns),
        {"dispatch.task.id": task_id, "dispatch.task.status": status, "dispatch.actor.id": actor_id},
        parent_id=trace.span_id("create"),
        error=status if status == "failed" else "",
    )


@dataclass(frozen=True, slots=True)
class Ran:
    """How a child process ran."""

    executor: str
    reason: EndReason
    exit_code: int | None
    signal: int | None


@dataclass(frozen=True, slots=True)
class AttemptSpans:
    """The spans of one grant: of its claim and of the attempt that follows."""

    trace: TaskTrace
    task_id: str
    attempt: int
    token: int
    actor_id: str

    def claim(self, times: Times) -> Span:
        """Return the span of the call that got the grant."""
        root = self.trace.span_id("create") if self.trace.has_create else None
        return self._span("claim", Kind.CLIENT, times, root, {"dispatch.actor.id": self.actor_id})

    def enqueue(self, times: Times, queue: str, error: str = "") -> Span:
        """Return the span of the message's way into the queue."""
        facts = self._message(queue, "enqueue", "send")
        return self._span("enqueue", Kind.PRODUCER, times, self._id("claim"), facts, error=error)

    def whole(self, times: Times, queue: str, reason: EndReason | None, error: str = "") -> Span:
        """Return the span of the attempt. ``reason`` is how its child ended, None when none was started."""
        facts = self._message(queue, "attempt", "process")
        facts["dispatch.outcome"] = NOT_RUN if reason is None else reason.value
        return self._span("attempt", Kind.CONSUMER, times, self._id("enqueue"), facts, error=_error_of(reason) or error)

    def start(self, times: Times) -> Span:
        """Return the span of the call that began the attempt, tries without an answer included."""
        return self._span("start", Kind.CLIENT, times, self._id("attempt"), {})

    def run(self, times: Times, ran: Ran) -> Span:
        """Return the span of the child process."""
        facts: dict[str, str | int] = {"dispatch.executor": ran.executor, "dispatch.outcome": ran.reason.value}
        if ran.exit_code is not None:
            facts["process.exit.code"] = ran.exit_code
        if ran.signal is not None:
            facts["dispatch.signal"] = ran.signal
        return self._span("run", Kind.INTERNAL, times, self._id("attempt"), facts, error=_error_of(ran.reason))

    def report(self, times: Times, verb: str, outcome: str, *, is_heard: bool) -> Span:
        """Return the span of the report: its verb (complete, fail, release), and what became of it."""
        facts = {"dispatch.report": verb, "dispatch.report.outcome": outcome}
        error = "" if is_heard else outcome
        return self._span("report", Kind.CLIENT, times, self._id("attempt"), facts, error=error)

    def child_traceparent(self) -> str:
        """Return the ``traceparent`` that makes the spans of the child process children of ``run``."""
        return self.trace.traceparent(self._id("run"))

    def _id(self, what: str) -> int:
        return self.trace.span_id(what, self.token)

    def _message(self, queue: str, name: str, operation: str) -> dict[str, str | int]:
        return {
            "messaging.system": "celery",
            "messaging.operation.name": name,
            "messaging.operation.type": operation,
            "messaging.destination.name": queue,
            "messaging.message.id": f"{self.task_id}.{self.token}",
        }

    def _span(
        self,
        what: str,
        kind: Kind,
        times: Times,
        parent_id: int | None,
        facts: Mapping[str, str | int],
        *,
        error: str = "",
    ) -> Span:
        ids: dict[str, str | int] = {
            "dispatch.task.id": self.task_id,
            "dispatch.attempt": self.attempt,
            "dispatch.fencing_token": self.token,
        }
        queue = facts.get("messaging.destination.name")
        return Span(
            self.trace,
            f"{what} {queue}" if queue else what,
            kind,
            self._id(what),
            times,
            {**ids, **facts},
            parent_id,
            is_parent_remote=what in _ELSEWHERE and parent_id is not None,
            error=error,
        )


def _error_of(reason: EndReason | None) -> str:
    return reason.value if reason in _BAD and reason is not None else ""
