"""Metrics of real processes: what happened is what is counted, in pool children too."""

from __future__ import annotations

import contextlib
import json
import urllib.request
from typing import TYPE_CHECKING

from dispatch.metrics import METRICS
from tests.support import prometheus
from tests.support.processes import ROOT, eventually, listening_ports
from tests.support.prometheus import Prometheus, promtool
from tests.support.redis import free_port

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.stack import Stack


def page(port: int) -> str:
    """Return what a process shows."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        return answer.read().decode()


def scrape(port: int) -> dict[str, float]:
    """Return what a process shows: name with labels -> value."""
    lines = page(port).splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def look_closer(scraper: Prometheus, ports: dict[str, int]) -> None:
    """Have Prometheus answer all that the dashboard asks, and its tool find nothing to say against the pages."""
    dashboard = json.loads((ROOT / "config/grafana-dashboard.json").read_text("utf-8"))
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            assert scraper.wait_for(target["expr"]), target["expr"]
    scraper.wait_for("sum(dispatch_attempts_total) == 3")
    outcomes = scraper.query("dispatch_attempts_total > 0")
    assert {one["metric"]["outcome"]: one["value"][1] for one in outcomes} == {"success": "2", "exit": "1"}
    for port in ports.values():
        assert promtool("check", "metrics", stdin=page(port)) == (0, "")


def test_a_fleet_can_be_watched(make_stack: Callable[..., Stack], tmp_path: Path) -> None:
    """Two good attempts, a bad one and a renewal are counted where they happened; gauges show how it is.

    Every declared metric is there, and the worker leaves no files behind. Where
    there is a Prometheus it scrapes all that, and every query of the dashboard
    has an answer; that queries and declared metrics fit is held without it, in
    tests/unit/test_metrics.py.
    """
    ports = {name: free_port() for name in ("service", "ingress", "worker")}
    settings = {f"DISPATCH_{name.upper()}_METRICS_PORT": str(port) for name, port in ports.items()}
    stack = make_stack(**settings, DISPATCH_MAX_ATTEMPTS="1", DISPATCH_LEASE_MS="4000").start(2)
    with contextlib.ExitStack() as closing:
        watch(stack, ports, closing.enter_context(Prometheus(tmp_path / "p", ports)) if prometheus.is_here() else None)
    stack.processes[-1].stop()
    assert not list((stack.directory / "data" / "metrics").iterdir())
    assert not listening_ports([ports["worker"]])


def watch(stack: Stack, ports: dict[str, int], scraper: Prometheus | None) -> None:
    """Let something happen and look at what is shown of it."""
    if scraper is not None:
        scraper.wait_until_up()
    for _ in range(2):
        assert stack.wait_task(stack.create(tick={"duration_s": 0.1})["id"])["status"] == "completed"
    go = stack.directory / "go"
    bad = stack.create(tick={"exits": [1], "duration_s": 300, "until": str(go)})["id"]
    eventually(lambda: scrape(ports["worker"]).get('dispatch_renewals_total{result="ok"}'), "a renewal")
    go.touch()
    assert stack.wait_task(bad)["status"] == "failed"
    stack.create(channel="nobody")
    stack.create(depends_on=[stack.create(channel="nobody")["id"]])
    # An attempt is counted a moment after its end was reported.
    eventually(lambda: scrape(ports["worker"])["dispatch_attempt_seconds_count"] == 3, "the third attempt's count")
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
    eventually(lambda: scrape(ports["ingress"])["dispatch_graph_waiting_tasks"] == 1, "the waiting task")
    ingress = scrape(ports["ingress"])
    assert ingress['dispatch_claims_total{result="granted"}'] == 3
    assert (ingress["dispatch_fleet_slots"], ingress["dispatch_redis_up"]) == (2, 1)
    assert ingress["dispatch_feed_lag_seconds_count"] > 3
    seen = {name.partition("{")[0] for found in (worker, service, ingress) for name in found}
    for one in METRICS:
        lines = {one.name + "_count"} if one.kind == "histogram" else {one.name}
        assert lines <= seen, one.name
    if scraper is not None:
        look_closer(scraper, ports)
