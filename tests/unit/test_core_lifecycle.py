"""The state machine, against the Task Tools page typed out a second time."""

from __future__ import annotations

import pytest

from dispatch.core.lifecycle import (
    ATS_WORD,
    FINISHED,
    FINISHED_ATS_WORDS,
    MOVES,
    STATUS_OF_ATS_WORD,
    Status,
    Verb,
    check_move,
    is_legal,
    path,
)
from dispatch.errors import IllegalMoveError

PAGE = """
backlog     | todo, cancelled, skipped
todo        | in_progress, blocked, cancelled, skipped
in_progress | in_review, todo, failed, blocked, cancelled
in_review   | completed, todo, in_review, failed, cancelled
completed   | todo
failed      | todo, backlog, cancelled
blocked     | todo, backlog, cancelled
cancelled   | backlog, todo
skipped     | backlog, todo
"""
TABLE = {
    source.strip(): {target.strip() for target in targets.split(",")}
    for source, targets in (row.split("|") for row in PAGE.strip().splitlines())
}

# verb -> state it starts from -> states it walks through. What is absent is refused.
VERBS = {
    "claim": {"todo": ["in_progress"]},
    "complete": {"in_progress": ["in_review", "completed"], "in_review": ["completed"]},
    "fail": {"in_progress": ["failed"], "in_review": ["failed"]},
    "cancel": {
        "backlog": ["cancelled"],
        "todo": ["cancelled"],
        "blocked": ["cancelled"],
        "in_progress": ["cancelled"],
        "in_review": ["cancelled"],
    },
    "reject": {"backlog": ["skipped"], "todo": ["skipped"]},
    "reopen": {"completed": ["todo"], "failed": ["todo"], "cancelled": ["todo"], "skipped": ["todo"]},
    "release": {"in_progress": ["todo"]},
    "expire": {"in_progress": ["todo"]},
}


@pytest.mark.parametrize("target", Status)
@pytest.mark.parametrize("current", Status)
def test_every_cell_is_as_the_page_says(current: Status, target: Status) -> None:
    """Each of the 81 moves is legal exactly when the page lists it; a refusal lists what is allowed."""
    legal = target.value in TABLE[current.value]
    assert is_legal(current, target) is legal
    assert (target in MOVES[current]) is legal
    if legal:
        check_move(current, target)
        return
    with pytest.raises(IllegalMoveError) as caught:
        check_move(current, target)
    assert caught.value.facts == {"status": current.value, "allowed": sorted(TABLE[current.value])}
    assert f"A task in {current.value} status does not allow {target.value}" in str(caught.value)


def test_nine_states_and_28_moves() -> None:
    """The page has nine states and 28 moves, and so have we."""
    assert set(TABLE) == {state.value for state in Status} == {state.value for state in MOVES}
    assert sum(len(targets) for targets in TABLE.values()) == sum(len(t) for t in MOVES.values()) == 28


@pytest.mark.parametrize("current", Status)
@pytest.mark.parametrize("verb", Verb)
def test_every_verb_from_every_state(verb: Verb, current: Status) -> None:
    """A verb walks exactly the listed states, or is refused with the ATS word of the state and the possible verbs."""
    expected = VERBS[verb.value].get(current.value)
    if expected is not None:
        assert [state.value for state in path(verb, current)] == expected
        return
    with pytest.raises(IllegalMoveError) as caught:
        path(verb, current)
    possible = [v for v in VERBS if current.value in VERBS[v] and v != "expire"]
    assert caught.value.facts == {"status": ATS_WORD[current], "allowed": possible}


@pytest.mark.parametrize("dependency_failed", [False, True])
@pytest.mark.parametrize("needs_review", [False, True])
@pytest.mark.parametrize("current", Status)
@pytest.mark.parametrize("verb", Verb)
def test_every_step_of_a_verb_is_a_legal_move(
    verb: Verb, current: Status, needs_review: bool, dependency_failed: bool
) -> None:
    """Whatever the options, no verb takes a step that the page does not list."""
    try:
        steps = path(verb, current, needs_review=needs_review, dependency_failed=dependency_failed)
    except IllegalMoveError:
        return
    at = current
    for step in steps:
        assert step.value in TABLE[at.value]
        at = step


def test_review_stops_a_completion_of_the_worker_only() -> None:
    """A task that needs review is completed up to in_review by its worker, and to the end by its reviewer."""
    assert path(Verb.COMPLETE, Status.IN_PROGRESS, needs_review=True) == (Status.IN_REVIEW,)
    assert path(Verb.COMPLETE, Status.IN_REVIEW, needs_review=True) == (Status.COMPLETED,)


def test_failed_dependency_fails_a_waiting_task() -> None:
    """Fail is accepted from todo only when a dependency has failed, and walks through in_progress."""
    assert path(Verb.FAIL, Status.TODO, dependency_failed=True) == (Status.IN_PROGRESS, Status.FAILED)
    for other in set(Status) - {Status.TODO, Status.IN_PROGRESS, Status.IN_REVIEW}:
        with pytest.raises(IllegalMoveError):
            path(Verb.FAIL, other, dependency_failed=True)


def test_ats_words() -> None:
    """The projection is the documented one, and no two states share a word."""
    assert {state.value: word for state, word in ATS_WORD.items()} == {
        "backlog": "backlog",
        "todo": "pending",
        "in_progress": "in_progress",
        "in_review": "in_review",
        "completed": "completed",
        "failed": "failed",
        "blocked": "blocked",
        "cancelled": "cancelled",
        "skipped": "rejected",
    }
    assert {STATUS_OF_ATS_WORD[word]: word for word in STATUS_OF_ATS_WORD} == dict(ATS_WORD)
    assert {"completed", "failed", "cancelled", "rejected"} == FINISHED_ATS_WORDS
    assert {ATS_WORD[state] for state in FINISHED} == FINISHED_ATS_WORDS
