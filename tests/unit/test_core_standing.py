"""What the service says of a task and what the fleet shows, put together."""

from __future__ import annotations

import pytest

from dispatch.cli.advice import for_people
from dispatch.cli.first_failures import advice
from dispatch.cli.stuck import alike
from dispatch.core.graph import ELSEWHERE, MISSING, ends_in
from dispatch.core.presence import IngressPresence, WorkerPresence
from dispatch.core.standing import ClassUse, Fleet, Stand, Way, merged, redis_down, stand_of, unreachable
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


MOVES, WAITS, STUCK = Stand.MOVES, Stand.WAITS, Stand.STUCK
TODO, RUNS = Status.TODO, Status.IN_PROGRESS
NEEDED = {"waits_for": [Needed("#7", Status.IN_PROGRESS)]}
NO_WORKERS = Fleet(ingresses=ALL_WELL.ingresses)
BUSY = Fleet(workers=ALL_WELL.workers, ingresses=ALL_WELL.ingresses, busy={"host": 1})
FULL = Fleet(workers=ALL_WELL.workers, ingresses=ALL_WELL.ingresses, classes={"gpu": ClassUse(1, 1)})

SITUATIONS = [
    ("it runs", Facts(RUNS, holder="w", is_running=True), ALL_WELL, [], MOVES),
    ("it waits for a worker", Facts(RUNS, holder="w"), ALL_WELL, [], MOVES),
    ("it is claimed, and the last worker is gone", Facts(RUNS, holder="w"), NO_WORKERS, [], STUCK),
    ("it is next", Facts(TODO, listeners=1), ALL_WELL, [], MOVES),
    ("others go before it", Facts(TODO, listeners=1, ahead=9), ALL_WELL, [], MOVES),
    ("all slots are busy", Facts(TODO, listeners=1), BUSY, [], MOVES),
    ("it is sealed, and next", Facts(TODO, listeners=1, is_sealed=True), ALL_WELL, [], MOVES),
    ("it ended just now", Facts(Status.COMPLETED), ALL_WELL, [], MOVES),
    ("nobody listens", Facts(TODO), Fleet(), [], STUCK),
    ("no worker is there", Facts(TODO, listeners=1), NO_WORKERS, [], STUCK),
    ("its class is full", Facts(TODO, listeners=1), FULL, [], STUCK),
    ("it pauses", Facts(TODO, pause_s=9), ALL_WELL, [], STUCK),
    ("somebody has its lock", Facts(TODO, holder="coder"), ALL_WELL, [], STUCK),
    ("it is kept for an agent", Facts(TODO, assigned_to="coder"), ALL_WELL, [], STUCK),
    ("it waits for a review", Facts(Status.IN_REVIEW), ALL_WELL, [], STUCK),
    ("it was put aside", Facts(Status.BLOCKED), ALL_WELL, [], STUCK),
    ("nobody holds it", Facts(RUNS), ALL_WELL, [], STUCK),
    ("it waits for what runs", Facts(TODO, **NEEDED), ALL_WELL, [MOVES], WAITS),
    ("it waits for what waits", Facts(TODO, **NEEDED), ALL_WELL, [WAITS, MOVES], WAITS),
    ("one thing that it waits for is stuck", Facts(TODO, **NEEDED), ALL_WELL, [WAITS, STUCK, MOVES], STUCK),
    ("it waits, whatever comes after that", Facts(TODO, holder="coder", pause_s=9, **NEEDED), BUSY, [MOVES], WAITS),
    ("it waits for what does not exist", Facts(TODO, missing=["#9"], **NEEDED), ALL_WELL, [MOVES], STUCK),
    ("it waits for what failed", Facts(TODO, waits_for=[Needed("#7", Status.FAILED)]), ALL_WELL, [MOVES], STUCK),
    ("it waits for itself", Facts(TODO, circle="#7 -> #7", **NEEDED), ALL_WELL, [WAITS], STUCK),
    ("it waits in the backlog", Facts(Status.BACKLOG, **NEEDED), ALL_WELL, [MOVES], STUCK),
]


@pytest.mark.parametrize(
    ("facts", "fleet", "needed", "stand"), [row[1:] for row in SITUATIONS], ids=[row[0] for row in SITUATIONS]
)
def test_how_a_task_stands(facts: Facts, fleet: Fleet, needed: list[Stand], stand: Stand) -> None:
    """Only what needs somebody is stuck: not what runs, has its turn soon, or waits for such."""
    told = merged(reasons(facts), fleet, Way("test", "dispatch", ("gpu",)), 0.0)
    assert stand_of(told, needed) is stand


def test_pauses_for_one_reason_are_told_once() -> None:
    """Status names tasks that pause for the same reason in one line, however long each still pauses."""
    first, second, other = (
        reasons(Facts(Status.TODO, pause_s=pause_s, reason=reason))[0]
        for pause_s, reason in ((40, "exit code 75"), (55, "exit code 75"), (40, "no keys"))
    )
    assert alike(first) == alike(second) != alike(other)


def test_a_worker_is_asked_for_by_its_queue() -> None:
    """One that is started without it takes from another queue, and the task would still wait."""
    found = merged(reasons(Facts(Status.TODO, listeners=1)), ALL_WELL, Way("test", "gpu"), 0.0)
    (reason,) = [one for one in found if one.code == "NO_WORKER"]
    assert "worker -Q gpu'" in reason.advice


def test_what_failed_because_of_others_is_done_again_together_with_them() -> None:
    """Reopened alone it fails at once for the same reason; one that depends on nothing real does so in any case."""
    text = f"Blocked: dependency #7 (failed), #8 (completed), #9 (cancelled), #never ({MISSING}), #8 ({ELSEWHERE})"
    assert ends_in(text) == [("7", "failed"), ("9", "cancelled"), ("never", MISSING), ("8", ELSEWHERE)]
    assert ends_in("Exceeded max retry attempts (3): #7 (failed)") == ends_in(None) == []
    assert advice(["7", "9"], []) == "'dispatch reopen 7 9 --dependents' has all of them done again."
    assert advice(["7"], ["never"]).startswith("Reopened it fails again, because #never does not exist in its project;")
    (other,) = reasons(Facts(Status.FAILED, reason="exit code 1"))
    assert for_people(other).advice == "'dispatch reopen ID' has it done again."


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
