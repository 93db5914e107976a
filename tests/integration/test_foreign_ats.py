"""The fleet against a foreign ATS, which knows neither tokens nor renewal nor release."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_URL, uuid5

import pytest

from dispatch.ats import protocol
from dispatch.ats.client import Client
from dispatch.ats.model import Actor
from tests.support.collector import Collector, Seen
from tests.support.fake_ats import FakeAts
from tests.support.processes import eventually, is_running
from tests.support.promises import promised

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.stack import Stack


NO_RELEASE = {"pending_by_patch": False, "envelope": False}


@pytest.fixture(
    params=[{}, {"reclaim_extends": False}, pytest.param(NO_RELEASE, marks=pytest.mark.slow)],
    ids=["kind", "no-renewal", "no-release"],
)
def ats(request: pytest.FixtureRequest) -> Iterator[FakeAts]:
    """A plain ATS, in three moods that nobody can tell apart beforehand."""
    with FakeAts(**request.param) as server:
        yield server


@pytest.fixture
def collector() -> Iterator[Collector]:
    """Where its spans go."""
    with Collector() as made:
        yield made


@pytest.fixture
def fleet(ats: FakeAts, collector: Collector, make_stack: Callable[..., Stack]) -> Stack:
    """An ingress and a worker with two slots against that ATS."""
    stack = make_stack(DISPATCH_ATS_URL=ats.url, DISPATCH_LEASE_MS="8000", DISPATCH_TRACES_URL=collector.url)
    stack.redis.start()
    stack.start_ingress()
    stack.start_worker(2)
    return stack


def add(ats: FakeAts, stack: Stack, **orders: Any) -> int:
    """Create a task there with orders for the ticking child."""
    payload = {"tick": {"dir": str(stack.ticks), "duration_s": 0.1, **orders}}
    return int(ats.add(title="foreign", channel=stack.channel, payload=payload)["id"])


def ended(ats: FakeAts, ident: int, status: str) -> dict[str, Any]:
    """Wait until a task has a status and return it."""
    return eventually(lambda: ats.tasks[ident] if ats.tasks[ident]["status"] == status else None, f"{status} {ident}")


def test_the_main_job_on_a_foreign_service(ats: FakeAts, fleet: Stack, collector: Collector):
    """Plain success, three failures, a success at the second attempt and a cancel end as they do on our own service.

    Where tasks have no UUID, ingress and worker agree on a trace all the same.
    """
    good = add(ats, fleet)
    bad = add(ats, fleet, exits=[1])
    second = add(ats, fleet, exits=[1, 0])
    assert ended(ats, good, "completed")["outputs"][0]["response"].startswith("done")
    ended(ats, second, "completed")
    ended(ats, bad, "failed")
    assert len({line["token"] for line in fleet.tick_lines(bad)}) == 3
    assert [line["attempt"] for line in fleet.tick_lines(second) if line["kind"] == "begin"] == [1, 2]
    long = add(ats, fleet, duration_s=300)
    child = eventually(lambda: fleet.tick_lines(long), "the long task running")[0]["pid"]
    with promised(3.0, "the end of the cancelled tree"):
        fleet_call(ats, long, "cancel")
        eventually(lambda: not is_running(child), "the end of the cancelled tree")
    assert ats.tasks[long]["status"] == "cancelled"
    trace_id = uuid5(NAMESPACE_URL, f"{ats.url}/tasks/{second}").hex

    def seen() -> list[Seen]:
        return [span for span in collector.spans if span.trace_id == trace_id]

    eventually(lambda: len(seen()) >= 12, "the spans of two attempts")
    spans = seen()
    assert Counter(span.name.partition(" ")[0] for span in spans) == dict.fromkeys(
        ("claim", "enqueue", "attempt", "start", "run", "report"), 2
    )
    ids = {span.span_id for span in spans}
    assert {span.name for span in spans if span.parent_id not in ids} == {"claim"}
    assert {span.parent_id for span in spans if span.name == "claim"} == {""}


@pytest.mark.parametrize(
    "ats", [{}, pytest.param(NO_RELEASE, marks=pytest.mark.slow)], ids=["kind", "no-release"], indirect=True
)
def test_losing_redis_starts_nothing_twice(ats: FakeAts, fleet: Stack):
    """All that Redis knew is lost while an attempt runs: its message is sent again, and no second attempt begins."""
    go = fleet.directory / "go"
    ident = add(ats, fleet, duration_s=300, until=str(go))
    eventually(lambda: fleet.tick_lines(ident), "the task running")
    fleet.redis.flush()
    fleet.redis.kill()
    fleet.redis.start()
    ingress, worker = fleet.processes
    ingress.wait_event("message_lost_enqueued_again", task=str(ident))
    worker.wait_event("attempt_dropped", task=str(ident))
    go.touch()
    ended(ats, ident, "completed")
    assert len(worker.find("attempt_started")) == 1
    assert len({line["pid"] for line in fleet.tick_lines(ident)}) == 1
    ended(ats, add(ats, fleet), "completed")


def fleet_call(ats: FakeAts, ident: int, verb: str) -> None:
    """Do something to a task as a person would."""
    client = Client(protocol.endpoint(ats.url), Actor("human", "tester", "tester"))
    client.send(getattr(protocol, verb)(str(ident)))
    client.close()
