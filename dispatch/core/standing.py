"""How the fleet stands, put together from what service, Redis and presence show; and what follows for a task. Pure.

The service knows a task's own side (dispatch.core.waiting): locks, pauses,
dependencies. Whether an ingress and workers are there to run it only Redis
shows. ``merged`` puts both together: the weightiest reason first.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from dispatch.core.steering import HOST, Steering
from dispatch.core.waiting import SEALED, Reason

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from dispatch.core.presence import IngressPresence, WorkerPresence

KEY_TROUBLE: Final = "key_refused"
SERVICE_TROUBLE: Final = "service_unreachable"

_OFFERED: Final = frozenset({"NO_WORKER", "OFFERED", "IN_LINE"})
"""Codes of the service that say no more than: it is ready, and nobody has begun."""
_QUEUED: Final = "QUEUED"
_MOVES: Final = frozenset({"OFFERED", "IN_LINE", "QUEUED", "BUSY", "FINISHED"})
"""Codes of tasks that are not stuck: they are next, or others are before them, or they ended just now."""
_WAITS: Final = "WAITING_FOR_DEPENDENCIES"


class Stand(StrEnum):
    """How a task stands that has not ended."""

    MOVES = "moves"
    """It runs, or it is its turn soon: nobody needs to do anything."""
    WAITS = "waits"
    """Only for others, all of which move or wait for such: nobody needs to do anything either."""
    STUCK = "stuck"
    """It goes on only when somebody does something, or when a time is over that somebody set."""


@dataclass(frozen=True, slots=True)
class ClassUse:
    """A class of tasks: how many of its places are taken, and how many there are."""

    held: int
    limit: int
    tasks: tuple[str, ...] = ()
    """Whose the places are."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """What can be seen. A ``..._error`` is a sentence without a full stop, "" when it answers.

    ``redis_error`` goes on behind the name of Redis: "does not answer: ...", "refuses us: ...", "takes no writes: ...".
    """

    service_url: str = ""
    service_error: str = ""
    is_key_refused: bool = False
    """The service answered, but refuses the key of whoever asks."""
    redis_url: str = ""
    redis_error: str = ""
    workers: tuple[WorkerPresence, ...] = ()
    ingresses: tuple[IngressPresence, ...] = ()
    steering: Steering = field(default_factory=Steering)
    queues: Mapping[str, int] = field(default_factory=dict)
    """Queue -> messages that wait in it."""
    classes: Mapping[str, ClassUse] = field(default_factory=dict)
    busy: Mapping[str, int] = field(default_factory=dict)
    """Host -> attempts that run there, as the service knows."""


@dataclass(frozen=True, slots=True)
class Way:
    """The way that a task takes through the fleet."""

    channel: str
    queue: str
    classes: Sequence[str] = ()


def unreachable(fleet: Fleet) -> Reason | None:
    """Return why the task service says nothing, or None when it answers."""
    if fleet.is_key_refused:
        return Reason(
            "KEY_REFUSED",
            f"The task service at {fleet.service_url} refuses our key: {fleet.service_error}.",
            "Name a file with a good key in DISPATCH_ATS_TOKEN_FILE; 'dispatch api-key create' makes keys.",
        )
    if fleet.service_error.startswith("The database"):
        return Reason(
            "SERVICE_DOWN",
            f"The task service at {fleet.service_url} cannot serve: {fleet.service_error}.",
            "See to its database; the service goes on by itself, and what runs does for three quarters of a lease.",
        )
    if fleet.service_error:
        return Reason(
            "SERVICE_DOWN",
            f"The task service at {fleet.service_url} does not answer: {fleet.service_error}.",
            "Start it with 'dispatch serve' or 'dispatch up'; what runs goes on for three quarters of a lease.",
        )
    return None


def redis_down(fleet: Fleet) -> Reason | None:
    """Return why nothing can be handed on, or None when Redis answers."""
    if not fleet.redis_error:
        return None
    advice = "Start Redis, or set DISPATCH_REDIS_URL"
    if fleet.redis_error.startswith("refuses"):
        advice = "Check DISPATCH_REDIS_USER and DISPATCH_REDIS_PASSWORD_FILE"
    elif fleet.redis_error.startswith("takes no writes"):
        advice = "See whether its memory or disk is full, or it is a replica"
    return Reason(
        "REDIS_DOWN",
        f"Redis at {fleet.redis_url} {fleet.redis_error}. Nothing is claimed without it.",
        f"{advice}; nothing is lost, and what runs goes on.",
    )


def ingress_reason(fleet: Fleet, channel: str | None = None) -> Reason | None:
    """Return why nobody claims from ``channel`` (None: from any), or None when an ingress does."""
    watching = [one for one in fleet.ingresses if channel is None or not one.channels or channel in one.channels]
    if not fleet.ingresses:
        return Reason(
            "INGRESS_DOWN",
            "No ingress is running; nothing is claimed.",
            "Start one with 'dispatch ingress' or 'dispatch up', with the channels in DISPATCH_CHANNEL.",
        )
    if not watching:
        return Reason(
            "INGRESS_DOWN",
            f"No ingress that runs watches channel {channel}.",
            f"Add {channel} to DISPATCH_CHANNEL of one and start it again, or start another with it.",
        )
    if any(not one.trouble for one in watching):
        return None
    names = ", ".join(f"{one.actor} on {one.host}" for one in watching[:5])
    if any(one.trouble == KEY_TROUBLE for one in watching):
        return Reason(
            "KEY_REFUSED",
            f"The task service refuses the key of the ingress {names}; it claims nothing.",
            "Give it a good key in DISPATCH_ATS_TOKEN_FILE and start it again; 'dispatch api-key create' makes keys.",
        )
    return Reason(
        "SERVICE_DOWN",
        f"The ingress {names} cannot reach the task service; it claims nothing.",
        "Check DISPATCH_ATS_URL there, and the network between; it tries again by itself.",
    )


def worker_reason(fleet: Fleet, queue: str) -> Reason | None:
    """Return why nobody would run what is put into ``queue``, or None when a worker would."""
    there = [worker for worker in fleet.workers if queue in worker.queues]
    if not there:
        return Reason(
            "NO_WORKER",
            f"No worker that takes from queue {queue} is running.",
            f"Start one with 'dispatch worker -Q {queue}', or 'celery -A dispatch worker -Q {queue}'.",
        )
    if all(worker.draining for worker in there):
        hosts = sorted({worker.host for worker in there})
        ordered = next((o for o in fleet.steering.orders if o.kind == HOST and o.name in hosts), None)
        return Reason(
            "DRAINING",
            f"All workers of queue {queue} are draining ({', '.join(hosts[:5])}){ordered.words if ordered else ''}.",
            "Start another worker, or undo it with 'dispatch drain HOST --undo'.",
        )
    return None


def pause_reason(fleet: Fleet, way: Way, now: float) -> Reason | None:
    """Return the pause that keeps a task from being claimed, or None."""
    order = fleet.steering.pause_of(way.channel, way.queue, now)
    if order is None:
        return None
    return Reason(
        "PAUSED",
        f"{order.kind.capitalize()} {order.name} is paused{order.words}.",
        f"Wait, or resume it with 'dispatch resume {order.kind} {order.name}'.",
    )


def full_classes(fleet: Fleet, classes: Iterable[str]) -> Reason | None:
    """Return the first class that has no place left, or None."""
    for name in classes:
        use = fleet.classes.get(name)
        if use is not None and use.held >= use.limit:
            return Reason(
                "CLASS_FULL",
                f"Class {name} is full: {use.held} of its {use.limit} places are taken{_by(use.tasks)}.",
                "Wait until one of its tasks ends, or raise its limit in [classes].",
            )
    return None


def _by(tasks: Sequence[str]) -> str:
    named = ", ".join(f"#{task_id}" for task_id in tasks[:5])
    return f", by {named}{' and others' if len(tasks) > 5 else ''}" if tasks else ""


def fleet_reasons(fleet: Fleet, way: Way, now: float, *, is_claimed: bool = False) -> list[Reason]:
    """Return what keeps the fleet from running a task that is ready, the weightiest first."""
    if (down := redis_down(fleet)) is not None:
        return [down]
    found = [worker_reason(fleet, way.queue)]
    if not is_claimed:
        before = [pause_reason(fleet, way, now), ingress_reason(fleet, way.channel)]
        found = [*before, *found, full_classes(fleet, way.classes)]
    told = [reason for reason in found if reason is not None]
    return told or _busy(fleet, way.queue)


def _busy(fleet: Fleet, queue: str) -> list[Reason]:
    there = [worker for worker in fleet.workers if queue in worker.queues and not worker.draining]
    slots = sum(worker.slots for worker in there)
    busy = sum(fleet.busy.get(host, 0) for host in {worker.host for worker in there})
    if not slots or busy < slots:
        return []
    return [
        Reason(
            "BUSY",
            f"All {slots} slots of queue {queue} are busy.",
            "Wait, add workers, or raise its priority.",
        )
    ]


def merged(
    told: Sequence[Reason], fleet: Fleet, way: Way, now: float, *, inside: Sequence[Reason] | None = None
) -> list[Reason]:
    """Return why a task is not running: ``told`` by the service, with what only the fleet shows.

    ``inside`` is why a sealed task waits, as an ingress knows it; None where nobody could be asked.
    """
    if inside is not None:
        told = [reason for reason in told if reason.code != SEALED]
    code = told[0].code if told else ""
    if code in _OFFERED and inside:
        told, code = inside, inside[0].code
    if code in _OFFERED or code == _QUEUED:
        unopened = [reason for reason in told if reason.code == SEALED]
        found = fleet_reasons(fleet, way, now, is_claimed=code == _QUEUED)
        return [*found, *unopened] if found else list(told)
    pause = pause_reason(fleet, way, now) if told and code not in ("FINISHED", "IN_REVIEW") else None
    return [*told, pause] if pause is not None else list(told)


def waits_for_others(told: Sequence[Reason]) -> bool:
    """Say whether how a task stands depends on how those stand that it waits for."""
    return bool(told) and told[0].code == _WAITS


def stand_of(told: Sequence[Reason], needed: Iterable[Stand] = ()) -> Stand:
    """Say how a task stands, by why it is not running and how those stand that it waits for.

    The weightiest reason decides. That its channel is paused as well, say, is no matter for one that waits: its
    turn has not come.
    """
    if not told or told[0].code in _MOVES:
        return Stand.MOVES
    if not waits_for_others(told) or Stand.STUCK in needed:
        return Stand.STUCK
    return Stand.WAITS


def fleet_troubles(fleet: Fleet, queues: Iterable[str]) -> list[Reason]:
    """Return what is wrong with the fleet as a whole, whatever tasks there are."""
    if (down := redis_down(fleet)) is not None:
        service = unreachable(fleet)
        return [down] if service is None else [service, down]
    found = [unreachable(fleet), ingress_reason(fleet), *(worker_reason(fleet, queue) for queue in queues)]
    return [reason for reason in found if reason is not None]
