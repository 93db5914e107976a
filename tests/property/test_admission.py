"""The backlog against a plain model, and the window's bounds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dispatch.core.admission import Backlog, free_window

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
