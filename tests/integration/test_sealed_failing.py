"""Failing tasks of which our own service does not know that they are doomed, against the real service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import structlog

from dispatch.ats import protocol
from dispatch.ats.aclient import AsyncClient
from dispatch.ats.model import Actor, Task
from dispatch.ingress.blocked import BulkFailing, ClaimedFailing, SealedFailing, StillNeeds
from dispatch.ingress.claims import FencedClaims
from dispatch.ingress.errands import Looks
from dispatch.ingress.sealed import Sealed
from dispatch.ingress.waiting_tasks import WaitingTasks
from tests.support.sealing import Sealer, trusting

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.stack import Stack

ME = Actor("agent", "dispatch-a", "dispatch")


@pytest.fixture
def stack(make_stack: Callable[..., Stack]) -> Stack:
    """A service without a fleet."""
    stack = make_stack()
    stack.start_service()
    return stack


def sealed_task(stack: Stack, ann: Sealer, *needs: Any) -> str:
    """Create a sealed task."""
    fields = ann.v2(title="a secret", depends_on=tuple(str(one) for one in needs))
    return str(stack.create(**fields)["id"])


async def test_only_what_is_still_doomed_is_failed_after_a_claim(stack: Stack, tmp_path: Path):
    """A sealed task is claimed and failed, by an ingress too that never heard of it; what has changed is given back.

    What the service can judge itself is never claimed.
    """
    files, sealers = trusting(tmp_path / "keys", "ann")
    ann = sealers["ann"]
    bad = stack.create()["id"]
    stack.call("POST", f"/tasks/{bad}/cancel")
    ours, strange, changed, free = (sealed_task(stack, ann, *needs) for needs in ((bad,), (bad,), (bad, bad + 9), ()))
    plain = str(stack.create(payload={"depends_on": [bad]})["id"])
    edited = str(stack.create()["id"])
    log = structlog.get_logger()
    tasks = WaitingTasks(fail=lambda *_: None, kick=lambda: None)
    for ident in (ours, changed):
        tasks.holds(Task(id=ident, depends_on=(str(bad),)), hidden=True)
    tasks.holds(Task(id=edited, depends_on=(str(bad),)))
    sealed = Sealed(files.trust, is_thin=True, knows_needs=True, log=log)
    async with AsyncClient(protocol.endpoint(stack.url), ME) as client:
        claims = FencedClaims(client, ME, 60.0)
        looks = Looks(client, take=lambda _: None, key_is_refused=lambda _: None, log=log)
        claimed = ClaimedFailing(claims, still_needs=StillNeeds(tasks, sealed, looks.read))
        failing = SealedFailing(BulkFailing(client), claimed, lambda ident: ident in tasks.hidden or ident not in tasks)
        found = await failing(dict.fromkeys((ours, strange, changed, free, plain, edited), "Blocked: why"))
    assert {ident for ident, refusal in found.items() if refusal is None} == {ours, strange, plain}
    assert not claims.in_hand
    for ident in (ours, strange, plain):
        assert (stack.task(ident)["status"], stack.task(ident)["reason"]) == ("failed", "Blocked: why")
    tokens = {ident: stack.task(ident)["fencing_token"] for ident in (changed, free, plain, edited)}
    assert tokens == {changed: 1, free: 1, plain: 0, edited: 0}
    assert all(stack.task(ident)["status"] == "pending" for ident in (changed, free, edited))
