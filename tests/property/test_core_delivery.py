"""Callbacks: the schedule of Standard Webhooks, what follows from an answer, and what is said."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatch.core import delivery
from dispatch.core.delivery import JITTER, RESULT_BYTES_MAX, SCHEDULE_S, Answer, Ended, body, judge, pause_s

rand = st.floats(0, 1, exclude_max=True)
tries = st.integers(1, len(SCHEDULE_S) - 1)
statuses = st.integers(100, 599)
AT = "2026-11-21T08:00:00.000Z"


@given(tries, rand)
def test_a_pause_is_what_the_schedule_says_or_a_little_more(tries: int, rand: float) -> None:
    """No try comes before its time, and none later than the jitter allows."""
    assert SCHEDULE_S[tries] <= (pause_s(tries, rand) or 0) <= SCHEDULE_S[tries] * (1 + JITTER)


@given(st.integers(len(SCHEDULE_S), 1_000), rand)
def test_ten_tries_are_all(tries: int, rand: float) -> None:
    """After the tenth there is none, whatever the answer."""
    assert pause_s(tries, rand) is None
    assert judge(Answer(500), tries, rand).outcome == "failed"


@given(statuses, st.integers(1, 20), rand, st.none() | st.floats(0, 1e9))
def test_every_answer_has_a_verdict(status: int, tries: int, rand: float, after: float | None) -> None:
    """2xx is delivered, 410 ends it, all else is tried again while tries are left, a day later at most."""
    verdict = judge(Answer(status, retry_after_s=after), tries, rand)
    if 200 <= status < 300:
        assert verdict.outcome == "delivered"
    elif status == 410 or tries >= len(SCHEDULE_S):
        assert (verdict.outcome, verdict.error) == ("failed", f"http_{status}")
    else:
        assert verdict.outcome == "retry"
        assert SCHEDULE_S[tries] <= verdict.delay_s <= SCHEDULE_S[-1] * (1 + JITTER)


@given(st.sampled_from([429, 502, 503, 504]), tries, rand, st.floats(0, 86_400))
def test_retry_after_is_honoured(status: int, tries: int, rand: float, after: float) -> None:
    """A receiver that names a time is not called before it."""
    assert judge(Answer(status, retry_after_s=after), tries, rand).delay_s >= after


def test_retry_after_of_other_answers_counts_for_nothing() -> None:
    """A 500 cannot hold a delivery up."""
    assert judge(Answer(500, retry_after_s=9_999), 1, 0.0).delay_s == 5.0


def test_no_answer_is_tried_again_unless_that_cannot_help() -> None:
    """A time-out is tried again, a refused address is not."""
    assert judge(Answer(error="timeout"), 1, 0.0) == delivery.Verdict("retry", 5.0, "timeout")
    assert judge(Answer(error="address_refused", is_final=True), 1, 0.0).outcome == "failed"


def test_what_a_callback_says() -> None:
    """The four fields of old at the top, and Standard Webhooks' three."""
    told = json.loads(body(Ended("7", "completed", AT, "A title", "ops", outputs=[{"response": "done"}])))
    facts = {"task_id": 7, "status": "completed", "result": "done", "completed_at": AT}
    assert told == {
        **facts,
        "type": "task.completed",
        "timestamp": AT,
        "data": {**facts, "title": "A title", "channel": "ops"},
    }


@pytest.mark.parametrize("status", ["failed", "cancelled", "rejected"])
def test_a_failure_tells_why(status: str) -> None:
    """The result of what did not complete is the reason, not what it may have put out."""
    ended = Ended("7", status, AT, outputs=[{"response": "half"}], reason="because")
    assert json.loads(body(ended))["result"] == "because"


@given(st.text(min_size=1, max_size=50), st.integers(1, 5_000))
def test_a_long_result_is_cut_and_marked(text: str, times: int) -> None:
    """At most 64 KiB of UTF-8, whole characters, and a mark when something is missing."""
    told = json.loads(body(Ended("7", "completed", AT, outputs=[{"response": text * times}])))
    size = len((text * times).encode())
    assert len(told["result"].encode()) <= RESULT_BYTES_MAX
    assert told.get("truncated", False) is (size > RESULT_BYTES_MAX) is told["data"].get("truncated", False)
    assert size > RESULT_BYTES_MAX or told["result"] == text * times
    assert size <= RESULT_BYTES_MAX or told["result"].endswith("[truncated]")


def test_an_encrypted_task_is_told_by_its_number_only() -> None:
    """Neither title nor answer nor reason leaves, and that is said."""
    for status in ("completed", "failed"):
        ended = Ended("7", status, AT, "a secret", "ops", [{"response": "a secret"}], "a secret", is_encrypted=True)
        text = body(ended)
        told = json.loads(text)
        assert b"a secret" not in text
        assert (told["result"], told["encrypted"], told["data"]["encrypted"]) == (None, True, True)
        assert "title" not in told["data"]


def test_a_task_that_was_reopened_since_has_no_result() -> None:
    """What it holds now belongs to another attempt."""
    told = json.loads(body(Ended("7", "completed", AT, outputs=[{"response": "later"}], is_stale=True)))
    assert (told["status"], told["result"], told["data"]["reopened"]) == ("completed", None, True)
