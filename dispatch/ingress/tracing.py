"""What the ingress tells of claims as spans."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from dispatch.core.spans import AttemptSpans
from dispatch.traces import recorder

if TYPE_CHECKING:
    from dispatch.ingress.claims import Claim


def claimed(claim: Claim) -> None:
    """Tell of a claim that was granted just now."""
    if (spans := _spans_of(claim)) is not None:
        now_ns = time.time_ns()
        recorder.record(spans.claim((now_ns - round((time.monotonic() - claim.sent_at) * 1e9), now_ns)))


def enqueued(claim: Claim, queue: str, began_ns: int, error: str = "") -> None:
    """Tell that a claim is in the queue now, or that the queue did not take it."""
    if (spans := _spans_of(claim)) is not None:
        recorder.record(spans.enqueue((began_ns, time.time_ns()), queue, error))


def _spans_of(claim: Claim) -> AttemptSpans | None:
    ref = claim.ref
    trace = recorder.trace_of(claim.task.uuid, ref.task_id)
    if trace is None or not trace.is_sampled:
        return None
    return AttemptSpans(trace, ref.task_id, ref.attempt, ref.token, ref.actor_id)
