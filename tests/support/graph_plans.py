"""Random graphs for tests, and which of their tasks must fail. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Planned:
    """One task of a graph: where it runs, and the places in the plan of those that it needs, all before its own."""

    channel: str = ""
    needs: tuple[int, ...] = ()
    fails: bool = False
    duration_s: float = 0.05


def random_graph(rand: random.Random, size: int) -> list[Planned]:
    """Return a graph of one channel: any shape without a circle, in which each task fails by itself now and then."""
    return [
        Planned(
            needs=tuple(sorted(rand.sample(range(place), rand.randint(0, min(place, 3))))),
            fails=rand.random() < 0.15,
            duration_s=rand.choice((0.0, 0.02, 0.1)),
        )
        for place in range(size)
    ]


def random_layer(
    rand: random.Random, good: Sequence[int], bad: Sequence[int], channels: Sequence[str], count: int
) -> list[Planned]:
    """Return tasks on channels in turn that need one to three of the ``good`` places, few of them a bad one as well."""
    found = []
    for place in range(count):
        needs = rand.sample(good, rand.randint(1, 3))
        if rand.random() < 0.25:
            needs.append(rand.choice(bad))
        found.append(Planned(channels[place % len(channels)], tuple(sorted(set(needs)))))
    return found


def doomed_in(plan: Sequence[Planned]) -> set[int]:
    """Return the places behind those that fail by themselves."""
    doomed: set[int] = set()
    for place, task in enumerate(plan):
        if any(needed in doomed or plan[needed].fails for needed in task.needs):
            doomed.add(place)
    return doomed
