"""What a run will do, from a seed: which tasks come when, and what is killed when. Pure.

The same seed, counts and version of this file give the same plan. What real
processes do between two of its moments is theirs, so a run is replayed in its
plan, not to the microsecond.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from tests.chaos.history import FaultKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

TASKS_PER_S: Final = 8.5
FIRST_FAULT_S: Final = 1.5
FAULT_GAP_S: Final = 0.4
FAULT_ROOM_S: Final = 1.3
"""A run is at least so long for each fault, or one would hide what the next does."""
FAULTS: Final = (
    FaultKind.POOL_CHILD,
    FaultKind.WORKER,
    FaultKind.SERVICE,
    FaultKind.REDIS,
    FaultKind.INGRESS,
    FaultKind.POOL_CHILD,
    FaultKind.WORKER,
    FaultKind.INGRESS,
    FaultKind.POOL_CHILD,
    FaultKind.WORKER,
    FaultKind.POOL_CHILD,
    FaultKind.WORKER,
)
"""Twelve kills; fewer are taken from the front, more begin again."""

GRAPH_FAULTS: Final = (FaultKind.WORKER, FaultKind.REDIS, FaultKind.INGRESS)
"""Those of a run in a hurry, one of each."""

NEEDS: Final = (0, 1, 1, 1, 2, 2, 3, 5)
"""How many dependencies the tasks of a graph have, each as often as it stands here."""

GRAPH_PLAIN: Final = frozenset({"long", "deaf", "daemon", "poison"})
"""Kinds that take long; in a graph they are short ones instead."""

SHARES: Final = {"long": 5, "flaky": 10, "failing": 5, "daemon": 3, "deaf": 4, "poison": 1, "cancel": 5}
"""Kinds of tasks in percent, at least one of each; the others are short and succeed."""


@dataclass(frozen=True, slots=True)
class PlannedTask:
    """One task. ``orders`` are for tests/support/tick.py; ``cancel_after_s`` counts from when its child is seen."""

    at: float
    title: str
    orders: Mapping[str, Any]
    ends: str
    """Where it ends unless too many of its attempts are hit."""
    cut_short: bool = False
    cancel_after_s: float | None = None
    needs: tuple[int, ...] = ()
    """Places in the plan of the tasks that it depends on."""


@dataclass(frozen=True, slots=True)
class PlannedFault:
    """One kill -9. ``choice``, in [0, 1), picks among several; ``down_s`` is how long Redis stays away."""

    at: float
    kind: FaultKind
    choice: float
    down_s: float


@dataclass(frozen=True, slots=True)
class Plan:
    """The whole run; times are seconds from the moment when everything is up."""

    seed: int
    tasks: tuple[PlannedTask, ...] = field(repr=False)
    faults: tuple[PlannedFault, ...]

    def text(self) -> str:
        """Return the schedule for people."""
        kinds: dict[str, int] = {}
        for task in self.tasks:
            kind = task.title.split("-")[0]
            kinds[kind] = kinds.get(kind, 0) + 1
        mixed = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))
        last = self.tasks[-1].at if self.tasks else 0.0
        lines = [f"seed {self.seed}: {len(self.tasks)} tasks over {last:.1f} s ({mixed}), kill -9 of"]
        lines += [f"  {fault.at:6.2f} s  {fault.kind}" for fault in self.faults]
        return "\n".join(lines)


def make_plan(seed: int, tasks: int, faults: int) -> Plan:
    """Return the plan for a seed."""
    rand = random.Random(seed)
    span_s = max(tasks / TASKS_PER_S, FIRST_FAULT_S + faults * FAULT_ROOM_S)
    kinds = [kind for kind, percent in SHARES.items() for _ in range(max(1, tasks * percent // 100))]
    kinds = (kinds + ["short"] * tasks)[:tasks]
    rand.shuffle(kinds)
    moments = sorted(rand.uniform(0, span_s) for _ in kinds)
    planned = tuple(_task(rand, at, f"{kind}-{n:04d}") for n, (at, kind) in enumerate(zip(moments, kinds, strict=True)))
    return Plan(seed, planned, tuple(_faults(rand, faults, span_s)))


def make_graph_plan(seed: int, tasks: int, faults: int) -> Plan:
    """Return a plan whose tasks depend on each other: a random graph, all of it created early, some of it doomed."""
    plan = make_plan(seed, tasks, faults)
    rand = random.Random(f"graph {seed}")
    span_s = plan.tasks[-1].at
    planned: list[PlannedTask] = []
    for place, first in enumerate(plan.tasks):
        most = 0 if place < 5 else rand.choice(NEEDS)
        near = range(max(0, place - 30), place)
        needs = tuple(sorted(rand.sample(near, min(most, len(near)))))
        kind = first.title.split("-")[0]
        # Few are doomed, or nearly all would be; what is cancelled must be seen alive first, so it needs nothing.
        plain = kind in GRAPH_PLAIN or (kind == "failing" and rand.random() < 0.7) or (kind == "cancel" and needs)
        task = _task(rand, first.at, f"short-{place:04d}") if plain else first
        at = round(first.at * 0.5 * min(1.0, 12.0 / max(span_s, 1.0)), 3)
        # A task that waits may be failed before it begins, however its child would make it end.
        planned.append(replace(task, at=at, needs=needs, ends="" if needs else task.ends))
    return replace(plan, tasks=tuple(planned))


def in_a_hurry(plan: Plan, span_s: float) -> Plan:
    """Return the same graph with brief lives, created within half of ``span_s``, and GRAPH_FAULTS within ``span_s``."""
    rand = random.Random(f"hurry {plan.seed}")
    by_s = 0.5 * span_s / max(plan.tasks[-1].at, 0.1)
    tasks = [
        replace(
            task, at=round(task.at * by_s, 3), orders={**task.orders, "duration_s": task.orders["duration_s"] * part}
        )
        for task in plan.tasks
        for part in [1.0 if task.cancel_after_s is not None else 0.2]
    ]
    return replace(plan, tasks=tuple(tasks), faults=tuple(_faults(rand, len(GRAPH_FAULTS), span_s, GRAPH_FAULTS)))


def _faults(
    rand: random.Random, count: int, span_s: float, among: Sequence[FaultKind] = FAULTS
) -> Iterator[PlannedFault]:
    kinds = [among[n % len(among)] for n in range(count)]
    rand.shuffle(kinds)
    free_s = max(0.0, span_s - FIRST_FAULT_S - FAULT_GAP_S * count)
    moments = sorted(rand.uniform(0, free_s) for _ in kinds)
    for n, (moment, kind) in enumerate(zip(moments, kinds, strict=True)):
        at = FIRST_FAULT_S + moment + FAULT_GAP_S * n
        yield PlannedFault(round(at, 3), kind, rand.random(), round(rand.uniform(0.1, 1.0), 3))


def _task(rand: random.Random, at: float, title: str) -> PlannedTask:
    kind = title.split("-", maxsplit=1)[0]
    brief_s = round(rand.uniform(0.03, 0.3), 3)
    more: dict[str, dict[str, Any]] = {
        "long": {"duration_s": round(rand.uniform(1.0, 3.0), 3)},
        "flaky": {"exits": [1] * rand.randint(1, 2) + [0]},
        "failing": {"exits": [rand.choice([1, 2, 127])]},
        "daemon": {"daemon_s": 20},
        "deaf": {"duration_s": brief_s + 0.5, "ignore_term": True},
        "poison": {"duration_s": 20, "kill_parent": True},
        "cancel": {"duration_s": 60, "ignore_term": rand.random() < 0.3},
    }
    ends = {"failing": "failed", "poison": "failed", "cancel": "cancelled"}
    return PlannedTask(
        at,
        title,
        {"duration_s": brief_s, **more.get(kind, {})},
        ends.get(kind, "completed"),
        cut_short=kind == "poison",
        cancel_after_s=round(rand.uniform(0.0, 0.5), 3) if kind == "cancel" else None,
    )
