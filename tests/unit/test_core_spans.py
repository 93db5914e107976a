"""What spans say, and what they do not."""

from __future__ import annotations

import pytest

from dispatch.core import spans
from dispatch.core.retry import FAILURES, EndReason
from dispatch.core.spans import AttemptSpans, Kind, Ran
from dispatch.core.trace_ids import Link, trace_of

TRACE = trace_of("a808f983-d953-4bc1-a5a4-d5e9c4144318", url="", task_id="7", ratio=1)
TIMES = (1, 2)
SPANS = AttemptSpans(TRACE, "7", attempt=2, token=5, actor_id="me")


def facts(*, is_sealed: bool) -> spans.TaskFacts:
    """A task with a long title."""
    return spans.TaskFacts("7", "a808", "default", "task", 5, title="t" * 201, is_sealed=is_sealed)


def test_a_title_is_cut_and_that_of_a_sealed_task_is_not_there() -> None:
    """At most 200 characters of a title are told, and no character of a sealed task's."""
    open_one = spans.create(TRACE, facts(is_sealed=False), "me", TIMES)
    sealed = spans.create(TRACE, facts(is_sealed=True), "me", TIMES)
    assert open_one.attributes["dispatch.task.title"] == "t" * 200
    assert "ttt" not in str(sealed)
    assert set(open_one.attributes) - set(sealed.attributes) == {"dispatch.task.title"}
    assert "ttt" not in repr(facts(is_sealed=False))


def test_the_caller_is_linked_and_not_the_parent() -> None:
    """One trace for each task: who created it is a link on the root."""
    link = Link(1, 2, is_sampled=False)
    root = spans.create(TRACE, facts(is_sealed=False), "me", TIMES, link)
    assert (root.parent_id, root.links, root.kind) == (None, (link,), Kind.PRODUCER)


def test_parents_are_those_of_the_same_grant() -> None:
    """create > claim > enqueue > attempt > start, run, report; the third and the fifth cross processes."""
    claim, enqueue = SPANS.claim(TIMES), SPANS.enqueue(TIMES, "q")
    whole = SPANS.whole(TIMES, "q", EndReason.SUCCESS)
    assert claim.parent_id == TRACE.span_id("create")
    assert (enqueue.parent_id, whole.parent_id) == (claim.span_id, enqueue.span_id)
    assert (claim.is_parent_remote, enqueue.is_parent_remote, whole.is_parent_remote) == (True, False, True)
    inner = [SPANS.start(TIMES), SPANS.run(TIMES, Ran("x", EndReason.EXIT, 1, None))]
    inner.append(SPANS.report(TIMES, "complete", "accepted", is_heard=True))
    assert {(one.parent_id, one.is_parent_remote) for one in inner} == {(whole.span_id, False)}
    assert [one.name for one in (claim, enqueue, whole, *inner)] == [
        "claim",
        "enqueue q",
        "attempt q",
        "start",
        "run",
        "report",
    ]
    assert enqueue.attributes["messaging.message.id"] == whole.attributes["messaging.message.id"] == "7.5"
    assert SPANS.child_traceparent().split("-")[2] == f"{inner[1].span_id:016x}"


def test_without_a_create_a_claim_is_a_root() -> None:
    """A foreign ATS tells of no creation; nothing names a parent that does not exist."""
    foreign = trace_of(None, url="http://ats", task_id="7", ratio=1)
    claim = AttemptSpans(foreign, "7", 1, 1, "me").claim(TIMES)
    assert (claim.parent_id, claim.is_parent_remote) == (None, False)


@pytest.mark.parametrize("reason", list(EndReason))
def test_what_counts_as_an_error(reason: EndReason) -> None:
    """An attempt that failed or lost its lease is an error by its word; one that was stopped or postponed is none."""
    run = SPANS.run(TIMES, Ran("default", reason, None, 9))
    whole = SPANS.whole(TIMES, "q", reason)
    assert run.error == whole.error == (reason.value if reason in FAILURES | {EndReason.LEASE_LOST} else "")
    assert run.attributes["dispatch.outcome"] == whole.attributes["dispatch.outcome"] == reason.value
    assert (run.attributes["dispatch.signal"], "process.exit.code" in run.attributes) == (9, False)


def test_an_attempt_that_ran_nothing_says_so() -> None:
    """A task that could not be accepted, or not now, has an attempt without a run."""
    whole = SPANS.whole(TIMES, "q", None, "failed")
    assert (whole.attributes["dispatch.outcome"], whole.error) == ("not_run", "failed")
    assert SPANS.whole(TIMES, "q", None).error == ""


def test_ends_are_told_apart() -> None:
    """A task that failed, was reopened and failed again has two ends, both below its creation."""
    ends = [spans.end(TRACE, "7", "failed", "me", seq, 1) for seq in (3, 9)]
    assert len({one.span_id for one in ends}) == 2
    assert {(one.parent_id, one.error) for one in ends} == {(TRACE.span_id("create"), "failed")}
    assert spans.end(TRACE, "7", "cancelled", "me", 3, 1).error == ""
