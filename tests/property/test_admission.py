"""The backlog against a plain model, and the window's bounds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dispatch.core.admission import CREDIT_MAX, Backlog, Pace, credit_for, free_window, step_for

_ids = st.integers(1, 30).map(str)
_steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), _ids, st.integers(1, 10), st.sampled_from([0.0, 0.0, 5.0, 9.0])),
        st.tuples(st.just("discard"), _ids),
        st.tuples(st.just("pop"), st.sampled_from([1.0, 6.0, 10.0])),
    ),
    max_size=80,
)


@given(_steps)
def test_backlog_behaves_like_a_sorted_dictionary(steps):
    """Whatever is added, changed and taken, pop gives the best task that is due, and each task once."""
    backlog, model = Backlog(), {}
    now = 0.0
    for step in steps:
        if step[0] == "add":
            _, task_id, priority, due = step
            backlog.add(task_id, priority, due)
            model[task_id] = (priority, due)
        elif step[0] == "discard":
            backlog.discard(step[1])
            model.pop(step[1], None)
        else:
            now = max(now, step[1])
            ready = sorted((-p, int(i)) for i, (p, due) in model.items() if due <= now)
            expected = (str(ready[0][1]), -ready[0][0]) if ready else None
            assert expected == backlog.pop(now)
            if expected:
                del model[expected[0]]
        assert len(model) == len(backlog)
        assert all((i in backlog) == (i in model) for i in map(str, range(1, 31)))


@given(
    st.lists(st.tuples(st.integers(1, 10_000), st.integers(1, 10)), min_size=1, max_size=200, unique_by=lambda x: x[0])
)
def test_an_overflowing_backlog_keeps_the_best_and_says_so(tasks):
    """A full backlog forgets only tasks that are worse than every one it keeps, and sets ``truncated``."""
    backlog = Backlog(capacity=50)
    for task_id, priority in tasks:
        backlog.add(str(task_id), priority)
    assert len(backlog) <= 50
    assert backlog.truncated == (len(tasks) > 50)
    if not backlog.truncated:
        assert len(backlog) == len(tasks)


@given(st.integers(0, 100), st.integers(0, 10), st.integers(0, 200), st.integers(0, 200))
def test_window_never_exceeds_slots_and_credit(slots, credit, own, others):
    """Claims in flight after filling the window are at most slots plus credit, and none without a slot."""
    free = free_window(slots=slots, credit=credit, own_in_flight=own, others_in_flight=others)
    assert free >= 0
    assert slots > 0 or free == 0
    assert free == 0 or own + others + free == slots + credit


@given(st.integers(1, 100), st.floats(0, 1000), st.integers(0, 10), st.integers(0, 300), st.integers(0, 300))
def test_a_slot_and_the_base_never_wait_for_a_step(slots, rate, base, own, others):
    """Tasks are asked for by the step, but always while fewer than slots plus base are in flight."""
    credit = credit_for(rate, base)
    step = step_for(credit, base)
    free = free_window(slots=slots, credit=credit, own_in_flight=own, others_in_flight=others, step=step)
    assert free == 0 or free >= step
    assert free > 0 or own + others >= slots + base


@given(st.floats(0, 10_000), st.integers(0, 1000))
def test_credit_is_bounded_and_zero_stays_zero(rate, base):
    """Credit is at least the base, at most the larger of base and CREDIT_MAX, and none at all when none is wanted."""
    credit = credit_for(rate, base)
    assert credit == 0 if base == 0 else base <= credit <= max(base, CREDIT_MAX)


@given(st.floats(1, 500), st.integers(20, 400))
def test_pace_follows_a_steady_stream_and_forgets_it(rate, count):
    """After two seconds of a steady stream the pace is about its rate; five seconds later it is about zero."""
    pace, now = Pace(), 0.0
    for _ in range(max(count, int(2 * rate))):
        now += 1 / rate
        pace.ended(now)
    assert 0.6 * rate <= pace.rate(now) <= 1.4 * rate + 2
    assert pace.rate(now + 5) < 0.05 * rate + 0.01
