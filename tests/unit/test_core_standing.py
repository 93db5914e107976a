"""What the service says of a task and what the fleet shows, put together."""

from __future__ import annotations

import pytest

from dispatch.core.presence import IngressPresence, WorkerPresence
from dispatch.core.standing import Fleet, Way, merged, redis_down, unreachable
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


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        ("does not answer: connection refused", "Start Redis"),
        ("refuses us: invalid username-password pair or user is disabled", "Check DISPATCH_REDIS_USER"),
        (
            "takes no writes: command not allowed when used memory > 'maxmemory'",
            "See whether its memory or disk is full",
        ),
    ],
)
def test_the_advice_fits_what_is_wrong_with_redis(error: str, advice: str) -> None:
    """Whoever starts a Redis that runs, because its password was wrong, has lost minutes."""
    found = redis_down(Fleet(redis_url="redis://r", redis_error=error))
    assert found is not None
    assert found.text == f"Redis at redis://r {error}. Nothing is claimed without it."
    assert found.advice.startswith(advice)


def test_a_service_without_its_database_is_not_to_be_started() -> None:
    """It runs and says what is away; the advice is about the database."""
    found = unreachable(Fleet(service_url="http://s", service_error="The database cannot do it now (refused)"))
    assert found is not None
    assert (found.code, found.text) == (
        "SERVICE_DOWN",
        "The task service at http://s cannot serve: The database cannot do it now (refused).",
    )
    assert found.advice.startswith("See to its database")
