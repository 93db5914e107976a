"""What a chaos run leaves behind, as values: the checker reads nothing else.

All times are seconds on one clock. The driver converts: the service's times
are wall time, the children tick in CLOCK_BOOTTIME, and on one machine the two
differ by a constant as long as nobody sets the clock.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Event:
    """One row of the service's event log, in the order of ``seq``. Statuses are Task Tools words."""

    seq: int
    task_id: str
    type: str
    """``task.created``, ``task.claimed``, ``task.started``, ``task.released``, ``task.lease_expired``, ..."""
    from_status: str | None
    to_status: str | None
    at: float
    actor: str = ""
    token: int | None = None
    runner: str = ""
    """Only of ``task.started``: who started."""
    counted: bool | None = None
    """Only of ``task.released``: whether the attempt counts as failed, None if the log does not say."""


@dataclass(frozen=True, slots=True)
class FinalTask:
    """A task as the service shows it after everything has come to rest."""

    id: str
    title: str
    status: str
    token: int = 0
    attempts: int = 0
    lease_losses: int = 0
    lease_expires_at: float | None = None
    not_before_at: float | None = None


@dataclass(frozen=True, slots=True)
class Creation:
    """One try of the client to create a task; ``title`` is unique. ``task_id`` is None if no answer came."""

    title: str
    task_id: str | None
    at: float
    cut_short: bool = False
    """Its attempts end without saying so: a child that kills itself or its worker, or that runs into its time limit."""
    ends: str = ""
    """The status in which it ends unless too many of its attempts are hit; "" where anything goes."""
    needs: tuple[str, ...] = ()
    """The ids of the tasks that it depends on."""


@dataclass(frozen=True, slots=True)
class Call:
    """A renewal, completion or failure that somebody sent, and the answer it got.

    ``current_token`` is the task's token when it was sent, as the sender saw it:
    a call with a lower one is stale. ``repeats`` marks an identical call that
    had been accepted before.
    """

    verb: str
    task_id: str
    token: int
    current_token: int
    status: int
    repeats: bool = False


@dataclass(frozen=True, slots=True)
class Tick:
    """A line that a child wrote about itself; ``kind`` is begin, tick or end, ``role`` leader or daemon."""

    task_id: str
    token: int
    attempt: int
    at: float
    kind: str = "tick"
    role: str = "leader"
    pid: int = 0


class FaultKind(StrEnum):
    """What was done to the system."""

    POOL_CHILD = "pool_child"
    WORKER = "worker"
    WORKER_FROZEN = "worker_frozen"
    WORKER_DRAIN = "worker_drain"
    HOST_CUT_OFF = "host_cut_off"
    HOST_FROZEN = "host_frozen"
    HOST_KILLED = "host_killed"
    INGRESS = "ingress"
    REDIS = "redis"
    REDIS_EMPTIED = "redis_emptied"
    SERVICE = "service"


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. ``victims`` are the attempts (task id, token) that ran on what was killed, frozen or drained."""

    kind: FaultKind
    at: float
    victims: frozenset[tuple[str, int]] = frozenset()
    pids: frozenset[int] = frozenset()
    """The pool children that died."""
    host: str = ""
    """The host that was hit as a whole."""
    back_at: float | None = None
    """When what was killed was ready again; None counts as at once."""

    @property
    def up_at(self) -> float:
        """When it was over: ``back_at``, or when it happened."""
        return self.at if self.back_at is None else self.back_at


@dataclass(frozen=True, slots=True)
class Exit:
    """A process that ended although nobody asked it to."""

    name: str
    code: int
    at: float


@dataclass(frozen=True, slots=True)
class Sighting:
    """A process of an attempt that a scan of /proc saw alive, by the ATS_ variables in its environment."""

    task_id: str
    token: int
    pid: int
    at: float


@dataclass(frozen=True, slots=True)
class History:
    """Everything the checker looks at. ``ended_at`` is when the final tasks and queues were read."""

    events: tuple[Event, ...]
    tasks: tuple[FinalTask, ...]
    creations: tuple[Creation, ...]
    ticks: tuple[Tick, ...]
    calls: tuple[Call, ...] = ()
    faults: tuple[Fault, ...] = ()
    sightings: tuple[Sighting, ...] = ()
    exits: tuple[Exit, ...] = ()
    queue_depths: Mapping[str, int] = field(default_factory=dict)
    ended_at: float = 0.0


ENDS_GRANT = frozenset(
    {"task.completed", "task.failed", "task.cancelled", "task.rejected", "task.released", "task.lease_expired"}
)


def end_of_grant(events: Iterable[Event], token: int) -> Event | None:
    """Return the event that ended a grant, if any: the first end after it was granted. ``events`` are of one task."""
    granted = False
    for event in events:
        if event.type == "task.claimed":
            granted = event.token == token
        elif granted and event.type in ENDS_GRANT:
            return event
    return None


def read_ticks(directory: Path, wall_minus_boot_s: float) -> Iterator[Tick]:
    """Yield the ticks of all files that tests/support/tick.py wrote. Raises ValueError on a line that is none."""
    for path in sorted(directory.glob("*.ticks")):
        for text in path.read_text("utf-8").splitlines():
            line = json.loads(text)
            yield Tick(
                task_id=line["task"],
                token=line["token"],
                attempt=line["attempt"],
                at=line["at"] + wall_minus_boot_s,
                kind=line["kind"],
                role=line["role"],
                pid=line["pid"],
            )
