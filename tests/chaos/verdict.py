"""What is promised, and the verdict on a history."""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tests.chaos.history import FaultKind

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Bounds:
    """What is promised, in seconds and counts. The defaults fit leases of 6 s (tests/support/stack.py)."""

    max_attempts: int = 3
    max_lease_losses: int = 10
    tree_dead_s: float = 1.0
    grace_s: float = 0.5
    renew_s: float = 1.5
    """How often a holder renews, and so hears of a cancel whose wake-up was lost."""
    settle_s: float = 1.0
    """Regrant delay and sweep: how long an expired lease may be seen at rest."""
    give_up_s: float = 1.0
    """How long one that found nobody when it started takes to end."""
    from_up: frozenset[FaultKind] = frozenset({FaultKind.REDIS, FaultKind.REDIS_EMPTIED, FaultKind.SERVICE})
    """Faults whose recovery counts from when the killed process was ready again; for others, from the kill."""
    recovery_s: Mapping[FaultKind, float] = field(
        default_factory=lambda: {
            FaultKind.POOL_CHILD: 10.0,
            FaultKind.WORKER: 10.0,
            FaultKind.WORKER_FROZEN: 10.0,
            FaultKind.WORKER_DRAIN: 10.0,
            FaultKind.HOST_CUT_OFF: 10.0,
            FaultKind.HOST_FROZEN: 10.0,
            FaultKind.HOST_KILLED: 10.0,
            FaultKind.INGRESS: 10.0,
            FaultKind.REDIS: 5.0,
            FaultKind.REDIS_EMPTIED: 15.0,
            FaultKind.SERVICE: 10.0,
        }
    )

    def slowed(self, slowness: float) -> Bounds:
        """Return the same for a machine on which everything takes so many times as long."""
        return replace(
            self,
            tree_dead_s=self.tree_dead_s * slowness,
            settle_s=self.settle_s * slowness,
            give_up_s=self.give_up_s * slowness,
            recovery_s={kind: bound_s * slowness for kind, bound_s in self.recovery_s.items()},
        )


@dataclass(frozen=True, slots=True, order=True)
class Violation:
    """A broken promise."""

    invariant: str
    task_id: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Recovery:
    """How long something took to run again, and how long it might. Both count from ``since``, see Bounds."""

    kind: FaultKind
    took_s: float
    bound_s: float


@dataclass(frozen=True, slots=True)
class Report:
    """The verdict."""

    counts: Mapping[str, int]
    recoveries: tuple[Recovery, ...]
    violations: tuple[Violation, ...]

    @property
    def ok(self) -> bool:
        """Say whether every promise was kept."""
        return not self.violations

    def text(self) -> str:
        """Return the verdict for people: counts, recovery times, violations by invariant."""
        lines = ["  ".join(f"{name} {number}" for name, number in self.counts.items())]
        by_kind: dict[FaultKind, list[Recovery]] = defaultdict(list)
        for recovery in self.recoveries:
            by_kind[recovery.kind].append(recovery)
        for kind, found in sorted(by_kind.items()):
            worst = max(found, key=lambda r: r.took_s)
            middle = statistics.median(r.took_s for r in found)
            lines.append(
                f"recovery after {kind}: {len(found)} times, median {middle:.2f} s, "
                f"at worst {worst.took_s:.2f} s of {worst.bound_s:.3g} s"
            )
        lines += [f"{v.invariant}  task {v.task_id}: {v.sentence}" for v in self.violations]
        lines.append("valid" if self.ok else f"INVALID: {len(self.violations)} violations")
        return "\n".join(lines)
