"""What an ingress knows of waiting tasks, and what news make of it."""

from __future__ import annotations

import time

import pytest

from dispatch.ats.model import Task
from dispatch.ingress.waiting_tasks import WaitingTasks


class Bench:
    """Waiting tasks with everything they said."""

    def __init__(self) -> None:
        self.failed: dict[str, str] = {}
        self.tasks = WaitingTasks(fail=self.failed.__setitem__, kick=lambda: None)

    def hear(self, ident: str, *needs: str, status: str = "pending", priority: int = 5) -> bool:
        """Let news of a task arrive; says whether it must wait."""
        task = Task(id=ident, status=status, priority=priority, depends_on=needs)
        if status != "pending":
            self.tasks.left(task)
            return False
        return self.tasks.holds(task)


@pytest.fixture
def bench() -> Bench:
    """A bench that knows nothing yet."""
    return Bench()


def test_a_task_waits_until_it_is_released(bench):
    """It is armed once; after its release it is not held again, unless what it needs has changed."""
    assert not bench.hear("1")
    assert bench.hear("9", "1", "2")
    assert bench.hear("9", "1", "2", priority=8)
    assert list(bench.tasks.to_arm) == ["9"]
    assert bench.tasks.get("9").priority == 8
    bench.tasks.release("9")
    assert not bench.hear("9", "1", "2")
    assert bench.tasks.may_run(Task(id="9", depends_on=("1", "2")))
    assert not bench.tasks.may_run(Task(id="9", depends_on=("1", "3")))
    assert bench.hear("9", "1", "3")


def test_ends_are_noted_for_those_that_wait_only(bench):
    """The end of a dependency is settled with its word; the end of anything else costs nothing."""
    bench.hear("9", "1", "2")
    for ident, status in (("1", "completed"), ("2", "rejected"), ("3", "failed")):
        bench.hear(ident, status=status)
    bench.hear("2", status="in_progress")
    assert bench.tasks.to_settle == {"1": "completed", "2": "rejected"}


def test_what_waits_no_longer_is_taken_back(bench):
    """A task that was claimed, ended, lost its dependencies or is not in the listing any more is closed."""
    for ident in ("5", "6", "7", "8"):
        bench.hear(ident, "1")
    began_at = time.monotonic()
    bench.hear("5", status="in_progress")
    bench.hear("6", status="cancelled")
    assert not bench.hear("7")
    bench.tasks.compare(began_at, [])
    assert bench.tasks.to_close == {"5", "6", "7", "8"}
    assert not bench.tasks.dependents
    assert len(bench.tasks) == 0


def test_circles_are_failed(bench):
    """All of ours in a circle are failed, once, and nothing else."""
    bench.hear("1", "1")
    bench.hear("2", "3")
    bench.hear("3", "2")
    bench.hear("4", "3")
    bench.tasks.fail_circles()
    assert set(bench.failed) == {"1", "2", "3"}
    assert all("circle" in reason for reason in bench.failed.values())
    bench.failed.clear()
    bench.tasks.fail_circles()
    assert not bench.failed


def test_a_circle_through_tasks_elsewhere_is_failed_when_it_is_found_again(bench):
    """What is not ours is read again first; ours are failed when the circle is still there, and only then."""
    bench.hear("5", "77")
    bench.tasks.found_elsewhere("77", ("78",))
    bench.tasks.found_elsewhere("78", ("5",))
    bench.tasks.to_read.clear()
    bench.tasks.fail_circles()
    assert not bench.failed
    assert set(bench.tasks.to_read) == {"77", "78"}
    bench.tasks.found_elsewhere("77", ())
    bench.tasks.found_elsewhere("78", ("5",))
    bench.tasks.fail_circles()
    assert not bench.failed
    bench.tasks.found_elsewhere("77", ("78",))
    bench.tasks.fail_circles()
    assert set(bench.failed) == {"5"}
    assert "#77 -> #78" in bench.failed["5"]


