"""Bounds by the fair clock: what is late fails, on a busy machine as well, and a busy machine alone does not."""

from __future__ import annotations

import time

import pytest

from tests.support import promises
from tests.support.promises import FairClock, promised


def test_what_takes_longer_than_promised_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """On an idle machine a bound is a bound, and the message says what was late."""
    monkeypatch.setattr(promises, "crowding", lambda: 1.0)
    with promised(30.0, "a moment"):
        time.sleep(0.05)
    late = pytest.raises(AssertionError, match=r"^a moment took 0\.\d+ s by a fair clock, .* not 0\.01 s$")
    with late, promised(0.01, "a moment"):
        time.sleep(0.2)


def test_a_moment_counts_by_how_many_want_a_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where four want each processor a second counts a quarter, and everything is four times as slow, or more."""
    monkeypatch.setattr(promises, "crowding", lambda: 4.0)
    began = time.monotonic()
    with FairClock() as clock:
        time.sleep(0.2)
    assert 0 < clock.passed_s <= (time.monotonic() - began) / 4
    assert clock.slowness >= 4


def test_a_failure_in_the_block_is_what_is_told() -> None:
    """Whatever time has passed, an error of the block comes out as it is, and the clock has stopped."""
    with pytest.raises(ZeroDivisionError), promised(0.0, "nothing"):
        raise ZeroDivisionError


def test_crowding_is_at_least_one() -> None:
    """Nobody is faster than on an idle machine."""
    assert promises.crowding() >= 1
