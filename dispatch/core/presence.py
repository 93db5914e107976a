"""What a worker process shows of itself in Redis, and what follows for admission.

A presence lives PRESENCE_TTL_S and is written every PRESENCE_EVERY_S and on
every change. It is a hint: a worker that is shown may be dead, one that is not
shown may be alive; leases settle both.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

PRESENCE_TTL_S: Final = 15
PRESENCE_EVERY_S: Final = 5.0
RUNNING_EVERY_S: Final = 1.0
"""How late a worker may be with what it shows as running."""


@dataclass(frozen=True, slots=True)
class WorkerPresence:
    """One worker process: how many attempts it can run at once, and from which queues."""

    node: str
    host: str
    pid: int
    slots: int
    queues: tuple[str, ...]
    draining: bool = False
    started_at: str = ""
    version: str = ""
    limits: str = ""
    """What holds the limits of its attempts (``core.limits.Mechanism``), "" when it sets none."""
    running: tuple[str, ...] = ()
    """What it runs now, each as ``<task id>.<fencing token>``."""


@dataclass(frozen=True, slots=True)
class IngressPresence:
    """One ingress: how many claims it has in flight, by queue."""

    actor: str
    host: str
    pid: int
    in_flight: dict[str, int]
    channels: tuple[str, ...] = ()
    backlog: int = 0
    trouble: str = ""
    """Why it claims nothing: key_refused, service_unreachable, or "" (dispatch.core.standing)."""


def dump(presence: WorkerPresence | IngressPresence) -> str:
    """Return the presence as JSON."""
    return json.dumps(asdict(presence))


def _known(body: dict[str, Any], kind: type) -> dict[str, Any]:
    """Return the fields that this version knows: processes of two versions run beside each other during an upgrade."""
    names = {one.name for one in fields(kind)}
    return {name: value for name, value in body.items() if name in names}


def parse_worker(text: str | None) -> WorkerPresence | None:
    """Read a worker's presence; None for anything that is not one."""
    try:
        body = json.loads(text or "")
        return WorkerPresence(
            **{
                **_known(body, WorkerPresence),
                "queues": tuple(body["queues"]),
                "slots": int(body["slots"]),
                "running": tuple(str(name) for name in body.get("running", ())),
            }
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def parse_ingress(text: str | None) -> IngressPresence | None:
    """Read an ingress's presence; None for anything that is not one."""
    try:
        body = json.loads(text or "")
        flights = {str(queue): int(count) for queue, count in body["in_flight"].items()}
        return IngressPresence(
            **{**_known(body, IngressPresence), "in_flight": flights, "channels": tuple(body.get("channels", ()))}
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def slots_of(workers: Iterable[WorkerPresence], queue: str) -> int:
    """Return how many attempts the workers that take from ``queue`` can run at once."""
    return sum(w.slots for w in workers if queue in w.queues and not w.draining)