def test_what_waits_no_longer_elsewhere_closes_no_circle(bench):
    """A task elsewhere that was read to need nothing any more is forgotten."""
    bench.tasks.found_elsewhere("77", ("5",))
    bench.tasks.found_elsewhere("77", ())
    bench.hear("5", "77")
    for _ in range(2):
        bench.tasks.fail_circles()
    assert not bench.failed


def test_a_failure_is_passed_on(bench):
    """A task that was failed settles what is behind it without waiting for the event."""
    bench.hear("9", "1")
    bench.hear("10", "9")
    bench.tasks.failed("9")
    assert bench.tasks.to_settle == {"9": "failed"}
    assert "9" not in bench.tasks
    assert "9" in bench.tasks.to_close


def test_the_services_word_counts(bench):
    """What the service lists as claimable is not held, what it refuses is; its news of readiness opens all gates."""
    bench.hear("9", "1", "2")
    bench.tasks.freed("9")
    assert bench.tasks.to_settle == {"1": "completed", "2": "completed"}
    bench.tasks.claimable(Task(id="9", status="pending", depends_on=("1", "2")))
    assert not bench.hear("9", "1", "2")
    bench.tasks.refused("9")
    assert bench.hear("9", "1", "2")


def test_what_waits_for_another_project_is_failed_once(bench):
    """It was seen completed, and the service knows nobody of this name: it would be released and refused for ever."""
    for ident, needs in (("9", ("1", "2")), ("10", ("1", "3")), ("11", ("4",))):
        assert bench.hear(ident, *needs)
        bench.tasks.release(ident)
    bench.tasks.refused("9", {"1"})
    bench.tasks.refused("10", frozenset())
    bench.tasks.refused("11", {"5"})
    assert bench.failed == {"9": "Blocked: dependency #1 (does not exist in its project)"}
    bench.hear("12", "6")
    bench.tasks.refused("12", {"6"})
    assert len(bench.failed) == 1, "a name that was not seen may still come into being"


def test_bounds(bench):
    """A task that names more than 256 is failed with a reason instead of being held for ever."""
    assert bench.hear("9", *map(str, range(257)))
    assert "256" in bench.failed["9"]
    assert len(bench.tasks) == 0


class Counting(dict[str, str]):
    """What is about to be failed, counting how often it is asked for a task."""

    asked = 0

    def __contains__(self, name: object) -> bool:
        self.asked += 1
        return super().__contains__(name)


@pytest.mark.parametrize("deep", [True, False])
def test_what_is_behind_a_bad_end_is_named_with_every_reason(bench, deep):
    """All the way down, or one level; what is to be failed already is left out, but stands in the reasons."""
    for ident, needs in (("2", "1"), ("3", "1"), ("4", "23"), ("5", "4"), ("6", "9")):
        bench.hear(ident, *needs)
    bench.hear("1", status="cancelled")
    first = "Blocked: dependency #1 (cancelled)"
    assert bench.tasks.count_behind("1", 10) == 4
    further = (
        {"4": "Blocked: dependency #2 (failed), #3 (failed)", "5": "Blocked: dependency #4 (failed)"} if deep else {}
    )
    assert bench.tasks.behind("1", (), deep=deep) == {"2": first, "3": first, **further}
    assert bench.tasks.behind("1", {"2"}, deep=deep) == {"3": first, **further}
    assert bench.tasks.behind("1", {"2", "3", "4"}, deep=deep) == {}


def test_a_long_chain_is_walked_once(bench):
    """While 10,000 tasks in a row fail one after the other, what is behind each of them is not looked at again."""
    count = 10_000
    for number in range(1, count + 1):
        bench.hear(str(number), str(number - 1))
    bench.hear("0", status="failed")
    failing = Counting(bench.tasks.behind("0", (), deep=True))
    assert list(failing) == [str(number) for number in range(1, count + 1)]
    for number in range(1, count):
        assert bench.tasks.behind(str(number), failing, deep=True) == {}
    assert failing.asked < 2 * count
