"""What an attempt is told of those before it."""

from __future__ import annotations

import pytest

from dispatch.core.earlier import Earlier, earlier_of
from dispatch.core.prompt import EARLIER_ATTEMPT, build_prompt


def test_a_first_attempt_is_told_nothing() -> None:
    """No failure, no release, no lost host: no block, and no word about it in the prompt."""
    assert earlier_of(1, None, 0) is None
    assert EARLIER_ATTEMPT not in build_prompt("t", "", None, iter(["#"]))


@pytest.mark.parametrize(
    ("attempt", "reason", "losses", "said"),
    [
        (2, "exit code 1: no such file", 0, "exit code 1: no such file"),
        (1, "the worker shut down", 0, "the worker shut down"),
        (1, None, 1, "was lost once"),
        (3, "timed out after 60 s", 2, "was lost 2 times"),
        (2, None, 0, "Nobody reported"),
    ],
)
def test_a_later_attempt_reads_how_the_one_before_ended(
    attempt: int, reason: str | None, losses: int, said: str
) -> None:
    """Counted or not, reported or vanished: there is a block, and the frame points to it."""
    found = earlier_of(attempt, reason, losses)
    assert found is not None
    prompt = build_prompt("t", "", None, iter(["#"]), found.blocks())
    assert (
        said in prompt.partition(f"--- begin {EARLIER_ATTEMPT} #\n")[2].partition(f"\n--- end {EARLIER_ATTEMPT} #")[0]
    )
    assert f"the block {EARLIER_ATTEMPT} says" in prompt


def test_executors_that_read_json_get_the_same() -> None:
    """The reason is null where nobody reported."""
    assert Earlier("exit code 1").as_json() == {"reason": "exit code 1", "vanished": 0}
    assert Earlier("", 1).as_json() == {"reason": None, "vanished": 1}
