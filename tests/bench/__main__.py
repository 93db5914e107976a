"""``make bench``: latency, throughput and memory, as ratios within one run. Writes bench-results.json."""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench import client, graphs, limits, service
from tests.bench.bare import app as bare_app
from tests.support.processes import ROOT, LogProcess, children_of, eventually
from tests.support.stack import Stack

CONSOLE = Console()
DEFAULTS = {
    "DISPATCH_LEASE_MS": "120000",
    "DISPATCH_DEFAULT_LEASE_MS": "60000",
    "DISPATCH_REGRANT_DELAY_S": "15",
    "DISPATCH_RECONCILE_S": "30",
    "DISPATCH_SWEEP_S": "2",
    "DISPATCH_LOG_LEVEL": "info",
}
"""The fleet's own defaults: the test stack's are shortened."""


def pss_mb(pid: int) -> float:
    """Return a process's proportional set size in MB."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0


def family(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    found = [pid]
    for parent in found:
        found += children_of(parent)
    return found


def measure_latency(count: int) -> dict[str, float]:
    """Pickup latency on an idle system."""
    stack = Stack({**DEFAULTS, "DISPATCH_COMMAND": "/bin/date +%s.%N"})
    try:
        stack.start(slots=2)
        asyncio.run(client.pickup_ms(stack.url, stack.channel, 20))
        found = sorted(asyncio.run(client.pickup_ms(stack.url, stack.channel, count)))
    finally:
        stack.close()
    return {
        "pickup_p50_ms": statistics.median(found),
        "pickup_p99_ms": found[min(len(found) - 1, int(len(found) * 0.99))],
        "pickup_max_ms": found[-1],
    }


def measure_burst(count: int, slots: int) -> dict[str, float]:
    """Throughput of a burst, through service, ingress, Redis and worker."""
    stack = Stack({**DEFAULTS, "DISPATCH_COMMAND": "/bin/true"})
    try:
        stack.start(slots=slots)
        asyncio.run(client.burst_s(stack.url, stack.channel, 50))
        taken_s = asyncio.run(client.burst_s(stack.url, stack.channel, count))
    finally:
        stack.close()
    return {"burst_per_s": count / taken_s}


def measure_bare(count: int, slots: int) -> dict[str, float]:
    """Throughput of the same no-op by a bare Celery task, on a Redis of the same kind."""
    stack = Stack()
    witness = stack.directory / "witness"
    witness.touch()
    try:
        stack.redis.start()
        env = {**stack.env, "BARE_BROKER": stack.redis.celery_url, "BARE_WITNESS": str(witness)}
        argv = [sys.executable, "-m", "celery", "-A", "tests.bench.bare", "worker", "-c", str(slots)]
        worker = LogProcess("bare", [*argv, "--without-gossip", "--without-mingle"], env, ROOT)
        try:
            bare_app.conf.broker_url = stack.redis.celery_url

            def run(number: int) -> float:
                target = witness.stat().st_size + number
                began = time.perf_counter()
                with bare_app.connection_for_write() as connection:
                    producer = bare_app.amqp.Producer(connection)
                    for _ in range(number):
                        bare_app.send_task("bare.spawn", producer=producer, queue="bare", ignore_result=True)
                eventually(lambda: witness.stat().st_size >= target, "the last bare task", timeout_s=120)
                return time.perf_counter() - began

            run(50)
            return {"bare_celery_per_s": count / run(count)}
        finally:
            worker.stop()
    finally:
        stack.abort()


def measure_spawn(count: int) -> dict[str, float]:
    """Throughput of a plain loop that spawns and waits."""
    began = time.perf_counter()
    for _ in range(count):
        subprocess.run(["/bin/true"], check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return {"spawn_loop_per_s": count / (time.perf_counter() - began)}


def measure_slots(slots: int) -> dict[str, float]:
    """Memory per worker slot, everything of the worker host shared out, after every slot has worked."""
    stack = Stack({**DEFAULTS, "DISPATCH_COMMAND": "/bin/true"})
    try:
        stack.start(slots=slots)
        asyncio.run(client.burst_s(stack.url, stack.channel, slots * 20))
        pids = family(stack.processes[-1].pid)
        whole = sum(pss_mb(pid) for pid in pids)
    finally:
        stack.close()
    return {"slot_pss_mb": whole / slots, "slots_measured": slots}


def measure_pending(count: int) -> dict[str, float]:
    """Memory of the ingress before and after ``count`` tasks are pending that no worker takes."""
    stack = Stack(DEFAULTS)
    try:
        stack.redis.start()
        stack.start_service()
        ingress = stack.start_ingress()
        before = pss_mb(ingress.pid)
        asyncio.run(client.create_many(stack.url, stack.channel, count))
        after = pss_mb(ingress.pid)
    finally:
        stack.close()
    return {"ingress_mb": before, "ingress_with_pending_mb": after, "pending": count}


def report(found: dict[str, Any]) -> None:
    """Print the table of figures and ratios."""
    table = Table(title="dispatch bench", header_style="bold")
    for name, justify in (("what", "left"), ("measured", "right"), ("ratio", "right"), ("bound", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    rows = [
        ("pickup p50", f"{found['pickup_p50_ms']:.1f} ms", "", "25 ms"),
        ("pickup p99", f"{found['pickup_p99_ms']:.1f} ms", "", "100 ms"),
        ("plain spawn loop", f"{found['spawn_loop_per_s']:.0f} /s", "", ""),
        ("bare Celery task", f"{found['bare_celery_per_s']:.0f} /s", "1.00", ""),
        (
            "burst through dispatch",
            f"{found['burst_per_s']:.0f} /s",
            f"{found['burst_ratio']:.2f}",
            "0.33 of bare Celery",
        ),
        ("start and end of a command", f"{found['unlimited_start_ms']:.1f} ms", "1.00", ""),
        (
            f"the same with limits ({found['limits']})",
            f"{found['limited_start_ms']:.1f} ms",
            f"{found['limited_start_ms'] / found['unlimited_start_ms']:.2f}",
            "",
        ),
        (f"a slot of {found['slots_measured']}", f"{found['slot_pss_mb']:.1f} MB", "", "20 MB"),
        ("ingress, idle", f"{found['ingress_mb']:.0f} MB", "1.00", ""),
        (
            f"ingress, {found['pending']:,} pending",
            f"{found['ingress_with_pending_mb']:.0f} MB",
            f"{found['ingress_with_pending_mb'] / found['ingress_mb']:.2f}",
            "",
        ),
    ]
    for row in rows:
        table.add_row(*row)
    table.add_row("dependent starts, p50", f"{found['dependent_p50_ms']:.1f} ms", "", "30 ms")
    table.add_row(f"cascade over {found['cascade']:,}", f"{found['cascade_s']:.1f} s", "", "5 s")
    table.add_row("the same, each behind the one before", f"{found['deep_cascade_s']:.1f} s", "", "5 s")
    table.add_row("the first on a foreign ATS", f"{found['foreign_cascade_s']:.1f} s", "", "60 s")
    table.add_row("ingress, for that graph", f"{found['graph_mb']:.0f} MB", "", "50 MB")
    for engine in service.ENGINES:
        rate, raw = found[f"{engine}_requests_per_s"], found[f"{engine}_raw_per_s"]
        table.add_row(f"raw SQL, {engine}", f"{raw:.0f} /s", "1.00", "")
        table.add_row(f"claims and completions, {engine}", f"{rate:.0f} /s", f"{rate / raw:.2f}", "600 /s")
        for name in ("list", "board"):
            value = found[f"{engine}_{name}_ms"]
            table.add_row(f"20 of {found['listed']:,} tasks, {name}, {engine}", f"{value:.1f} ms", "", "20 ms")
    CONSOLE.print(table)


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="tests.bench", description=__doc__)
    parser.add_argument("--tasks", type=int, default=1000, help="tasks of a burst")
    parser.add_argument("--pickups", type=int, default=300, help="tasks of the latency measurement")
    parser.add_argument("--pending", type=int, default=50_000, help="pending tasks of the memory measurement")
    parser.add_argument("--slots", type=int, default=8, help="slots of the throughput measurements")
    parser.add_argument("--requests", type=int, default=2000, help="tasks that are claimed and completed by hand")
    parser.add_argument("--listed", type=int, default=200_000, help="tasks of the list measurement")
    parser.add_argument("--graph", type=int, default=10_000, help="tasks of the graph measurements")
    parser.add_argument("--only", help="one of latency, burst, limits, slots, pending, requests, lists, graphs")
    parser.add_argument("--out", type=Path, default=Path("bench-results.json"))
    options = parser.parse_args()
    steps = {
        "latency": [("pickup latency", lambda: measure_latency(options.pickups))],
        "burst": [
            ("plain spawn loop", lambda: measure_spawn(options.tasks)),
            ("bare Celery", lambda: measure_bare(options.tasks, options.slots)),
            ("burst", lambda: measure_burst(options.tasks, options.slots)),
        ],
        "limits": [("starts with limits", lambda: limits.measure(100))],
        "slots": [("memory per slot", lambda: measure_slots(16))],
        "requests": [
            (f"requests on {engine}", functools.partial(service.measure_requests, engine, options.requests))
            for engine in service.ENGINES
        ],
        "lists": [
            (f"lists on {engine}", functools.partial(service.measure_list, engine, options.listed))
            for engine in service.ENGINES
        ],
        "graphs": [
            ("dependents", lambda: graphs.measure_dependents(DEFAULTS, 50)),
            ("a cascade", lambda: graphs.measure_cascade(DEFAULTS, options.graph, pss_mb, deep=False)),
            ("a deep cascade", lambda: graphs.measure_cascade(DEFAULTS, options.graph, pss_mb, deep=True)),
            ("a foreign cascade", lambda: graphs.measure_foreign_cascade(DEFAULTS, options.graph)),
        ],
        "pending": [("ingress with pending tasks", lambda: measure_pending(options.pending))],
    }
    found: dict[str, Any] = {
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "listed": options.listed,
    }
    for name, group in steps.items():
        if options.only in (None, name):
            for label, measure in group:
                with CONSOLE.status(f"measuring {label}"):
                    found |= measure()
    if "burst_per_s" in found:
        found["burst_ratio"] = found["burst_per_s"] / found["bare_celery_per_s"]
    if options.only is None:
        report(found)
        options.out.write_text(json.dumps(found, indent=2) + "\n")
        CONSOLE.print(f"figures written to {options.out}")
    else:
        CONSOLE.print_json(data=found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
