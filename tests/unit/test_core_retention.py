"""How long what is kept, and which tasks go together."""

from __future__ import annotations

from dataclasses import fields

from hypothesis import given
from hypothesis import strategies as st

from dispatch.core.retention import KINDS, PAUSE_MAX_S, Retention, going, pause_s
from dispatch.settings import Service

GRAPH = st.dictionaries(st.integers(0, 12), st.sets(st.integers(0, 15), max_size=4), max_size=13)


def test_zero_is_for_ever() -> None:
    """A kind with 0 has no limit; the others have one in the past, in the order in which they are pruned."""
    assert list(Retention().limits(10_000)) == []
    assert list(Retention(tasks_s=2, events_s=1.5).limits(10_000)) == [("events", 8_500), ("tasks", 8_000)]
    assert {field.name for field in fields(Retention)} == {f"{kind}_s" for kind in KINDS}


def test_whole_tasks_and_their_history_stay_by_default() -> None:
    """Nobody who sets nothing loses a task, or what people said and did about it."""
    assert {kind for kind, _ in Service().retention.limits(0)} == {
        "events",
        "log_messages",
        "deliveries",
        "idempotency_keys",
    }


@given(candidates=st.sets(st.integers(0, 12)), needers=GRAPH)
def test_nobody_is_left_that_needs_what_goes(candidates: set[int], needers: dict[int, set[int]]) -> None:
    """Whoever needs a task that goes, goes too; and it is the largest such set."""
    gone = going(candidates, needers)
    assert gone <= candidates
    assert all(needers.get(task, set()) <= gone for task in gone)
    left = candidates
    while (fewer := {task for task in left if needers.get(task, set()) <= left}) != left:
        left = fewer
    assert gone == left


def test_the_writer_is_left_to_others_most_of_the_time() -> None:
    """A pause is four times as long as the step before it, within bounds."""
    assert pause_s(0.1) == 0.4
    assert 0 < pause_s(0.0) < 0.1
    assert pause_s(1000) == PAUSE_MAX_S
