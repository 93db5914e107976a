"""What follows the end of an attempt."""

from __future__ import annotations

import pytest

from dispatch.core.retry import (
    EXIT_TEMPFAIL,
    FAILURES,
    Action,
    EndReason,
    RetryPolicy,
    decide,
    is_poison,
    poison_reason,
)

POLICY = RetryPolicy(max_attempts=3, backoff_s=4.0, cooldown_s=60.0)

# end -> what follows attempts 1, 2 and 3 of 3
AFTER = {
    "success": ["complete"] * 3,
    "exit": ["retry", "retry", "fail"],
    "signal": ["retry", "retry", "fail"],
    "tempfail": ["release"] * 3,
    "timeout": ["retry", "retry", "fail"],
    "idle": ["retry", "retry", "fail"],
    "oom": ["retry", "retry", "fail"],
    "process_limit": ["retry", "retry", "fail"],
    "spawn_error": ["retry", "retry", "fail"],
    "worker_lost": ["retry", "retry", "fail"],
    "cancelled": ["let_go"] * 3,
    "lease_lost": ["let_go"] * 3,
    "shutdown": ["release"] * 3,
}


@pytest.mark.parametrize("end", EndReason)
def test_decision_for_every_end(end: EndReason) -> None:
    """Failures are retried twice and then final; a shutdown, a lost lease, a cancel and an exit 75 never count."""
    assert [decide(end, attempt, POLICY, 0.0).action.value for attempt in (1, 2, 3)] == AFTER[end.value]
    assert (end in FAILURES) is ("retry" in AFTER[end.value])


def test_pauses() -> None:
    """A retry waits its backoff, an exit 75 its jittered cooldown, a shutdown not at all."""
    assert decide(EndReason.EXIT, 1, POLICY, 0.0).delay_s == 2.0
    assert decide(EndReason.EXIT, 2, POLICY, 1.0).delay_s == 8.0
    assert decide(EndReason.TEMPFAIL, 1, POLICY, 0.0).delay_s == 30.0
    assert decide(EndReason.TEMPFAIL, 1, POLICY, 1.0).delay_s == 60.0
    assert decide(EndReason.SHUTDOWN, 1, POLICY, 1.0).delay_s == 0.0
    assert EXIT_TEMPFAIL == 75


def test_one_attempt_means_no_retry() -> None:
    """With max_attempts 1 the first failure is final."""
    assert decide(EndReason.EXIT, 1, RetryPolicy(max_attempts=1), 0.5).action is Action.FAIL


def test_poison() -> None:
    """A task is poison at the limit of failed attempts or of lost leases, not before; the words are known to users."""
    limits = {"max_attempts": 3, "max_lease_losses": 10}
    assert not is_poison(2, 9, **limits)
    assert is_poison(3, 0, **limits)
    assert is_poison(0, 10, **limits)
    assert poison_reason(3) == "Exceeded max retry attempts (3)"
