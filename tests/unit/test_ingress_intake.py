"""News about tasks: what becomes of backlog and ledger, in any order and however often."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from dispatch.ats.gateway import AttemptRef
from dispatch.ats.model import Event, Task
from dispatch.core.lanes import Lanes
from dispatch.core.routing import Routing, TaskTraits, choose
from dispatch.ingress.intake import Errands, Intake
from dispatch.ingress.ledger import Ledger

ME = "dispatch-a"


class Bench:
    """An intake with everything around it visible."""

    def __init__(self) -> None:
        self.backlog, self.ledger = Lanes(choose(Routing(), TaskTraits(""))), Ledger()
        self.woken: list[str] = []
        self.looked: list[str] = []
        self.intake = Intake(
            channels=("default",),
            backlog=self.backlog,
            ledger=self.ledger,
            routing=Routing(),
            clock_offset_s=lambda: 0.0,
            errands=Errands(wake=self.woken.append, look=self.looked.append),
        )

    def hear(self, verb: str, status: str | None, *, token: int = 0, actor: str = "x", **fields) -> None:
        """Let an event arrive."""
        task = None
        if status is not None:
            task = Task(id="7", status=status, channel="default", fencing_token=token, **fields)
        self.intake.on_event(Event(verb, "7", task, "default", None, actor))

    def claim(self, token: int) -> AttemptRef:
        """Have the task in flight."""
        ref = AttemptRef("7", 1, token, ME)
        self.ledger.reserve("7", 5)
        self.ledger.granted(ref, sent_at=1.0, lease_s=120.0)
        self.ledger.enqueued(ref, 1.0)
        return ref


@pytest.fixture
def bench() -> Bench:
    """An intake that knows nothing yet."""
    return Bench()


@pytest.mark.parametrize("verb", ["created", "reopened", "lease_expired", "updated", "released"])
def test_every_way_back_to_pending_is_heard(bench, verb):
    """A1, A2: a task that becomes pending in whatever way is a candidate, not only a created one."""
    bench.hear(verb, "pending", token=3)
    assert bench.backlog.pop(0.0, lambda _lane: True) == ("7", 5)


def test_a_repeated_created_event_changes_nothing_while_claimed(bench):
    """W4: a hundred doubled events for a task in flight bring no second candidate."""
    bench.claim(token=1)
    for _ in range(100):
        bench.hear("created", "pending", token=0)
    assert len(bench.backlog) == 0
    assert "7" in bench.ledger


def test_old_news_does_not_end_a_newer_claim(bench):
    """A release under token 1 that arrives after the claim with token 2 is about the past."""
    bench.claim(token=2)
    bench.hear("released", "pending", token=1)
    bench.hear("failed", "failed", token=1)
    assert "7" in bench.ledger
    assert len(bench.backlog) == 0


def test_news_during_the_claim_itself_changes_nothing(bench):
    """Between asking for a claim and its answer, only the answer counts."""
    bench.ledger.reserve("7", 5)
    bench.hear("created", "pending")
    assert "7" in bench.ledger
    assert len(bench.backlog) == 0


def test_a_task_that_ended_frees_its_place(bench):
    """Completion by the holder frees the window and wakes nobody."""
    bench.claim(token=1)
    bench.hear("completed", "completed", token=1, actor=ME)
    assert len(bench.ledger) == 0
    assert bench.woken == []


@pytest.mark.parametrize("verb", ["cancelled", "failed", "completed"])
def test_an_end_by_somebody_else_wakes_the_runner(bench, verb):
    """B12: a task that another actor ended while we run it is looked at at once."""
    bench.claim(token=1)
    bench.hear(verb, verb, token=1, actor="a human")
    assert bench.woken == ["7"]


@pytest.mark.parametrize("verb", ["updated", "released", "recovered"])
def test_a_task_that_somebody_took_back_wakes_the_runner(bench, verb):
    """A task that another actor puts back to pending while we run it is looked at at once."""
    bench.claim(token=1)
    bench.hear(verb, "pending", token=2, actor="a human")
    assert bench.woken == ["7"]


def test_a_cancel_wakes_even_for_unknown_claims(bench):
    """A cancel of a task that another ingress claimed wakes its runner as well."""
    bench.hear("cancelled", "cancelled", token=4, actor="a human")
    assert bench.woken == ["7"]


def test_another_channel_is_none_of_our_business(bench):
    """B11: a task that is, or has moved, elsewhere is never a candidate."""
    bench.backlog.add("7", 5)
    task = Task(id="7", status="pending", channel="other")
    bench.intake.on_event(Event("updated", "7", task, "other", None, None))
    assert len(bench.backlog) == 0


def test_an_event_without_the_task_is_looked_up(bench):
    """A plain service may send an id only; then somebody reads the task."""
    bench.hear("created", None)
    assert bench.looked == ["7"]


def test_unknown_verbs_are_ignored(bench):
    """Messages and verbs nobody knows change nothing."""
    bench.hear("message", "pending")
    bench.hear("sparkles", "pending")
    assert len(bench.backlog) == 0


def test_a_task_in_backoff_waits(bench):
    """A task with a not_before in the future is kept, but not given out before."""
    bench.hear("released", "pending", not_before_at=datetime.now(UTC) + timedelta(seconds=60))
    assert bench.backlog.pop(0.0, lambda _lane: True) is None
    assert len(bench.backlog) == 1
    assert bench.backlog.next_due() is not None


def test_pending_without_tokens_is_looked_up_while_in_flight(bench):
    """On a service without tokens an event or a list may show the time before our claim: only a fresh look counts."""
    bench.claim(token=1)
    stale = Task(id="7", status="pending", channel="default", fencing_token=None)
    bench.intake.on_event(Event("lease_expired", "7", stale, "default", None, None))
    bench.intake.on_task(stale)
    assert "7" in bench.ledger
    assert bench.looked == ["7", "7"]
    bench.intake.on_task(stale, read_now=True)
    assert "7" not in bench.ledger
    assert bench.backlog.pop(0.0, lambda _lane: True) == ("7", 5)
