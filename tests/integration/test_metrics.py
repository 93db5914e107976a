"""Metrics of real processes: what happened is what is counted, in pool children too."""

from __future__ import annotations

import urllib.request
from typing import TYPE_CHECKING

from dispatch.metrics import METRICS
from tests.support.processes import eventually, listening_ports
from tests.support.redis import free_port

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.stack import Stack

NOT_YET = {"dispatch_deliveries_total", "dispatch_removed_total"}
"""Counters with labels, of what does not happen in this test."""


def scrape(port: int) -> dict[str, float]:
    """Return what a process shows: name with labels -> value."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def test_a_fleet_can_be_watched(make_stack: Callable[..., Stack]) -> None:
    """Two good attempts, a bad one and a renewal are counted where they happened; gauges show how it is.

    Every declared metric is there, and the worker leaves no files behind.
    """
    ports = {name: free_port() for name in ("service", "ingress", "worker")}
    settings = {f"DISPATCH_{name.upper()}_METRICS_PORT": str(port) for name, port in ports.items()}
    stack = make_stack(**settings, DISPATCH_MAX_ATTEMPTS="1", DISPATCH_LEASE_MS="2000").start(2)
    for exits in ([0], [0], [1]):
        task = stack.create(tick={"exits": exits, "duration_s": 0.8 if exits == [1] else 0.1})["id"]
        assert stack.wait_task(task)["status"] == ("failed" if exits == [1] else "completed")
    stack.create(channel="nobody")
    stack.create(depends_on=[stack.create(channel="nobody")["id"]])
    # An attempt is counted a moment after its end was reported.
    eventually(lambda: scrape(ports["worker"])["dispatch_attempt_seconds_count"] == 3, 5, "the third attempt's count")
    worker = scrape(ports["worker"])
    assert worker['dispatch_attempts_total{outcome="success"}'] == 2
    assert worker['dispatch_attempts_total{outcome="exit"}'] == 1
    assert worker['dispatch_renewals_total{result="ok"}'] >= 1
    assert (worker["dispatch_worker_slots"], worker["dispatch_worker_draining"]) == (2, 0)
    service = scrape(ports["service"])
    assert service["dispatch_pickup_seconds_count"] == 3
    assert (service['dispatch_tasks{status="completed"}'], service['dispatch_tasks{status="todo"}']) == (2, 3)
    assert service['dispatch_queue_age_seconds{channel="nobody"}'] >= 0
    assert service["dispatch_database_bytes"] > 100_000
    assert (service["dispatch_waiting_tasks"], service["dispatch_leases_overdue"]) == (1, 0)
    eventually(lambda: scrape(ports["ingress"])["dispatch_graph_waiting_tasks"] == 1, 5, "the waiting task")
    ingress = scrape(ports["ingress"])
    assert ingress['dispatch_claims_total{result="granted"}'] == 3
    assert (ingress["dispatch_fleet_slots"], ingress["dispatch_redis_up"]) == (2, 1)
    assert ingress["dispatch_feed_lag_seconds_count"] > 3
    seen = {name.partition("{")[0] for found in (worker, service, ingress) for name in found}
    for one in METRICS:
        lines = {one.name + "_count"} if one.kind == "histogram" else {one.name}
        assert lines <= seen or one.name in NOT_YET, one.name
    stack.processes[-1].stop()
    assert not list((stack.directory / "data" / "metrics").iterdir())
    assert not listening_ports([ports["worker"]])
