"""Places that nobody vouches for, and what the task service has to say before one is given away."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from dispatch.core.lifecycle import ATS_WORD
from dispatch.core.places import Place, parse_place, stands_for_nothing, unkept

ME = "a"
_ingresses = st.sampled_from([ME, "b", "c"])
_ids = st.integers(1, 8).map(str)
_some = st.sets(_ids)


@given(
    held=st.dictionaries(st.sampled_from(["one", "two"]), st.dictionaries(_ids, _ingresses)),
    in_flight=_some,
    running=_some,
    ended=_some,
    others=st.sets(st.sampled_from(["b", "c"])),
)
def test_a_place_is_looked_at_only_if_nobody_who_is_there_answers_for_it(held, in_flight, running, ended, others):
    """Never that of a task in flight here or shown as running; of another ingress that is there only after the end."""
    places = {
        name: {task: Place(by, 0.0, 1.0, f"{name} {task}") for task, by in of.items()} for name, of in held.items()
    }
    found = list(unkept(places, me=ME, in_flight=in_flight, present=others, running=running, ended=ended))
    for name, task, place in found:
        assert place.text == f"{name} {task}"
        assert task not in in_flight | running
        assert place.by not in others or task in ended
    left = {(name, task) for name, of in held.items() for task in of} - {(name, task) for name, task, _ in found}
    assert all(task in in_flight | running or held[name][task] in others for name, task in left)


def test_only_what_is_in_progress_or_out_of_sight_keeps_its_place():
    """Whoever may still be started, or run where Redis does not show it, is in progress until its lease is over."""
    words = {*ATS_WORD.values()}
    assert {word for word in words if not stands_for_nothing(word)} == {"in_progress"}
    assert not stands_for_nothing(None)


@given(st.text() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_what_is_no_place_is_none(text):
    """Whatever stands in Redis in the place of one."""
    assert parse_place(text) is None
