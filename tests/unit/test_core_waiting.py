"""Priorities in two languages, and the reasons why a task is not running."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from dispatch.core.lifecycle import FINISHED, Status
from dispatch.core.priority import NUMBER_OF, NUMBERS_OF, set_word, word_of
from dispatch.core.waiting import Facts, Needed, reasons


def test_every_number_has_one_word_and_back() -> None:
    """Ten numbers, five words, none lost: a word set again keeps the number, another sets its own."""
    assert [word_of(n) for n in range(1, 11)] == [
        word for word in ("none", "low", "medium", "high", "urgent") for _ in range(2)
    ]
    for word, number in product(NUMBER_OF, range(1, 11)):
        changed = set_word(word, number)
        assert word_of(changed) == word
        assert changed == (number if word_of(number) == word else NUMBER_OF[word])
    assert sorted(n for numbers in NUMBERS_OF.values() for n in numbers) == list(range(1, 11))


def test_more_urgent_words_are_larger_numbers() -> None:
    """The order of the words is the order of the numbers."""
    numbers = [NUMBER_OF[word] for word in ("urgent", "high", "medium", "low", "none")]
    assert numbers == sorted(numbers, reverse=True)


FAILED, OPEN = Needed("#1", Status.FAILED), Needed("#2", Status.IN_PROGRESS)


@pytest.mark.parametrize(
    ("facts", "codes"),
    [
        (Facts(Status.TODO), ["NO_WORKER"]),
        (Facts(Status.TODO, listeners=1), ["OFFERED"]),
        (Facts(Status.TODO, listeners=1, is_sealed=True), ["OFFERED", "SEALED"]),
        (Facts(Status.TODO, is_sealed=True, waits_for=[OPEN]), ["WAITING_FOR_DEPENDENCIES"]),
        (Facts(Status.TODO, listeners=1, ahead=3), ["IN_LINE"]),
        (Facts(Status.TODO, listeners=1, waits_for=[OPEN]), ["WAITING_FOR_DEPENDENCIES"]),
        (Facts(Status.TODO, waits_for=[OPEN, FAILED]), ["DEPENDENCY_FAILED", "WAITING_FOR_DEPENDENCIES"]),
        (Facts(Status.TODO, missing=["#9"], listeners=1), ["DEPENDENCY_MISSING"]),
        (Facts(Status.TODO, circle="#1 -> #1", waits_for=[OPEN]), ["CYCLE", "WAITING_FOR_DEPENDENCIES"]),
        (Facts(Status.TODO, listeners=None), ["OFFERED"]),
        (Facts(Status.TODO, holder="Ann"), ["LOCKED"]),
        (Facts(Status.TODO, pause_s=2.0, assigned_to="x"), ["BACKING_OFF", "ASSIGNED"]),
        (Facts(Status.BACKLOG), ["BACKLOG"]),
        (Facts(Status.BACKLOG, waits_for=[OPEN], holder="Ann"), ["BACKLOG", "WAITING_FOR_DEPENDENCIES", "LOCKED"]),
        (Facts(Status.BLOCKED, assigned_to="x"), ["BLOCKED", "ASSIGNED"]),
        (Facts(Status.IN_PROGRESS), ["ORPHANED"]),
        (Facts(Status.IN_PROGRESS, holder="Ann"), ["QUEUED"]),
        (Facts(Status.IN_PROGRESS, holder="Ann", is_running=True), []),
        (Facts(Status.IN_PROGRESS, holder="Ann", is_running=True, is_expired=True), ["LOST"]),
        (Facts(Status.IN_REVIEW, holder="Ann", yields=True), ["IN_REVIEW"]),
        *((Facts(status, reason="r"), ["FINISHED"]) for status in sorted(FINISHED)),
    ],
)
def test_each_situation_has_its_reasons(facts: Facts, codes: list[str]) -> None:
    """The weightiest first, and nothing for a task that runs."""
    assert [reason.code for reason in reasons(facts)] == codes


def test_every_task_that_does_not_run_has_a_reason() -> None:
    """For every combination of facts: no reason only in progress, held, begun and live; texts are whole sentences."""
    choices: dict[str, tuple[Any, ...]] = {
        "status": tuple(Status),
        "waits_for": ((), (OPEN,), (FAILED, OPEN)),
        "holder": (None, "Ann"),
        "until": (None, "noon"),
        "is_expired": (False, True),
        "yields": (False, True),
        "pause_s": (0.0, 3.0),
        "assigned_to": (None, "x"),
        "listeners": (0, 1),
        "ahead": (0, 1),
        "is_running": (False, True),
    }
    for values in product(*choices.values()):
        facts = Facts(**dict(zip(choices, values, strict=True)))
        found = reasons(facts)
        runs = facts.status is Status.IN_PROGRESS and facts.holder and facts.is_running and not facts.is_expired
        assert (not found) == bool(runs), facts
        assert len({reason.code for reason in found}) == len(found)
        assert all(reason.text[-1] in ".s" and reason.advice.endswith(".") for reason in found), found


def test_what_failed_because_of_others_is_not_advised_to_be_done_alone() -> None:
    """It would fail again at once; what completed before its dependency was done again would not."""
    again = [
        reasons(facts)[0].advice
        for facts in (
            Facts(Status.FAILED, waits_for=[FAILED]),
            Facts(Status.FAILED, missing=["#7"]),
            Facts(Status.FAILED, waits_for=[OPEN]),
            Facts(Status.COMPLETED, waits_for=[FAILED]),
        )
    ]
    assert ["alone it fails again" in text for text in again] == [True, True, False, False]


def test_many_dependencies_are_named_shortly() -> None:
    """Ten by name, the others by number."""
    (reason,) = reasons(Facts(Status.TODO, waits_for=[Needed(f"#{n}", Status.TODO) for n in range(25)]))
    assert reason.text.endswith("#9 (todo) and 15 others.")


def test_the_reason_of_a_failure_is_told() -> None:
    """With the pause after it and at the end."""
    assert "no disk" in reasons(Facts(Status.FAILED, reason="no disk"))[0].text
    assert "no disk" in reasons(Facts(Status.TODO, pause_s=1, reason="no disk"))[0].text
