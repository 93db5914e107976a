"""What the service says of a task and what the fleet shows, put together."""

from __future__ import annotations

import pytest

from dispatch.cli.advice import for_people
from dispatch.core.presence import IngressPresence, WorkerPresence
from dispatch.core.standing import Fleet, Way, merged
from dispatch.core.waiting import Facts, Needed, Reason, Status, reasons

ALL_WELL = Fleet(
    workers=(WorkerPresence("w", "host", 1, 1, ("dispatch",)),), ingresses=(IngressPresence("i", "host", 1, {}),)
)
SEALED = reasons(Facts(Status.TODO, listeners=1, is_sealed=True))
INSIDE = reasons(Facts(Status.TODO, waits_for=[Needed("#7", Status.TODO)]))


@pytest.mark.parametrize(
    ("inside", "fleet", "codes"),
    [
        (INSIDE, ALL_WELL, ["WAITING_FOR_DEPENDENCIES"]),
        ([], ALL_WELL, ["OFFERED"]),
        (None, ALL_WELL, ["OFFERED", "SEALED"]),
        (None, Fleet(redis_url="r", redis_error="gone"), ["REDIS_DOWN", "SEALED"]),
        ([], Fleet(ingresses=ALL_WELL.ingresses), ["NO_WORKER"]),
    ],
)
def test_what_a_sealed_task_waits_for_goes_before_what_the_service_says(
    inside: list[Reason] | None, fleet: Fleet, codes: list[str]
) -> None:
    """What stands inside counts for more than that it is offered; where nobody could look, that is said."""
    found = merged(SEALED, fleet, Way("test", "dispatch"), 0.0, inside=inside)
    assert [reason.code for reason in found] == codes


def test_a_worker_is_asked_for_by_its_queue() -> None:
    """One that is started without it takes from another queue, and the task would still wait."""
    found = merged(reasons(Facts(Status.TODO, listeners=1)), ALL_WELL, Way("test", "gpu"), 0.0)
    (reason,) = [one for one in found if one.code == "NO_WORKER"]
    assert "worker -Q gpu'" in reason.advice


def test_what_failed_because_of_others_is_done_again_together_with_them() -> None:
    """Reopened alone it fails at once for the same reason."""
    text = "Blocked: dependency #7 (failed), #8 (completed), #9 (cancelled)"
    (reason,) = reasons(Facts(Status.FAILED, reason=text))
    assert for_people(reason).advice == "'dispatch reopen 7 9 --dependents' has all of them done again."
    (other,) = reasons(Facts(Status.FAILED, reason="exit code 1"))
    assert for_people(other).advice == "'dispatch reopen ID' has it done again."
