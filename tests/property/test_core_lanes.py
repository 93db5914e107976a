"""Lanes: one backlog for each combination of queue and classes, popped best first among those that are open."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dispatch.core.lanes import Lane, Lanes, lane_of
from dispatch.core.routing import Choice

USUAL = Choice("default", "dispatch", 60.0, 3)
CHOICES = [
    USUAL,
    Choice("default", "dispatch", 60.0, 1),
    Choice("gpu", "gpu", 60.0, 3, ("gpu",)),
    Choice("default", "dispatch", 60.0, 3, ("gpu",)),
]
_ids = st.integers(1, 20).map(str)
_steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), _ids, st.integers(1, 10), st.sampled_from(CHOICES)),
        st.tuples(st.just("discard"), _ids),
        st.tuples(st.just("forget"), _ids),
        st.tuples(st.just("pop"), st.sets(st.sampled_from([lane_of(choice) for choice in CHOICES]))),
    ),
    max_size=60,
)


@given(_steps)
def test_the_best_task_of_all_open_lanes_comes_first(steps):
    """Whatever is added, moved to another lane and taken, pop gives the best of the open lanes, each task once."""
    lanes, model, choices = Lanes(USUAL), {}, {}
    for step in steps:
        if step[0] == "add":
            _, task_id, priority, choice = step
            lanes.route(task_id, choice)
            lanes.add(task_id, priority)
            model[task_id], choices[task_id] = priority, choice
        elif step[0] == "pop":
            ready = sorted((-p, int(i)) for i, p in model.items() if lane_of(choices.get(i, USUAL)) in step[1])
            expected = (str(ready[0][1]), -ready[0][0]) if ready else None
            assert lanes.pop(0.0, step[1].__contains__) == expected
            if expected:
                del model[expected[0]]
        else:
            getattr(lanes, step[0])(step[1])
            model.pop(step[1], None)
            if step[0] == "forget":
                choices.pop(step[1], None)
        assert len(lanes) == len(model)
        assert all(task_id in lanes for task_id in model)
        assert all(lanes.choice_of(task_id) == choice for task_id, choice in choices.items())


def test_a_lane_that_is_stuck_does_not_hide_the_others():
    """A full lane that nobody may take from does not end the reading of what is pending; a full usual one does."""
    lanes = Lanes(USUAL, capacity=10)
    for number in range(40):
        lanes.route(str(number), CHOICES[2])
        lanes.add(str(number), 5)
    assert lanes.truncated
    assert not lanes.is_full()
    for number in range(100, 109):
        lanes.add(str(number), 5)
    assert lanes.is_full()
    assert lanes.pop(0.0, lambda lane: lane == Lane("dispatch")) == ("100", 5)
