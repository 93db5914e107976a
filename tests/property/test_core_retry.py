"""Backoff stays in its bounds for every attempt and every draw."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dispatch.core.retry import BACKOFF_MAX_S, Action, EndReason, RetryPolicy, backoff_s, decide

rand = st.floats(0, 1, exclude_max=True)
first = st.just(0.0) | st.floats(0.001, 300)
attempt = st.integers(1, 10_000)


@given(attempt, first, rand)
def test_backoff_is_bounded_and_jittered_down_to_half(attempt: int, first: float, rand: float) -> None:
    """The pause lies between half the step and the step, the step doubles and ends at five minutes."""
    step = (
        min(first * 2 ** (attempt - 1), 300.0) if attempt < 64 else (300.0 if first * 2**30 >= 300 else first * 2**30)
    )
    assert step * 0.5 <= backoff_s(attempt, first, rand) <= step <= BACKOFF_MAX_S


@given(attempt, first, rand)
def test_backoff_never_shrinks(attempt: int, first: float, rand: float) -> None:
    """For the same draw a later attempt never waits less."""
    assert backoff_s(attempt, first, rand) <= backoff_s(attempt + 1, first, rand)


@given(st.sampled_from(EndReason), attempt, st.integers(1, 100), rand)
def test_no_attempt_beyond_the_limit(end: EndReason, attempt: int, limit: int, rand: float) -> None:
    """A retry is decided only below the limit, and no pause is negative or above its bound."""
    decision = decide(end, attempt, RetryPolicy(max_attempts=limit), rand)
    assert decision.action is not Action.RETRY or attempt < limit
    assert 0 <= decision.delay_s <= 300
