"""What an attempt tells about itself as spans. While traces are off it only looks at the clock."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from dispatch.core.spans import AttemptSpans, Ran
from dispatch.runner.spool import Kind, Outcome
from dispatch.traces import recorder

if TYPE_CHECKING:
    from dispatch.ats.gateway import AttemptRef
    from dispatch.ats.model import Task
    from dispatch.runner.attempt import AttemptEnd


class AttemptTrace:
    """The trace of one attempt, which begins now. Until ``started`` named the task there is nothing to tell of."""

    def __init__(self, ref: AttemptRef, queue: str) -> None:
        self._ref = ref
        self._queue = queue
        self._began_ns = time.time_ns()
        self._spawned_ns = 0
        self._spans: AttemptSpans | None = None
        self._error = ""

    def started(self, task: Task, asked_ns: int) -> None:
        """Note that the service granted the start, and what the task is; ``asked_ns`` is when it was asked first."""
        ref = self._ref
        trace = recorder.trace_of(task.uuid, ref.task_id)
        if trace is not None:
            self._spans = AttemptSpans(trace, ref.task_id, ref.attempt, ref.token, ref.actor_id)
            recorder.record(self._spans.start((asked_ns, time.time_ns())))

    def spawning(self) -> dict[str, str]:
        """Note that the child is about to be started, and return what it finds of the trace in its environment."""
        self._spawned_ns = time.time_ns()
        return {} if self._spans is None else {"TRACEPARENT": self._spans.child_traceparent()}

    def ran(self, end: AttemptEnd, executor: str) -> None:
        """Note how the child ended."""
        if self._spans is not None:
            ran = Ran(executor, end.reason, end.exit_code, end.signal)
            recorder.record(self._spans.run((self._spawned_ns, time.time_ns()), ran))

    def reported(self, kind: Kind, outcome: Outcome, began_ns: int) -> None:
        """Note what became of the report."""
        if kind is Kind.FAIL:
            self._error = "failed"
        if self._spans is not None:
            is_heard = outcome is Outcome.ACCEPTED
            times = (began_ns, time.time_ns())
            recorder.record(self._spans.report(times, kind.value, outcome.value, is_heard=is_heard))

    def over(self, end: AttemptEnd | None) -> None:
        """Note that the attempt is over; ``end`` is None when nothing was started."""
        if self._spans is not None:
            reason = None if end is None else end.reason
            recorder.record(self._spans.whole((self._began_ns, time.time_ns()), self._queue, reason, self._error))
