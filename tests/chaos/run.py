"""One run: start the fleet, follow the plan, heal, wait until everything rests, collect, check."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tests.chaos import collect
from tests.chaos.checker import TERMINAL, check
from tests.chaos.fleet import Fleet
from tests.chaos.history import History, read_ticks
from tests.chaos.load import Load
from tests.chaos.verdict import Bounds
from tests.support.processes import ROOT
from tests.support.promises import FairClock

if TYPE_CHECKING:
    from pathlib import Path

    from tests.chaos.plan import Plan
    from tests.chaos.verdict import Report

RESULTS = ROOT / "chaos-results"
HEAL_S = 60.0
DRAIN_S = 90.0
"""How long after healing everything may take to end: far longer than a lease, so that the checker judges, not this."""
LATER_S = 1.2
"""After the last end, before the last look for processes that should be gone."""
QUEUE = "dispatch"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A verdict, how long the run took, and where its history was kept if it was not valid."""

    plan: Plan
    report: Report
    seconds: float
    kept: Path | None

    def text(self) -> str:
        """Return it for people."""
        where = f"\nThe history and the logs are in {self.kept}." if self.kept else ""
        return f"{self.report.text()}, {self.seconds:.0f} s{where}"


def run(plan: Plan, *, is_alone: bool = True) -> Outcome:
    """Run a plan on a stack of its own. Leaves nothing behind unless the verdict is bad.

    Where it is not alone on the machine, what is promised in seconds counts by a fair clock.
    """
    begun_at = time.monotonic()
    fleet = Fleet()
    try:
        with FairClock() as clock:
            fleet.start()
            load = Load(fleet.stack, plan)
            load.start()
            _follow(plan, fleet, load)
            _come_to_rest(fleet, load)
            load.finish()
        history = _collect(fleet, load)
        report = check(history, Bounds() if is_alone else Bounds().slowed(clock.slowness))
        kept = None if report.ok else _keep(plan, fleet, history, report)
        if report.ok:
            fleet.stack.close()
        return Outcome(plan, report, time.monotonic() - begun_at, kept)
    finally:
        fleet.stack.abort()


def _follow(plan: Plan, fleet: Fleet, load: Load) -> None:
    """Do every fault at its moment; one that finds nothing to kill is tried again until it does."""
    begun_at = time.monotonic()
    for fault in plan.faults:
        give_up_at = begun_at + fault.at + HEAL_S
        while time.monotonic() < begun_at + fault.at or not fleet.hit(fault):
            assert time.monotonic() < give_up_at, f"there was no {fault.kind} to kill:\n{fleet.stack.report()}"
            fleet.supervise()
            time.sleep(0.02)


def _come_to_rest(fleet: Fleet, load: Load) -> None:
    """Wait until all is up, all was created, and all has ended; whoever did not by then is for the checker."""
    _supervised(fleet, HEAL_S, fleet.all_ready)
    _supervised(fleet, DRAIN_S, lambda: not load.busy and not _unfinished(fleet))
    _supervised(fleet, 2.0, lambda: not any(_depths(fleet).values()))
    _supervised(fleet, LATER_S, lambda: False)


def _supervised(fleet: Fleet, seconds: float, reached: Any) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        fleet.supervise()
        if reached():
            return
        time.sleep(0.05)


def _unfinished(fleet: Fleet) -> int:
    marks = ",".join("?" * len(TERMINAL))
    with contextlib.closing(sqlite3.connect(f"file:{_database(fleet)}?mode=ro", uri=True)) as store:
        row = store.execute(f"SELECT count(*) FROM tasks WHERE status NOT IN ({marks})", sorted(TERMINAL)).fetchone()
    return int(row[0])


def _database(fleet: Fleet) -> Path:
    return fleet.stack.directory / "data" / "tasks.db"


def _depths(fleet: Fleet) -> dict[str, int]:
    with contextlib.closing(fleet.stack.redis.client()) as client:
        return collect.queue_depths(client, QUEUE)


def _collect(fleet: Fleet, load: Load) -> History:
    offset_s = collect.wall_minus_boot_s()
    ended_at = time.time()
    events, tasks = collect.read_store(_database(fleet))
    ticks = tuple(read_ticks(fleet.stack.ticks, offset_s))
    return History(
        events=events,
        tasks=tasks,
        creations=tuple(load.creations),
        ticks=ticks,
        calls=tuple(load.calls),
        faults=collect.with_victims(fleet.faults(), events),
        sightings=(*load.sightings, *collect.sightings(fleet.stack.url)),
        exits=tuple(fleet.exits),
        queue_depths=_depths(fleet),
        ended_at=ended_at,
    )


def _keep(plan: Plan, fleet: Fleet, history: History, report: Report) -> Path:
    """Write down everything about a run that was not valid."""
    kept = RESULTS / f"seed-{plan.seed}"
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    (kept / "plan.txt").write_text(plan.text() + "\n", "utf-8")
    (kept / "report.txt").write_text(report.text() + "\n", "utf-8")
    (kept / "history.json").write_text(json.dumps(asdict(history), default=_as_json, indent=1), "utf-8")
    for n, process in enumerate(fleet.stack.processes):
        log = "\n".join(process.output) + "\n"
        (kept / f"{n:02d}-{process.name}-{process.pid}.log").write_text(log, "utf-8")
    shutil.copy(fleet.stack.redis.directory / "redis.log", kept)
    shutil.copytree(fleet.stack.ticks, kept / "ticks")
    with (
        contextlib.closing(sqlite3.connect(_database(fleet))) as store,
        contextlib.closing(sqlite3.connect(kept / "tasks.db")) as copy,
    ):
        store.backup(copy)
    return kept


def _as_json(value: object) -> object:
    if isinstance(value, frozenset):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
